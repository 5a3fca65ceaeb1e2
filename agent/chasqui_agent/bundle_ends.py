"""How a bundle's members end, those that began and those whose turn never came, and a bundle with them.

A member's flag settles it at once. Its end pumps no more often than `query_interval`; the bundle's does as any job's.
When the scheduler says the bundle is over, or has forgotten it (grace and a second round), a member without a start
goes back to waiting, its token closed, the second time to go alone; one that began and left no flag has ended as the
scheduler says of the bundle, else LOST, and a late flag repairs that. Then the bundle's folder goes. Cancel and hold of
a member that waits in its bundle close its token; a bundle with no member left that has not begun is deleted.
"""

import os

from . import bundle, bundle_kinds, fault, files, live, marks, reconcile, runner, spoiled
from .schedulers.base import DELETED, Ended

MYPY = False
if MYPY:
    from typing import Any, Dict, Optional

    from .pump import Round
    from .schedulers.base import Snapshot
    from .spool import Entry

fault.register({"bundle.settled": "its members settled or back in waiting/, the bundle still there"})

MOST_TIMES = 2  # bundles that end before a job's turn came; then it goes alone


def settle(pump: "Round", standing: live.Standing, snapshot: "Optional[Snapshot]", fresh: bool) -> bool:
    """Settle a bundle that is over, with all of its members; whether it is."""
    entry = standing.entry
    if not os.path.isdir(standing.meta):
        # Somebody has deleted its folder. Nobody knows whether it is held: it is released, runs nothing, and is over.
        marks.write_id(bundle.made(pump.spool, entry), entry.token, standing.id, True)
    bundle.follow(pump, entry, standing.id, "submitted")
    every = [_member(pump, one, standing) for one in bundle.members_of(pump.spool, entry, "submitted")]
    alive = [one for one in every if not reconcile.member(pump, one)]
    if not alive and not _started(standing.marks):
        if bundle.close(pump, entry):
            return False  # it started this very moment
        pump.state.delete.append(standing.id)  # every member was cancelled or held
        pump.state.save()
        bundle.drop(pump, entry)
        return True
    ended = _over(pump, standing, snapshot, fresh, any(_started(one.marks) for one in alive))
    if ended is None:
        # Without a server its end is that of its script; where there is one, it counts there until it is quite gone.
        if alive or pump.scheduler.stages_output or not standing.marks.flag:
            return False
    elif not _started(standing.marks) and bundle.close(pump, entry):
        return False
    elif [one for one in alive if not _settle_member(pump, one, ended)]:
        return False
    fault.point("bundle.settled")
    bundle.drop(pump, entry)
    return True


def _over(
    pump: "Round", standing: live.Standing, snapshot: "Optional[Snapshot]", fresh: bool, missing: bool
) -> "Optional[Ended]":
    """How a bundle ended that the scheduler no longer runs; None where that is not certain yet. missing: whether there
    are members without the flag that they should have written."""
    if snapshot is None or not fresh or standing.id in snapshot.live:
        return None
    found, flag = standing.marks, standing.marks.flag
    ended: "Optional[Ended]" = snapshot.ended.get(standing.id)
    if ended is None and flag and not found.term:
        ended = Ended(standing.id, 0, "", "", False)
    elif ended is None and not snapshot.knows(standing.id):
        return None
    late = missing and pump.scheduler.stages_output  # a flag may still be on its way through the file server's caches
    if (ended is None or late) and not reconcile.given_up(pump, standing.entry.token):
        return None
    return ended or Ended(standing.id, None, "gone from the scheduler without a trace", "", True)


def _member(pump: "Round", one: "Entry", shared: live.Standing) -> live.Standing:
    meta = pump.spool.meta_dir(one.job, one.attempt)
    spoilt = not marks.read_id(meta, one.token)
    return live.Standing(one, meta, shared.id, False, marks.read(meta, one.token), (), spoilt, True)


def _settle_member(pump: "Round", standing: live.Standing, ended: Ended) -> bool:
    """What becomes of a member whose bundle is over; False where that is not certain yet."""
    one, found = standing.entry, standing.marks
    if standing.spoilt:  # whether it has started is not known: it is never submitted again
        if reconcile.cancelled_spoilt(pump, standing):
            return reconcile.cancelled(pump, standing, "cancelled", ended.exit)
        return reconcile.end(pump, standing, {"state": "LOST", "exit": None, "why": "its bundle is over"})
    if not _started(found):
        if pump.close_token(standing.meta, one.token):
            return False  # it started this very moment: its marks say more next time
        if sum(1 for name in files.names(standing.meta) if name.startswith("runner.")) >= MOST_TIMES:
            bundle_kinds.set_apart(pump.spool, one)
        reconcile.back_to_waiting(pump, one, "its bundle ended before its turn came")
        return True
    if found.cancel or ended.why == DELETED:
        why = "cancelled" if found.cancel else "its bundle was deleted in " + pump.scheduler.called
        return reconcile.cancelled(pump, standing, why, ended.exit)
    return reconcile.end(pump, standing, outcome(standing, ended))


def outcome(standing: live.Standing, ended: Ended) -> "Dict[str, Any]":
    """How a member ended that began, of which no flag says so for certain; ended: how its bundle did."""
    found = standing.marks
    certain = reconcile.told_by_flags(standing)
    if certain:
        return certain  # it waits for a round that has time for what follows
    code = int(found.flag["exit"]) if found.flag and found.flag.get("exit", "").isdigit() else 0
    if found.term and (ended.lost or not ended.exit):
        return {"state": "FAIL", "exit": code or None, "why": "terminated"}
    if ended.lost or ended.exit is None or ended.exit == runner.EXIT_REFUSED:
        why = "its bundle is over: %s" % (ended.why or "its end is not known")
        return {"state": "LOST", "exit": None, "why": why}
    if not ended.exit:
        return {"state": "FAIL", "exit": None, "why": "its runner was killed"}
    return {"state": "FAIL", "exit": ended.exit, "why": ended.why or "its bundle was killed (%d)" % ended.exit}


def _started(found: marks.Marks) -> bool:
    return bool(found.runs or (found.claim and not marks.is_closed(found.claim)))


def take_back(pump: "Round", entry: "Entry") -> None:
    """Take a bundle apart that the scheduler never got, its token closed: its members wait again."""
    for one in bundle.members_of(pump.spool, entry):
        meta = pump.spool.meta_dir(one.job, one.attempt)
        if not os.path.lexists(one.path) or not spoiled.names(meta):
            continue  # one whose folder is spoilt is a job like any other
        if not pump.close_token(meta, one.token):
            reconcile.back_to_waiting(pump, one, "the scheduler never got its bundle")
    fault.point("bundle.settled")
    bundle.drop(pump, entry)
