"""Taking jobs in: what of them is known, what is missing, staging, verification, the rename that makes them real.

    staging/<session>/<job>.<attempt>/     a job's work folder being built; what it alone uses is written right there
    staging/<session>/content/<sha256>     verified content for several places, or of the cache (objects.py)
    staging/<session>/partial/<sha256>     the beginning of a large content
    staging/<session>/taken/               what an earlier session was building (leftovers.py)
    staging/<session>/shards/<prio>/       the scripts of a batch, as they will stand in waiting/

A batch of jobs, complete in staging, is made durable by one pass (durable.py); then a rename each makes them work
folders, and one rename publishes their scripts into waiting/. Only then they are acknowledged. Before that pass a power
cut may take anything of them. A session that is cut leaves its folder for the next one of its ledger. A crash between
the two renames leaves a work folder nobody runs: the next session that offers the job publishes the script it finds in
the dead one's shard. Whoever has moved that script, or that job's folder in staging, is the one to go on with it.

Where work/ is on another file system (work_root), staging is work/.staging/ there: a rename can't cross. Shards stay.
"""

import errno
import functools
import hashlib
import json
import os
import shutil
import sys
import time
from collections import namedtuple

from . import beneath, channel, copies, dependents, durable, fault, files, leftovers, offers, space, wire
from . import spool as spools
from .leftovers import CONTENT, PARTIAL, SHARDS, Leftovers
from .objects import Objects
from .offers import MAX_SCRIPT, Refusal, check_job, key_of, manifest_digest, manifest_of
from .spool import ON_THEIR_WAY

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

    from .spool import Spool

    Key = Tuple[str, int]

fault.register({
    "receive.content.before": "content verified, not yet where it belongs",
    "receive.content.after": "content where it belongs, not durable",
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
# (bytes, files) that may come unasked, and the room that is to be there for them: small files take whole blocks
UNASKED, ROOM_UNASKED = (256 << 20, 20000), (1 << 30, 60000)
NEED = 1000  # contents named in one message
_EMPTY = hashlib.sha256().hexdigest()
_Place = namedtuple("_Place", "key path mode")
_Built = namedtuple("_Built", "key folder entry rank")  # folder: "" where it is a work folder already


class Receiver:
    """The jobs one session brings, slice by slice: offered, then committed, then published and acknowledged."""

    def __init__(self, spool: "Spool", ledger: str, cache_size: int, working: "Callable[[], Any]") -> None:
        """working: what the channel's `working` is: a phase in which the client waits."""
        self.spool, self.ledger, self._working = spool, ledger, working
        self.session = channel.session_name()
        self.base = staging_base(spool)
        name = leftovers.owner_prefix(ledger) + self.session
        self.folder, self.shards = os.path.join(self.base, name), os.path.join(spool.staging, name, SHARDS)
        self._top = os.fsencode(self.folder)
        self.objects = Objects(objects_folder(spool), cache_size)
        bases = sorted({self.base, spool.staging})
        for base in bases:
            leftovers.remove_stale(base)
        self._room = space.Room(spool.work, spool.root, make_room=self.objects.make_room)
        self._make_folders()
        self.left = Leftovers(bases, leftovers.owner_prefix(ledger), self.folder)
        self.acked: "List[Key]" = []
        self._taken: "Set[Key]" = set()  # committed in this session
        self.refused: "List[Tuple[Key, str]]" = []
        self._pending: "List[_Built]" = []
        self._positions: "Dict[int, int]" = {}  # rank -> scripts in its shard
        self._batches = 0
        self._flushed, self._cost = time.monotonic(), 0.0  # when a batch was made real last, and the seconds it took
        self._contents: "Set[str]" = set()
        self._earlier: "Dict[bytes, Tuple[Key, str]]" = {}  # content that one job alone had in an earlier slice
        self._begin()

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
        self._room.shut(space.tightest(self.spool.work, self.spool.root))

    def _begin(self) -> None:
        """Nothing is offered."""
        self._offers: "Dict[Key, Dict[str, Any]]" = {}
        self._uses: "Dict[str, int]" = {}
        self._sizes: "Dict[str, int]" = {}
        self._place: "Dict[str, _Place]" = {}  # the first use of each content
        self._placed: "Set[str]" = set()  # contents that are there
        self._previous: "Dict[str, Tuple[str, str]]" = {}
        self._asked: "Set[str]" = set()
        self._unasked = False  # whether contents come that were not asked for
        self._settled: "Set[Key]" = set()  # of which nothing is taken then
        self._uncached: "Set[str]" = set()  # contents of one job alone that there is no room to keep a second time
        self._held: "Dict[str, int]" = {}
        self._made = {self._top}
        self._index = _Index(self.spool)
        self._scripts: "Dict[str, bytes]" = {}  # small contents that are jobs' scripts

    # -- turn 2: what is known, what is missing --------------------------------------------------------------------

    def consider(self, jobs: "List[Dict[str, Any]]") -> "List[bytes]":
        """The answers to a slice of jobs: known, conflict and refuse messages, then what content is needed."""
        answers = []
        for job in jobs:
            answer = self._consider(job)
            if answer:
                answers.append(wire.message(answer.pop("m"), job=job["job"], attempt=job["attempt"], **answer))
        return answers + self._needs()

    def consider_unasked(self, jobs: "List[Dict[str, Any]]") -> None:
        """Get ready for a slice whose contents and commits come at once. What is to be said of it is in `acked` and
        `refused`."""
        self._unasked = True
        for job in jobs:
            answer = self._consider(job)
            if not answer:
                continue
            self._settled.add(key_of(job))
            if answer["m"] == "known":
                self.acked.append(key_of(job))
            else:
                self.refused.append((key_of(job), answer["why"]))
        self._weigh()

    def room_unasked(self) -> "Tuple[int, int]":
        """(bytes, files) that may come unasked before the next slice that is asked for."""
        return UNASKED if self._room.would_have(*ROOM_UNASKED) else (0, 0)

    def _consider(self, job: "Dict[str, Any]") -> "Optional[Dict[str, str]]":
        """None, and the job was taken; or the answer: a message but for job and attempt."""
        name, attempt = key = key_of(job)
        if key in self._offers or key in self._settled:
            raise wire.WireError("a job that is offered twice")
        try:
            check_job(job)
        except Refusal as refusal:
            return {"m": "refuse", "why": str(refusal)}
        here = os.path.lexists(self.spool.work_dir(name, attempt))
        record = self.spool.job_record(name, attempt) if here else {}
        state = self._index.state(name, attempt, here)
        if record and record.get("manifest") == manifest_digest(job["files"]):
            state = state or self._publish_again(key, record)
            return {"m": "known", "state": state} if state else None
        if state or here:
            return {"m": "conflict", "why": "the cluster has this attempt with other files"}
        lacking = dependents.missing(self.spool, job.get("after", []), self._taken, self._offers)
        if lacking:
            return {"m": "refuse", "why": dependents.NOT_HERE + lacking}
        kept = self._kept_too(job["files"]) + (job["files"] if offers.keeps_inputs(job) else [])
        why = self._room.take(*space.need(job["files"] + kept))
        if why:
            return {"m": "refuse", "why": why}
        self._take_offer(key, job)
        return None

    def _kept_too(self, listed: "List[Dict[str, Any]]") -> "List[Dict[str, Any]]":
        """Contents of which this job has the second use: besides the copies they stand in content/ until the end."""
        uses: "Dict[str, int]" = {}
        found = []
        for item in listed:
            sha = item["sha256"]
            uses[sha] = uses.get(sha, self._uses.get(sha, 0)) + 1
            if uses[sha] == 2 and sha not in self._contents:
                found.append({"path": sha, "size": item["size"]})
        return found

    def _take_offer(self, key: "Key", job: "Dict[str, Any]") -> None:
        self._offers[key] = job
        for item in job["files"]:
            sha = item["sha256"]
            self._uses[sha] = self._uses.get(sha, 0) + 1
            self._sizes[sha] = item["size"]
            if sha not in self._place:
                self._place[sha] = _Place(key, item["path"], _mode(item))
            if item["path"] == job["script"] and item["size"] <= wire.PIECE:
                self._scripts[sha] = b""
        self.left.take_job("%s.%d" % key, job["files"])
        if job.get("previous", 0):
            folder = self.spool.work_dir(key[0], job["previous"])
            self._previous.update((item["sha256"], (folder, item["path"])) for item in manifest_of(folder))

    def _publish_again(self, key: "Key", record: "Dict[str, Any]") -> str:
        """A work folder that was made and, it seems, not published: its state if it was, else "", and it will be.

        In this order nobody can be overlooked who is about to publish it: his script goes from his shard to waiting/.
        """
        rank = _rank(record)
        entry = self._entry(key, rank)
        if not self.left.take_script("%s.%d.sh" % key, entry):
            state = self.spool.known(*key)
            if state:
                return state
            path = os.path.join(os.fsencode(self.spool.work_dir(*key)), wire.confined(record.get("script")))
            files.write_file(entry, _script(path), durable=False)
        self._pending.append(_Built(key, "", entry, rank))
        self._offers[key] = {"files": []}  # the client's commit finds it done
        return ""

    def _weigh(self) -> None:
        """Find out which contents of one job alone there is room for in the cache, too."""
        for sha, size in self._sizes.items():
            if self._uses[sha] == 1 and self.objects.wants(size, 1) and not self._room.has(size, 1):
                self._uncached.add(sha)

    def _needs(self) -> "List[bytes]":
        self._weigh()
        needed = []
        for sha, size in self._sizes.items():
            if sha not in self._contents and not self._find(sha, size):
                needed.append(sha)
                self._hold(sha, size)
        self._asked = set(needed)
        answers = []
        for at in range(0, len(needed), NEED):
            some = needed[at:at + NEED]
            have = {sha: self._held[sha] for sha in some if sha in self._held}
            answers.append(wire.message("need", sha=some, have=have))
        return answers

    def _find(self, sha: str, size: int) -> bool:
        """Whether a content is here already; if so, it is put where it belongs, verified now."""
        if self.objects.take(sha, size, self._content(sha)):
            self._contents.add(sha)
            return True
        if sha == _EMPTY and size == 0:
            self._write(sha, b"")
            return True
        if sha in self.left.contents and self.left.take_content(sha, size, self._target(sha)):
            self._arrived(sha, 0)
            return True
        return self._copy(sha, size, self._places_of(sha))

    def _places_of(self, sha: str) -> "Iterator[Tuple[str, str]]":
        """(folder, path) of where jobs that may have begun have, or had, a content."""
        if sha in self._previous:
            yield self._previous[sha]
        if self._earlier and bytes.fromhex(sha) in self._earlier:
            key, path = self._earlier[bytes.fromhex(sha)]
            for folder in (self._job_folder(key), self.spool.work_dir(*key)):
                yield folder, path

    def _copy(self, sha: str, size: int, places: "Iterator[Tuple[str, str]]") -> bool:
        for folder, path in places:
            try:
                fd = _open_beneath(folder, wire.confined(path))
            except (OSError, wire.WireError):
                continue  # then the client sends it
            with os.fdopen(fd, "rb") as stream:
                if os.fstat(fd).st_size == size:
                    chunks = iter(functools.partial(stream.read, wire.CHUNK), b"")
                    if self._stream(sha, chunks, hashlib.sha256(), self._create(sha)):
                        return True
        return False

    def _hold(self, sha: str, size: int) -> None:
        held = self.left.take_partial(sha, size, self._partial(sha) + ".old") if sha in self.left.partials else 0
        if held:
            self._held[sha] = held

    # -- turn 3: content and commits -------------------------------------------------------------------------------

    def bundle(self, fields: "Dict[str, Any]", data: bytes) -> None:
        """Take small contents, one behind the other in `data`. Of a wrong hash: as `blob`."""
        shas, sizes, at = fields.get("sha"), fields.get("size"), 0
        if not isinstance(shas, list) or not isinstance(sizes, list) or len(shas) != len(sizes):
            raise wire.WireError("contents without their sizes")
        for sha, size in zip(shas, sizes):
            if not self._expects(sha, size):
                raise wire.WireError("content that was not asked for")
            self._asked.discard(sha)
            content = data[at:at + size]
            at += size
            if sha in self._sizes and not self._has(sha) and hashlib.sha256(content).hexdigest() == sha:
                self._write(sha, content)
        if at != len(data):
            raise wire.WireError("other data than was announced")

    def _expects(self, sha: "Any", size: "Any") -> bool:
        """Whether a small content may come now. Unasked, it may be that of a job which was refused meanwhile."""
        if not isinstance(sha, str) or not isinstance(size, int) or size != self._sizes.get(sha, size):
            return False
        return sha in self._asked or self._unasked and 0 <= size <= wire.PIECE

    def blob(self, fields: "Dict[str, Any]", read: "Callable[[], bytes]") -> None:
        """Take one content; read() gives its next data frame. A wrong hash is found at the commit of who needs it."""
        sha, size, start = fields.get("sha"), fields.get("size"), fields.get("from", 0)
        if not isinstance(sha, str) or sha not in self._asked or size != self._sizes[sha]:
            raise wire.WireError("content that was not asked for")
        if start not in (0, self._held.get(sha, 0)):
            raise wire.WireError("content from another place on than was asked for")
        self._asked.discard(sha)
        chunks = _exactly(self._sizes[sha] - start, read)
        if self._sizes[sha] <= wire.CHUNK:
            data = b"".join(chunks)
            if hashlib.sha256(data).hexdigest() == sha:
                self._write(sha, data)
            return
        digest, fd = hashlib.sha256(), self._create(sha)
        if start:
            with self._working():
                self._continue(sha, start, digest, fd)
        self._stream(sha, chunks, digest, fd)

    def _continue(self, sha: str, length: int, digest: "Any", fd: int) -> None:
        """Begin a content with what an earlier session had of it. A copy: its process may still write to that file."""
        old = self._partial(sha) + ".old"
        left = length
        with open(old, "rb", buffering=0) as stream:
            while left:
                chunk = stream.read(min(left, wire.CHUNK))
                if not chunk:
                    raise wire.WireError("the beginning of a content is gone")
                digest.update(chunk)
                wire.write_all(fd, chunk)
                left -= len(chunk)
        files.remove(old)

    def _create(self, sha: str) -> int:
        path = self._partial(sha)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def _stream(self, sha: str, chunks: "Iterator[bytes]", digest: "Any", fd: int) -> bool:
        """Write a content, chunk by chunk as it comes; False, and nothing left of it, where its hash is another one."""
        partial = self._partial(sha)
        try:
            for chunk in chunks:
                digest.update(chunk)
                wire.write_all(fd, chunk)
        finally:
            os.close(fd)
        if digest.hexdigest() != sha:
            os.unlink(partial)
            return False
        fault.point("receive.content.before")
        os.rename(partial, self._target(sha))
        self._arrived(sha, 0o600)
        return True

    def _write(self, sha: str, data: bytes) -> None:
        """Put a small content, verified, where it belongs."""
        fault.point("receive.content.before")
        mode = self._place[sha].mode
        files.write_file(self._target(sha), data, mode, durable=False)
        if sha in self._scripts:
            self._scripts[sha] = data
        self._arrived(sha, mode)

    def _arrived(self, sha: str, mode: int) -> None:
        """A content is where it belongs, in a file with this mode."""
        fault.point("receive.content.after")
        if not self._is_shared(sha):
            if mode != self._place[sha].mode:
                os.chmod(self._target(sha), self._place[sha].mode)
            self._placed.add(sha)
            return
        self._contents.add(sha)
        if self._is_cached(sha):
            self.objects.add(sha, self._content(sha))

    def _is_shared(self, sha: str) -> bool:
        """Whether a content stays in content/, and every job gets a copy."""
        return self._uses[sha] > 1 or self._is_cached(sha)

    def _is_cached(self, sha: str) -> bool:
        return self.objects.wants(self._sizes[sha], self._uses[sha]) and sha not in self._uncached

    def _content(self, sha: str) -> str:
        return os.path.join(self.folder, CONTENT, sha)

    def _partial(self, sha: str) -> str:
        return os.path.join(self.folder, PARTIAL, sha)

    def _target(self, sha: str) -> str:
        """Where a content belongs once it is whole."""
        place = self._place[sha]
        return self._content(sha) if self._is_shared(sha) else os.fsdecode(self._make_place(place.key, place.path))

    def _job_folder(self, key: "Key") -> str:
        return os.path.join(self.folder, "%s.%d" % key)

    def _make_place(self, key: "Key", path: str) -> bytes:
        """The path of a job's file, which was checked when it was offered, in staging; the folders above it made."""
        whole = b"%s/%s.%d/%s" % (self._top, key[0].encode("ascii"), key[1], wire.path_bytes(path))
        self._make(whole.rpartition(b"/")[0])
        return whole

    def _make(self, folder: bytes) -> None:
        # Each once: a folder that another session took away must not come back, half empty.
        if folder not in self._made:
            self._make(folder.rpartition(b"/")[0])
            os.mkdir(folder, 0o700)
            self._made.add(folder)

    def end_slice(self, more: bool) -> None:
        """Nothing more comes of this slice; if there are more of them, what they may share with it is remembered."""
        for sha in self._placed if more else ():
            place = self._place[sha]
            self._earlier[bytes.fromhex(sha)] = place.key, sys.intern(place.path)
        self._begin()

    def skip(self, key: "Key") -> None:
        """The client can't send this job after all."""
        self._offers.pop(key, None)

    def commit(self, key: "Key") -> None:
        """All content of a job has arrived: build its folder. Makes batches real and public, full or 5 s old."""
        job = self._offers.pop(key, None)
        if job is None and key in self._settled:
            return
        if job is None:
            raise wire.WireError("a commit of a job that was not offered")
        shas = {item["sha256"] for item in job["files"]}
        lacking = dependents.missing(self.spool, job.get("after", []), self._taken)
        if not all(self._has(sha) or self._unasked and self._find(sha, self._sizes[sha]) for sha in shas):
            self.refused.append((key, "content was missing or damaged"))
        elif lacking:
            self.refused.append((key, dependents.NOT_HERE + lacking))
        elif shas:
            self._pending.append(self._build(key, job))
            self._taken.add(key)
        if len(self._pending) >= BATCH_JOBS or time.monotonic() - self._flushed > BATCH_SECONDS:
            self.flush()

    def _has(self, sha: str) -> bool:
        return sha in self._contents or sha in self._placed

    def _build(self, key: "Key", job: "Dict[str, Any]") -> _Built:
        manifest = [self._put(key, item) for item in job["files"]]
        folder, rank = self._job_folder(key), _rank(job)
        script = self._script_of(job, folder)
        self._write_meta(os.path.join(folder, ".chasqui"), job, manifest)
        if offers.keeps_inputs(job):
            self._keep_inputs(folder, manifest)
        entry = self._entry(key, rank)
        files.write_file(entry, script, durable=False)
        fault.point("receive.built")
        return _Built(key, folder, entry, rank)

    def _script_of(self, job: "Dict[str, Any]", folder: str) -> bytes:
        sha = next(item["sha256"] for item in job["files"] if item["path"] == job["script"])
        return self._scripts.get(sha) or _script(os.path.join(os.fsencode(folder), wire.confined(job["script"])))

    def _put(self, key: "Key", item: "Dict[str, Any]") -> "Dict[str, Any]":
        """Copy one file to its place unless it was written there; its row in the manifest."""
        sha, mode = item["sha256"], _mode(item)
        path = self._make_place(key, item["path"])
        if sha in self._contents:
            copies.copy(os.fsencode(self._content(sha)), path, mode)
        return {"path": item["path"], "size": item["size"], "mode": mode, "sha256": sha,
                "mtime_ns": os.lstat(path).st_mtime_ns}

    def _write_meta(self, meta: str, job: "Dict[str, Any]", manifest: "List[Dict[str, Any]]") -> None:
        record = {key: job[key] for key in _RECORD if key in job}
        record.update(ledger=self.ledger, manifest=manifest_digest(job["files"]))
        self._make(os.fsencode(meta))
        for name, value in (("manifest.json", {"files": manifest}), ("job.json", record)):
            files.write_file(os.path.join(meta, name), json.dumps(value).encode("ascii"), durable=False)

    def _keep_inputs(self, folder: str, manifest: "List[Dict[str, Any]]") -> None:
        """Keep the inputs as they are now: the job may rewrite them, and be tried again (retries.py)."""
        top = os.path.join(os.fsencode(folder), b".chasqui", b"inputs")
        self._make(top)
        for sha, path in {item["sha256"]: item["path"] for item in manifest}.items():
            source = os.path.join(os.fsencode(folder), wire.path_bytes(path))
            copies.copy(source, os.path.join(top, sha.encode("ascii")), 0o600)

    def _entry(self, key: "Key", rank: int) -> str:
        """Where a job's script is put to be published with the batch."""
        position = self._positions.get(rank, 0)
        self._positions[rank] = position + 1
        folder = os.path.join(self.shards, "%03d" % rank)
        if not position:
            os.makedirs(folder, 0o700)
        return os.path.join(folder, spools.shard_name(position, *key))

    def idle(self) -> None:
        """Nothing has come that could be taken now."""
        if len(self._pending) >= IDLE_JOBS and self._cost < IDLE_PART * (time.monotonic() - self._flushed):
            self.flush()

    def flush(self) -> None:
        """Publish what is committed; afterwards it is acknowledged, and stays whatever becomes of the session."""
        self._flushed = time.monotonic()
        if not self._pending:
            return
        with self._working():
            pending, self._pending = self._pending, []
            durable.settle([self.folder, self.shards])
            real = [item.key for item in pending if self._make_real(item)]
            files.fsync_folder(self.spool.work)
            self._batches += 1
            fault.point("receive.publish.before")
            for rank in sorted(self._positions):
                folder = os.path.join(self.shards, "%03d" % rank)
                self.spool.publish(folder, rank, "%s-%04d" % (self.session, self._batches))
            self._positions = {}
            fault.point("receive.publish.after")
        self.acked += real
        self._cost = time.monotonic() - self._flushed

    def _make_real(self, item: _Built) -> bool:
        """Rename a job to its work folder; False where another session took it over."""
        if not item.folder:
            return True
        fault.point("receive.commit.before")
        try:
            os.rename(item.folder, self.spool.work_dir(*item.key))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY):
                raise
            files.remove(item.entry)
            self.refused.append((item.key, "another session of this ledger has taken it over; sync again"))
            return False
        fault.point("receive.commit.after")
        return True

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


_RECORD = ("job", "attempt", "name", "priority", "script", "outputs", "exclude", "expect", "max_file", "max_job",
           "rerun", "bundle", "retry", "after", "if")


class _Index:
    """States of many attempts by one look at each folder: asking the spool for each would read them all every time."""

    def __init__(self, spool: "Spool") -> None:
        self.spool = spool
        self._found: "Optional[Dict[Key, str]]" = None

    def state(self, job: str, attempt: int, here: bool) -> str:
        """"" only where the spool, looked at again now, does not have the attempt. here: its work folder is there."""
        settled = self.spool.settled_state(job, attempt)
        if settled or not here:
            return settled  # without a work folder there is none on its way
        if self.spool.find_dependent(job, attempt):
            return "after"
        if self._found is None:
            self._found = self._look()
        # An attempt in flight can have moved past our look.
        return self._found.get((job, attempt)) or self.spool.known(job, attempt)

    def _look(self) -> "Dict[Key, str]":
        found: "Dict[Key, str]" = dict.fromkeys(self.spool.find_waiting(), "waiting")
        for state in ("held",) + ON_THEIR_WAY:
            found.update({(entry.job, entry.attempt): state for entry in self.spool.entries(state)})
        return found


def staging_base(spool: "Spool") -> str:
    """The folder of sessions' staging, on the file system of the work folders."""
    if os.stat(spool.staging).st_dev == os.stat(spool.work).st_dev:
        return spool.staging
    base = os.path.join(spool.work, ".staging")
    os.makedirs(base, 0o700, exist_ok=True)
    return base


def objects_folder(spool: "Spool") -> str:
    """The folder of the content cache, which need not be there: where copies into work folders are cheap."""
    beside = staging_base(spool) == spool.staging
    return os.path.join(spool.root, "objects") if beside else os.path.join(spool.work, ".objects")


def _rank(job: "Dict[str, Any]") -> int:
    """Where a job's script is published, by its message or its record."""
    return spools.AFTER if job.get("after") else spools.rank_of(int(job.get("priority", 0)))


def _mode(item: "Dict[str, Any]") -> int:
    return 0o600 | (int(item["mode"]) & 0o100)


def _script(path: bytes) -> bytes:
    with open(path, "rb", buffering=0) as stream:
        return stream.read(MAX_SCRIPT)


def _open_beneath(folder: str, path: bytes) -> int:
    above = beneath.open_folder(folder)
    try:
        return beneath.open_file(above, path)
    finally:
        os.close(above)


def _exactly(size: int, read: "Callable[[], bytes]") -> "Iterator[bytes]":
    while size > 0:
        chunk = read()
        size -= len(chunk)
        if size < 0 or not chunk:
            raise wire.WireError("more data than was announced")
        yield chunk
