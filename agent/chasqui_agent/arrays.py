"""What has become of a job array: the marks of its elements, summed up as one outcome."""

import os

from . import directives, elements, live, marks
from .spool import Entry

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Optional, Tuple

    Standing = live.Standing
    End = Tuple[int, Optional[int], int, bool]

MOST_NAMED = 10  # elements named in one line


def by_flags(standing: "Standing") -> "Optional[Dict[str, Any]]":
    """The outcome where every element's flag says for certain how it ended, else None."""
    if standing.flagged < standing.size or standing.marks.term:
        return None
    ends = _ends(standing)
    return None if any(code is None for _, code, _, _ in ends) else _sum(ends)


def late(meta: str, job: str, attempt: int, token: str, found: "marks.Marks") -> "Optional[Dict[str, Any]]":
    """As `by_flags`, of an array that was given up; None of any other job, too."""
    script = os.path.join(meta, "script")
    indices = directives.elements(directives.asked_in(script)) if found.elements else ()
    standing = live.Standing(Entry(script, job, attempt, token), meta, "", False, found, indices)
    return by_flags(standing) if indices else None


def by_scheduler(standing: "Standing", why: str, lost: bool = False) -> "Dict[str, Any]":
    """The outcome of an array that is gone from the scheduler. An element without a flag did not finish, nor did one
    that was told to end (TERM) and says 0. why: the scheduler's word, about the whole; lost: it has none."""
    outcome = _sum(_ends(standing))
    if lost and not outcome["elements"]["failed"] and not standing.marks.term:
        outcome["state"] = "LOST"
    outcome["why"] += " (%s)" % why if why else ""
    return outcome


def states(standing: "Standing", alive: bool = False) -> "Optional[Dict[str, Any]]":
    """What has become of each element so far, as elements.tally tells it; None where that can't be read, and nothing
    depends on it. alive: the scheduler still has the array."""
    try:
        return _tally(_ends(standing), alive)
    except OSError:
        return None


def _ends(standing: "Standing") -> "List[End]":
    """(index, exit code, when, whether it began, or nobody can say) of each element; the code is None where nobody
    knows, or where TERM makes it doubtful and it is 0."""
    found = []
    for index in standing.indices:
        element = standing.marks.elements.get(index, marks.Element(0, 0, False))
        own = "%s.%d" % (standing.entry.token, index)
        flag = marks.read_flag(marks.flag_path(standing.meta, own, element.flags)) if element.flags else None
        code = int(flag["exit"]) if flag and flag.get("exit", "").isdigit() else None
        when = int(flag["ended"]) if flag and flag.get("ended", "").isdigit() else 0
        found.append((index, (code or None) if element.term else code, when, standing.spoilt or max(element[:2]) > 0))
    return found


def _tally(ends: "List[End]", alive: bool = False) -> "Dict[str, Any]":
    kinds = elements.ALIVE if alive else elements.ENDED

    def state(code: "Optional[int]", began: bool) -> str:
        return "failed" if code else "done" if code is not None else kinds[1] if began else kinds[2]

    return elements.tally(((index, state(code, began), code) for index, code, _, began in ends), kinds)


def _sum(ends: "List[End]") -> "Dict[str, Any]":
    failed = [(index, code) for index, code, _, _ in ends if code]
    unfinished = [index for index, code, _, _ in ends if code is None]
    words = []
    if failed:
        words.append("%d of %d elements failed: %s" % (len(failed), len(ends), _named([index for index, _ in failed])))
    if unfinished:
        words.append("%d of %d did not finish: %s" % (len(unfinished), len(ends), _named(unfinished)))
    return {
        "state": "FAIL" if words else "DONE",
        "exit": failed[0][1] if failed else None if unfinished else 0,
        "why": "; ".join(words),
        "when": max(when for _, _, when, _ in ends),
        "elements": _tally(ends),
    }


def _named(indices: "List[int]") -> str:
    return ", ".join(str(index) for index in indices[:MOST_NAMED]) + (", ..." if len(indices) > MOST_NAMED else "")
