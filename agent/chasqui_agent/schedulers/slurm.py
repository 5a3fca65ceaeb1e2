"""Slurm without its accounting: squeue for what lives and for what ended a moment ago, sbatch, scancel, scontrol.

A round is one squeue of this user's live jobs, and a second one where something is missing among them. The controller
forgets an ended job after MinJobAge (300 s), so it is the runner's flag that tells how a job ended, and the controller
only of those that left none. With the controller down every command tries for 9 s, with one that hangs for
MessageTimeout (10 s); what sbatch gave up waiting for was seen to be queued afterwards.
"""

import os
import re
import time

from .. import sbatch
from ..runner import shell_path
from . import pbs_commands, slurm_refusals, slurm_text
from .base import NotNow, Request, Scheduler, Snapshot, Submission, Unreachable
from .pbs_commands import NotStarted

MYPY = False
if MYPY:
    from typing import Callable, Dict, Iterable, List, Tuple

    from ..settings import Settings
    from ..spool import Spool
    from .base import Ended, Live, Sought
    from .pbs_commands import Result

HURRY_SECONDS = 20.0  # release, delete, move: something waits for them
NOTES_AT_MOST = 20

USUAL_PLACES = ("/usr/bin", "/usr/local/bin", "/opt/slurm/bin", "/usr/local/slurm/bin", "/opt/software/slurm/bin")
# sbatch hands its environment on to the job, so it gets what a job is to have and no more: it must not matter who woke
# the relay.
_KEPT = ("HOME", "USER", "LOGNAME", "SHELL", "PATH", "MAIL", "TZ", "SLURM_CONF")
_GONE = "invalid job id|already (finished|completing or completed)|no longer pending"
_DOWN = "unable to contact|timed out|unexpected message|authentication|munge|standby|configuration source|zero bytes"


class Commands(pbs_commands.Commands):
    """The Slurm commands of this host, and how often they were called."""

    def __init__(self, configured: str = "") -> None:
        base = os.environ.get("PATH", "").split(os.pathsep)
        found = [(folder, "PATH") for folder in base if folder.startswith("/")]
        found += [(folder, "usual place") for folder in USUAL_PLACES]
        self._places = [(os.path.expanduser(configured), "pbs_bin")] if configured else found
        self.calls = 0

    def run(
        self,
        argv: "List[str]",
        timeout: float,
        folder: str = "/",
        meanwhile: "Callable[[], None]" = lambda: None,
        more: "Iterable[Tuple[str, str]]" = (),
    ) -> "Result":
        """Run one command, named by argv[0], in `folder` and with `more` in its environment. Raises NotStarted."""
        path, _ = self.find(argv[0])
        self.calls += 1
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment.update(more)
        return pbs_commands.run([path] + argv[1:], dict(environment, PWD=folder), folder, timeout, meanwhile)


def is_here(seconds: float = HURRY_SECONDS) -> bool:
    """Whether this host belongs to a Slurm cluster, be it up or down. The commands alone may be there without one."""
    try:
        result = Commands().run(["scontrol", "ping"], seconds)
    except NotStarted:
        return False
    return "Slurmctld(" in result.out


class Slurm(Scheduler):
    """The Slurm of this host, as this user sees it."""

    name = "slurm"
    called = "Slurm"
    name_limit = 128
    has_arrays = True
    reads = "SBATCH"

    def __init__(self, spool: "Spool", settings: "Settings") -> None:
        self.commands = Commands(getattr(settings, "pbs_bin", "") or "")

    @property
    def calls(self) -> int:  # type: ignore[override]
        return self.commands.calls

    # -- asking ----------------------------------------------------------------------------------------------------

    def query(
        self,
        ids: "Iterable[str]",
        sought: "Iterable[Sought]" = (),
        held: "Iterable[str]" = (),
        known: "Iterable[str]" = (),
    ) -> Snapshot:
        ids, before = list(ids), self.commands.calls
        tokens = {one.token: one for one in sought}
        rows = slurm_text.rows(self._squeue("--format=" + slurm_text.ROWS))
        live, ended = _by_job(rows, tokens)
        found = set(live) | {job.token for job in live.values()}
        if not found.issuperset(ids) or not found.issuperset(tokens):
            # Ended, or gone back into the queue between the two.
            rows = slurm_text.ended_rows(self._squeue("--states=all", "--Format=" + slurm_text.ENDED))
            late, ended = _by_job(rows, tokens)
            wanted = set(ids) | set(tokens)
            live = dict({i: job for i, job in late.items() if i in wanted or job.token in wanted}, **live)
            ended = {i: job for i, job in ended.items() if i not in live and (i in wanted or job.token in wanted)}
        notes = _notes(rows, set(ids))
        return Snapshot(live, ended, set(ids) | set(tokens), self.commands.calls - before, notes)

    def _squeue(self, *words: str) -> str:
        """What squeue says of all jobs of this user, element by element, believed only if it ends well and is whole.
        Raises Unreachable."""
        seconds = self.within(self.query_seconds)
        command = ["squeue", "--noheader", "--array", "--user=%d" % os.getuid()]
        result = self.commands.run(command + list(words), seconds)
        if result.code != 0:
            raise Unreachable(_words("squeue", result, seconds))
        if not result.whole:
            raise Unreachable("squeue: the answer is too long")
        return str(result.out)

    def words_on(self, job_id: str) -> "Tuple[str, str]":
        rows = slurm_text.rows(self._squeue("--format=" + slurm_text.ROWS))
        found = [row for row in rows if row.id == job_id]
        return (found[0].state, "" if found[0].reason == "None" else found[0].reason) if found else ("", "")

    # -- submitting ------------------------------------------------------------------------------------------------

    def head(self, script: bytes) -> str:
        return sbatch.head(script, shell_path())

    def beat_head(self, options: "Dict[str, str]") -> "List[str]":
        named = {"q": "partition", "A": "account", "P": "qos"}
        lines = ["#SBATCH --%s=%s" % (named[key], value) for key, value in sorted(options.items()) if key in named]
        return ["#!/bin/sh"] + lines + ["#SBATCH --ntasks=1", "#SBATCH --time=5"]

    def submit(self, request: Request, timeout: float, meanwhile: "Callable[[], None]" = lambda: None) -> Submission:
        unset = [name for name, value in request.variables if value is None and name not in os.environ]
        if unset:
            text = "--export=%s: not set where the relay runs; write --export=ALL,%s=VALUE" % (unset[0], unset[0])
            return Submission("permanent", "", text)
        if request.directives.get("M"):
            return Submission("permanent", "", "--clusters: only the cluster of this host is looked after")
        timeout = self.within(timeout)
        given = [(name, os.environ[name] if value is None else value) for name, value in request.variables]
        try:
            result = self.commands.run(arguments(request), timeout, request.folder, meanwhile, given)
        except NotStarted as error:
            return Submission("temporary", "", str(error))
        # With a cluster's name behind it where there are several. A site's filter may print more than that.
        ids = re.findall(r"(?m)^([0-9]+)(?:;\S*)?\s*$", result.out)
        if len(ids) == 1 and result.code == 0:
            return Submission("accepted", ids[0] + ("[]" if "J" in request.directives else ""), "")
        text = _words("sbatch", result, timeout)
        if ids:
            return Submission("unknown", "", text)  # a job there is, whatever else it says
        refusal = slurm_refusals.classify(result.code, result.err + result.out)
        return Submission(refusal.kind, "", text, refusal.learn, refusal.here)

    # -- changing --------------------------------------------------------------------------------------------------

    def release(self, job_id: str) -> None:
        self._change(["scontrol", "release", number(job_id)])

    def delete(self, job_id: str) -> None:
        self._change(["scancel", number(job_id)])

    def move_start(self, job_id: str, when: float) -> bool:
        try:
            self._change(["scontrol", "update", "JobId=" + number(job_id), "StartTime=" + _moment(when)], "")
        except NotNow:
            return False
        return True

    def _change(self, words: "List[str]", harmless: str = _GONE) -> None:
        seconds = self.within(min(HURRY_SECONDS, self.query_seconds))
        result = self.commands.run(words, seconds)
        said = result.err + result.out
        down = result.code is None or result.code < 0
        if result.code == 0 or (harmless and not down and re.search(harmless, said, re.IGNORECASE)):
            return
        down = down or re.search(_DOWN, said, re.IGNORECASE)
        raise (Unreachable if down else NotNow)(_words(words[0], result, seconds))

    # -- telling ---------------------------------------------------------------------------------------------------

    def describe(self) -> str:
        path, source = self.commands.find("sbatch")
        version = self.commands.run(["sbatch", "--version"], HURRY_SECONDS).out.split()
        live = len(_by_job(slurm_text.rows(self._squeue("--format=" + slurm_text.ROWS)), {})[0])
        words = (version[-1] if version else "?", os.path.dirname(path), source, live)
        return "slurm: %s, commands in %s (from %s), the controller answers, %d live jobs of yours" % words


# -- pure ------------------------------------------------------------------------------------------------------------


def _by_job(
    rows: "List[slurm_text.Row]", sought: "Dict[str, Sought]"
) -> "Tuple[Dict[str, Live], Dict[str, Ended]]":
    """The live and the ended jobs of these rows: an array is one, and lives while one of its elements does."""
    jobs: "Dict[str, List[slurm_text.Row]]" = {}
    for row in rows:
        jobs.setdefault(row.id, []).append(row)
    live, ended = {}, {}
    for job_id, found in jobs.items():
        token = slurm_text.token_of(found[0], sought)
        alive = [row for row in found if not slurm_text.is_over(row)]
        if alive:
            live[job_id] = slurm_text.live(alive, token)
        else:
            ended[job_id] = slurm_text.ended(found, token)
    return live, ended


def _notes(rows: "List[slurm_text.Row]", ids: "Iterable[str]") -> "Dict[str, str]":
    wanted = set(ids)
    found = [(row.id, slurm_text.note(row)) for row in rows if row.id in wanted and slurm_text.note(row)]
    return dict(found[:NOTES_AT_MOST])


def number(job_id: str) -> str:
    """What Slurm calls a job or an array."""
    return job_id.partition("[")[0]


def _moment(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(when))


def _words(command: str, result: "Result", seconds: float) -> str:
    """What a command said, on one line, or how it ended where it said nothing."""
    if result.code is None:
        return "%s did not answer in %g seconds" % (command, seconds)
    lines = [line.strip() for line in (result.err.strip() or result.out.strip()).split("\n") if line.strip()]
    said = "; ".join(re.sub("^%s: (error: )?" % command, "", line) for line in lines)[:1000]
    if result.code < 0:
        return "%s was ended by signal %d%s" % (command, -result.code, ": " + said if said else "")
    return said or "%s ended with exit code %d and said nothing" % (command, result.code)


def arguments(request: Request) -> "List[str]":
    """The words of the sbatch call. The script's own #SBATCH lines stand in the runner; what is said here beats
    them. Its variables come from the environment."""
    array = "J" in request.directives
    words = ["sbatch", "--parsable", "--job-name=" + request.name, "--requeue" if request.rerun else "--no-requeue"]
    words.append("--output=" + sbatch.pattern(request.output, array))
    if not request.join:
        words.append("--error=" + sbatch.pattern(request.error, array))
    if request.hold:
        words.append("--hold")
    if request.start is not None:
        words.append("--begin=" + _moment(request.start))
    return words + [request.script]
