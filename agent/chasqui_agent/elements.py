"""The elements of a job array by their states: short enough for a journal record, checked where it comes from afar.

    {"failed": 2, "unfinished": 0, "unstarted": 1, "done": 7, "states": [
        {"state": "failed", "exit": 3, "count": 2, "indices": "4,9"}, ...]}

done: ended with 0; failed: with another code; unfinished: began, and left no word of its end; unstarted: left no mark
of a start. While the array lives, these two are running and waiting. Indices as `#PBS -J` has them, "0-3,7,10-90:10",
and "..." behind a list that is cut. What failed is told first, and gets the room.
"""

import re

MYPY = False
if MYPY:
    from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

    Row = Dict[str, Any]

ENDED = ("failed", "unfinished", "unstarted", "done")
ALIVE = ("failed", "running", "waiting", "done")
MOST = 3000  # characters of all indices together, unless there are many rows
LEAST = 80  # of those of one row, though others have used up the room
MOST_CODES = 20  # exit codes told apart; the rest is one row, of exit None
MOST_ELEMENTS = 10**6
CUT = "..."
_INDICES = re.compile(r"[0-9:,-]{0,%d}(\.\.\.)?\Z" % (MOST + LEAST))
_SAID = {"unfinished": "did not finish", "unstarted": "never started"}


def tally(found: "Iterable[Tuple[int, str, Optional[int]]]", kinds: "Sequence[str]") -> "Dict[str, Any]":
    """The table of (index, state, exit code) in ascending order; kinds: ENDED or ALIVE, which all get a number."""
    groups: "Dict[Tuple[int, int], List[int]]" = {}
    for index, state, code in found:
        groups.setdefault((kinds.index(state), code or 0), []).append(index)
    codes = sorted((key for key in groups if key[0] == 0), key=lambda key: -len(groups[key]))
    for key in codes[MOST_CODES:]:
        groups.setdefault((0, -1), []).extend(groups.pop(key))
    told: "Dict[str, Any]" = dict.fromkeys(kinds, 0)
    rows, left = [], MOST
    for rank, code in sorted(groups, key=lambda key: (key[0], key[1] < 0, key)):
        indices = sorted(groups[rank, code])
        text = ranges(indices, max(LEAST, left // 2))  # the next ones are told, too
        left -= len(text)
        told[kinds[rank]] += len(indices)
        exit_code = code if rank == 0 and code > 0 else 0 if kinds[rank] == "done" else None
        rows.append({"state": kinds[rank], "exit": exit_code, "count": len(indices), "indices": text})
    return dict(told, states=rows)


def ranges(indices: "Sequence[int]", most: int) -> str:
    """Ascending numbers in at most `most` characters."""
    text, at = "", 0
    while at < len(indices):
        end = _run(indices, at)
        step = indices[at + 1] - indices[at] if end > at else 1
        piece = "%d-%d" % (indices[at], indices[end]) if end > at else "%d" % indices[at]
        piece = ("," if text else "") + piece + (":%d" % step if step > 1 else "")
        if len(text) + len(piece) + len(CUT) + 1 > most:
            return text + ("," if text else "") + CUT
        text, at = text + piece, end + 1
    return text


def _run(indices: "Sequence[int]", at: int) -> int:
    """The place of the last of the numbers from `at` on that are one range: neighbours, or three and more in steps."""
    end = at + 1
    while end < len(indices) and indices[end] - indices[end - 1] == indices[at + 1] - indices[at]:
        end += 1
    neighbours = end - at == 2 and indices[at + 1] - indices[at] == 1
    return end - 1 if end - at > 2 or neighbours else at


def checked(value: "Any") -> "Optional[Dict[str, Any]]":
    """A table from a record or a message, rebuilt of what is as it must be; None where anything is not."""
    rows = value.get("states") if isinstance(value, dict) else None
    if not isinstance(rows, list) or len(rows) > MOST_CODES + len(ENDED):
        return None
    told = {kind: value[kind] for kind in ENDED + ALIVE if kind in value}
    if not told or not all(_count(number) for number in told.values()):
        return None
    kept = [_row(row) for row in rows]
    return dict(told, states=kept) if None not in kept else None


def _row(row: "Any") -> "Optional[Row]":
    if not isinstance(row, dict) or row.get("state") not in ENDED + ALIVE or not _count(row.get("count")):
        return None
    code, indices = row.get("exit"), row.get("indices")
    if not (code is None or _count(code)) or not isinstance(indices, str) or not _INDICES.match(indices):
        return None
    return {"state": row["state"], "exit": code, "count": row["count"], "indices": indices}


def _count(value: "Any") -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_ELEMENTS


def short(found: "Dict[str, Any]") -> str:
    """"12 done, 1 failed, 3 running, 84 waiting"; what there is none of is left out."""
    order = ("done", "ended", "failed", "unfinished", "unstarted", "running", "waiting")
    return ", ".join("%d %s" % (found[kind], _SAID.get(kind, kind)) for kind in order if found.get(kind))


def lines(found: "Dict[str, Any]") -> "List[Tuple[str, str]]":
    """(which, indices) of every row: ("2 failed, exit 3", "4,9")."""
    told = []
    for row in found["states"]:
        code = row["exit"]
        which = "" if row["state"] != "failed" else ", exit %d" % code if code is not None else ", other exit codes"
        told.append(("%d %s%s" % (row["count"], _SAID.get(row["state"], row["state"]), which), row["indices"]))
    return told
