"""Jobs that go anywhere (`add --remote any`): which remote takes each, decided once for good when it is offered.

Until then such a job belongs to the remote `any`, or to the one it was given last: the next `sync --all` gives it
again, where that remote could not be reached or had no room. Whoever offers a job marks it first, in a transaction, as
a job of that very remote; whoever gives jobs takes unmarked ones alone, in a transaction. So none is offered to two.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from .. import errors, states
from ..config import ANY, Config, Remote
from ..fields import dataclass
from ..ledger import Job, Ledger, now
from ..states import QUEUED_LOCAL

_TAKES_PLACE = (QUEUED_LOCAL, states.UPLOADED, states.SUBMITTED, states.RUNNING)


def anywhere(config: Config) -> Remote:
    """What `add` plans such a job for. Raises NoConfig where there is no remote at all."""
    if not config.remotes:
        raise errors.NoConfig(path=config.path)
    return Remote(ANY, "local")


@dataclass
class Slots:
    """The places of a remote as far as the ledger knows: to run at once, and in all that its caps let it take."""

    running: int
    queued: int
    refuses: Mapping[str, Any]  # jobs that it did not take, with its words

    def take(self) -> None:
        self.running -= 1
        self.queued -= 1


def place(ledger: Ledger, config: Config, names: Iterable[str]) -> dict[str, int]:
    """Give each job that goes anywhere, and was never offered, to one of the remotes `names`; how many each takes now
    that it did not have before.

    The first in config.toml's order with a place to run at once; where there is none, the first whose queue has one;
    else none: the job waits for the next sync. One that it was given before is preferred, if it has room. A remote
    whose last sync ended with a refusal, or for want of room, takes none. One transaction: all of it or nothing.
    """
    chosen = set(names)
    moved: dict[str, int] = {}
    with ledger.transaction():
        jobs = _unoffered(ledger, config)
        if not jobs:
            return {}
        slots = {name: _slots(ledger, remote, jobs) for name, remote in config.remotes.items() if name in chosen}
        for job in jobs:
            name = _choose(job, slots)
            if name != ANY:
                slots[name].take()
            if name != job.remote:
                _give(ledger, job, name)
                moved[name] = moved.get(name, 0) + 1
    moved.pop(ANY, None)
    return moved


def _unoffered(ledger: Ledger, config: Config) -> list[Job]:
    """In the order they would be uploaded. One that another job waits for stays where that one was added to go."""
    synced = [str(row[0]) for row in ledger.rows("SELECT name FROM remotes")]  # config.toml may name them no more
    known = list(dict.fromkeys([ANY, *config.remotes, *synced]))
    found = ledger.jobs("state = 'QUEUED_LOCAL' AND offered = 0 AND options LIKE ? AND remote IN (%s)"
                        " AND NOT EXISTS (SELECT 1 FROM parents WHERE parent = jobs.id)"
                        % ", ".join("?" * len(known)), '%"any": true%', *known)
    return sorted((job for job in found if job.options.get("any") is True), key=lambda job: -job.priority)


def _slots(ledger: Ledger, remote: Remote, unplaced: list[Job]) -> Slots:
    """What its caps leave beside the jobs that are there, or go there in any case."""
    counts = ledger.counts(remote.name, open_only=True)
    taken = sum(counts.get(state, 0) for state in _TAKES_PLACE) - sum(job.remote == remote.name for job in unplaced)
    caps = remote.caps
    most = min(caps.max_running + caps.max_queued, caps.max_total or 1 << 30)
    report = ledger.remote_state(remote.name).report or {}
    kept = report.get("kept")
    if _stuck(report):
        return Slots(0, 0, {})
    return Slots(min(caps.max_running, most) - taken, most - taken, kept if isinstance(kept, dict) else {})


def _stuck(report: Mapping[str, Any]) -> bool:
    """Whether the last sync said that nothing goes on there."""
    pump = report.get("pump")
    words = [pump.get(key) for key in ("refused", "full", "note", "error")] if isinstance(pump, dict) else []
    return bool(report.get("stopped") or any(words))


def _choose(job: Job, slots: Mapping[str, Slots]) -> str:
    """The remote of a job; ANY where none has a place."""
    order = sorted(slots, key=lambda name: name != job.remote)  # sorted keeps the others in their order
    order = [name for name in order if job.id not in slots[name].refuses]
    at_once = (name for name in order if slots[name].running > 0)
    later = (name for name in order if slots[name].queued > 0)
    return next(at_once, None) or next(later, ANY)


def _give(ledger: Ledger, job: Job, name: str) -> None:
    ledger.db.execute("UPDATE jobs SET remote = ? WHERE id = ?", (name, job.id))
    ledger.db.execute("INSERT INTO events(job, attempt, at, event, why) VALUES (?, ?, ?, 'placed', ?)",
                      (job.id, job.attempt, now(), name))
