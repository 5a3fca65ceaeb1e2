"""Torque 4 to 6: the commands of OpenPBS in an older dialect, without a history.

Nothing in here was measured on a Torque. It is what the manuals of 4.2 and 6.1 say, run against a mock that was made
from them; what they leave open is asked for in such a way that either answer is understood.
"""

import os
import re

from .. import directives, files, runner
from . import openpbs, refusals
from .base import DELETED, Ended, NotQueued
from .openpbs import OpenPBS
from .pbs_commands import Commands, NotStarted

MYPY = False
if MYPY:
    from typing import Callable, Dict, List, Optional, Tuple

    from ..settings import Settings
    from ..spool import Spool
    from . import qstat_text
    from .base import Request, Submission

# exit_status of what Torque itself ended (the manual's table of JOB_EXEC_...).
_ENDINGS = {
    -4: "node lost",  # the mom was restarted
    -5: "node lost",
    -6: "node lost",
    -10: "memory",
    -11: "walltime",
    -12: "cpu time",
}
_TERMINATED = (256 + 15, 128 + 15)  # its shell, or the last command of its shell, ended by qdel's TERM
_ALL_BUT_COMPLETED = "EHQRTW"
# What a refusal of our epilogue may be called; not a path with that word in it. Two seconds: as fill.LEAST_SECONDS.
# In the line that refuses: a filter's remark beside an error that nobody knows explains nothing.
_NAMED = re.compile(r"(?im)^(?=.*(?:reject|not allow|unknown|illegal|invalid|unauthori[sz]ed|denied))"
                    r".*(?<![\w/-])epilogue(?![\w/-])")
_RESOURCE = re.compile("unknown resource|illegal attribute or resource value", re.IGNORECASE)
LEAST_SECONDS = 2.0
REFUSED = ".refused"
_PLAIN_PATH = re.compile(r"[\w./+-]+$")  # in a resource list a comma or a blank would end it


class Torque(OpenPBS):
    """The Torque server of this host, as this user sees it."""

    name = "torque"
    called = "Torque"
    has_arrays = False
    name_limit = 15  # qsub takes longer ones, but 15 is what the manual promises
    running_states = "RE"  # qselect refuses the letters of OpenPBS's others
    selects_elements = False  # each is a job of its own; where qselect lists the whole array as well, that is one more

    def __init__(self, spool: "Spool", settings: "Settings") -> None:
        super().__init__(spool, settings)
        self._spool = spool
        self._tails = getattr(settings, "wake_via", "auto") not in ("hook", "sync")

    # -- asking ----------------------------------------------------------------------------------------------------

    def select_live(self) -> "List[str]":
        # Without states it also prints the completed ones, which Torque keeps for keep_completed seconds.
        return self.select("-u", self.user, "-s", _ALL_BUT_COMPLETED)

    def select_named(self, name: str, history: bool) -> "Tuple[List[str], bool]":
        return self.select("-N", name), False

    def full_words(self, history: bool) -> "List[str]":
        return ["qstat", "-f", "-1"]  # -1: no line is folded

    def ending(self, job: "qstat_text.Job", token: str) -> Ended:
        """What became of a completed job. Torque does not say who deleted one; only the signal tells."""
        code: "Optional[int]" = job.exit
        if code is None:
            return Ended(job.id, None, "deleted in Torque before it started", token, False)
        if code in _TERMINATED:
            return Ended(job.id, 256 + 15, DELETED, token, False)
        if code < 0:
            return Ended(job.id, code, _ENDINGS.get(code, "ended by Torque (%d)" % code), token, False)
        return Ended(job.id, code, "killed (%d)" % code if code >= 256 else "", token, False)

    # -- submitting ------------------------------------------------------------------------------------------------

    def name_in_queue(self, name: str) -> str:
        return name if re.match("[A-Za-z]", name) else "j" + name  # the first must be a letter

    def refusal(self, code: "Optional[int]", text: str, asked: "Dict[str, str]") -> refusals.Refusal:
        """By its words alone: from 15008 on its error numbers, and with them qsub's codes, are not OpenPBS's. What no
        word explains is no refusal: the server may have the job."""
        found = super().refusal(1 if code and code > 0 else code, text, asked)
        explained = "submit error (" in text or _NAMED.search(text)
        return found._replace(kind="unknown") if found.kind == "other" and not explained else found

    def submit(
        self, request: "Request", timeout: float, meanwhile: "Callable[[], None]" = lambda: None
    ) -> "Submission":
        """As for PBS. Where the refusal may be of our epilogue, the job goes once more without it; if that is what was
        in the way, no other job names one."""
        answer = super().submit(request, timeout, meanwhile)
        words = answer.text
        ours = _NAMED.search(words) or (answer.kind == "permanent" and _RESOURCE.search(words))
        if answer.kind not in ("permanent", "other") or answer.here or not ours or not self._leave_out(request.script):
            return answer
        if self.within(timeout) < LEAST_SECONDS:
            return answer._replace(kind="temporary")
        answer = super().submit(request, timeout)
        if answer.kind == "accepted":
            self._learn(words)
        return answer

    def arguments(self, request: "Request") -> "List[str]":
        return openpbs.arguments(request, ["qsub"])  # its -f means fault tolerant; it leaves nothing behind anyway

    def head(self, script: bytes) -> str:
        """As for PBS, and an epilogue of the user's own, unless she brings one: Torque runs it on the job's first node
        when all of the job is over, SIGKILL or not, which no tail outlives."""
        text = runner.head(script)
        hers = any(flag == "l" and "epilogue=" in value for flag, value in directives.options(script))
        path = self._epilogue
        if self._tails and not hers and _PLAIN_PATH.match(path) and not os.path.exists(path + REFUSED):
            _write_epilogue(self._spool.root, path)
            text += _LINE % path
        return text

    @property
    def _epilogue(self) -> str:
        return os.path.join(self._spool.root, "epilogue")

    def _leave_out(self, script: str) -> bool:
        """Take our epilogue out of a runner; whether it was in there. Raises NotQueued."""
        try:
            with open(script, "rb") as stream:
                text = stream.read()
            line = (_LINE % self._epilogue).encode("utf-8", "surrogateescape")
            if line in text:
                files.replace_file(script, text.replace(line, b"", 1), mode=0o700)
            return line in text
        except OSError as error:
            raise NotQueued(error.errno, error.strerror, error.filename) from None

    def _learn(self, words: str) -> None:
        try:
            files.replace_file(self._epilogue + REFUSED, words.encode("utf-8", "replace") + b"\n")
        except OSError:
            pass  # the job is submitted, that counts; the next one finds it out again

    def beat_head(self, options: "Dict[str, str]") -> "List[str]":
        lines = ["#!/bin/sh"] + ["#PBS -%s %s" % item for item in sorted(options.items())]
        return lines + ["#PBS -l nodes=1:ppn=1", "#PBS -l walltime=00:05:00"]

    # -- telling ---------------------------------------------------------------------------------------------------

    def version(self) -> str:
        if self._version is None:
            try:
                self._version = torque_version(self.commands, self.within(openpbs.HURRY_SECONDS))
            except NotStarted:
                return ""
        return self._version

    def describe(self) -> str:
        path, source = self.commands.find("qsub")
        live = len(self.select_live())
        words = (self.version() or "?", os.path.dirname(path), source, self._server(), live, self.user)
        told = "torque: Torque %s, commands in %s (from %s), server %s answers, %d live jobs of %s" % words
        return told + ("; it takes no -l epilogue=" if os.path.exists(self._epilogue + REFUSED) else "")


def torque_version(commands: Commands, seconds: float) -> str:
    """What `qsub --version` says ("Version: 6.1.2", in 4 "version: 4.2.10"), "" where it is no Torque. Raises
    NotStarted without a qsub."""
    result = commands.run(["qsub", "--version"], seconds)
    found = re.search(r"(?im)^version:\s*([0-9]\S*)", result.out + result.err)
    return found.group(1) if found and result.code == 0 else ""


_LINE = "#PBS -l epilogue=%s\n"
# $1: the job's id, ${10}: its exit status. One that ended by itself has pumped in its tail. As the mom runs this the
# job still counts, a moment longer: hence the pause, and the process of its own, for nobody waits for this one long.
_EPILOGUE = r"""#!/bin/sh
case ${10:-} in
    [0-9] | [0-9][0-9] | 1[01][0-9] | 12[0-7]) exit 0 ;;
esac
session=
! command -v setsid >/dev/null 2>&1 || session=setsid
# shellcheck disable=SC2016
$session sh -c 'sleep 2; exec "$@"' sh env -i HOME="${HOME:-/}" USER="${USER:-}" LOGNAME="${LOGNAME:-}" PATH=@path@ \
    LC_ALL=C CHASQUI_LEFT_BY="${1:-epilogue}" @carried@ @python@ -I -S @agent@ --root @root@ \
    wake --reason epilogue --budget 15 </dev/null >/dev/null 2>&1 &
exit 0
"""


def _write_epilogue(root: str, path: str) -> None:
    """The script all jobs of a root name, with the agent that is deployed last: the tail of an old job, whose agent
    may soon be gone, writes the same. Torque takes none that others may write."""
    import shlex

    from .. import launch

    current = os.path.join(root, "agent", "current")
    values = {
        "path": shlex.quote(os.environ.get("PATH", os.defpath)),
        "carried": runner.carried_words(),
        "python": shlex.quote(launch.python()),
        "agent": shlex.quote(current if os.path.exists(current) else launch.own_path()),
        "root": shlex.quote(root),
    }
    text = re.sub("@([a-z]+)@", lambda found: values[found.group(1)], _EPILOGUE).encode("utf-8", "surrogateescape")
    try:
        with open(path, "rb") as stream:
            if stream.read() == text:
                return
    except FileNotFoundError:
        pass
    files.replace_file(path, text, mode=0o700)
