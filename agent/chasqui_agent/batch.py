"""Jobs whose content is all here: built in staging, then made real and public, many together.

A batch of jobs, complete in staging, is made durable by one pass (durable.py); then a rename each makes them work
folders, and one rename publishes their scripts into waiting/. Only then they are acknowledged. Before that pass a power
cut may take anything of them. A crash between the two renames leaves a work folder nobody runs: the next session that
offers the job publishes the script it finds in the dead one's shard. Whoever has moved that script, or that job's
folder in staging, is the one to go on with it.
"""

import errno
import json
import os
import time
from collections import namedtuple

from . import copies, durable, fault, files, offers, wire
from . import spool as spools
from .contents import read_script

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, List, Tuple

    from .contents import Contents
    from .staging import Staging

    Key = Tuple[str, int]

fault.register({
    "receive.built": "a job complete in staging, not durable",
    "receive.commit.before": "a job durable in staging, not yet renamed to its work folder",
    "receive.commit.after": "a job in its work folder, not yet published",
    "receive.publish.before": "a batch of jobs in work folders, none of it published",
    "receive.publish.after": "a batch published, not yet acknowledged",
})

BATCH_JOBS, BATCH_SECONDS = 1000, 5.0
# So many are a batch, too, where the line is slower than we are; but making them durable may take only a part of the
# time: on a busy file system it can be seconds, and the line stands meanwhile.
IDLE_JOBS, IDLE_PART = 100, 0.1
_RECORD = ("job", "attempt", "name", "priority", "script", "outputs", "exclude", "expect", "max_file", "max_job",
           "rerun", "bundle", "retry", "after", "if")
_Built = namedtuple("_Built", "key folder entry rank")  # folder: "" where it is a work folder already


class Batch:
    """The jobs of a session that are built and not published."""

    def __init__(self, staging: "Staging", contents: "Contents", ledger: str, working: "Callable[[], Any]") -> None:
        """working: as `Contents` has it."""
        self._staging, self._contents, self._ledger, self._working = staging, contents, ledger, working
        self._spool = staging.spool
        self._pending: "List[_Built]" = []
        self._positions: "Dict[int, int]" = {}  # rank -> scripts in its shard
        self._batches = 0
        self.published, self._cost = time.monotonic(), 0.0  # when one was made real last, and the seconds it took

    # -- building --------------------------------------------------------------------------------------------------

    def add(self, key: "Key", job: "Dict[str, Any]") -> None:
        """Build the folder of a job whose content is all here."""
        manifest = [self._contents.put(key, item) for item in job["files"]]
        folder, rank = self._staging.job_folder(key), _rank(job)
        script = self._contents.script_of(job, folder)
        self._write_meta(os.path.join(folder, ".chasqui"), job, manifest)
        if offers.keeps_inputs(job):
            self._keep_inputs(folder, manifest)
        entry = self._entry(key, rank)
        files.write_file(entry, script, durable=False)
        fault.point("receive.built")
        self._pending.append(_Built(key, folder, entry, rank))

    def add_again(self, key: "Key", record: "Dict[str, Any]") -> str:
        """A work folder that was made and, it seems, not published: its state if it was, else "", and it will be.

        In this order nobody can be overlooked who is about to publish it: his script goes from his shard to waiting/.
        """
        rank = _rank(record)
        entry = self._entry(key, rank)
        if not self._staging.left.take_script("%s.%d.sh" % key, entry):
            state = self._spool.known(*key)
            if state:
                return state
            path = os.path.join(os.fsencode(self._spool.work_dir(*key)), wire.confined(record.get("script")))
            files.write_file(entry, read_script(path), durable=False)
        self._pending.append(_Built(key, "", entry, rank))
        return ""

    def _write_meta(self, meta: str, job: "Dict[str, Any]", manifest: "List[Dict[str, Any]]") -> None:
        record = {key: job[key] for key in _RECORD if key in job}
        record.update(ledger=self._ledger, manifest=offers.manifest_digest(job["files"]))
        self._staging.make(os.fsencode(meta))
        for name, value in (("manifest.json", {"files": manifest}), ("job.json", record)):
            files.write_file(os.path.join(meta, name), json.dumps(value).encode("ascii"), durable=False)

    def _keep_inputs(self, folder: str, manifest: "List[Dict[str, Any]]") -> None:
        """Keep the inputs as they are now: the job may rewrite them, and be tried again (retries.py)."""
        top = os.path.join(os.fsencode(folder), b".chasqui", b"inputs")
        self._staging.make(top)
        for sha, path in {item["sha256"]: item["path"] for item in manifest}.items():
            source = os.path.join(os.fsencode(folder), wire.path_bytes(path))
            copies.copy(source, os.path.join(top, sha.encode("ascii")), 0o600)

    def _entry(self, key: "Key", rank: int) -> str:
        """Where a job's script is put to be published with the batch."""
        position = self._positions.get(rank, 0)
        self._positions[rank] = position + 1
        folder = self._shard(rank)
        if not position:
            os.makedirs(folder, 0o700)
        return os.path.join(folder, spools.shard_name(position, *key))

    def _shard(self, rank: int) -> str:
        return os.path.join(self._staging.shards, "%03d" % rank)

    # -- publishing ------------------------------------------------------------------------------------------------

    def is_due(self) -> bool:
        """Whether it is full, or 5 s old."""
        return len(self._pending) >= BATCH_JOBS or time.monotonic() - self.published > BATCH_SECONDS

    def is_due_in_a_pause(self) -> bool:
        """Whether it is to be published while nothing comes."""
        return len(self._pending) >= IDLE_JOBS and self._cost < IDLE_PART * (time.monotonic() - self.published)

    def publish(self) -> "Tuple[List[Key], List[Key]]":
        """Make all of it real and public; the jobs that are, and those that another session took over."""
        self.published = time.monotonic()
        if not self._pending:
            return [], []
        with self._working():
            pending, self._pending = self._pending, []
            durable.settle([self._staging.folder, self._staging.shards])
            real: "List[Key]" = []
            taken_over: "List[Key]" = []
            for item in pending:
                (real if self._make_real(item) else taken_over).append(item.key)
            files.fsync_folder(self._spool.work)
            self._batches += 1
            fault.point("receive.publish.before")
            for rank in sorted(self._positions):
                self._spool.publish(self._shard(rank), rank, "%s-%04d" % (self._staging.session, self._batches))
            self._positions = {}
            fault.point("receive.publish.after")
        self._cost = time.monotonic() - self.published
        return real, taken_over

    def _make_real(self, item: _Built) -> bool:
        """Rename a job to its work folder; False where another session took it over."""
        if not item.folder:
            return True
        fault.point("receive.commit.before")
        try:
            os.rename(item.folder, self._spool.work_dir(*item.key))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY):
                raise
            files.remove(item.entry)
            return False
        fault.point("receive.commit.after")
        return True


def _rank(job: "Dict[str, Any]") -> int:
    """Where a job's script is published, by its message or its record."""
    return spools.AFTER if job.get("after") else spools.rank_of(int(job.get("priority", 0)))
