"""A queue that is closed for longer than the last of our jobs lasts: the beat that comes meanwhile can arm no other."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.agentroot import until
from pbs.cluster import Cluster
from pbs.test_relay import PbsRoot, Sampler


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.1, ncpus=8, daemon_seconds=2) as made:
        yield made


def test_the_beat_far_ahead_is_what_is_left(tmp_path: Path, cluster: Cluster) -> None:
    root = PbsRoot(tmp_path / "root", cluster, max_queued=10, max_running=2, max_total=12, heartbeat=0.05)
    names = ["job%02d" % number for number in range(24)]
    for name in names:
        root.drop(name, seconds=2)
    reserve = Path(root.path, "heartbeat", "reserve.hb")
    with Sampler(root) as sampler:
        root.pump()
        until(reserve.exists, "one far ahead", 60)
        until(lambda: '"id": ""' not in reserve.read_text() and '"id":""' not in reserve.read_text(), "and its id")
        cluster.set_queue("enabled", False)
        refused = root.outcomes()["refused"]

        def alone() -> bool:
            """All that ran is over: killed, so that no tail says so. What the relay holds wakes nobody."""
            cluster.kill_all_jobs()
            time.sleep(0.3)
            alive = [job["state"] for job in cluster.table() if job["state"] not in "FX"]
            return set(alive) <= {"W", "H"} and [job["state"] for job in root.beats()] == ["W"]

        until(alone, "nothing but that one", 60)
        time.sleep(4)
        assert alone()
        # A job that was queued may have been killed here at its first instruction: that one never starts again.
        left = [entry.job for entry in root.spool.waiting_entries()]
        assert left, "all went before: this test shows nothing"
        assert root.outcomes()["refused"] >= refused
        cluster.set_queue("enabled", True)
        # Twelve hours go by: a moment at this interval, but longer than a test should take.
        moved = cluster.run("qalter", "-a", time.strftime("%Y%m%d%H%M.%S", time.localtime(time.time() + 1)),
                            root.beats()[0]["id"])
        assert moved.returncode == 0, moved.stderr
        until(lambda: all(root.starts(name) for name in left), "the others, without a pump by hand", 120)
        root.finish(len(names))
    assert [root.starts(name) for name in left] == [1] * len(left)
    assert {root.starts(name) for name in names} <= {0, 1}
    assert sampler.waiting <= 10 and sampler.live <= 12, (sampler.waiting, sampler.live)
