"""The `shell` scheduler: the agent's own small slot runner, for machines without a batch system.

Plain processes in slots, with a scheduler's manners: jobs are Q or H until a slot takes them, R with a supervising
process of their own, F afterwards with an exit status like PBS's (256 + signal where the job was killed). The whole
queue is one file, shell/table.json, replaced atomically under a generation lock of its own, so a reader sees one
instant:

    {"seq": last number given, "queries": how often it was asked, "host": this host, "boot": its boot id,
     "jobs": {id: {"state": "H|Q|R|F", "token", "name", "script", "folder", "output", "error", "join", "variables",
                   "pid", "start": supervisor, "runner": pid or 0, "queued", "begun", "ended": seconds since 1970,
                   "exit": int or null, "why", "deleted": bool, "lost": bool}}}

Nobody but a supervisor turns Q into R, for itself and under the lock, so a start that was lost costs nothing (the job
is still Q) and a start tried twice happens once. A supervisor that died before it began the runner leaves a job that
goes back to Q, as a PBS server does; the runner's own marks keep the payload from a second start.
"""

import errno
import os
import signal
import time

from .. import fault, files, launch, process
from ..lock import Lock, ensure_ballast, jitter
from ..runner import shell_path
from .base import DELETED, Ended, Live, NotQueued, Request, Scheduler, Snapshot, Sought, Submission, Unreachable

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, Iterable, List

    from ..settings import Settings
    from ..spool import Spool

fault.register(
    {
        "shell.table.before": "the table's change decided, not yet written",
        "shell.table.after": "the table written",
        "shell.run.before": "a supervisor's process exists, its job is still Q",
        "shell.run.marked": "the job is R, its runner not yet begun",
        "shell.run.begun": "the runner runs, its pid not yet recorded",
        "shell.run.ended": "the runner ended, the job is still R",
    }
)

KEEP_ENDED = 500  # ended jobs remembered
KILL_DELAY = 10  # seconds between TERM and KILL
LOCK_WAIT = 60.0
INSIST, INSIST_SECONDS = 720, 5  # an hour
DELETED_EARLY = "deleted before it started"


class Table:
    """The queue, open for change under its lock: `with Table(folder) as jobs`. Written back when the block ends
    well."""

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, "table.json")
        self._lock = Lock(os.path.join(folder, "lock"))
        self.value: "Dict[str, Any]" = {}
        self.jobs: "Dict[str, Dict[str, Any]]" = {}
        self.durable = False  # a change that a power cut must not undo

    def __enter__(self) -> "Table":
        deadline = time.monotonic() + LOCK_WAIT
        while not self._lock.acquire():
            if time.monotonic() > deadline:
                raise Unreachable("the slot table is locked by another process")
            time.sleep(jitter(0.05))
        try:
            self._read()
        except BaseException:
            self._lock.release()
            raise
        return self

    def _read(self) -> None:
        here = {"host": process.host(), "boot": process.boot_id()}
        try:
            self.value = files.read_json(self.path, None) or dict(here, seq=0, jobs={})
        except ValueError:
            raise Unreachable("%s is damaged" % self.path) from None
        self.jobs = self.value["jobs"]
        self._before = files.dump_json(self.value)
        if self.value["host"] != here["host"] and any(job["state"] == "R" for job in self.jobs.values()):
            raise Unreachable("the shell scheduler's jobs run on %s; log in there" % self.value["host"])
        rebooted = self.value["boot"] != here["boot"]
        self.value.update(here)
        for job in self.jobs.values():
            if job["state"] == "R":
                _reap(job, rebooted)

    def __exit__(self, kind: "Any", error: "Any", trace: "Any") -> None:
        try:
            if kind is None and files.dump_json(self.value) != self._before:
                self._forget()
                fault.point("shell.table.before")
                files.replace_file(self.path, files.dump_json(self.value), durable=self.durable)
                fault.point("shell.table.after")
        finally:
            self._lock.release()

    def _forget(self) -> None:
        ended = sorted((job["ended"], job_id) for job_id, job in self.jobs.items() if job["state"] == "F")
        for _, job_id in ended[:-KEEP_ENDED]:
            del self.jobs[job_id]


def _reap(job: "Dict[str, Any]", rebooted: bool) -> None:
    """What became of a running job whose supervisor may be gone."""
    if rebooted:
        _end(job, None, "the machine was rebooted", lost=True)
    elif not process.alive(job["pid"], job["start"]) and not process.session_members(job["pid"], [job["runner"]]):
        if job["runner"]:
            _end(job, None, "its supervising process was killed", lost=True)
        elif job["deleted"]:
            _end(job, None, DELETED_EARLY)
        else:
            job.update(state="Q", pid=0, start="")


def _end(job: "Dict[str, Any]", status: "Any", why: str, lost: bool = False) -> None:
    job.update(state="F", exit=status, why=why, lost=lost, ended=time.time())


class Shell(Scheduler):
    """The slot runner of one root."""

    name = "shell"
    stages_output = False
    asks_a_server = False
    reads = ""

    def __init__(self, spool: "Spool", settings: "Settings") -> None:
        self.root = spool.root
        self.folder = os.path.join(spool.root, "shell")
        self.slots = int(settings.slots or settings.max_running)
        os.makedirs(os.path.join(self.folder, "lock"), 0o700, exist_ok=True)
        try:
            ensure_ballast(os.path.join(self.folder, "lock"))
        except OSError:
            pass  # a full disk: the next one makes it

    def query(
        self,
        ids: "Iterable[str]",
        sought: "Iterable[Sought]" = (),
        held: "Iterable[str]" = (),
        known: "Iterable[str]" = (),
    ) -> Snapshot:
        wanted, tokens = set(ids), {one.token for one in sought}
        with Table(self.folder) as table:
            table.value["queries"] = table.value.get("queries", 0) + 1
            jobs = list(table.jobs.items())
        self.start_ready()
        live = {i: Live(i, job["state"], job["token"]) for i, job in jobs if job["state"] != "F"}
        ended = {
            i: Ended(i, job["exit"], job["why"], job["token"], job["lost"])
            for i, job in jobs
            if job["state"] == "F" and (i in wanted or job["token"] in tokens)
        }
        return Snapshot(live, ended)

    def submit(self, request: Request, timeout: float, meanwhile: "Callable[[], None]" = lambda: None) -> Submission:
        meanwhile()  # there is nobody to wait for
        job_id = ""
        try:
            with Table(self.folder) as table:
                table.durable = True
                table.value["seq"] += 1
                job_id = "%d.%s" % (table.value["seq"], process.host())
                table.jobs[job_id] = {
                    "state": "H" if request.hold else "Q",
                    "token": request.token,
                    "name": request.name,
                    "script": request.script,
                    "folder": request.folder,
                    "output": request.output,
                    "error": request.error,
                    "join": request.join,
                    "variables": request.variables,
                    "pid": 0,
                    "start": "",
                    "runner": 0,
                    "queued": time.time(),
                    "begun": 0,
                    "ended": 0,
                    "exit": None,
                    "why": "",
                    "deleted": False,
                    "lost": False,
                }
        except Unreachable as error:
            return Submission("temporary", "", str(error))
        except OSError as error:
            # The lock, the table, or its release: only the table itself tells. A job that is not in it never can be.
            if not self._has(job_id, request.token):
                raise NotQueued(error.errno, error.strerror, error.filename or self.folder) from None
        if not request.hold:
            self._supervise(job_id)
        return Submission("accepted", job_id, "")

    def _has(self, job_id: str, token: str) -> bool:
        jobs = (files.read_json(os.path.join(self.folder, "table.json"), None) or {"jobs": {}})["jobs"]
        return bool(jobs.get(job_id, {}).get("token") == token)

    def release(self, job_id: str) -> None:
        with Table(self.folder) as table:
            job = table.jobs.get(job_id)
            if job and job["state"] == "H":
                job["state"] = "Q"
        self._supervise(job_id)

    def delete(self, job_id: str) -> None:
        with Table(self.folder) as table:
            job = table.jobs.get(job_id)
            if not job or job["state"] == "F":
                return
            job["deleted"] = True
            if job["state"] in "QH":
                _end(job, None, DELETED_EARLY)
            elif process.alive(job["pid"], job["start"]):
                os.kill(job["pid"], signal.SIGTERM)
            else:
                process.signal_all(process.session_members(job["pid"], [job["runner"]]))

    def start_ready(self, most: int = 1000) -> None:
        """Begin a supervisor for every queued job that a slot is free for, `most` at most; each takes its slot itself,
        or goes."""
        jobs = (files.read_json(os.path.join(self.folder, "table.json"), None) or {"jobs": {}})["jobs"]
        free = self.slots - sum(1 for job in jobs.values() if job["state"] == "R")
        queued = sorted((job["queued"], job_id) for job_id, job in jobs.items() if job["state"] == "Q")
        for _, job_id in queued[: max(0, min(free, most))]:
            self._supervise(job_id)

    def _supervise(self, job_id: str) -> None:
        launch.detached(launch.command(self.root) + ["_supervise", job_id], os.path.join(self.folder, "errors"))

    def describe(self) -> str:
        with Table(self.folder) as table:
            live = sum(1 for job in table.jobs.values() if job["state"] != "F")
        return "shell: plain processes on %s, %d slots, %d live jobs" % (process.host(), self.slots, live)


class Supervisor:
    """The process that runs one job: begins the runner, waits for it, records how it ended, lets the next one start."""

    def __init__(self, scheduler: Shell, job_id: str) -> None:
        self.scheduler = scheduler
        self.job_id = job_id
        self.runner = 0
        self._term = False

    def run(self) -> bool:
        """Run the job to its end; True where the caller shall wake: a killed runner has no tail, and the tail of a
        deleted one, or of one without its flag, ran while the job was still here."""
        fault.point("shell.run.before")
        # Before the job is ours: a delete may signal us as soon as it is.
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGALRM, self._on_alarm)
        job = self._take()
        if job is None:
            return False
        fault.point("shell.run.marked")
        self.runner = launch.child(
            [shell_path(), job["script"]],
            _environment(job, self.job_id),
            os.path.expanduser("~"),
            job["output"],
            job["output"] if job["join"] else job["error"],
        )
        fault.point("shell.run.begun")
        self._insist(self._note_runner)
        if self._term:
            self._on_term()
        _, status = os.waitpid(self.runner, 0)
        signal.alarm(0)
        fault.point("shell.run.ended")
        process.signal_all(self._others(), signal.SIGKILL)
        self._insist(lambda: self._record(status))
        self.scheduler.start_ready(most=1)  # the slot that is free now
        known = os.path.join(job["folder"], ".chasqui", job["token"] + ".id")
        return os.WIFSIGNALED(status) or self._term or not os.path.lexists(known)

    def _take(self) -> "Any":
        with Table(self.scheduler.folder) as table:
            job = table.jobs.get(self.job_id)
            running = sum(1 for other in table.jobs.values() if other["state"] == "R")
            if not job or job["state"] != "Q" or running >= self.scheduler.slots:
                return None
            table.durable = True
            pid = os.getpid()
            job.update(state="R", pid=pid, start=process.start_time(pid), begun=time.time())
            return dict(job)

    def _insist(self, write: "Callable[[], None]") -> None:
        """Do what changes the table, again and again while the disk is full: a job without its supervisor is half
        lost."""
        for _ in range(INSIST):
            try:
                write()
                return
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise  # the root is gone, for instance
                time.sleep(INSIST_SECONDS)

    def _note_runner(self) -> None:
        with Table(self.scheduler.folder) as table:
            table.jobs[self.job_id]["runner"] = self.runner
            self._term = self._term or table.jobs[self.job_id]["deleted"]

    def _record(self, status: int) -> None:
        code = 256 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        with Table(self.scheduler.folder) as table:
            job = table.jobs[self.job_id]
            if job["deleted"]:
                _end(job, 256 + int(signal.SIGTERM), DELETED)
            else:
                _end(job, code, "killed by signal %d" % os.WTERMSIG(status) if os.WIFSIGNALED(status) else "")

    def _others(self) -> "List[int]":
        return [pid for pid in process.session_members(os.getpid(), [self.runner]) if pid != os.getpid()]

    def _on_term(self, *_: "Any") -> None:
        self._term = True
        if self.runner:
            process.signal_all(self._others())
            signal.alarm(KILL_DELAY)

    def _on_alarm(self, *_: "Any") -> None:
        process.signal_all(self._others(), signal.SIGKILL)


def _environment(job: "Dict[str, Any]", job_id: str) -> "Dict[str, str]":
    """A job's environment as PBS makes it: the user's login variables, PBS_*, and the -v list."""
    keep = ("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "LC_ALL", "TZ", "MAIL")
    environment = {key: os.environ[key] for key in keep if key in os.environ}
    environment.update(
        {
            "PBS_ENVIRONMENT": "PBS_BATCH",
            "PBS_JOBID": job_id,
            "PBS_JOBNAME": job["name"],
            "PBS_O_WORKDIR": job["folder"],
            "PBS_O_HOME": os.environ.get("HOME", "/"),
            "PBS_QUEUE": "shell",
            "PBS_O_HOST": process.host(),
            "PBS_O_LOGNAME": os.environ.get("LOGNAME", ""),
            "PBS_O_PATH": os.environ.get("PATH", ""),
            "PBS_O_SHELL": os.environ.get("SHELL", ""),
        }
    )
    for name, value in job["variables"]:
        environment[name] = os.environ.get(name, "") if value is None else value
    return environment
