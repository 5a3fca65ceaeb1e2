"""The same three hosts with a real Slurm: one login, one sync, logout; `#SBATCH` scripts of a user whose home is shared
relay each other from the compute hosts, while an admin requeues one job and cancels another."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cluster import NODES, Cluster

from docker.ground import Laptop, until

JOBS = 24
CAPS = "max_queued = 6\nmax_running = 4"
NOTES, GATE = "/home/zsh/slurm-notes", "/home/zsh/slurm-gate"  # the chaos run has its own of this user
SCRIPT = f"#!/bin/sh\n#SBATCH -t 5\necho {{name}} $SLURM_JOB_ID `hostname` >>{NOTES}\ncksum <in.dat >out\n{{work}}\n"
UNTIL_GATE = f"until [ -e {GATE} ]; do sleep 0.1; done"


class Start(NamedTuple):
    name: str
    id: str
    host: str


@pytest.fixture
def laptop(cluster: Cluster, tmp_path: Path) -> Iterator[Laptop]:
    up = ["sinfo", "-h", "-N", "-t", "idle,mix,alloc", "-o", "%N"]
    until(lambda: set(cluster.execute("login", *up).split()) == set(NODES), "both hosts are up again", 180)
    yield Laptop(cluster, tmp_path / "laptop", "zsh", CAPS, "query_interval = 1", root="by-slurm", scheduler="slurm")
    cluster.execute("login", "scancel", "--user=zsh")


def test_jobs_relay_each_other_over_slurm(laptop: Laptop, tmp_path: Path) -> None:
    many = ["job%02d" % number for number in range(JOBS)]
    laptop("add", "--rerun", folder(tmp_path, "again", UNTIL_GATE))
    laptop("add", folder(tmp_path, "gone", UNTIL_GATE))
    laptop("add", *[folder(tmp_path, name, "sleep 0.5") for name in many], folder(tmp_path, "fails", "exit 3"))
    laptop("login", "hpc")
    laptop("sync")
    laptop("logout", "hpc")
    friday = laptop.counts()
    until(lambda: {"again", "gone"} <= {start.name for start in starts(laptop)}, "both run", 120)
    ids = {start.name: start.id for start in starts(laptop)}
    laptop.cluster.execute("login", "scontrol", "requeue", ids["again"])
    now = ["scontrol", "update", "JobId=" + ids["again"], "StartTime=now"]  # Slurm would wait for two minutes
    laptop.cluster.execute("login", *now)
    laptop.cluster.execute("login", "scancel", ids["gone"])
    until(lambda: {*many, "fails"} <= {start.name for start in starts(laptop)}, "the others, by each other's ends", 300)
    until(lambda: [start.name for start in starts(laptop)].count("again") == 2, "Slurm runs it again", 180)
    laptop.there("touch " + GATE)
    until(lambda: not laptop.cluster.execute("login", "squeue", "-h", "-u", "zsh", "-t", "R,CG"), "all are over", 120)
    assert laptop.counts() == friday, "somebody logged in meanwhile"

    laptop("login", "hpc")
    counts = {"COMPLETED": JOBS + 1, "FAILED": 1, "CANCELLED": 1}
    until(lambda: laptop("sync")["counts"] == counts, f"all home, as {counts}", 120, every=2)
    laptop("logout", "hpc")
    counted = Counter(start.name for start in starts(laptop))
    assert counted == dict.fromkeys([*many, "fails", "gone"], 1) | {"again": 2}
    assert {start.host for start in starts(laptop)} == set(NODES)
    for name in [*many, "fails", "again"]:
        assert (tmp_path / name / "results/out").read_text().split()[1] == str(len(name) * 100)


def folder(path: Path, name: str, work: str) -> str:
    """One job's; how long its input is depends on its name."""
    (path / name).mkdir()
    (path / name / "job.sh").write_text(SCRIPT.format(name=name, work=work))
    (path / name / "in.dat").write_text(name * 100)
    return str(path / name)


def starts(laptop: Laptop) -> list[Start]:
    """What the payloads noted: a line each time one starts."""
    return [Start(*line.split()) for line in laptop.there(f"cat {NOTES} 2>/dev/null || true").splitlines()]
