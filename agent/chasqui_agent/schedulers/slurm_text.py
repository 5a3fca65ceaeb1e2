"""Reads what squeue prints, and tells it in the relay's terms; never raises, whatever stands in it.

ROWS, with `squeue --array`: one line a job or array element, its fields divided by a byte that no name has (a name may
have anything else in it, so it comes last). ENDED, with `squeue --array --states=all`: columns, because the exit status
is told in no other way; it is that of wait(2), or EXIT:SIGNAL.
"""

import re
from collections import namedtuple

from .base import DELETED, Ended, Live

MYPY = False
if MYPY:
    from typing import Dict, List, Optional, Tuple

    from .base import Sought

BREAK = "\x1f"
ROWS = BREAK.join(("%A", "%F", "%K", "%t", "%r", "%o", "%j"))
COLUMNS = (
    ("JobID", 20),
    ("ArrayJobID", 20),
    ("ArrayTaskID", 40),
    ("StateCompact", 10),
    ("exit_code", 20),
    ("Reason", 60),
    ("Name", 300),
)
ENDED = ",".join("%s:%d" % column for column in COLUMNS)

# One job or element. id: ours, of an element its array's; task: an element's index, "" for a job; state: squeue's short
# form; exit: as it was printed, "" where it was not; command: the path of the script.
Row = namedtuple("Row", "id task state reason name exit command")

_OVER = ("BF", "CA", "CD", "DL", "F", "NF", "OOM", "PR", "RV", "TO")
_WAITS = ("PD", "RD", "RF", "RH", "RQ", "SE")
_RUNS = {"CG": "E", "SO": "E", "ST": "S", "S": "S"}  # of those that run, all others are R
# What became of those that Slurm ended itself.
_WHY = {
    "TO": "walltime",
    "DL": "deadline",
    "OOM": "memory",
    "NF": "node lost",
    "BF": "node lost",
    "PR": "preempted",
    "RV": "moved to another cluster",
}
_KILLED = 256 + 9
_NOT_BEGUN = 53  # the "signal" of a job whose batch script could not be begun: no output file, no folder
# Reasons that pass, or that we are the reason of.
_PASSING = ("", "None", "Priority", "Resources", "BeginTime", "JobHeldUser", "JobArrayTaskLimit", "Cleaning", "Prolog")


def rows(text: str) -> "List[Row]":
    """Of an answer in ROWS."""
    found = []
    for line in text.split("\n"):
        fields = line.split(BREAK, 6)
        if len(fields) == 7 and fields[0].isdigit():
            number, array, task, state, reason, command, name = fields
            found.append(_row(number, array, task, state, reason, name, "", command))
    return found


def ended_rows(text: str) -> "List[Row]":
    """Of an answer in ENDED."""
    found = []
    for line in text.split("\n"):
        fields, start = [], 0
        for _, width in COLUMNS:
            fields.append(line[start : start + width].strip())
            start += width
        if fields[0].isdigit():
            number, array, task, state, code, reason, name = fields
            found.append(_row(number, array, task, state, reason, name, code, ""))
    return found


def _row(number: str, array: str, task: str, state: str, reason: str, name: str, code: str, command: str) -> Row:
    element = task not in ("", "N/A") and array.isdigit()
    return Row(array + "[]" if element else number, task if element else "", state, reason, name, code, command)


def is_over(row: Row) -> bool:
    """Whether a job has ended for good."""
    return row.state in _OVER


def live(found: "List[Row]", token: str) -> Live:
    """The job that these rows, none of them over, are the elements of."""
    job_id, element = found[0].id, found[0].task
    waiting = [row for row in found if row.state in _WAITS]
    if len(waiting) < len(found):
        begun = next(row.state for row in found if row.state not in _WAITS)
        state = "B" if element else _RUNS.get(begun, "R")
    else:
        state = "H" if all(row.reason == "JobHeldUser" for row in waiting) else "Q"
    return Live(job_id, state, token, len(waiting), len(found) - len(waiting))


def ended(found: "List[Row]", token: str) -> Ended:
    """What became of the job that these rows, all of them over, are the elements of. One deleted element is not yet a
    deleted array."""
    job_id = found[0].id
    if all(row.state == "CA" for row in found):
        return Ended(job_id, 256 + 15, DELETED, token, False)
    ends = [_end(row) for row in found]
    code, why = next((end for end in ends if end[0]), ends[0])
    return Ended(job_id, code, why, token, found[0].state == "RV")


def _end(row: Row) -> "Tuple[Optional[int], str]":
    """(exit, why) as in Ended."""
    code = exit_status(row.exit)
    if row.state == "CA":
        return 256 + 15, DELETED + " in part"
    if row.state == "RV":
        return None, _WHY["RV"]
    if row.state in _WHY:
        return code or _KILLED, _WHY[row.state]
    if code == 256 + _NOT_BEGUN:
        return code, "Slurm could not begin it" + (" (%s)" % row.reason if row.reason not in _PASSING else "")
    return code, "killed (%d)" % code if code is not None and code >= 256 else ""


def exit_status(text: str) -> "Optional[int]":
    """The exit code, 256 + signal where one ended it; None where it is not told."""
    found = re.match(r"([0-9]{1,9})(?::([0-9]{1,4}))?$", text)
    if not found:
        return None
    first = int(found.group(1))
    code, signal = (first, int(found.group(2))) if found.group(2) else (first >> 8 & 0xFF, first & 0x7F)
    return 256 + signal if signal else code


def note(row: Row) -> str:
    """Why a live job does not start, in Slurm's words, "" where it may yet."""
    return row.reason if row.state in _WAITS and row.reason not in _PASSING else ""


def token_of(row: Row, sought: "Dict[str, Sought]") -> str:
    """Which of the submissions looked for, by token, a row is; "" for none of them. Its name ends with the token; she
    may have given it another, but the path of its runner ends so, too."""
    ends = [text.rpartition(".")[2] for text in (row.name, row.command)]
    return next((token for token in ends if token in sought), "")
