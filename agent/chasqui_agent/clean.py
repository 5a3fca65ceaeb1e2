"""Taking away from ended attempts' work folders what the client has proved to have: file by file, never a tree.

    header     {ledger, keep [glob], dry_run, budget}    budget: seconds after which no further attempt is begun
    question   {job, attempt, files [[path, size, sha256]] the client has, inputs [the same] it uploaded, left [path],
                superseded: a later attempt's results are at the client's, too}
    answer     {job, attempt, why, names [those behind it], files, bytes (went, or would), kept, kept_bytes, left,
               left_bytes}

Every file is hashed again before the first of its job goes, and looked at again before it goes itself: the same inode,
size and times. Folders are opened one below the other and no symlink is followed; only folders that are empty then
go, and .chasqui/ stays, with flags, logs and manifest. There is no lock: an attempt at rest belongs to no pump. There
is no record in the journal either: nothing it tells of has changed, and it is written by the lock's holder alone.
A kill at any point leaves fewer files, all of them proved; the next clean goes on.
"""

import errno
import json
import os
import time

from . import beneath, clearance, fault, globs, lines, offers, spoiled, verify, wire

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Tuple

    from .spool import Spool

    Key = Tuple[str, int]

fault.register({
    "clean.marked": "the folder says that it is being cleaned, nothing has gone",
    "clean.unlink.before": "a file looked at for the last time, not yet gone",
    "clean.unlink.after": "a file gone, others of its job still there",
    "clean.folders.before": "all files gone, their empty folders not yet",
    "clean.answer.before": "a job cleaned, the client not yet told",
})

BUDGET = 600.0
MARK = b".chasqui/cleaned"
NAMED = 5  # of the files behind a refusal


def run(spool: "Spool", nonce: str) -> int:
    """Serve one client; the exit status."""
    return lines.converse(nonce, lambda header, pipe: Cleaner(spool, header, pipe).answer)


class Cleaner:
    """What answers the questions."""

    def __init__(self, spool: "Spool", header: "Dict[str, Any]", pipe: "lines.Lines") -> None:
        """Raises WireError for a header that is none."""
        keep, budget = header.get("keep", []), header.get("budget", BUDGET)
        if not offers.are_patterns(keep) or isinstance(budget, bool) or not isinstance(budget, (int, float)):
            raise wire.WireError("a header whose keep or budget makes no sense")
        self.spool, self.pipe = spool, pipe
        self.ledger, self.dry_run = str(header.get("ledger", "")), header.get("dry_run") is not False
        self.keep = globs.compile_globs(keep)
        self.end = time.monotonic() + budget
        self.begun = False

    def answer(self, question: "Dict[str, Any]") -> None:
        """Clean one attempt's folder, or say why not. Raises WireError for a question that is none."""
        key = offers.key_of(question)
        asked = {"proved": _manifest(question.get("files")), "inputs": _manifest(question.get("inputs")),
                 "left": {wire.confined(text) for text in _listed(question.get("left"))}}
        if self.begun and time.monotonic() > self.end:
            result = _result("later")
        else:
            self.begun = True  # one at least: whatever the budget is, every run gets on
            try:
                result = self._clean(key, asked, question.get("superseded") is True)
            except (OSError, ValueError) as error:
                result = _result("unreadable", [getattr(error, "strerror", "") or "its record is damaged"])
        fault.point("clean.answer.before")
        self.pipe.say(job=key[0], attempt=key[1], **result)

    def _clean(self, key: "Key", asked: "Dict[str, Any]", superseded: bool) -> "Dict[str, Any]":
        try:
            folder = beneath.open_folder(self.spool.work_dir(*key))
        except OSError as error:
            return _result("symlink" if error.errno in (errno.ELOOP, errno.ENOTDIR) else "gone")
        try:
            record = self.spool.own_record(*key)
            why = clearance.refusal(self._standing(key, record, superseded))
            if why:
                return _result(why)
            manifest = clearance.Manifest(
                keep=self.keep, outputs=globs.compile_globs(record.get("outputs") or []),
                exclude=globs.compile_globs(record.get("exclude") or []), max_file=record.get("max_file", 1 << 62),
                **asked)
            return spoiled.let_in(
                self.spool.meta_dir(*key), lambda: Folder(folder, manifest, self.pipe).clean(self.ledger, self.dry_run))
        finally:
            os.close(folder)

    def _standing(self, key: "Key", record: "Dict[str, Any]", superseded: bool) -> clearance.Standing:
        # Numbers may be missing: an attempt that was taken back before it was sent has no folder.
        later = [(key[0], key[1] + more) for more in range(1, 10)]
        newer = [other for other in later if os.path.lexists(self.spool.work_dir(*other))]
        made = {self.spool.next_attempt(*key), self.spool.final_attempt(*key)} - {0, key[1]}
        newer += [(key[0], attempt) for attempt in made]  # by the relay: perhaps to be begun yet, with files from here
        if superseded:  # what may still run, or be sent from this attempt's files, is in the way all the same
            newer = [other for other in newer if clearance.unrest(*self._rest(other))]
        return clearance.Standing(*self._rest(key), mine=record.get("ledger") == self.ledger, newer=bool(newer))

    def _rest(self, key: "Key") -> "Tuple[str, str]":
        """(where an attempt has come to rest, its flag there)"""
        settled, flag = self.spool.settled_state(*key), ""
        if settled == "completed":
            with open(self.spool.entry_path(settled, *key, suffix="flag"), "rb") as stream:
                flag = stream.readline(100).strip().decode("ascii", "replace")
        return settled, flag


class Folder:
    """One work folder: what is in it, and what of it goes."""

    def __init__(self, folder: int, manifest: clearance.Manifest, pipe: "lines.Lines") -> None:
        self.folder, self.manifest, self.pipe = folder, manifest, pipe
        self.going: "List[Tuple[bytes, Tuple[int, ...]]]" = []
        self.words: "Dict[str, List[bytes]]" = {}
        self.sizes = dict.fromkeys((clearance.GOES, clearance.KEPT, clearance.LEFT), (0, 0))

    def clean(self, ledger: str, dry_run: bool) -> "Dict[str, Any]":
        """Look at everything first; then, where nothing stops it, take away what goes."""
        self._survey()
        why = clearance.verdict(self.words)
        if not why and not dry_run:
            self._mark(ledger)
            self._take_away()
            why = clearance.verdict(self.words)
        return self._result(why)

    def _result(self, why: str) -> "Dict[str, Any]":
        names = [wire.path_text(path) for path in self.words.get(why, [])[:NAMED]]
        return _result(why, names, *(self.sizes[word] for word in (clearance.GOES, clearance.KEPT, clearance.LEFT)))

    # -- looking ---------------------------------------------------------------------------------------------------

    def _survey(self) -> None:
        seen = set()
        for path, status in beneath.walk(self.folder):
            self.pipe.tick()
            if not path.startswith(b".chasqui/"):
                seen.add(path)
                self._look(path, status)
        for known in (self.manifest.proved, self.manifest.inputs):
            for path in known:
                if path not in seen and self._in_the_way(path):
                    self._stop("symlink", path)

    def _look(self, path: bytes, status: "os.stat_result") -> None:
        sha = ""
        try:
            if clearance.expected(path, status.st_size, self.manifest):
                status, sha = verify.fresh(self.folder, path, self.pipe.tick)
        except OSError:
            self._stop("unreadable", path)
            return
        except verify.Unsteady:
            self._stop("changed", path)
            return
        fate = clearance.fate(path, status.st_size, sha, self.manifest)
        if fate not in self.sizes:
            self._stop(fate, path)
            return
        if fate == clearance.GOES:
            self.going.append((path, verify.identity(status)))
        self._count(fate, 1, status.st_size)

    def _count(self, word: str, number: int, size: int) -> None:
        self.sizes[word] = self.sizes[word][0] + number, self.sizes[word][1] + size

    def _stop(self, word: str, path: bytes) -> None:
        self.words.setdefault(word, []).append(path)

    def _in_the_way(self, path: bytes) -> bool:
        """Whether something else than nothing stands where a file was proved that is not seen any more."""
        try:
            os.close(beneath.open_file(self.folder, path))
        except OSError as error:
            return error.errno != errno.ENOENT
        return False  # it has come back: the next clean looks at it

    # -- taking away -----------------------------------------------------------------------------------------------

    def _mark(self, ledger: str) -> None:
        """Say in the folder's own .chasqui/ that it is not whole any more. Raises OSError; then nothing goes."""
        fd = beneath.open_file(self.folder, MARK, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            wire.write_all(fd, json.dumps({"since": now, "ledger": ledger}).encode("ascii") + b"\n")
        finally:
            os.close(fd)
        fault.point("clean.marked")

    def _take_away(self) -> None:
        for path, identity in self.going:
            self.pipe.tick()
            try:
                self._unlink(path, identity)
            except FileNotFoundError:
                continue
            except OSError:
                self._spared("unreadable", path, identity)
        fault.point("clean.folders.before")
        folders = {path.rpartition(b"/")[0] for known in (self.manifest.proved, self.manifest.inputs) for path in known}
        above = {folder[:at] for folder in folders for at in range(len(folder)) if folder[at:at + 1] == b"/"}
        for folder in sorted((folders | above) - {b""}, key=lambda path: -path.count(b"/")):
            self._remove_empty(folder)

    def _unlink(self, path: bytes, identity: "Tuple[int, ...]") -> None:
        above, name = beneath.open_above(self.folder, path)
        try:
            if verify.identity(os.stat(name, dir_fd=above, follow_symlinks=False)) != identity:
                self._spared("changed", path, identity)
                return
            fault.point("clean.unlink.before")
            os.unlink(name, dir_fd=above)
            fault.point("clean.unlink.after")
        finally:
            os.close(above)

    def _spared(self, word: str, path: bytes, identity: "Tuple[int, ...]") -> None:
        """It was to go, and stays."""
        self._stop(word, path)
        self._count(clearance.GOES, -1, -identity[2])

    def _remove_empty(self, path: bytes) -> None:
        try:
            above, name = beneath.open_above(self.folder, path)
        except OSError:
            return
        try:
            os.rmdir(name, dir_fd=above)  # never one that holds anything, never a symlink
        except OSError:
            return
        finally:
            os.close(above)


def _result(why: str, names: "Any" = (), went: "Tuple[int, int]" = (0, 0), kept: "Tuple[int, int]" = (0, 0),
            left: "Tuple[int, int]" = (0, 0)) -> "Dict[str, Any]":
    return {"why": why, "names": list(names), "files": went[0], "bytes": went[1], "kept": kept[0],
            "kept_bytes": kept[1], "left": left[0], "left_bytes": left[1]}


def _listed(value: "Any") -> "List[Any]":
    if not isinstance(value, list) or len(value) > offers.MAX_FILES:
        raise wire.WireError("a list of files that is none, or too long")
    return value


def _manifest(value: "Any") -> "Dict[bytes, Tuple[int, str]]":
    found = {}
    for item in _listed(value):
        if not isinstance(item, list) or len(item) != 3 or not isinstance(item[1], int) or not offers.is_sha(item[2]):
            raise wire.WireError("a file without a proper size or hash")
        path = wire.confined(item[0])
        if path.split(b"/")[0] == b".chasqui":
            raise wire.WireError("the name .chasqui is the relay's own")
        found[path] = (item[1], item[2])
    return found
