"""The journal: an append-only log in segments, written by the lock's holder alone, read by anybody at any time.

    log/<base, 16 decimal digits>.<generation>.seg

`base` is the global offset of the segment's first byte; a segment ends where the next one (by base, then generation)
begins, whatever bytes stand behind that: a holder that was declared dead can only spoil its own dead tail. A record is

    crc32 as 8 hex digits, SP, length as 8 hex digits, SP, payload, LF

with both numbers about the payload, compact JSON in ASCII without line breaks. A reader's cursor is one integer, a
global offset, and stays valid for ever. Bytes that are no record at the end of the last segment are a torn tail, the
normal trace of a crash: not yet written for a reader, sealed and stepped over by the next writer. Bytes that are no
record anywhere else are damage: they come out as a record {"ev": "damaged"}, and reading goes on behind them.
"""

import json
import os
import time
import zlib

from . import fault, files, wire

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

fault.register(
    {
        "journal.append.before": "record made, nothing of it written",
        "journal.append.torn": "half of a batch of records written",
        "journal.append.written": "records written, not yet fsynced",
        "journal.append.after": "records durable",
        "journal.segment.before": "a new segment is due, not yet created",
    }
)

SEGMENT_BYTES = 4 << 20
_HEADER = 18  # crc, space, length, space
_TAIL = 64 << 10


class JournalError(Exception):
    """The journal could not be written; what was appended last may be missing or torn, never wrong. errno: why."""

    errno = 0


def now() -> str:
    """The time as journal records give it: ISO 8601, UTC, milliseconds."""
    seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + ".%03dZ" % (seconds % 1 * 1000)


def encode(record: "Dict[str, Any]") -> bytes:
    """One record as its line."""
    payload = json.dumps(record, separators=(",", ":")).encode("ascii")
    return b"%08x %08x " % (zlib.crc32(payload) & 0xFFFFFFFF, len(payload)) + payload + b"\n"


def parse(line: bytes) -> "Optional[Dict[str, Any]]":
    """The record of a line with its LF, or None where it is not one."""
    payload = line[_HEADER:-1]
    # Compared as bytes: int(x, 16) would also accept damaged text such as "+1", "1_0" or upper case.
    if line[-1:] != b"\n" or line[:_HEADER] != b"%08x %08x " % (zlib.crc32(payload) & 0xFFFFFFFF, len(payload)):
        return None
    try:
        record = json.loads(payload.decode("ascii"))
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def segments(folder: str) -> "List[Tuple[int, int, str]]":
    """(base, generation, path) of every segment in order."""
    found = []
    for name in files.names(folder):
        base, _, rest = name.partition(".")
        generation, _, suffix = rest.partition(".")
        if suffix == "seg" and base.isdigit() and generation.isdigit():
            found.append((int(base), int(generation), os.path.join(folder, name)))
    return sorted(found)


def records(folder: str, offset: int = 0) -> "Iterator[Tuple[int, Dict[str, Any]]]":
    """(offset of the next record, record) from the global `offset` to the last whole record; damage as "damaged"
    records."""
    known = segments(folder)
    for position, (base, _, path) in enumerate(known):
        last = position + 1 == len(known)
        end = None if last else known[position + 1][0]
        if end is None or end > offset:
            for item in _segment_records(path, base, max(offset, base), end):
                offset = item[0]
                yield item


def latest(folder: str, wanted: "Callable[[Dict[str, Any]], bool]") -> "Optional[Dict[str, Any]]":
    """The last record that is wanted, None where there is none. Reads one segment after the other, the newest first."""
    end = None
    for base, _, path in reversed(segments(folder)):
        found = [record for _, record in _segment_records(path, base, base, end) if wanted(record)]
        if found:
            return found[-1]
        end = base
    return None


def _segment_records(path: str, base: int, offset: int, end: "Optional[int]") -> "Iterator[Tuple[int, Dict[str, Any]]]":
    bad_from = None  # where a run of bytes that are no record began
    with open(path, "rb") as stream:
        stream.seek(offset - base)
        while end is None or offset < end:
            line = stream.readline(SEGMENT_BYTES if end is None else end - offset)
            if not line:
                return
            record = parse(line)
            start, offset = offset, offset + len(line)
            if record is None:
                bad_from = start if bad_from is None else bad_from
                if offset == end:
                    yield offset, _damage(bad_from, offset)
                continue
            if bad_from is not None:
                yield start, _damage(bad_from, start)
                bad_from = None
            yield offset, record


def _damage(start: int, end: int) -> "Dict[str, Any]":
    return {"t": now(), "ev": "damaged", "offset": start, "bytes": end - start}


def end(folder: str) -> int:
    """The global offset behind the last whole record."""
    known = segments(folder)
    if not known:
        return 0
    base, _, path = known[-1]
    return base + _valid_length(path, base)


def _valid_length(path: str, base: int) -> int:
    """Bytes of the last segment up to its last whole record. Reads its tail only, unless that is damaged."""
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        stream.seek(max(0, size - _TAIL))
        tail = stream.read()
    newline = tail.rfind(b"\n", 0, len(tail) - 1) if tail else -1
    if tail.endswith(b"\n") and (newline >= 0 or size <= _TAIL) and parse(tail[newline + 1 :]) is not None:
        return size
    length = 0
    for offset, record in _segment_records(path, base, base, None):
        length = offset - base
    return length


class Writer:
    """Appends records; to be opened after the lock was taken and closed before it is released."""

    def __init__(self, folder: str, generation: int, took_over: bool = False) -> None:
        self.folder = folder
        self.generation = generation
        self._fd = -1
        self._later: "List[Dict[str, Any]]" = []
        self._open(took_over)

    def _open(self, seal: bool) -> None:
        known = segments(self.folder)
        base = 0
        if known:
            base, _, path = known[-1]
            size = os.stat(path).st_size
            valid = _valid_length(path, base)
            if not seal and valid == size and size < SEGMENT_BYTES:
                self._fd = os.open(path, os.O_WRONLY | os.O_APPEND)
                return
            base += valid
        fault.point("journal.segment.before")
        path = os.path.join(self.folder, "%016d.%d.seg" % (base, self.generation))
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        files.fsync_folder(self.folder)

    def later(self, record: "Dict[str, Any]") -> None:
        """Append a record with the next batch: for news that nothing waits for, and that would be found again."""
        self._later.append(dict([("t", now())] + list(record.items())))

    def append(self, *batch: "Dict[str, Any]") -> None:
        """Write records, each with the time "t" put in front, and fsync once. Raises JournalError; then nothing more
        goes in."""
        for record in batch:
            self.later(record)
        data = b"".join(encode(record) for record in self._later)
        if not data:
            return
        if self._fd < 0:
            raise JournalError("the journal is closed after an error")
        fault.point("journal.append.before")
        try:
            self._write(data)
            fault.point("journal.append.written")
            os.fsync(self._fd)
        except OSError as error:
            # What was written may be half a record; a record behind it would be lost with it. The next holder seals it.
            self.close()
            failure = JournalError("the journal cannot be written: %s" % error.strerror)
            failure.errno = error.errno or 0
            raise failure from None
        self._later = []
        fault.point("journal.append.after")

    def _write(self, data: bytes) -> None:
        # One write in production: what a reader sees in between is a whole batch. Two where a test wants it torn.
        half = len(data) // 2 if fault.armed() else 0
        wire.write_all(self._fd, data[:half])
        if half:
            fault.point("journal.append.torn")
        wire.write_all(self._fd, data[half:])

    def close(self) -> None:
        """Close the segment."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
