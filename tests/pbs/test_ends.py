"""How a job can end under PBS, what the user is told of it, and that the relay goes on: by itself, or by one sync."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.agentroot import until
from chasqui_agent import files
from chasqui_client import states
from pbs.cluster import Cluster
from pbs.test_relay import PbsRoot

HUNGRY = "exec python3 -c 'import time; b = b\"x\" * (90 << 20); time.sleep(300)'"
INTERVAL = 0.5


@pytest.fixture(scope="module")
def one_cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.05, daemon_seconds=2) as made:
        made.set_server("node_fail_requeue", 0.5)
        yield made


@pytest.fixture
def cluster(one_cluster: Cluster) -> Iterator[Cluster]:
    one_cluster.set_server("managers", [one_cluster.user])
    yield one_cluster
    one_cluster.set_queue("started", True)
    one_cluster.set_server("job_history_enable", True)
    for job in one_cluster.table():
        if job["state"] != "F":
            one_cluster.run("qdel", "-W", "force", job["id"])
    one_cluster.until(lambda: all(job["state"] == "F" for job in one_cluster.table()), "an empty queue")


class Ground(PbsRoot):
    """A root with room for one payload."""

    def __init__(self, path: Path, cluster: Cluster, heartbeat: float = 0.03, grace: float = 1) -> None:
        super().__init__(path, cluster, heartbeat=heartbeat, max_running=1, max_queued=3 if heartbeat else 2,
                         grace=grace, query_interval=INTERVAL)

    def hand_over(self, name: str, rerun: bool = False, **more: object) -> None:
        """A script as a session leaves it, with its record; the others are dropped in by hand."""
        self.drop(name, **more)
        shard = os.path.join(self.spool.waiting, "500", "session-%s.new" % name)
        os.makedirs(self.spool.meta_dir(name, 1))
        record = {"job": name, "attempt": 1, "name": name, "rerun": rerun}
        files.write_json(os.path.join(self.spool.meta_dir(name, 1), "job.json"), record)
        os.makedirs(shard)
        os.rename(os.path.join(self.spool.waiting, name + ".sh"), os.path.join(shard, "000.%s.1.sh" % name))

    def running(self, name: str) -> str:
        """The id of a job, once its payload runs."""
        until(lambda: self.starts(name), name + " runs")
        return self.events(name, "submitted")[0]["pbs"]

    def settled(self, name: str) -> str:
        return self.spool.settled_state(name, 1)

    def told(self, name: str) -> tuple[str, str]:
        """The client's word for a job's end and the reason, by the one record of an end."""
        records = self.events(name)
        ends = [record for record in records if record["ev"] in ("ended", "cancelled")]
        assert len(ends) == 1, ends
        assert self.settled(name) == ("cancelled" if ends[0]["ev"] == "cancelled" else "completed")
        assert self.settled(name) == "cancelled" or self.flag(name)[0] == ends[0]["state"]
        return client_state(records), ends[0]["why"]


def client_state(records: list[dict]) -> str:
    """Where the client's ledger stands after these records."""
    state, there = states.QUEUED_LOCAL, False
    for record in records:
        there = record["ev"] in ("submitted", "adopted") or (there and record["ev"] != "closed")
        state = states.state_after(record["ev"], record.get("state", ""), state, there)
    return state


# -- the table ---------------------------------------------------------------------------------------------------------


class End(NamedTuple):
    """text, directives: of the script; happens: what is done to the job once it runs; starts: of its payload."""

    text: str
    happens: Callable[[Ground, str], object]
    state: str
    why: str
    directives: str = ""
    history: bool = True
    rerun: bool = False
    starts: int = 1


LONG = "sleep 300"
WAITS = "[ -e second ] && exit 0; touch second; sleep 300"


def nothing(root: Ground, job_id: str) -> None:
    """The script itself, or a limit of its own, is the end."""


def qdel(root: Ground, job_id: str) -> None:
    assert root.cluster.run("qdel", job_id).returncode == 0


def cancel(root: Ground, job_id: str) -> None:
    assert root.agent("cancel", "it")[0] == 0


def whole_job_is_killed(root: Ground, job_id: str) -> None:
    root.cluster.kill_job(job_id)


def mom_restarts(root: Ground, job_id: str) -> None:
    root.cluster.restart_mom()


def node_is_lost(root: Ground, job_id: str) -> None:
    """For longer than node_fail_requeue, then it is back."""
    root.cluster.vanish(2.5)


WALLTIME = "#PBS -l walltime=1"
MEMORY = "#PBS -l select=1:ncpus=1:mem=40mb"
KILL_ME = "kill -9 $$"
GONE = "gone from the scheduler without a trace"

ENDS = {
    "qdel by hand": End(LONG, qdel, "CANCELLED", "deleted in PBS"),
    "walltime": End(LONG, nothing, "FAILED", "walltime", WALLTIME),
    "memory": End(HUNGRY, nothing, "FAILED", "memory", MEMORY),
    "payload killed": End(KILL_ME, nothing, "FAILED", "exit 137"),
    "killed": End(LONG, whole_job_is_killed, "FAILED", "killed (265)"),
    "mom restart": End(LONG, mom_restarts, "FAILED", "node lost"),
    "node lost": End(LONG, node_is_lost, "FAILED", "node lost"),
    "mom restart, rerun": End(WAITS, mom_restarts, "COMPLETED", "", rerun=True, starts=2),
    "node lost, rerun": End(WAITS, node_is_lost, "COMPLETED", "", rerun=True, starts=2),
    "cancel": End(LONG, cancel, "CANCELLED", "cancelled"),
    "killed, no history": End(LONG, whole_job_is_killed, "LOST", GONE, history=False),
    "qdel by hand, no history": End(LONG, qdel, "FAILED", "terminated", history=False),
    "walltime, no history": End(LONG, nothing, "FAILED", "terminated", WALLTIME, history=False),
    "good end after TERM, no history": End("trap 'exit 0' TERM; sleep 300 & wait", qdel, "FAILED", "terminated",
                                           history=False),
    "cancel, no history": End(LONG, cancel, "CANCELLED", "cancelled", history=False),
    "payload killed, no history": End(KILL_ME, nothing, "FAILED", "exit 137", history=False),
    "mom restart, rerun, no history": End(WAITS, mom_restarts, "COMPLETED", "", rerun=True, starts=2, history=False),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_what_is_told_of_an_end_and_the_relay_goes_on(tmp_path: Path, cluster: Cluster, end: End) -> None:
    """Nobody pumps: what woke the relay is a tail, or the heartbeat where none could run."""
    cluster.set_server("job_history_enable", end.history)
    root = Ground(tmp_path / "root", cluster)
    root.hand_over("it", rerun=end.rerun, text=end.text, directives=end.directives)
    root.pump()
    root.drop("next")
    end.happens(root, root.running("it"))
    until(lambda: root.settled("it") and root.settled("next"), "both ended, by the relay alone", 120)
    assert root.told("it") == (end.state, end.why)
    assert root.told("next") == ("COMPLETED", "")
    assert (root.starts("it"), root.starts("next")) == (end.starts, 1)
    assert len(root.events("it", "requeued")) == end.starts - 1


NO_TAIL = ["killed", "killed, no history", "mom restart", "node lost"]


@pytest.mark.parametrize("end", [ENDS[name] for name in NO_TAIL], ids=NO_TAIL)
def test_the_only_live_job_is_gone_without_a_heartbeat_and_one_sync_restarts_the_relay(
        tmp_path: Path, cluster: Cluster, end: End) -> None:
    """Its flag may still come, and is waited for long: that keeps the next job waiting for no sync."""
    cluster.set_server("job_history_enable", end.history)
    root = Ground(tmp_path / "root", cluster, heartbeat=0, grace=4)
    root.drop("it", text=end.text)
    root.drop("next")
    root.drop("last")
    root.pump()
    job_id = root.running("it")
    end.happens(root, job_id)
    until(lambda: (cluster.job(job_id) or {"state": "F"})["state"] == "F", "PBS has noticed")
    time.sleep(3)  # a node comes back, and a round is allowed
    assert root.starts("next") == 0
    root.pump()
    until(lambda: root.starts("next") == root.starts("last") == 1, "the others, after that one pump")
    root.finish(3)
    assert root.told("it") == (end.state, end.why)


# -- before it starts --------------------------------------------------------------------------------------------------


def queued(tmp_path: Path, cluster: Cluster, **more: object) -> tuple[Ground, str]:
    """A root whose job "it" is queued and does not start."""
    cluster.set_queue("started", False)
    root = Ground(tmp_path / "root", cluster, heartbeat=0)
    root.drop("it", **more)
    root.pump()
    return root, root.events("it", "submitted")[0]["pbs"]


def notes(root: Ground) -> dict[str, str]:
    """What the last query round knows of jobs that do not start."""
    until(lambda: (time.sleep(INTERVAL), root.pump()["queries"])[-1], "a query round")
    return json.loads(Path(root.path, "snapshot.json").read_text())["notes"]


@pytest.mark.parametrize("history, told", [
    (True, ("CANCELLED", "deleted in PBS before it started")), (False, ("LOST", GONE + ", before it started"))])
def test_a_job_deleted_before_it_starts_never_runs(
        tmp_path: Path, cluster: Cluster, history: bool, told: tuple[str, str]) -> None:
    cluster.set_server("job_history_enable", history)
    root, job_id = queued(tmp_path, cluster)
    qdel(root, job_id)
    cluster.set_queue("started", True)
    until(lambda: (time.sleep(INTERVAL), root.pump(), root.settled("it"))[-1], "it is settled")
    assert root.told("it") == told
    assert root.starts("it") == 0


HELD = "held by PBS (Hold_Types s)"  # looked for in every tenth round


def test_held_for_ever_by_pbs_is_said_so(tmp_path: Path, cluster: Cluster) -> None:
    """As after too many failed starts: a hold that no user can lift. Lifted, it runs as if nothing had been."""
    root, job_id = queued(tmp_path, cluster)
    assert cluster.run("qhold", "-h", "s", job_id).returncode == 0
    until(lambda: (time.sleep(INTERVAL), notes(root).get(job_id, ""))[-1].startswith(HELD), "it is said")
    cluster.set_queue("started", True)
    assert cluster.run("qrls", "-h", "s", job_id).returncode == 0
    root.finish(1)
    assert root.told("it") == ("COMPLETED", "") and root.starts("it") == 1


def test_held_by_a_dependency_that_was_deleted_is_said_so(tmp_path: Path, cluster: Cluster) -> None:
    """Where what it depends on is deleted before it ran, even afterany holds for ever."""
    before = cluster.submit("true\n", "-h")
    root, job_id = queued(tmp_path, cluster, directives="#PBS -W depend=afterany:" + before)
    assert cluster.run("qdel", before).returncode == 0
    until(lambda: (time.sleep(INTERVAL), notes(root).get(job_id, ""))[-1].startswith(HELD), "it is said")
    assert root.starts("it") == 0 and not root.settled("it")


def test_a_request_accepted_after_its_token_was_closed_is_not_lost_without_a_history(
        tmp_path: Path, cluster: Cluster) -> None:
    """The pump that closed the token is killed before it queues the script again; then PBS has the job after all. It
    ends unrun, nobody tells how, and the payload runs once, under a new token."""
    cluster.set_server("job_history_enable", False)
    root = Ground(tmp_path / "root", cluster, heartbeat=0)
    root.drop("it")
    cluster.fault("delay_accept", drop=True)
    root.pump()
    assert os.listdir(root.spool.submitting)
    fatal = {"CHASQUI_FAULT": "marks.close.after", "CHASQUI_FAULT_ONCE": str(tmp_path / "killed")}
    until(lambda: (time.sleep(INTERVAL), root.agent("pump", **fatal)[0])[-1] == -9, "killed behind the closing")
    cluster.set_queue("started", False)
    cluster.clear("delay_accept")
    cluster.until(lambda: [job for job in cluster.table() if job["state"] == "Q"], "accepted after all")
    until(lambda: (time.sleep(INTERVAL), root.pump(), len(root.events("it", "submitted")) == 1)[-1], "submitted again")
    cluster.set_queue("started", True)
    root.finish(1)
    assert root.told("it") == ("COMPLETED", "") and root.starts("it") == 1
