"""The verb `why`."""

import argparse

from .. import api, select
from ..command import Command
from ..verbs import Verb
from . import known, words


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="id, its beginning, name or folder")
    parser.add_argument("--offline", action="store_true", help="ask nobody, even where a connection is open")


def _why(command: Command) -> int:
    with api.open_ledger(command.home) as ledger:
        job = select.one(ledger, command.args.job, command.args.remote or "")
        facts = known.gather(command.home, ledger, job, command.config, not command.args.offline)
    answer = words.explain(facts)
    command.data = {"id": job.id, "name": job.name, "remote": job.remote, "state": job.state, "attempt": job.attempt,
                    "causes": [{"cause": cause, "text": text} for cause, text in answer.causes],
                    "why": answer.paragraph, "next": answer.next, "synced": facts.synced,
                    "asked": facts.there is not None, "silent": facts.silent, "there": facts.there}
    command.say(answer.paragraph)
    if answer.next:
        command.say("next: " + answer.next)
    return 0


VERBS = {
    "why": Verb("Why a job does not run, or how it ended: one paragraph, and what to type next. Asks the relay too\n"
                "where a connection is open; never logs in.", "  chasqui why kx3f", _arguments, _why),
}
