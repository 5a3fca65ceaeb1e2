"""What new jobs wait for: the words of --after and of job.toml become jobs, and parents come before their children.

A job keeps the jobs it was added to wait for: a retry of it waits for the newest attempts of the same ones, whatever
their names mean by then. So none can come to wait for itself later on; only jobs that are added together can name each
other in a circle, and are refused.
"""

import os
from collections.abc import Sequence

from chasqui_agent import offers, wire

from . import errors
from .jobs import Problems, Tie
from .ledger import Ledger
from .select import Index

Parents = list[int | str]  # a number is a plan that is added together with it, a text the id of a job in the ledger


def in_order(ledger: Ledger, remote: str, plans: Sequence[Tie], problems: Problems) -> list[tuple[int, Parents]]:
    """(number of the plan, what it waits for) of every plan, parents first, else in their order. What can't be resolved
    is a problem of its folder. Raises BadInput for jobs that wait for each other."""
    if not any(plan.after for plan in plans):
        return [(number, []) for number in range(len(plans))]
    words = _Words(ledger, remote, plans)
    parents: list[Parents] = []
    for number, plan in enumerate(plans):
        parents.append([])
        with problems.of(plan.folder):
            parents[number] = words.parents(number)
    return [(number, parents[number]) for number in _sorted(plans, parents)]


class _Words:
    """What a word can mean: a job that is added together with this one (in a job.toml), or one that is known."""

    def __init__(self, ledger: Ledger, remote: str, plans: Sequence[Tie]) -> None:
        self.plans, self.remote = plans, remote
        known = ledger.jobs()
        self.here = Index([job for job in known if job.remote == remote])
        self.elsewhere = Index([job for job in known if job.remote != remote])
        self.names: dict[str, list[int]] = {}
        self.folders = {plan.folder: number for number, plan in enumerate(plans)}
        for number, plan in enumerate(plans):
            self.names.setdefault(plan.name, []).append(number)

    def parents(self, number: int) -> Parents:
        """Raises BadJob, NoSuchJob, AmbiguousJob."""
        found: Parents = []
        for word in self.plans[number].after:
            found += self._meant(number, word)
        found = list(dict.fromkeys(found))
        if len(found) > offers.MAX_PARENTS:
            raise errors.BadJob("it can wait for at most %d jobs" % offers.MAX_PARENTS)
        return found

    def _meant(self, number: int, word: str) -> Parents:
        try:
            return [self._one(number, word)]
        except errors.NoSuchJob:
            if "," not in word:
                raise
        return [self._one(number, part.strip()) for part in word.split(",") if part.strip()]

    def _one(self, number: int, word: str) -> int | str:
        plan = self.plans[number]
        folder = os.path.realpath(os.path.join(plan.folder, os.fsencode(word)))
        if plan.after_in_folder:
            together = [other for other in self.names.get(word, []) if other != number]
            if folder in self.folders:
                together = [self.folders[folder]]
            if len(together) == 1:
                return together[0]
        return self._known(os.fsdecode(folder) if plan.after_in_folder and os.path.isdir(folder) else word)

    def _known(self, word: str) -> str:
        try:
            jobs = self.here.named(word)
        except errors.NoSuchJob:
            for job in self.elsewhere.named(word):
                raise errors.BadJob("%s is a job of %s: a job can wait for jobs of its own cluster (%s) alone"
                                    % (job.name, job.remote, self.remote)) from None
            raise
        if len(jobs) > 1:
            raise errors.BadJob("%s means several jobs: %s" % (wire.printable(word), ", ".join(j.id for j in jobs[:5])))
        return jobs[0].id


def _sorted(plans: Sequence[Tie], parents: Sequence[Parents]) -> list[int]:
    order: dict[int, None] = {}
    for start in range(len(plans)):
        path = [start]
        while path:
            ahead = [parent for parent in parents[path[-1]] if isinstance(parent, int) and parent not in order]
            if not ahead:
                order[path.pop()] = None
                continue
            if ahead[0] in path:
                circle = [*path[path.index(ahead[0]):], ahead[0]]
                raise errors.BadInput("These jobs wait for each other: %s."
                                      % " -> ".join(plans[number].name for number in circle))
            path.append(ahead[0])
    return list(order)
