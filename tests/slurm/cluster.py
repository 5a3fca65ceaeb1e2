"""A real Slurm on this machine: munged, slurmctld and two slurmd on loopback, in one folder, ended by pid."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import needs
from pbs.cluster import free_ports, port_open, processes_naming

PATIENCE = 60.0  # seconds until a wait is called a failure
NODES = ("n1", "n2")
CONF = """ClusterName=lab
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.out
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
ReturnToService=2
MessageTimeout=3
KillWait={kill_wait}
MinJobAge={min_job_age}
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP
{more}
"""
FILTER = """
function slurm_job_submit(job, partitions, user)
    local folder = "%s"
    %s
    return slurm.SUCCESS
end
function slurm_job_modify(job, before, partitions, user) return slurm.SUCCESS end
"""
LETTERS = {"PENDING": "Q", "RUNNING": "R", "COMPLETING": "E", "CONFIGURING": "R", "SUSPENDED": "S"}


class Cluster:
    """A running Slurm whose user is this very user; use it as a context manager.

    min_job_age  seconds after which the controller forgets an ended job
    kill_wait    seconds between TERM and KILL
    submit_filter  Lua that the controller runs for each submission, in a function that returns an error number;
                 `folder` is this cluster's
    environment  for commands: SLURM_CONF, HOME, and PATH with the folder `bin` first, where a test may put a wrapper
    """

    def __init__(self, min_job_age: int = 300, kill_wait: int = 3, submit_filter: str = "") -> None:
        self.programs = {name: needs.program(name) for name in ("munged", "slurmctld", "slurmd", "sbatch", "squeue")}
        self.folder = Path(tempfile.mkdtemp(prefix="slurm."))  # short: it holds Unix sockets
        self.ports = free_ports(3)
        self.bin, self.user_home, self.conf = self.folder / "bin", self.folder / "home", self.folder / "slurm.conf"
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        self._text = CONF.format(folder=self.folder, ports=self.ports, user=user, min_job_age=min_job_age,
                                 kill_wait=kill_wait, more="JobSubmitPlugins=lua" if submit_filter else "")
        self._filter = submit_filter
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Cluster":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("SLURM_", "SBATCH_", "SQUEUE_", "PBS_")) and name != "TMPDIR"}
        path = "%s:%s" % (self.bin, os.environ.get("PATH", "/usr/bin:/bin"))
        return dict(kept, PATH=path, SLURM_CONF=str(self.conf), HOME=str(self.user_home))

    # processes

    def start(self) -> None:
        self.folder.chmod(0o755)
        for name in ("bin", "home", "munge", "state", *NODES):
            (self.folder / name).mkdir()
        (self.user_home / ".bash_profile").write_text("export PATH=%s:$PATH LOGIN_SHELL=yes\n" % self.bin)
        self.conf.write_text(self._text)
        if self._filter:
            (self.folder / "job_submit.lua").write_text(FILTER % (self.folder, self._filter))
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        munge = {option: "%s/munge/%s" % (self.folder, name) for option, name in (
            ("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))}
        self._spawn("munged", "munged", "--foreground", "--force", *["--%s=%s" % item for item in munge.items()])
        self.until((self.folder / "munge" / "socket").exists, "munged listens")
        self.start_controller()
        for node in NODES:
            self.start_node(node)

    def _spawn(self, name: str, program: str, *words: str) -> None:
        with open(self.folder / (name + ".out"), "ab") as out:
            self.daemons[name] = subprocess.Popen(
                [self.programs[program], *words], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/",
                env=self.environment, start_new_session=True)

    def start_controller(self) -> None:
        self._spawn("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
        self.until(lambda: port_open(self.ports[0]), "the controller listens")
        self.until(lambda: self.run("squeue", "-h").returncode == 0, "the controller answers")

    def stop_controller(self) -> None:
        self._end("slurmctld", signal.SIGTERM)

    def hang_controller(self) -> None:
        """SIGSTOP: the port is open, nobody answers; what was asked is done after `resume_controller`."""
        self.daemons["slurmctld"].send_signal(signal.SIGSTOP)

    def resume_controller(self) -> None:
        self.daemons["slurmctld"].send_signal(signal.SIGCONT)

    def start_node(self, node: str) -> None:
        self._spawn(node, "slurmd", "-D", "-N", node, "-f", str(self.conf))
        self.until(lambda: self.state_of(node).startswith(("idle", "mixed", "alloc")), "%s is up" % node)

    def state_of(self, node: str) -> str:
        return self.run("sinfo", "-h", "-n", node, "-o", "%T").stdout.strip()

    def lose_node(self, node: str) -> None:
        """The node is dead, and so is what ran there; an admin tells the controller."""
        self._end(node, signal.SIGKILL)
        for row in self.table():
            if row["node"] == node:
                self.kill_job(row["id"], daemon=True)
        self.run("scontrol", "update", "NodeName=" + node, "State=DOWN", "Reason=lost")

    def _end(self, name: str, number: int) -> None:
        process = self.daemons.get(name)
        if process is None or process.poll() is not None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop(self) -> None:
        for name in reversed(list(self.daemons)):
            self._end(name, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while self._end_strays() and time.monotonic() < deadline:
            time.sleep(0.02)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end_strays(self) -> list[int]:
        """Job steps, their jobs, and what those began."""
        strays = [pid for pid in [*self._holders(), *processes_naming("%s/" % self.folder)] if pid != os.getpid()]
        for pid in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return strays

    def _holders(self) -> Iterator[int]:
        """Processes with an open file in the folder: a slurmstepd writes its title over its own environment."""
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                files = [os.readlink(link) for link in Path("/proc", name, "fd").iterdir()]
                if any(file.startswith("%s/" % self.folder) for file in files):
                    yield int(name)

    # commands

    def run(self, *command: str, cwd: Path | None = None, env: dict[str, str] | None = None,
            timeout: float = PATIENCE) -> "subprocess.CompletedProcess[str]":  # fmt: skip
        """One command as a user on the login node would type it."""
        return subprocess.run(command, cwd=cwd or self.user_home, env=dict(self.environment, **(env or {})), text=True,
                              timeout=timeout, capture_output=True, stdin=subprocess.DEVNULL)  # fmt: skip

    def wrap(self, command: str, text: str) -> None:
        """A site's wrapper in front of a command: sh, with the real one as $real."""
        path = self.bin / command
        path.write_text("#!/bin/sh\nreal=%s\n%s" % (needs.program(command), text))
        path.chmod(0o755)

    def table(self) -> list[dict[str, Any]]:
        """Every live job and array element: id, name, state in the letters of PBS, node; for samplers."""
        rows = self.run("squeue", "-h", "-r", "-o", "%i|%T|%r|%N|%j").stdout.splitlines()
        found = []
        for number, state, reason, node, name in (row.split("|", 4) for row in rows):
            letter = "H" if reason == "JobHeldUser" else LETTERS.get(state, "R")
            found.append({"id": number, "state": letter, "name": name, "node": node, "array": False})
        return found

    def told(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of one, by its first word of each pair; empty if it says nothing."""
        words = self.run("scontrol", "-o", "show", "job", job).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def kill_job(self, job: str, daemon: bool = False) -> None:
        """SIGKILL for every process of a job: no trap and no tail runs. daemon: and for Slurm's own around it, so that
        nobody tells the controller."""
        own = set(processes_naming("SLURM_JOB_ID=%s\0" % job)) & set(processes_naming("%s\0" % self.conf))
        around = set(processes_naming("slurmstepd: [%s." % job)) & set(self._holders()) if daemon else set()
        for number in (signal.SIGSTOP, signal.SIGKILL):  # a runner must not see its payload die first, and say so
            for pid in [*around, *own]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def kill_all_jobs(self) -> None:
        for row in self.table():
            if row["state"] in "RSE":
                self.kill_job(row["id"])

    # waiting

    def until(self, condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
        """The first true value of condition()."""
        deadline = time.monotonic() + patience
        while not (found := condition()):
            assert time.monotonic() < deadline, "never: %s\n%s" % (what, self.said())
            time.sleep(0.02)
        return found

    def said(self) -> str:
        """The last words of the daemons."""
        return "\n".join("%s: %s" % (path.name, path.read_text(errors="replace")[-1500:])
                         for path in sorted(self.folder.glob("*.out")))
