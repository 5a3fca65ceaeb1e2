"""How many jobs the site lets this user have: learnt from its refusals, respected afterwards.

    state.json "site_limits": {where: [number, when]}     where: "*", the whole server, or a queue ("": the default one)

The number is that of the jobs there when one more was refused, ending ones too: they count at the site until they are
quite gone. It is learnt only right after a look at the server, so that it is never too low: others of this user's may
have come since. It is raised by one every hour, for one submission that may meet the wall again.
"""

import os

from . import directives, marks
from .schedulers.base import EVERYWHERE

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Optional, Set

    from .live import Standing
    from .schedulers.base import Snapshot
    from .spool import Entry

HOUR = 3600.0
ENDING_SECONDS = 2.0  # a normal end is gone from the server within 0.3 s


def limit(learnt: "Dict[str, Any]", where: str, now: float) -> "Optional[int]":
    """The limit there as far as it is known, None where it is not."""
    if where not in learnt:
        return None
    number, when = learnt[where]
    return int(number) + max(0, int((now - when) // HOUR))


def learn(learnt: "Dict[str, Any]", where: str, count: "Optional[int]", now: float) -> None:
    """One more was refused while `count` jobs were there, None where that is not known: then nothing is learnt but
    that the hourly try has failed."""
    known = limit(learnt, where, now)
    if known is None:
        if count is not None:
            learnt[where] = [max(1, count), now]
        return
    base = int(learnt[where][0])
    below = known if count is None else count
    if below < known or known > base:
        learnt[where] = [max(1, min(below, max(base, known - 1))), now]


class Site:
    """The places at the site in one round of the pump. held_back: whether a script stayed because of a learnt limit."""

    def __init__(
        self,
        learnt: "Dict[str, Any]",
        now: float,
        standing: "List[Standing]",
        submitting: int,
        snapshot: "Snapshot",
        fresh: bool,
        beats: "List[str]",
    ) -> None:
        self.learnt, self.now, self.standing, self.fresh = learnt, now, standing, fresh
        self.held_back = False
        self._live = snapshot.live
        self._others = submitting + len([beat for beat in beats if beat in snapshot.live or beat == beats[-1]])
        ours = {job.id for job in standing}.union(beats)
        self.foreign = sum(job.queued + job.running for job in snapshot.live.values() if job.id not in ours)
        self._full: "Set[str]" = set()
        self._queues: "Dict[str, str]" = {}
        self._added: "List[str]" = []
        self._before: "Dict[str, int]" = {}

    def room(self, queue: str, size: int = 1) -> bool:
        """Whether a job (an array, of `size`) in `queue` may be let in, as far as anybody can know."""
        for where in (EVERYWHERE, queue):
            known = limit(self.learnt, where, self.now)
            if where in self._full or (known is not None and self._count(where) + size > known):
                self.held_back = True
                return False
        return True

    def took(self, queue: str, size: int = 1) -> None:
        """The site let a job in."""
        self._added += [queue] * size

    def refused(self, where: str) -> None:
        """The site refused one more there: for this round it is full. Which jobs fill a queue no query tells, so only
        where all are ours its limit can be learnt."""
        self._full.add(where)
        counted = self.fresh and (where == EVERYWHERE or not self.foreign)
        learn(self.learnt, where, self._count(where) if counted else None, self.now)

    def queue_of(self, entry: "Entry") -> str:
        """The queue a script asks for, "" for the default one."""
        return self._queue(entry.path)

    @property
    def by_queue(self) -> bool:
        """Whether single queues have limits."""
        return bool((set(self.learnt) | self._full) - {EVERYWHERE})

    def _count(self, where: str) -> int:
        """Jobs there."""
        if where not in self._before:
            ours = sum(self._elements(job) for job in self.standing if self._is_in(where, job) and not self._gone(job))
            self._before[where] = ours + self._others + (self.foreign if where == EVERYWHERE else 0)
        return self._before[where] + (len(self._added) if where == EVERYWHERE else self._added.count(where))

    def _is_in(self, where: str, job: "Standing") -> bool:
        return where == EVERYWHERE or self._queue(os.path.join(job.meta, "script")) == where

    def _queue(self, script: str) -> str:
        if script not in self._queues:
            try:
                with open(script, "rb") as stream:
                    self._queues[script] = directives.asked(stream.read()).get("q", "")
            except FileNotFoundError:
                self._queues[script] = ""
        return self._queues[script]

    def _elements(self, job: "Standing") -> int:
        known = self._live.get(job.id)
        return known.queued + known.running if known else job.size

    def _gone(self, job: "Standing") -> bool:
        """Whether a job has ended, and probably left the server since it was last asked."""
        if job.marks.flag is None or self.fresh or job.id == os.environ.get("PBS_JOBID"):
            return False
        ended = marks.ended_at(job.meta, job.entry.token, job.marks.runs)
        return self.now - ended > ENDING_SECONDS
