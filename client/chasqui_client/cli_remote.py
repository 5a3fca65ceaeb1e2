"""The verbs that talk to a cluster: init, login, logout, sync, results, doctor, agent."""

import argparse
import sys

from chasqui_agent import wire

from . import api, config, errors, states
from .command import Command, count, fetch_line, incomplete, number, place, size
from .exchange import SyncOptions, SyncReport
from .ledger import Job, ResultFile
from .select import Selection, parse_states
from .verbs import Verb

_ON_CLUSTER = (states.UPLOADED, states.SUBMITTED, states.RUNNING)
_AGENT_VERBS = ("deploy", "status", "pump", "log", "cron", "remove")


# -- init, login, logout, doctor ---------------------------------------------------------------------------------------


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="what you will call it")
    parser.add_argument("--host", required=True, help="an ssh alias, user@host, ssh://user@host:port, or local")
    parser.add_argument("--root", default="", metavar="DIR", help="the relay's folder there (default ~/chasqui)")


def _init(command: Command) -> int:
    args = command.args
    written = config.init(command.home, args.name, args.host, args.root)
    remote = written.remotes[args.name]
    command.data = {"path": str(written.path), "remote": args.name}
    command.say("wrote %s  (caps: %d running, %d queued; change them there)"
                % (written.path, remote.caps.max_running, remote.caps.max_queued))
    command.say("next: chasqui doctor" + ("" if len(written.remotes) == 1 else " --remote %s" % args.name))
    return 0


def _named_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="which cluster (default: --remote, else the only one)")


def _named(command: Command) -> config.Remote:
    return command.config.remote(command.args.name or command.args.remote)


def _login(command: Command) -> int:
    from . import ssh
    remote = _named(command)
    command.data = {"remote": remote.name, "connected": True}
    if remote.is_local:
        command.say("%s: nothing to log in to, it is this computer" % remote.name)
        return 0
    ssh.login(command.home.create(), remote)
    command.say("%s: connected" % remote.name)
    return 0


def _logout(command: Command) -> int:
    from . import ssh
    remote = _named(command)
    was_open = not remote.is_local and ssh.logout(command.home, remote)
    command.data = {"remote": remote.name, "connected": False}
    command.say("%s: %s" % (remote.name, "connection closed" if was_open else "there was no connection"))
    return 0


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    _named_arguments(parser)
    parser.add_argument("--job", action="store_true",
                        help="find out by real tiny jobs what wakes the relay there, and write wake_via")
    parser.add_argument("--only", metavar="FORM,..", help="--job: of tail,hook,ssh,epilogue,cron,heartbeat these alone")
    parser.add_argument("--patience", type=_seconds, metavar="SECONDS",
                        help="--job: how long the jobs may queue (default 300, at most 3600)")
    parser.add_argument("--dry-run", action="store_true", help="--job: only print the line for config.toml")
    parser.add_argument("--yes", action="store_true", help="--job: don't ask before submitting")


def _doctor(command: Command) -> int:
    from . import doctor
    args, remote = command.args, _named(command)
    if not args.job and (args.only or args.patience or args.dry_run):
        raise errors.BadInput("--only, --patience and --dry-run go with --job.", hint="chasqui doctor --job")
    report = doctor.run(command.home.create(), remote, command.say, command.interactive, job=not args.job)
    command.data = {"remote": remote.name, "rungs": report}
    if args.job:
        from . import wake_trial
        wake_trial.run(command, remote)
    return 0


# -- sync --------------------------------------------------------------------------------------------------------------


def _sync_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="every remote of config.toml, at the same time")
    parser.add_argument("--dry-run", action="store_true", help="contact nothing, list what would go")
    parser.add_argument("--watch", type=_seconds, metavar="SECONDS",
                        help="again and again until nothing is left to do; a lost network is waited for")
    parser.add_argument("--no-results", action="store_true", help="leave results there")
    parser.add_argument("--no-deploy", action="store_true", help="don't install or replace the agent")
    parser.add_argument("--take-caps", action="store_true", help="replace caps that another computer set")
    parser.add_argument("--fail", action="store_true", help="exit 3 if jobs failed")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError("%s is no number of seconds" % text) from None
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError("%s: must be above 0 and below 1,000,000 seconds" % text)
    return seconds


def _sync(command: Command) -> int:
    args = command.args
    if args.all:
        from .several import together
        return together.sync_all(command, _tell)
    options = SyncOptions(dry_run=args.dry_run, download=not args.no_results, deploy=not args.no_deploy,
                          take_caps=args.take_caps, interactive=command.interactive, progress=not args.json)
    if args.watch and not args.dry_run:
        from . import watch
        reports = watch.Watch(command, options, args.watch, lambda report: _left(command, report, options),
                              lambda report: _tell(command, report)).run()
    else:
        reports = [_synced(command, command.remote, options)]
    command.data = {**reports[-1].as_dict(), "syncs": len(reports)}
    _check_room(reports[-1])
    return 3 if args.fail and any(report.jobs_failed for report in reports) else 0


def _synced(command: Command, remote: config.Remote, options: SyncOptions) -> SyncReport:
    """One sync and its summary; where only the uploads failed, the summary of the rest comes before that failure."""
    try:
        report = api.run_sync(command.home, remote, options)
    except errors.RemoteDiskFull as full:
        if full.report:
            _tell(command, full.report)
        raise
    _tell(command, report)
    return report


def _without_room(report: SyncReport) -> list[dict[str, str]]:
    """The jobs that stayed here because there is no room for them there."""
    if not report.refused:
        return []
    from chasqui_agent import space
    return [item for item in report.refused if item["why"].startswith(space.NO_ROOM)]


def _stays(report: SyncReport) -> int:
    """How many jobs stayed here that are offered again: for want of room, or of a job that they wait for."""
    if not report.refused:
        return 0
    from chasqui_agent import dependents
    orphans = [item for item in report.refused if item["why"].startswith(dependents.NOT_HERE)]
    return len(_without_room(report)) + len(orphans)


def _check_room(report: SyncReport) -> None:
    """Raises RemoteDiskFull where the pump could not go on, NoRoomThere: one line for all jobs that do not fit, which
    names the file systems."""
    if report.disk_full:
        raise errors.RemoteDiskFull(remote=report.remote, root=report.disk_full)
    jobs = _without_room(report)
    if jobs:
        why = "; ".join(sorted({item["why"] for item in jobs}))
        raise errors.NoRoomThere(why, remote=report.remote, jobs=count(len(jobs), "job"))


def _left(command: Command, report: SyncReport, options: SyncOptions) -> bool:
    """Whether another sync may bring news: a job that is neither held nor ended, or results not here yet."""
    waiting = set(states.OPEN) - {states.HELD, states.PREPARED}
    # What finds no room is offered again while anything else goes on; alone it would wait for ever.
    if sum(amount for state, amount in report.counts.items() if state in waiting) > _stays(report):
        return True
    with api.open_ledger(command.home) as ledger:
        return options.download and bool(ledger.results_due(report.remote)[0])


def _tell(command: Command, report: SyncReport) -> None:
    """The summary: what happened, what failed, what comes next."""
    then = ". Put that right, then: %s" % command.sync_line([report.remote])
    for note in report.notes:
        command.say(note + (then if note in report.unwelcome else ""))
    for item in report.changed_inputs:
        command.say("changed since add: %s  (%s, %s)" % (item["path"], item["name"], item["why"]))
    if report.dry_run:
        _tell_plan(command, report)
        return
    if report.deployed:
        command.say("agent installed in %s" % report.deployed)
    command.say(_numbers(report))
    _tell_refused(command, report)
    if report.stalled_since:
        command.say("the relay had stalled since %s; this sync started it again" % report.stalled_since)
    _tell_results(command, report)
    _tell_next(command, report)
    sys.stdout.flush()  # --watch into a pipe is read as it goes


def _tell_refused(command: Command, report: SyncReport) -> None:
    without_room = {item["job"] for item in _without_room(report)}
    refused = [item for item in report.refused if item["job"] not in without_room]
    for item in refused:
        command.say("not taken: %s: %s" % (item["job"], item["why"]))
    if refused:
        them = " ".join(item["job"][:8] for item in refused[:20])
        words = (them, command.sync_line([report.remote])) * 2
        command.say("  put it right, then: chasqui cancel %s && %s && chasqui retry %s && %s" % words)


def _numbers(report: SyncReport) -> str:
    counts = report.counts
    live = counts.get(states.SUBMITTED, 0) + counts.get(states.RUNNING, 0)
    amounts = {
        "submitted": report.submitted, "completed": report.completed, "failed": report.failed, "lost": report.lost,
        "rejected": report.rejected, "cancelled": report.cancelled, "blocked": report.blocked,
        "waiting": counts.get(states.UPLOADED, 0),
        "in the scheduler": live, "held": counts.get(states.HELD, 0)}
    said = ["uploaded " + count(report.uploaded, "job")] if report.uploaded else []
    said += ["%s %s" % (word, number(amount)) for word, amount in amounts.items() if amount]
    return " · ".join(said) or "nothing new"


def _tell_plan(command: Command, report: SyncReport) -> None:
    command.table([("would upload", item["name"], count(item["files"], "file"), size(item["bytes"]), item["folder"])
                   for item in report.would_upload])
    total = sum(item["bytes"] for item in report.would_upload)
    command.say("%s, %s; nothing was contacted" % (count(len(report.would_upload), "job"), size(total)))


def _tell_results(command: Command, report: SyncReport) -> None:
    if report.results_files:
        brought = count(report.results_files, "file"), size(report.results_bytes)
        whose = "results of %s" % count(report.results_jobs, "job") if report.results_jobs else "results"
        command.say("%s verified: %s, %s" % (whose, *brought))
    for item in report.left_out[:20]:
        command.say("left there: %s of %s (%s, %s); %s gets it"
                    % (item["path"], item["job"][:8], size(item["size"]), item["why"],
                       fetch_line(item["job"], wire.path_bytes(item["path"]))))
    if report.left_out_files > 20:
        command.say("left there: %s more; chasqui results --state COMPLETED lists them"
                    % count(report.left_out_files - 20, "file"))
    for item in report.incomplete[:20]:
        command.say("%s  %s  %s; the next sync looks again"
                    % (item["job"][:8], item["name"], incomplete(item["missing"])))
    if len(report.incomplete) > 20:
        command.say("%s more without all the results expected; chasqui status counts them"
                    % count(len(report.incomplete) - 20, "job"))


def _tell_next(command: Command, report: SyncReport) -> None:
    sync = command.sync_line([report.remote])
    bad = [state for state, amount in ((states.FAILED, report.failed), (states.LOST, report.lost),
                                       (states.REJECTED, report.rejected)) if amount]
    if any(item["why"].endswith("not uploaded") for item in report.changed_inputs):
        command.say("next: put back what is missing, then: %s    (or take the job back: chasqui cancel JOB)" % sync)
    elif bad:
        command.say("next: chasqui list --state %s" % ",".join(bad))
    elif not getattr(command.args, "watch", None) and any(report.counts.get(state) for state in _ON_CLUSTER):
        goes_on = "You can close the laptop; the cluster goes on alone."
        command.say("%s next: %s" % (report.outlook + "." if report.outlook else goes_on, sync))


# -- results -----------------------------------------------------------------------------------------------------------


def _results_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("jobs", nargs="*", metavar="[fetch] JOB", help="id, its beginning, name or folder")
    parser.add_argument("--state", metavar="A,B", help="jobs in one of these states")
    parser.add_argument("--name", metavar="GLOB", help="jobs whose name matches")
    parser.add_argument("--all", action="store_true", help="every job; with fetch: all that those jobs left there")
    parser.add_argument("--glob", action="append", metavar="GLOB", help="with fetch: files; ** goes into folders")


def _results(command: Command) -> int:
    if command.args.jobs[:1] == ["fetch"]:
        return _fetch(command)
    if command.args.glob:
        raise errors.BadInput("--glob says what to fetch.", hint="chasqui results fetch JOB --glob GLOB")
    found = api.find(command.home, command.selection(), nothing_is_all=False)
    command.data = {"jobs": []}
    with api.open_ledger(command.home) as ledger:
        for job in found:
            offered = ledger.result_files(job.id, job.attempt)
            _tell_files(command, job, offered)
            command.data["jobs"].append({
                "id": job.id, "name": job.name, "state": job.state, "results": wire.path_text(job.results_path),
                "results_state": job.results_state, "missing": job.missing,
                "files": [{"path": wire.path_text(f.path), "size": f.size, "state": f.state, "why": f.why}
                          for f in offered]})
    return 0


def _tell_files(command: Command, job: Job, offered: list[ResultFile]) -> None:
    here = [f for f in offered if f.state == "HERE"]
    state = incomplete(job.missing).removeprefix("results ") or job.results_state.lower()
    command.say("%s  %s  %s  %s in %s" % (job.id[:8], job.name, state, count(len(here), "file"),
                                          place(job.results_path)))
    for f in offered:
        path = wire.path_text(f.path)
        if f.state == "LEFT":
            command.say("          left there: %s  %s  %s; %s"
                        % (path, size(f.size), f.why, fetch_line(job.id, f.path)))
        elif f.state != "HERE":
            command.say("          not here yet: %s  %s; %s" % (path, size(f.size), command.sync_line([job.remote])))


def _fetch(command: Command) -> int:
    """Get files of ended jobs whatever their patterns and limits say."""
    args = command.args
    if args.all == bool(args.glob):
        raise errors.BadInput("Say which files: --glob GLOB, or --all.", hint="chasqui results fetch JOB --all")
    chosen = Selection(args.jobs[1:], parse_states(args.state or ""), args.name or "", False, args.remote or "")
    if chosen.empty:
        raise errors.BadInput("Whose results? Name jobs, or use --state or --name.",
                              hint="chasqui results fetch JOB --all")
    found = [job for job in api.find(command.home, chosen) if job.ended]
    if not found:
        raise errors.BadInput("No job that has ended is among them: results come when it has.",
                              hint="chasqui logs -f JOB")
    for job in found:
        if job.results_state == states.CLEANED:
            command.say("%s was cleaned: only what never came home, or was kept, may still be there" % job.name)
    reports = []
    for name in sorted({job.remote for job in found}):
        fetch = {job.id: tuple(args.glob or ()) for job in found if job.remote == name}
        options = SyncOptions(interactive=command.interactive, progress=not args.json, fetch=fetch)
        reports.append(_synced(command, command.config.remote(name), options))
    command.data = {"syncs": [report.as_dict() for report in reports]}
    return 0


# -- agent -------------------------------------------------------------------------------------------------------------


def _agent_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=_AGENT_VERBS, metavar="|".join(_AGENT_VERBS))
    parser.add_argument("name", nargs="?", metavar="NAME", help="which cluster (default: --remote, else the only one)")
    parser.add_argument("-f", "--follow", action="store_true", help="log: go on as it grows")
    parser.add_argument("--slurm", action="store_true", help="cron: for Slurm's scrontab")
    parser.add_argument("--every", type=int, metavar="MINUTES", help="cron: how often (default 10)")
    parser.add_argument("--purge", action="store_true", help="remove: the work folders too, with every result in them")


def _agent(command: Command) -> int:
    from . import deploy
    args, remote = command.args, _named(command)
    if args.what == "deploy":
        where = deploy.deploy(command.home.create(), remote, interactive=command.interactive)
        command.data = {"remote": remote.name, "agent": where}
        command.say("%s: agent installed in %s" % (remote.name, where))
        return 0
    words = {"status": ["status", "--json"] if args.json else ["status"], "pump": ["pump"],
             "log": ["log", "-f"] if args.follow else ["log"],
             "cron": ["cron", *(["--slurm"] if args.slurm else []), "--every", str(args.every or 10)],
             "remove": ["remove", "--purge"] if args.purge else ["remove"]}[args.what]
    return _agent_says(command, remote, words)


def _agent_says(command: Command, remote: config.Remote, words: list[str]) -> int:
    """Run one of the agent's own verbs there and pass on what it says, line by line, made harmless."""
    from . import deploy
    lines: list[str] = []

    def line(text: str) -> None:
        lines.append(text)
        command.say(text)
        sys.stdout.flush()

    code = deploy.agent_command(command.home, remote, words, line, interactive=command.interactive)
    command.data = {"remote": remote.name, "lines": lines}
    if words[0] == "remove" and not code:
        command.say("%s: the agent is gone%s" % (remote.name, "" if len(words) > 1 else "; work/ is still there"))
    if code:
        raise errors.RemoteRefused("%s: the agent's `%s` ended with %d." % (remote.name, words[0], code),
                                   hint="chasqui agent status --remote %s" % remote.name)
    return 0


VERBS = {
    "init": Verb("Name a cluster: adds it to config.toml, with every default written out.",
                 "  chasqui init hpc --host jane@login.hpc.example.edu\n  chasqui init here --host local",
                 _init_arguments, _init),
    "login": Verb("Open the connection. ssh asks for what it needs, here and nowhere else; it stays open for 8 hours.",
                  "  chasqui login hpc", _named_arguments, _login),
    "logout": Verb("Close the connection. The relay goes on alone.", "  chasqui logout hpc", _named_arguments, _logout),
    "doctor": Verb("Find out what does not work: name, port, host key, login, shell, python, disk, scheduler, a job;"
                   "\nstops at the first that fails and says what to type. With --job, real tiny jobs show what wakes"
                   "\nthe relay when a job ends there; the best of it is written into config.toml.",
                   "  chasqui doctor hpc\n  chasqui doctor --job hpc --dry-run", _doctor_arguments, _doctor),
    "sync": Verb("Hand over what is new, bring home what is finished. One ssh command.",
                 "  chasqui sync\n  chasqui sync --watch 60 --fail\n  chasqui sync --all", _sync_arguments, _sync),
    "results": Verb("Where results are and what was left on the cluster; `results fetch` gets that.",
                    "  chasqui results kx3f\n  chasqui results fetch kx3f --glob WAVECAR --glob 'run/**'\n"
                    "  chasqui results fetch kx3f --all", _results_arguments, _results),
    "agent": Verb("The relay on the cluster. `cron` prints a line that wakes it now and then, for a crontab there.\n"
                  "`remove` refuses while anything waits or runs; work/ goes with --purge.",
                  "  chasqui agent status\n  chasqui agent cron hpc\n  chasqui agent remove", _agent_arguments, _agent),
}
