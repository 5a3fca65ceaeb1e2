"""Bringing news and results out: journal records since a cursor, an ended job's list of results, the files themselves.

The user's jobs own their work folders and can put anything there, also a symlink to a secret under the name of a
result: every file is opened component by component without following symlinks, and only regular files are listed.

A listing reads no file: what changed is known by size and time. A file is read once, when it is sent, and its hash is
of what was sent; that it is still what was listed is looked at before and after.

Small files go many at a time: three frames for each were most of what a thousand jobs of a few files cost.
"""

import hashlib
import json
import os

from . import beneath, directives, fault, globs, journal, offers, packing, spoiled, wire

MYPY = False
if MYPY:
    from typing import Any, Callable, ContextManager, Dict, Iterable, Iterator, List, Optional, Set, Tuple

    from .spool import Spool

    Key = Tuple[str, int]
    Row = Tuple[str, int, int, int, str]  # path, size, mode, mtime in ns, kind

fault.register({
    "deliver.chunk": "a piece of a result is on its way, the rest of it is not",
    "deliver.file": "a result is sent whole, its hash is not",
    "deliver.bundle": "small results are named with their hashes, none of their content is on its way",
})

MAX_FILE = 100 * 10 ** 6  # default size of a result that comes home unasked, bytes
MAX_LISTED = 40000  # files in one listing
_MAX_LIST = 12 << 20  # bytes of them in its message, which must stay below wire.MAX_MESSAGE
SMALL = 64 << 10  # bytes; larger files go one by one, and are continued after a cut
_MOST = 1000  # files in one bundle: most may be empty
_NO_LIMIT = 1 << 62
_PIECE = 1 << 20  # journal text in one log message
_ENCODER = json.JSONEncoder(separators=(",", ":"))  # json.dumps makes a new one each time
_ENDINGS = ("ended", "repaired", "lost", "cancelled", "rejected")


def log_pieces(log: str, cursor: int) -> "Iterator[Tuple[int, int, bytes, List[Key]]]":
    """(from, to, records as JSON lines, attempts that ended in them) in pieces of about 1 MB. An end that a retry
    follows comes in one piece with the word of that; where it is not written yet, neither comes."""
    start, lines, size, ended = cursor, [], 0, []  # type: int, List[bytes], int, List[Key]
    offset, before, is_open = cursor, cursor, False
    for following, record in journal.records(log, cursor):
        before, offset = offset, following
        line = _ENCODER.encode(record).encode("ascii")
        lines.append(line)
        size += len(line) + 1
        if record.get("ev") in _ENDINGS and isinstance(record.get("job"), str):
            ended.append((record["job"], record.get("attempt", 1)))
        is_open = record.get("ev") == "ended" and bool(record.get("next"))
        if size >= _PIECE and not is_open:
            yield start, offset, b"\n".join(lines), ended
            start, lines, size, ended = offset, [], 0, []
    if lines and is_open:
        offset = before
        del lines[-1:], ended[-1:]
    if offset > start:
        yield start, offset, b"\n".join(lines), ended


class Listing:
    """The result files of one attempt as the client is told about them, and where each really stands."""

    def __init__(self, key: "Key", folder: str) -> None:
        self.key, self.folder = key, folder
        self.files: "List[Row]" = []
        self.sources: "List[bytes]" = []
        self.left_out: "List[Dict[str, Any]]" = []
        self.missing: "List[str]" = []
        self.gone = ""
        self.fetched = False
        self._room = _MAX_LIST

    def add(self, path: str, source: bytes, status: "os.stat_result", kind: str) -> None:
        """One file more, where the message has room for it."""
        self._room -= len(json.dumps(path)) + 130
        if len(self.files) >= MAX_LISTED or self._room < 0:
            self.leave_out(path, status.st_size, "more files than can be listed")
            return
        self.files.append((path, status.st_size, status.st_mode & 0o777, _time(status), kind))
        self.sources.append(source)

    def leave_out(self, path: str, size: int, why: str) -> None:
        """One file that stays; the first thousand are named."""
        if len(self.left_out) < 1000:
            self.left_out.append({"path": path, "size": size, "why": why})

    def message(self) -> bytes:
        """The frame that tells the client."""
        job, attempt = self.key
        fields: "Dict[str, Any]" = {"left_out": self.left_out} if self.left_out else {}
        fields.update({"gone": self.gone} if self.gone else {"fetched": True} if self.fetched else {})
        if self.missing:
            fields["missing"] = self.missing
        rows = [dict(zip(("path", "size", "mode", "mtime_ns", "kind"), row)) for row in self.files]
        return wire.message("results", job=job, attempt=attempt, files=rows, **fields)


def _time(status: "os.stat_result") -> int:
    return min(max(0, status.st_mtime_ns), _NO_LIMIT)


def listing(spool: "Spool", key: "Key", ledger: str, fetch: "Optional[List[str]]" = None) -> "Optional[Listing]":
    """What an ended attempt has to deliver; None where it has not ended, was tried again by the relay, or belongs to
    another ledger.

    fetch: patterns of files that are asked for whatever the job's own patterns and limits say; none of them: all that
    is new or changed, or named by its own outputs.
    """
    job, attempt = key
    if not spool.settled_state(job, attempt) or spool.next_attempt(job, attempt):
        return None  # of a job that is tried again the last attempt's results are the job's
    record = spool.job_record(job, attempt)
    found = Listing(key, spool.work_dir(job, attempt))
    try:
        folder = beneath.open_folder(found.folder)
    except OSError as error:
        found.gone = "its work folder can't be opened: %s" % (error.strerror or error)
        return found
    try:
        if record and record.get("ledger") != ledger:
            return None
        found.fetched = fetch is not None
        _Choice(found, folder, record, fetch).run()
    finally:
        os.close(folder)
    return found


class _Choice:
    """Which files of a work folder are results, by the job's patterns and limits or by those of a fetch."""

    def __init__(self, found: Listing, folder: int, record: "Dict[str, Any]", fetch: "Optional[List[str]]") -> None:
        self.found, self.folder, self.record, self.fetch = found, folder, record, fetch
        expect = [] if fetch is not None else record.get("expect") or []  # type: List[str]
        self.expected = {pattern: globs.compile_globs([pattern]) for pattern in expect}
        named = record.get("outputs") or []
        outputs = named if fetch is None else fetch
        # A fetch of all brings again what the job's own patterns brought, though it may be an input as it was uploaded.
        self.named = globs.compile_globs(named + (record.get("expect") or []) if fetch is not None else [])
        # What is expected is wanted, also where the outputs don't say so.
        self.outputs = globs.compile_globs(outputs + expect if outputs else [])
        self.exclude = globs.compile_globs(record.get("exclude") or [] if fetch is None else [])
        self.most_file = record.get("max_file", MAX_FILE) if fetch is None else _NO_LIMIT
        self.most_job = (record.get("max_job") if fetch is None else 0) or _NO_LIMIT
        self.logs: "Set[bytes]" = set()
        self.chosen: "List[Tuple[int, str, bytes, os.stat_result, str]]" = []

    def run(self) -> None:
        """Fill the listing. Small files first, so that a limit on them all leaves out as few as it can."""
        self._logs()
        self._outputs()
        self.found.missing = list(self.expected)
        left = self.most_job
        for size, path, source, status, kind in sorted(self.chosen, key=lambda item: item[:2]):
            left -= size
            if left < 0:
                self.found.leave_out(path, size, "more than %d bytes of results" % self.most_job)
            else:
                self.found.add(path, source, status, kind)

    def _outputs(self) -> None:
        uploaded = {item["path"]: item for item in offers.manifest_of(self.found.folder)}
        for path, status in beneath.walk(self.folder, leave=".chasqui"):
            self._expected(path)
            text = wire.path_text(path)
            if path in self.logs or globs.matches(self.exclude, path):
                continue
            if self.outputs:
                chosen = globs.matches(self.outputs, path)
            else:
                chosen = globs.matches(self.named, path) or not self._untouched(uploaded.get(text), path, status)
            if chosen:
                self._consider(text, path, status, "output")

    def _expected(self, path: bytes) -> None:
        for pattern in [pattern for pattern, glob in self.expected.items() if globs.matches(glob, path)]:
            del self.expected[pattern]

    def _consider(self, path: str, source: bytes, status: "os.stat_result", kind: str) -> None:
        if status.st_size > self.most_file:
            self.found.leave_out(path, status.st_size, "larger than %d bytes" % self.most_file)
        elif status.st_uid == os.geteuid() != 0 and not status.st_mode & 0o400:
            self.found.leave_out(path, status.st_size, "can't be read: its mode is %03o" % (status.st_mode & 0o777))
        elif len(self.chosen) >= MAX_LISTED:
            self.found.leave_out(path, status.st_size, "more files than can be listed")
        else:
            self.chosen.append((status.st_size, path, source, status, kind))

    def _untouched(self, before: "Any", path: bytes, status: "os.stat_result") -> bool:
        """Whether an input is still what was uploaded; one of the same size and another time is read to see."""
        if not before or before["size"] != status.st_size:
            return False
        return before["mtime_ns"] == status.st_mtime_ns or _hash(self.folder, path) == before["sha256"]

    # -- the scheduler's output ------------------------------------------------------------------------------------

    def _logs(self) -> None:
        """The scheduler's output files; those in .chasqui/ under the names a PBS user expects, NAME.o123, NAME.e123."""
        try:
            final = spoiled.read_json(os.path.join(self.found.folder, ".chasqui"), "final.json")
        except ValueError:
            return
        for letter, which in (("o", "stdout"), ("e", "stderr")):
            source = final.get(which)
            if source:
                name = _log_name(self.record.get("name") or self.found.key[0], letter, final)
                for each in _elements(self.found) if directives.EACH in source else [""]:
                    self._log(source.replace(directives.EACH, each), name + (each and "." + each))

    def _log(self, source: str, path: str) -> None:
        place = os.fsencode(source)
        try:
            fd = beneath.open_file(self.folder, wire.confined(wire.path_text(place)))
        except (OSError, wire.WireError):
            return
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        if not place.startswith(b".chasqui/"):
            path = wire.path_text(place)
        self.logs.add(place)
        self._expected(wire.path_bytes(path))
        if not self.fetch or globs.matches(self.outputs, wire.path_bytes(path)):
            self._consider(path, place, status, "log")


def _hash(folder: int, path: bytes) -> str:
    """SHA-256 of a file, "" where it can't be read."""
    digest = hashlib.sha256()
    try:
        with os.fdopen(beneath.open_file(folder, path), "rb", 0) as stream:
            for chunk in iter(lambda: stream.read(wire.CHUNK), b""):
                digest.update(chunk)
    except OSError:
        return ""
    return digest.hexdigest()


def _elements(found: Listing) -> "List[str]":
    """The indices of an array's elements, no more than can be listed."""
    asked = directives.asked_in(os.path.join(found.folder, ".chasqui", "script"))
    return [str(index) for index in directives.elements(asked)[: MAX_LISTED // 4]]


def _log_name(name: str, letter: str, final: "Dict[str, Any]") -> str:
    safe = "".join(c if c.isalnum() or c in "._+-" else "_" for c in name)[:100].lstrip(".-") or "job"
    pbs = str(final.get("pbs", ""))
    digits = pbs[: len(pbs) - len(pbs.lstrip("0123456789"))]
    return wire.path_text(os.fsencode("%s.%s%s" % (safe, letter, digits)))


class Sender:
    """Sends the files of listings; `send` takes frames, `working` gives the context of a phase without any.

    The folder of the last file stays open: files are asked for job by job.
    """

    def __init__(self, send: "Callable[[bytes], None]", working: "Callable[[], ContextManager[None]]") -> None:
        self.send, self.working = send, working
        self._folder, self._fd = "", -1
        self._bundle = _Bundle()

    def files(self, wanted: "Iterable[Tuple[Listing, int, int]]") -> None:
        """Send (listing, index, bytes the client has) each: small ones in bundles, others by themselves."""
        for found, index, have in wanted:
            size = found.files[index][1]
            if size > SMALL:
                self._flush()
                self.file(found, index, have)
                continue
            if not self._bundle.takes(size):
                self._flush()
            self._gather(found, index, have)
        self._flush()

    def _gather(self, found: Listing, index: int, have: int) -> None:
        """Put a small file into the bundle; what is wrong with one is known before anything of it is sent."""
        try:
            fd = self._open(found, index)
            try:
                content, why = _whole(fd, found.files[index])
            finally:
                os.close(fd)
        except OSError as error:
            content, why = b"", error.strerror or str(error)
        if why:
            self._gone(found, index, why)
        else:
            self._bundle.add(found.key, index, content, have)

    def _flush(self) -> None:
        """Send the bundle, and begin another."""
        bundle, self._bundle = self._bundle, _Bundle()
        if bundle.count:
            self.send(wire.message("bundle", jobs=bundle.jobs()))
            fault.point("deliver.bundle")
            for content in bundle.contents():
                self.send(wire.frame(wire.DATA, content))

    def _gone(self, found: Listing, index: int, why: str) -> None:
        self.send(wire.message("gone", job=found.key[0], attempt=found.key[1], index=index, why=why))

    def file(self, found: Listing, index: int, have: int) -> None:
        """Send file, data from `have` on (or from 0), and the sha of the whole; or gone.

        Exactly the announced bytes go out. Where the file is no longer what was listed, sha says so in `why`: what is
        missing of it was filled up with zeros.
        """
        _, size, _, listed, _ = found.files[index]
        place = {"job": found.key[0], "attempt": found.key[1], "index": index}  # type: Dict[str, Any]
        try:
            fd = self._open(found, index)
        except OSError as error:
            self._gone(found, index, error.strerror or str(error))
            return
        try:
            before = os.fstat(fd)
            if (before.st_size, _time(before)) != (size, listed):
                self._gone(found, index, _OTHER)
                return
            start = have if have == size or (have < size and have % wire.CHUNK == 0) else 0
            self.send(wire.message("file", size=size, **dict(place, **{"from": start})))
            self._content(fd, start, before)
        finally:
            os.close(fd)

    def _content(self, fd: int, start: int, before: "os.stat_result") -> None:
        digest = hashlib.sha256()
        at, why = start, self._skip(fd, start, digest) if start else ""
        while at < before.st_size:
            at, chunk, wrong = _read(fd, at, before.st_size, digest)
            self.send(wire.frame(wire.DATA, chunk))
            fault.point("deliver.chunk")
            why = why or wrong
        fault.point("deliver.file")
        if _state(os.fstat(fd)) != _state(before):
            why = why or _CHANGED
        self.send(wire.message("sha", sha256=digest.hexdigest(), **({"why": why} if why else {})))

    def _skip(self, fd: int, end: int, digest: "Any") -> str:
        """Hash what the client has already; what was wrong with it."""
        at, why = 0, ""
        with self.working():
            while at < end and not why:
                at, _, why = _read(fd, at, end, digest)
        return why

    def _open(self, found: Listing, index: int) -> int:
        if self._folder != found.folder:
            self.close()
            self._fd, self._folder = beneath.open_folder(found.folder), found.folder
        return beneath.open_file(self._fd, found.sources[index])

    def close(self) -> None:
        """Close the folder."""
        if self._fd >= 0:
            os.close(self._fd)
        self._folder, self._fd = "", -1


class _Bundle:
    """Small files on their way together, at most a chunk. What looks as if it can't be packed stands behind the rest,
    in a frame of its own: packing is tried, and paid for, where it may help."""

    def __init__(self) -> None:
        self.count = self._size = 0
        self._named = [], []  # type: Tuple[List[Any], List[Any]]
        self._parts = [], []  # type: Tuple[List[bytes], List[bytes]]

    def takes(self, size: int) -> bool:
        """Whether there is room for a file of `size` bytes more."""
        return self.count < _MOST and self._size + size <= wire.CHUNK

    def add(self, key: "Key", index: int, content: bytes, have: int) -> None:
        """One file; of one that the client has, only the hash goes."""
        item = [index, 0, hashlib.sha256(content).hexdigest()]
        if content and have == len(content):
            item[1], content = have, b""
        dense = packing.looks_random(content)
        if not self._named[dense] or self._named[dense][-1][:2] != list(key):
            self._named[dense].append([key[0], key[1], []])
        self._named[dense][-1][2].append(item)
        self._parts[dense].append(content)
        self._size += len(content)
        self.count += 1

    def jobs(self) -> "List[Any]":
        """[job, attempt, [[index, from, sha256]]] in the order of the contents."""
        return self._named[0] + self._named[1]

    def contents(self) -> "List[bytes]":
        """The data of one or two frames, none for nothing."""
        return [content for content in map(b"".join, self._parts) if content]


_CHANGED = "it changed while it was read"
_OTHER = "it changed since it was listed"


def _whole(fd: int, row: "Row") -> "Tuple[bytes, str]":
    """(content of a small file, what is wrong with it or ""). Raises OSError."""
    before, size = os.fstat(fd), row[1]
    if (before.st_size, _time(before)) != (size, row[3]):
        return b"", _OTHER
    content = os.pread(fd, size, 0)
    if len(content) < size:  # file systems in trouble give less than there is
        content += os.pread(fd, size - len(content), len(content))
    right = len(content) == size and _state(os.fstat(fd)) == _state(before)
    return content, "" if right else _CHANGED


def _state(status: "os.stat_result") -> "Tuple[int, int, int]":
    # ctime too: a program that sets the time back after each write must not hide it.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(fd: int, at: int, end: int, digest: "Any") -> "Tuple[int, bytes, str]":
    """The next chunk: (where it ends, it itself, what was wrong with it); zeros stand in for what can't be read."""
    count, chunk, why = min(end - at, wire.CHUNK), b"", ""
    try:
        chunk = os.pread(fd, count, at)
        if len(chunk) < count:  # file systems in trouble give less than there is
            chunk += os.pread(fd, count - len(chunk), at + len(chunk))
    except OSError as error:
        why = error.strerror or str(error)
    if len(chunk) < count:
        why = why or _CHANGED
        chunk += bytes(count - len(chunk))
    digest.update(chunk)
    return at + count, chunk, why
