"""What a round does with the places it finds: it releases held jobs and submits waiting scripts, until refused or full.

What stays empty is a debt, to be paid when the ending jobs that take the places are gone: by the heartbeat, moved
forward, by the head of the next job that starts, or, where the site has no place for a heartbeat, by linger.py.
"""

import os
import time
import zlib

from . import (
    bounds,
    caps,
    dependents,
    directives,
    fault,
    files,
    heartbeat,
    live,
    marks,
    passing,
    reserve,
    site_limits,
    submit,
    way,
)
from .schedulers.base import EVERYWHERE, NotNow, Unreachable

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Tuple

    from .pump import Round
    from .schedulers.base import Snapshot, Submission
    from .spool import Entry

fault.register(
    {
        "fill.release.before": "a held job recorded as released, the scheduler not yet called",
        "fill.release.after": "the scheduler released it, not yet journalled",
    }
)

DEBT_SECONDS = 5.0  # a normal end is gone from the server after 0.3 s, the longest seen took 32
LEAST_SECONDS = 2.0  # no submission is begun with less: killed halfway, its outcome is unknown
LOOK_FURTHER = 200  # scripts looked at beyond those that fit, where a queue is full; more where it is closed
MAX_CALLS = 300  # of the scheduler, in 60 seconds, by all pumps of a root
AHEAD_CALLS = MAX_CALLS // 2  # from so many on none is spent on a job that can't run yet, and has to be released
MAX_DOUBTED = 10  # scripts refused in the same words before the queue itself is taken to be closed
ENDS_SECONDS = 600.0  # without another end: what is still counted then stands in E for long, or is half of an array
SPARE_CALLS = 20  # calls a round may need besides submissions and releases


def fill(pump: "Round", standing: "List[live.Standing]", snapshot: "Snapshot", fresh: bool) -> None:
    """Release held jobs and submit waiting scripts, as many as the caps and the site allow; see to it that places which
    could not be filled now are filled later. Raises Unreachable."""
    noted = pump.report["note"]  # of a job whose node does not answer: nothing that a pump a minute would mend
    # Left to the site, max_running is no cap of ours: nothing is held, and what is held is released.
    most_running = pump.settings.max_running if pump.settings.running_cap == "hold" else 10**9
    limits = caps.Caps(most_running, pump.settings.max_queued, pump.settings.max_total)
    in_flight = [(one.path, _size(pump, directives.asked_in(one.path))) for one in live.in_flight(pump.spool)]
    submitting = sum(size for _, size in in_flight)
    known, spare = [beat.id for beat in heartbeat.every(pump.spool)], len(heartbeat.reserve(pump.spool))
    limited, options = bounds.of_state(pump.state.value, pump.settings), pump.state.value.get("beat_options")
    counted = [job for job in standing if not job.member]
    site = site_limits.Site(limited, pump.now, counted, in_flight, snapshot, fresh, known, options)
    has_beat = heartbeat.enabled(pump.settings, pump.scheduler, pump.state.value)
    again = [job for job in standing if _may_start_again(pump, job)]
    over = [job._replace(marks=job.marks._replace(flag=None)) if job in again else job for job in standing]
    counts = live.count(over, submitting, snapshot, known if has_beat else None, spare)
    plan = caps.plan(counts, limits, pump.state.value.get("turns"))
    places = min(int(limits.max_queued), plan.queue.left)
    passed = passing.Passed(pump.state.value.pop("passed", ()), pump.state.value.pop("looked", ""))
    todo = _first_waiting(pump, int(limits.max_queued), places, limits, int(has_beat), site, passed)
    reserve.keep(pump, plan, site, todo, snapshot, fresh)
    before = pump.report["submitted"]
    _release_first(pump, [job for job in standing if job.held and not job.marks.runs], plan)
    try:
        refused = _submit(pump, todo, plan, site, passed)
    finally:
        pump.behind.finish()
    _note_refusal(pump)
    if passed.left():
        pump.state.value.update(passed=passed.left(), looked=passed.looked())
    others = passed.new() or passed.further
    if passed.let_in() or (others and passed.unread and plan.queue.left):
        pump.report["unfinished"] = True  # the others of its kind; those behind it
    if pump.settings.bundle > 1 and plan.queue.left and site.held_back and pump.report["submitted"] > before:
        pump.report["unfinished"] = True  # what was read may all be for a queue that is full by now: others' is next
    if not plan.queue.left:
        site.held_back.clear()  # no place there would help
    _note_limits(pump, site)
    pump.state.value["turns"] = {kind: places.turn for kind, places in plan._asdict().items()}
    ends = _ends_now(pump, standing, snapshot)
    # PBS counts an ending job until it is quite gone: 32 s were seen. So does max_total.
    more = limits.max_total and not plan.queue.left and _scripts(todo) > pump.report["submitted"] - before
    no_place = bool((refused in ("limit", "temporary") and plan.queue.left) or site.held_back or more)
    waits = ends and (no_place or bool(again)) or pump.put_off or dependents.expected(pump.spool, standing)
    silent = pump.report["note"] not in ("", noted, way.REFUSED)
    _note_debt(pump, waits)
    alone = has_beat and heartbeat.needed(pump.spool) and not _wake_is_certain(pump, standing)
    owe(pump, (waits or silent or alone) and not heartbeat.hurry(pump))
    if has_beat and known and not heartbeat.enabled(pump.settings, pump.scheduler, pump.state.value):
        pump.report["unfinished"] = True  # only now it is known that the site has no place for a heartbeat


def _may_start_again(pump: "Round", job: "live.Standing") -> bool:
    """Whether a job that was told to end, and has, may have been put back by the scheduler to be started once more."""
    if not (job.marks.term and job.marks.flag):
        return False
    return bool(pump.spool.job_record(job.entry.job, job.entry.attempt).get("rerun"))


def _ends_now(pump: "Round", standing: "List[live.Standing]", snapshot: "Snapshot") -> bool:
    """Whether places are about to be free. state.json "flagged": [which payloads are over, and which jobs to be
    deleted, that are still in the scheduler, as one number; since when it has been these]."""
    over = ["%s.%d" % (job.entry.token, job.flagged) for job in standing if job.flagged]
    closed = set(pump.state.closed)
    over += set(pump.state.delete).union(job.id for job in snapshot.live.values() if job.token in closed)
    which = zlib.crc32(" ".join(sorted(over)).encode("utf-8", "replace")) & 0xFFFFFFFF
    before = pump.state.value.get("flagged")
    since = before[1] if before and before[0] == which else pump.now
    pump.state.value["flagged"] = [which, since]
    own = any(job.id == os.environ.get("PBS_JOBID") for job in standing)
    return own or (bool(over) and pump.now - since < ENDS_SECONDS)


def _note_refusal(pump: "Round") -> None:
    """state.json "refused": [the scheduler's words, since when it has used them], for those who ask later."""
    text = pump.report["refused"]
    before = pump.state.value.pop("refused", None)
    if text:
        since = before[1] if before and before[0] == text else pump.now
        pump.state.value["refused"] = [text, since]


def _note_limits(pump: "Round", site: site_limits.Site) -> None:
    """state.json "held_back": the limits that kept scripts back in this round, as bounds.told reads them."""
    if site.doubt:
        pump.state.value["published"]["doubt"] = True
    pump.state.value.pop("held_back", None)
    if site.held_back:
        rows = [list(place) + [bound.number, bound.source] for place, bound in sorted(site.held_back.items())]
        pump.state.value["held_back"] = rows


def _size(pump: "Round", asked: "Dict[str, str]") -> int:
    """How many jobs a script counts as."""
    return max(1, len(directives.elements(asked))) if pump.scheduler.has_arrays else 1


def _wake_is_certain(pump: "Round", standing: "List[live.Standing]") -> bool:
    """Whether the heartbeat is known to be in the queue, or a job of ours that will end: not where each request was
    sent, and nobody knows whether it arrived."""
    if heartbeat.certain(pump.spool, pump.now):
        return True
    return pump.report["submitted"] > 0 or any(not job.held and job.flagged < job.size for job in standing)


def _note_debt(pump: "Round", waits: bool) -> None:
    """wake/debt: when the next runner that starts shall look whether the places of ending jobs are free by now."""
    path = os.path.join(pump.spool.wake, "debt")
    if waits:
        due = files.server_time(pump.spool.wake) + DEBT_SECONDS
        files.write_file(path, b"%d\n" % due, durable=False)
    else:
        files.remove(path)


def owe(pump: "Round", debt: bool) -> None:
    """Remember whether places are left that a process of its own has to fill, for want of a heartbeat."""
    pump.report["debt"] = pump.state.value["debt"] = debt and pump.scheduler.asks_a_server


def _has_time(pump: "Round") -> bool:
    """Whether the budget has room for a submission; else there will be another round."""
    enough = pump.scheduler.deadline - time.monotonic() >= LEAST_SECONDS
    pump.report["unfinished"] = pump.report.get("unfinished", False) or not enough
    return enough


def _release_first(pump: "Round", held: "List[live.Standing]", plan: caps.Plan) -> None:
    for job in held:
        if not plan.payloads.take(_name(job.entry), job.size):
            continue
        if not pump.may_call():
            return
        try:
            _release(pump, job)
        except NotNow:
            continue  # the next good query shows that it is still held


def _submit(
    pump: "Round",
    todo: "List[Tuple[Entry, int]]",
    plan: caps.Plan,
    site: site_limits.Site,
    passed: passing.Passed,
) -> str:
    """Submit until the room is used or the scheduler says stop; the kind of refusal that was its last word, or "".

    A script refused for good goes to rejected/. One that is refused in the very words of the last one is doubted
    first: where a queue is closed, every script is refused, and a batch must not be emptied for that. The next ones
    are tried, and then those that ask for something else; when one is accepted it was the scripts after all, else they
    all stay.
    """
    last = ""
    pump.report["refused"] = ""
    doubted: "List[Entry]" = []
    for position, (entry, size) in enumerate(todo):
        if not plan.queue.left or pump.behind.failed:
            break
        if passed.over(entry.path):
            continue
        asked = site.asked_in(entry.path)
        if not site.room(asked, size):
            if size > 1 and site.ever(asked, size) and plan.queue.keeps(_name(entry)):
                break
            continue
        if not plan.queue.take(_name(entry), size):
            continue
        if pump.lock.time_left() < pump.settings.lease / 50:
            pump.report["unfinished"] = True  # give the lock back and take it again
            break
        if not (pump.may_call() and _has_time(pump)):
            break
        free = plan.payloads.take(_name(entry), size)
        if not free and pump.calls() >= AHEAD_CALLS:
            plan.queue.give_back(size)
            continue
        following = todo[position + 1][0] if todo[position + 1 :] and plan.queue.left else None
        answer = _submit_one(pump, entry, not free, following)
        passed.answered(entry.path, answer)
        if answer.kind != "accepted":
            plan.queue.give_back(size)
            plan.payloads.give_back(size if free else 0)
        if answer.kind == "accepted":
            site.accepted(asked, size)
            pump.report["submitted"] += _scripts([(entry, size)])
            _reject_doubted(pump, doubted, passed)
            doubted = []
            pump.state.value["rejected"] = ""
        elif answer.kind in ("apart", "late"):  # of a bundle; there is another round at once
            pump.report["unfinished"] = True
            break
        elif answer.kind == "permanent":
            pump.report["rejected"] += 1
            pump.state.value["rejected"] = answer.text
            passed.further = True
        elif answer.kind == "unfit":
            pump.report["rejected"] += 1
        else:
            pump.report["refused"], last = answer.text, answer.kind
            if answer.learn is not None:
                site.refused(answer.learn)
            elif answer.shared:
                site.refused_shared(answer.shared[0], answer.shared[1], asked)
            if answer.kind == "limit" and size > 1 and not plan.queue.keeps(_name(entry)):
                continue  # the site may have room for single jobs, and perhaps never for this one
            if answer.kind == "doubted":
                doubted.append(entry)
                if len(doubted) >= MAX_DOUBTED and not passed.doubted([one.path for one in doubted]):
                    break
            elif answer.learn in (None, EVERYWHERE) and not answer.shared:
                # Of a bundle nobody knows whether one of its jobs would be refused, too.
                if pump.settings.bundle > 1 or not passed.refused(entry.path, answer, size):
                    break
    if len(doubted) == len(todo) == 1 and not passed.unread and passed.alone(doubted[0].path):
        _reject_doubted(pump, doubted, passed)  # nothing else waits that could be spoilt
    return last


def _submit_one(pump: "Round", entry: "Any", hold: bool, following: "Any") -> "Submission":
    """submit.submit, or what it is to a bundle."""
    if hasattr(entry, "members"):
        from . import bundle

        return bundle.submit_group(pump, entry, hold)
    return submit.submit(pump, entry, hold, None if hasattr(following, "members") else following)


def _scripts(todo: "List[Tuple[Any, int]]") -> int:
    return sum(len(getattr(entry, "members", (entry,))) for entry, _ in todo)


def _reject_doubted(pump: "Round", doubted: "List[Entry]", passed: passing.Passed) -> None:
    _reject(pump, doubted, pump.state.last_rejected())
    for entry in doubted:
        passed.rejected_after_all(entry.path)


def _reject(pump: "Round", refused: "List[Entry]", text: str) -> None:
    """Reject scripts that were refused in these words and put back."""
    for entry in refused:
        submit.reject_waiting(pump, entry, text)
        pump.report["rejected"] += 1
        pump.report["refused"] = ""


def _first_waiting(
    pump: "Round",
    most: int,
    places: int,
    limits: caps.Caps,
    beats: int,
    site: site_limits.Site,
    passed: passing.Passed,
) -> "List[Tuple[Entry, int]]":
    """The next scripts to submit, at most `most`, or as bundles for these places and one beyond; each with how many
    elements it is. One that asks for `#PBS -h` goes to held/ on
    the way, an array that no cap has room for to rejected/; empty shards go."""
    found: "List[Tuple[Entry, int]]" = []
    further = LOOK_FURTHER
    bundles = pump.settings.bundle > 1
    if pump.state.last_rejected():
        most = max(most, MAX_DOUBTED + 1)  # one that is refused in these words takes no place of the next
    most = places * int(pump.settings.bundle) + 1 if bundles else most
    for shard in list(pump.spool.shards()):
        if passed.unread:
            break
        entries = pump.spool.shard_entries(shard)
        if not entries:
            _remove_folder(shard)
        for entry in entries:
            passed.unread = len(found) - passed.again >= most or (further <= 0 and passed.stops(entry.path))
            if passed.unread:
                break
            if further <= 0 and passed.seen(entry.path):
                continue
            read = directives.asked_in(entry.path)
            asked, size = site.asked_in(entry.path, read), _size(pump, read)
            why = caps.too_large(size, beats, limits) or _over_own(site, asked, size)
            if _wants_hold(pump, entry, read):
                pump.journal.append({"ev": "held", "job": entry.job, "attempt": entry.attempt, "why": "#PBS -h"})
                files.move(entry.path, pump.spool.entry_path("held", entry.job, entry.attempt))
            elif why:
                _reject(pump, [entry], why)
            elif site.partial and not site.room(asked, size):
                further -= 1  # its queue is full: others' may not be
                site.arrays += [(asked, size)] if size > 1 else []
            elif not passed.only_one(entry.path):
                further -= 1
            else:
                found.append((entry, size))
                if further <= 0:
                    passed.reached(entry.path)
                if not bundles:  # how many places they take is known when they are put together
                    site.took(asked, size)
    site.forget_taken()
    if bundles:
        from . import bundle_kinds

        found = bundle_kinds.grouped(pump, found)[: places + 1]
    return found


def _over_own(site: site_limits.Site, asked: bounds.Asked, size: int) -> str:
    """Why an array can never be submitted under the user's own caps by queue, project and account; "" if it can."""
    if size == 1:
        return ""
    own = [bound for bound in site.known.owned() if bound.place.holds(asked)]
    whys = [caps.too_large_for(size, 0, bounds.name_of(bound.place), bound.number) for bound in own]
    return next((why for why in whys if why), "")


def _wants_hold(pump: "Round", entry: "Entry", asked: "Dict[str, str]") -> bool:
    mark = os.path.join(pump.spool.meta_dir(entry.job, entry.attempt), "released")
    return "h" in asked and not os.path.exists(mark)


def _release(pump: "Round", job: "live.Standing") -> None:
    # Recorded first: from here on it counts as one that may start at any moment, whatever the call's outcome.
    marks.write_id(job.meta, job.entry.token, job.id, False)
    pump.lock.check()
    fault.point("fill.release.before")
    try:
        pump.scheduler.release(job.id)
    except Unreachable:
        pump.state.value["holds"] = 0  # the next good round shows whether it is still held
        raise
    fault.point("fill.release.after")
    if not live.is_bundle(job.entry):
        pump.journal.append({"ev": "released", "job": job.entry.job, "attempt": job.entry.attempt, "pbs": job.id})
    pump.report["released"] += 1


def _name(entry: "Entry") -> str:
    return "%s.%d" % (entry.job, entry.attempt)


def _remove_folder(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass  # somebody put a script there meanwhile
