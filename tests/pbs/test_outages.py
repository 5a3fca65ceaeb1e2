"""A server that loses replies, comes late, is down, hangs or says nothing: all jobs complete, no payload runs twice."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.agentroot import until
from conftest import Size
from pbs.cluster import Cluster
from pbs.test_relay import PbsRoot

JOBS = 16
PATIENCE = 300.0
TOKEN = re.compile(r"\.([a-z0-9]+)$")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.1, daemon_seconds=2) as made:
        yield made


class Trouble:
    """A batch that lives through an outage, and what the journal and the server's own table say of it afterwards."""

    def __init__(self, path: Path, cluster: Cluster, **chosen: object) -> None:
        self.cluster = cluster
        self.root = PbsRoot(path / "root", cluster, **{"max_queued": 6, "max_running": 3, **chosen})
        self.names = ["job%02d" % number for number in range(JOBS)]
        for number, name in enumerate(self.names):
            self.root.drop(name, seconds=0.3 + number % 3 * 0.4)

    def begin(self) -> "Trouble":
        """So far all is well: some have run, others run and wait."""
        self.root.pump()
        until(lambda: sum(self.root.starts(name) for name in self.names) >= 2, "the first two")
        return self

    def finish(self) -> None:
        """Pump now and then, as syncs would, until all is over and the server holds nothing of it any more."""

        def over() -> bool:
            time.sleep(1.1)
            code, out, err = self.root.agent("pump")
            assert code in (0, 1) and not err, (code, out, err)
            return self.root.finished() == JOBS and not [job for job in self.cluster.table() if job["state"] != "F"]

        until(over, "%d completed and nothing left" % JOBS, PATIENCE)
        self.check()

    def check(self) -> None:
        assert [self.root.starts(name) for name in self.names] == [1] * JOBS
        assert [self.root.flag(name)[:1] for name in self.names] == [["DONE"]] * JOBS
        log = self.root.log()
        outcomes = Counter(record["ev"] for record in log)
        assert outcomes["ended"] == JOBS and not outcomes["rejected"] and not outcomes["repaired"], outcomes
        assert {record["job"] for record in log if record["ev"] == "ended" and record["state"] == "DONE"} == \
            set(self.names)  # fmt: skip

    def tokens(self, *events: str) -> set[str]:
        return {record["token"] for record in self.root.log() if record["ev"] in events}

    def arrived(self) -> dict[str, dict[str, Any]]:
        """The server's jobs by their token, the heartbeat's left out. It remembers those that ended."""
        jobs = [job for job in self.cluster.table() if not job["name"].startswith("beat.")]
        return {TOKEN.findall(job["name"])[0]: job for job in jobs}


def test_a_reply_lost_after_the_job_was_accepted(tmp_path: Path, cluster: Cluster) -> None:
    cluster.fault("lose_reply", every=5)
    trouble = Trouble(tmp_path, cluster)
    trouble.finish()
    lost = set(trouble.arrived()) - trouble.tokens("submitted")
    assert len(lost) >= 2, "no reply was lost: this test shows nothing"
    assert trouble.tokens("adopted") == lost, "each is found again"
    assert len(trouble.arrived()) == JOBS, "none is submitted a second time"


def test_a_reply_lost_where_no_history_is_kept(tmp_path: Path) -> None:
    with Cluster(scale=0.1, daemon_seconds=2, history=False) as cluster:
        cluster.fault("lose_reply", every=5)
        trouble = Trouble(tmp_path, cluster, grace=2)
        trouble.finish()
        assert len(trouble.tokens("adopted")) >= 2 and not trouble.tokens("duplicate")


def test_a_submission_that_takes_long(tmp_path: Path, cluster: Cluster, size: Size) -> None:
    cluster.fault("delay_accept", seconds=10 if size.long else 3, every=4)
    trouble = Trouble(tmp_path, cluster)
    trouble.finish()
    assert len(trouble.arrived()) == JOBS


def test_a_submission_accepted_after_its_client_was_gone(tmp_path: Path, cluster: Cluster, size: Size) -> None:
    cluster.fault("delay_accept", seconds=10 if size.long else 3, every=4, drop=True)
    trouble = Trouble(tmp_path, cluster, grace=60)
    trouble.finish()
    late = set(trouble.arrived()) - trouble.tokens("submitted")
    assert late and trouble.tokens("adopted") == late and not trouble.tokens("closed")
    assert len(trouble.arrived()) == JOBS


@pytest.mark.parametrize("max_running", [2, 20], ids=["held", "free"])
def test_a_submission_accepted_after_it_was_given_up(
        tmp_path: Path, cluster: Cluster, size: Size, max_running: int) -> None:
    """The old token is closed and a new one submitted; what comes up with the old one refuses to run, or is deleted:
    also where it comes with our hold on, long after everything else is over."""
    delay, grace = (30, 10) if size.long else (8, 2)
    cluster.fault("delay_accept", seconds=delay, every=4, drop=True)
    trouble = Trouble(tmp_path, cluster, grace=grace, max_running=max_running)
    trouble.finish()
    closed = trouble.tokens("closed")
    until(lambda: closed <= set(trouble.arrived()), "the server has taken the last one too", delay + 60)
    until(lambda: (time.sleep(1.1), trouble.root.pump(), closed <= trouble.tokens("duplicate"))[-1], "each is told of")
    trouble.finish()
    late = {token: job for token, job in trouble.arrived().items() if token in closed}
    assert len(late) >= 2 and set(late) == closed == trouble.tokens("duplicate")
    assert {job["exit_status"] for job in late.values()} <= {None, 97, 271}
    assert len(trouble.arrived()) == JOBS + len(late)


@pytest.mark.parametrize("fault", ["down", "hung", "empty_answer"])
def test_a_server_that_is_away(tmp_path: Path, cluster: Cluster, size: Size, fault: str) -> None:
    """Longer than the grace: jobs end meanwhile, and nobody can say what became of them."""
    seconds = {"down": 20, "hung": 60, "empty_answer": 20}[fault] if size.long else {"hung": 15}.get(fault, 6)
    trouble = Trouble(tmp_path, cluster, grace=2).begin()
    codes = []
    with cluster.faulty(fault):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if fault != "hung":  # a pump by hand would sit there for half a minute
                codes.append(trouble.root.agent("pump")[0])
            time.sleep(0.5)
    assert fault == "hung" or 1 in codes, "nobody noticed: this test shows nothing"
    trouble.finish()
    assert not trouble.tokens("duplicate")


def test_a_server_that_dies_with_every_request(tmp_path: Path, cluster: Cluster) -> None:
    """Neither the job nor the heartbeat ever arrives, and nobody can know; nothing in the queue wakes the relay."""
    root = PbsRoot(tmp_path / "root", cluster, grace=2, heartbeat=0.1)
    root.drop("it")
    with cluster.faulty("delay_accept", drop=True):
        assert not root.pump()["submitted"]
        cluster.kill_server()
        cluster.start_server()
    assert not cluster.table()
    until(lambda: root.starts("it"), "it runs, and nobody pumped", 120)
    root.finish(1)
    assert root.starts("it") == 1 and root.flag("it")[0] == "DONE"
