"""SIGKILL at the relay's fault points over PBS: one wake by hand at most, the heartbeat does the rest; all run once."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.agentroot import AGENT, publish, until
from chasqui_agent import cli, fault, heartbeat, intake, operations, pump  # noqa: F401  register their points
from chasqui_agent.spool import Spool
from fault.test_faults import cluster_python  # noqa: F401
from pbs.cluster import Cluster

GRACE = 1.0
NEVER_RUN = ("cancelled", "rejected")
LONG = os.environ.get("CHASQUI_TEST_SIZE") == "long"
ALWAYS = ("ending", "fill", "heartbeat", "marks", "pump", "submit")
ALSO = ("files", "intake", "journal", "lock")  # these do not know which scheduler it is
POINTS = sorted(name for name in fault.POINTS if name.split(".")[0] in ALWAYS + (ALSO if LONG else ()))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.05, daemon_seconds=2) as made:
        yield made


class Run:
    """One root with three jobs on the cluster, its processes carrying a fault."""

    def __init__(self, folder: Path, cluster: Cluster, python: str, point: str) -> None:
        self.root, self.ran, self.once = str(folder / "root"), folder / "ran", folder / "killed"
        self.cluster, self.python, self.point = cluster, python, point
        self.ran.mkdir()
        self.agent("install", "--scheduler", "openpbs")
        self.spool = Spool(self.root)
        settings = {"max_running": 2, "max_queued": 5, "settle": 0, "query_interval": 0, "grace": GRACE, "lease": 10,
                    "heartbeat": 0.03, "scheduler": "openpbs"}
        Path(self.root, "config.json").write_text(json.dumps(settings))

    def agent(self, *words: str, faulty: bool = False) -> int:
        more = {"CHASQUI_FAULT": self.point, "CHASQUI_FAULT_ONCE": str(self.once)} if faulty else {}
        command = [self.python, "-I", "-S", os.path.join(AGENT, "chasqui_agent"), "--root", self.root, *words]
        return subprocess.run(command, env={**self.cluster.environment, **more}, stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=120).returncode

    def hand_over(self, *names: str) -> None:
        """The first by a session, the others dropped in by hand."""
        texts = {name: f"#!/bin/sh\necho start >> '{self.ran}/{name}'\nsleep 1\n" for name in names}
        publish(self.spool, "test", [(names[0], texts.pop(names[0]))])
        for name, text in texts.items():
            Path(self.spool.waiting, name + ".sh").write_text(text)

    def starts(self, name: str) -> int:
        path = self.ran / name
        return path.read_text().count("start") if path.exists() else 0

    def settled(self, names: list[str]) -> bool:
        return all(self.spool.settled_state(name, 1) for name in names)

    def log(self) -> list[dict]:
        command = [self.python, "-I", "-S", os.path.join(AGENT, "chasqui_agent"), "--root", self.root, "log"]
        return [json.loads(line) for line in subprocess.run(command, capture_output=True).stdout.splitlines()]

    def let_an_hour_pass(self) -> None:
        """What was given up may yet be accepted, and is looked for so long: a heartbeat stays for that alone."""
        path = Path(self.root, "state.json")
        state = json.loads(path.read_text())
        late = [one[:-1] + [one[-1] - 3600] for one in state.get("closed_lately", [])]
        if late:
            path.write_text(json.dumps(dict(state, closed_lately=late)))

    def alive(self) -> bool:
        """Whether anything of this root is in the server or still pumps."""
        jobs = [job for job in self.cluster.table() if job["state"] != "F"]
        return bool(jobs) or subprocess.run(["pgrep", "-f", self.root], capture_output=True).returncode == 0


def _cancel(run: Run, name: str) -> None:
    """The user types again what was killed under her fingers."""
    if run.agent("cancel", name, faulty=True) == -9:
        run.agent("cancel", name, faulty=True)


def _settle(run: Run, names: list[str]) -> int:
    """How many wakes by hand it takes; the heartbeat may do the rest."""
    for wakes in range(3):
        until(lambda: run.settled(names) or not run.alive(), "settled, or nothing alive that could go on", 120)
        if run.settled(names):
            return wakes
        time.sleep(GRACE + 0.2)
        run.agent("wake", faulty=True)
    return 3


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(tmp_path: Path, cluster: Cluster, cluster_python: str, point: str) -> None:  # noqa: F811
    run = Run(tmp_path, cluster, cluster_python, point)
    names = ["one", "two", "three"]
    run.hand_over(*names)
    operating = point.startswith(("marks.", "pump.delete."))
    run.agent("pump", faulty=not operating)
    if operating:
        _cancel(run, "three")
    by_hand = _settle(run, names)
    assert by_hand <= 2
    assert run.once.exists(), "no run comes by " + point
    states = {name: run.spool.settled_state(name, 1) for name in names}
    for name, state in states.items():
        assert run.starts(name) == 1 or (state in NEVER_RUN and run.starts(name) == 0), (name, states)
    assert not [record for record in run.log() if record["ev"] in ("damaged", "lost")]
    until(lambda: (run.let_an_hour_pass(), not run.alive())[-1], "nothing is left in the server, no heartbeat either")
