"""Proving results again: this computer's files against the ledger, and (deep) the cluster's against it, too."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from chasqui_agent import wire

from .. import errors, states
from ..config import Config, Home
from ..fields import dataclass, field
from ..holder import sync_lock
from ..ledger import Job, Ledger, ResultFile
from ..messages import is_int, is_sha
from . import book, local
from .errand import Errand, slices
from .rules import Proof

_WHOLE = (states.VERIFIED, states.CLEANUP_ELIGIBLE, states.CLEANED)
_WAIT = 10.0  # seconds for a sync that is under way


@dataclass
class Outcome:
    """What became of one job. why: what keeps it from being proved as a whole, "" where nothing does."""

    job: Job
    files: int = 0
    bytes: int = 0
    why: str = ""
    here: list[local.Problem] = field(default_factory=list)
    there: list[local.Problem] = field(default_factory=list)
    how: str = "local"
    proof: Proof | None = None  # of the files that were hashed, where they are what they should be

    @property
    def proved(self) -> bool:
        return not (self.why or self.here or self.there)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        problems = [{"where": where, "path": p.path, "why": p.why}
                    for where, found in (("here", self.here), ("there", self.there)) for p in found]
        return {"id": self.job.id, "name": self.job.name, "proved": self.proved, "how": self.how, "files": self.files,
                "bytes": self.bytes, "why": self.why, "problems": problems}


@dataclass
class Report:
    """All jobs, in the order asked for; failure: the first exec that came to nothing, its jobs are not proved."""

    outcomes: list[Outcome]
    failure: errors.ChasquiError | None = None


def verify(home: Home, config: Config, ledger: Ledger, jobs: Sequence[Job], deep: bool = False,
           interactive: bool = False) -> Report:
    """Hash the results of `jobs` again, with `deep` on their clusters, too (one exec each); what is proved is recorded.

    What damages a proof here (a file missing, changed, unreadable) voids the job's earlier ones. A question without an
    answer voids nothing and proves nothing.
    """
    run = book.new_run()
    report = Report([_locally(config, ledger, job, run) for job in jobs])
    if deep:
        _deeply(home, config, ledger, report, interactive)
    with ledger.transaction():
        for outcome in report.outcomes:
            if outcome.here:
                book.disproved(ledger, outcome.job)
            elif outcome.proved and outcome.proof:
                book.proved(ledger, outcome.job.id, outcome.job.attempt, outcome.how, outcome.proof)
    return report


def _locally(config: Config, ledger: Ledger, job: Job, run: str) -> Outcome:
    here = _here(ledger, job)
    outcome = Outcome(job, len(here), sum(f.size for f in here), here=local.problems(job, here))
    if job.results_state not in _WHOLE:
        outcome.why = "not all here: %s" % config.sync_line([job.remote]) if job.ended else "it has not ended"
    if not outcome.here:
        outcome.proof = book.proof_of(run, here)
    return outcome


def _here(ledger: Ledger, job: Job) -> list[ResultFile]:
    return [f for f in ledger.result_files(job.id, job.attempt) if f.state == "HERE"]


# -- deep --------------------------------------------------------------------------------------------------------------


def _deeply(home: Home, config: Config, ledger: Ledger, report: Report, interactive: bool) -> None:
    # What was cleaned (or may have been, in part, by a run that was killed) can't be compared with anything.
    comparable = [o for o in report.outcomes if o.job.results_state in (states.PARTIAL, states.VERIFIED)]
    for remote in sorted({outcome.job.remote for outcome in comparable}):
        mine = [outcome for outcome in comparable if outcome.job.remote == remote]
        for outcome in mine:
            outcome.how, outcome.why = "", outcome.why or "no answer"  # until one has come
        try:
            with sync_lock(home, remote, _WAIT), \
                    Errand(home, config.remote(remote), "verify", {"ledger": ledger.id}, interactive) as errand:
                for asked in slices(_questions(ledger, mine)):
                    _compare(errand, ledger, asked)
        except errors.ChasquiError as error:
            report.failure = report.failure or error


def _questions(ledger: Ledger, outcomes: Iterable[Outcome]) -> Iterator[tuple[Outcome, dict[str, Any]]]:
    for outcome in outcomes:
        files = [[wire.path_text(f.path), f.kind] for f in _here(ledger, outcome.job)]
        yield outcome, {"job": outcome.job.id, "attempt": outcome.job.attempt, "files": files}


def _compare(errand: Errand, ledger: Ledger, asked: list[tuple[Outcome, dict[str, Any]]]) -> None:
    answers = errand.ask([question for _, question in asked])
    for outcome, question in asked:
        files = _here(ledger, outcome.job)
        problems, last = _files(files, answers)
        if (last.get("job"), last.get("attempt")) != (question["job"], question["attempt"]):
            raise errors.ProtocolBroken("an answer to another question", remote=errand.remote.name)
        outcome.there = sorted(problems, key=lambda problem: problem.path)
        outcome.how = "deep"
        if outcome.why == "no answer":
            outcome.why = wire.printable(str(last["why"]), 300) if "why" in last else ""
    for _ in answers:
        raise errors.ProtocolBroken("more answers than questions", remote=errand.remote.name)


def _files(files: list[ResultFile], answers: Iterator[dict[str, Any]]) -> tuple[list[local.Problem], dict[str, Any]]:
    """(what is wrong with an attempt's files there, the line that ends its answer); a file without answer is wrong."""
    open_ones = dict(enumerate(files))
    problems = []
    last: dict[str, Any] = {}
    for answer in answers:
        if "file" not in answer:
            last = answer
            break
        index = answer["file"]
        file = open_ones.pop(index, None) if is_int(index, len(files)) else None
        if file and (why := _difference(file, answer)):
            problems.append(local.Problem(wire.path_text(file.path), why))
    if "why" not in last:
        problems += [local.Problem(wire.path_text(file.path), "no answer") for file in open_ones.values()]
    return problems, last


def _difference(file: ResultFile, answer: dict[str, Any]) -> str:
    if not is_sha(answer.get("sha256")):
        return wire.printable(str(answer.get("why") or "no answer"), 300)
    return "" if (answer["sha256"], answer.get("size")) == (file.sha256, file.size) else "changed"
