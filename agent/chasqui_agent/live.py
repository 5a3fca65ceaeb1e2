"""What is alive: submitted attempts with their marks, counted for the caps."""

from collections import namedtuple

from . import marks
from .caps import Counts

MYPY = False
if MYPY:
    from typing import Iterable, List, Optional

    from .schedulers.base import Snapshot
    from .spool import Spool

# One entry of submitted/. id: the scheduler's, "" where the id file is missing; held: with our hold, as far as we know
Standing = namedtuple("Standing", "entry meta id held marks")


def standings(spool: "Spool") -> "List[Standing]":
    """Every submitted attempt with what its runner has left so far, in the order of the scheduler's numbers."""
    found = []
    for entry in spool.entries("submitted"):
        meta = spool.meta_dir(entry.job, entry.attempt)
        known = marks.read_id(meta, entry.token)
        found.append(Standing(entry, meta, known.get("id", ""), bool(known.get("held")), marks.read(meta, entry.token)))
    return sorted(found, key=lambda standing: (_number(standing.id), standing.entry.path))


def _number(job_id: str) -> int:
    digits = job_id.split(".")[0].split("[")[0]
    return int(digits) if digits.isdigit() else 0


def count(
    standing: "List[Standing]",
    submitting: int,
    snapshot: "Optional[Snapshot]",
    waiting: int,
    beats: "Optional[Iterable[str]]" = None,
) -> Counts:
    """The counts the caps are about.

    A job whose flag stands is out of both (its slot may still be taken: the scheduler then refuses, which is a wait).
    One that has not started is queued, and could start at any moment unless we hold it. A submission of unknown outcome
    counts as both. Live jobs that are not ours count by their state as of the last query round. beats: ids of the
    heartbeat's jobs; None where there is no heartbeat, else it counts as one that runs and waits, and as two in all.
    """
    payloads = queued = held = 0
    for job in standing:
        if job.marks.flag is not None:
            continue
        if job.marks.runs:
            payloads += 1
        else:
            queued += 1
            held += job.held
            payloads += not job.held
    beat = int(beats is not None)
    foreign_running, foreign_queued = _foreign(standing, snapshot, beats or ())
    payloads += submitting + foreign_running + beat
    queued += submitting + foreign_queued + beat
    live = len(standing) + submitting + foreign_running + foreign_queued + 2 * beat
    return Counts(payloads, queued, live, held, waiting)


def _foreign(standing: "List[Standing]", snapshot: "Optional[Snapshot]", beats: "Iterable[str]") -> "List[int]":
    if snapshot is None:
        return [0, 0]
    ours = {job.id for job in standing}.union(beats)
    others = [job for job in snapshot.live.values() if job.id not in ours and not job.token]
    return [sum(job.running for job in others), sum(job.queued for job in others)]
