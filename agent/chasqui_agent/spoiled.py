"""Work folders as their jobs leave them: shut against us, too, or without the .chasqui/ of ours in them.

What a job has shut we open again, being the same user: .chasqui/ whole, the folder above it so far that it can be
reached and read. What it has taken away is gone: then nothing tells whether it has started, so that it is never
submitted again; its id is in the journal, and the scheduler alone knows how it ended.
"""

import errno
import os
import stat

from . import files

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, List, TypeVar

    Found = TypeVar("Found")

GONE = "its .chasqui/, which is the relay's own folder, had been taken away or damaged"
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EACCES, errno.EPERM)


def gone(error: OSError) -> bool:
    """Whether it says that something of ours is not there any more, or is something else: not that a disk is full, nor
    that a file server does not answer."""
    return error.errno in _GONE


def let_in(meta: str, act: "Callable[[], Found]") -> "Found":
    """What `act` returns, which is about .chasqui/ of a work folder; where the job has shut it, that is undone first.
    Raises what it raises."""
    try:
        return act()
    except PermissionError:
        _open_again(meta)
    return act()


def _open_again(meta: str) -> None:
    unlock(os.path.dirname(meta), 0o500)
    unlock(meta)
    for name in names(meta):
        path = os.path.join(meta, name)
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode) and status.st_mode & 0o600 != 0o600:
            os.chmod(path, stat.S_IMODE(status.st_mode) | 0o600)


def unlock(folder: str, least: int = 0o700) -> int:
    """Let us into a folder of ours; the mode it had, -1 where it is none or nothing was changed."""
    try:
        status = os.lstat(folder)
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or mode & least == least:
            return -1
        os.chmod(folder, mode | least)
    except OSError:
        return -1
    return mode


def names(meta: str) -> "List[str]":
    """The names in .chasqui/; none where it is gone, is something else or can't be read."""
    try:
        return files.names(meta)
    except OSError as error:
        if not gone(error):
            raise
        return []


def read_json(meta: str, name: str) -> "Dict[str, Any]":
    """A record in .chasqui/; {} where it is not there. Raises ValueError where it is no record any more."""
    try:
        found = let_in(meta, lambda: files.read_json(os.path.join(meta, name), {}))
    except OSError as error:
        if not gone(error):
            raise
        raise ValueError("%s can't be read: %s" % (name, error.strerror)) from None
    if not isinstance(found, dict):
        raise ValueError("%s is no record" % name)
    return found


def check_work(work: str) -> None:
    """Raise OSError where work/ is on a file system of its own, and all folders there are gone: then that is not
    mounted, and no job has done it."""
    if not os.path.islink(work) and os.stat(work).st_dev == os.stat(os.path.dirname(work)).st_dev:
        return
    with os.scandir(work) as found:
        if not any(True for _ in found):
            raise OSError(errno.ENOENT, "no job's folder is there", work)


def id_in_journal(log: str, token: str) -> str:
    """The scheduler's id of a submission, whose own record of it is gone; "" where the journal has it no more. Reads
    the whole journal."""
    from . import journal

    found = ""
    for _, record in journal.records(log):
        if record.get("token") == token and record["ev"] in ("submitted", "adopted"):
            found = str(record.get("pbs") or "")
    return found
