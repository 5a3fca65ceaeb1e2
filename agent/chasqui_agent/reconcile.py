"""What has become of everything in submitting/ and submitted/: marks and flags against the scheduler's word.

No flag and no answer is never an end: an attempt is LOST only when the scheduler answered twice, the grace period
apart,
without it. What never started may be submitted again, under a new token, after its old one is closed; what has its
claim made is never submitted again by the relay: a retry is the user's decision.
"""

import os

from . import arrays, ending, files, live, marks, runner, spoiled, submit
from .schedulers.base import DELETED, NotNow, Unreachable

MYPY = False
if MYPY:
    from typing import Any, Dict, Optional

    from .pump import Round
    from .schedulers.base import Ended, Snapshot
    from .spool import Entry

    Standing = live.Standing

SECOND_ROUND = 2  # good query rounds without a trace before something is given up
REFUSED_RERUN = "started again without rerun = true, which was refused; how its first start ended is not known"
MAX_STARTS = 5  # submissions of one attempt that never got to their payload


def submitting(pump: "Round", snapshot: "Optional[Snapshot]", fresh: bool) -> None:
    """Resolve submissions whose outcome is not recorded: adopt, or give back to waiting once that is proved safe."""
    in_flight = pump.spool.entries("submitting")
    members = live.bundled(pump.spool) if in_flight else {}
    for entry in in_flight:
        meta = pump.spool.meta_dir(entry.job, entry.attempt)
        known = marks.read_id(meta, entry.token)
        claim = marks.read(meta, entry.token).claim
        if entry.token in members or not os.path.lexists(entry.path):
            continue  # goes where its bundle goes, or has gone with it just now
        if known:
            _record(pump, entry, known["id"], bool(known.get("held")), "submitted")
        elif claim and not marks.is_closed(claim):
            _record(pump, entry, claim, False, "adopted")
        elif claim:
            _take_back(pump, entry, meta)  # closed by a pump that died before the next line
        elif snapshot is not None and fresh:
            _look_for(pump, entry, meta, snapshot)


def _record(pump: "Round", entry: "Entry", job_id: str, held: bool, event: str) -> None:
    """Make known what became of a submission, a job's or a bundle's."""
    if live.is_bundle(entry):
        from . import bundle

        bundle.record(pump, entry, job_id, held, event)
    else:
        submit.record_id(pump, entry, job_id, held, event)


def _look_for(pump: "Round", entry: "Entry", meta: str, snapshot: "Snapshot") -> None:
    for job in list(snapshot.live.values()) + list(snapshot.ended.values()):
        if job.token == entry.token:
            _record(pump, entry, job.id, getattr(job, "state", "") == "H", "adopted")
            return
    if snapshot.knows(entry.token) and given_up(pump, entry.token):
        _take_back(pump, entry, meta)


def _take_back(pump: "Round", entry: "Entry", meta: str) -> None:
    """Close the token of a submission without a trace and queue its script again; adopt it where it has started. Not
    adopted under a closed token: what the scheduler has of it will end unrun, and without a history look lost."""
    if live.is_bundle(entry):
        _take_back_bundle(pump, entry)
        return
    if not spoiled.names(meta):
        _lose_track(pump, entry, meta)
        return
    started = pump.close_token(meta, entry.token)
    if started:
        _record(pump, entry, started, False, "adopted")
    else:
        pump.state.keep_closed(submit.sought(pump, entry), pump.now, entry.job, entry.attempt)
        back_to_waiting(pump, entry, "the scheduler never got it")


def _take_back_bundle(pump: "Round", entry: "Entry") -> None:
    from . import bundle, bundle_ends

    started = bundle.close(pump, entry)
    if started:
        _record(pump, entry, started, False, "adopted")
    else:
        pump.state.keep_closed(submit.sought(pump, entry), pump.now, entry.job, entry.attempt)
        bundle_ends.take_back(pump, entry)


def _lose_track(pump: "Round", entry: "Entry", meta: str) -> None:
    """End a submission without a trace of which nobody can say any more whether it has started."""
    spoiled.check_work(pump.spool.work)
    standing = live.Standing(entry, meta, "", False, marks.read(meta, entry.token), spoilt=True)
    if not cancelled_spoilt(pump, standing):
        end(pump, standing, {"state": "LOST", "exit": None, "why": "the scheduler does not know it"})
        pump.state.closed.append(entry.token)
    else:
        cancelled(pump, standing, "cancelled", None)
    pump.state.keep_closed(submit.sought(pump, entry), pump.now, entry.job, entry.attempt)


def cancelled_spoilt(pump: "Round", standing: "Standing") -> bool:
    """Whether a cancel was asked for of a job whose folder has no place for the mark of that (operations.py)."""
    return standing.spoilt and standing.entry.token in pump.state.closed


def given_up(pump: "Round", token: str) -> bool:
    """Whether a token has been without a trace for the grace period and enough good query rounds. Counts this round."""
    first, rounds = pump.state.doubt.get(token, [pump.now, 0])
    pump.state.doubt[token] = [first, rounds + 1]
    return rounds + 1 >= SECOND_ROUND and pump.now - first >= pump.settings.grace


def back_to_waiting(pump: "Round", entry: "Entry", why: str) -> None:
    """Give an attempt whose token is closed back to the queue; a new token is made when its turn comes."""
    record = {"ev": "closed", "job": entry.job, "attempt": entry.attempt, "token": entry.token, "why": why}
    pump.journal.append(record)
    files.move(entry.path, pump.spool.requeue_path(entry, pump.rank_of(entry)))


def submitted(pump: "Round", standing: "Standing", snapshot: "Optional[Snapshot]", fresh: bool) -> bool:
    """Settle one submitted attempt if its end is certain; whether it is settled."""
    found = standing.marks
    if live.is_bundle(standing.entry):
        from . import bundle_ends

        return bundle_ends.settle(pump, standing, snapshot, fresh)
    if standing.member:
        return member(pump, standing)
    if found.runs and _start(standing) not in pump.state.started:
        _journal_start(pump, standing)
    if found.flag and not found.term and not pump.scheduler.stages_output:
        return end(pump, standing, _by_flag(found.flag))
    if snapshot is None or not fresh or _is_live(standing, snapshot):
        return False
    certain = told_by_flags(standing)
    if certain:
        return end(pump, standing, _with_cause(certain, snapshot.ended.get(standing.id)))
    if standing.id and not snapshot.knows(standing.id):
        return False
    return _gone(pump, standing, snapshot.ended.get(standing.id))


def member(pump: "Round", standing: "Standing") -> bool:
    """Settle a member of a bundle whose flag says how it ended, or that is settled by somebody; whether it is."""
    found = standing.marks
    if not os.path.lexists(standing.entry.path):
        return True
    if found.runs and _start(standing) not in pump.state.started:
        _journal_start(pump, standing)
    if found.flag and found.term and found.cancel:
        return cancelled(pump, standing, "cancelled", _by_flag(found.flag)["exit"])
    if found.flag and found.term and found.over:
        return end(pump, standing, {"state": "FAIL", "exit": None, "why": "walltime"})
    return bool(found.flag and not found.term) and end(pump, standing, _by_flag(found.flag))


def _with_cause(outcome: "Dict[str, Any]", ended: "Optional[Ended]") -> "Dict[str, Any]":
    """A flag's outcome, and that it was the memory, where only the payload was killed for it and the runner lived."""
    short = ended and ended.why == "memory" and outcome["state"] == "FAIL"
    return dict(outcome, why="memory") if short else outcome


def _is_live(standing: "Standing", snapshot: "Snapshot") -> bool:
    if standing.id:
        return standing.id in snapshot.live
    return any(job.token == standing.entry.token for job in snapshot.live.values())


def told_by_flags(standing: "Standing") -> "Optional[Dict[str, Any]]":
    """How an attempt ended where its flags say so for certain, else None."""
    if standing.indices:
        return arrays.by_flags(standing)
    found = standing.marks
    return _by_flag(found.flag) if found.flag and not found.term else None


def _start(standing: "Standing") -> str:
    runs = standing.marks.runs
    return standing.entry.token + (".%d" % runs if runs > 1 else "")


def _journal_start(pump: "Round", standing: "Standing") -> None:
    entry = standing.entry
    if standing.marks.runs > 1:
        why = "started again by " + pump.scheduler.called
        record = {"ev": "requeued", "job": entry.job, "attempt": entry.attempt, "pbs": standing.id, "why": why}
        pump.journal.later(record)
    when = marks.started_at(standing.meta, entry.token, standing.marks)
    record = {"ev": "started", "job": entry.job, "attempt": entry.attempt, "pbs": standing.id, "when": int(when)}
    pump.journal.later(record)
    pump.state.started.append(_start(standing))


def _started(standing: "Standing") -> bool:
    found = standing.marks
    return bool(standing.spoilt or found.runs or (found.claim and not marks.is_closed(found.claim)))


def _gone(pump: "Round", standing: "Standing", ended: "Optional[Ended]") -> bool:
    """A job the scheduler no longer runs. True when settled; False while its end is not yet certain."""
    cancel = standing.marks.cancel or cancelled_spoilt(pump, standing)
    if ended is None or ended.lost:
        if ended is None and not given_up(pump, standing.entry.token):
            return False
        return _vanished(pump, standing, ended.why if ended else "gone from the scheduler without a trace")
    started = _started(standing)
    if ended.why == DELETED or cancel:
        if not started and pump.close_token(standing.meta, standing.entry.token):
            return False  # PBS forgot it (qdel -W force) while its runner was on the way to the claim
        why = "cancelled" if cancel else "deleted in " + pump.scheduler.called
        return cancelled(pump, standing, why, ended.exit)
    if not started:
        return _never_ran(pump, standing, ended)
    missing = standing.flagged < max(1, standing.begun)
    if pump.scheduler.stages_output and missing and not given_up(pump, standing.entry.token):
        return False  # a flag may still be on its way through the file server's caches
    if standing.indices and not standing.spoilt:
        return end(pump, standing, arrays.by_scheduler(standing, ended.why))
    return end(pump, standing, _by_scheduler(ended, standing.spoilt))


def _never_ran(pump: "Round", standing: "Standing", ended: "Ended") -> bool:
    """Ended by the scheduler's word, and no claim: the payload did not start, and after closing never will."""
    entry = standing.entry
    if pump.close_token(standing.meta, entry.token):
        return False  # it started after all: its marks say more next time
    if ended.exit is None:
        return cancelled(pump, standing, ended.why or "deleted in %s before it started" % pump.scheduler.called, None)
    starts = sum(1 for name in files.names(standing.meta) if name.startswith("runner."))
    if starts >= MAX_STARTS:
        why = "the runner could not start %d times (exit %d): disk full or folder gone?" % (starts, ended.exit)
        return end(pump, standing, {"state": "FAIL", "exit": ended.exit, "why": why})
    back_to_waiting(pump, entry, "its runner could not start (exit %d)" % ended.exit)
    return True


def _vanished(pump: "Round", standing: "Standing", why: str) -> bool:
    found, started = standing.marks, _started(standing)
    if not started and pump.close_token(standing.meta, standing.entry.token):
        return False  # it started this very moment: its marks say more next time
    if found.cancel or cancelled_spoilt(pump, standing):
        return cancelled(pump, standing, "cancelled", None)
    if standing.indices and found.runs:
        return end(pump, standing, arrays.by_scheduler(standing, why, lost=True))
    if found.term:
        return end(pump, standing, {"state": "FAIL", "exit": None, "why": "terminated"})
    why += "" if started else ", before it started"
    return end(pump, standing, {"state": "LOST", "exit": None, "why": why})


def _by_flag(flag: "Dict[str, str]") -> "Dict[str, Any]":
    code = int(flag["exit"]) if flag.get("exit", "").isdigit() else 255
    when = int(flag["ended"]) if flag.get("ended", "").isdigit() else 0
    return {"state": "FAIL" if code else "DONE", "exit": code, "why": "exit %d" % code if code else "", "when": when}


def _by_scheduler(ended: "Ended", spoilt: bool = False) -> "Dict[str, Any]":
    code = ended.exit
    if code is None:  # it started, and the scheduler does not say how it ended
        return {"state": "LOST", "exit": None, "why": ended.why or "ended without an exit status in the scheduler"}
    if code == runner.EXIT_REFUSED:  # the end of a second start; the first may live on, and its flag repair this
        return {"state": "LOST", "exit": None, "why": "exit 97: perhaps it did not start" if spoilt else REFUSED_RERUN}
    if code >= 256:
        return {"state": "FAIL", "exit": code, "why": ended.why or "killed (%d)" % code}
    return {"state": "FAIL" if code else "DONE", "exit": code, "why": ended.why or ("exit %s" % code if code else "")}


def end(pump: "Round", standing: "Standing", outcome: "Dict[str, Any]") -> bool:
    """Settle an attempt: DONE, FAIL or LOST. False where this round has no time to copy what its next one begins
    with."""
    entry = standing.entry
    record = {"ev": "ended", "job": entry.job, "attempt": entry.attempt, "pbs": standing.id}
    record.update(outcome)
    following = None
    if record["state"] != "DONE" and pump.spool.may_be_retried(entry.job, entry.attempt):
        from . import carry, retries

        try:
            following = retries.following(pump, standing, record)
        except carry.PutOff:
            pump.put_off = pump.report["unfinished"] = True
            return False
    if standing.spoilt:
        record["why"] = "; ".join([why for why in (record["why"], spoiled.GONE) if why])
    ending.begin(pump, entry, "completed", record, _final(pump, standing), following)
    pump.report["ended"] += 1
    return True


def cancelled(pump: "Round", standing: "Standing", why: str, code: "Optional[int]") -> bool:
    """Settle an attempt that was deleted."""
    entry = standing.entry
    record = {
        "ev": "cancelled",
        "job": entry.job,
        "attempt": entry.attempt,
        "pbs": standing.id,
        "exit": code,
        "why": why,
    }
    told = arrays.states(standing) if standing.indices and standing.begun else None
    if told:
        record["elements"] = told
    ending.begin(pump, entry, "cancelled", record, _final(pump, standing))
    return True


def _final(pump: "Round", standing: "Standing") -> "Dict[str, Any]":
    """final.json: which submission it was that ended, and where its output is."""
    output, error = submit.final_outputs(pump.spool, standing.entry)
    return {"token": standing.entry.token, "pbs": standing.id, "stdout": output, "stderr": error}


def closed_jobs(pump: "Round", snapshot: "Snapshot", fresh: bool) -> None:
    """Delete every live job whose token is closed: it can never run, it only takes a place in the queue. Raises
    Unreachable; but where another round is due at once, it has its turn there, and does not stop it."""
    said = pump.report["note"]
    try:
        _delete_closed(pump, snapshot, fresh)
    except Unreachable:
        if not pump.report.get("unfinished"):
            raise
    if pump.report.get("unfinished"):
        pump.report["note"] = said


def _delete_closed(pump: "Round", snapshot: "Snapshot", fresh: bool) -> None:
    seen = {job.token for job in snapshot.ended.values()}
    for job_id in list(pump.state.delete):
        if not pump.may_call():
            break
        if _deleted(pump, job_id):
            pump.state.delete.remove(job_id)
    for job in snapshot.live.values():
        if job.token in pump.state.closed and pump.may_call() and _deleted(pump, job.id):
            seen.add(job.token)
            late = pump.state.given_up(job.token)
            if late:
                record = dict(late, ev="duplicate", token=job.token, pbs=job.id, why="accepted late, deleted")
                pump.journal.append(record)
    if fresh:
        pump.state.forget_closed(seen, pump.now)


def _deleted(pump: "Round", job_id: str) -> bool:
    """Whether the scheduler took the order; where one job's node does not answer, the others' turn comes yet."""
    try:
        pump.delete(job_id)
    except NotNow:
        return False
    return True


def late_flag(pump: "Round", job: str, attempt: int, token: str) -> None:
    """A runner says it ended: where that attempt was given up as LOST, its flag repairs the verdict."""
    path = pump.spool.entry_path("completed", job, attempt, suffix="flag")
    try:
        with open(path, "rb") as stream:
            lost = stream.read(4) == b"LOST"
    except FileNotFoundError:
        return
    meta = pump.spool.meta_dir(job, attempt)
    if not lost or os.path.isdir(pump.spool.work_dir(job, attempt + 1)) or pump.spool.next_attempt(job, attempt):
        return
    found = marks.read(meta, token)
    outcome = _by_flag(found.flag) if found.flag else arrays.late(meta, job, attempt, token, found)
    if outcome is None:
        return
    job_id = marks.read_id(meta, token).get("id", "")
    record = dict(outcome, ev="repaired", job=job, attempt=attempt, pbs=job_id)
    pump.journal.append(record)
    ending.write_flag(pump.spool, record)
