"""Scripts passed over because one that asks for the same was refused: its queue is closed, or it asks for too much.

Others may be let in meanwhile: else one that was refused would hold up all behind it while its queue is closed.
Of each kind that was refused one is tried in the next round; where they are many, of so many that kinds not yet tried
have their turn, too.

    state.json "passed": [kinds known to be refused, those first that are to be tried first]
    state.json "looked": the path up to which all scripts but the first ones were looked at, and had to be passed over
"""

import os
import re
import time
import zlib

from . import directives

MYPY = False
if MYPY:
    from typing import Dict, Iterable, List, Set

    from .schedulers.base import Submission

MOST = 10  # kinds in one round: each costs a call
LOOK_SECONDS = 2.0  # of a round, for one to submit behind any number that have to be passed over
_NAMES = "NoejvhSmM"  # letters of directives that no refusal is about


class Passed:
    """known, start: the kinds that were refused in the last round and how far it looked, as its `left` and `looked`
    told; unread: whether scripts wait behind those that this round read, or would try; further: whether the next one
    gets further than this, for one was rejected or more was looked at."""

    def __init__(self, known: "Iterable[str]", start: str = "") -> None:
        self._before = list(known)
        self._start = start if self._before else ""
        self._from = _place(self._start)
        self._reached = ""
        self._until = 0.0
        self._turn = set(self._before[: MOST // 2])
        self._kinds: "Dict[str, str]" = {}  # of scripts, by path: one that was submitted is not there any more
        self._met: "Set[str]" = set()
        self._kept_out: "Set[str]" = set()
        self._settled: "Set[str]" = set()  # kinds tried that need not be passed over any more
        self._let_in = False
        self._tried: "List[str]" = []
        self.kinds: "Set[str]" = set()
        self.unread = self.further = False

    def only_one(self, path: str) -> bool:
        """Whether a script may be tried in this round: it is of no kind known to be refused, or the first of one whose
        turn it is."""
        if not self._before:
            return True
        kind = self._kind(path)
        if kind not in self._before:
            return True
        first = kind in self._turn and kind not in self._met
        self._met.add(kind)
        if not first:
            self._kept_out.add(kind)
        return first

    def stops(self, path: str) -> bool:
        """Whether to look no further than this path, behind the first ones: it is worth while only for kinds that are
        refused, and for so long."""
        if not self._before:
            return True
        self._until = self._until or time.monotonic() + LOOK_SECONDS
        if self.seen(path) or time.monotonic() < self._until:
            return False
        self.further |= not self._reached and _place(path) > self._from
        self.reached(path)
        return True

    def seen(self, path: str) -> bool:
        """Whether this was looked at in an earlier round, and passed over."""
        return _place(path) < self._from

    def reached(self, path: str) -> None:
        """The next round may begin here, behind the first ones."""
        self._reached = self._reached or path

    def looked(self) -> str:
        """From where on to look in the next round, behind the first ones; "" where nothing is known."""
        if self._let_in:
            return ""
        return self._reached or (self._start if self.unread else "")

    def alone(self, path: str) -> bool:
        """Whether nothing of its kind was kept out of this round for it."""
        return self._kind(path) not in self._kept_out

    @property
    def again(self) -> int:
        """How many of those to be tried are of kinds known to be refused: they use up no places of others."""
        return len(self._met & self._turn)

    def over(self, path: str) -> bool:
        """Whether one that asks for the same was refused in this round."""
        return bool(self.kinds) and self._kind(path) in self.kinds

    def answered(self, path: str, answer: "Submission") -> None:
        """A script was tried; `refused` comes behind it."""
        kind = self._kind(path) if self._before else ""
        self._tried.append(kind)
        if kind in self._met and answer.kind in ("accepted", "permanent", "unfit"):
            self._settled.add(kind)
            self._let_in = True

    def doubted(self, paths: "List[str]") -> bool:
        """These were all refused in the same words: whether to go on with scripts of other kinds."""
        self.kinds.update(self._kind(path) for path in paths)
        self.unread |= len(self.kinds) >= MOST
        return len(self.kinds) < MOST

    def rejected_after_all(self, path: str) -> None:
        """One that was doubted was rejected, for others were let in: more of its kind may be."""
        self.further = True
        if self._before and self._kind(path) in self._met:
            self._settled.add(self._kind(path))
            self._let_in = True

    def refused(self, path: str, answer: "Submission", size: int) -> bool:
        """Whether to go on with scripts of other kinds behind this refusal."""
        # How long an array may hold up others under a limit is Places.keeps' to say.
        if not _about_the_script(answer) or (size > 1 and answer.kind == "limit"):
            return False
        if len(self.kinds) == MOST:
            self.unread = True
            return False
        self.kinds.add(self._kind(path))
        return True

    def let_in(self) -> bool:
        """Whether the first of a kind known to be refused was let in, or rejected: others of it are waiting."""
        return self._let_in

    def new(self) -> bool:
        """Whether a kind was refused that was not known: one behind it, not read for its sake, may be let in. Where
        nearly every script is a kind of its own, the rest waits for other wakes."""
        return len(self._before) < 2 * MOST and not self.kinds.issubset(self._before)

    def left(self) -> "List[str]":
        """The kinds to be known in the next round: those that were not tried, and then those refused."""
        known = [kind for kind in self._before if kind in self._met and kind not in self._tried]
        return known + sorted(self.kinds | (self._met - self._settled - set(known)))

    def _kind(self, path: str) -> str:
        if path not in self._kinds:
            self._kinds[path] = _kind(path)
        return self._kinds[path]


def _place(path: str) -> "List[str]":
    """What sorts as scripts wait: priority, shard, name."""
    return path.split(os.sep)[-3:]


def _about_the_script(answer: "Submission") -> bool:
    if answer.learn is not None or answer.shared or re.search("connect|contact|communicat", answer.text, re.IGNORECASE):
        return False
    return answer.kind in ("limit", "other") or (answer.kind == "temporary" and "queue" in answer.text.lower())


def _kind(path: str) -> str:
    """The same for scripts that ask for the same, whatever they are called."""
    try:
        with open(path, "rb") as stream:
            found = sorted(one for one in directives.options(stream.read()) if one[0] not in _NAMES)
    except OSError:
        found = []
    return "%08x" % (zlib.crc32(repr(found).encode("utf-8", "replace")) & 0xFFFFFFFF)
