"""The files of a job as they are on this computer: what a folder holds, by which rules, and with which SHA-256.

Paths are bytes. Symlinks to files are followed and their content taken (POTCARs are linked to libraries); symlinks to
folders are refused unless asked for; a dangling one is an error. Never inputs, because ours: results/, results-<id>/,
.chasqui/.
"""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from chasqui_agent import globs, wire

from . import errors
from .ledger import InputFile

MAX_FILES = 100_000  # a job's; the manifest must fit into one message
_BLOCK = 1 << 20
_RESULTS = re.compile(rb"results(-[a-z2-7]{8})?(\.attempt-[0-9]+)?\Z")

Hashes = dict[tuple[int, int, int, int], str]
_REMEMBERED = 4_000  # files, those asked for last: all of a library; a job's own are not asked for again


@dataclass
class Scan:
    """How folders are read. `hashes` remembers files by device and inode: thousands of jobs link one POTCAR library."""

    inputs: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow: bool = False
    hashes: Hashes = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self._include, self._exclude = globs.compile_globs(self.inputs), globs.compile_globs(self.exclude)
        except (ValueError, re.error) as error:
            raise errors.BadJob(wire.printable(str(error))) from error

    def files(self, folder: bytes) -> list[InputFile]:
        """Every input below `folder`, hashed, sorted by path. Raises BadJob, naming the file that can't be one."""
        found = []
        for path in self._walk(folder, b"", ()):
            found.append(read_input(os.path.join(folder, path), path, self.hashes))
            if len(found) > MAX_FILES:
                raise errors.BadJob("more than %d files: leave some out with --inputs or --exclude" % MAX_FILES)
        return sorted(found, key=lambda item: item.path)

    def _walk(self, folder: bytes, prefix: bytes, above: tuple[tuple[int, int], ...]) -> Iterator[bytes]:
        """Relative paths of the chosen files. above: device and inode of each folder on the way here, to see loops."""
        here = os.path.join(folder, prefix)
        try:
            status = os.stat(here)
            names = sorted(os.listdir(here))
        except OSError as error:
            raise _unreadable(prefix or b".", error) from error
        if (status.st_dev, status.st_ino) in above:
            raise errors.BadJob("%s is a symlink to a folder it is in" % _shown(prefix))
        for name in names:
            path = os.path.join(prefix, name)
            if globs.matches(self._exclude, path) or (not prefix and (_RESULTS.match(name) or name == b".chasqui")):
                continue
            if self._is_folder(folder, path):
                yield from self._walk(folder, path, (*above, (status.st_dev, status.st_ino)))
            elif self._chosen(path):
                yield path

    def _chosen(self, path: bytes) -> bool:
        return self._include is None or globs.matches(self._include, path)

    def _is_folder(self, folder: bytes, path: bytes) -> bool:
        """Whether to go into `path`. A symlink to a folder that --inputs does not ask for is simply passed over."""
        whole = os.path.join(folder, path)
        if not os.path.isdir(whole):
            return False
        if os.path.islink(whole) and not self.follow:
            if self._chosen(path):
                raise errors.BadJob("%s is a symlink to a folder: --follow takes what is in it, --exclude leaves it out"
                                    % _shown(path))
            return False
        return True


def read_input(source: bytes, path: bytes, hashes: Hashes | None = None,
               tick: Callable[[], None] = lambda: None) -> InputFile:
    """The regular file `source`, or what it links to, as input `path`. Raises BadJob for anything else.

    tick: called after each MB that is read.
    """
    hashes = {} if hashes is None else hashes
    try:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):
            raise errors.BadJob("%s is not a regular file; --exclude leaves it out" % _shown(path))
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        sha256 = hashes.pop(key, "") or _sha256(source, path, status, tick)
        if len(hashes) >= _REMEMBERED:
            del hashes[next(iter(hashes))]
        hashes[key] = sha256  # the newest last
    except FileNotFoundError:
        raise _missing(source, path) from None
    except OSError as error:
        raise _unreadable(path, error) from error
    return InputFile(path, status.st_size, status.st_mode & 0o777, sha256, status.st_mtime_ns, source)


def _sha256(source: bytes, path: bytes, before: os.stat_result, tick: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    with open(source, "rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            tick()
        after = os.fstat(stream.fileno())
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise errors.BadJob("%s changed while it was read" % _shown(path))
    return digest.hexdigest()


def _missing(source: bytes, path: bytes) -> errors.BadJob:
    if os.path.islink(source):
        target = wire.printable(wire.path_text(os.readlink(source)))
        return errors.BadJob("%s is a dangling symlink (to %s)" % (_shown(path), target))
    return errors.BadJob("%s is gone" % _shown(path))


def _unreadable(path: bytes, error: OSError) -> errors.BadJob:
    return errors.BadJob("%s: %s" % (_shown(path), errors.describe(error)))


def _shown(path: bytes) -> str:
    return wire.printable(wire.path_text(path))


def generated(path: bytes, content: bytes) -> InputFile:
    """An input whose content the ledger keeps itself."""
    return InputFile(path, len(content), 0o700, hashlib.sha256(content).hexdigest(), 0, b"", content)


def changed(files: Iterable[InputFile]) -> list[tuple[bytes, str]]:
    """(path, what happened) of the inputs that are not, by size and time, what they were when the job was added."""
    found = []
    for item in files:
        if item.content is not None:
            continue
        try:
            status = os.stat(item.source)
        except OSError as error:
            found.append((item.path, errors.describe(error)))
            continue
        if (status.st_size, status.st_mtime_ns) != (item.size, item.mtime_ns):
            found.append((item.path, "changed since add"))
    return found
