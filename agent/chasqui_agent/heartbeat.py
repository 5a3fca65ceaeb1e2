"""The heartbeat: one small job with a start time, so that a wake is pending even where no other job of ours is alive.

    heartbeat/hb.<n>       beat n: who creates it may submit it; JSON {"token", "id": "" until known, "made", "due",
                           "ahead"}
    heartbeat/script.<n>   what goes to the scheduler
    heartbeat/reserve.*    the same two of one far ahead, see reserve.py
    heartbeat/output       what the last one printed

Beat n first arms beat n+1, without the lock (hb.<n+1> is created exclusively, so there is one), then pumps. A pump arms
one where none is pending, has it come sooner where slots could not be filled, and deletes it when nothing is left to
wait for. It is no dependent job: PBS deletes those silently once it has forgotten the job they depend on.

Times are the file server's. By the clock of a node that is a quarter of an hour behind, a beat would be due at once,
and so would the one that it arms, without end; by that of one ahead, the pending one would look overdue. How far the
scheduler's own clock is ahead of them, each beat that comes too early tells the next one.
"""

import os
import shlex
import time
from collections import namedtuple

from . import bounds, directives, fault, files, launch, runner, way
from .schedulers.base import NotNow, Request, Sought, Submission, Unreachable
from .spool import new_token
from .state import LATE, State

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Optional

    from .pump import Round
    from .schedulers.base import Scheduler, Snapshot
    from .settings import Settings
    from .spool import Spool

fault.register(
    {
        "heartbeat.arm.before": "the next beat's place taken, the scheduler not yet called",
        "heartbeat.arm.after": "the next beat submitted, its id not yet recorded",
    }
)

CALL_SECONDS = 60.0
HURRY = 2  # query intervals until a beat comes where slots could not be filled: 60 s; the longest E seen took 32 s
LATE_SECONDS = 60.0  # after its time: what is not over by then never came, or waits for a place to run
DOUBT_SECONDS = 50.0  # a beat that may never have arrived; shorter than linger.py stays, and two beats do no harm
STAY_SECONDS = 180.0  # how long one that runs tries to get the next one a place; its walltime is five minutes
NAME = "beat"
RESERVE = 0  # the number of the one far ahead
AHEAD = 48  # intervals until it comes: twelve hours
# Of the last job the scheduler took: a beat must be let in where the jobs are.
COPIED = "qAP"
ELSEWHERE = ("temporary", "permanent", "other")  # refusals after which one is tried without the queue

MOST_AHEAD = 86400.0  # a clock further off than that is not believed
# n: its number; id: "" where not known; made, due: seconds since 1970, due 0 once it came; ahead: seconds
Beat = namedtuple("Beat", "n token id made due ahead")


def enabled(chosen: "Settings", scheduler: "Scheduler", state: "Dict[str, Any]", least: int = 3) -> bool:
    """Whether there is to be one: never where it would take the only place there is, or could not submit anything.
    least: as `has_place`."""
    if way.contact_only(chosen, state):
        return False
    spare = chosen.max_queued > 1 and chosen.max_total not in (1, 2)
    return scheduler.asks_a_server and chosen.heartbeat > 0 and spare and has_place(chosen, state, least)


def has_place(chosen: "Settings", state: "Dict[str, Any]", least: int = 3) -> bool:
    """Whether the limits there, as far as they are known, leave room for so many: the two of a change, and a job. (The
    user's own caps are on her jobs.)"""
    known = bounds.of_state(state, chosen)
    job = known.resolved(bounds.asked(state.get("beat_options", {})))
    # 0 lets nobody in, for a night perhaps: what is there already stays.
    bounds_there = [bound for bound in known.of(job, time.time()) if bound.source != "own"]
    return all(bound.number >= least or not bound.number for bound in bounds_there)


def beats(spool: "Spool") -> "List[Beat]":
    """Those that may be alive, newest last."""
    found = []
    for name in files.names(_folder(spool)):
        kind, _, number = name.partition(".")
        if kind == "hb" and number.isdigit():
            found.append(_read(spool, int(number)))
    return sorted(found)


def reserve(spool: "Spool") -> "List[Beat]":
    """The one far ahead, [] where there is none."""
    return [_read(spool, RESERVE)] if os.path.exists(_path(spool, "hb", RESERVE)) else []


def every(spool: "Spool") -> "List[Beat]":
    """The one far ahead, then `beats`."""
    return reserve(spool) + beats(spool)


def sought(spool: "Spool") -> "List[Sought]":
    """Beats whose id is not known, for the query."""
    return [Sought(b.token, _name(b.token), _folder(spool)) for b in every(spool) if b.token and not b.id]


def in_time(spool: "Spool", now: float) -> "List[str]":
    """The ids of those whose time has not come, and of the one that we are: whether they run nobody needs to ask. Of
    the others it has to be told, as of somebody else's job."""
    own = os.environ.get("PBS_JOBID")
    return [beat.id for beat in every(spool) if beat.id and (beat.due > now or beat.id == own)]


def needed(spool: "Spool") -> bool:
    """Whether anything is left to wait for."""
    late = os.path.exists(os.path.join(spool.wake, LATE))
    return late or spool.has_waiting() or spool.any_on_their_way()


def keep(pump: "Round", snapshot: "Optional[Snapshot]", fresh: bool) -> None:
    """Arm a beat where one is needed and none is pending; delete it where none is. Raises Unreachable."""
    spool = pump.spool
    known = beats(spool)
    if not needed(spool) or not enabled(pump.settings, pump.scheduler, pump.state.value):
        for beat in reserve(spool) + known:
            end(pump, beat, snapshot)
        return
    for beat in known[:-2]:  # there are never more than two, the one that runs and the next
        end(pump, beat, snapshot)
    if known and pending(pump, known[-1], snapshot, fresh):
        return
    answer = arm(spool, pump.settings, pump.scheduler, known[-1].n + 1 if known else 1)
    if answer is not None:
        way.learn(pump, answer)
    for beat in known[:-1]:
        forget(spool, beat)
    if known and not armed(answer):
        _write(spool, known[-1]._replace(due=0.0))  # it is over: not to be taken for one to come


def end(pump: "Round", beat: Beat, snapshot: "Optional[Snapshot]") -> None:
    """Delete a beat that waits. One that runs is left alone: it may be the process that we are."""
    if snapshot and beat.token and not beat.id:
        found = [job.id for job in snapshot.live.values() if job.token == beat.token]
        beat = beat._replace(id=found[0] if found else "")
    job = snapshot.live.get(beat.id) if snapshot else None
    waits = not job.running if job else beat.due > pump.now  # it may be younger than the last query
    if beat.id and waits and beat.id != os.environ.get("PBS_JOBID"):
        pump.lock.check()
        try:
            pump.scheduler.delete(beat.id)
        except NotNow:
            pass  # it comes once, and goes
    forget(pump.spool, beat)


def pending(pump: "Round", beat: Beat, snapshot: "Optional[Snapshot]", fresh: bool) -> bool:
    """Whether a beat is going to come, as far as anybody can know. Notes its id where the scheduler found it."""
    if not beat.token:  # nothing to look for it by: its writer may be at it, or was killed, or found the disk full
        return _may_yet_come(pump.settings, beat, pump.now)
    if snapshot is None or not fresh:
        return _expected(pump.spool, beat, pump.now)
    by_token = {job.token: job for job in snapshot.live.values() if job.token}
    job = snapshot.live.get(beat.id) or by_token.get(beat.token)
    if job is None:
        # An id unknown may still turn up: the submission's reply was lost, or it is on its way.
        asked = snapshot.knows(beat.id or beat.token) or (beat.id and _late(beat, pump.now))
        return not asked or (not beat.id and _may_yet_come(pump.settings, beat, pump.now))
    if not beat.id:
        _write(pump.spool, beat._replace(id=job.id))
    # Where nobody asked whether it runs: one that says its time is over (`beat`, by ssh) is the one that woke us.
    return job.running == 0 and (bool(job.state) or not _late(beat, pump.now))


def arm(spool: "Spool", chosen: "Settings", scheduler: "Scheduler", n: int) -> "Optional[Submission]":
    """Submit beat `n`; how that went, None where somebody else has done it. Needs no lock. Raises OSError where the
    file system fails: then nothing was submitted, or it will be found under its name."""
    os.makedirs(_folder(spool), 0o700, exist_ok=True)
    now, options = files.server_time(spool.wake), _options(spool)
    due = now + 60 * chosen.heartbeat * (AHEAD if n == RESERVE else 1)
    ahead = max([0.0] + [beat.ahead for beat in beats(spool)[-1:]])
    beat = Beat(n, new_token(), "", now, due, ahead)
    try:
        files.write_file(_path(spool, "hb", n), _json(beat), exclusive=True, durable=False)
        request = _request(spool, scheduler, beat, options)
    except FileExistsError:
        return None
    except OSError:
        forget(spool, beat)
        raise
    fault.point("heartbeat.arm.before")
    answer = scheduler.submit(request, CALL_SECONDS)
    if answer.kind in ELSEWHERE and not answer.here and options.pop("q", ""):
        # The queue of the jobs may be closed for longer than any of ours lasts: the site's own choice may not be.
        answer = scheduler.submit(_request(spool, scheduler, beat, options), CALL_SECONDS)
    fault.point("heartbeat.arm.after")
    if answer.kind == "accepted" and _is_gone(_path(spool, "hb", n)):
        _drop(scheduler, answer.id)  # given up meanwhile: nothing is left to wait for, or another one is there
    elif answer.kind == "accepted":
        _write(spool, beat._replace(id=answer.id))
    elif answer.kind != "unknown":
        forget(spool, beat)
    return answer


def _is_gone(path: str) -> bool:
    """Not where the file server only stumbles."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def _drop(scheduler: "Scheduler", job_id: str) -> None:
    try:
        if job_id:
            scheduler.delete(job_id)
    except Unreachable:
        pass  # it comes once, and goes


def beat(spool: "Spool", chosen: "Settings", scheduler: "Scheduler", n: int) -> None:
    """What beat `n` does before it pumps: arm the next one."""
    state, now = State(spool).value, files.server_time(spool.wake)
    if n == RESERVE:
        _is_over(spool, now)
    if not needed(spool) or not enabled(chosen, scheduler, state):
        for one in reserve(spool):  # nobody else may come for twelve hours
            _drop(scheduler, one.id)
            forget(spool, one)
        return
    known = beats(spool)
    if known and known[-1].n != n and _expected(spool, known[-1], now):
        return  # armed already, or given up for another one: each would arm the next for ever
    for own in [one for one in known if one.n == n and one.due]:
        # Whoever pumps meanwhile is not to believe this one to be pending.
        _write(spool, own._replace(due=0.0, ahead=min(MOST_AHEAD, max(0.0, own.ahead + own.due - now))))
    if way.taken(chosen, state).startswith("ssh:"):
        return  # it can't submit: the pump it wakes elsewhere arms the next one
    arm(spool, chosen, scheduler, max([n] + [one.n for one in known]) + 1)


def follows(spool: "Spool", chosen: "Settings", scheduler: "Scheduler", n: int) -> bool:
    """Whether beat `n` may go: another one is in the queue, or none is needed."""
    if not needed(spool) or not enabled(chosen, scheduler, State(spool).value):
        return True
    # A file of our own there makes an NFS client list the folder afresh: another host may have armed the next one.
    now = files.server_time(_folder(spool))
    return any(one.n != n and one.id and _expected(spool, one, now) for one in beats(spool)[-1:])


def armed(answer: "Optional[Submission]") -> bool:
    """Whether there is one, as far as anybody knows."""
    return answer is None or answer.kind in ("accepted", "unknown")


def _is_over(spool: "Spool", now: float) -> None:
    """Forget the one far ahead, unless it is another one by now."""
    for beat in reserve(spool):
        if beat.due <= now + LATE_SECONDS + beat.ahead:
            forget(spool, beat)


def hurry(pump: "Round") -> bool:
    """Have the pending beat come soon: a place in the queue is about to be free, and no job may end to tell us. False
    where none is pending. Raises Unreachable."""
    return _bring_forward(pump.spool, pump.scheduler, HURRY * max(1.0, pump.settings.query_interval))


def put_off(pump: "Round", beat: Beat) -> None:
    """Have the one far ahead come that far ahead from now, if it can be moved. Raises Unreachable."""
    due = pump.now + 60 * pump.settings.heartbeat * AHEAD
    if pump.scheduler.move_start(beat.id, due + beat.ahead):
        _write(pump.spool, beat._replace(due=due))


def _bring_forward(spool: "Spool", scheduler: "Scheduler", seconds: float) -> bool:
    known = beats(spool)
    if not known or not known[-1].id:
        return False
    now = files.server_time(spool.wake)
    when = now + seconds
    if _late(known[-1], now):
        return False
    if known[-1].due > when + 1:
        if not scheduler.move_start(known[-1].id, when + known[-1].ahead):
            return False
        _write(spool, known[-1]._replace(due=when))
    return True


def outlast(spool: "Spool", chosen: "Settings", scheduler: "Scheduler", seconds: float) -> None:
    """Have a beat come as soon as the lock of a holder who may be dead can be taken over, in `seconds`: all who come
    before find it taken and go home, and may be the last. Needs no lock; what can't be done now is left."""
    try:
        known = beats(spool)
        # One without an id may be what the holder was about to submit.
        coming = known and known[-1].id and _expected(spool, known[-1], files.server_time(spool.wake))
        if not coming and needed(spool) and enabled(chosen, scheduler, State(spool).value):
            arm(spool, chosen, scheduler, known[-1].n + 1 if known else 1)
        _bring_forward(spool, scheduler, seconds + 1)
    except (Unreachable, OSError):
        pass


def certain(spool: "Spool", now: float) -> bool:
    """Whether the next beat is known to be in the queue, as far as can be told without asking."""
    return any(beat.id and _expected(spool, beat, now) for beat in beats(spool)[-1:])


def _expected(spool: "Spool", beat: Beat, now: float) -> bool:
    """Whether a beat is still to come, as far as can be told without asking: it is in time, or the last query, made
    since, saw it wait for a place to run."""
    if not _late(beat, now):
        return True
    seen = State(spool).cached_snapshot(now - beat.due) if beat.id and beat.due > 0 else None  # 0: it ran
    job = seen.live.get(beat.id) if seen else None
    return job is not None and bool(job.state) and not job.running


def _late(beat: Beat, now: float) -> bool:
    """Whether a beat is well past its time: over, never there, or without a place to run."""
    return bool(beat.due <= now - LATE_SECONDS)


def _may_yet_come(chosen: "Settings", beat: Beat, now: float) -> bool:
    """Whether a beat whose id nobody knows, and that can't be found, is young enough to be on its way."""
    return now - beat.made < min(chosen.grace, DOUBT_SECONDS)


# -- files -------------------------------------------------------------------------------------------------------------


def _folder(spool: "Spool") -> str:
    return os.path.join(spool.root, "heartbeat")


def _path(spool: "Spool", kind: str, n: int) -> str:
    return os.path.join(_folder(spool), "%s.%d" % (kind, n) if n != RESERVE else "reserve." + kind)


def _read(spool: "Spool", n: int) -> Beat:
    """What is noted of beat `n`; one of which nothing is noted yet counts as made when its file was."""
    try:
        value = files.read_json(_path(spool, "hb", n), {})
        numbers = float(value["made"]), float(value["due"]), float(value.get("ahead", 0.0))
        return Beat(n, str(value["token"]), str(value["id"]), *numbers)
    except (ValueError, KeyError, TypeError):
        made = files.server_time(spool.wake) - (files.file_age(_path(spool, "hb", n), spool.wake) or 0.0)
        return Beat(n, "", "", made, made, 0.0)


def _write(spool: "Spool", beat: Beat) -> None:
    files.replace_file(_path(spool, "hb", beat.n), _json(beat), durable=False)


def _json(beat: Beat) -> bytes:
    return files.dump_json({key: value for key, value in beat._asdict().items() if key != "n"})


def forget(spool: "Spool", beat: Beat) -> None:
    for kind in ("hb", "script"):
        files.remove(_path(spool, kind, beat.n))


# -- the job -----------------------------------------------------------------------------------------------------------


def _name(token: str) -> str:
    return "%s.%s" % (NAME, token)


def _options(spool: "Spool") -> "Dict[str, str]":
    value = State(spool).value.get("beat_options", {})
    return {key: str(value[key]) for key in COPIED if value.get(key)} if isinstance(value, dict) else {}


def options_of(asked: "Dict[str, str]") -> "Dict[str, str]":
    """What a beat copies of a job's directives."""
    return {key: asked[key] for key in COPIED if asked.get(key)}


def _script(spool: "Spool", scheduler: "Scheduler", n: int, options: "Dict[str, str]") -> bytes:
    lines = scheduler.beat_head(options)
    words = launch.command(spool.root) + ["_beat", str(n)]
    given = "PATH=%s LC_ALL=C %s" % (shlex.quote(os.environ.get("PATH", os.defpath)), runner.carried_words())
    lines.append('id=${PBS_JOBID:-${SLURM_JOB_ID:-}}')
    lines.append(
        'exec env -i HOME="$HOME" USER="${USER:-}" LOGNAME="${LOGNAME:-}" PBS_JOBID="$id" %s %s </dev/null'
        % (given, " ".join(shlex.quote(word) for word in words))
    )
    return "\n".join(lines + [""]).encode("utf-8", "surrogateescape")


def _request(spool: "Spool", scheduler: "Scheduler", beat: Beat, options: "Dict[str, str]") -> Request:
    """What to submit; its script is written."""
    script = _script(spool, scheduler, beat.n, options)
    files.write_file(_path(spool, "script", beat.n), script, 0o700, durable=False)
    output = os.path.join(_folder(spool), "output")
    return Request(
        script=_path(spool, "script", beat.n),
        folder=_folder(spool),
        name=_name(beat.token),
        token=beat.token,
        variables=[("CHASQUI_TOKEN", beat.token)],
        output=output,
        error=output,
        join=True,
        hold=False,
        rerun=False,
        directives=directives.asked(script),
        start=beat.due + beat.ahead,
    )
