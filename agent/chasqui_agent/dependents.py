"""Jobs that wait for others: where their scripts stand, when they may run, and when they never will.

    waiting/1000/<shard>.new/<seq>.<job>.<attempt>.sh   published by a session, not yet journalled as accepted
    after/<parent>.<attempt>/<job>.<attempt>.sh         waits for this parent, the first in its list that has not ended
    after/<parent>.<attempt>/<job>.<attempt>.ok, .fail  needs this end of this one, too; its script stands elsewhere
    blocked/<job>.<attempt>.sh                          its parents' ends can't be what it waited for any more

Its job.json has `after`, [[job, attempt, state the client knows of it, or ""]], and `if`: ok, any or fail. A script is
in one place, so each step is one rename. What has ended since the last pump is read from the journal, from `after` in
state.json on: whoever ended it, be it the agent of an earlier deployment, wrote it there. A pump so looks at what waits
for those that ended, and never at all that waits. Without that offset, or behind damage, it looks at every parent once.

A job's end is settled when PBS has let go of it, but its own tail is the last to pump for a while: what its flags say
for certain (no TERM came before) counts at once. Where they don't, the heartbeat is moved forward (`expected`).

What is tried again by the relay has not ended: the last of those attempts is whom all wait for, under whichever of them
they stand.

Not `-W depend`: PBS deletes a dependent, or holds it for ever, where its parent is forgotten or was deleted [OpenPBS].
"""

import os
import time
from collections import namedtuple

from . import ending, fault, files, journal, reconcile
from .spool import SHARD_SIZE, Entry, parse_name, shard_name
from .state import State

MYPY = False
if MYPY:
    from typing import Any, Container, Dict, Iterable, List, Optional, Sequence, Tuple

    from .live import Standing
    from .pump import Round
    from .spool import Spool

    Key = Tuple[str, int]

fault.register(
    {
        "dependents.accepted": "a shard of jobs that wait for others journalled as accepted, its name not yet changed",
        "dependents.filed": "a script stands under a parent, others of its shard do not yet",
        "dependents.told": "journalled as ready or blocked, no script moved",
        "dependents.moved": "one of those scripts moved, the others not yet",
        "dependents.done": "all of them moved, the place in the journal not yet remembered",
    }
)

CONDITIONS = ("ok", "any", "fail")
NOT_HERE = "what it waits for is not on the cluster: "  # how a refusal begins
LEAST_SECONDS = 1.0
_KINDS = {"completed": "ok", "failed": "fail", "lost": "fail", "cancelled": "fail", "rejected": "fail",
          "blocked": "fail"}
_FLAGS = {b"DONE": "completed", b"FAIL": "failed", b"LOST": "lost"}
_ENDS = ("ended", "repaired", "cancelled", "rejected", "blocked")

# A script that waits. parents: as in job.json. at: the parent it stands under, -1 where it is on its way in.
Dependent = namedtuple("Dependent", "entry parents condition at")
# What comes next: "ready", "blocked" (by, why), or "" and it waits for the parent number `at`.
Verdict = namedtuple("Verdict", "kind at by why")


def verdict(condition: str, ends: "Iterable[str]") -> "Tuple[str, int]":
    """What the ends of its parents mean for a job: ("ready", -1), ("blocked", which one), ("", the first that has not
    ended). ends: ok, fail or "" of each, read only as far as needed."""
    first = -1
    for number, end in enumerate(ends):
        if not end:
            first = number if first < 0 else first
        elif condition not in ("any", end):
            return "blocked", number
    return ("", first) if first >= 0 else ("ready", -1)


def end_of(spool: "Spool", job: str, attempt: int, told: str = "") -> str:
    """How an attempt ended: completed, failed, lost, cancelled, rejected, blocked; "" where it has not, or none knows.

    told: what the client's ledger says of it; counts only where this root has nothing of the attempt (it was purged, or
    taken back before it was sent). Of one that the relay tried again, it is how the last of those attempts ended.
    """
    last = spool.final_attempt(job, attempt)
    state = spool.settled_state(job, last)
    if state == "completed":
        with open(spool.entry_path(state, job, last, suffix="flag"), "rb") as stream:
            return _FLAGS.get(stream.readline(100).strip(), "")
    if not state and last == attempt and not os.path.lexists(spool.work_dir(job, attempt)):
        return told.lower() if told.lower() in _KINDS else ""
    return state


def missing(spool: "Spool", after: "List[Any]", *coming: "Container[Key]") -> str:
    """The first job waited for that this root does not have, of which the client knows no end, and that is not
    `coming`: attempts of the same session. "" where there is none."""
    for job, attempt, told in after:
        here = any((job, attempt) in some for some in coming) or os.path.lexists(spool.work_dir(job, attempt))
        if not here and not told and not spool.settled_state(job, attempt):
            return str(job)
    return ""


def why_blocked(spool: "Spool", job: str, attempt: int) -> str:
    """The words of its record in the journal, from what its parents are now; "" where they block it no more."""
    return str(Ends(spool).judge(_dependent(spool, Entry("", job, attempt, ""))).why)


def unread(spool: "Spool") -> bool:
    """Whether the journal has grown since a pump last looked there for ends."""
    return bool(State(spool).value.get("after") != journal.end(spool.log))


# -- a pump's steps ----------------------------------------------------------------------------------------------------


def published(pump: "Round") -> None:
    """Take in what sessions published: journalled as accepted, then each script put where it waits, or on its way."""
    for shard in pump.spool.dependent_shards():
        if shard.endswith(".new"):
            entries = pump.spool.shard_entries(shard)
            pump.journal.append(*[{"ev": "accepted", "job": e.job, "attempt": e.attempt} for e in entries])
            fault.point("dependents.accepted")
            files.move(shard, shard[: -len(".new")])
            pump.report["accepted"] += len(entries)
            shard = shard[: -len(".new")]
        place(pump, pump.spool.shard_entries(shard))
        _remove_folder(shard)


def place(pump: "Round", entries: "List[Entry]") -> None:
    """Put scripts that come from elsewhere where they wait; what waits for nothing any more moves on at once."""
    state = pump.state.value
    if "after" not in state and not pump.spool.has_dependents():
        state["after"] = journal.end(pump.spool.log)
    ends = Ends(pump.spool)
    waits, moves = [], []  # type: List[Tuple[Dependent, Verdict]], List[Tuple[Dependent, Verdict]]
    for entry in entries:
        found = _dependent(pump.spool, entry)
        judged = ends.judge(found)
        (moves if judged.kind else waits).append((found, judged))
    for found, judged in waits:
        _note(pump.spool, found, judged.at, ends)
    _file(pump.spool, waits)
    _move_on(pump, moves)


def settle(pump: "Round", alive: "Sequence[Standing]" = ()) -> int:
    """Move on what waited for attempts that ended since this was last done; how many scripts that were.

    alive: submitted attempts that are not settled; of some the flags tell already. Where time is up the rest stays as
    it is, and the round is not finished: the next one begins where this one did.
    """
    state, spool = pump.state.value, pump.spool
    if not spool.has_dependents():
        state.pop("after", None)
        return 0
    ended, offset = _news(pump)
    flagged = _flagged(spool, alive)
    ended += list(flagged)
    moved = 0
    while ended:
        if min(pump.lock.time_left() - pump.settings.lease / 50, pump.scheduler.deadline - time.monotonic()) < 0:
            pump.report["unfinished"] = True
            return moved
        some, ended = ended[:SHARD_SIZE], ended[SHARD_SIZE:]
        moves = _judged(spool, some, Ends(spool, flagged))
        moved += len(moves)
        ended += _move_on(pump, moves)
        for parent in some:
            _remove_folder(spool.after_dir(*parent))
    if moved:
        fault.point("dependents.done")
    state["after"] = journal.end(spool.log) if moved else offset
    return moved


def _flagged(spool: "Spool", alive: "Sequence[Standing]") -> "Dict[Key, str]":
    """How those of them ended that have somebody waiting and whose flags say it for certain. That a job with a retry
    policy failed is no end yet: what follows is decided when it is settled."""
    found = {}
    for standing in alive:
        waited_for = _waited_for(spool, standing) if standing.flagged else []
        outcome = reconcile.told_by_flags(standing) if waited_for else None
        if outcome and (outcome["state"] == "DONE" or not spool.may_be_retried(*standing.entry[1:3])):
            found.update(dict.fromkeys(waited_for, _FLAGS[outcome["state"].encode("ascii")]))
    return found


def expected(spool: "Spool", alive: "Sequence[Standing]") -> bool:
    """Whether the payload of one of these is over, only the scheduler can say how, and somebody waits for that: another
    job, or its own next attempt."""
    over = [standing for standing in alive if standing.flagged >= max(1, standing.size)]
    return any(_waited_for(spool, standing) or may_go_on(spool, standing) for standing in over)


def may_go_on(spool: "Spool", standing: "Standing") -> bool:
    """Whether its flag says that it failed, and its policy may have it tried again."""
    flag = standing.marks.flag or {}
    return flag.get("exit", "0") != "0" and spool.may_be_retried(standing.entry.job, standing.entry.attempt)


def _waited_for(spool: "Spool", standing: "Standing") -> "List[Key]":
    """The attempts under which somebody waits for the end of this one."""
    return [key for key in _chain(spool, standing.entry.job, standing.entry.attempt)
            if os.path.isdir(spool.after_dir(*key))]


def _chain(spool: "Spool", job: str, attempt: int) -> "List[Key]":
    """An attempt, and those before it that the relay tried again: their ends are its end."""
    found = [(job, attempt)]
    while attempt > 1 and spool.next_attempt(job, attempt - 1):
        attempt -= 1
        found.append((job, attempt))
    return found


def _news(pump: "Round") -> "Tuple[List[Key], int]":
    """The attempts that ended behind the remembered place in the journal, and its end."""
    offset = pump.state.value.get("after", -1)
    last = journal.end(pump.spool.log)
    found, damaged = {}, not 0 <= offset <= last  # type: Dict[Key, None], bool
    for _, record in journal.records(pump.spool.log, offset) if not damaged else ():
        if record.get("ev") in _ENDS and not record.get("next"):
            found.update(dict.fromkeys(_chain(pump.spool, str(record.get("job")), int(record.get("attempt", 0)))))
        damaged = damaged or record.get("ev") == "damaged"
    return (_all_parents(pump.spool) if damaged else list(found)), last


def _all_parents(spool: "Spool") -> "List[Key]":
    found = [name.rpartition(".") for name in files.names(spool.after)]
    return [(job, int(attempt)) for job, _, attempt in found if attempt.isdigit()]


def _judged(spool: "Spool", parents: "List[Key]", ends: "Ends") -> "List[Tuple[Dependent, Verdict]]":
    """What waited for these and moves on now. What has another one to wait for is put under that."""
    waits, moves, seen = [], [], set()  # type: List[Any], List[Any], Any
    for parent in parents:
        for entry, stands in _children(spool, parent, ends):
            if (entry.job, entry.attempt) in seen:
                continue
            found = _dependent(spool, entry, parent if stands else None)
            judged = ends.judge(found) if stands else ends.judge_one(found, parent)
            if judged.kind:
                seen.add((entry.job, entry.attempt))
                moves.append((found, judged))
            elif stands and judged.at != found.at:
                waits.append((found, judged))
    _file(spool, [one for one in waits if (one[0].entry.job, one[0].entry.attempt) not in seen])
    return moves


def _children(spool: "Spool", parent: "Key", ends: "Ends") -> "List[Tuple[Entry, bool]]":
    """The scripts that wait for `parent`, in the order they were handed over, and whether they stand under it; of those
    that do not, the ones that its end blocks."""
    folder = spool.after_dir(*parent)
    found = []
    for name in files.names(folder):
        key, needs = parse_name(name), name.rpartition(".")[2]
        if key and needs in CONDITIONS:
            entry = spool.find_dependent(key[0], key[1]) if ends.kind(parent + ("",)) not in ("", needs) else None
            if entry and os.path.dirname(entry.path) != folder:
                found.append((entry, False))
            files.remove(os.path.join(folder, name))
    standing = spool.entries(os.path.relpath(folder, spool.root))
    found += [(entry, True) for entry in sorted(standing, key=lambda entry: os.stat(entry.path).st_mtime_ns)]
    return found


def _dependent(spool: "Spool", entry: "Entry", under: "Optional[Key]" = None) -> Dependent:
    record = spool.job_record(entry.job, entry.attempt)
    parents = [tuple(parent) for parent in record.get("after") or ()]
    at = [parent[:2] for parent in parents].index(under) if under in [parent[:2] for parent in parents] else -1
    return Dependent(entry, parents, record.get("if", "ok"), at)


class Ends:
    """How parents ended, each looked up once: to be asked before anything is moved. known: where it is known."""

    def __init__(self, spool: "Spool", known: "Optional[Dict[Key, str]]" = None) -> None:
        self.spool = spool
        self._known: "Dict[Key, str]" = dict(known or {})

    def of(self, parent: "Tuple[str, int, str]") -> str:
        """As `end_of`."""
        key = parent[:2]
        if key not in self._known:
            self._known[key] = end_of(self.spool, *parent)
        return self._known[key]

    def kind(self, parent: "Tuple[str, int, str]") -> str:
        """ok or fail; "" where it has not ended."""
        return _KINDS.get(self.of(parent), "")

    def judge(self, found: Dependent) -> Verdict:
        """From the parent it stands under on: those before it have ended as they should. A later one that ended ill
        has said so by what stands under it (`_note`)."""
        if not found.parents:
            return Verdict("blocked", -1, "", "what it waits for is not on record any more")
        start = max(0, found.at)
        ends = (self.kind(parent) for parent in found.parents[start:])
        kind, number = verdict(found.condition, _to_the_first_open(ends) if found.at >= 0 else ends)
        return self._verdict(found, kind, start + number)

    def judge_one(self, found: Dependent, parent: "Key") -> Verdict:
        """From one parent's end alone; it waits for another one in any case."""
        number = [one[:2] for one in found.parents].index(parent)
        kind, _ = verdict(found.condition, [self.kind(found.parents[number])])
        return self._verdict(found, kind if kind == "blocked" else "", number)

    def _verdict(self, found: Dependent, kind: str, number: int) -> Verdict:
        if kind != "blocked":
            return Verdict(kind, number, "", "")
        parent = found.parents[number]
        name = name_of(self.spool, *parent[:2])
        return Verdict(kind, number, parent[0], "blocked by %s (%s)" % (name, self.of(parent)))


def _to_the_first_open(ends: "Iterable[str]") -> "Iterable[str]":
    for end in ends:
        yield end
        if not end:
            return


def name_of(spool: "Spool", job: str, attempt: int) -> str:
    """What its owner calls it; the id where this root does not know that."""
    return str(spool.job_record(job, attempt).get("name") or job)[:200]


# -- renames -----------------------------------------------------------------------------------------------------------


def _file(spool: "Spool", waits: "List[Tuple[Dependent, Verdict]]") -> None:
    """Put scripts under the parents they wait for."""
    touched = set()
    for found, judged in waits:
        folder = spool.after_dir(*found.parents[judged.at][:2])
        if folder not in touched:
            os.makedirs(folder, 0o700, exist_ok=True)
        touched.add(folder)
        _rename(found.entry.path, os.path.join(folder, "%s.%d.sh" % (found.entry.job, found.entry.attempt)))
        fault.point("dependents.filed")
    for folder in sorted(touched) + ([spool.after] if touched else []):
        files.fsync_folder(folder)


def _note(spool: "Spool", found: Dependent, at: int, ends: Ends) -> None:
    """Leave a word under every other parent that could block a script, so that it is when that one ends. Where it gets
    lost, that is found out later: a script is ready only when each of its parents has been asked."""
    for parent in found.parents[at + 1 :] if found.condition != "any" else ():
        if not ends.kind(parent):
            folder = spool.after_dir(parent[0], parent[1])
            os.makedirs(folder, 0o700, exist_ok=True)
            name = "%s.%d.%s" % (found.entry.job, found.entry.attempt, found.condition)
            files.write_file(os.path.join(folder, name), b"", durable=False)


def _move_on(pump: "Round", moves: "List[Tuple[Dependent, Verdict]]") -> "List[Key]":
    """Journal what is ready and what is blocked, and move the scripts; the blocked attempts, for whom others wait."""
    if not moves:
        return []
    pump.journal.append(*[_record(found.entry, judged) for found, judged in moves])
    fault.point("dependents.told")
    ready = [found.entry for found, judged in moves if judged.kind == "ready"]
    blocked = [found.entry for found, judged in moves if judged.kind == "blocked"]
    for entry in blocked:
        ending.forget_inputs(pump.spool, entry.job, entry.attempt)
        _rename(entry.path, pump.spool.entry_path("blocked", entry.job, entry.attempt))
        fault.point("dependents.moved")
    if blocked:
        files.fsync_folder(pump.spool.blocked)
    ranks = {}  # type: Dict[int, List[Entry]]
    for entry in ready:
        ranks.setdefault(pump.rank_of(entry), []).append(entry)
    for rank, entries in ranks.items():
        for start in range(0, len(entries), SHARD_SIZE):
            _to_waiting(pump, rank, entries[start : start + SHARD_SIZE])
    return [(entry.job, entry.attempt) for entry in blocked]


def _record(entry: "Entry", judged: Verdict) -> "Dict[str, Any]":
    if judged.kind == "ready":
        return {"ev": "ready", "job": entry.job, "attempt": entry.attempt}
    return {"ev": "blocked", "job": entry.job, "attempt": entry.attempt, "by": judged.by, "why": judged.why}


def _to_waiting(pump: "Round", rank: int, entries: "List[Entry]") -> None:
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    folder = os.path.join(pump.spool.waiting, "%03d" % rank)
    shard = os.path.join(folder, "%s-after-%06d" % (stamp, pump.lock.generation))
    while os.path.isdir(shard):
        shard += "a"
    os.makedirs(shard, 0o700)
    for position, entry in enumerate(entries):
        _rename(entry.path, os.path.join(shard, shard_name(position, entry.job, entry.attempt)))
        fault.point("dependents.moved")
    files.fsync_folder(shard)
    files.fsync_folder(folder)


def _rename(old: str, new: str) -> None:
    """Nothing where it is gone: a pump that was declared dead moves nothing that another one has moved."""
    try:
        os.rename(old, new)
    except FileNotFoundError:
        pass


def _remove_folder(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass  # never there, or not empty: time was up
