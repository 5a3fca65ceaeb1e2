"""What may be released and submitted now: counts in, places out, nothing else. An array goes whole, by elements."""

from collections import namedtuple

MYPY = False
if MYPY:
    from typing import Dict, List, Optional

# payloads: that run, or could start at any moment; queued: queued, held or waiting in the scheduler; live: all there;
# other_payloads, other_queued, other_live: those of them that do not come and go with our jobs
Counts = namedtuple("Counts", "payloads queued live other_payloads other_queued other_live")
Caps = namedtuple("Caps", "max_running max_queued max_total")  # max_total 0: none
Plan = namedtuple("Plan", "payloads queue")  # Places to run, and in the scheduler's queue

PATIENCE = 50  # rounds that places are kept free for a large array, while smaller jobs wait behind it


class Places:
    """Places of one kind, given away in order to jobs that take one or, arrays, several at once.

    left: how many there are; most: how many there could be if all of our own jobs were gone. An array that does not fit
    yet keeps what is left for itself: else smaller jobs would pass it for ever. But only if it can ever fit, and for so
    many rounds: then the smaller ones have one round, and it may be twice as patient. So none waits for ever, behind it
    or in front. turn: [the array that keeps places, for how many rounds it did so, how many it may], to be remembered
    from one round to the next.
    """

    def __init__(self, left: int, most: int, turn: "Optional[List]" = None) -> None:
        self.left, self.most = max(0, left), most
        self.turn = list(turn or ["", 0, PATIENCE])
        self._met = False

    def take(self, name: str, size: int) -> bool:
        """Whether a job has its places now; name: of an array, the same in every round."""
        if size <= self.left:
            self.left -= size
            return True
        if self.left and 1 < size <= self.most and not self._met:
            self._met = True
            if self.keeps(name):
                self.left = 0
        return False

    def keeps(self, name: str) -> bool:
        """Whether an array that can't go yet holds up those behind it this round. Counts the round."""
        who, rounds, patience = self.turn
        if who != name:
            rounds, patience = 0, PATIENCE
        kept: bool = rounds < patience
        self.turn = [name, rounds + 1, patience] if kept else [name, 0, 2 * patience]
        return kept

    def give_back(self, size: int) -> None:
        """It did not use them after all."""
        self.left += size


def plan(counts: Counts, caps: Caps, turns: "Optional[Dict[str, List]]" = None) -> Plan:
    """The places there are now; turns: Places.turn of the last round, by Plan's names.

    Held jobs take theirs among the payloads first. A job submitted without a hold takes its places in both, since
    nobody knows when it starts; one submitted with a hold in the queue alone. Then payloads <= max_running, queued <=
    max_queued and live <= max_total hold wherever they held before; where they did not (a cap was lowered, the
    scheduler put jobs back), nothing is added to the excess.
    """
    turns = turns or {}
    left, most = caps.max_queued - counts.queued, caps.max_queued - counts.other_queued
    if caps.max_total:
        left, most = min(left, caps.max_total - counts.live), min(most, caps.max_total - counts.other_live)
    running = caps.max_running - counts.payloads, caps.max_running - counts.other_payloads
    return Plan(Places(*running, turn=turns.get("payloads")), Places(left, most, turns.get("queue")))


def too_large(size: int, beats: int, caps: Caps) -> str:
    """Why an array can never be submitted under these caps, "" if it can. beats: 1 where there is a heartbeat."""
    for name, cap, taken in zip(Caps._fields, caps, (0, beats, 2 * beats)):
        why = too_large_for(size, taken, name, cap) if cap else ""
        if why:
            return why
    return ""


def too_large_for(size: int, taken: int, name: str, cap: int) -> str:
    """`too_large` for one cap, of which the heartbeat may take `taken`."""
    if size == 1 or size <= cap - taken:
        return ""
    beside = ", %d of them for the heartbeat" % taken if taken else ""
    return "an array of %d elements goes whole, and needs %s = %d%s; it is %d" % (
        size,
        name,
        size + taken,
        beside,
        cap,
    )
