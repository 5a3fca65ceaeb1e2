"""The places at the site in one round of the pump, and what its refusals teach: respected afterwards.

    state.json "site_limits": {where: [number, when]}     where: "*", the whole server, or a queue ("": the default one)

The number is that of the jobs there when one more was refused, ending ones too: they count at the site until they are
quite gone. It is learnt only right after a look at the server, so that it is never too low: others of this user's may
have come since. It is raised by one every hour, for one submission that may meet the wall again. Of a limit that is
shared with others, a group's or a project's, our own number says nothing: it is full for a round, and none is learnt.
"""

import os

from . import bounds, directives, marks
from .bounds import Asked, Place, limit, whole
from .schedulers.base import EVERYWHERE

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Optional, Set, Tuple

    from .bounds import Bound, Bounds
    from .live import Standing
    from .schedulers.base import Snapshot

ENDING_SECONDS = 2.0  # a normal end is gone from the server within 0.3 s
BEAT = ""  # in place of the path of a script


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
    """The places at the site in one round of the pump.

    held_back: the limits that kept a script back, by place; doubt: whether the site refused one more where it publishes
    that there is room.
    """

    def __init__(
        self,
        known: "Bounds",
        now: float,
        standing: "List[Standing]",
        in_flight: "List[Tuple[str, int]]",
        snapshot: "Snapshot",
        fresh: bool,
        beats: "List[str]",
        beat_options: "Optional[Dict[str, str]]" = None,
    ) -> None:
        """in_flight: (path of the script, how many it counts as) of submissions whose outcome is not known."""
        self.known, self.now, self.fresh = known, now, fresh
        self.held_back: "Dict[Place, Bound]" = {}
        self.doubt = False
        self._live = snapshot.live
        self._standing = standing
        self._jobs: "List[Tuple[str, int, int]]" = []  # path of the script, how many it counts as, how many do not run
        self._jobs += [(path, size, size) for path, size in in_flight]
        self._jobs += [(BEAT, 1, 1) for beat in beats if beat in snapshot.live or beat == beats[-1]]
        ours = {job.id for job in standing}.union(beats)
        others = [job for job in snapshot.live.values() if job.id not in ours]
        self._foreign = sum(job.queued + job.running for job in others), sum(job.queued for job in others)
        self.arrays: "List[Tuple[Asked, int]]" = []  # that have no room, with their elements
        self._full: "Set[Place]" = set()
        self._asked = {BEAT: known.resolved(bounds.asked(beat_options or {}))}
        self._bounds: "Dict[Asked, List[Bound]]" = {}
        self._added: "List[Tuple[Asked, int]]" = []
        self._before: "Dict[Place, int]" = {}

    def room(self, job: "Asked", size: int = 1) -> bool:
        """Whether a job (an array, of `size`) may be let in, as far as anybody can know."""
        if job not in self._bounds:
            self._bounds[job] = self.known.of(job, self.now)
        for bound in self._bounds[job]:
            beats = self._beats_in(bound.place) if bound.source == "own" else 0
            if self._count(bound.place) - beats + size > bound.number:
                self.held_back[bound.place] = bound
                return False
        return not any(place.holds(job) for place in self._full)

    def ever(self, job: "Asked", size: int) -> bool:
        """Whether an array could be let in if all of our own were gone but the heartbeat."""
        return all(size + (bound.source != "own") <= bound.number for bound in self.known.of(job, self.now))

    def took(self, job: "Asked", size: int = 1) -> None:
        """The site let a job in."""
        self._added.append((job, size))

    def accepted(self, job: "Asked", size: int = 1) -> None:
        """As `took`, of a submission. With more there than a learnt limit, the site has raised it: how far, its next
        refusal tells."""
        self.took(job, size)
        for where in {EVERYWHERE, job.queue} if self.fresh else ():
            if where in self.known.learnt and self._count(whole(where)) > self.known.learnt[where][0]:
                del self.known.learnt[where]
                self._bounds.clear()

    def forget_taken(self) -> None:
        """Nothing was let in yet: it was a rehearsal."""
        del self._added[:]

    def refused(self, where: str) -> None:
        """The site refused one more there: for this round it is full. Which jobs fill a queue no query tells, so only
        where all are ours its limit can be learnt."""
        place = whole(where if where == EVERYWHERE else self.known.resolved(bounds.asked({"q": where})).queue)
        self._full.add(place)
        counted = self.fresh and (where == EVERYWHERE or not self._foreign[0])
        count = self._count(place) if counted else None
        learn(self.known.learnt, place.where, count, self.now)
        self._bounds.clear()
        told = self.known.published(Asked(place.where, "", "", ""))
        self.doubt |= any(count is not None and one.place == place and count < one.number for one in told)

    def refused_shared(self, kind: str, where: str, job: "Asked") -> None:
        """The site refused one more of the job's group or project: there it is full, for this round."""
        where = EVERYWHERE if where == EVERYWHERE else job.queue
        self._full.add(Place(where, kind, getattr(job, kind), False))

    def asked_in(self, path: str, read: "Optional[Dict[str, str]]" = None) -> "Asked":
        """What decides on a script's limits. read: its directives, where somebody has read them already."""
        if path not in self._asked:
            found = directives.asked_in(path) if read is None else read
            self._asked[path] = self.known.resolved(bounds.asked(found))
        return self._asked[path]

    @property
    def partial(self) -> bool:
        """Whether one script may be let in where another can't."""
        return self.known.partial or any(place != whole(EVERYWHERE) for place in self._full)

    def _count(self, place: Place) -> int:
        """Jobs there."""
        if place not in self._before:
            self._jobs += [self._counted(job) for job in self._standing if not self._gone(job)]
            self._standing = []
            there = [job for job in self._jobs if self._is_in(place, job[0])]
            ours = sum(waiting if place.waiting else live for _, live, waiting in there)
            everything = place.where == EVERYWHERE and not place.kind
            self._before[place] = ours + (self._foreign[place.waiting] if everything else 0)
        return self._before[place] + sum(size for job, size in self._added if place.holds(job))

    def _beats_in(self, place: Place) -> int:
        return sum(size for path, size, _ in self._jobs if path == BEAT and self._is_in(place, BEAT))

    def _is_in(self, place: Place, path: str) -> bool:
        return (place.where == EVERYWHERE and not place.kind) or place.holds(self.asked_in(path))

    def _counted(self, job: "Standing") -> "Tuple[str, int, int]":
        seen = self._live.get(job.id)
        waiting = max(0, job.size - max(job.begun, job.flagged))
        return os.path.join(job.meta, "script"), seen.queued + seen.running if seen else job.size, waiting

    def _gone(self, job: "Standing") -> bool:
        """Whether a job has ended, and probably left the server since it was last asked."""
        if job.marks.flag is None or self.fresh or job.id == os.environ.get("PBS_JOBID"):
            return False
        ended = marks.ended_at(job.meta, job.entry.token, job.marks.runs)
        return self.now - ended > ENDING_SECONDS
