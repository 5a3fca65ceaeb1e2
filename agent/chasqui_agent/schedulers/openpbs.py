"""OpenPBS and PBS Pro: rounds of qselect for the counts, one qstat for what is in doubt, qsub without its daemon.

Exit codes come before output: with the server down qstat prints a valid, empty answer and exits 255. qselect takes
6-14 ms with 10,000 jobs queued; qstat 200 ms and more, and a connection from a privileged port for every id it is
given: 512 of them in a minute block the host for all its users.
"""

import os
import pwd
import re
import time
from collections import namedtuple

from ..runner import shell_path
from . import qstat_text, refusals
from .base import DELETED, Ended, Live, NotNow, Request, Scheduler, Snapshot, Submission, Unreachable
from .pbs_commands import Commands, NotStarted

MYPY = False
if MYPY:
    from typing import Callable, Dict, Iterable, List, Optional, Set, Tuple

    from ..settings import Settings
    from ..spool import Spool
    from .base import Sought
    from .pbs_commands import Result

ASK_AT_MOST = 20  # ids in one qstat
SEEK_AT_MOST = 10  # names looked for in one round
HURRY_SECONDS = 20.0  # release, delete, move: something waits for them
VERSION_WITH_LONG_NAMES = 13  # PBS Pro 13 took job names of 230 characters, those before 15

UNKNOWN, FINISHED, BAD_STATE, NO_MOM = 153, 35, 168, 222
_DOWN = (160, 162, 183, 255)
_NO_HISTORY = "not configured to maintain job history"
_ID = re.compile(r"[0-9]+(\[[0-9]*\])?\.[\w.-]+$")
_NEW_ID = re.compile(r"[0-9]+(\[\])?\.[\w.-]+$")

# Exit_status of what PBS itself ended. -20: given up because the node did not answer; -4: the mom was restarted.
_ENDINGS = {
    -4: "node lost",
    -20: "node lost",
    -24: "ncpus",
    -25: "ncpus",
    -26: "memory",
    -27: "memory",
    -28: "cpu time",
    -29: "walltime",
}
DELETED_EARLY = "deleted in PBS before it started"
DEPENDENCY = "deleted by PBS: what it depended on can never be"

# what an array counts as
_Elements = namedtuple("_Elements", "queued running")


class Silent(Unreachable):
    """An answer that is none: every id is told of, or it is called unknown and the exit code says so."""


class OpenPBS(Scheduler):
    """The PBS server of this host, as this user sees it."""

    name = "openpbs"
    called = "PBS"
    has_arrays = True

    def __init__(self, spool: "Spool", settings: "Settings") -> None:
        self.commands = Commands(getattr(settings, "pbs_bin", "") or "")
        self.user = _user()
        self._version: "Optional[str]" = None

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
        return Round(self, ids, sought, held, known).snapshot()

    def select(self, *words: str) -> "List[str]":
        """The ids one qselect prints. Raises Unreachable."""
        return self._selected(self.ask("qselect", *words))

    def select_named(self, name: str, history: bool) -> "Tuple[List[str], bool]":
        """(ids of the jobs of a name, ended ones too where `history`; whether there is a history)."""
        if history:
            result = self.ask("qselect", "-x", "-N", name)
            if _NO_HISTORY not in result.err:
                return self._selected(result), True
        return self.select("-N", name), False

    def ask(self, *words: str) -> "Result":
        """One query whose answer is believed only if it ends well and is whole. Raises Unreachable."""
        seconds = self.within(self.query_seconds)
        result = self.commands.run(list(words), seconds)
        if result.code != 0:
            raise Unreachable(_words(words[0], result, seconds))
        if not result.whole:
            raise Unreachable("%s: the answer is too long" % words[0])
        return result

    @staticmethod
    def _selected(result: "Result") -> "List[str]":
        lines = [line.strip() for line in result.out.split("\n")]
        return [line for line in lines if _ID.match(line)]  # a site's wrapper may print more than ids

    def look_at(self, ids: "List[str]", history: bool) -> "Tuple[Dict[str, qstat_text.Job], Set[str], bool]":
        """One qstat of some ids: (what it says of them, those it does not know, whether there is a history). Raises
        Unreachable."""
        words = ["qstat", "-x", "-f", "-w"] if history else ["qstat", "-f", "-w"]
        seconds = self.within(self.query_seconds)
        result = self.commands.run(words + ids, seconds)
        if history and _NO_HISTORY in result.err:
            return self.look_at(ids, False)
        # The exit code is the last id's: 153 where that one is unknown, 35 where it has ended.
        if result.code not in (0, UNKNOWN, FINISHED):
            raise Unreachable(_words("qstat", result, seconds))
        if not result.whole:
            raise Unreachable("qstat: the answer is too long")
        if result.code == 0 and not result.out.strip():
            raise Silent("qstat ends well, and says nothing of the %d jobs it was asked about" % len(ids))
        found = qstat_text.parse(result.out)
        unknown = {job_id for job_id in ids if job_id not in found and _is_unknown(job_id, result.err)}
        return found, unknown, history

    def waiting_reasons(self, ids: "Iterable[str]") -> "Dict[str, str]":
        """Why queued jobs do not start, in PBS's words, of the first few `ids`. One qstat. Raises Unreachable."""
        asked = list(ids)[:ASK_AT_MOST]
        found = self.look_at(asked, False)[0] if asked else {}
        return {job_id: note(job) for job_id, job in found.items() if job.state in "QHW" and note(job)}

    def words_on(self, job_id: str) -> "Tuple[str, str]":
        job = self.look_at([job_id], False)[0].get(job_id)
        return (job.state, note(job) or job.comment) if job else ("", "")

    # -- submitting ------------------------------------------------------------------------------------------------

    def submit(self, request: Request, timeout: float, meanwhile: "Callable[[], None]" = lambda: None) -> Submission:
        unset = [name for name, value in request.variables if value is None and name not in os.environ]
        if unset:
            # PBS refuses this too, in words that do not say which, and with an exit code (1) that would stop the pump.
            text = "#PBS -v %s: not set where the relay runs; write -v %s=VALUE" % (unset[0], unset[0])
            return Submission("permanent", "", text)
        timeout = self.within(timeout)
        try:
            result = self.commands.run(arguments(request), timeout, request.folder, meanwhile)
        except NotStarted as error:
            return Submission("temporary", "", str(error))
        lines = {line.strip() for line in result.out.split("\n")}
        ids = [line for line in lines if _NEW_ID.match(line)]
        if result.code == 0 and len(ids) == 1:
            return Submission("accepted", ids[0], "")
        text = _words("qsub", result, timeout)
        if ids:
            return Submission("unknown", "", text)  # a job there is, whatever else it says
        asked = request.directives
        refusal = refusals.classify(result.code, result.err + result.out, asked.get("q", ""), "J" in asked)
        return Submission(refusal.kind, "", text, refusal.learn, refusal.here)

    @property
    def name_limit(self) -> int:  # type: ignore[override]
        """230, or 15 before PBS Pro 13 and where the version can't be told."""
        found = re.search(r"([0-9]+)\.[0-9]", self.version())
        return 230 if found and int(found.group(1)) >= VERSION_WITH_LONG_NAMES else 15

    def version(self) -> str:
        """What `qsub --version` says, "" where it does not know that; the server is not asked."""
        if self._version is None:
            try:
                self._version = pbs_version(self.commands, self.within(HURRY_SECONDS))
            except NotStarted:
                return ""
        return self._version

    # -- changing --------------------------------------------------------------------------------------------------

    def release(self, job_id: str) -> None:
        self._change(["qrls", job_id], (UNKNOWN, FINISHED, BAD_STATE))

    def delete(self, job_id: str) -> None:
        # In E: 168. It is ending already.
        self._change(["qdel", job_id], (UNKNOWN, FINISHED, BAD_STATE))

    def _change(self, words: "List[str]", harmless: "Iterable[int]") -> None:
        seconds = self.within(min(HURRY_SECONDS, self.query_seconds))
        result = self.commands.run(words, seconds)
        if result.code == 0 or result.code in harmless:
            return
        down = result.code is None or result.code < 0 or result.code in _DOWN
        raise (Unreachable if down else NotNow)(_words(words[0], result, seconds))

    def move_start(self, job_id: str, when: float) -> bool:
        # qalter takes local time. A time past starts the job at once.
        moment = time.strftime("%Y%m%d%H%M.%S", time.localtime(when))
        try:
            self._change(["qalter", "-a", moment, job_id], ())
        except NotNow:
            return False
        return True

    # -- telling ---------------------------------------------------------------------------------------------------

    def describe(self) -> str:
        path, source = self.commands.find("qsub")
        live = len(self.select("-u", self.user))
        history = "on" if self.select_named("chasqui.none", True)[1] else "off"
        text = "openpbs: PBS %s, commands in %s (from %s)" % (self.version() or "?", os.path.dirname(path), source)
        return "%s, server %s answers, history %s, %d live jobs of %s" % (
            text,
            self._server(),
            history,
            live,
            self.user,
        )

    def _server(self) -> str:
        """The server's name: the first word below the dashes of `qstat -B`."""
        result = self.commands.run(["qstat", "-B"], self.query_seconds)
        found = re.search(r"^-[- ]+\n(\S+)", result.out, re.MULTILINE)
        return found.group(1) if result.code == 0 and found else "?"


class Round:
    """One query round: the qselect of all jobs; one more for those that run where some are not ours, one for those held
    where that is in doubt, and a qstat where something is missing.

    The list of all jobs comes first. Whatever moves afterwards, in any direction, is on it: a job may be told in the
    state before or after its move, but none is missed and none counts twice.
    """

    def __init__(
        self,
        pbs: OpenPBS,
        ids: "Iterable[str]",
        sought: "Iterable[Sought]",
        held: "Iterable[str]",
        known: "Iterable[str]",
    ) -> None:
        self._pbs = pbs
        self._ids = [job_id for job_id in ids if _ID.match(job_id)]
        self._sought = list(sought)[:SEEK_AT_MOST]
        self._held = set(held)
        self._known = set(known)
        self._calls = pbs.commands.calls
        self._history = True
        self._live: "Dict[str, Live]" = {}
        self._ended: "Dict[str, Ended]" = {}
        self._asked: "Set[str]" = set()
        self._notes: "Dict[str, str]" = {}

    def snapshot(self) -> Snapshot:
        """Ask. Raises Unreachable."""
        self._count()
        named = self._look_by_name()
        missing = [job_id for job_id in self._ids if job_id not in self._live]
        # Held, and not by us as far as we know: a release that got lost, or a hold of PBS's own?
        suspects = [i for i in self._ids if i in self._live and self._live[i].state == "H" and i not in self._held]
        lost = [job for job in self._sought if job.token not in named.values()]
        strangers = sorted(set(self._live) - set(self._ids) - set(named), key=_number, reverse=True) if lost else []
        first = [job_id for job_id in named if job_id not in self._live]
        doubtful = first + _from_anywhere(missing) + _from_anywhere(suspects) + strangers
        self._look_at(_once(doubtful)[:ASK_AT_MOST], lost)
        for job_id, token in named.items():
            if job_id in self._live:
                self._live[job_id] = self._live[job_id]._replace(token=token)
        calls = self._pbs.commands.calls - self._calls
        return Snapshot(self._live, self._ended, self._asked, calls, self._notes)

    def _count(self) -> None:
        every = self._pbs.select("-u", self._pbs.user)
        arrays = any("[" in job_id for job_id in every)
        strangers = set(every) - set(self._ids) - self._known
        # Of a running array only its elements are R, and only -T shows them. Those that wait are listed first: one that
        # starts in between is seen twice, not missed.
        queued = self._pbs.select("-u", self._pbs.user, "-T", "-s", "QHW") if arrays else []
        running: "List[str]" = []
        if arrays or strangers:
            running = self._pbs.select("-u", self._pbs.user, *(["-T"] if arrays else []), "-s", "RESUB")
        # A stranger counts as one that waits, held or not; unless it may be the submission we look for.
        unsure = set(every) - self._known - (set() if self._sought else strangers) - set(running)
        held = set(self._pbs.select("-u", self._pbs.user, "-s", "H")) if arrays or unsure else set()
        elements = self._elements(queued, running)
        started = {job_id for job_id in running if not _parent(job_id)}
        for job_id in every + sorted(started - set(every)):
            if _parent(job_id):
                continue
            if "[]" in job_id:
                self._live[job_id] = _array(job_id, job_id in held, elements.get(job_id))
            elif job_id in self._known and job_id not in started:
                self._live[job_id] = Live(job_id, "", "", 1, 0)
            else:
                self._live[job_id] = Live(job_id, "R" if job_id in started else "H" if job_id in held else "Q")

    @staticmethod
    def _elements(queued: "List[str]", running: "List[str]") -> "Dict[str, _Elements]":
        """How many elements of each array wait and run. Those of a held array report Q."""
        counted: "Dict[str, _Elements]" = {}
        begun = {job_id for job_id in running if _parent(job_id)}
        for job_id in begun | set(queued):
            parent = _parent(job_id)
            if parent:
                sum_ = counted.get(parent, _Elements(0, 0))
                runs = job_id in begun
                counted[parent] = _Elements(sum_.queued + (not runs), sum_.running + runs)
        return counted

    def _look_by_name(self) -> "Dict[str, str]":
        """id -> token of the submissions that were found under their name."""
        found: "Dict[str, str]" = {}
        for job in self._sought:
            ids, self._history = self._pbs.select_named(job.name, self._history)
            found.update((job_id, job.token) for job_id in ids)
            # Its name may have been changed since (qalter -N), but what runs under a closed token ends at once: one
            # round's look at the newest strangers is enough.
            self._asked.add(job.token)
        return found

    def _look_at(self, ids: "List[str]", lost: "List[Sought]") -> None:
        if not ids:
            return
        try:
            found, unknown, self._history = self._pbs.look_at(ids, self._history)
        except Silent:
            if not self._live:
                raise  # qselect said nothing either: of other people's jobs we know nothing as well
            return
        self._asked |= unknown | set(found)
        for job_id, job in found.items():
            token = job.variables.get("CHASQUI_TOKEN", "")
            token = next((one.token for one in lost if _is_of(job, one)), token)
            if job.state in ("F", "X", "M"):
                self._live.pop(job_id, None)
                self._ended[job_id] = ending(job, token)
            else:
                self._live[job_id] = self._corrected(job, token)
                if note(job):
                    self._notes[job_id] = note(job)

    def _corrected(self, job: "qstat_text.Job", token: str) -> Live:
        """A live job as qstat tells it; its elements as they were counted."""
        known = self._live.get(job.id)
        state = job.state or "Q"
        if state == "H" and "u" not in job.holds:
            state = "Q"  # held by PBS: nothing that we could release
        if not job.counts:
            return Live(job.id, state, token)
        counted = _Elements(known.queued, known.running) if known else _Elements(*_by_qstat(job.counts))
        return Live(job.id, state, token, *counted)


# -- pure ------------------------------------------------------------------------------------------------------------


def pbs_version(commands: Commands, seconds: float) -> str:
    """What `qsub --version` says, "" where it is not a PBS that has qselect, too. Raises NotStarted without a qsub."""
    result = commands.run(["qsub", "--version"], seconds)
    found = re.search(r"pbs_version\s*=\s*(\S+)", result.out + result.err)
    return found.group(1) if found else ""


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user id without a name, as in containers
        return os.environ.get("LOGNAME") or os.environ.get("USER") or str(os.getuid())


def _parent(job_id: str) -> str:
    """`37[].host` of the array element `37[2].host`, "" for anything else."""
    found = re.match(r"([0-9]+)\[[0-9]+\](.*)$", job_id)
    return "%s[]%s" % found.groups() if found else ""


def _number(job_id: str) -> int:
    return int(re.match(r"[0-9]*", job_id).group() or 0)  # type: ignore[union-attr]


def _array(job_id: str, held: bool, counted: "Optional[_Elements]") -> Live:
    # No element to be seen: it ends, or it was not there yet. It counts as something.
    queued, running = counted or _Elements(1, 0)
    return Live(job_id, "B" if running else "H" if held else "Q", "", queued, running)


def _by_qstat(counts: "Dict[str, int]") -> "Tuple[int, int]":
    return counts.get("Queued", 0), counts.get("Running", 0) + counts.get("Exiting", 0)


def _once(ids: "List[str]") -> "List[str]":
    return sorted(set(ids), key=ids.index)


def _from_anywhere(ids: "List[str]") -> "List[str]":
    """`ids` turned by a chance number: where there are more than can be asked about, each has its turn in time."""
    start = int.from_bytes(os.urandom(4), "big") % len(ids) if len(ids) > ASK_AT_MOST else 0
    return ids[start:] + ids[:start]


def _is_unknown(job_id: str, said: str) -> bool:
    """Whether qstat named an id as one it does not know. An id it says nothing of was not answered for."""
    return any("Unknown Job" in line and job_id in line.split() for line in said.split("\n"))


def _is_of(job: "qstat_text.Job", sought: "Sought") -> bool:
    """Whether a job is the submission looked for, whatever it is called by now. The work folder alone is no proof: a
    payload may itself submit from there."""
    token = job.variables.get("CHASQUI_TOKEN", "")
    if token or job.variables.get("PBS_O_WORKDIR") != sought.folder:
        return token == sought.token
    return job.name.endswith("." + sought.token) or "runner." + sought.token in job.arguments


def note(job: "qstat_text.Job") -> str:
    """Why a live job will not start by itself, "" where it may."""
    if job.state == "H" and "u" not in job.holds:
        return "held by PBS (Hold_Types %s)%s" % (job.holds, ": " + job.comment if job.comment else "")
    return job.comment if "Can Never Run" in job.comment else ""


def ending(job: "qstat_text.Job", token: str) -> Ended:
    """What became of a job that the history tells of. Exit_status is believed only in F: one in R or Q is left over
    from before a requeue."""
    if job.state != "F":
        return Ended(job.id, None, "moved to another server" if job.state == "M" else "", token, True)
    if job.exit is None:
        # 91: terminated; 92 without a status: nobody ran it and nobody deleted it.
        return Ended(job.id, None, DEPENDENCY if job.substate == 92 else DELETED_EARLY, token, False)
    if " terminated by " in job.comment or (job.substate == 91 and "[]" in job.id):  # an array's comment names nobody
        return Ended(job.id, job.exit, DELETED, token, False)
    if job.exit in _ENDINGS:
        return Ended(job.id, job.exit, _ENDINGS[job.exit], token, False)
    exceeded = re.search(r"exceeded resource (\S+)", job.comment)
    if job.exit < 0:
        return Ended(job.id, job.exit, exceeded.group(1) if exceeded else "ended by PBS (%d)" % job.exit, token, False)
    return Ended(job.id, job.exit, "killed (%d)" % job.exit if job.exit >= 256 else "", token, False)


def _words(command: str, result: "Result", seconds: float) -> str:
    """What a command said, on one line, or how it ended where it said nothing."""
    if result.code is None:
        return "%s did not answer in %g seconds" % (command, seconds)
    text = result.err.strip() or result.out.strip()
    lines = [line.strip() for line in text.split("usage: ")[0].split("\n") if line.strip()]
    said = "; ".join(lines)[:1000]
    if result.code < 0:
        return "%s was ended by signal %d%s" % (command, -result.code, ": " + said if said else "")
    return said or "%s ended with exit code %d and said nothing" % (command, result.code)


def arguments(request: Request) -> "List[str]":
    """The words of the qsub call. -f: no background qsub that could submit minutes after we gave up. The script's own
    #PBS lines stand in the runner; what is said here beats them."""
    words = ["qsub", "-f", "-N", request.name, "-S", shell_path()]
    # An array that must not be rerun is refused ("cannot submit non-rerunable Array Job"): its runner sees to it.
    words += ["-r", "y" if request.rerun or "J" in request.directives else "n"]
    words += ["-j", "oe", "-o", request.output] if request.join else ["-o", request.output, "-e", request.error]
    if request.hold:
        words.append("-h")
    if request.start is not None:
        words += ["-a", time.strftime("%Y%m%d%H%M.%S", time.localtime(request.start))]
    if request.variables:
        pairs = [(name, os.environ[name] if value is None else value) for name, value in request.variables]
        words += ["-v", ",".join("%s=%s" % (name, quoted(value)) for name, value in pairs)]
    return words + [request.script]


def quoted(value: str) -> str:
    """A value for qsub's -v: quotes keep a comma, and each kind of quote keeps the other; they may begin and end
    anywhere in a value. A backslash stands for itself, except right before a comma, which it would keep instead."""
    if not re.search(r"[,'\"\\]", value):
        return value
    pieces = re.findall(r"'+|[^'\\]+|\\+", value)
    return "".join('"%s"' % piece if piece[0] == "'" else "'%s'" % piece for piece in pieces)
