"""How a job ended, in words: its exit code or signal, what the scheduler ended it for, what became of its results."""

import json
import re
import signal
from typing import Any

from chasqui_agent import elements, wire
from chasqui_agent.policy import NOT_AGAIN

from .. import states
from ..command import count, incomplete, place, size
from ..fields import replace
from ..rows import of_element
from .known import Known

# The agent's word for what the scheduler ended a job for.
ENDED_FOR = {
    "walltime": "It ran longer than the walltime it had asked for, and the scheduler ended it.",
    "memory": "It used more memory than it had asked for, and the scheduler ended it.",
    "cpu time": "It used more CPU time than it had asked for, and the scheduler ended it.",
    "ncpus": "It used more processors than it had asked for, and the scheduler ended it.",
    "node lost": "The node it ran on was lost.",
    "terminated": "It was told to end (TERM), by the scheduler or by hand, and did not say how it ended.",
}
_BY_CODE = {
    126: "Its script, or a program in it, could not be executed (exit 126): is it executable, and for this machine?",
    127: "A command in its script was not found (exit 127): a module that was not loaded?",
}
_BY_SIGNAL = {
    "SIGKILL": "; often the memory was used up",
    "SIGXCPU": "; the limit of CPU time was reached",
    "SIGXFSZ": "; a file became too large, or the quota is used up",
    "SIGSEGV": "; the program crashed",
    "SIGBUS": "; the program crashed",
}


def how(known: Known) -> list[tuple[str, str]]:
    """(cause, sentence) of a job that has ended, results after it."""
    why, _, kept = known.job.why.partition(NOT_AGAIN)
    cause, text = _END[known.job.state](replace(known, job=replace(known.job, why=why)))
    found = [(cause, text), *_elements(known), *_not_again(known, kept)]
    if known.starts:
        found.append(("requeued", "The scheduler had started it again %s." % _times(known.starts)))
    return found + _results(known)


def _not_again(known: Known, kept: str) -> list[tuple[str, str]]:
    """Why the relay did not try it once more, of a job with a retry policy. kept: its own words for that."""
    if known.job.state not in (states.FAILED, states.LOST) or not (kept or known.retries):
        return []
    text = kept.rstrip(".") or "its retry policy names no such end"
    return [("not-again", "The relay does not try it again: %s." % text)]


def _completed(known: Known) -> tuple[str, str]:
    return "completed", "It completed (exit 0)."


def _failed(known: Known) -> tuple[str, str]:
    job = known.job
    if job.why in ENDED_FOR:
        return job.why.replace(" ", "-"), ENDED_FOR[job.why]
    number = job.signal or _signal(job.exit)
    if number:
        name = _name(number)
        return "signal", "It was killed by signal %d (%s)%s." % (number, name, _BY_SIGNAL.get(name, ""))
    if job.exit in _BY_CODE:
        return "exit", _BY_CODE[job.exit]
    if job.why and job.why != "exit %s" % job.exit:
        return "failed", "It failed: %s." % job.why.rstrip(".")
    return "exit", "Its script ended with exit code %s." % job.exit


def _signal(code: int | None) -> int:
    """The signal behind an exit code: of a shell (128 + signal), or of the scheduler (256 + signal)."""
    if code is None or not (128 < code <= 192 or 256 < code <= 320):
        return 0
    return code % 128


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _lost(known: Known) -> tuple[str, str]:
    why = known.job.why.rstrip(".") or "the scheduler forgot it"
    before = "before it started" in why
    more = "" if before else " It may have run, even to its end."
    return "lost", "The relay lost it: %s.%s It is not started again without your word." % (why, more)


def _rejected(known: Known) -> tuple[str, str]:
    return "rejected", "It was refused for good, in the scheduler's words: %s." % (known.job.why.rstrip(".") or "none")


def _cancelled(known: Known) -> tuple[str, str]:
    why = known.job.why
    own = {"": "", "asked for": "", "cancelled": "", "cancel": "", "cancel here": " before it was handed over"}
    return "cancelled", "You cancelled it%s." % own[why] if why in own else "It was cancelled: %s." % why.rstrip(".")


def _blocked(known: Known) -> tuple[str, str]:
    text = "It will not run: %s." % (known.job.why.rstrip(".") or "what it waited for ended otherwise")
    before = known.blocker
    if before is None:
        return "unblocked", text + " Nothing stands in its way any more."
    if before.condition == "fail":
        return "blocked", text
    again = " A retry of %s (%s, %s) takes along what it alone had blocked."
    return "blocked", text + again % (before.name, before.id[:8], before.state.lower())


_END = {states.COMPLETED: _completed, states.FAILED: _failed, states.LOST: _lost, states.REJECTED: _rejected,
        states.CANCELLED: _cancelled, states.BLOCKED: _blocked}


_SHOWN = 200  # characters of a list of indices


def _elements(known: Known) -> list[tuple[str, str]]:
    """Of a job array: what became of its elements, and where the output of the first that failed is."""
    table = elements.checked(json.loads(known.job.elements or "null"))
    if table is None or len(table["states"]) == 1 and table.get("done"):
        return []
    parts = [which if row["state"] == "done" else "%s: %s" % (which, wire.printable(indices, _SHOWN))
             for row, (which, indices) in zip(table["states"], elements.lines(table), strict=True)]
    found = [("elements", "Its elements: %s." % "; ".join(parts))]
    first = _first(table)
    logs = of_element(known.logs, first) if first is not None else []
    if logs:
        told = ", ".join(wire.path_text(item.path) for item in logs)
        where = place(known.job.results_path)
        found.append(("elements-output", "The output of element %s is in %s: %s." % (first, where, told)))
    return found


def _first(told: dict[str, Any]) -> int | None:
    """The first element that failed, of those with the lowest exit code; or else that did not finish."""
    for row in told["states"]:
        digits = re.match("[0-9]+", row["indices"])
        if row["state"] in ("failed", "unfinished") and digits:
            return int(digits.group())
    return None


def first_failed(known: Known) -> str:
    """The option of `logs` that shows a job array's first failure; "" for any other job."""
    told = elements.checked(json.loads(known.job.elements or "null"))
    first = _first(told) if told else None
    return " --element %d" % first if first is not None and of_element(known.logs, first) else ""


def _results(known: Known) -> list[tuple[str, str]]:
    job, found = known.job, []
    if job.acked < job.attempt or job.state in (states.REJECTED, states.BLOCKED):
        return []
    if job.missing:
        said = incomplete(job.missing).removeprefix("results incomplete: ")
        text = "Its results are incomplete: it left %s, and every sync looks again." % said
        found.append(("results-incomplete", text))
    elif job.results_state in (states.NONE, states.PARTIAL):
        found.append(("results-not-here", "Its results are not all here yet."))
    if job.results_state == states.CLEANED:
        found.append(("cleaned", "What came home was deleted on %s." % job.remote))
    elif known.left:
        amount = "%s (%s)" % (count(len(known.left), "file"), size(sum(file.size for file in known.left)))
        found.append(("results-left", "%s of its results stayed there: %s." % (amount, known.left[0].why)))
    return found


def _times(number: int) -> str:
    return "once" if number == 1 else "%d times" % number
