"""What surprised us on a real server, one test each: whatever PBS does, what the user gets is what she meant."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import needs
from agent.agentroot import AGENT, until
from chasqui_agent import marks, reconcile
from chasqui_agent import settings as agent_settings
from pbs.cluster import Cluster
from pbs.test_ends import INTERVAL, Ground, client_state, cluster, one_cluster, qdel  # noqa: F401
from pbs.test_relay import PbsRoot

RAN_WELL = ("COMPLETED", "")


def ground(tmp_path: Path, cluster: Cluster, heartbeat: float = 0, **chosen: object) -> Ground:  # noqa: F811
    root = Ground(tmp_path / "root", cluster, heartbeat)
    agent_settings.change(root.spool, **dict({"max_running": 3, "max_queued": 6}, **chosen))
    return root


def runs_once(root: Ground, *names: str) -> None:
    """Pump until these are the jobs that have ended; each ran once and well."""
    root.finish(len(names))
    assert {name: (root.told(name), root.starts(name)) for name in names} == dict.fromkeys(names, (RAN_WELL, 1))


def found_marks(root: Ground, name: str) -> marks.Marks:
    meta = root.spool.meta_dir(name, 1)
    return marks.read(meta, root.events(name, "intent")[-1]["token"])


def pump_after_a_round(root: Ground) -> dict:
    time.sleep(INTERVAL + 0.1)
    return root.pump()


# -- what a submission says --------------------------------------------------------------------------------------------


def test_a_second_v_deletes_the_first(tmp_path: Path, cluster: Cluster) -> None:  # noqa: F811
    """Of two `#PBS -v` the last wins, and one on qsub's command line deletes them all: they are merged with ours."""
    root = ground(tmp_path, cluster)
    seen = tmp_path / "seen"
    root.drop("it", "echo \"$FIRST,$SECOND,$CHASQUI_ROOT\" >'%s'" % seen,
              directives="#PBS -v FIRST=1\n#PBS -v SECOND=two")
    root.pump()
    runs_once(root, "it")
    assert seen.read_text() == "1,two,%s\n" % root.path


def test_her_hold_start_time_and_dependency(tmp_path: Path, cluster: Cluster) -> None:  # noqa: F811
    """`-h` is ours to keep (one qrls would lift it with our own hold); `-a` (local time) and depend are PBS's."""
    root = ground(tmp_path, cluster)
    before = cluster.submit("true\n", "-h")
    start = int(time.time()) + 5
    moment = time.strftime("%Y%m%d%H%M.%S", time.localtime(start))
    root.drop("it", directives="#PBS -h\n#PBS -a %s\n#PBS -W depend=afterok:%s" % (moment, before))
    root.pump()
    assert [entry.job for entry in root.spool.entries("held")] == ["it"] and not root.events("it", "intent")
    assert root.agent("release", "it")[0] == 0
    until(lambda: (root.pump(), root.events("it", "submitted"))[-1], "submitted once released")
    job_id = root.events("it", "submitted")[0]["pbs"]
    assert cluster.job(job_id)["state"] == "H"
    cluster.run("qrls", before)
    cluster.wait_for(before)
    runs_once(root, "it")
    assert float(Path(root.ran, "it").read_text().split()[1]) >= start


def test_what_depends_on_a_job_that_pbs_has_forgotten(tmp_path: Path, cluster: Cluster) -> None:  # noqa: F811
    """PBS gives an id, exit 0, and deletes the job at once without a word: F, substate 92, no Exit_status."""
    root = ground(tmp_path, cluster)
    root.drop("it", directives="#PBS -W depend=afterany:999999")
    root.drop("next")
    root.pump()
    until(lambda: (pump_after_a_round(root), root.settled("it") and root.settled("next"))[-1], "both settled")
    assert root.told("it") == ("CANCELLED", "deleted by PBS: what it depended on can never be")
    assert root.starts("it") == 0 and root.told("next") == RAN_WELL


def test_a_removed_folder_and_tmpdir(tmp_path: Path, cluster: Cluster) -> None:  # noqa: F811
    """A job's TMPDIR is removed at its end, and qsub then fails (`mkstemp`); in a removed folder its daemon does."""
    root = ground(tmp_path, cluster)
    root.drop("it")
    gone = tmp_path / "gone"
    gone.mkdir()
    words = (gone, gone, gone, sys.executable, os.path.join(AGENT, "chasqui_agent"), root.path)
    done = cluster.run("cd '%s' && rmdir '%s' && TMPDIR='%s' exec '%s' -I -S '%s' --root '%s' pump" % words)
    assert done.returncode == 0 and len(root.events("it", "submitted")) == 1, done.stdout
    runs_once(root, "it")


def test_the_head_of_a_short_job_pumps_to_its_end(tmp_path: Path, cluster: Cluster) -> None:  # noqa: F811
    """What a job leaves in the background is killed with it, a pump in the middle of a qsub too: its runner waits."""
    root = ground(tmp_path, cluster)
    cluster.set_server("max_run", "[u:PBS_GENERIC=1]")
    try:
        root.drop("first", seconds=300)
        root.pump()
        blocking = root.running("first")
        root.drop("short", seconds=1)
        pump_after_a_round(root)
        root.drop("next")
        Path(root.spool.wake, "debt").write_text("0\n")  # as where the places of ending jobs could not be filled
        cluster.kill_job(blocking)  # so that no tail runs
        until(lambda: root.starts("next"), "the head of the short job handed it over")
    finally:
        cluster.set_server("max_run", None)
    assert "head" in [record["reason"] for record in root.log() if record["ev"] == "pumped"]
    assert not os.path.exists(os.path.join(root.spool.wake, "debt"))
    root.finish(3)
    assert [root.told("short"), root.told("next")] == [RAN_WELL] * 2
    assert [root.starts(name) for name in ("first", "short", "next")] == [1] * 3


def test_a_disabled_queue_leaves_everything_waiting(tmp_path: Path, cluster: Cluster) -> None:  # noqa: F811
    """173 `Queue is not enabled` is no word about a script: a batch must not be emptied into rejected/."""
    root = ground(tmp_path, cluster)
    names = ["job%d" % number for number in range(4)]
    for name in names:
        root.drop(name)
    cluster.set_queue("enabled", False)
    try:
        for _ in range(2):
            assert "Queue is not enabled" in pump_after_a_round(root)["refused"]
    finally:
        cluster.set_queue("enabled", True)
    assert root.outcomes()["rejected"] == root.outcomes()["submitted"] == 0 and root.spool.count_waiting() == 4
    runs_once(root, *names)


def test_a_limit_of_a_named_user(tmp_path: Path, cluster: Cluster) -> None:  # noqa: F811
    """It is told in other words than the generic one, with the same code 38: a wait, never an error."""
    root = ground(tmp_path, cluster)
    names = ["job%d" % number for number in range(5)]
    for name in names:
        root.drop(name, seconds=3)  # longer than the pump takes to meet the limit
    cluster.set_server("mock_hide_limits", True)
    cluster.set_server("max_queued", "[u:%s=2]" % cluster.user)
    try:
        assert "Maximum number of jobs for user " + cluster.user in root.pump()["refused"]
        runs_once(root, *names)
    finally:
        cluster.set_server("max_queued", None)
        cluster.set_server("mock_hide_limits", False)
    assert root.outcomes()["rejected"] == 0


def test_a_job_renamed_before_its_submission_was_known(tmp_path: Path, cluster: Cluster) -> None:  # noqa: F811
    """`qalter -N` takes our name away; the reply was lost, so that the name was all we had but the variables."""
    root = ground(tmp_path, cluster)
    root.drop("it")
    cluster.set_queue("started", False)
    with cluster.faulty("lose_reply", every=1):
        root.pump()
    job = next(job for job in cluster.table() if job["state"] == "Q")
    assert cluster.run("qalter", "-N", "hers", job["id"]).returncode == 0
    until(lambda: (pump_after_a_round(root), root.events("it", "adopted"))[-1], "adopted under its new name")
    cluster.set_queue("started", True)
    runs_once(root, "it")
    assert root.outcomes()["intent"] == 1


# -- starts ------------------------------------------------------------------------------------------------------------


def test_a_forced_rerun_of_a_job_that_may_not_be_rerun(tmp_path: Path, cluster: Cluster) -> None:  # noqa: F811
    """`-r n` makes qrerun refuse (190), and `qrerun -W force` runs it again all the same, under the same id."""
    root = ground(tmp_path, cluster)
    root.drop("it", seconds=300)
    root.pump()
    job_id = root.running("it")
    assert cluster.run("qrerun", job_id).returncode == 190
    assert cluster.run("qrerun", "-W", "force", job_id).returncode == 0
    until(lambda: (pump_after_a_round(root), root.settled("it"))[-1], "it is settled")
    assert root.told("it") == ("LOST", reconcile.REFUSED_RERUN) and root.starts("it") == 1
    assert [record["why"] for record in root.events("it", "duplicate")] == ["rerun"]


def test_a_first_start_that_lives_on_repairs_what_was_told(tmp_path: Path) -> None:
    """Its node does not answer, `qrerun -W force` starts it elsewhere, which is refused; then the first ends well."""
    with Cluster(scale=0.05, nodes=("one", "two"), daemon_seconds=0) as cluster:  # noqa: F811
        root = ground(tmp_path, cluster)
        gate = tmp_path / "gate"
        root.drop("it", "while [ ! -e '%s' ]; do sleep 0.05; done" % gate)
        root.pump()
        job_id = root.running("it")
        cluster.set_server("managers", [cluster.user])
        node = cluster.job(job_id)["node"]
        cluster.vanish(300, node)
        cluster.until(lambda: not cluster.ask("nodes")[node]["up"], "the server has noticed")
        assert cluster.run("qrerun", "-W", "force", job_id).returncode == 0
        until(lambda: (pump_after_a_round(root), root.settled("it"))[-1], "given up")
        assert root.told("it") == ("LOST", reconcile.REFUSED_RERUN)
        gate.touch()
        until(lambda: root.events("it", "repaired"), "repaired by its tail")
        assert client_state(root.events("it")) == "COMPLETED"
        until(lambda: root.flag("it")[:1] == ["DONE"], "its flag, a moment after the journal")
        assert root.starts("it") == 1


def test_a_restarted_server_reruns_what_had_just_started(tmp_path: Path, cluster: Cluster) -> None:  # noqa: F811
    """A job in substate 41 is queued again without a look at its `-r n`, and its processes go on: the first counts."""
    root = ground(tmp_path, cluster)
    gate = tmp_path / "gate"
    root.drop("it", "while [ ! -e '%s' ]; do sleep 0.05; done" % gate)
    cluster.set_server("mock_started", 100000.0)
    root.pump()
    job_id = root.running("it")
    cluster.stop_server()
    cluster.start_server()
    cluster.set_server("mock_started", None)
    assert cluster.job(job_id)["state"] == "Q"
    gate.touch()
    runs_once(root, "it")
    assert cluster.job(job_id)["run_count"] == 2
    assert [record["why"] for record in root.events("it", "duplicate")] == ["rerun"]


def test_her_qhold_on_a_job_that_we_hold_and_on_one_that_runs(tmp_path: Path, cluster: Cluster) -> None:  # noqa: F811
    """PBS can't tell her user hold from ours: one qrls starts the job. On a running job it changes nothing."""
    root = ground(tmp_path, cluster, max_running=1)
    gate = tmp_path / "gate"
    root.drop("a", "while [ ! -e '%s' ]; do sleep 0.05; done" % gate)
    root.drop("b")
    root.pump()
    running = root.running("a")
    held = root.events("b", "submitted")[0]["pbs"]
    assert cluster.job(held)["state"] == "H"
    assert [cluster.run("qhold", job_id).returncode for job_id in (running, held)] == [0, 0]
    gate.touch()
    until(lambda: root.starts("b"), "released by the tail of the first")
    runs_once(root, "a", "b")


def test_a_release_of_a_job_that_has_ended(tmp_path: Path, cluster: Cluster) -> None:  # noqa: F811
    """qrls of a finished job says nothing and exits 0: that it was released does not mean that it will run."""
    root = ground(tmp_path, cluster, max_running=1, query_interval=600)
    gate = tmp_path / "gate"
    root.drop("a", "while [ ! -e '%s' ]; do sleep 0.05; done" % gate)
    root.drop("b")
    root.pump()
    root.running("a")
    held = root.events("b", "submitted")[0]["pbs"]
    assert cluster.run("qdel", held).returncode == 0  # the last query round is young: nobody looks
    gate.touch()
    until(lambda: root.events("b", "released"), "released though it is gone")
    agent_settings.change(root.spool, query_interval=INTERVAL)
    root.drop("c")
    until(lambda: (pump_after_a_round(root), root.settled("b") and root.settled("c"))[-1], "b settled, c has run")
    assert root.told("b") == ("CANCELLED", "deleted in PBS before it started") and root.starts("b") == 0
    assert root.told("c") == root.told("a") == RAN_WELL


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def patient(cluster: Cluster) -> Iterator[None]:  # noqa: F811
    """Five seconds from TERM to KILL."""
    cluster.set_server("mock_kill_delay", 100.0)
    yield
    cluster.set_server("mock_kill_delay", None)


def test_a_payload_that_takes_its_time_after_term(
        tmp_path: Path, cluster: Cluster, patient: None) -> None:  # noqa: F811
    """`wait` returns on TERM while the child's own handler still runs: the runner waits on, and KILLs nobody by it."""
    root = ground(tmp_path, cluster)
    saved = tmp_path / "saved"
    root.drop("it", "trap 'sleep 1; echo whole >\"%s\"; exit 0' TERM\nwhile :; do sleep 0.05; done" % saved)
    root.pump()
    qdel(root, root.running("it"))
    until(lambda: (pump_after_a_round(root), root.settled("it"))[-1], "it is settled")
    assert saved.read_text() == "whole\n"
    assert root.told("it") == ("CANCELLED", "deleted in PBS")
    assert found_marks(root, "it").term and found_marks(root, "it").flag["exit"] == "0"


def test_a_payload_that_ignores_term(tmp_path: Path, cluster: Cluster) -> None:  # noqa: F811
    """It leaves no time for a tail: KILL comes for all of them. The heartbeat moves the next one."""
    root = Ground(tmp_path / "root", cluster)
    root.drop("it", "trap '' TERM\nwhile :; do sleep 0.05; done")
    root.pump()
    root.drop("next")
    qdel(root, root.running("it"))
    until(lambda: root.settled("it") and root.settled("next"), "both, by the relay alone", 120)
    assert root.told("it") == ("CANCELLED", "deleted in PBS") and root.told("next") == RAN_WELL
    assert found_marks(root, "it").flag is None


@pytest.mark.parametrize("trap, told", [("trap \"\" TERM; kill 0", RAN_WELL), ("kill 0", ("FAILED", "exit 143"))])
def test_a_payload_that_kills_its_process_group(
        tmp_path: Path, cluster: Cluster, trap: str, told: tuple[str, str]) -> None:  # noqa: F811
    """It reached the runner and the login shell (Exit_status 271 for a good job). Now it ends itself at most, as it
    would anywhere, and the tail moves the next one."""
    root = ground(tmp_path, cluster, max_running=1)
    root.drop_text("it.sh", "#!/bin/bash\necho start >>'%s/it'\ntrap '%s' EXIT\nsleep 300 &\n" % (root.ran, trap))
    root.drop("next")
    root.pump()
    until(lambda: root.starts("next"), "the next one, by the tail of the first")
    root.finish(2)
    assert (root.told("it"), root.starts("it"), root.told("next")) == (told, 1, RAN_WELL)


def test_a_job_that_is_over_before_its_submission_is_recorded(tmp_path: Path, cluster: Cluster) -> None:  # noqa: F811
    """The shortest jobs end while the pump that submits them still holds the lock: no tail's wake is lost."""
    root = ground(tmp_path, cluster, max_running=1)
    names = ["job%d" % number for number in range(6)]
    for name in names:
        root.drop(name)
    root.pump()
    until(lambda: all(root.starts(name) for name in names), "all of them, by their tails alone")
    runs_once(root, *names)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    needs.root()
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run([needs.program("mount"), "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True)
    yield folder
    with contextlib.suppress(subprocess.CalledProcessError):
        subprocess.run([needs.program("umount"), str(folder)], check=True)
        return
    subprocess.run([needs.program("umount"), "-l", str(folder)], check=True)


def test_a_quota_that_is_full_at_the_end(small_disk: Path, cluster: Cluster) -> None:  # noqa: F811
    """The flag's room is taken at the start. Nothing else can be written: she makes room, and it is told whole."""
    root = ground(small_disk, cluster)
    root.drop("it", "head -c 100000000 /dev/zero >filler 2>/dev/null")
    root.pump()
    meta = root.spool.meta_dir("it", 1)
    until(lambda: [name for name in os.listdir(meta) if name.startswith("flag.") and name.endswith(".1")], "its flag")
    with pytest.raises(OSError), open(small_disk / "more", "wb", buffering=0) as more:
        more.write(b"x" * 65536)
        more.write(b"x" * 65536)
    assert found_marks(root, "it").flag["exit"] == "0"
    os.unlink(os.path.join(root.spool.work_dir("it", 1), "filler"))
    (small_disk / "more").unlink(missing_ok=True)
    root.drop("next")
    root.finish(2)
    assert root.told("it") == root.told("next") == RAN_WELL and root.starts("it") == 1


def test_a_heartbeat_that_finds_the_disk_full(small_disk: Path, cluster: Cluster) -> None:  # noqa: F811
    """It ended there, and left a name that stood for a next one: nothing woke the relay any more."""
    root = PbsRoot(small_disk / "root", cluster, heartbeat=15, settle=3600)
    root.drop("it")
    with contextlib.suppress(OSError), open(small_disk / "more", "wb", buffering=0) as more:
        while more.write(b"x" * 65536):
            pass
    words = [sys.executable, "-I", "-S", os.path.join(AGENT, "chasqui_agent"), "--root", root.path, "_beat", "1"]
    beat = subprocess.Popen(words, env=cluster.environment, stdin=subprocess.DEVNULL)
    try:
        until(lambda: os.path.exists(os.path.join(root.spool.wake, ".failed")) or beat.poll() is not None, "it tried")
        assert beat.poll() is None, "it gave up"
        (small_disk / "more").unlink()
        assert beat.wait(120) == 0
    finally:
        beat.kill()
        beat.wait()
    assert [job["state"] for job in root.beats()] == ["W"]


def test_a_holder_of_the_lock_whose_host_is_gone(tmp_path: Path, cluster: Cluster) -> None:  # noqa: F811
    """Nobody can prove it dead before its lease is over. Whoever finds it so has the heartbeat come then, and not at
    its own time: nobody else may come after that."""
    root = PbsRoot(tmp_path / "root", cluster, heartbeat=15, lease=8, settle=0, max_running=1)
    root.drop("first", "sleep 300")
    root.pump()
    until(lambda: root.starts("first") and root.beats(), "the first runs, and a beat waits")
    generation = 1 + max(int(name[2:]) for name in os.listdir(root.spool.lock) if name.startswith("g."))
    os.symlink(json.dumps({"h": "elsewhere", "p": 1}), os.path.join(root.spool.lock, "g.%d" % generation))
    root.drop("next")
    cluster.run("qdel", "-W", "force", root.events("first", "submitted")[0]["pbs"])
    assert root.agent("wake") == (0, "", "")
    until(lambda: root.starts("next"), "the next one, by the heartbeat alone")
