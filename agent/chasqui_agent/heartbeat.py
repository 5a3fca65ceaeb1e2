"""The heartbeat: one small job with a start time, so that a wake is pending even where no other job of ours is alive.

    heartbeat/hb.<n>       beat n: who creates it may submit it; JSON {"token", "id": "" until known, "made", "due"}
    heartbeat/script.<n>   what goes to the scheduler
    heartbeat/output       what the last one printed

Beat n first arms beat n+1, without the lock (hb.<n+1> is created exclusively, so there is one), then pumps. A pump arms
one where none is pending, has it come sooner where slots could not be filled, and deletes it when nothing is left to
wait for. It is no dependent job: PBS deletes those silently once it has forgotten the job they depend on.

Times are the file server's. By the clock of a node that is a quarter of an hour behind, a beat would be due at once,
and so would the one that it arms, without end; by that of one ahead, the pending one would look overdue.
"""

import os
import shlex
import time
from collections import namedtuple

from . import bounds, directives, fault, files, launch, runner, way
from .schedulers.base import Request, Sought, Submission, Unreachable
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
# Of the last job the scheduler took: a beat must be let in where the jobs are.
COPIED = "qAP"

# n: its number; id: "" where not known; made, due: seconds since 1970
Beat = namedtuple("Beat", "n token id made due")


def enabled(chosen: "Settings", scheduler: "Scheduler", state: "Dict[str, Any]") -> bool:
    """Whether there is to be one: never where it would take the only place there is, or could not submit anything."""
    if way.contact_only(chosen, state):
        return False
    spare = chosen.max_queued > 1 and chosen.max_total not in (1, 2)
    return scheduler.asks_a_server and chosen.heartbeat > 0 and spare and has_place(chosen, state)


def has_place(chosen: "Settings", state: "Dict[str, Any]") -> bool:
    """Whether the limits there, as far as they are known, leave room for the two of a change and a job. (The user's own
    caps are on her jobs.)"""
    known = bounds.of_state(state, chosen)
    job = known.resolved(bounds.asked(state.get("beat_options", {})))
    # 0 lets nobody in, for a night perhaps: what is there already stays.
    bounds_there = [bound for bound in known.of(job, time.time()) if bound.source != "own"]
    return all(bound.number >= 3 or not bound.number for bound in bounds_there)


def beats(spool: "Spool") -> "List[Beat]":
    """Those that may be alive, newest last."""
    found = []
    for name in files.names(_folder(spool)):
        kind, _, number = name.partition(".")
        if kind == "hb" and number.isdigit():
            found.append(_read(spool, int(number)))
    return sorted(found)


def sought(spool: "Spool") -> "List[Sought]":
    """Beats whose id is not known, for the query."""
    return [Sought(b.token, _name(b.token), _folder(spool)) for b in beats(spool) if b.token and not b.id]


def in_time(spool: "Spool", now: float) -> "List[str]":
    """The ids of those whose time has not come, or only just: whether they run nobody needs to ask. Of one that is late
    it has to be told, as of somebody else's job."""
    return [beat.id for beat in beats(spool) if beat.id and not _late(beat, now)]


def needed(spool: "Spool") -> bool:
    """Whether anything is left to wait for."""
    late = os.path.exists(os.path.join(spool.wake, LATE))
    return late or spool.has_waiting() or spool.any_on_their_way()


def keep(pump: "Round", snapshot: "Optional[Snapshot]", fresh: bool) -> None:
    """Arm a beat where one is needed and none is pending; delete it where none is. Raises Unreachable."""
    spool = pump.spool
    known = beats(spool)
    if not needed(spool) or not enabled(pump.settings, pump.scheduler, pump.state.value):
        for beat in known:
            _end(pump, beat, snapshot)
        return
    for beat in known[:-2]:  # there are never more than two, the one that runs and the next
        _forget(spool, beat)
    if known and _pending(pump, known[-1], snapshot, fresh):
        return
    answer = arm(spool, pump.settings, pump.scheduler, known[-1].n + 1 if known else 1)
    if answer is not None:
        way.learn(pump, answer)
    for beat in known[:-1]:
        _forget(spool, beat)


def _end(pump: "Round", beat: Beat, snapshot: "Optional[Snapshot]") -> None:
    """Delete a beat that waits. One that runs is left alone: it may be the process that we are."""
    job = snapshot.live.get(beat.id) if snapshot else None
    waits = not job.running if job else beat.due > pump.now  # it may be younger than the last query
    if beat.id and waits and beat.id != os.environ.get("PBS_JOBID"):
        pump.scheduler.delete(beat.id)
    _forget(pump.spool, beat)


def _pending(pump: "Round", beat: Beat, snapshot: "Optional[Snapshot]", fresh: bool) -> bool:
    """Whether a beat is going to come, as far as anybody can know. Notes its id where the scheduler found it."""
    if not beat.token:  # nothing to look for it by: its writer may be at it, or was killed, or found the disk full
        return _may_yet_come(pump.settings, beat, pump.now)
    if snapshot is None or not fresh:
        seen = snapshot.live.get(beat.id) if snapshot else None
        waits = seen is not None and not seen.running and beat.due > 0  # 0: it ran, and woke us by ssh
        return waits or not _late(beat, pump.now)
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
    now = files.server_time(spool.wake)
    beat = Beat(n, new_token(), "", now, now + 60 * chosen.heartbeat)
    try:
        files.write_file(_path(spool, "hb", n), _json(beat), exclusive=True, durable=False)
        script = _script(spool, scheduler, n)
        files.write_file(_path(spool, "script", n), script, 0o700, durable=False)
    except FileExistsError:
        return None
    except OSError:
        _forget(spool, beat)
        raise
    fault.point("heartbeat.arm.before")
    answer = scheduler.submit(_request(spool, beat, script), CALL_SECONDS)
    fault.point("heartbeat.arm.after")
    if answer.kind == "accepted":
        _write(spool, beat._replace(id=answer.id))
    elif answer.kind != "unknown":
        _forget(spool, beat)
    return answer


def beat(spool: "Spool", chosen: "Settings", scheduler: "Scheduler", n: int) -> bool:
    """What beat `n` does before it pumps; whether the next one is armed, or is not needed."""
    state = State(spool).value
    if not needed(spool) or not enabled(chosen, scheduler, state):
        return True
    if not os.path.exists(_path(spool, "hb", n)) and beats(spool):
        return True  # given up, and another one armed instead: each would arm the next for ever
    if way.taken(chosen, state).startswith("ssh:"):
        # It can't submit. The pump it wakes elsewhere arms the next one, if it does not believe this one to be pending.
        if os.path.exists(_path(spool, "hb", n)):
            _write(spool, _read(spool, n)._replace(due=0.0))
        return True
    answer = arm(spool, chosen, scheduler, n + 1)
    return answer is None or answer.here or answer.kind in ("accepted", "unknown")


def hurry(pump: "Round") -> bool:
    """Have the pending beat come soon: a place in the queue is about to be free, and no job may end to tell us. False
    where none is pending. Raises Unreachable."""
    return _bring_forward(pump.spool, pump.scheduler, HURRY * max(1.0, pump.settings.query_interval))


def _bring_forward(spool: "Spool", scheduler: "Scheduler", seconds: float) -> bool:
    known = beats(spool)
    if not known or not known[-1].id:
        return False
    now = files.server_time(spool.wake)
    when = now + seconds
    if _late(known[-1], now):
        return False
    if known[-1].due > when + 1:
        if not scheduler.move_start(known[-1].id, when):
            return False
        _write(spool, known[-1]._replace(due=when))
    return True


def outlast(spool: "Spool", chosen: "Settings", scheduler: "Scheduler", seconds: float) -> None:
    """Have a beat come as soon as the lock of a holder who may be dead can be taken over, in `seconds`: all who come
    before find it taken and go home, and may be the last. Needs no lock; what can't be done now is left."""
    try:
        known = beats(spool)
        # One without an id may be what the holder was about to submit.
        pending = known and known[-1].id and not _late(known[-1], files.server_time(spool.wake))
        pending = pending or (known and _seen_waiting(spool, known[-1]))
        if not pending and needed(spool) and enabled(chosen, scheduler, State(spool).value):
            arm(spool, chosen, scheduler, known[-1].n + 1 if known else 1)
        _bring_forward(spool, scheduler, seconds + 1)
    except (Unreachable, OSError):
        pass


def _seen_waiting(spool: "Spool", beat: Beat) -> bool:
    """Whether the last query, however old, saw a late beat wait for a place to run: it is still to come."""
    seen = State(spool).cached_snapshot(float("inf"))
    job = seen.live.get(beat.id) if seen and beat.id and beat.due > 0 else None
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
    return os.path.join(_folder(spool), "%s.%d" % (kind, n))


def _read(spool: "Spool", n: int) -> Beat:
    """What is noted of beat `n`; one of which nothing is noted yet counts as made when its file was."""
    try:
        value = files.read_json(_path(spool, "hb", n), {})
        return Beat(n, str(value["token"]), str(value["id"]), float(value["made"]), float(value["due"]))
    except (ValueError, KeyError, TypeError):
        made = files.server_time(spool.wake) - (files.file_age(_path(spool, "hb", n), spool.wake) or 0.0)
        return Beat(n, "", "", made, made)


def _write(spool: "Spool", beat: Beat) -> None:
    files.replace_file(_path(spool, "hb", beat.n), _json(beat), durable=False)


def _json(beat: Beat) -> bytes:
    return files.dump_json({"token": beat.token, "id": beat.id, "made": beat.made, "due": beat.due})


def _forget(spool: "Spool", beat: Beat) -> None:
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


def _script(spool: "Spool", scheduler: "Scheduler", n: int) -> bytes:
    lines = scheduler.beat_head(_options(spool))
    words = launch.command(spool.root) + ["_beat", str(n)]
    given = "PATH=%s LC_ALL=C %s" % (shlex.quote(os.environ.get("PATH", os.defpath)), runner.carried_words())
    lines.append('id=${PBS_JOBID:-${SLURM_JOB_ID:-}}')
    lines.append(
        'exec env -i HOME="$HOME" USER="${USER:-}" LOGNAME="${LOGNAME:-}" PBS_JOBID="$id" %s %s </dev/null'
        % (given, " ".join(shlex.quote(word) for word in words))
    )
    return "\n".join(lines + [""]).encode("utf-8", "surrogateescape")


def _request(spool: "Spool", beat: Beat, script: bytes) -> Request:
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
        start=beat.due,
    )
