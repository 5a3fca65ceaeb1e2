"""Taking scripts in: what sessions published, and what somebody put into waiting/ by hand."""

import os
import re
import time

from . import fault, files
from .spool import MIDDLE_PRIORITY, SHARD_SIZE
from .wire import path_text

MYPY = False
if MYPY:
    from typing import List

    from .pump import Round
    from .spool import Spool

fault.register(
    {
        "intake.accepted.after": "a published shard journalled as accepted, its name not yet changed",
        "intake.dropped.made": "the work folder of a script dropped in by hand made, nothing journalled",
        "intake.dropped.journalled": "its acceptance journalled, the script not yet in its shard",
    }
)


def published(pump: "Round") -> None:
    """Journal what sessions published as accepted: always before its intent, since pumps submit from accepted shards
    only."""
    for shard in list(pump.spool.shards(new=True)):
        entries = pump.spool.shard_entries(shard)
        pump.journal.append(*[{"ev": "accepted", "job": e.job, "attempt": e.attempt} for e in entries])
        fault.point("intake.accepted.after")
        files.move(shard, shard[: -len(".new")])
        pump.report["accepted"] += len(entries)


def dropped(pump: "Round") -> None:
    """Take in the scripts put into waiting/ by hand, once they are old enough not to be half copied."""
    ready = []
    now = 0.0
    pump.report["settling"] = 0  # a pump may take several rounds, and meet the same young script in each
    for path in pump.spool.dropped():
        now = now or files.server_time(pump.spool.wake)
        try:
            age = now - os.stat(path).st_mtime
        except FileNotFoundError:
            continue
        if age >= pump.settings.settle:
            ready.append(path)
        else:
            pump.report["settling"] += 1
    for start in range(0, len(ready), SHARD_SIZE):
        _take_in(pump, ready[start : start + SHARD_SIZE])


def _take_in(pump: "Round", paths: "List[str]") -> None:
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    shard = os.path.join(pump.spool.waiting, "%03d" % MIDDLE_PRIORITY, "%s-hand-%06d" % (stamp, pump.lock.generation))
    while os.path.isdir(shard):
        shard += "a"
    os.makedirs(shard, 0o700)
    for position, path in enumerate(paths):
        job = _make_job(pump.spool, path)
        fault.point("intake.dropped.made")
        pump.journal.append({"ev": "accepted", "job": job, "attempt": 1, "name":
        path_text(os.path.basename(os.fsencode(path)))})
        fault.point("intake.dropped.journalled")
        files.move(path, os.path.join(shard, "%03d.%s.1.sh" % (position, job)))
        pump.report["accepted"] += 1


def _make_job(spool: "Spool", path: str) -> str:
    """A job id like the script's name, and its work folder. A folder left by a crash in between is used again."""
    name = os.path.basename(path)
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", os.path.splitext(name)[0])[:40]
    stem = stem if stem[:1].isalpha() else "j" + stem
    text = path_text(os.fsencode(name))
    for number in range(1, 10**6):
        job = stem if number == 1 else "%s-%d" % (stem, number)
        if not os.path.isdir(spool.work_dir(job, 1)) or _left_by_a_crash(spool, job, text):
            break
    meta = spool.meta_dir(job, 1)
    os.makedirs(meta, 0o700, exist_ok=True)
    record = {"job": job, "attempt": 1, "name": os.path.splitext(text)[0], "dropped": text}
    files.write_json(os.path.join(meta, "job.json"), record)
    return job


def _left_by_a_crash(spool: "Spool", job: str, dropped: str) -> bool:
    """Whether a work folder was made for this very script by a pump that got no further."""
    if not os.path.isdir(spool.meta_dir(job, 1)):
        return False  # somebody else's folder
    return spool.job_record(job, 1).get("dropped", dropped) == dropped and not spool.known(job, 1)
