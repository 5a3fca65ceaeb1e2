"""The verbs that look after results: verify, keep, clean."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator

from chasqui_agent import wire

from .. import api, errors, states
from ..command import Command, add_selection, count, fetch_line, place, size
from ..config import ANY
from ..ledger import Ledger
from ..verbs import Verb
from . import book, earlier, rules
from .clean import Cleared, Report, clean
from .local import Problem
from .verify import Outcome, verify

_HAVE_RESULTS = (states.PARTIAL, states.VERIFIED, states.CLEANUP_ELIGIBLE, states.CLEANED)


# -- verify ------------------------------------------------------------------------------------------------------------


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection(parser, confirm=False)
    parser.add_argument("--deep", action="store_true", help="hash the files on the cluster again, too")


def _verify(command: Command) -> int:
    selection = command.selection()
    jobs = api.find(command.home, selection)
    if not selection.words:
        jobs = [job for job in jobs if job.results_state in _HAVE_RESULTS]
    with api.open_ledger(command.home) as ledger:
        report = verify(command.home, command.config, ledger, jobs, command.args.deep, command.interactive)
    for outcome in report.outcomes:
        _tell_outcome(command, outcome)
    proved = [outcome for outcome in report.outcomes if outcome.proved]
    command.data = {"jobs": [outcome.as_dict() for outcome in report.outcomes], "proved": len(proved)}
    command.say("%s of %s proved: %s, %s" % (
        len(proved), count(len(report.outcomes), "job"), count(sum(o.files for o in proved), "file"),
        size(sum(o.bytes for o in proved))))
    return _failed(command, report.failure) or int(len(proved) < len(report.outcomes))


def _tell_outcome(command: Command, outcome: Outcome) -> None:
    if outcome.proved:
        return
    command.say("%s  %s  %s" % (outcome.job.id[:8], outcome.job.name, outcome.why or "not as it was proved"))
    for problem, where in _problems(outcome):
        command.say("          %s %s: %s%s" % (problem.why, where, problem.path, _again(outcome, problem)))


def _again(outcome: Outcome, problem: Problem) -> str:
    """What to type for a result that is not here as it was."""
    if problem not in outcome.here:
        return ""
    if outcome.job.results_state in (states.CLEANUP_ELIGIBLE, states.CLEANED):
        return "; cleaned on %s, it can't come again" % outcome.job.remote
    line = fetch_line(outcome.job.id, wire.path_bytes(problem.path))
    return "; %s" % line if problem.why == "missing" else "; move it aside, then: %s" % line


def _problems(outcome: Outcome) -> Iterator[tuple[Problem, str]]:
    for problem in outcome.here:
        yield problem, "in %s" % place(outcome.job.results_path)
    for problem in outcome.there:
        yield problem, "on %s" % outcome.job.remote


def _failed(command: Command, failure: errors.ChasquiError | None) -> int:
    """Say what cut an exec short; its exit code, 0 where nothing did. The answer to --json is given all the same."""
    if failure is None:
        return 0
    command.warn("chasqui: %s" % failure)
    if failure.hint:
        command.warn("  hint: %s" % failure.hint)
    return failure.exit_code


# -- keep --------------------------------------------------------------------------------------------------------------


def _keep_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument("--revoke", action="store_true", help="let clean have them again")


def _keep(command: Command) -> int:
    found = api.find(command.home, command.confirmed_selection(), nothing_is_all=False)
    with api.open_ledger(command.home) as ledger:
        changed = book.keep(ledger, found, command.args.revoke)
    command.data = {"jobs": [job.id for job in found], "changed": [job.id for job in changed]}
    word = "not kept any more" if command.args.revoke else "kept: clean takes nothing of them"
    command.say("%s %s" % (count(len(found), "job"), word) if found else "no jobs")
    return 0


# -- clean -------------------------------------------------------------------------------------------------------------


def _clean_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would go and what would not, and why")


def _clean(command: Command) -> int:
    selection, dry_run = command.selection(), command.args.dry_run
    jobs = api.find(command.home, selection)
    if not dry_run and not command.args.yes and not command.interactive:
        raise errors.CleanNotConfirmed()
    with api.open_ledger(command.home) as ledger:
        chosen: dict[str, list[str]] = {}
        for job in jobs:
            if job.remote == ANY:
                continue  # no cluster has seen it yet
            if selection.words or job.results_state != states.CLEANED or earlier.attempts(ledger, job):
                chosen.setdefault(job.remote, []).append(job.id)
        del jobs  # each is read again, under the lock
        if not dry_run and not command.args.yes:
            _ask(command, _each(command, ledger, chosen, dry_run=True))
        reports = _each(command, ledger, chosen, dry_run)
    for report in reports:
        _tell(command, report)
    command.data = {"dry_run": dry_run, "jobs": [job.as_dict() for report in reports for job in report.jobs]}
    return max([_failed(command, report.failure) for report in reports], default=0)


def _each(command: Command, ledger: Ledger, chosen: dict[str, list[str]], dry_run: bool) -> list[Report]:
    return [_there(command, ledger, name, jobs, dry_run) for name, jobs in sorted(chosen.items())]


def _there(command: Command, ledger: Ledger, name: str, jobs: list[str], dry_run: bool) -> Report:
    """Clean on one remote; jobs of one that is not configured any more hold up no others."""
    try:
        remote = command.config.remote(name)
    except errors.UnknownRemote as failure:
        return Report(name, dry_run, failure=failure)
    return clean(command.home, ledger, remote, jobs, command.config.jobs.keep, dry_run, command.interactive)


def _ask(command: Command, plans: list[Report]) -> None:
    """Show what would go and ask. Raises BadInput for a no, and where there is nothing to ask about."""
    for plan in plans:
        _tell(command, plan)
    gone = [job for plan in plans for job in plan.gone]
    if not gone:
        for plan in plans:
            _failed(command, plan.failure)
        raise errors.BadInput("Nothing was changed.", hint="chasqui clean --dry-run")
    sys.stderr.write("delete these %s? [y/N] " % _amount(gone, "files", "bytes"))
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise errors.BadInput("Nothing was changed.")


def _tell(command: Command, report: Report) -> None:
    word = "would go" if report.dry_run else "gone"
    rows = [(word, job.job.id[:8], _name(job), _amount([job], "files", "bytes")) for job in report.gone]
    if report.dry_run:
        rows += [("stays", job.job.id[:8], _name(job), _why(job)) for job in report.jobs if job.why]
    command.table(rows)
    gone, words = report.gone, Counter(job.why for job in report.jobs if job.why)
    command.say("%s: %s %s of %s" % (report.remote, _amount(gone, "files", "bytes"), word,
                                     count(len({job.job.id for job in gone}), "job")))
    for word, amount in sorted(words.items()):
        command.say("  %s: %s, %s" % (word, count(amount, "job"), rules.REASONS[word]))
    for kind, text in (("kept", "kept there by [jobs] keep"), ("left", "left there: never brought home")):
        if any(job.numbers[kind] for job in gone):
            command.say("  %s: %s" % (text, _amount(gone, kind, kind + "_bytes")))


def _name(cleared: Cleared) -> str:
    return "%s, attempt %d" % (cleared.job.name, cleared.job.attempt) if cleared.newest else cleared.job.name


def _amount(jobs: list[Cleared], files: str, sizes: str) -> str:
    return "%s (%s)" % (count(sum(job.numbers[files] for job in jobs), "file"),
                        size(sum(job.numbers[sizes] for job in jobs)))


def _why(cleared: Cleared) -> str:
    return "%s: %s" % (cleared.why, ", ".join(cleared.names)) if cleared.names else cleared.why


VERBS = {
    "verify": Verb("Hash the results that are here again, and say what is missing or changed, by name; --deep: those\n"
                   "on the cluster, too. Without JOB: all that have results. Exits 1 if anything is not as it was.",
                   "  chasqui verify\n  chasqui verify kx3f --deep", _verify_arguments, _verify),
    "keep": Verb("Leave jobs' work folders on the cluster as they are, whatever clean would do, until it is revoked.",
                 "  chasqui keep kx3f\n  chasqui keep --revoke kx3f", _keep_arguments, _keep),
    "clean": Verb("Delete from jobs' work folders on the cluster what is proved to be here, and unchanged inputs.\n"
                  "Only of jobs that ended, whose results were proved in two runs, cleanup_min_age hours apart;\n"
                  "and of their earlier attempts, by the same rules.",
                  "  chasqui clean --dry-run\n  chasqui clean --yes", _clean_arguments, _clean),
}
