"""Fresh hashes of results that a client has: what stands here now, read again from the disk for the purpose.

    question   {job, attempt, files [[path, kind]]}      kind: output, or log: the scheduler's output under its result's
                                                         name, NAME.o37 or NAME.e37.2, wherever it really stands
    answers    {file: index, size, sha256} or {file: index, why} for each file, then {job, attempt, files: how many}
               or {job, attempt, why} alone

A file that can't be read, or that changes while it is, has a why and no hash: no answer is ever a guess.
"""

import hashlib
import os
import re

from . import beneath, clearance, directives, files, lines, offers, wire

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, List, Tuple

    from .spool import Spool

    Key = Tuple[str, int]
    Tick = Callable[[], None]

_LOG = re.compile(r"\.([oe])\d*(?:\.(\d+))?\Z")


def run(spool: "Spool", nonce: str) -> int:
    """Serve one client; the exit status."""
    def begin(header: "Dict[str, Any]", pipe: "lines.Lines") -> "lines.Answer":
        probe = Probe(spool, str(header.get("ledger", "")), pipe)
        return probe.answer

    return lines.converse(nonce, begin)


def fresh(folder: int, path: bytes, tick: "Tick") -> "Tuple[os.stat_result, str]":
    """(status, SHA-256) of a regular file below the descriptor `folder`. Raises OSError, Unsteady."""
    fd = beneath.open_file(folder, path)
    digest = hashlib.sha256()
    with os.fdopen(fd, "rb") as stream:
        before = os.fstat(fd)
        for chunk in iter(lambda: stream.read(wire.CHUNK), b""):
            digest.update(chunk)
            tick()
        after = os.fstat(fd)
    if identity(before) != identity(after):
        raise Unsteady()
    return after, digest.hexdigest()


class Unsteady(Exception):
    """A file changed while it was read."""


def identity(status: "os.stat_result") -> "Tuple[int, ...]":
    """What differs as soon as a file is another one, or has been written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Probe:
    """What answers the questions."""

    def __init__(self, spool: "Spool", ledger: str, pipe: "lines.Lines") -> None:
        self.spool, self.ledger, self.pipe = spool, ledger, pipe

    def answer(self, question: "Dict[str, Any]") -> None:
        """Hash the files of one attempt. Raises WireError for a question that is none."""
        job, attempt = key = offers.key_of(question)
        asked = question.get("files")
        if not isinstance(asked, list) or not all(isinstance(item, list) and len(item) == 2 for item in asked):
            raise wire.WireError("a list of files that is none")
        try:
            # Made here, where the record is read, too: a job's own damage is its own failure, not the end of all.
            why = "" if self.spool.own_record(*key).get("ledger") == self.ledger else clearance.FOREIGN
            folder = beneath.open_folder(self.spool.work_dir(*key))
        except (OSError, ValueError) as error:
            self.pipe.say(job=job, attempt=attempt, why=getattr(error, "strerror", "") or "its record is damaged")
            return
        try:
            if not why:
                self._hash_all(folder, key, asked)
        finally:
            os.close(folder)
        self.pipe.say(job=job, attempt=attempt, **({"why": why} if why else {"files": len(asked)}))

    def _hash_all(self, folder: int, key: "Key", asked: "List[Any]") -> None:
        sources = _log_sources(self.spool.meta_dir(*key))
        for index, (text, kind) in enumerate(asked):
            path = wire.confined(text)
            if kind == "log":
                path = _log_place(path, sources)
            try:
                status, sha = fresh(folder, path, self.pipe.tick)
            except OSError as error:
                self.pipe.say(file=index, why=error.strerror or str(error))
            except Unsteady:
                self.pipe.say(file=index, why="it changes while it is read")
            else:
                self.pipe.say(file=index, size=status.st_size, sha256=sha)


def _log_sources(meta: str) -> "Dict[str, str]":
    try:
        final = files.read_json(os.path.join(meta, "final.json"), {})
    except (OSError, ValueError):
        final = {}
    found = {letter: final.get(name) if isinstance(final, dict) else "" for letter, name in (("o", "stdout"),
                                                                                            ("e", "stderr"))}
    return {letter: source for letter, source in found.items() if isinstance(source, str)}


def _log_place(path: bytes, sources: "Dict[str, str]") -> bytes:
    """Where the scheduler's output that the client knows as `path` stands in the work folder."""
    text = os.fsdecode(path)
    if text in [source.replace(directives.EACH, "") for source in sources.values()]:
        return path
    name = _LOG.search(text)
    source = sources.get(name.group(1), "") if name else ""
    if not name or not source.startswith(".chasqui/"):
        return path
    return os.fsencode(source.replace(directives.EACH, name.group(2) or ""))
