"""Where the relay's behaviour is shown: five schedulers behind one face, and what each of them cannot do.

Two are the mock's dialects, two go to one real Slurm (by its own commands, and by the qsub that imitates Torque's), and
`shell` has no server at all.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import needs
from agent.agentroot import PATIENCE, end_jobs, until
from chasqui_agent import process, settings
from chasqui_agent.schedulers.shell import Shell
from pbs.cluster import Cluster as PbsCluster
from pbs.test_relay import PbsRoot
from slurm.cluster import Cluster as SlurmCluster

WRAPPERS = Path("/usr/local/lib/slurm-wlm-torque/usr/bin")  # unpacked there by tests/setup, and on nobody's PATH


class GroundRoot(PbsRoot):
    """A root whose jobs go to a ground's scheduler."""

    def __init__(self, path: Path, ground: "Ground", python: str = "", **chosen: object) -> None:
        super().__init__(path, ground.cluster, python or sys.executable, **chosen)
        settings.change(self.spool, scheduler=ground.name)
        self.ground = ground

    def drop(self, name: str, text: str = "", seconds: float = 0.0, directives: str = "") -> None:
        super().drop(name, text, seconds, directives or self.ground.small)

    def ended(self, name: str) -> dict[str, Any]:
        """The record of how a job ended, pumping until there is one."""
        told = lambda: self.events(name, "ended", "cancelled")  # noqa: E731
        until(lambda: told() or (time.sleep(1.1), self.pump(), told())[-1], name + " has ended", 120)
        return told()[0]

    def id_of(self, name: str) -> str:
        """The scheduler's id of a job that it runs."""
        return str(next(record["pbs"] for record in self.events(name, "submitted", "adopted")))


class Ground:
    """One scheduler.

    name      as in config.json
    called    what users are told it is
    small     directives of a small job; lonely: of one whose end nobody but a heartbeat tells; brief: of one with a
              time limit that `end_by_limit` lets it meet; refused: what it refuses for good
    asked     the command that ends well where the scheduler knows the id behind it
    cluster   `run`, `table` and `kill_job`, as of a mock PBS
    """

    name = called = ""
    small = lonely = brief = "#PBS -l nodes=1:ppn=1"
    refused = "#PBS -q nowhere"
    asked: tuple[str, ...] = ("qstat",)
    cluster: Any

    def root(self, path: Path, python: str = "", **chosen: object) -> GroundRoot:
        return GroundRoot(path, self, python, **chosen)

    def delete(self, root: GroundRoot, job: str) -> None:
        """By hand, past the relay."""
        assert self.cluster.run("qdel", job).returncode == 0

    def end_by_limit(self, job: str) -> None:
        """Let a job of `brief` meet its limit soon."""

    def kill_all(self) -> None:
        self.cluster.kill_all_jobs()

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """The server does not answer."""
        with self.cluster.faulty("down"):
            yield

    @contextlib.contextmanager
    def answers_lost(self) -> Iterator[None]:
        """Whatever is submitted is accepted, and nobody hears of it."""
        with self.cluster.faulty("lose_reply", every=1):
            yield

    @contextlib.contextmanager
    def forgetful(self) -> Iterator["Ground"]:
        """A ground that forgets what ended at once."""
        raise NotImplementedError
        yield self

    def clear(self) -> None:
        """No job is left, and no fault."""
        raise NotImplementedError


class OpenPBS(Ground):
    name, called, dialect = "openpbs", "PBS", "openpbs"
    small = lonely = "#PBS -l select=1:ncpus=1"
    brief = "#PBS -l select=1:ncpus=1,walltime=00:00:01"
    remembers: tuple[str, object, object] = ("job_history_enable", False, True)  # attribute, off, on

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.cluster = stack.enter_context(PbsCluster(scale=0.1, daemon_seconds=2, dialect=self.dialect))

    @contextlib.contextmanager
    def forgetful(self) -> Iterator[Ground]:
        name, off, on = self.remembers
        self.cluster.set_server(name, off)
        try:
            yield self
        finally:
            self.cluster.set_server(name, on)

    def clear(self) -> None:
        self.cluster.clear()
        self.cluster.until(lambda: not self._live(), "no job is left")

    def _live(self) -> list[str]:
        found = [row["id"] for row in self.cluster.table() if row["state"] not in "FX"]
        if found:
            self.cluster.run("qdel", "-W", "force", *found)
        return found


class Torque(OpenPBS):
    name, called, dialect = "torque", "Torque", "torque"
    small = "#PBS -l nodes=1:ppn=1"
    lonely = "#PBS -l nodes=1:ppn=1,epilogue=/nonexistent"  # in place of the relay's own
    brief = "#PBS -l nodes=1:ppn=1,walltime=00:00:01"
    remembers = ("keep_completed", 0, 300)


class Slurm(Ground):
    name = "slurm"
    called = "Slurm"
    small = lonely = "#SBATCH --ntasks=1"
    brief = "#SBATCH --time=5"
    refused = "#SBATCH -p nowhere"
    submits_by = "sbatch"
    asked = ("scontrol", "show", "job")

    def __init__(self, cluster: SlurmCluster) -> None:
        self.cluster = cluster

    def delete(self, root: GroundRoot, job: str) -> None:
        assert self.cluster.run("scancel", job).returncode == 0

    def end_by_limit(self, job: str) -> None:
        def asked() -> bool:
            done = self.cluster.run("scontrol", "update", "JobId=" + job, "EndTime=now")
            print(done.stderr)
            return done.returncode == 0

        until(asked, "the controller has noted that the job runs, as its shell does by now")

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        self.cluster.stop_controller()
        try:
            yield
        finally:
            self.cluster.start_controller()

    @contextlib.contextmanager
    def answers_lost(self) -> Iterator[None]:
        command, real = self.cluster.bin / self.submits_by, self.cluster.bin / "real"
        if command.exists():
            command.rename(real)
        else:
            real.symlink_to(needs.program(self.submits_by))
        command.write_text('#!/bin/sh\n%s "$@" >/dev/null; exit 1\n' % real)
        command.chmod(0o755)
        try:
            yield
        finally:
            real.rename(command)

    @contextlib.contextmanager
    def forgetful(self) -> Iterator[Ground]:
        with SlurmCluster(min_job_age=2) as made:
            yield type(self)(made)

    def clear(self) -> None:
        self.cluster.run("scancel", "--user=%d" % os.getuid())
        # A job cancelled in the moment it begins may not hear of it for a minute.
        self.cluster.until(lambda: (self.kill_all(), not self.cluster.table())[-1], "no job is left")


class SlurmTorque(Slurm):
    """The same Slurm, by the commands that imitate Torque's."""

    name = "slurm-torque"
    small = lonely = "#PBS -l nodes=1:ppn=1"
    brief = "#PBS -l nodes=1:ppn=1,walltime=00:05:00"
    refused = "#PBS -q nowhere"
    submits_by = "qsub"

    def __init__(self, cluster: SlurmCluster) -> None:
        super().__init__(cluster)
        if not (WRAPPERS / "qsub").exists():
            needs.missing("slurm-wlm-torque, unpacked in %s" % WRAPPERS)
        # Not loaded here: without a cluster around it, that ends in an error.
        there = 'for (@INC) { exit 0 if -e "$_/Slurm.pm" } exit 1'
        if subprocess.run(["/usr/bin/env", "/usr/bin/perl", "-e", there]).returncode:
            needs.missing("libslurm-perl")
        for name in ("qsub", "qstat", "qdel", "qalter"):
            shutil.copy(WRAPPERS / name, cluster.bin / name)
        with contextlib.suppress(FileExistsError):
            (cluster.bin / "sbatch").symlink_to(needs.program("sbatch"))  # looked for beside the qsub that is called

    def delete(self, root: GroundRoot, job: str) -> None:
        assert self.cluster.run("qdel", job).returncode == 0


class Host:
    """This machine, in place of a cluster."""

    def __init__(self) -> None:
        self.roots: list[GroundRoot] = []

    def run(self, *command: str, env: dict[str, str] | None = None,
            timeout: float = PATIENCE) -> "subprocess.CompletedProcess[str]":  # fmt: skip
        return subprocess.run(command, env=dict(os.environ, **(env or {})), timeout=timeout, text=True,
                              capture_output=True, stdin=subprocess.DEVNULL)  # fmt: skip

    def table(self) -> list[dict[str, Any]]:
        return [dict(job, id=job_id, array=False) for root in self.roots for job_id, job in root.table().items()]

    def kill_all_jobs(self) -> None:
        """Of each job all but the process around it, which is to a job what a server is elsewhere."""
        for job in self.table():
            if job["state"] == "R":
                members = set(process.session_members(job["pid"], [job["runner"]])) - {job["pid"]}
                for number in (signal.SIGSTOP, signal.SIGKILL):
                    for pid in members:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, number)


class Plain(Ground):
    name = "shell"
    called = "the scheduler"
    small = lonely = "#PBS -N plain"
    refused = "#PBS -J 1-3"

    def __init__(self) -> None:
        self.cluster = Host()

    def root(self, path: Path, python: str = "", **chosen: object) -> GroundRoot:
        self.cluster.roots.append(super().root(path, python, **chosen))
        return self.cluster.roots[-1]

    def delete(self, root: GroundRoot, job: str) -> None:
        Shell(root.spool, settings.load(root.spool)).delete(job)

    def clear(self) -> None:
        for root in self.cluster.roots:
            end_jobs(root)
        self.cluster.roots.clear()


# -- what they cannot do -----------------------------------------------------------------------------------------------

Proof = Callable[[Ground, Path], None]


def _no_server(ground: Ground, path: Path) -> None:
    root = ground.root(path / "root")
    root.drop("job")
    assert root.pump()["submitted"] == 1 and not Shell.asks_a_server
    root.finish(1)


def _no_beat(ground: Ground, path: Path) -> None:
    root = ground.root(path / "root", heartbeat=0.05, max_running=1)
    for name in ("one", "two"):
        root.drop(name, seconds=1)
    root.pump()
    assert not os.path.exists(os.path.join(root.path, "heartbeat"))
    root.finish(2)


def _remembers(ground: Ground, path: Path) -> None:
    root = ground.root(path / "root")
    root.drop("job")
    root.pump()
    root.finish(1)
    assert [job["state"] for job in root.table().values()] == ["F"]


def _no_limit(ground: Ground, path: Path) -> None:
    root = ground.root(path / "root")
    root.drop("job", seconds=2, directives="#PBS -l walltime=00:00:01")
    root.pump()
    assert root.ended("job")["state"] == "DONE"


def _rejects(directives: str) -> Proof:
    def proof(ground: Ground, path: Path) -> None:
        root = ground.root(path / "root")
        root.drop("many", directives=directives)
        root.pump()
        assert "has no job arrays" in root.events("many", "rejected")[0]["text"] and not root.starts("many")

    return proof


def _no_epilogue(ground: Ground, path: Path) -> None:
    (path / "job.sh").write_text("#!/bin/sh\ntrue\n")
    done = ground.cluster.run("qsub", "-l", "epilogue=%s" % (path / "job.sh"), str(path / "job.sh"))
    assert (done.returncode, "Resource_List.epilogue" in done.stderr) == (187, True)


def _held_job(ground: Ground, path: Path) -> str:
    (path / "job.sh").write_text("#!/bin/sh\ntrue\n")
    done = ground.cluster.run("qsub", "-h", "-o", "/dev/null", "-e", "/dev/null", str(path / "job.sh"))
    return str(done.stdout.strip())


def _a_hold_is_not_told(ground: Ground, path: Path) -> None:
    job = _held_job(ground, path)
    assert ground.cluster.table()[0]["state"] == "H"
    told = ground.cluster.run("qstat", "-f", job).stdout
    assert "job_state = Q" in told and "Hold" not in told and "Variable_List" not in told


def _an_end_is_not_told(ground: Ground, path: Path) -> None:
    job = _held_job(ground, path)
    assert ground.cluster.run("qdel", job).returncode == 0
    told = ground.cluster.run("qstat", "-f", job).stdout
    assert "job_state = C" in told and "exit" not in told.lower()


def _no_qselect(ground: Ground, path: Path) -> None:
    assert not (WRAPPERS / "qselect").exists()


def _no_start_is_moved(ground: Ground, path: Path) -> None:
    done = ground.cluster.run("qalter", "-a", "203012312359", _held_job(ground, path))
    assert done.returncode == 2 and "Unknown option: a" in done.stderr


# (scheduler, what): why, and the proof that it is still so
CANNOT: dict[tuple[str, str], tuple[str, Proof]] = {
    ("openpbs", "user epilogue"): ("-l epilogue= is refused: only an admin's hook outlives SIGKILL", _no_epilogue),
    ("torque", "arrays"): ("#PBS -t makes a job of each element; rejected", _rejects("#PBS -t 1-3")),
    ("slurm-torque", "arrays"): ("#PBS -t; rejected, #SBATCH --array is not", _rejects("#PBS -t 1-3")),
    ("slurm-torque", "tell a hold"): ("its qstat shows Q, and no variables: squeue is asked", _a_hold_is_not_told),
    ("slurm-torque", "tell an end"): ("its qstat has no exit status: squeue is asked", _an_end_is_not_told),
    ("slurm-torque", "find by name"): ("it has no qselect: squeue is asked", _no_qselect),
    ("slurm-torque", "move a start"): ("its qalter has no -a: scontrol is asked", _no_start_is_moved),
    ("shell", "server down"): ("there is no server, only a table in the root", _no_server),
    ("shell", "answer lost"): ("a submission is a line in that table: it is there, or it is not", _no_server),
    ("shell", "forgotten"): ("it keeps the last 500 that ended", _remembers),
    ("shell", "limit"): ("resources are not looked at", _no_limit),
    ("shell", "heartbeat"): ("the process around each job sees its end, and pumps", _no_beat),
    ("shell", "arrays"): ("rejected", _rejects("#PBS -J 1-3")),
}
GROUNDS = ("openpbs", "torque", "slurm", "slurm-torque", "shell")


def all_but(what: str) -> list[str]:
    """The schedulers that can do something."""
    return [name for name in GROUNDS if (name, what) not in CANNOT]
