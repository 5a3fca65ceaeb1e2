"""What is alive: submitted attempts with their marks, counted for the caps."""

from collections import namedtuple

from . import directives, marks
from .caps import Counts

MYPY = False
if MYPY:
    from typing import Dict, Iterable, List, Optional, Sequence, Tuple

    from .schedulers.base import Snapshot
    from .spool import Entry, Spool

MEMBER = "# member "  # how the lines of a bundle's script begin that name its jobs: job, attempt, token
MOST_TOLD = 200  # arrays in one report of their progress


class Standing(namedtuple("Standing", "entry meta id held marks indices spoilt member")):
    """One entry of submitted/. id: the scheduler's, "" where its record is gone; held: with our hold, as far as we
    know; indices: of an array's elements, none of any other job; spoilt: what tells whether it has started is gone
    (spoiled.py); member: whether it runs in a bundle, whose id it then has. Counts are by element."""

    __slots__ = ()

    def __new__(
        cls, entry: "Entry", meta: str, id: str, held: bool, marks: "marks.Marks", indices: "Sequence[int]" = (),
        spoilt: bool = False, member: bool = False,
    ) -> "Standing":
        return super().__new__(cls, entry, meta, id, held, marks, indices, spoilt, member)

    @property
    def size(self) -> int:
        """How many it counts as; a member of a bundle is counted by that."""
        return 0 if self.member else max(1, len(self.indices))

    @property
    def begun(self) -> int:
        """How many have started."""
        return sum(one.runs > 0 for one in self.marks.elements.values()) or int(self.marks.runs > 0)

    @property
    def flagged(self) -> int:
        """How many have written their flag: their payloads are over."""
        return sum(one.flags > 0 for one in self.marks.elements.values()) or int(self.marks.flag is not None)


def standings(spool: "Spool") -> "List[Standing]":
    """Every submitted attempt with what its runner has left so far, in the order of the scheduler's numbers."""
    found, entries = [], spool.entries("submitted")
    in_bundles = _members_of(entries)
    for entry in entries:
        meta = spool.meta_dir(entry.job, entry.attempt)
        known = marks.read_id(meta, entry.token)
        job_id = known.get("id", "")
        if is_bundle(entry) and not job_id:  # somebody has deleted its folder; its members know it, too
            every = [marks.read_id(spool.meta_dir(*row[:2]), row[2]).get("id", "") for row in members(entry.path)]
            job_id = next(filter(None, every), "")
        job_marks = marks.read(meta, entry.token)
        held, spoilt = bool(known.get("held")), not known and not is_bundle(entry)
        member = entry.token in in_bundles
        found.append(Standing(entry, meta, job_id, held, job_marks, indices(entry, job_id), spoilt, member))
    return sorted(found, key=lambda standing: (_number(standing.id), standing.entry.path))


def in_flight(spool: "Spool") -> "List[Entry]":
    """What is in submitting/ and goes to the scheduler by itself: not the members of bundles."""
    every = spool.entries("submitting")
    in_bundles = bundled(spool) if every else ()
    return [one for one in every if one.token not in in_bundles]


def is_bundle(entry: "Entry") -> bool:
    """Whether a submission is a bundle, not a job: their attempts begin with 1."""
    return entry.attempt == 0


def bundled(spool: "Spool") -> "Dict[str, Entry]":
    """By their tokens the members of all bundles that are in the scheduler, or may be; of each its bundle."""
    return _members_of(spool.entries("submitting") + spool.entries("submitted"))


def _members_of(entries: "List[Entry]") -> "Dict[str, Entry]":
    return {row[2]: entry for entry in entries if is_bundle(entry) for row in members(entry.path)}


def members(path: str) -> "List[Tuple[str, int, str]]":
    """(job, attempt, token) of each member of the bundle whose script stands at `path`; none where it is gone."""
    found = []
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            for line in stream:
                if line.startswith(MEMBER):
                    job, attempt, token = line[len(MEMBER) :].split()
                    found.append((job, int(attempt), token))
                elif not line.startswith("#"):
                    break
    except FileNotFoundError:
        pass
    return found


def indices(entry: "Entry", job_id: str) -> "Sequence[int]":
    """Of the elements of a submission with this id; none where it is no array."""
    return directives.elements(directives.asked_in(entry.path)) if "[]" in job_id else ()


def progress(standing: "List[Standing]") -> "Dict[str, List[int]]":
    """Job -> [attempt, elements that ended, that run, that wait] of arrays in the scheduler. From the names of marks
    alone: how an element ended stands in its flag, and 10,000 flags are not read for a report."""
    told = {}
    for job in [job for job in standing if job.indices and not job.spoilt][:MOST_TOLD]:
        waiting = max(0, job.size - max(job.begun, job.flagged))
        told[job.entry.job] = [job.entry.attempt, job.flagged, max(0, job.size - waiting - job.flagged), waiting]
    return told


def _number(job_id: str) -> int:
    digits = job_id.split(".")[0].split("[")[0]
    return int(digits) if digits.isdigit() else 0


def count(
    standing: "List[Standing]",
    submitting: int,
    snapshot: "Optional[Snapshot]",
    beats: "Optional[Iterable[str]]" = None,
    reserve: int = 0,
) -> Counts:
    """The counts the caps are about, arrays by element.

    A job whose flag stands is out of both (its slot may still be taken: the scheduler then refuses, which is a wait).
    One that has not started is queued, and could start at any moment unless we hold it. A submission of unknown outcome
    counts as both. Live jobs that are not ours count by their state as of the last query round. An element that ended
    without a flag counts until its array is gone. beats: ids of the heartbeat's jobs; None where there is none, else it
    counts as one that waits, and as two in all. It is no payload: under a cap of 4 the place of one, kept for a job
    that runs for a second every 15 minutes, would be a quarter of the throughput. reserve: 1 where there is one more,
    far ahead.
    """
    payloads = queued = live = 0
    for job in standing:
        waiting = max(0, job.size - max(job.begun, job.flagged))
        queued += waiting
        payloads += max(0, job.size - job.flagged - (waiting if job.held and not job.begun else 0))
        live += max(job.size - job.flagged, _in_scheduler(job, snapshot))
    beat = int(beats is not None)
    running, foreign = _foreign(standing, snapshot, beats or ())
    others = [running, foreign + beat + reserve, running + foreign + 2 * beat + reserve]
    ours = [payloads + submitting, queued + submitting, live + submitting]
    return Counts(*[mine + other for mine, other in zip(ours, others)] + others)


def _in_scheduler(job: Standing, snapshot: "Optional[Snapshot]") -> int:
    """How many of a job the scheduler still has, as far as we know: all, where it has not been asked since."""
    seen = snapshot.live.get(job.id) if snapshot else None
    return min(job.size, seen.queued + seen.running) if seen else job.size


def _foreign(standing: "List[Standing]", snapshot: "Optional[Snapshot]", beats: "Iterable[str]") -> "List[int]":
    if snapshot is None:
        return [0, 0]
    ours = {job.id for job in standing}.union(beats)
    others = [job for job in snapshot.live.values() if job.id not in ours and not job.token]
    return [sum(job.running for job in others), sum(job.queued for job in others)]
