"""Small disks for whole sessions, and lines that fill them in the middle of one."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import needs
from chasqui_client.child import Child
from chasqui_client.transport import Channel, Local

BLOCK = 4096


class Disk:
    """A file system in memory with so much room, mounted on a folder."""

    def __init__(self, at: Path, size: str, inodes: int) -> None:
        self.at, self._filler, self._names = at, at / "filler", at / "names"
        self._mount("-t", "tmpfs", "-o", f"size={size},nr_inodes={inodes},mode=0700", "chasqui-test")

    def _mount(self, *words: str) -> None:
        done = subprocess.run(["mount", *words, self.at], capture_output=True, text=True)
        if done.returncode:
            needs.missing(f"the right to mount a tmpfs ({done.stderr.strip()})")

    def grow(self, size: str = "200m", inodes: int = 100_000) -> None:
        """Room for everything."""
        self._mount("-o", f"remount,size={size},nr_inodes={inodes}")

    def fill(self, left: int = 0) -> None:
        """Leave so many blocks."""
        free = os.statvfs(self.at).f_bavail
        with open(self._filler, "ab", buffering=0) as stream, contextlib.suppress(OSError):
            stream.write(bytes(max(0, free - left) * os.statvfs(self.at).f_frsize))

    def fill_inodes(self, left: int = 0) -> None:
        """Leave so many inodes."""
        self._names.mkdir()
        with contextlib.suppress(OSError):  # a job's tail may take one of them meanwhile
            for number in range(os.statvfs(self.at).f_favail - left):
                (self._names / str(number)).touch()

    def clear(self) -> None:
        """The user makes room."""
        self._filler.unlink(missing_ok=True)
        if self._names.exists():
            subprocess.run(["rm", "-r", self._names], check=True)


@contextmanager
def disk(at: Path, size: str = "200m", inodes: int = 5_000) -> Iterator[Disk]:
    """A small disk on the folder `at`, which is made."""
    needs.linux()
    at.mkdir(parents=True, exist_ok=True)
    mounted = Disk(at, size, inodes)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)


class _Interrupted(Channel):
    """Something happens on the way: when the client's n-th turn begins, or the agent's."""

    def __init__(self, process: Child, turn: int, happens: Callable[[], None]) -> None:
        super().__init__(process)
        self.turn, self.happens = turn, happens
        self.writing = False

    def _pass(self, writing: bool) -> None:
        if writing != self.writing:
            self.writing = writing
            self.turn -= 1
            if self.turn == 0:
                self.happens()

    def write(self, data: bytes) -> None:
        self._pass(True)
        super().write(data)

    def read(self, count: int) -> bytes:
        self._pass(False)
        return super().read(count)


class Interrupted(Local):
    """A local transport: when the session's turn `turn` begins (1 and 3 are the client's, 2 and 4 the agent's),
    `happens` is called once."""

    def __init__(self, turn: int, happens: Callable[[], None]) -> None:
        self.turn, self.happens = turn, happens

    def start(self, line: str) -> Channel:
        if " serve " not in line:
            return super().start(line)
        turn, self.turn = self.turn, 0
        return _Interrupted(Child(self.argv(line)), turn, self.happens)
