"""Server, mom and node going away and coming back: what is kept, what runs twice, and with which Exit_status."""

import os
from collections.abc import Iterator

import pytest

from pbs.cluster import Cluster

RUNS = "echo $$ >>$HOME/$PBS_JOBID.runs\nuntil [ -e $HOME/go ]; do sleep 0.05; done\n"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.02, daemon_seconds=0) as made:
        yield made


def runs(cluster: Cluster, number: str) -> list[int]:
    """Process ids of the runs that began."""
    path = cluster.user_home / (number + ".runs")
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def begin(cluster: Cluster, *options: str) -> str:
    number = cluster.submit(RUNS, *options)
    cluster.until(lambda: runs(cluster, number), number + " runs")
    return number


def let_go(cluster: Cluster) -> None:
    (cluster.user_home / "go").touch()


def alive(pid: int) -> bool:
    try:
        with open("/proc/%d/stat" % pid) as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_restart_of_the_server_keeps_queue_and_running_jobs(cluster):
    held = cluster.submit("true\n", "-h", "-N", "held", "-v", "A=1")
    number = begin(cluster)
    cluster.until(lambda: cluster.job(number)["substate"] == 42, "the mom has reported it")
    cluster.stop_server()
    cluster.start_server()
    assert cluster.job(held)["state"] == "H"
    let_go(cluster)
    assert cluster.wait_for(number)["exit_status"] == 0
    assert (cluster.job(number)["run_count"], len(runs(cluster, number))) == (1, 1)
    assert int(cluster.submit("true\n").partition(".")[0]) == 3


@pytest.mark.parametrize("options", [(), ("-r", "n")])
def test_a_job_in_substate_41_runs_again_after_a_restart(cluster, options):
    cluster.set_server("mock_started", 100000.0)
    number = begin(cluster, *options)
    assert cluster.job(number)["substate"] == 41
    cluster.stop_server()
    cluster.start_server()
    let_go(cluster)
    cluster.until(lambda: len(runs(cluster, number)) == 2, "the second run")
    assert cluster.wait_for(number)["run_count"] == 2


def test_a_killed_server_loses_no_job_and_jumps_to_the_next_thousand(cluster):
    numbers = [cluster.submit("true\n", "-h") for _ in range(5)]
    cluster.kill_server()
    assert cluster.run("qselect").returncode == 162
    cluster.start_server()
    assert cluster.run("qselect").stdout.split() == numbers
    assert cluster.submit("true\n", "-h") == "1000.pbshost"


def test_a_restarted_mom_has_killed_its_jobs_and_those_that_may_run_again(cluster):
    again, once = begin(cluster), begin(cluster, "-r", "n")
    cluster.kill_mom()
    assert [cluster.job(number)["state"] for number in (again, once)] == ["R", "R"]
    assert cluster.run("qdel", once).returncode == 222
    assert all(alive(runs(cluster, number)[0]) for number in (again, once))
    cluster.start_mom()
    ended = cluster.wait_for(once)
    assert (ended["exit_status"], ended["substate"], ended["run_count"]) == (-4, 91, 1)
    cluster.until(lambda: len(runs(cluster, again)) == 2, "the second run")
    assert not alive(runs(cluster, again)[0])
    assert cluster.attributes(again)["Exit_status"] == "-4"  # of a job that runs: not its own
    let_go(cluster)
    assert cluster.wait_for(again)["exit_status"] == 0


def test_a_mom_that_died_when_it_had_cleared_a_job_up_and_not_said_so(cluster):
    """The server has its end since it is in E: it stayed there for ever."""
    cluster.set_server("mock_exit", 2.0)
    number = cluster.submit("true\n")
    cluster.until(lambda: cluster.job(number)["state"] == "E", "it ends")
    cluster.fault("down")
    cluster.until(lambda: not list((cluster.pbs_home() / "mom_priv" / "jobs").iterdir()), "it is cleared up")
    cluster.kill_mom()
    cluster.clear()
    cluster.start_mom()
    assert cluster.wait_for(number)["exit_status"] == 0


def test_a_lost_nodes_jobs_run_elsewhere_while_the_old_processes_go_on():
    with Cluster(scale=0.02, nodes=("one", "two"), ncpus=1, daemon_seconds=0) as cluster:
        cluster.set_server("node_fail_requeue", 0.5)
        number = begin(cluster)
        first = cluster.job(number)["node"]
        cluster.vanish(4.0, first)
        cluster.until(lambda: len(runs(cluster, number)) == 2, "the second run")
        assert alive(runs(cluster, number)[0])
        job = cluster.job(number)
        assert (job["run_count"], job["exit_status"]) == (2, -20)
        assert job["node"] != first
        cluster.until(lambda: not alive(runs(cluster, number)[0]), "the node is back and drops its old run")
        let_go(cluster)
        assert cluster.wait_for(number)["exit_status"] == 0


def test_a_lost_nodes_job_runs_again_on_the_same_node_once_that_is_back(cluster):
    cluster.set_server("node_fail_requeue", 0.5)
    number = begin(cluster)
    cluster.vanish(1.5)
    cluster.until(lambda: len(runs(cluster, number)) == 2, "the second run")
    assert not alive(runs(cluster, number)[0])
    let_go(cluster)
    assert cluster.wait_for(number)["exit_status"] == 0


def test_a_lost_nodes_job_that_may_not_run_again_ends(cluster):
    cluster.set_server("node_fail_requeue", 0.5)
    number = begin(cluster, "-r", "n")
    cluster.kill_mom()
    assert cluster.wait_for(number)["exit_status"] == -20
    assert alive(runs(cluster, number)[0])
    cluster.start_mom()
    cluster.until(lambda: not alive(runs(cluster, number)[0]), "the mom has cleared up")


def test_qrerun(cluster):
    number = begin(cluster)
    cluster.set_server("managers", [])
    assert cluster.run("qrerun", number).returncode == 159
    cluster.set_server("managers", None)
    fixed = begin(cluster, "-r", "n")
    cluster.set_server("managers", [cluster.user])
    assert cluster.run("qrerun", fixed).returncode == 190
    runs_again(cluster, "qrerun", number)
    runs_again(cluster, "qrerun", "-W", "force", fixed)
    let_go(cluster)
    assert cluster.wait_for(fixed)["exit_status"] == 0


def runs_again(cluster: Cluster, *command: str) -> None:
    number = command[-1]
    assert cluster.run(*command).returncode == 0
    cluster.until(lambda: len(runs(cluster, number)) == 2, "the second run of " + number)
    job = cluster.job(number)
    assert (job["state"], job["run_count"], job["exit_status"]) == ("R", 2, -11)


def test_several_moms_share_the_jobs():
    with Cluster(scale=0.02, nodes=("one", "two"), ncpus=2, daemon_seconds=0) as cluster:
        numbers = [begin(cluster) for _ in range(4)]
        waiting = cluster.submit(RUNS)
        assert sorted(cluster.job(number)["node"] for number in numbers) == ["one", "one", "two", "two"]
        cluster.until(lambda: "ncpus (R: 1 A: 0 T: 4)" in cluster.attributes(waiting).get("comment", ""), "a comment")
        let_go(cluster)
        for number in [*numbers, waiting]:
            cluster.wait_for(number)
        assert os.path.isdir(cluster.pbs_home("two") / "mom_priv")
