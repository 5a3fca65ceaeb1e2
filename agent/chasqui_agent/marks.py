"""What a runner leaves in .chasqui/ about one submission, and the closing of a token that never started.

claim.<token>        symlink -> the scheduler's id that runs it, or -> closed:<generation>: nobody may any more
run.<token>.<k>      the k-th start: a symlink -> the scheduler's id
term.<token>.<k>     that start was told to end (TERM): its exit status is not its fate
flag.<token>.<k>     it ended: key=value lines up to a line "whole"
                     Of a job array the claim is the array's id, and every element has its own four:
                     claim.<token>.<index> -> its id, run.<token>.<index>.<k>, and so on
<token>.id           JSON {"id", "held"}: ours, written by the pump
cancel.<token>       ours: a cancel was asked for while it ran; the content says why
over.<token>         it took longer than its walltime, and is told to end: of a member of a bundle, by that
"""

import os
import re
from collections import namedtuple

from . import fault, files, lock, spoiled

MYPY = False
if MYPY:
    from typing import Any, Dict, Optional, Set

fault.register(
    {
        "marks.close.before": "a token is to be closed, its claim not yet made by us",
        "marks.close.after": "the token is closed, nothing moved yet",
    }
)

# claim: text or ""; runs: highest k or 0; flag: dict or None, and None of an array; term: of the last start; elements:
# of an array, index -> Element of what has begun, {} of any other job; over: it took longer than its walltime
Marks = namedtuple("Marks", "claim runs flag term cancel elements over")
Marks.__new__.__defaults__ = (False,)  # type: ignore[attr-defined]
# runs: highest k; flags: the same, or 0 where that start has left no flag; term: whether it was told to end
Element = namedtuple("Element", "runs flags term")

_MARK = re.compile(r"(run|flag|term)\.([^.]+)(?:\.([0-9]+))?\.([0-9]+)$")


def read(meta: str, token: str) -> Marks:
    """The marks of one token; empty ones where the folder is gone, or something else stands there."""
    try:
        return spoiled.let_in(meta, lambda: _read(meta, token))
    except OSError as error:
        if not spoiled.gone(error):
            raise
        return Marks("", 0, None, False, False, {}, False)


def _read(meta: str, token: str) -> Marks:
    highest: "Dict[Optional[int], Dict[str, Set[int]]]" = {}
    cancel = over = False
    for name in files.names(meta):
        found = _MARK.match(name)
        if found and found.group(2) == token:
            kind, _, index, k = found.groups()
            starts = highest.setdefault(int(index) if index else None, {"run": {0}, "flag": set(), "term": set()})
            starts[kind].add(int(k))
        cancel = cancel or name == "cancel." + token
        over = over or name == "over." + token
    every = {index: _element(**starts) for index, starts in highest.items()}
    own = every.pop(None, Element(0, 0, False))
    claim = lock.read_link(os.path.join(meta, "claim." + token)) or ""
    flag = read_flag(flag_path(meta, token, own.flags)) if own.flags else None
    runs = max([own.runs] + [one.runs for one in every.values()])
    # A runner whose commands were killed with its payload may have had no time for the mark.
    told = bool(flag) and flag.get("term") == "1"  # type: ignore[union-attr]
    term = own.term or told or any(one.term for one in every.values())
    return Marks(claim, runs, flag, term, cancel, every, over)


def _element(run: "Set[int]", flag: "Set[int]", term: "Set[int]") -> Element:
    # What an earlier start left says nothing of the one that PBS began after it.
    last = max(run | flag)
    return Element(last, last if last in flag else 0, last in term)


def flag_path(meta: str, token: str, k: int) -> str:
    """Where the k-th flag stands of a token, or of an element as <token>.<index>."""
    return os.path.join(meta, "flag.%s.%d" % (token, k))


def read_flag(path: str) -> "Optional[Dict[str, str]]":
    """The lines of a flag, None where it is missing or not whole (an NFS client may show an empty file for a
    moment)."""
    try:
        with open(path, "rb") as stream:
            text = stream.read(8192).decode("utf-8", "replace")
    except OSError as error:
        if not spoiled.gone(error):
            raise
        return None
    body, whole, _ = text.partition("\nwhole\n")
    if not whole:
        return None
    return dict(line.partition("=")[::2] for line in body.split("\n"))


def started_at(meta: str, token: str, found: Marks) -> float:
    """When the last start was, of an array the first element's, in seconds since 1970 by the file server's clock; 0
    where unknown."""
    names = ["run.%s.%d.%d" % (token, index, one.runs) for index, one in found.elements.items() if one.runs]
    try:
        return min(os.lstat(os.path.join(meta, name)).st_mtime for name in names or ["run.%s.%d" % (token, found.runs)])
    except OSError:
        return 0.0


def ended_at(meta: str, token: str, k: int) -> float:
    """When the k-th start wrote its flag, by the same clock; 0 where unknown."""
    try:
        return os.lstat(os.path.join(meta, "flag.%s.%d" % (token, k))).st_mtime
    except OSError:
        return 0.0


def close(meta: str, token: str, generation: int) -> str:
    """Take the claim of a token so that nothing can start under it: "" if it is closed now, else the id that started,
    of an array the whole one's.

    A closed token stays closed; a job of the scheduler that comes up with it later refuses to run. Raises
    FileNotFoundError where the folder is gone.
    """
    fault.point("marks.close.before")
    return spoiled.let_in(meta, lambda: _close(meta, token, generation))


def _close(meta: str, token: str, generation: int) -> str:
    path = os.path.join(meta, "claim." + token)
    mine = "closed:%d" % generation
    found = ""
    while not found:  # empty: a runner that could not begin took its claim back this very moment
        lock.create_link(path, mine)
        files.fsync_folder(meta)
        found = lock.read_link(path) or ""
    fault.point("marks.close.after")
    if not is_closed(found):
        return found
    # The runner looks at its claim once more behind its run mark, and we for that mark behind our claim: one of the
    # two sees the other, also where a second start of the same id came between a claim and its taking back.
    runs = [name for name in files.names(meta) if name.startswith("run.%s." % token)]
    if runs:
        return array_of(lock.read_link(os.path.join(meta, runs[0])) or "")
    flag = _read(meta, token).flag  # its job may have taken the other marks away
    return array_of(flag.get("id", "")) if flag else ""


def array_of(job_id: str) -> str:
    """`37[].server` of the element `37[5].server`; any other id as it is."""
    return re.sub(r"\[[0-9]+\]", "[]", job_id)


def is_closed(claim: str) -> bool:
    """Whether a claim's content says that the token is closed."""
    return claim.startswith("closed:")


def write_id(meta: str, token: str, pbs_id: str, held: bool) -> None:
    """Record the scheduler's id of a token, durably; not where the folder is gone: the journal has it, too."""
    path = os.path.join(meta, token + ".id")
    try:
        spoiled.let_in(meta, lambda: files.write_json(path, {"id": pbs_id, "held": held}))
    except OSError as error:
        if not spoiled.gone(error):
            raise


def ask_to_cancel(meta: str, token: str) -> None:
    """Note that a job which has started is to be cancelled."""
    spoiled.let_in(meta, lambda: files.write_file(os.path.join(meta, "cancel." + token), b""))


def read_id(meta: str, token: str) -> "Dict[str, Any]":
    """{"id", "held"} of a token; {} where none is recorded, or no more."""
    try:
        found = spoiled.read_json(meta, token + ".id")
    except ValueError:
        return {}
    return found if isinstance(found.get("id"), str) else {}
