"""Taking jobs in: what of them is known, what is missing, staging, verification, the rename that makes them real.

    staging/<session>/content/<sha256>     verified content, once each
    staging/<session>/<job>.<attempt>/     a job's work folder being built

A job is complete in its staging folder, with every file and folder fsynced, before one rename makes it its work folder;
then its script is published into waiting/ by one rename a batch. Only then it is acknowledged. A crash between the two
renames leaves a work folder nobody runs: the next session that offers the same job finds it and only publishes.
Where work/ is on another file system (work_root), staging is work/.staging/ there: a rename can't cross.
"""

import hashlib
import json
import os
import shutil
import time

from . import beneath, channel, fault, files, wire
from .offers import MAX_SCRIPT, Refusal, check_job, is_sha, key_of, manifest_digest, manifest_of
from .spool import ON_THEIR_WAY, Publication

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, List, Optional, Tuple

    from .spool import Spool

    Key = Tuple[str, int]

fault.register({
    "receive.content.before": "content written and fsynced, not yet under its hash",
    "receive.content.after": "content under its hash",
    "receive.commit.before": "a job complete in staging, not yet renamed to its work folder",
    "receive.commit.after": "a job in its work folder, not yet published",
    "receive.publish.before": "a batch of jobs in work folders, none of it published",
    "receive.publish.after": "a batch published, not yet acknowledged",
})

BATCH_JOBS, BATCH_SECONDS = 100, 2.0
STALE = 86400.0  # seconds after which a session's staging folder is rubbish
_EMPTY = hashlib.sha256().hexdigest()


class Receiver:
    """The jobs one session brings: offered, then committed, then published and acknowledged."""

    def __init__(self, spool: "Spool", ledger: str) -> None:
        self.spool, self.ledger = spool, ledger
        self.session = channel.session_name()
        self.base = _staging_base(spool)
        self.folder = os.path.join(self.base, self.session)
        self.content = os.path.join(self.folder, "content")
        self.acked: "List[Key]" = []
        self.refused: "List[Tuple[Key, str]]" = []
        self._offers: "Dict[Key, Dict[str, Any]]" = {}
        self._uses: "Dict[str, int]" = {}
        self._sizes: "Dict[str, int]" = {}
        self._pending: "List[Publication]" = []
        self._batches = 0
        self._flushed = time.monotonic()

    # -- turn 2: what is known, what is missing --------------------------------------------------------------------

    def consider(self, jobs: "List[Dict[str, Any]]") -> "List[bytes]":
        """The answers to the jobs offered: known, conflict and refuse messages, then what content is needed."""
        _remove_stale(self.base)
        os.makedirs(self.content, 0o700)
        index = _Index(self.spool)
        answers = []
        for job in jobs:
            answer = self._consider(job, index)
            if answer:
                answers.append(answer)
        self.flush()
        answers += [wire.message("known", job=job, attempt=attempt, state="waiting") for job, attempt in self.acked]
        del self.acked[:]
        needed = self._missing()
        answers += [wire.message("need", sha=needed[i:i + 1000]) for i in range(0, len(needed), 1000)]
        return answers

    def _consider(self, job: "Dict[str, Any]", index: "_Index") -> "Optional[bytes]":
        name, attempt = key = key_of(job)
        try:
            check_job(job)
        except Refusal as refusal:
            return wire.message("refuse", job=name, attempt=attempt, why=str(refusal))
        record = self.spool.job_record(name, attempt)
        state = index.state(name, attempt)
        if record.get("manifest") == manifest_digest(job["files"]):
            if state:
                return wire.message("known", job=name, attempt=attempt, state=state)
            self._publish_again(key, record)
            return None
        if state or os.path.lexists(self.spool.work_dir(name, attempt)):
            why = "the cluster has this attempt with other files"
            return wire.message("conflict", job=name, attempt=attempt, why=why)
        self._offers[key] = job
        for item in job["files"]:
            self._uses[item["sha256"]] = self._uses.get(item["sha256"], 0) + 1
            self._sizes[item["sha256"]] = item["size"]
        self._reuse(job)
        return None

    def _publish_again(self, key: "Key", record: "Dict[str, Any]") -> None:
        with open(os.path.join(self.spool.meta_dir(*key), "script"), "rb") as stream:
            script = stream.read(MAX_SCRIPT)
        self._pending.append(Publication(key[0], key[1], int(record.get("priority", 0)), script))

    def _reuse(self, job: "Dict[str, Any]") -> None:
        """Take what is unchanged from an earlier attempt's work folder, by its hash: its job may have changed it."""
        previous = job.get("previous", 0)
        if not previous:
            return
        folder = self.spool.work_dir(job["job"], previous)
        places = {item["sha256"]: item["path"] for item in manifest_of(folder)}
        for item in job["files"]:
            sha = item["sha256"]
            if sha in places and not self._has(sha):
                try:
                    self._copy_previous(folder, wire.confined(places[sha]), sha, item["size"])
                except (OSError, wire.WireError):
                    continue  # then the client sends it

    def _copy_previous(self, folder: str, path: bytes, sha: str, size: int) -> None:
        above = beneath.open_folder(folder)
        try:
            fd = beneath.open_file(above, path)
        finally:
            os.close(above)
        with os.fdopen(fd, "rb") as stream:
            if os.fstat(fd).st_size == size:
                self._store(sha, size, iter(lambda: stream.read(wire.CHUNK), b""))

    def _missing(self) -> "List[str]":
        missing = []
        for sha, size in sorted(self._sizes.items()):
            if size == 0 and sha == _EMPTY:
                self._store(sha, 0, iter(()))
            elif not self._has(sha):
                missing.append(sha)
        return missing

    # -- turn 3: content and commits -------------------------------------------------------------------------------

    def _path(self, sha: str) -> str:
        return os.path.join(self.content, sha)

    def _has(self, sha: str) -> bool:
        return os.path.exists(self._path(sha))

    def _store(self, sha: str, size: int, chunks: "Any") -> bool:
        """Write content and put it under its hash; False, and nothing there, where the hash is another one."""
        digest, length = hashlib.sha256(), 0
        partial = self._path(sha) + ".part"
        with open(partial, "wb") as stream:
            for chunk in chunks:
                digest.update(chunk)
                length += len(chunk)
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        if length != size or digest.hexdigest() != sha:
            os.unlink(partial)
            return False
        fault.point("receive.content.before")
        os.rename(partial, self._path(sha))
        fault.point("receive.content.after")
        return True

    def blob(self, fields: "Dict[str, Any]", read: "Callable[[], bytes]") -> None:
        """Take one blob; read() gives its next data frame. A wrong hash is found at the commit of who needs it."""
        sha, size = fields.get("sha"), fields.get("size")
        if not isinstance(sha, str) or not isinstance(size, int) or not is_sha(sha) or self._sizes.get(sha) != size:
            raise wire.WireError("content that was not asked for")
        chunks = _inflated(size, read) if fields.get("z") else _plain(size, read)
        self._store(sha, size, chunks)

    def skip(self, key: "Key") -> None:
        """The client can't send this job after all."""
        self._drop(key)

    def commit(self, key: "Key") -> None:
        """All content of a job has arrived: build its folder, make it real. Publishes batches, full or 2 s old."""
        job = self._offers.get(key)
        if job is None:
            raise wire.WireError("a commit of a job that was not offered")
        if not all(self._has(item["sha256"]) for item in job["files"]):
            self.refused.append((key, "content was missing or damaged"))
            self._drop(key)
            return
        self._pending.append(self._build(key, job))
        del self._offers[key]
        if len(self._pending) >= BATCH_JOBS or time.monotonic() - self._flushed > BATCH_SECONDS:
            self.flush()

    def _drop(self, key: "Key") -> None:
        job = self._offers.pop(key, None)
        for item in job["files"] if job else ():
            self._release(item["sha256"])

    def _release(self, sha: str) -> bool:
        """One use less; True where it was the last."""
        self._uses[sha] -= 1
        if self._uses[sha] == 0:
            files.remove(self._path(sha))
        return self._uses[sha] <= 0

    def _build(self, key: "Key", job: "Dict[str, Any]") -> Publication:
        name, attempt = key
        folder = os.path.join(self.folder, "%s.%d" % key)
        os.mkdir(folder, 0o700)
        folders = {folder}
        manifest = [self._place(folder, item, folders) for item in job["files"]]
        script = self._write_meta(folder, job, manifest)
        for path in folders:
            files.fsync_folder(path)
        fault.point("receive.commit.before")
        os.rename(folder, self.spool.work_dir(name, attempt))
        fault.point("receive.commit.after")
        return Publication(name, attempt, job.get("priority", 0), script)

    def _place(self, folder: str, item: "Dict[str, Any]", folders: "set") -> "Dict[str, Any]":
        """Put one file into the folder being built: the content itself at its last use, a copy before."""
        path = os.path.join(os.fsencode(folder), wire.confined(item["path"]))
        parent = os.fsdecode(os.path.dirname(path))
        while parent not in folders:
            os.makedirs(parent, 0o700, exist_ok=True)
            folders.add(parent)
            parent = os.path.dirname(parent)
        content = os.fsencode(self._path(item["sha256"]))
        self._uses[item["sha256"]] -= 1
        if self._uses[item["sha256"]]:
            _copy_durably(content, path)
        else:
            os.rename(content, path)
        mode = 0o600 | (item["mode"] & 0o100)
        os.chmod(path, mode)
        kept = {"path": item["path"], "size": item["size"], "mode": mode, "sha256": item["sha256"]}
        kept["mtime_ns"] = os.lstat(path).st_mtime_ns
        return kept

    def _write_meta(self, folder: str, job: "Dict[str, Any]", manifest: "List[Dict[str, Any]]") -> bytes:
        meta = os.path.join(folder, ".chasqui")
        os.mkdir(meta, 0o700)
        with open(os.path.join(os.fsencode(folder), wire.confined(job["script"])), "rb") as stream:
            script = stream.read(MAX_SCRIPT)
        record = {key: job[key] for key in _RECORD if key in job}
        record.update(ledger=self.ledger, manifest=manifest_digest(job["files"]))
        files.write_file(os.path.join(meta, "script"), script, 0o700)
        files.write_file(os.path.join(meta, "manifest.json"), json.dumps({"files": manifest}).encode("ascii"))
        files.write_file(os.path.join(meta, "job.json"), json.dumps(record, sort_keys=True).encode("ascii"))
        files.fsync_folder(meta)
        return script

    def flush(self) -> None:
        """Publish what is committed; afterwards it is acknowledged, and stays whatever becomes of the session."""
        self._flushed = time.monotonic()
        if not self._pending:
            return
        files.fsync_folder(self.spool.work)
        self._batches += 1
        fault.point("receive.publish.before")
        self.spool.publish(self._pending, "%s-%04d" % (self.session, self._batches))
        fault.point("receive.publish.after")
        self.acked += [(item.job, item.attempt) for item in self._pending]
        self._pending = []

    def close(self) -> None:
        """Remove the session's staging folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


_RECORD = ("job", "attempt", "name", "priority", "script", "outputs", "exclude", "expect", "max_file", "max_job",
           "rerun")


class _Index:
    """States of many attempts by one look at each folder: asking the spool for each would read them all every time."""

    def __init__(self, spool: "Spool") -> None:
        self.spool = spool
        self.found: "Dict[Key, str]" = dict.fromkeys(spool.find_waiting(), "waiting")
        for state in ("held",) + ON_THEIR_WAY:
            self.found.update({(entry.job, entry.attempt): state for entry in spool.entries(state)})

    def state(self, job: str, attempt: int) -> str:
        """"" only where the spool, looked at again now, does not have the attempt."""
        settled = self.spool.settled_state(job, attempt)
        if settled or (job, attempt) in self.found:
            return settled or self.found[job, attempt]
        # An attempt in flight can have moved past our look; without a work folder there can be none.
        return self.spool.known(job, attempt) if os.path.lexists(self.spool.work_dir(job, attempt)) else ""


def _staging_base(spool: "Spool") -> str:
    if os.stat(spool.staging).st_dev == os.stat(spool.work).st_dev:
        return spool.staging
    base = os.path.join(spool.work, ".staging")
    os.makedirs(base, 0o700, exist_ok=True)
    return base


def _remove_stale(base: str) -> None:
    for name in files.names(base):
        path = os.path.join(base, name)
        try:
            old = time.time() - os.lstat(path).st_mtime > STALE
        except OSError:
            continue
        if old:
            shutil.rmtree(path, ignore_errors=True)


def _copy_durably(source: bytes, target: bytes) -> None:
    with open(source, "rb") as reading, open(target, "wb") as writing:
        shutil.copyfileobj(reading, writing, wire.CHUNK)
        writing.flush()
        os.fsync(writing.fileno())


def _plain(size: int, read: "Callable[[], bytes]") -> "Any":
    while size > 0:
        chunk = read()
        size -= len(chunk)
        if size < 0 or not chunk:
            raise wire.WireError("more data than was announced")
        yield chunk


def _inflated(size: int, read: "Callable[[], bytes]") -> "Any":
    """The content of one zlib stream of `size` bytes; never more than a chunk in memory, whatever was compressed."""
    import zlib
    stream, chunk = zlib.decompressobj(), b""
    while not stream.eof:
        # A full chunk came out: more of it may be waiting inside the stream although all input is taken.
        data = stream.unconsumed_tail or (b"" if len(chunk) == wire.CHUNK else read())
        try:
            chunk = stream.decompress(data, wire.CHUNK)
        except zlib.error:
            raise wire.WireError("compressed data that can't be expanded") from None
        size -= len(chunk)
        if size < 0:
            raise wire.WireError("more data than was announced")
        if chunk:
            yield chunk
