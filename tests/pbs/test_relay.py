"""The relay over PBS: what its heartbeat does, and the roots and samplers that others use; see also tests/relay."""

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.agentroot import AGENT, Root, until
from pbs.cluster import Cluster

EVERY = 0.05  # seconds between two looks at the server's own table


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.1, daemon_seconds=2) as made:
        yield made


class PbsRoot(Root):
    """A root whose jobs go to a cluster."""

    def __init__(self, path: Path, cluster: Cluster, python: str = sys.executable, **chosen: object) -> None:
        super().__init__(path, scheduler="openpbs", **{"query_interval": 1, "grace": 5, **chosen})
        self.cluster, self.python = cluster, python

    def agent(self, *argv: str, **more: str) -> tuple[int, str, str]:
        done = self.cluster.run(self.python, "-I", "-S", os.path.join(AGENT, "chasqui_agent"), "--root", self.path,
                                *argv, env=more, timeout=300)
        return done.returncode, done.stdout, done.stderr

    def finish(self, count: int) -> None:
        """Pump now and then, as syncs would, until so many attempts are completed."""
        until(lambda: self.finished() >= count or (time.sleep(1.1), self.pump(), self.finished() >= count)[-1],
              "%d completed" % count, 120)

    def beats(self) -> list[dict]:
        """The heartbeat's jobs that are alive in the server."""
        return [job for job in self.cluster.table() if job["name"].startswith("beat.") and job["state"] != "F"]

    def outcomes(self) -> Counter:
        return Counter(record["ev"] for record in self.log())


NO_PROJECT = "_pbs_project_default"  # of PBS; other schedulers' tables have none


class Sampler(threading.Thread):
    """The most payloads and the most waiting jobs seen at once, by the server's table and the runners' marks."""

    def __init__(self, root: PbsRoot) -> None:
        super().__init__(daemon=True)
        self.root, self.samples, self.payloads, self.waiting, self.live = root, 0, 0, 0, 0
        self.of_project = 0  # the most of any one project but the default one
        self.ended = threading.Event()

    def __enter__(self) -> "Sampler":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()

    def run(self) -> None:
        while not self.ended.wait(EVERY):
            jobs = [job for job in self.root.cluster.table() if job["state"] not in "FX" and not job["array"]]
            self.samples += 1
            self.live = max(self.live, len(jobs))
            self.waiting = max(self.waiting, sum(job["state"] in "QHW" for job in jobs))
            named = Counter(job["project"] for job in jobs if job.get("project", NO_PROJECT) != NO_PROJECT)
            self.of_project = max([self.of_project, *named.values()])
            self.payloads = max(self.payloads, self.running())

    def running(self) -> int:
        """Payloads between their two notes."""
        found = 0
        for name in os.listdir(self.root.ran):
            text = Path(self.root.ran, name).read_text()
            found += text.count("start ") - text.count("end ")
        return found


# -- the heartbeat -----------------------------------------------------------------------------------------------------


def test_slots_that_ending_jobs_still_hold_are_filled_later(tmp_path: Path, cluster: Cluster) -> None:
    """A bad -o keeps a job in E for long, where it counts against the site's limit: a relay by tails alone stops."""
    cluster.set_server("mock_hide_limits", True)
    cluster.set_server("max_queued", "[u:PBS_GENERIC=7]")
    root = PbsRoot(tmp_path / "root", cluster, max_queued=7, max_running=7)
    gate = tmp_path / "gate"
    names = ["job%02d" % number for number in range(14)]
    for name in names:
        root.drop(name, text="while [ ! -e '%s' ]; do sleep 0.05; done" % gate, seconds=0.1,
                  directives="#PBS -o /nonexistent/folder/out")
    root.pump()
    until(lambda: sum(root.starts(name) for name in names) >= 6, "the first six")
    gate.touch()
    until(lambda: all(root.starts(name) == 1 for name in names), "the others, without a pump by hand", 120)
    assert root.outcomes()["refused"] > 0, "the limit was never met: this test shows nothing"
    root.finish(14)


def test_never_more_than_two_beats_and_none_in_the_end(tmp_path: Path, cluster: Cluster) -> None:
    root = PbsRoot(tmp_path / "root", cluster, max_queued=4, max_running=2, heartbeat=0.1)
    for number in range(3):
        root.drop("job%d" % number, seconds=8)
    root.pump()
    most = 0

    def over() -> bool:
        nonlocal most
        most = max(most, len(root.beats()))
        return root.finished() == 3 and not root.beats()

    until(over, "all done, and no heartbeat left", 120)
    assert 1 <= most <= 2
    assert os.listdir(os.path.join(root.path, "heartbeat")) in (["output"], [])


def test_without_a_heartbeat_the_next_contact_says_that_the_relay_stood_still(
        tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    root = PbsRoot(tmp_path / "root", cluster, max_queued=2, max_running=1, heartbeat=0)
    root.drop("long", seconds=300)
    root.drop("next", seconds=0.1)
    root.drop("last", seconds=0.1)
    root.pump()
    until(lambda: root.starts("long"), "it runs")
    assert root.beats() == []
    cluster.kill_all_jobs()
    root.finish(3)
    assert [root.starts(name) for name in ("long", "next", "last")] == [1, 1, 1]
