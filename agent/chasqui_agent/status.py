"""What a root looks like now, for people and for the client: counts, the last pump, what stands still."""

import os
import time

from . import files, settings
from .spool import JOB, ON_THEIR_WAY

MYPY = False
if MYPY:
    from typing import Any, Dict, List

    from .spool import Spool


def gather(spool: "Spool") -> "Dict[str, Any]":
    """Counts of every state, when the relay last pumped, and since when it has stood still ("" if it has not)."""
    state = files.read_json(os.path.join(spool.root, "state.json"), {})
    chosen = settings.load(spool)
    counts = {name: len(spool.entries(name)) for name in ("held", "submitting", "submitted")}
    waiting = spool.count_waiting()
    pumped = state.get("pumped", 0)
    age = files.server_time(spool.wake) - pumped
    still = waiting and not counts["submitted"] and not counts["submitting"] and age > 2 * chosen.query_interval
    return dict(
        counts,
        waiting=waiting,
        root=spool.root,
        scheduler=chosen.scheduler,
        pumped=_stamp(pumped),
        stalled_since=_stamp(pumped) if still and pumped else "",
        caps={"max_running": chosen.max_running, "max_queued": chosen.max_queued, "max_total": chosen.max_total},
    )


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds else ""


def busy_jobs(spool: "Spool") -> "List[str]":
    """The jobs that wait or run: what keeps a root from being removed."""
    names = {entry.job for state in ("held",) + ON_THEIR_WAY for entry in spool.entries(state)}
    names.update(job for job, _ in spool.find_waiting())
    names.update(os.path.basename(path) for path in spool.dropped())
    return sorted(name for name in names if JOB.match(name) or name)


def text(status: "Dict[str, Any]") -> str:
    """The status as a person reads it."""
    lines = ["%s (%s)" % (status["root"], status["scheduler"])]
    lines.append(
        "waiting %(waiting)d, held %(held)d, in flight %(submitting)d, in the scheduler %(submitted)d" % status
    )
    caps = status["caps"]
    lines.append("caps: %(max_running)d running, %(max_queued)d queued" % caps)
    lines.append("last pump: %s" % (status["pumped"] or "never"))
    if status["stalled_since"]:
        lines.append("STALLED since %s: nothing is alive to wake the relay. Next: pump" % status["stalled_since"])
    return "\n".join(lines)
