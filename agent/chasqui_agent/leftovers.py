"""What earlier sessions of the same ledger left in staging when they were cut: it is used again, not sent again.

A client's sync lock lets one session of a ledger live at a time, but the agent of a killed client may live for a minute
more. So nothing is looked at before it was taken away by a rename, which only one of two can do; the other finds it
gone, and stops. Sessions of other ledgers are left alone; what nobody wants goes after a day.
"""

import hashlib
import os
import shutil
import time

from . import files, wire

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, List, Optional

STALE = 86400.0  # seconds after which a session's staging folder is rubbish
PARTIAL, CONTENT, SHARDS, TAKEN = "partial", "content", "shards", "taken"


def owner_prefix(ledger: str) -> str:
    """How the names of all sessions of a ledger begin."""
    return hashlib.sha256(ledger.encode("utf-8", "surrogatepass")).hexdigest()[:12] + "."


def remove_stale(base: str) -> None:
    """Remove what stands in the folder `base` for longer than a day."""
    for name in files.names(base):
        path = os.path.join(base, name)
        try:
            old = time.time() - os.lstat(path).st_mtime > STALE
        except OSError:
            continue
        if old:
            shutil.rmtree(path, ignore_errors=True)


class Leftovers:
    """The earlier sessions of one ledger, as seen from a new one in the folder `own`."""

    def __init__(self, bases: "List[str]", prefix: str, own: str) -> None:
        """bases: the staging folders."""
        self.taken = os.path.join(own, TAKEN)
        self.folders = [os.path.join(base, name) for base in bases for name in files.names(base)
                        if name.startswith(prefix) and name != os.path.basename(own)]
        self._jobs: "Dict[str, str]" = {}
        self.contents: "Dict[str, List[str]]" = {}  # sha -> where a file is that may have it
        self.partials: "Dict[str, List[str]]" = {}
        self._scripts: "Dict[str, str]" = {}
        for folder in self.folders:
            self._look(folder)

    def _look(self, folder: str) -> None:
        for top in (folder, os.path.join(folder, TAKEN)):  # a session can be cut that had taken over another's
            self._jobs.update((name, os.path.join(top, name)) for name in files.names(top) if "." in name)
        for kind, found in ((CONTENT, (self.contents,)), (PARTIAL, (self.contents, self.partials))):
            for name in files.names(os.path.join(folder, kind)):
                for places in found:
                    places.setdefault(name.partition(".")[0], []).append(os.path.join(folder, kind, name))
        for rank in files.names(os.path.join(folder, SHARDS)):
            shard = os.path.join(folder, SHARDS, rank)
            self._scripts.update((name.partition(".")[2], os.path.join(shard, name)) for name in files.names(shard))

    def take_script(self, name: str, target: str) -> bool:
        """Make the unpublished script `<job>.<attempt>.sh` ours: whoever has it is the one to publish it."""
        return _rename(self._scripts.pop(name, ""), target)

    def take_job(self, name: str, listed: "List[Dict[str, Any]]") -> None:
        """Take over the folder `<job>.<attempt>`, if one was being built, and note where its files may have content."""
        if name not in self._jobs:
            return
        os.makedirs(self.taken, 0o700, exist_ok=True)
        folder = os.path.join(self.taken, name)
        if not _rename(self._jobs.pop(name), folder):
            return
        for item in listed:
            path = os.path.join(folder, os.fsdecode(wire.confined(item["path"])))
            if item["size"] and _size(path) == item["size"]:
                self.contents.setdefault(item["sha256"], []).append(path)

    def take_content(self, sha: str, size: int, target: str) -> bool:
        """Move a file with this content to `target`, where one is left: proved by its hash now."""
        for path in self.contents.pop(sha, []):
            if _size(path) == size and hash_of(path) == sha and _rename(path, target):
                return True
        return False

    def take_partial(self, sha: str, size: int, target: str) -> int:
        """Make the beginning of a content ours, under `target`, where one is left; how many bytes of it count, whole
        pieces. The file may still be open for writing in a process that is ending: read it, don't go on with it."""
        best = max(self.partials.pop(sha, []), key=_size, default="")
        length = _size(best)
        if not wire.PIECE <= length < size:
            return 0
        return length - length % wire.PIECE if _rename(best, target) else 0

    def remove(self) -> None:
        """All that is needed of them is ours now."""
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)


def hash_of(path: str, tick: "Optional[Callable[[], None]]" = None) -> str:
    """The SHA-256 of a file, "" where it can't be read. tick: called before every piece, and may raise."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as stream:
            for chunk in iter(lambda: stream.read(wire.CHUNK), b""):
                if tick:
                    tick()
                digest.update(chunk)
    except OSError:
        return ""
    return digest.hexdigest()


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return -1


def _rename(old: str, new: str) -> bool:
    """False where somebody else was faster."""
    try:
        os.rename(old, new)
    except FileNotFoundError:
        return False
    return True
