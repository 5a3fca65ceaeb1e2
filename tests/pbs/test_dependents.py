"""Jobs that wait for others over PBS: one pump by hand, then the jobs' own ends, or the heartbeat, move all on."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import needs
from agent.agentroot import until
from agent.test_dependents import hand_over, order
from pbs.cluster import Cluster
from pbs.test_relay import PbsRoot


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.1, daemon_seconds=2) as made:
        yield made


def settled(root: PbsRoot, names: list[str]) -> bool:
    return all(root.spool.settled_state(name, 1) for name in names)


@pytest.mark.parametrize("version", ["3.6", "this one"])
def test_a_diamond_and_a_failed_parent(tmp_path: Path, cluster: Cluster, version: str) -> None:
    python = sys.executable if version == "this one" else needs.python36() or needs.missing("Python 3.6")
    root = PbsRoot(tmp_path / "root", cluster, python, max_queued=8, max_running=4, heartbeat=0.1)
    hand_over(root, ("a", [], 0), ("b", ["a"], 0), ("c", ["a"], 0), ("d", ["b", "c"], 0), ("x", [], 3), ("y", ["x"], 0),
              ("z", ["y", "d"], 0))
    root.pump()
    names = list("abcdxyz")
    until(lambda: settled(root, names), "all at rest, without another pump by hand", 120)
    assert [root.spool.settled_state(name, 1) for name in names] == ["completed"] * 5 + ["blocked"] * 2
    assert [root.starts(name) for name in names] == [1, 1, 1, 1, 1, 0, 0]
    intents = order(root, "intent")
    assert intents.index("a") < intents.index("b") and max(map(intents.index, "bc")) < intents.index("d")
    why = [record["why"] for record in root.log() if record["ev"] == "blocked"]
    assert why == ["blocked by x (failed)", "blocked by the-y (blocked)"]
    until(lambda: not root.beats(), "no heartbeat where nothing is left to wait for")


def test_a_chain_by_the_tails_alone(tmp_path: Path, cluster: Cluster, size) -> None:  # type: ignore[no-untyped-def]
    root = PbsRoot(tmp_path / "root", cluster, max_queued=8, max_running=4)
    names = ["n%03d" % number for number in range(300 if size.long else 20)]
    hand_over(root, *[(name, names[number - 1:number], 0) for number, name in enumerate(names)])
    root.pump()
    until(lambda: root.starts(names[-1]), "the last has started, without another pump by hand", 10 * len(names))
    root.finish(len(names))
    assert [root.starts(name) for name in names] == [1] * len(names)
    # A parent's flag lets its child go; when each is gone from the server is another matter.
    assert order(root, "intent") == names == sorted(order(root, "ended"))


def test_killed_jobs_block_their_children_by_the_heartbeat_alone(tmp_path: Path, cluster: Cluster) -> None:
    """No tail ran: nobody but the heartbeat finds out, and nothing waits in waiting/."""
    root = PbsRoot(tmp_path / "root", cluster, heartbeat=0.05)
    root.drop("slow", seconds=300)
    root.pump()
    until(lambda: root.starts("slow"), "it runs")
    hand_over(root, ("heir", ["slow"], 0), condition="any")
    hand_over(root, ("widow", ["slow"], 0))
    root.pump()
    cluster.kill_all_jobs()
    until(lambda: settled(root, ["slow", "heir", "widow"]), "its children's fate", 120)
    assert root.spool.settled_state("heir", 1) == "completed" and root.spool.settled_state("widow", 1) == "blocked"
    assert root.starts("heir") == 1 and root.starts("widow") == 0


def test_what_waits_for_a_job_that_was_told_to_end_waits_for_pbs_word_not_for_the_next_beat(
        tmp_path: Path, cluster: Cluster) -> None:
    """Its flag is not its fate: the heartbeat, a quarter of an hour away, is moved forward."""
    root = PbsRoot(tmp_path / "root", cluster)
    root.drop("long", seconds=300)
    root.pump()
    until(lambda: root.starts("long"), "it runs")
    hand_over(root, ("heir", ["long"], 0), condition="fail")
    hand_over(root, ("widow", ["long"], 0))
    root.pump()
    job = next(job for job in cluster.table() if job["state"] == "R")
    assert cluster.run("qdel", job["id"]).returncode == 0
    until(lambda: root.starts("heir") and root.spool.settled_state("widow", 1), "its children's fate", 120)
    assert root.spool.settled_state("long", 1) == "cancelled", "decided by the scheduler's word"
    why = [record["why"] for record in root.log() if record["ev"] == "blocked"]
    assert why == ["blocked by long (cancelled)"]


@pytest.mark.parametrize("point", ["dependents.told", "dependents.moved", "dependents.done"])
def test_the_tail_of_the_only_parent_is_killed(tmp_path: Path, cluster: Cluster, point: str) -> None:
    """Nothing is alive then and nothing in waiting/: the heartbeat's next beat goes on."""
    root = PbsRoot(tmp_path / "root", cluster, heartbeat=0.1)
    hand_over(root, ("a", [], 0), ("b", ["a"], 0), ("c", ["a"], 0))
    once = tmp_path / "once"
    root.agent("pump", CHASQUI_FAULT=point, CHASQUI_FAULT_ONCE=str(once))
    until(once.exists, "killed")
    time.sleep(1)
    until(lambda: settled(root, list("abc")), "the beat has gone on", 120)
    assert [root.starts(name) for name in "abc"] == [1, 1, 1]
