"""What the relay needs of a batch system, and nothing else. Designed against OpenPBS, Torque and Slurm.

Every call can fail to reach the batch system: it then raises Unreachable, and the caller changes no state. "I could not
ask" is never "the job is gone".
"""

import time
from collections import namedtuple

from .. import runner

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, Iterable, List, Optional, Set, Tuple


class Unreachable(Exception):
    """The scheduler did not answer, or not in a way that can be believed. The message is its own words."""


class NotNow(Unreachable):
    """The scheduler answers, but can't do this to this job for the time being (its node does not answer): ask again
    later, and go on with the others."""


class Request(
    namedtuple("Request", "script folder name token variables output error join hold rerun directives start dialect")
):
    """One submission. script: the runner's path; folder: the work folder, the cwd of the call; name: as it shall stand
    in the queue; variables: the -v list, (name, value or None for "from the environment"); output/error: paths; hold:
    with a user hold; rerun: whether the batch system may start it a second time by itself; directives: letter -> value
    of the script's own directives; start: seconds since 1970 before which it must not start, None for at once; dialect:
    whose directives those are, "PBS" or "SBATCH", "" where it has none."""

    __slots__ = ()

    def __new__(cls, start: "Optional[float]" = None, dialect: str = "", **rest: "Any") -> "Request":
        return super().__new__(cls, start=start, dialect=dialect, **rest)


EVERYWHERE = "*"  # Submission.learn of a limit that is the whole server's


class NotQueued(OSError):
    """The disk stopped a submission before the scheduler had the job, for certain."""


class Submission(namedtuple("Submission", "kind id text learn here")):
    """How a submission went. kind: "accepted" (id is set), "limit" (the site's cap: wait), "temporary" (ask later),
    "permanent" (never), "unknown" (it may have been accepted: only a look at the queue or the claim tells), "other"
    (nobody knows: leave it waiting and submit no more). text: the scheduler's own words. learn: where the number of our
    jobs there now is the limit: EVERYWHERE, or a queue's name ("" for the default queue); None where this answer
    teaches none. here: it is this host that may not submit."""

    __slots__ = ()

    def __new__(cls, kind: str, id: str, text: str, learn: "Optional[str]" = None, here: bool = False) -> "Submission":
        return super().__new__(cls, kind, id, text, learn, here)


# A submission whose id is not known. name: as it was to stand in the queue; folder: its work folder.
Sought = namedtuple("Sought", "token name folder")


class Live(namedtuple("Live", "id state token queued running")):
    """A live job. state: Q H W R E as in PBS, B for an array with an element that began; H only where a user hold is
    on and it does not run; "" where nobody asked (Scheduler.query). token: "" where it is not known to be ours.
    queued, running: how many it counts as, an array by its elements."""

    __slots__ = ()

    def __new__(
        cls, id: str, state: str, token: str = "", queued: "Optional[int]" = None, running: "Optional[int]" = None
    ) -> "Live":
        runs = int(state in "RESUB")
        queued = 1 - runs if queued is None else queued
        return super().__new__(cls, id, state, token, queued, runs if running is None else running)


# An ended job the scheduler still remembers. exit: its Exit_status (256 + signal where it was killed, negative where
# the batch system ended it), None where it does not say; why: its words, "" where there is nothing to add; lost: it can
# not say what became of it.
Ended = namedtuple("Ended", "id exit why token lost")


DELETED = "deleted"  # Ended.why of a job that somebody deleted while it ran


class Snapshot:
    """One query round: all live jobs of this user, and what is remembered of the ended ones that were asked for.

    asked: ids and tokens the scheduler was asked about in particular; None where all were. calls: how often it was
    called. notes: id -> why a live job does not start, where the scheduler said so.
    """

    def __init__(
        self,
        live: "Dict[str, Live]",
        ended: "Dict[str, Ended]",
        asked: "Optional[Iterable[str]]" = None,
        calls: int = 0,
        notes: "Optional[Dict[str, str]]" = None,
    ) -> None:
        self.live = live
        self.ended = ended
        self.asked: "Optional[Set[str]]" = None if asked is None else set(asked)
        self.calls = calls
        self.notes = notes or {}

    def knows(self, name: str) -> bool:
        """Whether this round can tell of an id or token: if it is in neither `live` nor `ended` then, it is unknown to
        the scheduler. Where False it was not asked for, and its absence means nothing."""
        return self.asked is None or name in self.asked or name in self.live or name in self.ended

    def gone(self, name: str) -> bool:
        """Whether a job was asked for in particular in this round, and is over or unknown."""
        return self.asked is not None and name in self.asked and name not in self.live

    def to_json(self) -> "Dict[str, Any]":
        """Plain lists, to be kept until the next round is allowed."""
        return {
            "live": [list(job) for job in self.live.values()],
            "ended": [list(job) for job in self.ended.values()],
            "asked": None if self.asked is None else sorted(self.asked),
            "calls": self.calls,
            "notes": self.notes,
        }

    @staticmethod
    def from_json(value: "Dict[str, Any]") -> "Snapshot":
        """The snapshot `to_json` described. Raises ValueError, KeyError or TypeError for anything else."""
        live = [Live(*row) for row in value["live"]]
        ended = [Ended(*row) for row in value["ended"]]
        more = (value.get("asked"), value.get("calls", 0), value.get("notes"))
        return Snapshot({job.id: job for job in live}, {job.id: job for job in ended}, *more)


class Scheduler:
    """One batch system, seen by one user."""

    name = ""
    called = "the scheduler"  # in what users are told
    name_limit = 15  # longest job name it takes
    stages_output = True  # output files appear only some time after the payload ended
    has_arrays = False  # takes #PBS -J
    reads = "PBS"  # whose directives it understands, as directives.dialect calls them; "" for any
    asks_a_server = True  # a query costs somebody else something: never more than one in query_interval
    query_seconds = 30.0  # how long one query may take
    deadline = float("inf")  # when every call has to be over, by time.monotonic(); set by the caller
    calls = 0  # how often the batch system was called

    def query(
        self,
        ids: "Iterable[str]",
        sought: "Iterable[Sought]" = (),
        held: "Iterable[str]" = (),
        known: "Iterable[str]" = (),
    ) -> Snapshot:
        """One query round. Raises Unreachable.

        ids: jobs that must be found live or ended if the scheduler knows them at all; of these only H, and not whether
        they run, need be told: their marks say that; sought: submissions whose id is not known; held: those of `ids`
        that we believe to be under our user hold; known: ours too, whose state nobody needs. Where more is in doubt
        than one round may ask about, the rest is left for another one: see Snapshot.knows.
        """
        raise NotImplementedError

    def submit(self, request: Request, timeout: float, meanwhile: "Callable[[], None]" = lambda: None) -> Submission:
        """One submission; never raises for a refusal. timeout in seconds: past it the outcome is "unknown". Raises
        NotQueued. meanwhile: called once while the request is under way; not where none is made."""
        raise NotImplementedError

    def release(self, job_id: str) -> None:
        """Lift our user hold; nothing to do for a job that has none or is gone. Raises Unreachable."""
        raise NotImplementedError

    def delete(self, job_id: str) -> None:
        """Take a job out of the queue, or kill it (TERM, later KILL); nothing to do for one that is gone. Raises
        Unreachable, NotNow where the others may still be deleted."""
        raise NotImplementedError

    def move_start(self, job_id: str, when: float) -> bool:
        """Have a job that waits for its time start at `when` (seconds since 1970); False where it waits no longer.
        Raises Unreachable."""
        raise NotImplementedError

    def waiting_reasons(self, ids: "Iterable[str]") -> "Dict[str, str]":
        """Why queued jobs can never start, where the scheduler knows: of the first few of `ids`. Raises Unreachable."""
        return {}

    def words_on(self, job_id: str) -> "Tuple[str, str]":
        """(state as it writes it, "" where it does not say; its own words) on one live job, for a person who asks.
        Raises Unreachable."""
        return "", self.waiting_reasons([job_id]).get(job_id, "")

    def within(self, seconds: float) -> float:
        """`seconds`, or what is left of them."""
        return max(0.1, min(seconds, self.deadline - time.monotonic()))

    def head(self, script: bytes) -> str:
        """The first lines of a runner: which shell runs it, and what is passed on of the script's directives."""
        return runner.head(script)

    def beat_head(self, options: "Dict[str, str]") -> "List[str]":
        """The first lines of the heartbeat's script: as small as a job can be, and what it copies of another's
        directives, by their letters."""
        lines = ["#!/bin/sh"] + ["#PBS -%s %s" % item for item in sorted(options.items())]
        return lines + ["#PBS -l select=1:ncpus=1", "#PBS -l walltime=00:05:00"]

    def describe(self) -> str:
        """One line for `doctor`: which batch system, where, and whether it answers. Raises Unreachable."""
        raise NotImplementedError
