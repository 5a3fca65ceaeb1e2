"""Result files on this computer's disk: parts first, then whole files under their own names.

The job's folder may have changed under us, and what the cluster calls a result is not trusted: every folder on the way
is opened relative to the one above without following symlinks, and a file gets its name, by rename, only when its hash
is right.

What is durable when: nothing of a file is made durable as it arrives. `Landing.durable` does that in one pass for all
files that got their names since the last one; only after it the ledger may say that they are here. A crash of the
computer can leave files under their names whose content never reached the disk, and the ledger knows nothing of them:
the next sync finds them by size and time and asks for their hashes before it believes them. A process that is killed
loses nothing: what it wrote is the kernel's.

A file of at most one chunk is kept in memory until its hash is known to be right, then written as
results/.chasqui.part, one at a time, and renamed: a folder for parts in each of a thousand results folders would cost
more than all else. The part of a larger one is in
results/.chasqui/, stays there after a cut, and is continued from its last whole chunk. Its name comes from path, size
and time of the file there, so what has changed meanwhile is never continued; parts that no longer belong to a listed
file are removed when their job is next listed.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from chasqui_agent import fault, wire

from .messages import Arrived, Listed

fault.register(
    {
        "landing.chunk": "a chunk of a large result is in its part",
        "landing.rename.before": "a result is whole and verified, not yet under its final name",
        "landing.rename.after": "a result is under its final name, neither durable nor recorded",
        "landing.durable.after": "results are under their final names and durable, not yet recorded",
    }
)

PARTS, SMALL = b".chasqui", b".chasqui.part"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FEW = 16  # files are fsynced one by one; for more, whole file systems are, whatever else is being written there
_CLOCK = 2 * 10**9  # nanoseconds; file systems keep times as coarse as that


def _part_name(file: Listed) -> bytes:
    known = b"%s\0%d\0%d" % (file.path, file.size, file.mtime_ns)
    return hashlib.sha256(known).hexdigest()[:32].encode("ascii") + b".part"


class Folder:
    """A job's results folder, open, so that it stays the same one whatever is put in its place meanwhile."""

    def __init__(self, path: bytes, make: bool = True) -> None:
        """Raises OSError: ELOOP or ENOTDIR where it, or the job's folder, is a symlink or no folder."""
        self.path, self._parts, self.used = path, -1, not make
        self._above = os.open(os.path.dirname(path), _FOLDER)
        try:
            self.fd = _open_folder(os.path.basename(path), self._above, make)
        except BaseException:
            os.close(self._above)
            raise

    def parts(self, make: bool = True) -> int:
        """A descriptor of the place for parts. Raises OSError."""
        if self._parts < 0:
            self._parts = _open_folder(PARTS, self.fd, make)
        return self._parts

    @contextmanager
    def place(self, path: bytes, make: bool = False) -> Iterator[tuple[int, bytes]]:
        """(descriptor of the folder that `path` stands in, its name there)."""
        *parents, name = path.split(b"/")
        fd = os.dup(self.fd) if parents else self.fd
        try:
            for parent in parents:
                below = _open_folder(parent, fd, make)
                os.close(fd)
                fd = below
            yield fd, name
        finally:
            if fd != self.fd:
                os.close(fd)

    def open(self, path: bytes) -> int:
        """A descriptor of the regular file `path`, for reading. Raises OSError."""
        with self.place(path) as (above, name):
            fd = os.open(name, _READ, dir_fd=above)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return fd

    def looks_like(self, file: Listed) -> bool:
        """Whether something of the size and time of `file` stands in its place."""
        try:
            with self.place(file.path) as (above, name):
                status = os.stat(name, dir_fd=above, follow_symlinks=False)
        except OSError:
            return False
        same = status.st_size == file.size and abs(status.st_mtime_ns - file.mtime_ns) < _CLOCK
        return same and stat.S_ISREG(status.st_mode)

    def lacks(self, path: bytes) -> bool:
        """Whether nothing at all stands in the place of `path`."""
        try:
            with self.place(path) as (above, name):
                os.stat(name, dir_fd=above, follow_symlinks=False)
        except OSError as error:
            return isinstance(error, FileNotFoundError)
        return False

    def fsync(self, path: bytes) -> None:
        """Make one file durable, and its name; nothing, where the user has removed it already."""
        with suppress(FileNotFoundError), self.place(path) as (above, _):
            fd = self.open(path)
            try:
                for one in (fd, above, self.fd, self._above):
                    os.fsync(one)
            finally:
                os.close(fd)

    def close(self) -> None:
        """Close it, and remove the place for parts where there are none, and itself where nothing came."""
        if self._parts >= 0:
            with suppress(OSError):
                os.rmdir(PARTS, dir_fd=self.fd)
        if not self.used:
            with suppress(OSError):
                os.rmdir(os.path.basename(self.path), dir_fd=self._above)
        # Forgotten first: a Ctrl-C in here has us called again, and a closed descriptor may be somebody else's by then.
        descriptors, self._parts, self.fd, self._above = (self._parts, self.fd, self._above), -1, -1, -1
        for fd in descriptors:
            if fd >= 0:
                os.close(fd)


def _open_folder(name: bytes, above: int, make: bool) -> int:
    if make:
        with suppress(FileExistsError):
            os.mkdir(name, 0o777, dir_fd=above)
    return os.open(name, _FOLDER, dir_fd=above)


class Landing:
    """The results folders of a session, one open at a time, and what must become durable."""

    def __init__(self) -> None:
        self._folder: Folder | None = None
        self._written: list[tuple[bytes, bytes]] = []  # (results folder, path)
        self._devices: dict[int, bytes] = {}  # file system -> a folder on it
        self._wrong: set[tuple[bytes, bytes]] = set()  # what looked right here and was not

    def folder(self, path: bytes) -> Folder:
        """The results folder `path`, made where there is none. Raises OSError."""
        if self._folder is None or self._folder.path != path:
            self.close()
            self._folder = Folder(path)
        return self._folder

    def close(self) -> None:
        """Close the folder in hand."""
        if self._folder:
            self._folder.close()
            self._folder = None

    # -- what is here already --------------------------------------------------------------------------------------

    def have(self, results: bytes, files: Sequence[Listed], remove: bool) -> list[int]:
        """Of each file how many bytes need not come: whole chunks of its part, or all where it seems to be here.

        remove: parts of other files are. Raises OSError where the results folder is a symlink or no folder, or where
        nothing can be written there.
        """
        self.close()
        try:
            os.lstat(results)
        except FileNotFoundError:
            os.lstat(os.path.dirname(results))  # raises where the job's folder is gone too
            return [0] * len(files)
        folder = Folder(results, make=False)
        try:
            if files and not os.access(".", os.W_OK, dir_fd=folder.fd):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            with suppress(FileNotFoundError):
                os.unlink(SMALL, dir_fd=folder.fd)
            parts = self._sizes(folder, {_part_name(file) for file in files}, remove)
            return [self._have(folder, file, parts) for file in files]
        finally:
            folder.close()

    def lacking(self, results: bytes, paths: Sequence[bytes]) -> frozenset[bytes]:
        """Those paths where nothing stands. Raises OSError as `have` does."""
        self.close()
        try:
            folder = Folder(results, make=False)
        except FileNotFoundError:
            return frozenset(paths)
        try:
            return frozenset(path for path in paths if folder.lacks(path))
        finally:
            folder.close()

    def _have(self, folder: Folder, file: Listed, parts: dict[bytes, int]) -> int:
        if folder.looks_like(file) and (folder.path, file.path) not in self._wrong:
            return file.size
        size = parts.get(_part_name(file), 0)
        return min(size, file.size) // wire.CHUNK * wire.CHUNK

    @staticmethod
    def _sizes(folder: Folder, ours: set[bytes], remove: bool) -> dict[bytes, int]:
        """The sizes of the parts named `ours`."""
        sizes = {}
        with suppress(FileNotFoundError):
            parts = folder.parts(make=False)
            for name in map(os.fsencode, os.listdir(parts)):
                status = os.stat(name, dir_fd=parts, follow_symlinks=False)
                if name in ours and stat.S_ISREG(status.st_mode):
                    sizes[name] = status.st_size
                elif remove and not stat.S_ISDIR(status.st_mode):
                    os.unlink(name, dir_fd=parts)
        return sizes

    # -- arriving --------------------------------------------------------------------------------------------------

    def begin(self, results: bytes, file: Listed, start: int) -> "Arriving":
        """Where `file` goes, of which bytes from `start` on come. Raises OSError."""
        folder = self.folder(results)
        if start and start == file.size and folder.looks_like(file):
            return _Here(self, folder, file)
        if start or file.size > wire.CHUNK:
            return _Large(self, folder, file, start)
        return Arriving(self, folder, file)

    def whole(self, folder: Folder, arrived: Arrived) -> bool:
        """A small file that came at once: whether it is what it should be; then it is under its name. Raises OSError
        where it can't be written, or what seemed to be here can't be read."""
        file, start, content, sha256 = arrived
        if start:
            return _Here(self, folder, file).finish(sha256)
        if hashlib.sha256(content).hexdigest() != sha256:
            return False
        self.put(folder, file, content)
        return True

    def put(self, folder: Folder, file: Listed, content: bytes) -> None:
        """`content`, known to be right, under the file's name. Raises OSError: then nothing of it stays."""
        part = create(SMALL, folder.fd, file, os.O_CREAT | os.O_TRUNC)
        try:
            wire.write_all(part, content)
            settle(part, file)
        except BaseException:
            remove(SMALL, folder.fd)
            raise
        finally:
            os.close(part)
        self.name(folder, file, SMALL, folder.fd)

    def name(self, folder: Folder, file: Listed, part: bytes, above: int) -> None:
        """Give the part in the folder `above` its name. Raises OSError: then it is gone."""
        fault.point("landing.rename.before")
        try:
            if b"/" not in file.path:
                os.rename(part, file.path, src_dir_fd=above, dst_dir_fd=folder.fd)
            else:
                with folder.place(file.path, make=True) as (below, name):
                    os.rename(part, name, src_dir_fd=above, dst_dir_fd=below)
        except OSError:
            remove(part, above)
            raise
        fault.point("landing.rename.after")
        self.landed(folder, file)

    def landed(self, folder: Folder, file: Listed) -> None:
        """A file has its name."""
        if not folder.used:
            self._devices.setdefault(os.fstat(folder.fd).st_dev, folder.path)
        folder.used = True
        self._written.append((folder.path, file.path))

    def distrust(self, folder: Folder, file: Listed) -> None:
        """What stands in the file's place is not the file."""
        self._wrong.add((folder.path, file.path))

    # -- durable ---------------------------------------------------------------------------------------------------

    def durable(self) -> None:
        """Everything that got its name since the last pass survives a crash of this computer. Raises OSError."""
        self.close()
        if not self._written:
            return
        whole = _syncfs() if len(self._written) > _FEW else None
        if whole:
            for path in self._devices.values():
                _each(Folder(path, make=False), whole)
        else:
            self._fsync_each()
        self._written, self._devices = [], {}
        fault.point("landing.durable.after")

    def _fsync_each(self) -> None:
        for results, path in self._written:
            folder = Folder(results, make=False)
            try:
                folder.fsync(path)
            finally:
                folder.close()


def _each(folder: Folder, sync: Any) -> None:
    try:
        sync(folder.fd)
    finally:
        folder.close()


def _syncfs() -> Any:
    """Linux's syncfs(2) as a function of a descriptor, raising OSError; None elsewhere."""
    try:
        import ctypes
        call = ctypes.CDLL(None, use_errno=True).syncfs
    except (ImportError, OSError, AttributeError):
        return None

    def syncfs(fd: int) -> None:
        if call(fd):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    return syncfs


# -- one file ----------------------------------------------------------------------------------------------------------


def create(part: bytes, above: int, file: Listed, flags: int) -> int:
    """A descriptor of a part in the folder `above`. Raises OSError."""
    # The user's umask decides who may read it; of the cluster's mode only "executable" counts.
    mode = 0o777 if file.mode & 0o100 else 0o666
    return os.open(part, flags | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=above)


def settle(part: int, file: Listed) -> None:
    """Give a part the time of the file there."""
    os.utime(part, ns=(file.mtime_ns, file.mtime_ns))


def remove(part: bytes, above: int) -> None:
    """Remove a part, if that can be done."""
    with suppress(OSError):
        os.unlink(part, dir_fd=above)


class Arriving:
    """A file of at most one chunk: kept in memory until its hash is known to be right."""

    def __init__(self, landing: Landing, folder: Folder, file: Listed) -> None:
        self.landing, self.folder, self.file = landing, folder, file
        self.digest = hashlib.sha256()
        self.content = b""

    def write(self, data: bytes) -> None:
        """Take some of the content. Raises OSError."""
        self.digest.update(data)
        self.content += data

    def finish(self, sha256: str) -> bool:
        """All has come: whether it is what it should be; then it is under its name. Raises OSError."""
        right = self.digest.hexdigest() == sha256
        if right:
            self.landing.put(self.folder, self.file, self.content)
        return right

    def drop(self) -> None:
        """It can't be finished: nothing of it stays."""

    def leave(self) -> None:
        """The session is over: what came of it stays for the next one."""


class _Large(Arriving):
    """A file in its part on the disk, perhaps begun by an earlier session."""

    def __init__(self, landing: Landing, folder: Folder, file: Listed, start: int) -> None:
        super().__init__(landing, folder, file)
        self.place = _part_name(file), folder.parts()
        self.part = create(*self.place, file, 0 if start else os.O_CREAT)
        try:
            self._continue(start)
        except BaseException:
            os.close(self.part)
            raise

    def _continue(self, start: int) -> None:
        """Hash what is here, and cut off what is no whole chunk."""
        at = 0
        while at < start and (chunk := os.pread(self.part, min(start - at, wire.CHUNK), at)):
            self.digest.update(chunk)
            at += len(chunk)
        os.ftruncate(self.part, start)
        os.lseek(self.part, start, os.SEEK_SET)

    def write(self, data: bytes) -> None:
        self.digest.update(data)
        wire.write_all(self.part, data)
        fault.point("landing.chunk")

    def finish(self, sha256: str) -> bool:
        right = self.digest.hexdigest() == sha256
        if not right:
            self.drop()
            return False
        try:
            settle(self.part, self.file)
        finally:
            self.leave()
        self.landing.name(self.folder, self.file, *self.place)
        return True

    def drop(self) -> None:
        self.leave()
        remove(*self.place)

    def leave(self) -> None:
        part, self.part = self.part, -1  # forgotten first: a Ctrl-C in here has us called again
        if part >= 0:
            os.close(part)


class _Here(Arriving):
    """A file that seems to be here, though nothing says that its hash was ever looked at; only that comes."""

    def finish(self, sha256: str) -> bool:
        with os.fdopen(self.folder.open(self.file.path), "rb", 0) as stream:
            right = hashlib.file_digest(stream, "sha256").hexdigest() == sha256
        if right:
            self.landing.landed(self.folder, self.file)
        else:
            self.landing.distrust(self.folder, self.file)
        return right
