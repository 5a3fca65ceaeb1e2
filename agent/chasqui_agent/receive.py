"""Taking jobs in: what of them is known, what is refused, and when what has come becomes jobs of this cluster.

The jobs of a slice are offered, and what is not here of them is asked for (contents.py) and built in staging
(staging.py); a commit says that all of a job has come. Batches of them become real and public (batch.py), and only then
they are acknowledged. A slice that nobody is asked about comes with its contents and commits at once: what is to be
said of it is said at the end.
"""

import os

from . import dependents, offers, space, wire
from .batch import Batch
from .contents import Contents
from .offers import Refusal, check_job, key_of, manifest_digest
from .spool import ON_THEIR_WAY
from .staging import Staging

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, List, Optional, Set, Tuple

    from .spool import Spool

    Key = Tuple[str, int]

# (bytes, files) that may come unasked, and the room that is to be there for them: small files take whole blocks
UNASKED, ROOM_UNASKED = (256 << 20, 20000), (1 << 30, 60000)
_TAKEN_OVER = "another session of this ledger has taken it over; sync again"


class Receiver:
    """The jobs one session brings, slice by slice: offered, then committed, then published and acknowledged."""

    def __init__(self, spool: "Spool", ledger: str, cache_size: int, working: "Callable[[], Any]") -> None:
        """working: what the channel's `working` is: a phase in which the client waits."""
        self.spool = spool
        self.staging = Staging(spool, ledger, cache_size)
        self.contents = Contents(self.staging, working)
        self._batch = Batch(self.staging, self.contents, ledger, working)
        self.acked: "List[Key]" = []
        self._taken: "Set[Key]" = set()  # committed in this session
        self.refused: "List[Tuple[Key, str]]" = []
        self._begin()

    def _begin(self) -> None:
        """Nothing is offered."""
        self._offers: "Dict[Key, Dict[str, Any]]" = {}
        self._settled: "Set[Key]" = set()  # of which nothing is taken then
        self._index = _Index(self.spool)

    # -- turn 2: what is known, what is missing --------------------------------------------------------------------

    def consider(self, jobs: "List[Dict[str, Any]]") -> "List[bytes]":
        """The answers to a slice of jobs: known, conflict and refuse messages, then what content is needed."""
        answers = []
        for job in jobs:
            answer = self._consider(job)
            if answer:
                answers.append(wire.message(answer.pop("m"), job=job["job"], attempt=job["attempt"], **answer))
        return answers + self.contents.needs()

    def consider_unasked(self, jobs: "List[Dict[str, Any]]") -> None:
        """Get ready for a slice whose contents and commits come at once. What is to be said of it is in `acked` and
        `refused`."""
        self.contents.unasked = True
        for job in jobs:
            answer = self._consider(job)
            if not answer:
                continue
            self._settled.add(key_of(job))
            if answer["m"] == "known":
                self.acked.append(key_of(job))
            else:
                self.refused.append((key_of(job), answer["why"]))
        self.contents.weigh()

    def room_unasked(self) -> "Tuple[int, int]":
        """(bytes, files) that may come unasked before the next slice that is asked for."""
        return UNASKED if self.staging.room.would_have(*ROOM_UNASKED) else (0, 0)

    def _consider(self, job: "Dict[str, Any]") -> "Optional[Dict[str, str]]":
        """None, and the job was taken; or the answer: a message but for job and attempt."""
        name, attempt = key = key_of(job)
        if key in self._offers or key in self._settled:
            raise wire.WireError("a job that is offered twice")
        try:
            check_job(job)
        except Refusal as refusal:
            return {"m": "refuse", "why": str(refusal)}
        here = os.path.lexists(self.spool.work_dir(name, attempt))
        record = self.spool.job_record(name, attempt) if here else {}
        state = self._index.state(name, attempt, here)
        if record and record.get("manifest") == manifest_digest(job["files"]):
            state = state or self._publish_again(key, record)
            return {"m": "known", "state": state} if state else None
        if state or here:
            return {"m": "conflict", "why": "the cluster has this attempt with other files"}
        lacking = dependents.missing(self.spool, job.get("after", []), self._taken, self._offers)
        if lacking:
            return {"m": "refuse", "why": dependents.NOT_HERE + lacking}
        kept = self.contents.kept_too(job["files"]) + (job["files"] if offers.keeps_inputs(job) else [])
        why = self.staging.room.take(*space.need(job["files"] + kept))
        if why:
            return {"m": "refuse", "why": why}
        self._offers[key] = job
        self.contents.use(key, job)
        return None

    def _publish_again(self, key: "Key", record: "Dict[str, Any]") -> str:
        """As `Batch.add_again`; the client's commit then finds it done."""
        state = self._batch.add_again(key, record)
        if not state:
            self._offers[key] = {"files": []}
        return state

    # -- turn 3: commits -------------------------------------------------------------------------------------------

    def end_slice(self, more: bool) -> None:
        """Nothing more comes of this slice; more: another one does."""
        self.contents.end_slice(more)
        self.staging.end_slice()
        self._begin()

    def skip(self, key: "Key") -> None:
        """The client can't send this job after all."""
        self._offers.pop(key, None)

    def commit(self, key: "Key") -> None:
        """All content of a job has arrived: build its folder. Makes batches real and public, full or 5 s old."""
        job = self._offers.pop(key, None)
        if job is None and key in self._settled:
            return
        if job is None:
            raise wire.WireError("a commit of a job that was not offered")
        shas = {item["sha256"] for item in job["files"]}
        lacking = dependents.missing(self.spool, job.get("after", []), self._taken)
        if not self.contents.are_here(shas):
            self.refused.append((key, "content was missing or damaged"))
        elif lacking:
            self.refused.append((key, dependents.NOT_HERE + lacking))
        elif shas:
            self._batch.add(key, job)
            self._taken.add(key)
        if self._batch.is_due():
            self.flush()

    def idle(self) -> None:
        """Nothing has come that could be taken now."""
        if self._batch.is_due_in_a_pause():
            self.flush()

    def flush(self) -> None:
        """Publish what is committed; afterwards it is acknowledged, and stays whatever becomes of the session."""
        real, taken_over = self._batch.publish()
        self.acked += real
        self.refused += [(key, _TAKEN_OVER) for key in taken_over]


class _Index:
    """States of many attempts by one look at each folder: asking the spool for each would read them all every time."""

    def __init__(self, spool: "Spool") -> None:
        self.spool = spool
        self._found: "Optional[Dict[Key, str]]" = None

    def state(self, job: str, attempt: int, here: bool) -> str:
        """"" only where the spool, looked at again now, does not have the attempt. here: its work folder is there."""
        settled = self.spool.settled_state(job, attempt)
        if settled or not here:
            return settled  # without a work folder there is none on its way
        if self.spool.find_dependent(job, attempt):
            return "after"
        if self._found is None:
            self._found = self._look()
        # An attempt in flight can have moved past our look.
        return self._found.get((job, attempt)) or self.spool.known(job, attempt)

    def _look(self) -> "Dict[Key, str]":
        found: "Dict[Key, str]" = dict.fromkeys(self.spool.find_waiting(), "waiting")
        for state in ("held",) + ON_THEIR_WAY:
            found.update({(entry.job, entry.attempt): state for entry in self.spool.entries(state)})
        return found
