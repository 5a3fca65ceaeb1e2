"""Which jobs a command means: ids, unique beginnings of ids, names, folders, states, name patterns, or all."""

import bisect
import fnmatch
import os
from collections.abc import Sequence

from chasqui_agent import wire

from . import errors, states
from .fields import dataclass
from .ledger import Job, Ledger


@dataclass(frozen=True)
class Selection:
    """words are joined (any of them); states and name narrow down. `remote` "" means every remote."""

    words: Sequence[str] = ()
    states: Sequence[str] = ()
    name: str = ""
    all: bool = False
    remote: str = ""

    @property
    def empty(self) -> bool:
        return not (self.words or self.states or self.name or self.all)


def parse_states(text: str) -> tuple[str, ...]:
    """"failed,LOST" -> ("FAILED", "LOST"). Raises BadInput for what is no state."""
    chosen = tuple(word.strip().upper() for word in text.split(",") if word.strip())
    for word in chosen:
        if word not in states.STATES:
            raise errors.BadInput("There is no state %s (known: %s)" % (wire.printable(word), ", ".join(states.STATES)))
    return chosen


def find(ledger: Ledger, selection: Selection, nothing_is_all: bool = False) -> list[Job]:
    """The selected jobs, in the order they were added.

    nothing_is_all: an empty selection means every job (list); else it raises NothingSelected.
    Raises NoSuchJob for a word that names nothing, AmbiguousJob for a beginning of several ids.
    """
    if selection.empty and not nothing_is_all:
        raise errors.NothingSelected()
    jobs = ledger.jobs("remote = ?", selection.remote) if selection.remote else _candidates(ledger, selection)
    if selection.words:
        index = Index(jobs)
        chosen = {job.id for word in selection.words for job in index.named(word)}
        jobs = [job for job in jobs if job.id in chosen]
    if selection.states:
        jobs = [job for job in jobs if job.state in selection.states]
    if selection.name:
        jobs = [job for job in jobs if fnmatch.fnmatchcase(job.name, selection.name)]
    return jobs


def one(ledger: Ledger, word: str, remote: str = "") -> Job:
    """The job that a word means. Raises as `find` does, AmbiguousJob for the name or folder of several, too."""
    found = find(ledger, Selection((word,), remote=remote))
    if len(found) > 1:
        what = "the %s of several jobs" % ("name" if found[0].name == word else "folder")
        raise errors.AmbiguousJob(word=wire.printable(word), what=what, known=_some([job.id for job in found]),
                                  hint="type the id of one of them")
    return found[0]


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")


def _candidates(ledger: Ledger, selection: Selection) -> list[Job]:
    if not selection.words and selection.states:
        marks = ", ".join("?" * len(selection.states))
        return ledger.jobs("state IN (%s)" % marks, *selection.states)
    return ledger.jobs()


class Index:
    """Jobs by what a word can mean."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.ids = sorted(job.id for job in jobs)
        self.by_id = {job.id: [job] for job in jobs}
        self.by_name: dict[str, list[Job]] = {}
        self.by_folder: dict[bytes, list[Job]] = {}
        for job in jobs:
            self.by_name.setdefault(job.name, []).append(job)
            self.by_folder.setdefault(job.folder, []).append(job)

    def named(self, word: str) -> list[Job]:
        """What one word means: an id, else a name, else a folder, else the beginning of exactly one id."""
        folder = os.path.realpath(os.fsencode(word))
        found = self.by_id.get(word) or self.by_name.get(word) or self.by_folder.get(folder)
        return found or self._beginning(word)

    def _beginning(self, word: str) -> list[Job]:
        start = bisect.bisect_left(self.ids, word)
        found = [job for job in self.ids[start:start + 6] if word and job.startswith(word)]
        if len(found) > 1:
            what = "the beginning of several job ids"
            raise errors.AmbiguousJob(word=wire.printable(word), what=what, known=_some(found))
        if not found:
            raise errors.NoSuchJob(word=wire.printable(wire.path_text(os.fsencode(word))))
        return self.by_id[found[0]]


def short_ids(ledger: Ledger, least: int = 4) -> dict[str, str]:
    """Each job's id cut to what still means it alone, at least `least` characters."""
    ids = sorted(str(row[0]) for row in ledger.rows("SELECT id FROM jobs"))
    short = {}
    for position, job in enumerate(ids):
        neighbours = ids[max(0, position - 1):position] + ids[position + 1:position + 2]
        shared = max((_shared(job, other) for other in neighbours), default=0)
        short[job] = job[:max(least, shared + 1)]
    return short


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
