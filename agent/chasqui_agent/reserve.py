"""A second heartbeat, far ahead and moved on while the first goes on: what is left when that one comes while nothing is
let in. Where a queue is closed for longer than the last of our jobs lasts, or the nodes' file system fails for as long
as a beat stays, no other wake would be left.

It takes one more place in the queue, so there is none where places are few, nor while an array needs it.
"""

from . import heartbeat
from .site_limits import BEAT

MYPY = False
if MYPY:
    from typing import List, Tuple

    from . import caps
    from .pump import Round
    from .schedulers.base import Snapshot
    from .site_limits import Site
    from .spool import Entry

AFTER = 3  # none before the beat of this number is pending: a batch that is over by then does not need it
LEAST = heartbeat.AHEAD * 2 // 3  # intervals: nearer than that, it is moved on
PLACES = 10  # caps and limits below leave it none


def keep(
    pump: "Round",
    plan: "caps.Plan",
    site: "Site",
    todo: "List[Tuple[Entry, int]]",
    snapshot: "Snapshot",
    fresh: bool,
) -> None:
    """Arm it where there is none, move it on, or delete it where its place is needed. todo: the next scripts, each with
    the number of its elements. Raises Unreachable."""
    there = heartbeat.reserve(pump.spool)
    wanted = _wanted(pump, plan.queue.most - 1 + len(there), site, todo)
    for beat in there:
        if not wanted:
            heartbeat.end(pump, beat, snapshot)
            pump.report["unfinished"] = True  # its place is free
        elif not heartbeat.pending(pump, beat, snapshot, fresh):
            heartbeat.forget(pump.spool, beat)
        elif beat.id and 0 < beat.due - pump.now < LEAST * 60 * pump.settings.heartbeat and _may_try(pump):
            heartbeat.put_off(pump, beat)
    if wanted and todo and not there and _is_due(pump) and _take_place(pump, plan, site):
        heartbeat.arm(pump.spool, pump.settings, pump.scheduler, heartbeat.RESERVE)


def _wanted(pump: "Round", most: int, site: "Site", todo: "List[Tuple[Entry, int]]") -> bool:
    """Whether its place can be spared. most: elements that the largest array may have beside it."""
    chosen = pump.settings
    few = chosen.max_queued < PLACES or 0 < chosen.max_total < PLACES
    if few or not heartbeat.enabled(chosen, pump.scheduler, pump.state.value, PLACES):
        return False
    arrays = site.arrays + [(site.asked_in(entry.path), size) for entry, size in todo if size > 1]
    return all(size <= most and site.ever(asked, size + 1) for asked, size in arrays)


def _is_due(pump: "Round") -> bool:
    known = heartbeat.beats(pump.spool)
    return bool(known) and known[-1].n >= AFTER


def _take_place(pump: "Round", plan: "caps.Plan", site: "Site") -> bool:
    """Whether there is one now, and it may be tried; it is taken."""
    asked = site.asked_in(BEAT)
    if not plan.queue.left or not site.room(asked) or not _may_try(pump):
        return False
    site.took(asked)
    return plan.queue.take("", 1)


def _may_try(pump: "Round") -> bool:
    """Whether the scheduler may be asked now: once in an interval, whether it agrees or not."""
    tried = pump.state.value.get("reserve", 0)
    if 0 <= pump.now - tried < 60 * pump.settings.heartbeat or not pump.may_call():
        return False
    pump.state.value["reserve"] = pump.now
    return True
