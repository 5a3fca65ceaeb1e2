"""The next attempt of a job that ended as its retry policy says (policy.py): made here, without any client.

    work/.retries/<job>.<attempt>.<generation>/   the next attempt's work folder, complete and durable before the end of
                                                  the one before it begins; then renamed to work/<job>.<attempt>
    ending/<job>.<attempt>.<token>.<generation>.next   its script, from there renamed into waiting/ (ending.py)
    .chasqui/inputs/<sha256>                      the inputs as they were uploaded, of jobs that may be tried again from
                                                  them: jobs rewrite theirs in place. They go from attempt to attempt

The record of the end that a retry follows says so (`next`), and so does its flag: who reads those knows that the job
goes on, whether the next attempt stands in waiting/ already or is about to (`Spool.final_attempt`). Whatever stops the
making of it (a copy that is gone, a full disk) stops it before the end begins, which then says why there is none.
"""

import errno
import json
import os
import shutil
import time

from . import carry, directives, ending, fault, files, policy, spoiled, wire
from .spool import RETRIES, rank_of, shard_name

MYPY = False
if MYPY:
    from typing import Any, Dict, Optional

    from .live import Standing
    from .pump import Round
    from .spool import Entry, Spool

fault.register(
    {
        "retries.built": "the next attempt complete and durable, the end it follows not begun",
        "retries.made": "the next attempt's work folder under its name, the files of the one before not yet carried on",
        "retries.carried": "the files carried on, the next attempt's script not yet in waiting/",
        "retries.published": "the next attempt in waiting/, the one before still in ending/",
    }
)


# -- before the end ----------------------------------------------------------------------------------------------------


def following(pump: "Round", standing: "Standing", record: "Dict[str, Any]") -> "Optional[Dict[str, Any]]":
    """What is to follow an attempt that ends as `record` says; None for nothing. For `ending.begin`.

    The next attempt is complete and durable then, and `record` says `next`; where the policy wants one and there can't
    be one, its `why` says so. Raises Lost, and carry.PutOff: the end has to wait for a round with more time.
    """
    entry = standing.entry
    asked = _asked(pump.spool, entry)
    rule = asked.get("retry")
    began = standing.marks.runs or record["state"] == "LOST"
    if not rule or record["state"] == "DONE" or not began or standing.marks.cancel or standing.indices:
        return None
    condition = policy.matched(rule["on"], record)
    if not condition or os.path.lexists(pump.spool.work_dir(entry.job, entry.attempt + 1)):
        return None
    try:
        with open(entry.path, "rb") as stream:
            script = stream.read()
        dialect = directives.dialect(script) or pump.scheduler.reads or "PBS"
        chosen = policy.next_try(rule, condition, asked.get("tries", 0), script, dialect)
        if chosen.script is None:
            raise carry.Refused(chosen.why)
        return _built(pump, entry, record, asked, chosen, condition)
    except carry.Refused as error:
        why = str(error)
    except OSError as error:
        why = error.strerror or "its files can't be copied"
    except (ValueError, KeyError, TypeError, wire.WireError):  # jobs can write to their records, too
        why = "the record of its inputs is damaged"
    pump.lock.check()  # another holder may have swept away what was copied: then it is not ours to say
    record["why"] += policy.NOT_AGAIN + why
    return None


def _asked(spool: "Spool", entry: "Entry") -> "Dict[str, Any]":
    """The job's record, without a policy that is none."""
    record = spool.job_record(entry.job, entry.attempt)
    return record if record.get("retry") and not policy.wrong(record["retry"]) else {}


def _built(
    pump: "Round", entry: "Entry", record: "Dict[str, Any]", asked: "Dict[str, Any]", chosen: "policy.Try",
    condition: str,
) -> "Dict[str, Any]":
    attempt, resume, tries = entry.attempt + 1, bool(asked["retry"].get("resume")), asked.get("tries", 0)
    most = entry.attempt + asked["retry"]["retries"] - tries
    told = ", ".join(["attempt %d of %d after %s" % (attempt, most, record["why"][:200]), *chosen.changes])
    name = "%s.%d.%d" % (entry.job, attempt, pump.lock.generation)
    folder = os.path.join(pump.spool.work, RETRIES, name)
    # Behind a lost node the processes may live on, and write to what they have: the next attempt gets copies.
    doubtful = condition in ("node", "lost")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(os.path.join(folder, ".chasqui"), 0o700)
        copier = carry.Copier(pump, entry, folder)
        rows = copier.inputs() if not resume else copier.everything() if doubtful else copier.rows
        after = dict(asked, attempt=attempt, tries=tries + 1, again=told)
        for key in ("after", "if"):  # whatever it waited for has ended as it had to
            after.pop(key, None)
        for file, value in (("manifest.json", {"files": rows}), ("job.json", after)):
            data = json.dumps(value).encode("ascii")
            files.write_file(os.path.join(folder, ".chasqui", file), data, durable=False)
        # What has run once is not held again by its own `#PBS -h`.
        files.write_file(os.path.join(folder, ".chasqui", "released"), b"", durable=False)
        copier.settle()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    fault.point("retries.built")
    record["next"] = attempt
    priority = asked.get("priority", 0)
    return {"attempt": attempt, "folder": name, "why": told, "carry": resume and not doubtful,
            "rank": rank_of(priority if isinstance(priority, int) else 0), "script": chosen.script}


# -- after it ----------------------------------------------------------------------------------------------------------


def record(entry: "Entry", after: "Dict[str, Any]") -> "Dict[str, Any]":
    """The journal's word of it, to be written together with that of the end."""
    return {"ev": "retried", "job": entry.job, "attempt": entry.attempt, "next": after["attempt"], "why": after["why"]}


def publish(pump: "Round", entry: "Entry", after: "Dict[str, Any]", script: str) -> None:
    """Put the next attempt into waiting/, once however often this is called.

    entry: in ending/; script: the file of the next attempt's.
    """
    spool, attempt = pump.spool, after["attempt"]
    old, new = spool.work_dir(entry.job, entry.attempt), spool.work_dir(entry.job, attempt)
    if not _made(os.path.join(spool.work, RETRIES, after["folder"]), new):
        _give_up(pump, entry.job, attempt, new, script)
        ending.forget_inputs(spool, entry.job, entry.attempt)
        return
    fault.point("retries.made")
    carry.move_on(old, new, after["carry"])
    fault.point("retries.carried")
    if os.path.lexists(script):
        files.move(script, _place(spool, after["rank"], entry.job, attempt))
        pump.report["retried"] += 1
    fault.point("retries.published")


def _made(built: str, new: str) -> bool:
    """Give the next attempt's folder its name; False where another one has it, or it is gone."""
    try:
        files.move(built, new)
    except FileNotFoundError:
        return os.path.isdir(new)  # done before
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        return False
    return True


def _give_up(pump: "Round", job: str, attempt: int, new: str, script: str) -> None:
    """There is no folder for the next attempt: a client has made its own of that number, which counts; or somebody has
    deleted it."""
    if os.path.isdir(new):
        files.remove(script)
    elif os.path.lexists(script):
        record = {"ev": "cancelled", "job": job, "attempt": attempt, "why": "its folder is gone"}
        pump.journal.append(record)
        files.move(script, pump.spool.entry_path("cancelled", job, attempt))


def _place(spool: "Spool", rank: int, job: str, attempt: int) -> str:
    """Where its script goes: behind what waits already with its priority. One shard for each hour's retries."""
    folder = os.path.join(spool.waiting, "%03d" % rank)
    shard = os.path.join(folder, time.strftime("%Y%m%dT%H0000-retry", time.gmtime()))
    os.makedirs(shard, 0o700, exist_ok=True)
    files.fsync_folder(folder)
    return os.path.join(shard, shard_name(0, job, attempt))


def forget(meta: str) -> None:
    """A job is over: nobody needs its inputs as they were any more."""
    folder = os.path.join(meta, carry.INPUTS)
    for path in (meta, folder):
        spoiled.unlock(path)
    shutil.rmtree(folder, ignore_errors=True)


def drop_unused(pump: "Round") -> None:
    """Delete what was built for ends that were never begun. To be called when none stands in ending/."""
    folder = os.path.join(pump.spool.work, RETRIES)
    for name in files.names(folder):
        if not ending.later(pump, name):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
