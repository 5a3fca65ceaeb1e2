"""The verbs that read and write the ledger alone: add, status, list, show, logs, retry, cancel, hold, release."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from chasqui_agent import wire

from . import api, errors, select, states
from .command import Command, add_selection, as_of, count, fetch_line, number, place, reason, size
from .config import ANY, Remote
from .jobs import Asked, read_list
from .ledger import Job, Ledger
from .rows import arrays_of, elements_of, of_element, progress
from .tables import BYTES, are_bytes
from .verbs import Verb

# -- add ---------------------------------------------------------------------------------------------------------------


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="*", metavar="DIR", help="a job's folder")
    parser.add_argument("--from", dest="list", metavar="FILE", help="more folders, one a line; - is standard input")
    parser.add_argument("--script", default="", metavar="FILE",
                        help="the job's script: a file of each folder, else one from here for all"
                             " (default: the only one of job.sh run.sh submit.sh *.pbs *.qsub)")
    parser.add_argument("--template", default="", metavar="NAME", help="make the script: vasp, plain, or one of yours")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a value for the template")
    for kind, text in (("inputs", "files to upload (default: all)"), ("exclude", "files to leave where they are"),
                       ("outputs", "files to fetch (default: new or changed ones)"),
                       ("expect", "a result without which a completed job is incomplete")):
        parser.add_argument("--" + kind, action="append", metavar="GLOB", help=text + "; ** goes into folders")
    parser.add_argument("--name", default="", help="the job's name (default: the folder's)")
    parser.add_argument("--priority", type=int, metavar="N", help="-499 to 500; higher goes first (default 0)")
    parser.add_argument("--max-file", type=_bytes, metavar="BYTES", help="bigger results stay there until asked for")
    parser.add_argument("--max-job", type=_bytes, metavar="BYTES", help="of a job's results; the biggest stay there")
    parser.add_argument("--follow", action="store_true", default=None, help="take what symlinked folders hold")
    parser.add_argument("--rerun", action="store_true", default=None, help="the scheduler may run it a second time")
    parser.add_argument("--retries", metavar="N", help="times it is tried again by the relay, without you (default 0)")
    parser.add_argument("--retry-on", action="append", metavar="END",
                        help="after which ends: exit codes (7, 1-9), SIGKILL, walltime, memory, node, lost"
                             " (default: 1-255,walltime,memory,node)")
    parser.add_argument("--retry-set", action="append", metavar="KEY=VALUE",
                        help="what it asks for then: walltime=x1.5, mem=x2, queue=long")
    parser.add_argument("--retry-max", action="append", metavar="KEY=VALUE", help="and at most: walltime=48:00:00")
    parser.add_argument("--resume", action="store_true", default=None,
                        help="a retry by the relay finds the files of the attempt before")
    parser.add_argument("--after", action="append", metavar="JOB[,JOB]",
                        help="run it when these have ended: id, its beginning, name or folder, of the same cluster")
    parser.add_argument("--if", dest="condition", default="", choices=("ok", "any", "fail"),
                        help="how each of them has to end: ok (the default), any, fail; else this one is BLOCKED")
    parser.add_argument("--again", action="store_true", help="a new job also where the folder has one")


def _bytes(text: str) -> int:
    # Said here, once, and not of each of 3,000 folders.
    if not (text.isascii() and text.isdigit() and len(text) < 20 and are_bytes(int(text))):
        raise argparse.ArgumentTypeError("%s is not %s" % (wire.printable(text, 40), BYTES))
    return int(text)


def _add(command: Command) -> int:
    args = command.args
    folders = [os.fsencode(folder) for folder in args.folders] + (_listed(args.list) if args.list else [])
    if not folders:
        raise errors.BadInput("No folders were given.", hint="chasqui add DIR ...")
    asked = Asked(args.script, args.template, _settings(args.set), _patterns(args.inputs), _patterns(args.exclude),
                  _patterns(args.outputs), args.name, args.priority, args.max_file, args.follow, args.rerun,
                  _patterns(args.expect), args.max_job, _patterns(args.after), args.condition, _retry_said(args))
    target = _target(command)
    added = api.add(command.home, folders, asked, target, args.again)
    command.data = {"jobs": [{"id": job.id, "name": job.name, "folder": wire.path_text(job.folder)}
                             for job in added.jobs],
                    "skipped": len(added.skipped), "files": added.files, "bytes": added.bytes}
    command.say("%s added, %s, %s" % (count(len(added.jobs), "job"), count(added.files, "file"), size(added.bytes)))
    if added.skipped:
        command.say("%s skipped: they have a job already (--again adds another)" % count(len(added.skipped), "folder"))
    if added.jobs:
        command.say("next: " + command.sync_line([target.name]))
    return 0


def _retry_said(args: argparse.Namespace) -> dict[str, Any]:
    said = {"retries": args.retries and [args.retries], "retry_on": args.retry_on, "retry_set": args.retry_set,
            "retry_max": args.retry_max, "resume": args.resume and ["true"]}
    words = {key: value for key, value in said.items() if value is not None}
    if not words:
        return {}
    from . import retry_policy
    return retry_policy.of_words(words)


def _target(command: Command) -> Remote:
    """The remote that jobs are added for."""
    if command.args.remote != ANY:
        return command.remote
    from .several import place
    return place.anywhere(command.config)


def _listed(name: str) -> list[bytes]:
    try:
        if name == "-":
            return read_list(sys.stdin.buffer.read())
        with open(name, "rb") as stream:
            return read_list(stream.read())
    except OSError as error:
        raise errors.BadInput("%s: %s" % (name, errors.describe(error))) from error


def _settings(words: list[str]) -> dict[str, str]:
    settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise errors.BadInput("--set %s is not KEY=VALUE" % wire.printable(word))
        settings[key.strip()] = value
    return settings


def _patterns(given: list[str] | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(given)


# -- status, list, show, logs ------------------------------------------------------------------------------------------


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--offline", action="store_true", help="ask nobody, even where a connection is open")


def _status(command: Command) -> int:
    found = api.status(command.home, command.args.remote, ask=not command.args.offline)
    command.data = {"remotes": found}
    if not found:
        raise errors.NoConfig(path=command.home.config_path)
    for remote in found:
        command.say("%s: %s" % (remote["remote"], as_of(remote["synced"])))
        command.table([("  " + state.lower(), number(amount)) for state, amount in remote["counts"].items()]
                      or [("  no jobs", "")])
        if remote["waiting_for_others"]:
            command.say("  of these, %s waiting for others" % count(remote["waiting_for_others"], "job"))
        arrays = arrays_of(remote["agent"])
        if arrays:
            from chasqui_agent import elements
            sums = map(sum, zip(*(row[1:] for row in arrays.values()), strict=True))
            told = elements.short(dict(zip(("ended", "running", "waiting"), sums, strict=True)))
            command.say("  elements of job arrays: %s" % told)
        _status_notes(command, remote)
    return 0


def _status_notes(command: Command, remote: dict[str, Any]) -> None:
    known = remote["agent"] or {}
    pump = known.get("pump") or {}
    for key, text in (("stalled_since", "had stalled since"), ("refused", "refused, in the scheduler's words:"),
                      ("note", "the pump says:")):
        if pump.get(key):
            command.say("  %s %s" % (text, pump[key]))
    if remote["silent"]:
        command.say("  no answer now: %s" % remote["silent"])
    stalled = _status_now(command, remote) if remote["now"] else _status_then(command, known)
    news = [count(remote[key], noun) + after for key, noun, after in (
        ("to_upload", "job", " to upload"), ("operations", "request", " to send"),
        ("results_wanted", "job", "'s results to fetch")) if remote[key]]
    if remote["results_incomplete"]:
        command.say("  %s without all the results expected: chasqui list --state COMPLETED"
                    % count(remote["results_incomplete"], "completed job"))
    if news or stalled:
        command.say("  next: %s  (%s)" % (command.sync_line([remote["remote"]]), ", ".join(news + stalled)))


def _status_then(command: Command, known: dict[str, Any]) -> list[str]:
    """What the last sync learnt of the relay."""
    status = known.get("status") or {}
    site = status.get("notes", "")
    for text in site.split("; ") if isinstance(site, str) and site else ():
        command.say("  " + text)
    _say_outlook(command, status)
    return []


def _status_now(command: Command, remote: dict[str, Any]) -> list[str]:
    """What it says itself, over the open connection; what a sync has to do about it."""
    now = remote["now"]
    waiting, inside, *others = (value if isinstance(value := now.get(key), int) else 0
                                for key in ("waiting", "submitted", "held", "submitting"))
    command.say("  there now: %s waiting, %s in the scheduler" % (number(waiting), number(inside)))
    # At least: of ours, some may have ended since the last sync.
    foreign = waiting + inside + sum(others) - sum(remote["counts"].get(state, 0) for state in states.OPEN)
    if foreign > 0:
        command.say("  at least %s there not of this ledger: from another computer, or put there by hand"
                    % count(foreign, "job"))
    notes = now.get("notes")
    for text in notes if isinstance(notes, list) else ():
        command.say("  %s" % text)
    relay = now.get("relay")
    _say_outlook(command, relay if isinstance(relay, dict) else {})
    if not now.get("stalled_since"):
        return []
    command.say("  STALLED since %s: nothing is alive to wake the relay" % now["stalled_since"])
    return ["starts the relay again"]


def _say_outlook(command: Command, status: dict[str, Any]) -> None:
    if status.get("way"):
        from chasqui_agent import outlook
        command.say("  " + outlook.words(status))


def _list(command: Command) -> int:
    found = api.find(command.home, command.selection())
    command.data = {"jobs": [api.as_dict(job) for job in found]}
    with api.open_ledger(command.home) as ledger:
        short = select.short_ids(ledger)
        synced = {job.remote: ledger.remote_state(job.remote).synced for job in found}
        waits = _waiting_for(ledger, found)
        arrays = {remote: arrays_of(ledger.remote_state(remote).report) for remote in synced}
    for one, job in zip(command.data["jobs"], found, strict=True):
        one["waiting_for"] = waits.get(one["id"], [])
        one["elements"] = one["elements"] or progress(job, arrays[job.remote])
    if not found:
        command.say("no jobs")
        if not command.home.config_path.exists():
            command.say("next: " + errors.NoConfig.hint)
        return 0
    for remote, stamp in synced.items():
        command.say("# %s: %s" % (remote, as_of(stamp)))
    command.table([(short[job.id], job.name, job.state,
                    _waits(waits.get(job.id, [])) or _so_far(job, arrays) or reason(job), place(job.folder))
                   for job in found])
    return 0


def _so_far(job: Job, arrays: dict[str, dict[str, Any]]) -> str:
    """How far a job array is, as of the last sync; "" of any other job."""
    found = progress(job, arrays[job.remote])
    if not found:
        return ""
    from chasqui_agent import elements
    return "elements: " + elements.short(found)


def _waiting_for(ledger: Ledger, jobs: list[Job]) -> dict[str, list[str]]:
    """Of those of these jobs that wait for others: for whom, by name."""
    parents = ledger.parents(job.id for job in jobs if job.state in (states.QUEUED_LOCAL, states.UPLOADED))
    open_ones = {job: [parent.name for parent in found if not parent.ended] for job, found in parents.items()}
    return {job: names for job, names in open_ones.items() if names}


def _waits(names: list[str]) -> str:
    more = " and %s more" % number(len(names) - 3) if len(names) > 3 else ""
    return "waiting for %s%s" % (", ".join(names[:3]), more) if names else ""


_SHOWN = ("id", "name", "remote", "folder", "state", "why", "exit", "signal", "attempt", "pbs", "results",
          "results_state", "added")


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="id, its beginning, name or folder")


def _show(command: Command) -> int:
    found = api.show(command.home, command.args.job, command.args.remote or "")
    command.data = found
    command.table([(key, str(found[key])) for key in _SHOWN if found[key] not in (None, "")])
    if found["missing"]:
        command.say("missing       %s" % ", ".join(found["missing"]))
    if found["after"]:
        after = ", ".join("%s (%s)" % (one["name"], one["state"]) for one in found["after"])
        command.say("after         %s; if %s" % (after, found["if"]))
    if found["elements"]:
        _show_elements(command, found["elements"])
    command.say("inputs        %s, %s" % (count(len(found["inputs"]), "file"),
                                          size(sum(item["size"] for item in found["inputs"]))))
    for item in found["result_files"]:
        text = "result        %s  %s  %s %s" % (item["path"], size(item["size"]), item["state"], item["why"])
        command.say(text.rstrip())
    for attempt in found["attempts"]:
        command.say("attempt %-5d %s" % (attempt["attempt"], " ".join(
            "%s %s" % (key, attempt[key]) for key in ("state", "pbs", "exit", "started", "ended", "why")
            if attempt[key] not in (None, ""))))
    for event in found["events"]:
        arrow = "%s -> %s" % (event["old"], event["new"]) if event["new"] else ""
        text = "%s  #%d %s  %s  %s" % (event["at"], event["attempt"], event["event"], arrow, event["why"])
        command.say(text.rstrip())
    return 0


def _show_elements(command: Command, found: dict[str, Any]) -> None:
    from chasqui_agent import elements
    command.say("elements      %s" % elements.short(found))
    for which, indices in elements.lines(found) if "states" in found else ():
        command.say("              %s: %s" % (which, indices))


_ON_CLUSTER = (states.SUBMITTED, states.RUNNING)


def _logs_arguments(parser: argparse.ArgumentParser) -> None:
    _show_arguments(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="ask the cluster, and go on until the job ends")
    parser.add_argument("--element", type=int, metavar="N", help="of a job array: this element's, if it is here")


def _logs(command: Command) -> int:
    with api.open_ledger(command.home) as ledger:
        job = select.find(ledger, select.Selection((command.args.job,), remote=command.args.remote or ""))[-1]
        logs = [item for item in ledger.result_files(job.id, job.attempt)
                if item.kind == "log" and item.state == "HERE"]
    if command.args.element is not None:
        if command.args.follow:
            raise errors.BadInput("--element is for output that is here; -f follows the whole job.")
        logs = of_element(logs, command.args.element)
        known = elements_of(job)
        if not logs and known and not known[0] <= command.args.element <= known[1]:
            raise errors.BadInput("%s has the elements %d to %d, and no %d." % (job.name, *known, command.args.element))
        if not logs:
            raise errors.BadInput("No output of element %d of %s is here." % (command.args.element, job.name),
                                  hint="chasqui results %s" % job.id[:8])
    if command.args.follow and not job.ended:
        from .results import follow_logs
        return int(follow_logs(command.home, command.config.remote(job.remote), job))
    command.data = {"id": job.id, "state": job.state, "logs": []}
    for item in logs:
        text = _log_text(job, item.path)
        command.data["logs"].append({"path": wire.path_text(item.path), "text": text})
        command.say("==> %s" % place(os.path.join(job.results_path, item.path)))
        command.raw(text if text.endswith("\n") or not text else text + "\n")
    if not logs:
        hint = "chasqui logs -f %s" % job.id[:8] if job.state in _ON_CLUSTER else command.sync_line([job.remote])
        raise errors.BadInput("%s is %s and its output is not here." % (job.name, job.state), hint=hint)
    return 0


def _log_text(job: Job, log: bytes) -> str:
    path = os.path.join(job.results_path, log)
    try:
        with open(path, "rb") as stream:
            return stream.read().decode("utf-8", "replace")
    except OSError as error:
        hint = fetch_line(job.id, log) if isinstance(error, FileNotFoundError) else None
        raise errors.BadInput("%s: %s" % (place(path), errors.describe(error)), hint=hint) from error


# -- retry, cancel, hold, release --------------------------------------------------------------------------------------


def _retry_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="what the script asks for, now and later: walltime=48:00:00, mem=64gb, queue=long")


def _retry(command: Command) -> int:
    from . import retry_policy
    resources = retry_policy.asked_for(command.args.set)
    selection = command.confirmed_selection()
    good = sum(job.state == states.COMPLETED and job.results_state not in (states.NONE, states.PARTIAL)
               for job in api.find(command.home, selection, nothing_is_all=False))
    if good and not command.args.yes:
        why = "Verified results are here of %s" % count(good, "completed job")
        command.confirm(why, why + "; those of a new attempt take their place. retry?")
    found = api.retry(command.home, selection, resources)
    command.data = {"jobs": [api.as_dict(job) for job in found]}
    command.say("%s will be tried again" % count(len(found), "job") if found else "no jobs")
    if found:
        command.say("next: " + command.sync_line(job.remote for job in found))
    return 0


def _operation(operation: Callable[..., tuple[list[Job], list[Job]]], done_word: str) -> Callable[[Command], int]:
    def run(command: Command) -> int:
        done, later = operation(command.home, command.confirmed_selection())
        command.data = {"done": [job.id for job in done], "to_send": [job.id for job in later]}
        if done:
            command.say("%s %s" % (count(len(done), "job"), done_word))
        if later:
            command.say("%s will be %s by the next sync" % (count(len(later), "job"), done_word))
            command.say("next: " + command.sync_line(job.remote for job in later))
        if not done and not later:
            command.say("no jobs")
        return 0
    return run


def _reading(parser: argparse.ArgumentParser) -> None:
    add_selection(parser, confirm=False)


_STATES = "States: %s." % ", ".join(states.STATES)

VERBS = {
    "add": Verb("Make jobs of folders: all of them, or none. Nothing is sent before `chasqui sync`.\n"
                "A job.toml in the folder can say the same as the options here. --remote any: for the first cluster\n"
                "that has a slot free at a `sync --all`.",
                "  chasqui add runs/* --script job.pbs\n"
                "  chasqui add runs/* --template vasp --set cpus=32 --set walltime=12:00:00", _add_arguments, _add),
    "status": Verb("How many jobs are in which state, as of the last sync; and what the relay there says now, where a"
                   "\nconnection is open.", "  chasqui status", _status_arguments, _status),
    "list": Verb("Jobs, one a line: id, name, state, why, folder. As of the last sync.\n" + _STATES,
                 "  chasqui list --state FAILED,LOST", _reading, _list),
    "show": Verb("Everything the ledger knows of a job: state, reason, attempts, events, files.",
                 "  chasqui show kx3f", _show_arguments, _show),
    "logs": Verb("A job's standard output and error.", "  chasqui logs kx3f\n  chasqui logs -f kx3f",
                 _logs_arguments, _logs),
    "retry": Verb("A new attempt of ended jobs, in a fresh folder, with their inputs as they are on disk now; and of\n"
                  "those that are BLOCKED because of these.",
                  "  chasqui retry --state FAILED,LOST && chasqui sync\n"
                  "  chasqui retry kx3f --set walltime=48:00:00 --set queue=long", _retry_arguments, _retry),
    "cancel": Verb("Take jobs back. What the cluster already has is cancelled by the next sync.",
                   "  chasqui cancel kx3f && chasqui sync", add_selection, _operation(api.cancel, "cancelled")),
    "hold": Verb("Keep jobs out of the queue until `chasqui release`.", "  chasqui hold --name 'Fe*' && chasqui sync",
                 add_selection, _operation(api.hold, "held")),
    "release": Verb("Let held jobs go on.", "  chasqui release --all --yes && chasqui sync", add_selection,
                    _operation(api.release, "released")),
}
