"""The content cache: what several jobs used, or what is large, stays on the cluster and is not sent again.

    objects/<first two digits>/<sha256>      a whole content; its mtime is when it was last used

Anything here may be deleted at any time, by anybody. It stands beside staging/, on the file system of the work folders:
only there a copy can be a reflink or be made in the kernel. (work_root on scratch: work/.objects.)
"""

import errno
import os
import stat

from . import copies, files
from .leftovers import hash_of

MYPY = False
if MYPY:
    from typing import Dict, Iterator, List, Optional, Set, Tuple

LEAST, MOST = 64 << 10, 64 << 20  # bytes of a content that is kept although one job alone uses it


class Objects:
    """The cache in `folder`. most: bytes it may hold between sessions; 0: there is none."""

    def __init__(self, folder: str, most: int) -> None:
        self.folder, self.most = folder, most
        self._added = False
        self._names: "Dict[str, Set[str]]" = {}
        self._spare: "Optional[List[Tuple[float, int, str]]]" = None  # the one used longest ago at the end
        self._spare_bytes = 0

    def wants(self, size: int, uses: int) -> bool:
        """Whether a content of `size` bytes that a session uses so often belongs here."""
        return 0 < size <= self.most and (uses > 1 or LEAST <= size <= MOST)

    def _path(self, sha: str) -> str:
        return os.path.join(self.folder, sha[:2], sha)

    def _has(self, sha: str) -> bool:
        """Whether it was there when its folder was first looked at: thousands are asked for, most in vain."""
        part = sha[:2]
        if part not in self._names:
            self._names[part] = set(files.names(os.path.join(self.folder, part)))
        return sha in self._names[part]

    def take(self, sha: str, size: int, target: str) -> bool:
        """Put a content at `target`, safe from whoever deletes it here, and verified there by its hash. One that is
        damaged is deleted. The file at `target` may be the very one in the cache: it is only read and copied."""
        path = self._path(sha)
        try:
            if self.most == 0 or not self._has(sha) or os.lstat(path).st_size != size:
                return False
            _link(path, target)
        except OSError:
            return False  # not there, or gone this moment
        if hash_of(target) != sha:
            files.remove(target)
            files.remove(path)
            return False
        try:
            os.utime(path)
        except OSError:
            pass  # deleted meanwhile; ours is safe
        return True

    def add(self, sha: str, source: str) -> None:
        """Keep the verified content `source`, which nobody will write to any more. No space is no failure."""
        path = self._path(sha)
        try:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            _link(source, path)
            self._names.setdefault(sha[:2], set()).add(sha)
            self._added = True
        except FileExistsError:
            pass  # another session was faster
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.EIO):
                raise

    def trim(self) -> None:
        """`shrink`, after something was added."""
        if self._added:
            self.shrink()

    def shrink(self) -> None:
        """Delete what was used longest ago until the rest fits."""
        found = sorted((status.st_mtime, status.st_size, path) for status, path in self._all())
        total = sum(size for _, size, _ in found)
        for _, size, path in found:
            if total <= self.most:
                return
            files.remove(path)
            total -= size

    def make_room(self, amount: int, names: int) -> "Tuple[int, int]":
        """Delete what was used longest ago until `amount` bytes and `names` inodes are free; nothing, where all of it
        would not do. Returns how many bytes and inodes that freed: by their sum, since file systems may free later what
        was deleted now."""
        if self._spare is None:
            self._spare = sorted(((status.st_mtime, status.st_blocks * 512, path) for status, path in self._all()
                                  if status.st_nlink == 1), reverse=True)
            self._spare_bytes = sum(size for _, size, _ in self._spare)
        if self._spare_bytes < amount or len(self._spare) < names:
            return 0, 0
        freed = gone = 0
        while self._spare and (freed < amount or gone < names):
            _, size, path = self._spare.pop()
            self._spare_bytes -= size
            if _is_alone(path):
                files.remove(path)
                freed, gone = freed + size, gone + 1
        return freed, gone

    def empty(self) -> None:
        """Delete everything: the disk is full."""
        for _, path in self._all():
            files.remove(path)

    def _all(self) -> "Iterator[Tuple[os.stat_result, str]]":
        for part in files.names(self.folder):
            for name in files.names(os.path.join(self.folder, part)):
                path = os.path.join(self.folder, part, name)
                try:
                    status = os.lstat(path)
                except OSError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield status, path


def _is_alone(path: str) -> bool:
    """Whether no session has a name of its own for it: then deleting it would free nothing."""
    try:
        return os.lstat(path).st_nlink == 1
    except OSError:
        return False


def _link(source: str, target: str) -> None:
    """A second name for a file that is never written to; a copy where the file system knows none."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EEXIST):
            raise
        temporary = "%s.%s" % (target, os.urandom(4).hex())
        copies.copy(os.fsencode(source), os.fsencode(temporary), 0o600)
        os.rename(temporary, target)
