"""What the relay needs of a batch system, and nothing else. Designed against OpenPBS, Torque and Slurm.

Every call can fail to reach the batch system: it then raises Unreachable, and the caller changes no state. "I could not
ask" is never "the job is gone".
"""

from collections import namedtuple

MYPY = False
if MYPY:
    from typing import Dict, Iterable, List


class Unreachable(Exception):
    """The scheduler did not answer, or not in a way that can be believed. The message is its own words."""


# One submission. script: the runner's path; folder: the work folder, the cwd of the call; name: as it shall stand in
# the queue; variables: the -v list, (name, value or None for "from the environment"); output/error: paths; hold: with
# a user hold; rerun: whether the batch system may start it a second time by itself.
Request = namedtuple("Request", "script folder name token variables output error join hold rerun directives")

# kind: "accepted" (id is set), "limit" (the site's cap: wait), "temporary" (ask later), "permanent" (never),
# "unknown" (it may have been accepted: only a look at the queue or the claim tells). text: the scheduler's own words.
Submission = namedtuple("Submission", "kind id text")

# A live job. state: Q H W R E as in PBS; token: "" where it is not known to be ours.
Live = namedtuple("Live", "id state token")

# An ended job the scheduler still remembers. exit: its Exit_status (256 + signal where it was killed), None where it
# does not say; why: its words, "" where there is nothing to add; lost: it can not say what became of it.
Ended = namedtuple("Ended", "id exit why token lost")


DELETED = "deleted"  # Ended.why of a job that somebody deleted while it ran


class Snapshot:
    """One query round: all live jobs of this user, and what is remembered of the ended ones that were asked for."""

    def __init__(self, live: "Dict[str, Live]", ended: "Dict[str, Ended]") -> None:
        self.live = live
        self.ended = ended

    def to_json(self) -> "Dict[str, List[list]]":
        """Plain lists, to be kept until the next round is allowed."""
        return {"live": [list(job) for job in self.live.values()], "ended": [list(job) for job in self.ended.values()]}

    @staticmethod
    def from_json(value: "Dict[str, List[list]]") -> "Snapshot":
        """The snapshot `to_json` described. Raises ValueError, KeyError or TypeError for anything else."""
        live = [Live(*row) for row in value["live"]]
        ended = [Ended(*row) for row in value["ended"]]
        return Snapshot({job.id: job for job in live}, {job.id: job for job in ended})


class Scheduler:
    """One batch system, seen by one user."""

    name = ""
    name_limit = 15  # longest job name it takes
    stages_output = True  # output files appear only some time after the payload ended
    asks_a_server = True  # a query costs somebody else something: never more than one in query_interval

    def query(self, ids: "Iterable[str]", tokens: "Iterable[str]") -> Snapshot:
        """One query round. ids: jobs that must be found live or ended if the scheduler knows them at all; tokens: of
        submissions whose id is not known. Raises Unreachable."""
        raise NotImplementedError

    def submit(self, request: Request, timeout: float) -> Submission:
        """One submission; never raises for a refusal. timeout in seconds: past it the outcome is "unknown"."""
        raise NotImplementedError

    def release(self, job_id: str) -> None:
        """Lift our user hold; nothing to do for a job that has none. Raises Unreachable."""
        raise NotImplementedError

    def delete(self, job_id: str) -> None:
        """Take a job out of the queue, or kill it (TERM, later KILL); nothing to do for one that is gone. Raises
        Unreachable."""
        raise NotImplementedError

    def describe(self) -> str:
        """One line for `doctor`: which batch system, where, and whether it answers. Raises Unreachable."""
        raise NotImplementedError
