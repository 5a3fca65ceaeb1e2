"""What the journal says becomes what the ledger knows: each job is read once for a piece of records, and written once.

A statement or two for each record were a third of what it cost to bring a thousand ended jobs home.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import states
from .fields import replace
from .rows import Job, now

if TYPE_CHECKING:
    from .ledger import Ledger

Record = Mapping[str, Any]

_SORTED = json.JSONEncoder(sort_keys=True)  # json.dumps makes a new one each time
_SOME = 500  # jobs asked for in one query
_EVENT = "INSERT INTO events(job, attempt, at, event, old, new, why, record) VALUES (?,?,?,?,?,?,?,?)"
_JOB = ("UPDATE jobs SET state = ?, changed = ?, exit = ?, signal = ?, why = ?, pbs = ?, elements = ?, acked = ?,"
        " offered = ? WHERE id = ?")


class Piece:
    """Records that are applied together, inside a transaction of the ledger's that is open."""

    def __init__(self, ledger: "Ledger", remote: str, records: Sequence[Record]) -> None:
        self.ledger, self.remote = ledger, remote
        self._jobs: dict[str, Job] = {}
        self._seen: set[tuple[str, str]] = set()  # (job, digest) of records that were applied
        self._events: list[tuple[Any, ...]] = []
        self._facts: dict[str, dict[str, Any]] = {}  # job -> columns of its newest attempt
        self._reopened: list[str] = []
        ids = list({str(record.get("job", "")) for record in records})
        for start in range(0, len(ids), _SOME):
            self._read(ids[start : start + _SOME])

    def _read(self, ids: list[str]) -> None:
        self._jobs.update(self.ledger.jobs_by_id(ids))
        marks = ", ".join("?" * len(ids))
        self._seen.update((row[0], row[1]) for row in self.ledger.rows(
            "SELECT job, record FROM events WHERE record IS NOT NULL AND job IN (%s)" % marks, *ids))

    def apply(self, record: Record) -> str:
        """Take a record; the state it moved its job to, "" where it did not."""
        job = self._jobs.get(str(record.get("job", "")))
        attempt, event = record.get("attempt"), record.get("ev")
        if job is None or job.remote != self.remote or not isinstance(event, str) or not isinstance(attempt, int):
            return ""
        digest = hashlib.sha256(_SORTED.encode(record).encode("ascii")).hexdigest()[:20]
        if attempt > job.attempt or (job.id, digest) in self._seen:
            return ""
        self._seen.add((job.id, digest))
        at, why = _text(record, "t") or now(), _text(record, "why") or _text(record, "text")
        if event == "retried":
            new = self._retried(job, record, at) if attempt == job.attempt else ""
        else:
            new = "" if attempt < job.attempt else self._news(job, event, record, at, why)
        self._events.append((job.id, attempt, at, event, job.state if new else "", new, why, digest))
        return "" if record.get("next") and event == "ended" else new  # not its end: `retried` is the next record

    def _news(self, job: Job, event: str, record: Record, at: str, why: str) -> str:
        """Of the newest attempt: the state it is in now, "" where that is the one before."""
        new = states.state_after(event, _text(record, "state"), job.state, bool(job.pbs))
        facts: dict[str, Any] = {}
        if job.attempt > job.acked:
            # An acknowledgement that was lost on the way: the journal proves that the cluster has it.
            facts.update(acked=job.attempt, offered=job.attempt)
        if not job.ended or new != job.state:
            known = _facts(event, record, why)
            facts.update(known)
            self._facts.setdefault(job.id, {}).update(known, **_times(event, record, at))
        if new != job.state:
            facts.update(state=new, changed=at)
            self._facts[job.id]["state"] = new
            if job.results_state not in (states.NONE, states.PARTIAL) and new in states.ENDED:
                facts["results_state"] = states.NONE  # LOST was repaired: there may be more to bring home
                self._reopened.append(job.id)
        if facts:
            self._facts.setdefault(job.id, {})
            self._jobs[job.id] = replace(job, **facts)
        return new if new != job.state else ""

    def _retried(self, job: Job, record: Record, at: str) -> str:
        """The relay tries a job again: what is said from now on is of its next attempt. The agent makes no more of
        them than the job's policy has."""
        policy, following = job.options.get("retry") or {}, job.attempt + 1
        most = self.ledger.uploaded_attempt(job.id, job.attempt) + int(policy.get("retries", 0))
        if record.get("next") != following or following > most:
            return ""
        self._write_attempts([job])
        self.ledger.follow_attempt(job)
        self._facts[job.id] = {}
        self._jobs[job.id] = replace(
            job, attempt=following, state=states.UPLOADED, changed=at, exit=None, signal=None, pbs="",
            why=_text(record, "why"), acked=following, offered=following, results_state=states.NONE, missing=())
        return states.UPLOADED

    def write(self) -> None:
        """What was taken is in the ledger."""
        db = self.ledger.db
        db.executemany(_EVENT, self._events)
        changed = [self._jobs[job] for job in self._facts]
        db.executemany(_JOB, [(job.state, job.changed, job.exit, job.signal, job.why, job.pbs, job.elements, job.acked,
                               job.offered, job.id) for job in changed])
        self._write_attempts(changed)
        for job_id in self._reopened:
            self.ledger.set_results_state(job_id, states.NONE)

    def _write_attempts(self, changed: Sequence[Job]) -> None:
        """What was learnt of the attempts these jobs are at."""
        alike: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
        for job in changed:
            facts = self._facts.get(job.id, {})
            alike.setdefault(tuple(facts), []).append((*facts.values(), job.id, job.attempt))
        for columns, rows in alike.items():
            if columns:
                sets = ", ".join("%s = ?" % column for column in columns)
                self.ledger.db.executemany("UPDATE attempts SET %s WHERE job = ? AND attempt = ?" % sets, rows)


def _facts(event: str, record: Record, why: str) -> dict[str, Any]:
    """What a record says beside the state, of a job and of its attempt alike."""
    if event in ("submitted", "adopted"):
        return {"why": why, "pbs": _text(record, "pbs")}
    if event == "closed":
        return {"why": why, "pbs": ""}
    if event in ("ended", "repaired", "cancelled"):
        told = {"why": why, "exit": _number(record, "exit"), "signal": _number(record, "signal")}
        return {**told, "elements": _elements(record)} if "elements" in record else told
    return {"why": why}


def _elements(record: Record) -> str:
    from chasqui_agent import elements
    found = elements.checked(record["elements"])
    return json.dumps(found, separators=(",", ":")) if found else ""


def _times(event: str, record: Record, at: str) -> dict[str, str]:
    if event == "started":
        return {"started": _when(record) or at}
    if event in ("ended", "repaired", "lost", "cancelled", "rejected", "blocked"):
        return {"ended": _when(record) or at}
    return {}


def _text(record: Record, key: str) -> str:
    value = record.get(key)
    return value[:2000] if isinstance(value, str) else ""


def _when(record: Record) -> str:
    """When a job started or ended by its node's clock, seconds since 1970 in the record."""
    when = record.get("when")
    if isinstance(when, (int, float)) and 0 < when < 1 << 33:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))
    return ""


def _number(record: Record, key: str) -> int | None:
    value = record.get(key)
    # SQLite holds 64 bits; a number beyond comes from no scheduler.
    return value if isinstance(value, int) and abs(value) < 1 << 62 else None
