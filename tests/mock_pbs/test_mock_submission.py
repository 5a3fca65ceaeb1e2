"""The mock's qsub beside the captures: which -v wins, what the background qsub keeps, answers at the edges."""

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pbs.cluster import Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.05) as made:
        yield made


@pytest.fixture(scope="module")
def plain() -> Iterator[Cluster]:
    """One whose qsub leaves no background process."""
    with Cluster(scale=0.05, daemon_seconds=0) as made:
        yield made


def variables(cluster: Cluster, number: str) -> dict[str, str]:
    """The user's own ones, from the server's table."""
    job = cluster.job(number)
    assert job is not None
    return {name: value for name, value in job["variables"] if not name.startswith("PBS_O_")}


@pytest.mark.parametrize(
    ("options", "lines", "found"),
    [
        ([], ["-v A=1", "-v B=2"], {"B": "2"}),
        (["-v", "C=3"], ["-v A=1"], {"C": "3"}),
        (["-v", "A=1", "-v", "B=2"], [], {"B": "2"}),
        (["-v", "FOO=bar,TOK=x"], [], {"FOO": "bar", "TOK": "x"}),
        (["-v", "A='x,y',B"], [], {"A": "x,y", "B": "from the shell"}),
        ([], ["-v A=1", "-N n", "", "# a remark", "-h", "true", "-v D=4"], {"A": "1"}),
    ],
)
def test_the_last_v_wins_and_the_command_line_deletes_the_scripts(cluster, options, lines, found):
    script = "#!/bin/sh\n" + "".join("#PBS %s\n" % line if line.startswith("-") else line + "\n" for line in lines)
    done = cluster.run("qsub", "-h", *options, input=script, env={"B": "from the shell"})
    assert (done.returncode, done.stderr) == (0, "")
    assert variables(cluster, done.stdout.strip()) == found


def test_the_job_has_its_name_its_variables_and_home_as_its_folder(cluster):
    work = cluster.user_home / "work"
    work.mkdir()
    script = 'pwd\necho "$PBS_JOBNAME $A $PBS_O_WORKDIR $PBS_ENVIRONMENT $TMPDIR"\ntest -d "$TMPDIR" && echo there\n'
    number = cluster.submit(script, "-N", "named", "-v", "A=x y", cwd=work)
    cluster.wait_for(number)
    said = (work / ("named.o" + number.partition(".")[0])).read_text().splitlines()
    tmpdir = cluster.home / "tmp" / ("pbs." + number)
    assert said == [str(cluster.user_home), f"named x y {work} PBS_BATCH {tmpdir}", "there"]
    assert not tmpdir.exists()


def test_z_prints_nothing_and_submits_all_the_same(cluster):
    done = cluster.run("qsub", "-z", "-h", "-N", "silent", input="true\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(cluster.run("qselect", "-N", "silent").stdout.split()) == 1


def test_an_id_is_used_up_by_a_refusal(plain):
    first = int(plain.submit("true\n", "-h").partition(".")[0])
    for options in (["-q", "nowhere"], ["-l", "nosuch=1"]):
        assert plain.run("qsub", *options, input="true\n").returncode in (170, 187)
    assert plain.run("qsub", "-l", "walltime=banana", input="true\n").returncode == 166  # refused before it gets one
    assert int(plain.submit("true\n", "-h").partition(".")[0]) == first + 3


def locked_over_a_submission(cluster: Cluster, tmp_path: Path, *options: str) -> bool:
    """Whether a lock on a descriptor that qsub inherited is still held once qsub is gone and ours is closed."""
    path = tmp_path / "lock"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    command = ["qsub", *options, "-h", "-N", "locking"]
    with open(tmp_path / "out", "wb") as out:
        done = subprocess.run(command, input=b"true\n", pass_fds=[descriptor], env=cluster.environment, cwd=tmp_path,
                              stdout=out, stderr=out)  # fmt: skip
    assert done.returncode == 0
    os.close(descriptor)
    with open(path) as again:
        try:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_the_background_qsub_keeps_an_inherited_lock_and_f_does_not(tmp_path):
    with Cluster(scale=0.05, daemon_seconds=5) as cluster:
        assert not locked_over_a_submission(cluster, tmp_path, "-f")
        assert locked_over_a_submission(cluster, tmp_path)
        with open(tmp_path / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # returns when the background qsub has had its five seconds


def test_the_background_qsub_does_not_hold_stdout(cluster, tmp_path):
    """Reading qsub's pipes to their end returns at once: it closes 1 and 2."""
    done = subprocess.run(["qsub", "-h"], input="true\n", env=cluster.environment, cwd=tmp_path, capture_output=True,
                          text=True, timeout=20)  # fmt: skip
    assert done.returncode == 0


def test_a_removed_folder_is_255_through_the_background_qsub_and_nothing_with_f(cluster, tmp_path):
    cluster.submit("true\n", "-h")  # now there is one
    script = tmp_path / "s.sh"
    script.write_text("true\n")
    gone = "mkdir -p gone && cd gone && rmdir ../gone && qsub %s -h " + str(script)
    through = cluster.run(gone % "", cwd=tmp_path)
    assert (through.returncode, through.stdout) == (255, "")
    assert "Failed to recv data from background qsub" in through.stderr
    assert cluster.run(gone % "-f", cwd=tmp_path).returncode == 0


def test_a_removed_tmpdir_is_1(cluster):
    done = cluster.run("qsub", "-h", input="true\n", env={"TMPDIR": "/nonexistent"})
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first == "mkstemp: No such file or directory"
    assert second.startswith("qsub: could not create/open tmp file /nonexistent/")


def test_root_is_refused_unless_told_otherwise(plain):
    plain.set_server("acl_roots", None)
    try:
        done = plain.run("qsub", input="true\n")
        if os.getuid() == 0:
            assert (done.returncode, done.stderr) == (175, "qsub: Bad UID for job execution\n")
        else:
            assert done.returncode == 0
    finally:
        plain.set_server("acl_roots", True)


def test_a_disabled_queue_and_limits_by_name(plain):
    plain.set_queue("enabled", False)
    assert plain.run("qsub", input="true\n").returncode == 173
    plain.set_queue("enabled", True)
    plain.set_server("max_queued", "[u:%s=0]" % plain.user)
    done = plain.run("qsub", input="true\n")
    plain.set_server("max_queued", None)
    words = "qsub: Maximum number of jobs for user %s already in complex\n" % plain.user
    assert (done.returncode, done.stderr) == (38, words)


TWICE_IN_A_SECOND = """
second=$(date +%s)
while [ $(date +%s) = $second ]; do :; done
before=$(date +%s%N)
COMMAND >$HOME/out; COMMAND >$HOME/out
echo $((($(date +%s%N) - before) / 1000000))
"""


def test_qstat_sleeps_when_asked_twice_in_a_second_and_qselect_does_not(plain):
    slow, fast = (int(plain.run(TWICE_IN_A_SECOND.replace("COMMAND", name)).stdout) for name in ("qstat", "qselect"))
    assert slow >= 200 and slow > fast


def test_calls_are_counted_with_their_time(plain):
    plain.run("qselect", "-u", plain.user)
    since = plain.calls()[-1][0]
    plain.run("qstat", "1")
    plain.run("qselect", "-s", "Q")
    assert [(call[1], call[4]) for call in plain.calls("qstat", "qselect") if call[0] > since] == [
        ("qstat", ["1"]),
        ("qselect", ["-s", "Q"]),
    ]


def test_a_call_through_the_background_qsub_is_counted_too(cluster):
    before = len(cluster.calls("qsub"))
    for _ in range(3):
        cluster.submit("true\n", "-h")
    assert len(cluster.calls("qsub")) == before + 3
