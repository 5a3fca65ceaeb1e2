"""Retries over PBS: what walltime, memory, a lost node or its own exit code ended is tried again by the relay alone."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.agentroot import until
from agent.test_dependents import publish_dependents
from agent.test_retries import hand_over, rule
from chasqui_agent import fault, retries  # noqa: F401  register its points
from pbs.cluster import Cluster
from pbs.test_ends import INTERVAL, Ground, mom_restarts, nothing, one_cluster, qdel, whole_job_is_killed  # noqa: F401
from pbs.test_relay import PbsRoot

# Each start notes where it runs; the first attempt does what is to be seen, the next one ends well.
FIRST = "#!/bin/sh\n%s\necho $(basename \"$PWD\") >> %s/it\ncase $PWD in *.2) %s;; esac\n%s\n"
HUNGRY = "exec python3 -c 'import time; b = b\"x\" * (90 << 20); time.sleep(%d)'"


@pytest.fixture
def cluster(one_cluster: Cluster) -> Iterator[Cluster]:  # noqa: F811
    yield one_cluster
    one_cluster.set_server("job_history_enable", True)
    for job in one_cluster.table():
        if job["state"] != "F":
            one_cluster.run("qdel", "-W", "force", job["id"])
    one_cluster.until(lambda: all(job["state"] == "F" for job in one_cluster.table()), "an empty queue")


def script(root: PbsRoot, text: str = "sleep 300", directives: str = "", second: str = "exit 0") -> str:
    return FIRST % (directives, root.ran, second, text)


def ran(root: PbsRoot) -> list[str]:
    path = Path(root.ran, "it")
    return path.read_text().split() if path.exists() else []


def over(root: PbsRoot, attempt: int) -> str:
    """Wait, without a pump by hand, until that attempt is the job's last and over; its end."""
    until(lambda: root.spool.settled_state("it", attempt), "its end, by the relay alone", 120)
    assert root.spool.final_attempt("it", 1) == attempt
    return root.flag("it", attempt)[0]


ENDS = {
    "walltime": ("sleep 300", "#PBS -l select=1:ncpus=1,walltime=1", nothing, "walltime",
                 {"walltime": "x60", "mem": "x4"}, "walltime raised to 00:01:00", "sleep 3; exit 0"),
    "memory": (HUNGRY % 300, "#PBS -l select=1:ncpus=1:mem=40mb,walltime=1:00:00", nothing, "memory",
               {"walltime": "x60", "mem": "x4"}, "mem raised to 160mb", HUNGRY % 3),
    "killed": ("sleep 300", "", whole_job_is_killed, "SIGKILL", {"queue": "workq"}, "queue set to workq", "exit 0"),
    "node lost": ("sleep 300", "#PBS -l walltime=1:00:00", mom_restarts, "node", {"walltime": "x2"}, "", "exit 0"),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_next_attempt_has_what_the_first_one_lacked(tmp_path: Path, cluster: Cluster, name: str) -> None:
    text, directives, happens, condition, changes, changed, second = ENDS[name]
    root = Ground(tmp_path / "root", cluster)
    hand_over(root, "it", script(root, text, directives, second), rule(2, condition, set=changes))
    root.pump()
    until(lambda: ran(root), "it runs")
    happens(root, root.events("it", "submitted")[0]["pbs"])
    assert over(root, 2) == "DONE" and ran(root) == ["it", "it.2"]
    told, = [record["why"] for record in root.events("it", "retried")]
    ended = root.events("it", "ended")[0]["why"]
    assert told == "attempt 2 of 3 after %s%s" % (ended, ", " + changed if changed else "")
    assert [record["attempt"] for record in root.events("it", "started")] == [1, 2]


def test_a_lost_job_is_tried_again_where_that_is_asked_for(tmp_path: Path, cluster: Cluster) -> None:
    """Its files are copied, not moved: nobody knows whether somebody still writes to them."""
    cluster.set_server("job_history_enable", False)
    root = Ground(tmp_path / "root", cluster)
    hand_over(root, "it", script(root, "echo a >kept; sleep 300", "", "cat kept; exit"), rule(1, "lost", resume=True))
    root.pump()
    until(lambda: os.path.exists(os.path.join(root.spool.work_dir("it", 1), "kept")), "it writes")
    whole_job_is_killed(root, root.events("it", "submitted")[0]["pbs"])
    assert over(root, 2) == "DONE" and root.flag("it", 1)[0] == "LOST"
    for attempt in (1, 2):
        assert Path(root.spool.work_dir("it", attempt), "kept").read_text() == "a\n"


def test_silence_is_no_end(tmp_path: Path, cluster: Cluster) -> None:
    """The server is away for longer than the grace, and its job runs on."""
    root = Ground(tmp_path / "root", cluster)
    text = "while [ ! -e %s/go ]; do sleep 0.1; done" % root.ran
    hand_over(root, "it", script(root, text), rule(3, "lost", "node", "1-255", "walltime"))
    root.pump()
    until(lambda: ran(root), "it runs")
    cluster.kill_server()
    for _ in range(5):
        time.sleep(INTERVAL)
        root.agent("pump")
    assert root.spool.settled_state("it", 1) == "" and not os.path.exists(root.spool.work_dir("it", 2))
    Path(root.ran, "go").touch()
    cluster.start_server()
    assert over(root, 1) == "DONE" and ran(root) == ["it"]


@pytest.mark.parametrize("history", [True, False])
def test_what_she_deletes_by_hand_is_not_tried_again(tmp_path: Path, cluster: Cluster, history: bool) -> None:
    """Without a history it looks terminated, as by walltime: who terminated it is not known."""
    cluster.set_server("job_history_enable", history)
    root = Ground(tmp_path / "root", cluster)
    hand_over(root, "it", script(root), rule(3, "1-255", "SIGTERM", "SIGKILL", "walltime", "memory", "node"))
    root.pump()
    until(lambda: ran(root), "it runs")
    qdel(root, root.events("it", "submitted")[0]["pbs"])
    until(lambda: root.spool.settled_state("it", 1), "its end", 120)
    assert root.spool.final_attempt("it", 1) == 1 and root.events("it", "retried") == []


POINTS = [name for name in sorted(fault.POINTS) if name.startswith(("retries.", "ending."))]


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(tmp_path: Path, cluster: Cluster, point: str) -> None:
    """Two failures, then a good end; the heartbeat does what a killed tail leaves undone, and at most one wake by
    hand."""
    root = Ground(tmp_path / "root", cluster)
    text = "case $PWD in *.3) exit 0;; esac; exit 7"
    hand_over(root, "it", script(root, text, second="exit 7"), rule(3, "7"))
    once = tmp_path / "killed"
    root.agent("pump", CHASQUI_FAULT=point, CHASQUI_FAULT_ONCE=str(once))

    def done() -> bool:
        return root.spool.settled_state("it", 3) != ""

    until(lambda: done() or not alive(root), "settled, or nothing alive that could go on", 120)
    if not done():
        root.agent("pump")
    assert over(root, 3) == "DONE" and once.exists()
    assert ran(root) == ["it", "it.2", "it.3"]
    assert {record["next"] for record in root.events("it", "retried")} == {2, 3}


def alive(root: Ground) -> bool:
    return any(job["state"] != "F" for job in root.cluster.table())


def test_nobody_waits_for_the_next_beat(tmp_path: Path, cluster: Cluster) -> None:
    """A failed job stays in PBS a while, and its own tail is the last to look: the heartbeat, a quarter of an hour
    away, is moved forward. Who waits for it is not told of the failure that its flag says meanwhile."""
    root = PbsRoot(tmp_path / "root", cluster)
    hand_over(root, "it", script(root, "exit 7"), rule(1, "7"))
    for name, condition in (("heir", "fail"), ("friend", "ok")):
        text = "#!/bin/sh\necho start >> %s/%s\n" % (root.ran, name)
        publish_dependents(root.spool, name, [(name, ["it"], text)], condition=condition)
    root.pump()
    until(lambda: root.starts("friend") and root.spool.settled_state("heir", 1), "their fate", 120)
    assert ran(root) == ["it", "it.2"] and root.spool.settled_state("heir", 1) == "blocked"
    assert root.starts("friend") == 1 and root.starts("heir") == 0
    assert [r["why"] for r in root.events("heir", "blocked")] == ["blocked by it (completed)"]


def test_alone_it_waits_for_no_beat_either(tmp_path: Path, cluster: Cluster) -> None:
    root = PbsRoot(tmp_path / "root", cluster)
    hand_over(root, "it", script(root, "exit 7"), rule(1, "7"))
    root.pump()
    until(lambda: ran(root) == ["it", "it.2"], "it is tried again, without another pump by hand", 120)
