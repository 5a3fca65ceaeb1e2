"""A session's place on the disk while it takes jobs in: its folders, beside the content cache and what others left.

    staging/<session>/<job>.<attempt>/     a job's work folder being built; what it alone uses is written right there
    staging/<session>/content/<sha256>     verified content for several places, or of the cache (objects.py)
    staging/<session>/partial/<sha256>     the beginning of a large content
    staging/<session>/taken/               what an earlier session was building (leftovers.py)
    staging/<session>/shards/<prio>/       the scripts of a batch, as they will stand in waiting/

A session that is cut leaves its folder for the next one of its ledger. Where work/ is on another file system
(work_root), staging is work/.staging/ there: a rename can't cross. Shards stay.
"""

import os
import shutil

from . import channel, files, leftovers, space, wire
from .leftovers import CONTENT, PARTIAL, SHARDS, Leftovers
from .objects import Objects

MYPY = False
if MYPY:
    from typing import Tuple

    from .spool import Spool

    Key = Tuple[str, int]


class Staging:
    """The folders of one session, made here, and the room there is."""

    def __init__(self, spool: "Spool", ledger: str, cache_size: int) -> None:
        self.spool = spool
        self.session = channel.session_name()
        base = base_folder(spool)
        name = leftovers.owner_prefix(ledger) + self.session
        self.folder, self.shards = os.path.join(base, name), os.path.join(spool.staging, name, SHARDS)
        self._top = os.fsencode(self.folder)
        self.objects = Objects(objects_folder(spool), cache_size)
        bases = sorted({base, spool.staging})
        for one in bases:
            leftovers.remove_stale(one)
        self.room = space.Room(spool.work, spool.root, make_room=self.objects.make_room)
        self._make_folders()
        self.left = Leftovers(bases, leftovers.owner_prefix(ledger), self.folder)
        self._made = {self._top}

    def _make_folders(self) -> None:
        for attempt in (1, 2):
            try:
                for kind in (CONTENT, PARTIAL):
                    os.makedirs(os.path.join(self.folder, kind), 0o700, exist_ok=True)
                return
            except OSError as error:
                if not files.no_space(error):
                    raise
                if attempt == 1:
                    self.objects.empty()
        # All jobs stay where they are; results still leave, and that is what makes room.
        self.room.shut(space.tightest(self.spool.work, self.spool.root))

    def content(self, sha: str) -> str:
        """Where a content for several places stands."""
        return os.path.join(self.folder, CONTENT, sha)

    def partial(self, sha: str) -> str:
        """Where a content stands that is not whole yet."""
        return os.path.join(self.folder, PARTIAL, sha)

    def job_folder(self, key: "Key") -> str:
        """Where a job's work folder is built."""
        return os.path.join(self.folder, "%s.%d" % key)

    def make_place(self, key: "Key", path: str) -> bytes:
        """The path of a job's file, which was checked when it was offered, in staging; the folders above it made."""
        whole = b"%s/%s.%d/%s" % (self._top, key[0].encode("ascii"), key[1], wire.path_bytes(path))
        self.make(whole.rpartition(b"/")[0])
        return whole

    def make(self, folder: bytes) -> None:
        """Make a folder below the session's, and those above it."""
        # Each once: a folder that another session took away must not come back, half empty.
        if folder not in self._made:
            self.make(folder.rpartition(b"/")[0])
            os.mkdir(folder, 0o700)
            self._made.add(folder)

    def end_slice(self) -> None:
        """Other jobs come now, with other folders."""
        self._made = {self._top}

    def close(self, keep: bool, full: bool = False) -> None:
        """Remove the session's staging folders and those it has taken over; keep: it was cut, the next one goes on.
        full: a write found no space, and neither they nor the cache may be why the next one finds none."""
        if full or not keep:
            self.left.remove()
            shutil.rmtree(os.path.dirname(self.shards), ignore_errors=True)
            shutil.rmtree(self.folder, ignore_errors=True)
        if full:
            self.objects.empty()
        self.objects.trim()


def base_folder(spool: "Spool") -> str:
    """The folder of sessions' staging, on the file system of the work folders."""
    if os.stat(spool.staging).st_dev == os.stat(spool.work).st_dev:
        return spool.staging
    base = os.path.join(spool.work, ".staging")
    os.makedirs(base, 0o700, exist_ok=True)
    return base


def objects_folder(spool: "Spool") -> str:
    """The folder of the content cache, which need not be there: where copies into work folders are cheap."""
    beside = base_folder(spool) == spool.staging
    return os.path.join(spool.root, "objects") if beside else os.path.join(spool.work, ".objects")
