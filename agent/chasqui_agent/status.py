"""What a root looks like now, for people and for the client: counts, the last pump, what stands still."""

import os
import time

from . import bounds, files, heartbeat, live, outlook, schedulers, settings, space
from .schedulers.base import EVERYWHERE, Unreachable
from .spool import JOB, ON_THEIR_WAY
from .state import State

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Optional

    from .schedulers.base import Scheduler
    from .spool import Spool

MOST_STUCK = 5  # told by name
MOST_PUBLISHED = 5  # limits that the site publishes; `caps` tells all


def gather(spool: "Spool", ask: bool = False) -> "Dict[str, Any]":
    """Counts of every state, when the relay last pumped, since when it has stood still ("" if it has not), and the room
    that is left. ask: quotas as well, which may take some seconds."""
    state = files.read_json(os.path.join(spool.root, "state.json"), {})
    chosen = settings.load(spool)
    folders = ("held", "submitting", "submitted")
    # Not bundles: their jobs are told.
    counts = {name: sum(not live.is_bundle(one) for one in spool.entries(name)) for name in folders}
    waiting = spool.count_waiting()
    pumped = state.get("pumped", 0)
    age = files.server_time(spool.wake) - pumped
    still = waiting and not counts["submitting"] and age > 2 * chosen.query_interval and not _alive(spool, chosen)
    return dict(
        counts,
        after=sum(1 for _ in spool.dependents()),
        relay=outlook.gather(spool),
        waiting=waiting,
        root=spool.root,
        scheduler=chosen.scheduler,
        pumped=_stamp(pumped),
        stalled_since=_stamp(pumped) if still and pumped else "",
        caps={"max_running": chosen.max_running, "max_queued": chosen.max_queued, "max_total": chosen.max_total},
        notes=notes(spool, chosen),
        room=[space.words(limit) for limit in space.look([spool.work, spool.root], ask)],
    )


def _alive(spool: "Spool", chosen: "settings.Settings") -> bool:
    """Whether something of ours is there to wake the relay. Asks the scheduler: killed jobs tell nobody."""
    ours = [job.id for job in live.standings(spool) if not job.held] + [beat.id for beat in heartbeat.beats(spool)]
    if not ours:
        return False
    try:
        return bool(set(ours).intersection(schedulers.choose(spool, chosen).query([], known=ours).live))
    except (Unreachable, schedulers.Unknown):
        return True  # nobody knows


def for_session(spool: "Spool") -> "Dict[str, Any]":
    """What a sync is told besides the counts: the notes as one text, and how far job arrays are."""
    chosen = settings.load(spool)
    if not schedulers.choose(spool, chosen).asks_a_server:
        return {"notes": ""}
    standing = live.standings(spool)
    return {"notes": "; ".join(notes(spool, chosen, standing)), "elements": live.progress(standing)}


def notes(
    spool: "Spool", chosen: "settings.Settings", standing: "Optional[List[live.Standing]]" = None
) -> "List[str]":
    """What the site lets us do, and what stands still for its reasons: one line each. standing: where it was read."""
    scheduler = schedulers.choose(spool, chosen)
    if not scheduler.asks_a_server:
        return []
    state = State(spool)
    held_back = ["scripts wait: " + text for text in bounds.told(state.value.get("held_back", ()))]
    limits = _limits(state) + _published(state) + _own(chosen) + held_back
    return limits + [_beat(spool, chosen, scheduler, state)] + _stuck(spool, state, standing)


def _limits(state: State) -> "List[str]":
    found, now = [], time.time()
    for where, (_, when) in sorted(state.value.get("site_limits", {}).items()):
        place = "" if where == EVERYWHERE else " in queue %s" % where if where else " in the default queue"
        learnt = time.strftime("%H:%MZ", time.gmtime(when))
        number = bounds.limit(state.value["site_limits"], where, now)
        found.append("site limit%s %s (learnt %s)" % (place, number, learnt))
    return found


def _published(state: State) -> "List[str]":
    rows = state.value.get("published", {}).get("rows", [])
    found = ["the site publishes: " + bounds.published_words(row) for row in rows[:MOST_PUBLISHED]]
    more = len(rows) - len(found)
    return found + (["the site publishes %d more limits: caps" % more] if more else [])


def _own(chosen: "settings.Settings") -> "List[str]":
    own = bounds.Bounds({}, None, {table: getattr(chosen, table) for table in bounds.OWN}).owned()
    return ["cap: %s = %d" % (bounds.name_of(bound.place), bound.number) for bound in own]


def _beat(spool: "Spool", chosen: "settings.Settings", scheduler: "Scheduler", state: State) -> str:
    if not chosen.heartbeat:
        return "heartbeat: off"
    if not heartbeat.enabled(chosen, scheduler, state.value):
        return "heartbeat: off, a limit leaves no place for it; a job's end leaves a process for a minute instead"
    known = heartbeat.beats(spool)
    return "heartbeat: next %s" % _stamp(known[-1].due) if known and known[-1].due else "heartbeat: none pending"


def _stuck(spool: "Spool", state: State, standing: "Optional[List[live.Standing]]") -> "List[str]":
    why = state.value.get("reasons", {}).get("why", {})
    standing = live.standings(spool) if standing is None else standing
    stuck = [job for job in standing if why.get(job.id) and not live.is_bundle(job.entry)]
    jobs = [(job.entry.job, why[job.id]) for job in stuck]
    return ["%s does not start: %s" % one for one in jobs[:MOST_STUCK]]


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds else ""


def busy_jobs(spool: "Spool") -> "List[str]":
    """The jobs that wait or run: what keeps a root from being removed."""
    names = {entry.job for state in ("held",) + ON_THEIR_WAY for entry in spool.entries(state)}
    names.update(job for job, _ in spool.find_waiting())
    names.update(entry.job for entry in spool.dependents())
    names.update(os.path.basename(path) for path in spool.dropped())
    return sorted(name for name in names if JOB.match(name) or name)


def text(status: "Dict[str, Any]") -> str:
    """The status as a person reads it."""
    lines = ["%s (%s)" % (status["root"], status["scheduler"])]
    lines.append(
        "waiting %(waiting)d, held %(held)d, in flight %(submitting)d, in the scheduler %(submitted)d" % status
    )
    if status["after"]:
        lines.append("wait for other jobs: %d" % status["after"])
    caps = status["caps"]
    lines.append("caps: %(max_running)d running, %(max_queued)d queued" % caps)
    lines.extend(["room: " + text for text in status["room"]])
    lines.extend(status["notes"])
    lines.append("last pump: %s" % (status["pumped"] or "never"))
    if status["stalled_since"]:
        lines.append("STALLED since %s: nothing is alive to wake the relay. Next: pump" % status["stalled_since"])
    if outlook.words(status["relay"]):
        lines.append(outlook.words(status["relay"]))
    return "\n".join(lines)
