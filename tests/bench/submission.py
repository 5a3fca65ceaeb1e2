"""Jobs that are uploaded and submitted to the mock PBS behind the same sshd: chasqui, dpdispatcher, tar and qsub."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import needs
from bench import clock, contents, contest, ground, report
from bench.contest import Contestant, Side, WrongContent
from bench.report import Row
from pbs.cluster import Cluster
from ssh.lab import Lab

TOP = Path(__file__).resolve().parents[2]
DPDISPATCHER = "dpdispatcher==1.1.0"
# One core on one node and one job that keeps it: what is submitted waits, so that no payload runs beside the clock.
SCRIPT = b"#!/bin/sh\n#PBS -l select=1:ncpus=1\ntrue\n"
CAPS = "max_queued = 1000\nmax_running = 1000"
LOOP = "cd {place} && tar -xz && for job in */; do (cd $job && qsub job.sh) || exit 1; done"


def rows(lab: Lab, python: str, cluster_python: str, place: Path, jobs: int, rounds: int) -> list[Row]:
    """A row for each line: upload and submission of `jobs` small jobs."""
    rival = _dpdispatcher()
    folders = contents.small_jobs(place / "submission", jobs, SCRIPT, 5)
    made = []
    with Cluster(lab.path("pbs"), ncpus=1, daemon_seconds=0) as cluster, _profile(cluster, lab):
        for slow in (False, True):
            with Side(lab, "slow" if slow else "loop", python, cluster_python, slow) as side:
                side.desk.remote_caps(CAPS)
                made.append(_row(side, _Entrants(cluster, side, folders, rival), rounds))
                side.forget()
    return made


def _row(side: Side, entrants: "_Entrants", rounds: int) -> Row:
    outcomes = contest.rounds(side, rounds, {
        "chasqui": Contestant(entrants.fresh, entrants.chasqui, entrants.chasqui_done),
        "dpdispatcher": Contestant(entrants.empty, entrants.dpdispatcher, entrants.dpdispatcher_done),
        "tar | ssh tar; qsub in a loop": Contestant(entrants.empty, entrants.loop, entrants.loop_done),
    })  # fmt: skip
    entrants.no_jobs()
    values = {name: outcome.parts["all"] for name, outcome in outcomes.items()}
    return Row("submission", side.name, "s", values, report.BARS["submission"], rival="dpdispatcher",
               extra={"add + sync": outcomes["chasqui"].parts["add + sync"]},
               what=f"{len(entrants.folders)} jobs")  # fmt: skip


def _dpdispatcher() -> Path:
    """The python of a venv below build/ that has it; made once for each version."""
    folder = TOP / "build" / DPDISPATCHER.replace("==", "-")
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", DPDISPATCHER]
        if subprocess.run(pip).returncode != 0:
            needs.missing(f"{DPDISPATCHER}, from PyPI")
        (folder / "made").touch()
    return python


@contextlib.contextmanager
def _profile(cluster: Cluster, lab: Lab) -> Iterator[None]:
    """PBS on everybody's PATH, as a site does it: bash reads .bashrc also for `ssh host command`."""
    lines = f"export PATH={cluster.exec / 'bin'}:$PATH PBS_CONF_FILE={cluster.conf()}\n"
    user = lab.user("plain")
    rc = user.home / ".bashrc"
    before = rc.read_text()
    rc.write_text(lines)
    yield
    rc.write_text(before)


class _Entrants:
    """What each of them does with the same folders, and how it is seen to have done it."""

    def __init__(self, cluster: Cluster, side: Side, folders: list[Path], rival: Path) -> None:
        self.cluster, self.side, self.folders, self.rival = cluster, side, folders, rival
        self.keeper = ""

    # -- before

    def no_jobs(self) -> None:
        """Nobody's jobs are left in the queue."""
        self.cluster.run("qdel -W force $(qselect) 2>&1 || true")
        self.cluster.until(lambda: not self._live(), "no job is left")

    def _only_the_keeper(self) -> None:
        """The queue holds one job, which runs for ever."""
        self.no_jobs()
        self.keeper = self.cluster.submit("#!/bin/sh\n#PBS -l select=1:ncpus=1\nexec sleep 100000\n")
        self.cluster.wait_for(self.keeper, "R")

    def _live(self) -> list[dict]:
        return [job for job in self.cluster.table() if job["state"] not in "FX"]

    def fresh(self) -> None:
        self._only_the_keeper()
        self.side.bare_root()
        for _ in range(2):
            self.side.desk.chasqui("sync")

    def empty(self) -> None:
        self._only_the_keeper()
        self.side.empty()

    # -- the clock runs

    def chasqui(self) -> dict[str, float]:
        return self.side.uploads(self.folders)

    def dpdispatcher(self) -> dict[str, float]:
        user, place = self.side.user, self.folders[0].parent
        line = self.side.line(str(self.side.lab.port))
        asked = {
            "local_root": str(place.parent), "work_base": place.name, "remote_root": str(self.side.bare),
            "tasks": [folder.name for folder in self.folders],
            "profile": {"hostname": "127.0.0.1", "port": self.side.lab.port, "username": user.name,
                        "key_filename": str(self.side.lab.path("keys") / "id"), "look_for_keys": False,
                        **({"proxy_command": line} if line else {})},
        }  # fmt: skip
        # Without rsync on its PATH it puts files over the connection that it has; with it, over a new one for each.
        environment = {"PATH": str(self.rival.parent), "HOME": str(self.side.lab.path("clients"))}
        done = subprocess.run([self.rival, Path(__file__).with_name("dispatch.py")], input=json.dumps(asked), text=True,
                              capture_output=True, env=environment, cwd=self.side.lab.path("clients"))  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"dpdispatcher: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return {"all": float(done.stdout.splitlines()[-1])}

    def loop(self) -> dict[str, float]:
        there = ground.shown(self.side.desk.ssh(LOOP.format(place=self.side.bare)))
        line = f"set -o pipefail; tar -C {self.folders[0].parent} -cz . | {there}"
        return {"all": clock.seconds(["bash", "-c", line], self.side.desk.environment)}

    # -- after

    def chasqui_done(self) -> None:
        known = {Path(job["folder"]): job["id"] for job in self.side.desk.chasqui("list", "--all")["jobs"]}
        self._submitted()
        for folder in self.folders:
            contest.same(folder, self.side.desk.root / "work" / known[folder])

    def dpdispatcher_done(self) -> None:
        self._submitted()
        (there,) = self.side.bare.iterdir()
        for folder in self.folders:
            contest.same(folder, there / folder.name)

    def loop_done(self) -> None:
        self._submitted()
        self.side.delivered(self.folders)

    def _submitted(self) -> None:
        """As many jobs are in the queue as there are folders; ours may have a heartbeat beside them."""
        names = [job["name"] for job in self._live() if job["id"] != self.keeper and "beat" not in job["name"]]
        if len(names) != len(self.folders):
            raise WrongContent(f"{len(names)} jobs of {len(self.folders)} are in the queue")
