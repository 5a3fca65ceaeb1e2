"""Cancel, hold and release: left as files in wake/ by sessions and by hand, applied once by the next pump.

wake/op.<id>   {"id", "op": "cancel"|"hold"|"release", "job", "attempt" (0: the newest), "why"}
"""

import os
import re

from . import dependents, ending, fault, files, live, marks, reconcile, spoiled
from .schedulers.base import Unreachable
from .spool import Entry, random_name

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Optional

    from .pump import Round
    from .spool import Spool

fault.register(
    {
        "operations.request.after": "the request durable in wake/, not yet applied",
        "operations.applied": "an operation carried out, its request still in wake/",
    }
)

KINDS = ("cancel", "hold", "release")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


def request(spool: "Spool", operation: "Dict[str, Any]") -> None:
    """Leave an operation for the next pump, durably; the same id twice is one operation. Raises ValueError for a bad
    one."""
    wrong = check(operation)
    if wrong:
        raise ValueError(wrong)
    files.write_json(os.path.join(spool.wake, "op." + operation["id"]), operation)
    fault.point("operations.request.after")


def check(operation: "Dict[str, Any]") -> str:
    """What is wrong with an operation from outside, "" where nothing is."""
    from .spool import JOB

    if not _ID.match(str(operation.get("id", ""))) or operation.get("op") not in KINDS:
        return "an operation without a good id or kind"
    if not JOB.match(str(operation.get("job", ""))) or not isinstance(operation.get("attempt"), int):
        return "an operation without a good job and attempt"
    return ""


def by_hand(spool: "Spool", op: str, job: str) -> str:
    """Ask for an operation on the newest attempt of a job from the command line; its id."""
    operation = {"id": random_name(16), "op": op, "job": job, "attempt": 0, "why": "by hand"}
    request(spool, operation)
    return str(operation["id"])


def pending(spool: "Spool") -> "List[Dict[str, Any]]":
    """The operations asked for and not yet done, each with its "file"; oldest first."""
    found = []
    for name in files.names(spool.wake):
        path = os.path.join(spool.wake, name)
        if not name.startswith("op."):
            continue
        try:
            operation = files.read_json(path, {})
        except ValueError:
            operation = {}
        if isinstance(operation, dict) and not check(operation):
            found.append((os.stat(path).st_mtime, dict(operation, file=path)))
        else:
            files.remove(path)
    return [operation for _, operation in sorted(found, key=lambda item: item[0])]


def apply(pump: "Round") -> "List[str]":
    """Carry out what was asked for; the request files that are done with. One the scheduler has to answer for stays."""
    done = []
    index: "Optional[Dict[Any, Entry]]" = None
    for operation in pending(pump.spool):
        if operation["id"] not in pump.state.operations:
            index = pump.spool.find_waiting() if index is None else index
            try:
                note = _apply_one(pump, operation, index)
            except Unreachable as error:
                pump.report["note"] = str(error)
                continue
            pump.state.operations.append(operation["id"])
            pump.state.save()
            pump.report["operations"][operation["id"]] = note
        fault.point("operations.applied")
        done.append(operation["file"])
    return done


def _apply_one(pump: "Round", operation: "Dict[str, Any]", index: "Dict[Any, Entry]") -> str:
    """Carry out one operation; "" or why nothing was done."""
    job, op = operation["job"], operation["op"]
    attempt = operation["attempt"] or _newest_attempt(pump.spool, job)
    attempt = pump.spool.final_attempt(job, attempt)  # she may not know yet of a retry that the relay made
    entry = index.get((job, attempt)) or pump.spool.find_dependent(job, attempt)
    if entry is not None and os.path.lexists(entry.path):
        return _waiting(pump, entry, op, operation, index)
    for entry in pump.spool.entries("held"):
        if (entry.job, entry.attempt) == (job, attempt):
            return _held(pump, entry, op, operation)
    for state in ("submitted", "submitting"):
        for entry in pump.spool.entries(state):
            if (entry.job, entry.attempt) == (job, attempt):
                return _in_scheduler(pump, entry, op, operation)
    return "%s is not waiting, held or running" % job


def _newest_attempt(spool: "Spool", job: str) -> int:
    attempt = 1
    while os.path.isdir(spool.work_dir(job, attempt + 1)):
        attempt += 1
    return attempt


def _say(pump: "Round", event: str, entry: Entry, operation: "Dict[str, Any]") -> None:
    record = {"ev": event, "job": entry.job, "attempt": entry.attempt, "op": operation["id"]}
    record["why"] = str(operation.get("why") or "asked for")
    pump.journal.append(record)


def _waiting(pump: "Round", entry: Entry, op: str, operation: "Dict[str, Any]", index: "Dict[Any, Entry]") -> str:
    if op == "release":
        return "%s is not held" % entry.job
    if op == "cancel":
        _cancel(pump, entry, operation)
    else:
        _say(pump, "held", entry, operation)
        files.move(entry.path, pump.spool.entry_path("held", entry.job, entry.attempt))
    index.pop((entry.job, entry.attempt), None)
    return ""


def _held(pump: "Round", entry: Entry, op: str, operation: "Dict[str, Any]") -> str:
    if op == "hold":
        return "%s is held already" % entry.job
    if op == "cancel":
        _cancel(pump, entry, operation)
        return ""
    # The mark outlives the move: a `#PBS -h` in the script holds it once, not again after she released it.
    _mark_released(pump.spool.meta_dir(entry.job, entry.attempt))
    _say(pump, "released", entry, operation)
    if _waits_for_others(pump.spool, entry):
        dependents.place(pump, [entry])
    else:
        files.move(entry.path, pump.spool.requeue_path(entry, pump.rank_of(entry)))
    return ""


def _waits_for_others(spool: "Spool", entry: Entry) -> bool:
    try:
        return bool(spool.own_record(entry.job, entry.attempt).get("after"))
    except ValueError:
        return True  # nobody knows: it is blocked for that, rather than run too early


def _mark_released(meta: str) -> None:
    try:
        spoiled.let_in(meta, lambda: files.write_file(os.path.join(meta, "released"), b""))
    except OSError as error:
        if not spoiled.gone(error):
            raise  # else it is rejected for that when its turn comes


def _cancel(pump: "Round", entry: Entry, operation: "Dict[str, Any]") -> None:
    """Cancel what the scheduler does not have."""
    _say(pump, "cancelled", entry, operation)
    ending.forget_inputs(pump.spool, entry.job, entry.attempt)
    files.move(entry.path, pump.spool.entry_path("cancelled", entry.job, entry.attempt))


def _in_scheduler(pump: "Round", entry: Entry, op: str, operation: "Dict[str, Any]") -> str:
    """Cancel or hold what was submitted: by closing its token where it has not started, else (cancel) by killing it."""
    if op == "release":
        return "%s is not held" % entry.job
    meta = pump.spool.meta_dir(entry.job, entry.attempt)
    job_id = marks.read_id(meta, entry.token).get("id", "")
    member = entry.token in live.bundled(pump.spool)  # the job in the scheduler is the others', too
    spoilt = not job_id and (os.path.dirname(entry.path) == pump.spool.submitted or not spoiled.names(meta))
    if spoilt or pump.close_token(meta, entry.token):
        if op == "hold":
            return "%s has started; it can be cancelled, not held" % entry.job
        if spoilt:
            job_id = "" if member else pump.id_of(entry)
            pump.state.closed.append(entry.token)  # there is no place for a mark in its folder
        else:
            marks.ask_to_cancel(meta, entry.token)
        if job_id and not member:
            pump.delete(job_id)
        return ""
    if job_id and not member:
        pump.state.delete.append(job_id)
        pump.state.save()
    if op == "cancel":
        standing = live.Standing(entry, meta, job_id, False, marks.read(meta, entry.token))
        reconcile.cancelled(pump, standing, str(operation.get("why") or "asked for"), None)
    else:
        _say(pump, "held", entry, operation)
        files.move(entry.path, pump.spool.entry_path("held", entry.job, entry.attempt))
    return ""
