"""Cleaning clusters' work folders: what the rules let through here, asked of the agent there, recorded as it answers.

A job goes VERIFIED -> CLEANUP_ELIGIBLE in the ledger before the agent is told, and CLEANED when it has said that all
that may go is gone. After a kill or a cut anywhere between, the next clean asks for the same again.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from chasqui_agent import fault, offers, wire

from .. import errors, states
from ..config import Home, Remote
from ..fields import dataclass, field, replace
from ..holder import sync_lock
from ..ledger import Job, Ledger
from ..messages import MAX_SIZE, is_int
from . import book, earlier, local, rules
from .errand import Errand, slices

fault.register(
    {
        "cleanup.eligible.after": "jobs are recorded as eligible, the agent was not told",
        "cleanup.cleaned.before": "the agent has cleaned jobs, nothing of it is recorded",
        "cleanup.cleaned.after": "it is recorded that jobs were cleaned",
    }
)

BUDGET, BUDGET_OF_A_SYNC = 600.0, 60.0  # seconds after which no further job is begun, here and then there
_WAIT = 10.0
_NUMBERS = ("files", "bytes", "kept", "kept_bytes", "left", "left_bytes")
_NOTHING: Mapping[str, int] = dict.fromkeys(_NUMBERS, 0)
_BATCH = 500  # proofs in one commit of the ledger


@dataclass
class Cleared:
    """What became of one job. why: one word, "" where it went (dry run: would go); names: files behind the word.

    numbers: files and bytes that went, that a keep pattern kept, that were left because they never came home.
    newest: 0, or where `job` is an earlier attempt of a job, which one of its attempts is the newest.
    """

    job: Job
    why: str = ""
    names: Sequence[str] = ()
    numbers: Mapping[str, int] = _NOTHING
    newest: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"id": self.job.id, "name": self.job.name, "attempt": self.job.attempt, "why": self.why,
                "names": list(self.names), **self.numbers}


@dataclass
class Report:
    """All jobs, in the order asked for. failure: what cut the exec short; the jobs behind it are "silent"."""

    remote: str
    dry_run: bool
    jobs: list[Cleared] = field(default_factory=list)
    failure: errors.ChasquiError | None = None

    @property
    def gone(self) -> list[Cleared]:
        return [job for job in self.jobs if not job.why]

    def notes(self) -> list[str]:
        """For the report of a sync: what went, and what went wrong; a refusal is no news."""
        from ..command import count, size
        files, amount = (sum(job.numbers[key] for job in self.gone) for key in ("files", "bytes"))
        jobs = len({cleared.job.id for cleared in self.gone})
        said = ["cleaned: %s (%s) of %s" % (count(files, "file"), size(amount), count(jobs, "job"))]
        return (said if self.gone else []) + (["the clean-up was cut short: %s" % self.failure] if self.failure else [])


def clean(home: Home, ledger: Ledger, remote: Remote, jobs: Sequence[str], keep: Sequence[str], dry_run: bool = False,
          interactive: bool = False) -> Report:
    """Clean what may be cleaned of these jobs (ids) of `remote`, and of their earlier attempts, by at most one exec;
    none where nothing may.

    Their results here are hashed first, which is a proof of this run. keep: patterns of files that never go. A dry run
    changes nothing, here or there. Whatever fails, what went is only what was proved.
    """
    with sync_lock(home, remote.name, _WAIT):
        cleaning = _Cleaning(ledger, remote, book.new_run(), dry_run)
        return cleaning.run(home, jobs, keep, BUDGET, interactive)


def after_sync(home: Home, ledger: Ledger, remote: Remote) -> Report | None:
    """The clean-up at the end of a sync, which holds the lock; None where the ledger has nothing that may be eligible.

    It is part of the sync's run: results that have just come home are proved once.
    """
    jobs = [job.id for job in book.due(ledger, remote.name, remote.cleanup_min_age * rules.HOUR)]
    if not jobs:
        return None
    cleaning = _Cleaning(ledger, remote, ledger.run, dry_run=False)
    return cleaning.run(home, jobs, home.config().jobs.keep, BUDGET_OF_A_SYNC, interactive=False)


class _Cleaning:
    """One run."""

    def __init__(self, ledger: Ledger, remote: Remote, run: str, dry_run: bool) -> None:
        self.ledger, self.remote, self.name, self.dry_run = ledger, remote, run, dry_run
        self.report = Report(remote.name, dry_run)
        self.begun = False
        self.proofs: list[tuple[Job, rules.Proof | None]] = []  # None: what is here is damaged

    def run(self, home: Home, jobs: Sequence[str], keep: Sequence[str], budget: float, interactive: bool) -> Report:
        """Raises BadInput for patterns that are none."""
        if not offers.are_patterns(list(keep)):
            raise errors.BadInput("[jobs] keep in config.toml is not a list of patterns inside a job's folder")
        end = time.monotonic() + budget
        known = (job for name in jobs if (job := self.ledger.job(name)))  # as they are since we have the lock
        for job in known:
            self.report.jobs.append(Cleared(job, self._refusal(job, end)))
            self.report.jobs += [Cleared(attempt, self._refusal(attempt, end), newest=job.attempt)
                                 for attempt in earlier.attempts(self.ledger, job)]
        self._record_proofs()
        candidates = [cleared for cleared in self.report.jobs if not cleared.why]
        if candidates:
            header = {"ledger": self.ledger.id, "keep": list(keep), "dry_run": self.dry_run, "budget": budget}
            try:
                self._ask(home, header, candidates, interactive)
            except errors.ChasquiError as error:
                self.report.failure = error
        self._remember()
        return self.report

    # -- here ------------------------------------------------------------------------------------------------------

    def _refusal(self, job: Job, end: float) -> str:
        """The rules' word, as if its results were proved now; then they are. Past `end` no further job is begun."""
        files = self.ledger.result_files(job.id, job.attempt)
        proof = book.proof_of(self.name, files)
        known = book.facts(self.ledger, job, proof.manifest)
        why = rules.refusal(replace(known, proofs=[*known.proofs, proof]), self.remote.cleanup_min_age * rules.HOUR)
        if why:
            return why
        if self.begun and time.monotonic() > end:
            return "later"
        self.begun = True
        damaged = bool(local.problems(job, files))
        self.proofs.append((job, None if damaged else proof))
        if len(self.proofs) >= _BATCH:
            self._record_proofs()
        return "damaged" if damaged else ""

    def _record_proofs(self) -> None:
        proofs, self.proofs = self.proofs, []
        if self.dry_run:
            return
        with self.ledger.transaction():
            for job, proof in proofs:
                if proof:
                    book.proved(self.ledger, job.id, job.attempt, "local", proof)
                else:
                    book.disproved(self.ledger, job)

    # -- there -----------------------------------------------------------------------------------------------------

    def _ask(self, home: Home, header: dict[str, Any], candidates: list[Cleared], interactive: bool) -> None:
        for cleared in candidates:
            cleared.why = "silent"  # until it has answered
        with Errand(home, self.remote, "clean", header, interactive) as errand:
            for drawn in slices(self._questions(candidates)):
                asked = self._eligible(drawn)
                answered = list(_answers(errand, asked))
                fault.point("cleanup.cleaned.before")
                self._settle(answered)

    def _questions(self, candidates: Iterable[Cleared]) -> Iterator[tuple[Cleared, dict[str, Any]]]:
        for cleared in candidates:
            job = cleared.job
            found = self.ledger.result_files(job.id, job.attempt)
            proved = [[wire.path_text(f.path), f.size, f.sha256] for f in found if f.state == "HERE"]
            inputs = [[wire.path_text(f.path), f.size, f.sha256] for f in self.ledger.files(job.id, job.attempt)]
            left = [wire.path_text(f.path) for f in found if f.state != "HERE"]
            yield cleared, {"job": job.id, "attempt": job.attempt, "files": proved, "inputs": inputs, "left": left,
                            "superseded": bool(cleared.newest)}

    def _eligible(self, drawn: list[tuple[Cleared, dict[str, Any]]]) -> list[tuple[Cleared, dict[str, Any]]]:
        """Those that nobody has retried or kept meanwhile (that takes no lock), recorded before the agent is told."""
        if self.dry_run:
            return drawn
        with self.ledger.transaction():
            for cleared, _ in drawn:
                kept, now = book.is_kept(self.ledger, cleared.job.id), self.ledger.job(cleared.job.id)
                same = now and now.attempt == cleared.newest if cleared.newest else now == cleared.job
                if kept or not same:
                    cleared.why = "kept" if kept else "running"
                elif not cleared.newest:
                    self.ledger.set_results_state(cleared.job.id, states.CLEANUP_ELIGIBLE)
        fault.point("cleanup.eligible.after")
        return [item for item in drawn if item[0].why == "silent"]

    def _settle(self, answered: list[Cleared]) -> None:
        if self.dry_run:
            return
        with self.ledger.transaction():
            for cleared in answered:
                if cleared.newest:
                    if not cleared.why:
                        earlier.cleaned(self.ledger, cleared.job)
                    continue
                now = self.ledger.job(cleared.job.id)
                if now and now.results_state == states.CLEANUP_ELIGIBLE:  # not one that was tried again meanwhile
                    self.ledger.set_results_state(now.id, states.VERIFIED if cleared.why else states.CLEANED)
        fault.point("cleanup.cleaned.after")

    def _remember(self) -> None:
        if self.dry_run:
            return
        with self.ledger.transaction():
            for cleared in self.report.jobs:
                if not cleared.newest and cleared.why not in ("", "later", "silent"):
                    book.refused(self.ledger, cleared.job, cleared.why)


def _answers(errand: Errand, asked: list[tuple[Cleared, dict[str, Any]]]) -> Iterator[Cleared]:
    """The jobs with what the agent says of them. Raises ProtocolBroken."""
    answers = errand.ask([question for _, question in asked])
    for cleared, question in asked:
        answer = next(answers, {})
        why, names = answer.get("why"), answer.get("names")
        if any(answer.get(key) != question[key] for key in ("job", "attempt")) or not isinstance(names, list) \
                or (why and why not in rules.REASONS) or not isinstance(why, str) \
                or not all(is_int(answer.get(key), MAX_SIZE) for key in _NUMBERS):
            raise errors.ProtocolBroken("an answer that is none", remote=errand.remote.name)
        cleared.why = why
        cleared.names = [wire.printable(str(name), 200) for name in names[:5]]
        cleared.numbers = {key: answer[key] for key in _NUMBERS}
        yield cleared
    for _ in answers:
        raise errors.ProtocolBroken("more answers than questions", remote=errand.remote.name)
