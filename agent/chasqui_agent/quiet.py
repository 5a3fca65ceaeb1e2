"""Whether a pump could do anything, and the report of one that did nothing: all that most sessions need of the pump."""

from . import files

MYPY = False
if MYPY:
    from typing import Any, Dict

    from .spool import Spool


def idle(spool: "Spool") -> bool:
    """Whether there is nothing a pump could do: nothing waits, nothing is on its way, nobody asked for anything."""
    if spool.any_on_their_way() or spool.has_waiting():
        return False
    if spool.has_dependents():
        from . import dependents

        if dependents.unread(spool):
            return False  # what ended may be what something waits for
    return not any(name.startswith(("kick.", "ev.", "op.")) for name in files.names(spool.wake))


def empty_report(reason: str) -> "Dict[str, Any]":
    """A pump's report before it has done anything; `pump.pump` says what each key means."""
    counts = ("accepted", "submitted", "released", "ended", "rejected", "retried", "settling", "queries", "rounds")
    report: "Dict[str, Any]" = dict.fromkeys(counts, 0)
    report.update(reason=reason, operations={}, refused="", stalled_since="", note="", full="", busy=False)
    return report
