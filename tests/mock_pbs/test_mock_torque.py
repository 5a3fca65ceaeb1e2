"""The mock as a Torque: its words and letters, what it keeps of completed jobs, and the user's own epilogue."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.agentroot import until
from pbs.cluster import Cluster

SCRIPT = "#!/bin/bash\n#PBS -l nodes=1:ppn=1,walltime=1:00:00\n%s\n"


@pytest.fixture(scope="module")
def torque() -> Iterator[Cluster]:
    with Cluster(scale=0.05, dialect="torque") as made:
        yield made


def told(cluster: Cluster, job: str) -> dict[str, str]:
    """The attributes that qstat tells of a job, each on a line of its own."""
    lines = cluster.run("qstat", "-f", "-1", job).stdout.splitlines()
    return dict(line.lstrip().split(" = ", 1) for line in lines if line.startswith("    ") and " = " in line)


def ended(cluster: Cluster, job: str) -> dict[str, str]:
    return until(lambda: told(cluster, job).get("job_state") == "C" and told(cluster, job), job + " has completed")


def test_it_says_what_it_is(torque: Cluster) -> None:
    for command in ("qsub", "qstat", "qselect", "qdel"):
        done = torque.run(command, "--version")
        assert done.returncode == 0 and done.stderr.startswith("Version: 6.1.2\n")


@pytest.mark.parametrize(("text", "status"), [("exit 3", "3"), ("kill -9 $PPID", "265")])
def test_a_completed_job_is_c_and_tells_its_exit_status_in_small_letters(
        torque: Cluster, text: str, status: str) -> None:
    job = torque.submit(SCRIPT % text)
    found = ended(torque, job)
    assert found["exit_status"] == status and "Exit_status" not in found and "comment" not in found
    everything, live = (torque.run("qselect", "-u", torque.user, *more).stdout.split()
                        for more in ([], ["-s", "EHQRTW"]))
    assert job in everything and job not in live
    assert torque.run("qselect", "-s", "C").stdout.split() == everything
    assert torque.run("qselect", "-s", "F").returncode == torque.run("qselect", "-x").returncode == 2
    assert torque.run("qdel", job).returncode == 168


def test_a_completed_job_is_forgotten(torque: Cluster) -> None:
    torque.set_server("keep_completed", 0)
    try:
        job = torque.submit(SCRIPT % "true")
        until(lambda: torque.run("qstat", job).returncode == 153, "it is unknown")
        assert torque.run("qstat", job).stderr == "qstat: Unknown Job Id Error %s\n" % job
    finally:
        torque.set_server("keep_completed", None)


def test_a_refusal_is_a_submit_error(torque: Cluster) -> None:
    done = torque.run("qsub", "-q", "nowhere", input=SCRIPT % "true")
    assert (done.returncode, done.stderr) == (170, "qsub: submit error (Unknown queue)\n")
    torque.set_server("max_queued", "[u:PBS_GENERIC=1]")
    try:
        job = torque.submit(SCRIPT % "true", "-h")
        done = torque.run("qsub", input=SCRIPT % "true")
        assert done.returncode == 226 and "Maximum number of jobs already in queue for user MSG=" in done.stderr
        assert torque.run("qdel", job).returncode == 0
    finally:
        torque.set_server("max_queued", None)


@pytest.mark.parametrize("words", [["-N", "1st"], ["-J", "1-3"]])
def test_what_its_qsub_does_not_take(torque: Cluster, words: list[str]) -> None:
    assert torque.run("qsub", *words, input=SCRIPT % "true").returncode == 2


@pytest.mark.parametrize("mode", [0o700, 0o500, 0o722, 0o300, 0o600])
def test_the_users_epilogue_is_run_unless_others_may_write_it(torque: Cluster, tmp_path: Path, mode: int) -> None:
    path, out = tmp_path / "epilogue", tmp_path / "told"
    path.write_text('#!/bin/sh\necho "$1 $2 ${10}" >%s\n' % out)
    path.chmod(mode)
    job = torque.submit(SCRIPT % "exit 5", "-l", "epilogue=%s" % path)
    assert ended(torque, job)["exit_status"] == "5"
    assert out.exists() == (mode in (0o700, 0o500))
    assert not out.exists() or out.read_text() == "%s %s 5\n" % (job, torque.user)


def test_somebody_elses_epilogue_is_not_run(torque: Cluster, tmp_path: Path) -> None:
    """Nor is one that is no file, or not there: the job knows nothing of it."""
    path, out = tmp_path / "epilogue", tmp_path / "told"
    path.write_text("#!/bin/sh\n>%s\n" % out)
    path.chmod(0o755)
    if os.getuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        path = Path("/bin/true")  # root's
    assert ended(torque, torque.submit(SCRIPT % "exit 0", "-l", "epilogue=%s" % path))["exit_status"] == "0"
    assert not out.exists()
    assert "file: %s, exit: -1, Permission Error" % path in (torque.home / "mom_logs" / "log").read_text()
    for place in (tmp_path, tmp_path / "none" / "epilogue"):
        assert ended(torque, torque.submit(SCRIPT % "exit 0", "-l", "epilogue=%s" % place))["exit_status"] == "0"


@pytest.mark.parametrize(("how", "status"), [("qdel", "271"), ("walltime", "-11")])
def test_it_runs_behind_qdel_and_the_walltime_too(torque: Cluster, tmp_path: Path, how: str, status: str) -> None:
    path, out = tmp_path / "epilogue", tmp_path / "told"
    path.write_text('#!/bin/sh\necho "$1 $2 $4 ${10}" >%s\n' % out)
    path.chmod(0o700)
    text = SCRIPT.replace("1:00:00", "1") if how == "walltime" else SCRIPT
    job = torque.submit(text % "sleep 300", "-N", "relax", "-l", "epilogue=%s" % path)
    if how == "qdel":
        until(lambda: told(torque, job)["job_state"] == "R", "it runs")
        assert not out.exists() and torque.run("qdel", job).returncode == 0
    assert ended(torque, job)["exit_status"] == status
    assert out.read_text() == "%s %s relax %s\n" % (job, torque.user, status)


def test_an_epilogue_that_the_site_does_not_want(torque: Cluster) -> None:
    torque.set_server("mock_refuse_epilogue", True)
    try:
        done = torque.run("qsub", "-l", "nodes=1,epilogue=/home/x", input=SCRIPT % "true")
        assert (done.returncode, done.stderr) == (187, "qsub: submit error (Unknown resource type)\n")
        torque.submit(SCRIPT % "true")
    finally:
        torque.set_server("mock_refuse_epilogue", None)


def test_a_job_that_is_killed_has_its_epilogue_all_the_same(torque: Cluster, tmp_path: Path) -> None:
    path, out = tmp_path / "epilogue", tmp_path / "told"
    path.write_text('#!/bin/sh\necho "${10}" >%s\n' % out)
    path.chmod(0o700)
    job = torque.submit(SCRIPT % "sleep 300", "-l", "epilogue=%s" % path)
    until(lambda: told(torque, job)["job_state"] == "R", "it runs")
    torque.kill_job(job)
    assert ended(torque, job)["exit_status"] == "265"
    assert out.read_text() == "265\n" and os.stat(out).st_uid == os.getuid()
