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
import stat
import time

from . import beneath, copies, directives, durable, ending, fault, files, offers, policy, wire
from .leftovers import hash_of
from .lock import Lost
from .spool import RETRIES, rank_of, shard_name

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Optional

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

INPUTS = "inputs"


class Refused(Exception):
    """There can be no next attempt; the message says why."""


# -- before the end ----------------------------------------------------------------------------------------------------


def following(pump: "Round", standing: "Standing", record: "Dict[str, Any]") -> "Optional[Dict[str, Any]]":
    """What is to follow an attempt that ends as `record` says; None for nothing. For `ending.begin`.

    The next attempt is complete and durable then, and `record` says `next`; where the policy wants one and there can't
    be one, its `why` says so. Raises Lost.
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
            raise Refused(chosen.why)
        return _built(pump, entry, record, asked, chosen, condition)
    except Refused as error:
        why = str(error)
    except OSError as error:
        why = error.strerror or "its files can't be copied"
    except (ValueError, KeyError, TypeError, wire.WireError):  # jobs can write to their records, too
        why = "the record of its inputs is damaged"
    record["why"] += policy.NOT_AGAIN + why
    return None


def _asked(spool: "Spool", entry: "Entry") -> "Dict[str, Any]":
    """The job's record, without a policy that is none."""
    try:
        record = spool.job_record(entry.job, entry.attempt)
    except ValueError:
        return {}
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
        copier = _Copier(pump, pump.spool.work_dir(entry.job, entry.attempt), folder)
        rows = copier.inputs() if not resume else copier.everything() if doubtful else copier.rows
        after = dict(asked, attempt=attempt, tries=tries + 1, again=told)
        for key in ("after", "if"):  # whatever it waited for has ended as it had to
            after.pop(key, None)
        for file, value in (("manifest.json", {"files": rows}), ("job.json", after)):
            data = json.dumps(value).encode("ascii")
            files.write_file(os.path.join(folder, ".chasqui", file), data, durable=False)
        # What has run once is not held again by its own `#PBS -h`.
        files.write_file(os.path.join(folder, ".chasqui", "released"), b"", durable=False)
        durable.settle([folder])
        files.fsync_folder(os.path.dirname(folder))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    fault.point("retries.built")
    pump.lock.check()
    record["next"] = attempt
    priority = asked.get("priority", 0)
    return {"attempt": attempt, "folder": name, "why": told, "carry": resume and not doubtful,
            "rank": rank_of(priority if isinstance(priority, int) else 0), "script": chosen.script}


class _Copier:
    """What of one attempt's folder the next one's gets before its end. Raises Refused, OSError, Lost."""

    def __init__(self, pump: "Round", old: str, new: str) -> None:
        self.pump, self.old, self.new = pump, old, new
        self.rows: "List[Dict[str, Any]]" = offers.manifest_of(old)
        self._whole = pump.lock.time_left() > pump.settings.lease / 10
        if not self.rows:
            raise Refused("the record of its inputs is gone")

    def inputs(self) -> "List[Dict[str, Any]]":
        """The inputs as they were uploaded; their rows for the manifest."""
        found = []
        for row in self.rows:
            source = os.path.join(self.old, ".chasqui", INPUTS, row["sha256"])
            target = os.path.join(os.fsencode(self.new), wire.confined(row["path"]))
            try:
                if not stat.S_ISREG(os.lstat(source).st_mode):
                    raise Refused("%s as it was uploaded is not there any more" % row["path"])
                self._copy(os.fsencode(source), target, row["mode"])
            except FileNotFoundError:
                raise Refused("%s as it was uploaded is not there any more" % row["path"]) from None
            if hash_of(os.fsdecode(target)) != row["sha256"]:
                raise Refused("%s is not what was uploaded any more" % row["path"])
            found.append(dict(row, mtime_ns=os.lstat(target).st_mtime_ns))
        return found

    def everything(self) -> "List[Dict[str, Any]]":
        """All files as they are now, with their times: by those the manifest knows its inputs."""
        folder = beneath.open_folder(self.old)
        try:
            for path, status in beneath.walk(folder, leave=".chasqui"):
                target = os.path.join(os.fsencode(self.new), path)
                self._copy(os.path.join(os.fsencode(self.old), path), target, status.st_mode & 0o700 | 0o600)
                os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(folder)
        return self.rows

    def _copy(self, source: bytes, target: bytes, mode: int) -> None:
        if self.pump.lock.time_left() < 1:
            if self._whole:
                raise Refused("its files take longer to copy than a pump may take")
            raise Lost("no time left to copy files for a retry")
        os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
        copies.copy(source, target, mode)


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
        return
    fault.point("retries.made")
    if after["carry"]:
        _carry_on(old, new)
    _rename(os.path.join(old, ".chasqui", INPUTS), os.path.join(new, ".chasqui", INPUTS))
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


def _carry_on(old: str, new: str) -> None:
    """Move what the attempt left to the next one's folder. Called again, it moves what is left."""
    for name in files.names(old):
        if name != ".chasqui":
            _rename(os.path.join(old, name), os.path.join(new, name))
    files.fsync_folder(new)


def _rename(old: str, new: str) -> None:
    """What is gone was moved before; and what has come back under the name of a folder that was moved stays."""
    try:
        os.rename(old, new)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
            raise


def _place(spool: "Spool", rank: int, job: str, attempt: int) -> str:
    """Where its script goes: behind what waits already with its priority. One shard for each hour's retries."""
    folder = os.path.join(spool.waiting, "%03d" % rank)
    shard = os.path.join(folder, time.strftime("%Y%m%dT%H0000-retry", time.gmtime()))
    os.makedirs(shard, 0o700, exist_ok=True)
    files.fsync_folder(folder)
    return os.path.join(shard, shard_name(0, job, attempt))


def forget(meta: str) -> None:
    """A job is over: nobody needs its inputs as they were any more."""
    shutil.rmtree(os.path.join(meta, INPUTS), ignore_errors=True)


def drop_unused(pump: "Round") -> None:
    """Delete what was built for ends that were never begun. To be called when none stands in ending/."""
    folder = os.path.join(pump.spool.work, RETRIES)
    for name in files.names(folder):
        if not ending.later(pump, name):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
