"""The notes that jobs leave for hooks under ~/.chasqui-agent/jobs: those of jobs that died without taking theirs go."""

import os
import re

from . import files

MYPY = False
if MYPY:
    from .pump import Round
    from .schedulers.base import Snapshot

EVERY = 3600.0  # seconds between two looks
YOUNG = 3600.0  # a hook takes a record within a minute of the job's end
LOOKS = 50


def prune(pump: "Round", snapshot: "Snapshot") -> None:
    """Drop old records of jobs that this snapshot, made now, does not know as live; some of them, now and then. Other
    roots' jobs are this user's too, and stand in it."""
    if not pump.scheduler.asks_a_server or pump.now - pump.state.value.get("pruned", 0) < EVERY:
        return
    pump.state.value["pruned"] = pump.now
    folder = os.path.join(os.path.expanduser("~"), ".chasqui-agent", "jobs")
    try:
        names = files.names(folder)
        start = int.from_bytes(os.urandom(4), "big") % len(names) if len(names) > LOOKS else 0
        for name in (names[start:] + names[:start])[:LOOKS]:
            _prune(os.path.join(folder, name), re.sub(r"\[[0-9]+\]", "[]", name), pump.now, snapshot)
    except OSError:
        pass  # a home that is away for the moment is no reason not to submit


def _prune(path: str, job_id: str, now: float, snapshot: "Snapshot") -> None:
    if job_id not in snapshot.live and now - os.lstat(path).st_mtime > YOUNG:
        files.remove(path)
