"""One sync at a time on a remote, and who holds what: the sync lock, and the process behind a locked ledger."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chasqui_agent import wire

from . import errors, headstart
from .config import Home


def sync_lock_path(home: Home, remote: str) -> Path:
    """The file that a sync of `remote` holds locked."""
    return home.path / ("sync-%s.lock" % remote)


@contextmanager
def sync_lock(home: Home, remote: str, wait: float = 0.0) -> Iterator[None]:
    """Hold `remote`'s sync lock; waits up to `wait` seconds, then raises LedgerBusy, which says who has it.

    flock, on this computer's disk: the kernel lets go of it however the holder dies. The file's text is for people.
    """
    path = sync_lock_path(home, remote)
    fd = headstart.take_lock(str(path))
    if fd is None:
        fd = _locked(path, home, wait)
    try:
        _sign(fd)
        yield
    finally:
        os.close(fd)


def _sign(fd: int) -> None:
    """Say in the file who holds it. A full disk is no reason to stop: the lock holds without the words."""
    said = "process %d on %s since %s" % (os.getpid(), os.uname().nodename, time.strftime("%a %H:%M:%S"))
    with suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, said.encode("utf-8"), 0)


def _locked(path: Path, home: Home, wait: float) -> int:
    """The descriptor of the file at `path`, locked."""
    end = time.monotonic() + wait
    try:
        home.create()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise errors.HomeUnusable(errors.describe(error), path=path) from error
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() >= end:
                said = wire.printable(os.pread(fd, 200, 0).decode("utf-8", "replace")) or "another process"
                os.close(fd)
                raise errors.LedgerBusy(path=home.ledger_path, holder="a sync: " + said) from None
            time.sleep(0.2)


def of_file(path: Path) -> str:
    """The processes that hold a lock on `path`, in words, from the kernel's own table where there is one (Linux)."""
    try:
        inode = os.stat(path).st_ino
        lines = Path("/proc/locks").read_text("ascii").splitlines()
    except OSError:
        return "another program"
    pids = {line.split()[4] for line in lines if "->" not in line and line.split()[5].endswith(":%d" % inode)}
    pids.discard(str(os.getpid()))
    return ", ".join("process %s%s" % (pid, _command(pid)) for pid in sorted(pids)) or "another program"


def _command(pid: str) -> str:
    try:
        words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return " (%s)" % wire.printable(b" ".join(words).decode("utf-8", "replace").strip(), 80)
