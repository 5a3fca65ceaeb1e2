"""Faults on demand: each one, what the client sees of it, and what became of the job."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from pbs.cluster import Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.02, nodes=("pbshost", "node2")) as made:
        yield made


@pytest.fixture(autouse=True)
def healthy(cluster):
    yield
    cluster.clear()


def named(cluster: Cluster, name: str) -> list[str]:
    return [job["id"] for job in cluster.table() if job["name"] == name]


def killed_after(cluster: Cluster, seconds: float, *command: str) -> str:
    """What the command printed before it was killed."""
    child = subprocess.Popen(list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             env=cluster.environment, cwd=cluster.user_home)  # fmt: skip
    with contextlib.suppress(subprocess.TimeoutExpired):
        return child.communicate("true\n", timeout=seconds)[0]
    child.kill()
    return child.communicate()[0]


def test_down_is_refused_at_once_and_json_is_empty_and_valid(cluster):
    with cluster.faulty("down"):
        cluster.until(lambda: cluster.run("qselect").returncode == 162, "the server is down")
        assert cluster.run("qsub", "-f", input="true\n").returncode == 162
        assert cluster.run("qdel", "1").returncode == 162
        done = cluster.run("qstat", "-f", "-F", "json")
        assert done.returncode == 255 and '"pbs_server":"pbshost"\n}' in done.stdout
        assert done.stderr.endswith("Connection refused\nqstat: cannot connect to server pbshost (errno=15010)\n")
    cluster.until(lambda: cluster.run("qselect").returncode == 0, "the server is back")
    cluster.until(lambda: cluster.ask("nodes")["pbshost"]["up"], "the mom is back")
    cluster.wait_for(cluster.submit("true\n"))


def test_a_job_that_ends_while_the_server_is_down_is_reported_later(cluster):
    number = cluster.submit("until [ -e $HOME/go ]; do sleep 0.02; done; exit 5\n")
    cluster.wait_for(number, "R")
    cluster.fault("down", seconds=1)
    (cluster.user_home / "go").touch()
    assert cluster.wait_for(number)["exit_status"] == 5
    assert cluster.job(number)["run_count"] == 1


def test_hung_answers_nobody_and_recovers(cluster):
    with cluster.faulty("hung"):
        assert killed_after(cluster, 1.0, "qselect") == ""
        assert killed_after(cluster, 1.0, "qsub", "-f", "-N", "direct") == ""
    assert cluster.run("qselect").returncode == 0
    time.sleep(0.5)
    assert named(cluster, "direct") == []  # killed while connecting: the request never left


def test_what_the_background_qsub_holds_is_queued_when_a_hung_server_answers_again(cluster):
    cluster.submit("true\n", "-h")  # warms it
    with cluster.faulty("hung"):
        assert killed_after(cluster, 1.0, "qsub", "-h", "-N", "later") == ""
        assert named(cluster, "later") == []
    cluster.until(lambda: named(cluster, "later"), "the job of the client that was killed")


def test_a_stopped_server_is_the_same(cluster):
    cluster.hang_server()
    try:
        assert killed_after(cluster, 1.0, "qstat") == ""
    finally:
        cluster.resume_server()
    assert cluster.run("qselect").returncode == 0


@pytest.mark.parametrize("option", [(), ("-f",)])
def test_every_second_reply_is_lost_after_the_job_is_queued(cluster, option):
    name = "lost" + "".join(option)
    with cluster.faulty("lose_reply", every=2):
        ends = [cluster.run("qsub", *option, "-h", "-N", name, input="true\n") for _ in range(4)]
    assert [end.returncode for end in ends] == [0, 183, 0, 183]
    assert [bool(end.stdout) for end in ends] == [True, False, True, False]
    assert len(named(cluster, name)) == 4


def test_a_submission_is_accepted_late_though_its_client_was_sent_away(cluster):
    with cluster.faulty("delay_accept", seconds=1.0, drop=True):
        assert cluster.run("qsub", "-f", "-h", "-N", "late", input="true\n").returncode == 183
        assert named(cluster, "late") == []
        cluster.until(lambda: named(cluster, "late"), "the late job")


def test_a_submission_is_accepted_late_though_its_client_was_killed(cluster):
    with cluster.faulty("delay_accept"):
        assert killed_after(cluster, 1.0, "qsub", "-f", "-h", "-N", "hanging") == ""
        assert cluster.run("qselect", "-N", "hanging").stdout == ""  # other requests are answered
    cluster.until(lambda: named(cluster, "hanging"), "the job once the server accepts again")


def test_a_slow_submission_gets_its_id(cluster):
    began = time.monotonic()
    with cluster.faulty("slow_qsub", seconds=1.0):
        assert cluster.run("qsub", "-h", input="true\n").stdout
    assert time.monotonic() - began >= 1.0


def test_hosts_are_refused(cluster):
    with cluster.faulty("refuse_hosts", hosts=["node2"]):
        done = cluster.run("qsub", input="true\n", node="node2")
        assert (done.returncode, done.stderr) == (159, "qsub: Job submission is not allowed from this host\n")
        assert cluster.run("qsub", "-h", input="true\n").returncode == 0
        assert cluster.run("qselect", node="node2").returncode == 0


def test_a_job_submits_from_the_host_it_runs_on(cluster):
    cluster.submit("sleep 1\n", "-l", "ncpus=8")
    number = cluster.submit("qsub -h -N nested <<EOF\ntrue\nEOF\nhostname >/dev/null\n", "-l", "ncpus=8")
    cluster.wait_for(number)
    nested = cluster.until(lambda: named(cluster, "nested"), "the job of the job")[0]
    host = cluster.job(number)["node"]
    assert cluster.attributes(nested)["Submit_Host"] == host


def test_an_empty_answer_with_exit_0(cluster):
    number = cluster.submit("true\n", "-h")
    with cluster.faulty("empty_answer"):
        for command in (["qselect"], ["qstat", number], ["qstat", "-f", "-w", number]):
            done = cluster.run(*command)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert number in cluster.run("qselect").stdout


def test_an_unknown_fault_is_an_error(cluster):
    with pytest.raises(Exception, match="nonsense"):
        cluster.fault("nonsense")


def test_forty_submissions_at_once(cluster):
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(cluster.submit("true\n", "-h"))) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 40


def test_nothing_is_left_when_a_cluster_ends():
    with Cluster(scale=0.02) as cluster:
        number = cluster.submit("setsid sleep 600 &\necho $! >$HOME/pid\nsleep 600\n")
        path = cluster.user_home / "pid"
        detached = int(cluster.until(lambda: path.exists() and path.read_text().strip(), "a detached child"))
        cluster.wait_for(number, "R")
        folder = cluster.folder
    assert not folder.exists()
    with contextlib.suppress(ProcessLookupError):
        os.kill(detached, signal.SIGCONT)
        with open("/proc/%d/stat" % detached) as stat:
            assert stat.read().rpartition(")")[2].split()[0] == "Z"
