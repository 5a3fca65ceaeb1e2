"""How an attempt ends: one rename says that it does and how; flag, journal and the last rename follow from that.

    ending/<job>.<attempt>.<token>.<generation>.json   what the end is to be, written first by that lock holder
    ending/<job>.<attempt>.<token>.<generation>.sh     the script: its rename to here begins the end the .json tells of
    ending/<job>.<attempt>.<token>.<generation>.next   where the job is tried again: the next attempt's (retries.py)

Who renames the script ends the attempt; a pump that was frozen past its lease finds nothing left to rename, and its
record is never read. Whoever finds a script here finishes that end, as often as it takes.
"""

import json
import os

from . import fault, files, spoiled
from .spool import RETRIES

MYPY = False
if MYPY:
    from typing import Any, Dict, Optional

    from .pump import Round
    from .spool import Entry, Spool

fault.register(
    {
        "ending.record.after": "what the end is to be is written, the script not yet renamed",
        "ending.begun": "the script in ending/, neither flag nor journal say so yet",
        "ending.flag.after": "the end's own file written (flag, or the scheduler's words), not yet journalled",
        "ending.told": "journalled, the script still in ending/",
    }
)


def begin(
    pump: "Round",
    entry: "Entry",
    state: str,
    record: "Dict[str, Any]",
    final: "Dict[str, Any]",
    following: "Optional[Dict[str, Any]]" = None,
) -> None:
    """End an attempt whose script is in submitting/ or submitted/.

    state: the folder that tells of it: completed, cancelled or rejected; record: for the journal, and the source of
    completed/<job>.<attempt>.flag or rejected/<job>.<attempt>.err; final: for final.json of the work folder; following:
    the next attempt, as `retries.following` describes it. Raises FileNotFoundError where somebody else has ended it, or
    given it back, meanwhile; with `following` Lost.
    """
    path = _path(pump, entry)
    if following:
        files.write_file(path[: -len("sh")] + "next", following.pop("script"))
        pump.lock.check()
    told = {"state": state, "record": record, "final": final, "following": following}
    # An agent that knows of no retries must not finish this: it finds no state, and finds the end out again.
    record_text = files.dump_json({"followed": told} if following else told)
    # Lost with the power, an end is found out again; but not one whose next attempt may run by then.
    files.write_file(path[: -len("sh")] + "json", record_text, durable=bool(following))
    fault.point("ending.record.after")
    files.move(entry.path, path)
    fault.point("ending.begun")
    _finish(pump, entry._replace(path=path))


def _path(pump: "Round", entry: "Entry") -> str:
    name = "%s.%d.%s.%d.sh" % (entry.job, entry.attempt, entry.token, pump.lock.generation)
    return os.path.join(pump.spool.ending, name)


def resume(pump: "Round") -> None:
    """Finish the ends somebody began, and drop the records of ends that were never begun."""
    for entry in pump.spool.entries("ending"):
        _finish(pump, entry)
    for name in files.names(pump.spool.ending):
        # Not what a later holder of the lock has begun, if this one was frozen just here.
        if name.endswith((".json", ".next")) and not later(pump, name.rpartition(".")[0]):
            files.remove(os.path.join(pump.spool.ending, name))
    if os.path.isdir(os.path.join(pump.spool.work, RETRIES)):
        from . import retries

        retries.drop_unused(pump)


def later(pump: "Round", name: str) -> bool:
    """Whether a name that ends with a generation was made by a later holder of the lock than this one."""
    generation = name.rpartition(".")[2]
    return generation.isdigit() and int(generation) > pump.lock.generation


def _finish(pump: "Round", entry: "Entry") -> None:
    record_path = entry.path[: -len("sh")] + "json"
    try:
        told = files.read_json(record_path) or {}
        told = told.get("followed", told)
        state, record, final, following = told["state"], told["record"], told["final"], told.get("following")
    except (ValueError, KeyError):
        # Lost with the power: nothing was told of this end, so it is found out again.
        files.move(entry.path, pump.spool.entry_path("submitting", entry.job, entry.attempt, entry.token))
        return
    meta = pump.spool.meta_dir(entry.job, entry.attempt)
    if final and os.path.isdir(meta):
        _write_final(os.path.join(meta, "final.json"), final)
    if state == "completed":
        write_flag(pump.spool, record)
    elif state == "rejected":
        words = pump.spool.entry_path("rejected", entry.job, entry.attempt, suffix="err")
        files.replace_file(words, record["text"].encode("utf-8", "replace") + b"\n")
    fault.point("ending.flag.after")
    _tell(pump, entry, record, following)
    if state == "completed":
        files.remove(entry.path)
    else:
        files.move(entry.path, pump.spool.entry_path(state, entry.job, entry.attempt))
    files.remove(record_path)


def _write_final(path: str, final: "Dict[str, Any]") -> None:
    """For the client. A job may have protected its folders, ours too (`chmod -R a-w .`), or put something else there:
    that is no reason not to end it, nor to end no other one any more."""
    try:
        spoiled.let_in(os.path.dirname(path), lambda: files.write_json(path, final, durable=False))
    except OSError as error:
        if not spoiled.gone(error):
            raise


def _tell(pump: "Round", entry: "Entry", record: "Dict[str, Any]", following: "Optional[Dict[str, Any]]") -> None:
    """Journal an end; then what follows it, or nothing."""
    if not following:
        pump.journal.append(record)
        fault.point("ending.told")
        forget_inputs(pump.spool, entry.job, entry.attempt)
        return
    from . import retries

    # Together: no reader is to see a job at its end that is not.
    pump.journal.append(record, retries.record(entry, following))
    fault.point("ending.told")
    retries.publish(pump, entry, following, entry.path[: -len("sh")] + "next")


def forget_inputs(spool: "Spool", job: str, attempt: int) -> None:
    """An attempt that nothing follows needs its inputs no more, where they were kept as they had been uploaded."""
    meta = spool.meta_dir(job, attempt)
    if os.path.isdir(os.path.join(meta, "inputs")):
        from . import retries

        retries.forget(meta)


def write_flag(spool: "Spool", record: "Dict[str, Any]") -> None:
    """completed/<job>.<attempt>.flag of a journal record: DONE, FAIL or LOST, the scheduler's id, key=value lines."""
    told = {key: value for key, value in record.items() if key not in ("ev", "job", "pbs", "state", "elements")}
    lines = [record["state"], record["pbs"]] + ["%s=%s" % item for item in sorted(told.items())]
    if "elements" in record:  # last: it is long, and others read the beginning
        lines.append("elements=" + json.dumps(record["elements"], separators=(",", ":"), sort_keys=True))
    path = spool.entry_path("completed", record["job"], record["attempt"], suffix="flag")
    files.replace_file(path, "\n".join(lines + [""]).encode("utf-8", "replace"))
