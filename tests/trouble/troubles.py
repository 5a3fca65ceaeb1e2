"""Everything that can be wrong: each brings its trouble to a user's desk, and takes it away when the block ends."""

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from ssh.lab import give
from trouble.person import Person, grow, small_disk

Bring = Callable[[Person], AbstractContextManager[None]]

# -- on her own computer -----------------------------------------------------------------------------------------------


@contextmanager
def nothing(her: Person) -> Iterator[None]:
    yield


def config(text: str | bytes) -> Bring:
    """Another config.toml."""

    @contextmanager
    def bring(her: Person) -> Iterator[None]:
        data = text.encode() if isinstance(text, str) else text
        before = her.config.read_bytes()
        her.config.write_bytes(data)
        try:
            yield
            assert her.config.read_bytes() == data
        finally:
            her.config.write_bytes(before)

    return bring


@contextmanager
def no_config(her: Person) -> Iterator[None]:
    aside = her.config.rename(her.path / "aside.toml")
    try:
        yield
        assert not her.config.exists()
    finally:
        aside.rename(her.config)


def closed(name: str) -> Bring:
    """A file or folder that may not be read any more."""

    @contextmanager
    def bring(her: Person) -> Iterator[None]:
        path = her.path / name
        if not path.exists():
            her.folder(name)
        mode = path.stat().st_mode
        path.chmod(0)
        try:
            yield
        finally:
            path.chmod(mode)

    return bring


@contextmanager
def empty_folder(her: Person) -> Iterator[None]:
    (her.path / "empty").mkdir()
    yield
    (her.path / "empty").rmdir()


def folder(change: Callable[[Path], object]) -> Bring:
    """The job folder `odd`, with something odd in it."""

    @contextmanager
    def bring(her: Person) -> Iterator[None]:
        path = her.folder("odd")
        change(path)
        give(path, her.account.name)
        try:
            yield
        finally:
            shutil.rmtree(path)

    return bring


def unreadable(path: Path) -> None:
    (path / "secret").write_text("x")
    (path / "secret").chmod(0)


@contextmanager
def damaged_ledger(her: Person) -> Iterator[None]:
    ledger = her.home / "jobs.db"
    before = ledger.read_bytes()
    ledger.write_bytes(b"rubbish " * 1000)
    try:
        yield
        assert ledger.read_bytes() == b"rubbish " * 1000
    finally:
        ledger.write_bytes(before)


# -- on the way there --------------------------------------------------------------------------------------------------


def reached(**changes: str) -> Bring:
    """A remote whose ssh config says something else; {port} is one on which nobody listens."""

    @contextmanager
    def bring(her: Person) -> Iterator[None]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        user = her.lab.user("plain")
        lines = her.ssh_config(user).read_text().splitlines()
        said = {key: value.format(port=port, path=her.path) for key, value in changes.items()}
        words = [line.split(None, 1) for line in lines]
        (her.path / "ssh.conf").write_text("".join(f"{key} {said.get(key, value)}\n" for key, value in words))
        before = her.config.read_text()
        her.configure(her.there(user, ssh_config=her.path / "ssh.conf"))
        try:
            yield
        finally:
            her.configure(before)

    return bring


@contextmanager
def no_ssh_server(her: Person) -> Iterator[None]:
    """Something else listens on the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        def serve() -> None:
            with contextlib.suppress(OSError):
                line = server.accept()[0]
                line.sendall(b"220 welcome to ftp\r\n" * 4000)
                line.close()

        threading.Thread(target=serve, daemon=True).start()
        with reached(Port=str(server.getsockname()[1]))(her):
            yield


def wrong_key(her: Person) -> AbstractContextManager[None]:
    """known_hosts has another key than the host shows."""
    other = her.lab.path("keys/id.pub").read_text()
    (her.path / "known").write_text(f"chasqui-lab {other}")
    return reached(UserKnownHostsFile="{path}/known")(her)


def code_of(account: str) -> Bring:
    """An account that asks for a code, and gets a wrong one."""

    @contextmanager
    def bring(her: Person) -> Iterator[None]:
        before, user = her.config.read_text(), her.lab.user(account)
        her.configure(her.there(user))
        her.environment |= {"CHASQUI_LAB_USER": user.name, "CHASQUI_LAB_CODES": "wrong"}
        try:
            yield
        finally:
            her.environment |= {"CHASQUI_LAB_CODES": "right"}
            her.configure(before)

    return bring


# -- on the cluster ----------------------------------------------------------------------------------------------------

# What `python3 -c` and `python3 agent VERB` do where they are 3.5.
PYTHON_35 = """#!/bin/sh
[ "$1" = -c ] || [ "$3" = -c ] || shift 2
exec {python} -I -S -c 'import runpy, sys
sys.version_info = (3, 5, 2, "final", 0)
sys.argv = sys.argv[1:]
if sys.argv[0] == "-c":
    exec(sys.argv[1])
else:
    runpy.run_path(sys.argv[0], run_name="__main__")' "$@"
"""


@contextmanager
def no_python(her: Person) -> Iterator[None]:
    her.configure(her.here(python="/nowhere/bin/python3"))
    yield
    her.configure(her.here())


def _python_35(her: Person) -> Path:
    stub = her.path / "python3.5"
    stub.write_text(PYTHON_35.format(python=her.python))
    stub.chmod(0o755)
    return stub


@contextmanager
def python_35(her: Person) -> Iterator[None]:
    her.configure(her.here(python=_python_35(her)))
    yield
    her.configure(her.here())


@contextmanager
def python_became_35(her: Person) -> Iterator[None]:
    """The agent is there, and what it was installed with is an old one now; nothing else is."""
    assert her.types("agent", "deploy").code == 0
    with python_35(her):
        (her.root / "agent" / "python").write_text(f"{her.path}/python3.5\n")
        yield


def root_at(where: str) -> Bring:
    """A root that can't be made."""

    @contextmanager
    def bring(her: Person) -> Iterator[None]:
        (her.path / "shut").mkdir(mode=0o555)
        her.configure(her.here(root=where.format(path=her.path)))
        yield
        assert not list((her.path / "shut").iterdir())
        her.configure(her.here())

    return bring


def unwritable(name: str) -> Bring:
    """A deployed root of which `name` lost its w."""

    @contextmanager
    def bring(her: Person) -> Iterator[None]:
        assert her.types("agent", "deploy").code == 0
        (her.root / name).chmod(0o500)
        yield
        (her.root / name).chmod(0o700)

    return bring


def disk(size: int, deploy: bool = False, full: bool = False) -> Bring:
    """The root is a disk of so many kB; when `deploy`, beside the agent; when `full`, nothing else will find room."""

    @contextmanager
    def bring(her: Person) -> Iterator[None]:
        her.disks.enter_context(small_disk(her.root, "8m" if deploy else f"{size}k", her.account.name))
        if deploy:
            assert her.types("agent", "deploy").code == 0
            at = os.statvfs(her.root)
            grow(her.root, f"{(at.f_blocks - at.f_bfree) * at.f_frsize // 1024 + size}k")
        if full:
            fill(her.root / "filler")
        yield
        (her.root / "filler").unlink(missing_ok=True)
        grow(her.root, "100m")

    return bring


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def fill(path: Path) -> None:
    """Take all the space that is left."""
    with open(path, "wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"x" * 4096)
