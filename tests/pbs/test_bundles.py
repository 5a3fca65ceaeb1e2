"""Bundles over PBS: each member once, caps by bundle, what is multiplied, and what a killed one leaves."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.agentroot import until
from chasqui_agent import settings
from pbs.cluster import Cluster
from pbs.test_relay import PbsRoot, Sampler

ONE = "#PBS -l select=1:ncpus=1:mem=100mb,walltime=00:10:00"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.1, daemon_seconds=2) as made:
        yield made


class BundleRoot(PbsRoot):
    """Jobs that end when their gate is opened, and the bundles they went in."""

    def gated(self, name: str) -> None:
        self.drop(name, text="while [ ! -e '%s/gate.%s' ]; do sleep 0.1; done" % (self.ran, name), directives=ONE)

    def open(self, *names: str) -> None:
        for name in names:
            Path(self.ran, "gate." + name).touch()

    def settle(self, names: list[str]) -> None:
        """Pump now and then, as syncs would, until all of these have ended."""
        over = lambda: all(self.spool.settled_state(name, 1) for name in names)  # noqa: E731
        until(lambda: over() or (time.sleep(1.1), self.pump(), over())[-1], "%s settled" % (names,), 180)

    def bundles(self) -> list[str]:
        return [job["id"] for job in self.cluster.table() if job["name"].startswith("bundle.")]

    def states(self, names: list[str]) -> list[str]:
        return [self.flag(name)[0] for name in names]

    def untouched(self) -> bool:
        """Whether nothing of any bundle is left in the spool."""
        self.pump()
        left = [*os.listdir(self.spool.work), *os.listdir(self.spool.submitted), *os.listdir(self.spool.submitting)]
        return not [name for name in [*left, *os.listdir(self.path)] if name.startswith("bundle")]


def test_bundles_run_each_of_their_jobs_once_under_the_caps(tmp_path: Path, cluster: Cluster) -> None:
    root = BundleRoot(tmp_path / "root", cluster, bundle=4, parallel=2, max_queued=3, max_running=2, heartbeat=0)
    names = ["job%02d" % number for number in range(14)]
    for number, name in enumerate(names):
        root.drop(name, seconds=0.2, text="note end; exit 7" if number == 5 else "", directives=ONE)
    with Sampler(root) as sampler:
        root.pump()
        until(lambda: all(map(root.starts, names)), "every payload started, by the tails alone", 180)
        root.settle(names)
    assert [root.starts(name) for name in names] == [1] * 14
    assert root.states(names) == ["DONE"] * 5 + ["FAIL"] + ["DONE"] * 8
    assert sampler.samples > 20 and sampler.payloads <= 4 and sampler.waiting <= 3
    assert len(root.bundles()) == 4
    asked = cluster.attributes(root.bundles()[0])
    assert asked["Resource_List.walltime"] == "00:21:00"
    assert re.search(r"^1:ncpus=2:mem=200mb$", asked["Resource_List.select"])
    assert root.outcomes()["duplicate"] == root.outcomes()["refused"] == 0
    until(root.untouched, "no trace of the bundles", 120)


@pytest.mark.parametrize("how, became", [("qdel", "cancelled"), ("kill", "completed")])
def test_a_killed_bundle_requeues_what_had_not_started(tmp_path: Path, cluster: Cluster, how: str, became: str) -> None:
    root = BundleRoot(tmp_path / "root", cluster, bundle=4, parallel=2, max_running=1, heartbeat=0)
    names = ["job%d" % number for number in range(4)]
    for name in names:
        root.gated(name)
    root.pump()
    until(lambda: root.starts(names[0]) and root.starts(names[1]), "two are at work")
    root.open(names[0])
    until(lambda: root.starts(names[2]), "the third has begun")
    (bundle,) = root.bundles()
    if how == "kill":
        cluster.kill_all_jobs()
    else:
        assert cluster.run("qdel", bundle).returncode == 0
    root.open(names[3])
    root.settle(names)
    assert [root.starts(name) for name in names] == [1] * 4
    assert [root.spool.settled_state(name, 1) for name in names] == ["completed", became, became, "completed"]
    assert {root.flag(name)[0] for name in names[1:3] if how == "kill"} <= {"FAIL", "LOST"}
    assert root.states([names[0], names[3]]) == ["DONE", "DONE"]
    assert [len(root.events(name, "closed")) for name in names] == [0, 0, 0, 1]
    until(root.untouched, "no trace of the bundles", 120)


def test_one_that_takes_too_long_is_ended_alone(tmp_path: Path, cluster: Cluster) -> None:
    root = BundleRoot(tmp_path / "root", cluster, bundle=3, heartbeat=0)
    names = ["job%d" % number for number in range(3)]
    for name in names:
        root.drop(name, seconds=600 if name == "job0" else 0.1,
                  directives="#PBS -l select=1:ncpus=1,walltime=00:00:02")
    root.settle(names)
    assert root.states(names) == ["FAIL", "DONE", "DONE"] and "why=walltime" in root.flag("job0")
    assert [root.starts(name) for name in names] == [1] * 3 and len(root.bundles()) == 1
    assert cluster.attributes(root.bundles()[0])["Resource_List.walltime"] == "00:01:36"


def test_a_bundle_whose_reply_is_lost_is_adopted(tmp_path: Path, cluster: Cluster) -> None:
    root = BundleRoot(tmp_path / "root", cluster, bundle=3, heartbeat=0)
    names = ["job%d" % number for number in range(3)]
    for name in names:
        root.gated(name)
    once = str(tmp_path / "killed")
    code, _, _ = root.agent("pump", CHASQUI_FAULT="submit.call.after", CHASQUI_FAULT_ONCE=once)
    assert code == -signal.SIGKILL and len(root.spool.entries("submitting")) == 4
    root.open(*names)
    root.settle(names)
    assert [root.starts(name) for name in names] == [1] * 3 and root.states(names) == ["DONE"] * 3
    assert len(root.bundles()) == 1
    assert [len(root.events(name, "adopted")) for name in names] == [1] * 3


def strict_site(folder: Path, cluster: Cluster, code: int, text: str) -> str:
    """The scheduler's commands, of a site that takes no job that asks for half an hour, or three cpus."""
    folder.mkdir()
    for real in (cluster.exec / "bin").iterdir():
        script = "#!/bin/sh\n"
        if real.name == "qsub":
            script += "for word; do\n  if [ -f \"$word\" ] && grep -q 'walltime=00:31:30\\|ncpus=3' \"$word\"; then\n"
            script += "    echo 'qsub: %s' >&2\n    exit %d\n  fi\ndone\n" % (text, code)
        (folder / real.name).write_text(script + "exec '%s' \"$@\"\n" % real)
        (folder / real.name).chmod(0o755)
    return str(folder)


@pytest.mark.parametrize("code, text, parallel, told", [
    (188, "Job violates queue and/or server resource limits", 1, [1, 0, 0]),
    (39, "would exceed limit on resource ncpus in complex", 3, [1, 0, 0]),
])
def test_what_a_site_refuses_a_bundle_goes_job_by_job(
        tmp_path: Path, cluster: Cluster, code: int, text: str, parallel: int, told: list[int]) -> None:
    site = strict_site(tmp_path / "bin", cluster, code, text)
    root = BundleRoot(tmp_path / "root", cluster, bundle=3, parallel=parallel, heartbeat=0, pbs_bin=site)
    names = ["job%d" % number for number in range(3)]
    for name in names:
        root.drop(name, directives=ONE)
    root.settle(names)
    assert root.states(names) == ["DONE"] * 3 and [root.starts(name) for name in names] == [1] * 3
    assert [len(root.events(name, "refused")) for name in names] == told
    assert len({root.flag(name)[1] for name in names}) >= 2
    until(root.untouched, "no trace of the bundles", 120)


def test_one_is_cancelled_while_the_others_run(tmp_path: Path, cluster: Cluster) -> None:
    root = BundleRoot(tmp_path / "root", cluster, bundle=3, parallel=2, max_running=1, heartbeat=0)
    names = ["job%d" % number for number in range(3)]
    for name in names:
        root.gated(name)
    root.pump()
    until(lambda: root.starts(names[0]) and root.starts(names[1]), "two are at work")
    root.agent("cancel", names[2])  # first: else it may take the place of the other
    root.agent("cancel", names[0])
    root.settle([names[0], names[2]])
    assert [root.spool.settled_state(name, 1) for name in names] == ["cancelled", "", "cancelled"]
    root.open(names[1])
    root.settle(names)
    assert root.states(names[1:2]) == ["DONE"] and [root.starts(name) for name in names] == [1, 1, 0]


def test_on_a_torque_each_is_told_its_share(tmp_path: Path) -> None:
    with Cluster(scale=0.1, dialect="torque") as cluster:
        root = BundleRoot(tmp_path / "root", cluster, bundle=4, parallel=2, heartbeat=0)
        settings.change(root.spool, scheduler="torque")
        names = ["job%d" % number for number in range(4)]
        for name in names:
            root.drop(name, text='echo $NCPUS $PBS_NUM_PPN $OMP_NUM_THREADS >"%s/%s.told"' % (root.ran, name),
                      directives="#PBS -l nodes=1:ppn=3,walltime=00:10:00\n#PBS -v PBS_NUM_PPN=6,OMP_NUM_THREADS=3")
        root.settle(names)
        assert root.states(names) == ["DONE"] * 4 and [root.starts(name) for name in names] == [1] * 4
        assert len({root.flag(name)[1] for name in names}) == 1
        assert {Path(root.ran, name + ".told").read_text() for name in names} == {"3 6 3\n"}
        assert len(root.bundles()) == 1


def test_under_a_cap_of_all_jobs_each_bundle_follows_the_one_before(tmp_path: Path, cluster: Cluster) -> None:
    """Its tail counts it, too; what is left over must be seen, though no more is read than there are places for."""
    root = BundleRoot(tmp_path / "root", cluster, bundle=2, parallel=2, max_total=1)
    names = ["job%d" % number for number in range(6)]
    for name in names:
        root.drop(name, seconds=0.3, directives=ONE)
    root.pump()
    until(lambda: all(map(root.starts, names)), "all of them, without another pump by hand", 180)
    assert [root.starts(name) for name in names] == [1] * 6 and len(root.bundles()) == 3
