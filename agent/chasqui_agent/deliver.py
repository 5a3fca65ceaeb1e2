"""Bringing news and results out: journal records since a cursor, an ended job's list of results, the files themselves.

The user's jobs own their work folders and can put anything there, also a symlink to a secret under the name of a
result: every file is opened component by component without following symlinks, and only regular files are listed.
"""

import hashlib
import json
import os

from . import beneath, directives, files, globs, journal, offers, wire

MYPY = False
if MYPY:
    from typing import Any, Dict, Iterator, List, Optional, Tuple

    from .spool import Spool

    Key = Tuple[str, int]

MAX_FILE = 100 * 10 ** 6  # default size of a result that comes home unasked, bytes
MAX_LISTED = 40000  # files in one listing: its message stays below wire.MAX_MESSAGE
_PIECE = 1 << 20  # journal text in one log message
_ENDINGS = ("ended", "repaired", "lost", "cancelled", "rejected")


def log_pieces(log: str, cursor: int) -> "Iterator[Tuple[int, int, bytes, List[Key]]]":
    """(from, to, records as JSON lines, attempts that ended in them) in pieces of about 1 MB."""
    start, lines, size, ended = cursor, [], 0, []  # type: int, List[bytes], int, List[Key]
    offset = cursor
    for offset, record in journal.records(log, cursor):
        line = json.dumps(record, separators=(",", ":")).encode("ascii")
        lines.append(line)
        size += len(line) + 1
        if record.get("ev") in _ENDINGS and isinstance(record.get("job"), str):
            ended.append((record["job"], record.get("attempt", 1)))
        if size >= _PIECE:
            yield start, offset, b"\n".join(lines), ended
            start, lines, size, ended = offset, [], 0, []
    if offset > start:
        yield start, offset, b"\n".join(lines), ended


class Listing:
    """The result files of one attempt as the client is told about them, and where each really stands."""

    def __init__(self, key: "Key", folder: str) -> None:
        self.key, self.folder = key, folder
        self.files: "List[Dict[str, Any]]" = []
        self.sources: "List[bytes]" = []
        self.left_out: "List[Dict[str, Any]]" = []
        self.gone = ""
        self.fetched = False

    def add(self, path: str, source: bytes, status: "os.stat_result", sha: str, kind: str) -> None:
        """One file more."""
        self.files.append({
            "path": path, "size": status.st_size, "mode": status.st_mode & 0o777, "mtime": int(status.st_mtime),
            "sha256": sha, "kind": kind,
        })
        self.sources.append(source)

    def leave_out(self, path: str, size: int, why: str) -> None:
        """One file that stays; the first thousand are named."""
        if len(self.left_out) < 1000:
            self.left_out.append({"path": path, "size": size, "why": why})

    def message(self) -> bytes:
        """The frame that tells the client."""
        extra = {"gone": self.gone} if self.gone else {"fetched": True} if self.fetched else {}
        job, attempt = self.key
        return wire.message("results", job=job, attempt=attempt, files=self.files, left_out=self.left_out, **extra)


def listing(spool: "Spool", key: "Key", ledger: str, fetch: "Optional[List[str]]" = None) -> "Optional[Listing]":
    """What an ended attempt has to deliver; None where it has not ended, or belongs to another ledger.

    fetch: patterns of files that are asked for by name, whatever their size and the job's own patterns say.
    """
    job, attempt = key
    if not spool.settled_state(job, attempt):
        return None
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
        if fetch:
            found.fetched = True
            _add_outputs(found, folder, {"outputs": fetch, "max_file": 1 << 62})
        else:
            _add_logs(found, folder, record)
            _add_outputs(found, folder, record)
    finally:
        os.close(folder)
    return found


def _add_outputs(found: Listing, folder: int, record: "Dict[str, Any]") -> None:
    outputs = globs.compile_globs(record.get("outputs") or [])
    exclude = globs.compile_globs(record.get("exclude") or [])
    logs = set(found.sources)
    uploaded = {item["path"]: item for item in offers.manifest_of(found.folder)}
    limit, total = record.get("max_file", MAX_FILE), 0
    most = record.get("max_job") or 0
    for path, status in beneath.walk(folder):
        text = wire.path_text(path)
        if path.startswith(b".chasqui/") or path in logs or globs.matches(exclude, path):
            continue
        if outputs is not None and not globs.matches(outputs, path):
            continue
        if outputs is None and _untouched(uploaded.get(text), status):
            continue
        if len(found.files) >= MAX_LISTED:
            found.leave_out(text, status.st_size, "more than %d files" % MAX_LISTED)
        elif status.st_size > limit:
            found.leave_out(text, status.st_size, "larger than %d bytes" % limit)
        elif most and total + status.st_size > most:
            found.leave_out(text, status.st_size, "more than %d bytes of results" % most)
        elif _add_output(found, folder, path, text, uploaded.get(text), outputs is not None):
            total += status.st_size


def _add_output(found: Listing, folder: int, path: bytes, text: str, before: "Any", asked: bool) -> bool:
    try:
        fd = beneath.open_file(folder, path)
    except OSError as error:
        found.leave_out(text, 0, "can't be read: %s" % (error.strerror or error))
        return False
    with os.fdopen(fd, "rb") as stream:
        status = os.fstat(fd)
        sha = _hash(stream)
    if before and before["sha256"] == sha and not asked:
        return False
    found.add(text, path, status, sha, "output")
    return True


def _untouched(before: "Any", status: "os.stat_result") -> bool:
    return bool(before) and before["size"] == status.st_size and before["mtime_ns"] == status.st_mtime_ns


def _hash(stream: "Any") -> str:
    digest = hashlib.sha256()
    for chunk in iter(lambda: stream.read(wire.CHUNK), b""):
        digest.update(chunk)
    return digest.hexdigest()


def _add_logs(found: Listing, folder: int, record: "Dict[str, Any]") -> None:
    """The scheduler's output files; those in .chasqui/ under the names a PBS user expects, NAME.o123 and NAME.e123."""
    try:
        final = files.read_json(os.path.join(found.folder, ".chasqui", "final.json"), {})
    except ValueError:
        return
    limit = record.get("max_file", MAX_FILE)
    for letter, which in (("o", "stdout"), ("e", "stderr")):
        source = final.get(which) if isinstance(final, dict) else None
        if source:
            name = _log_name(record.get("name") or found.key[0], letter, final)
            for each in _elements(found) if directives.EACH in source else [""]:
                _add_log(found, folder, source.replace(directives.EACH, each), name + (each and "." + each), limit)


def _elements(found: Listing) -> "List[str]":
    """The indices of an array's elements, no more than can be listed."""
    asked = directives.asked_in(os.path.join(found.folder, ".chasqui", "script"))
    return [str(index) for index in directives.elements(asked)[: MAX_LISTED // 4]]


def _log_name(name: str, letter: str, final: "Dict[str, Any]") -> str:
    safe = "".join(c if c.isalnum() or c in "._+-" else "_" for c in name)[:100].lstrip(".-") or "job"
    pbs = str(final.get("pbs", ""))
    digits = pbs[: len(pbs) - len(pbs.lstrip("0123456789"))]
    return wire.path_text(os.fsencode("%s.%s%s" % (safe, letter, digits)))


def _add_log(found: Listing, folder: int, source: str, path: str, limit: int) -> None:
    place = os.fsencode(source)
    try:
        fd = beneath.open_file(folder, wire.confined(wire.path_text(place)))
    except (OSError, wire.WireError):
        return
    if not place.startswith(b".chasqui/"):
        path = wire.path_text(place)
    with os.fdopen(fd, "rb") as stream:
        status = os.fstat(fd)
        if status.st_size > limit:
            found.leave_out(path, status.st_size, "larger than %d bytes" % limit)
        else:
            found.add(path, place, status, _hash(stream), "log")


def send_file(send: "Any", found: Listing, index: int) -> None:
    """Send one file of a listing: file, its data, sha; or gone. `send` takes frames.

    Exactly the announced bytes go out: a file that has shrunk since is filled up with zeros, and its hash then tells.
    """
    job, attempt = found.key
    try:
        fd = _open(found, index)
    except OSError as error:
        why = error.strerror or str(error)
        send(wire.message("gone", job=job, attempt=attempt, index=index, why=why))
        return
    size = found.files[index]["size"]
    digest = hashlib.sha256()
    with os.fdopen(fd, "rb") as stream:
        send(wire.message("file", job=job, attempt=attempt, index=index, size=size))
        while size:
            chunk = stream.read(min(size, wire.CHUNK)) or bytes(min(size, wire.CHUNK))
            digest.update(chunk)
            size -= len(chunk)
            send(wire.frame(wire.DATA, chunk))
    send(wire.message("sha", sha256=digest.hexdigest()))


def _open(found: Listing, index: int) -> int:
    folder = beneath.open_folder(found.folder)
    try:
        return beneath.open_file(folder, found.sources[index])
    finally:
        os.close(folder)
