"""Which limits on numbers of jobs one job is under: the site's, published or learnt from its refusals, and the user's
own for a queue, a project or an account.
"""

import re
from collections import namedtuple

from .schedulers.base import EVERYWHERE

MYPY = False
if MYPY:
    from typing import Any, Dict, Iterable, List, Optional

    from .settings import Settings

HOUR = 3600.0
NO_PROJECT = "_pbs_project_default"  # what PBS calls that of a job that names none
OWN = {"queues": "", "projects": "project", "accounts": "account"}  # tables of the settings -> kind of place

# What of a script's directives decides which limits it is under.
Asked = namedtuple("Asked", "queue project account group")
# One limit, its number, and where it is from: "published", "learnt" or "own".
Bound = namedtuple("Bound", "place number source")


class Place(namedtuple("Place", "where kind name waiting")):
    """What a limit is on: the jobs in `where` (EVERYWHERE, or a queue), of the project, account or group `name` where
    there is a `kind`, and of these those alone that do not run where `waiting`."""

    __slots__ = ()

    def holds(self, asked: Asked) -> bool:
        """Whether a job with these directives counts here."""
        return self.where in (EVERYWHERE, asked.queue) and (not self.kind or getattr(asked, self.kind) == self.name)


def whole(where: str) -> Place:
    """All jobs of the server, or of a queue."""
    return Place(where, "", "", False)


def asked(directives: "Dict[str, str]") -> Asked:
    """Of a script's directives, "" for what it leaves to the site."""
    group = re.search(r"group_list=([^,@\s]+)", directives.get("W", ""))
    queue = directives.get("q", "").partition("@")[0]
    return Asked(queue, directives.get("P", ""), directives.get("A", ""), group.group(1) if group else "")


def limit(learnt: "Dict[str, Any]", where: str, now: float) -> "Optional[int]":
    """The limit learnt there, raised by one for every hour since; None where none is."""
    if where not in learnt:
        return None
    number, when = learnt[where]
    return int(number) + max(0, int((now - when) // HOUR))


class Bounds:
    """All limits that one root knows of. learnt, published: as in state.json, see there; own: table of OWN -> name ->
    number."""

    def __init__(
        self,
        learnt: "Dict[str, Any]",
        published: "Optional[Dict[str, Any]]" = None,
        own: "Optional[Dict[str, Dict[str, int]]]" = None,
    ) -> None:
        self.learnt, self.own = learnt, own or {}
        self._site = published or {}
        self._rows = [row for row in self._site.get("rows", ()) if row[3] != "running"]  # what runs, PBS sees to itself

    def resolved(self, wanted: Asked) -> Asked:
        """With what the site takes for what the script leaves to it, as far as it is known."""
        queue = wanted.queue or self._site.get("default", "")
        group = wanted.group or self._site.get("group", "")
        return Asked(queue, wanted.project or NO_PROJECT, wanted.account, group)

    @property
    def partial(self) -> bool:
        """Whether some limit is not on all jobs alike."""
        return any(where != EVERYWHERE for where in self.learnt) or any(self.own.values()) or any(
            row[0] != EVERYWHERE or row[1] for row in self._rows
        )

    def of(self, job: Asked, now: float) -> "List[Bound]":
        """Those that a job with these directives, `resolved`, is under."""
        learnt = [(where, limit(self.learnt, where, now)) for where in (EVERYWHERE, job.queue)]
        found = [Bound(whole(where), number, "learnt") for where, number in learnt if number is not None]
        found += self.published(job) + self.owned()
        return [bound for bound in found if bound.place.holds(job)]

    def owned(self) -> "List[Bound]":
        """The user's own."""
        found = [Bound(whole(queue), number, "own") for queue, number in sorted(self.own.get("queues", {}).items())]
        for table, kind in (("projects", "project"), ("accounts", "account")):
            for name, number in sorted(self.own.get(table, {}).items()):
                found.append(Bound(Place(EVERYWHERE, kind, name, False), number, "own"))
        return found

    def published(self, job: Asked) -> "List[Bound]":
        """The site's, as it publishes them, that this job may be under."""
        found: "Dict[Place, Any]" = {}
        for where, kind, name, measure, number in self._rows:
            hers = getattr(job, kind) if kind else ""
            if name not in ("", hers):
                continue
            place = Place(where, kind, hers, measure == "waiting")
            named, known = (name != "" if kind else False), found.get(place)
            if known is None or (named, -number) > known:  # a named one goes before a generic one, then the lower
                found[place] = (named, -number)
        return [Bound(place, -number, "published") for place, (_, number) in found.items()]


def of_state(value: "Dict[str, Any]", chosen: "Settings") -> Bounds:
    """The limits of a root, by its state.json and its settings."""
    own = {table: getattr(chosen, table) for table in OWN}
    return Bounds(value.setdefault("site_limits", {}), value.get("published"), own)


def name_of(place: Place) -> str:
    """What the settings call the user's own cap on a place."""
    kinds = {kind: table for table, kind in OWN.items()}
    return "%s.%s" % (kinds[place.kind], place.name or place.where)


def words(place: Place, number: int, source: str) -> str:
    """One limit as a person reads it."""
    where = " in queue %s" % place.where if place.where not in ("", EVERYWHERE) else ""
    where = where or (" in the default queue" if place.where == "" else "")
    what = (" of %s %s" % (place.kind, place.name) if place.name else " of each " + place.kind) if place.kind else ""
    what = " of no project" if place.name == NO_PROJECT else what
    jobs = "%d job%s%s%s%s" % (number, "" if number == 1 else "s", what, where, " that do not run" * place.waiting)
    if source == "own":
        return "your own cap is " + jobs
    return "the site allows " + jobs + (", as its refusals tell" if source == "learnt" else "")


def published_words(row: "List[Any]") -> str:
    """One row of what the site publishes, as a person reads it."""
    where, kind, name, measure, number = row
    place = words(Place(where, kind, name, measure == "waiting"), number, "")[len("the site allows ") :]
    return "at most " + place + (", running" if measure == "running" else "")


def told(rows: "Iterable[Any]", job: "Optional[Asked]" = None) -> "List[str]":
    """What state.json "held_back" says, in words; of one job's, if it is given."""
    found = [(Place(*row[:4]), row[4], row[5]) for row in rows]
    return [words(*one) for one in found if job is None or one[0].holds(job)]
