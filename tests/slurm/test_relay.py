"""The relay over a real Slurm, where Slurm is not like the others; what it shares with them is in tests/relay."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.agentroot import until
from agent.test_retries import hand_over, rule
from chasqui_agent import settings
from chasqui_agent.schedulers import slurm_refusals
from pbs.test_relay import PbsRoot
from slurm import record
from slurm.cluster import Cluster


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with Cluster() as made:
        yield made


@pytest.fixture
def cluster(slurm: Cluster) -> Iterator[Cluster]:
    """The same for all, left empty by each."""
    yield slurm
    for wrapper in slurm.bin.iterdir():
        wrapper.unlink()
    slurm.run("scancel", "--user=%d" % os.getuid())
    # A job cancelled in the moment it begins may not hear of it for a minute.
    slurm.until(lambda: (slurm.kill_all_jobs(), not slurm.table())[-1], "no job is left")


class SlurmRoot(PbsRoot):
    """A root whose jobs go to a Slurm."""

    def __init__(self, path: Path, cluster: Cluster, *words: str, **chosen: object) -> None:
        super().__init__(path, cluster, *words, **chosen)  # type: ignore[arg-type]
        settings.change(self.spool, scheduler="slurm")

    def drop(self, name: str, text: str = "", seconds: float = 0.0, directives: str = "#SBATCH --ntasks=1") -> None:
        super().drop(name, text, seconds, directives)

    def ended(self, name: str) -> dict:
        """The record of how a job ended or was cancelled, pumping until there is one."""
        told = lambda: self.events(name, "ended", "cancelled")  # noqa: E731
        until(lambda: told() or (time.sleep(1.1), self.pump(), told())[-1], name + " has ended", 60)
        return told()[0]

    def id_of(self, name: str) -> str:
        """Slurm's number of a live job."""
        return next(row["id"] for row in self.cluster.table() if row["name"].startswith(name + "."))


# -- how jobs end ------------------------------------------------------------------------------------------------------


def test_what_slurm_ends_has_failed_with_its_reason(tmp_path: Path, cluster: Cluster) -> None:
    """Time limit, a lost node, SIGKILL for all of a job: no flag is whole, and only the controller knows."""
    root = SlurmRoot(tmp_path / "root", cluster)
    root.drop("slow", seconds=300, directives="#SBATCH --time=5 --nodelist=n1")
    root.drop("lost", seconds=300, directives="#SBATCH --nodelist=n2")
    root.drop("killed", seconds=300, directives="#SBATCH --nodelist n1")
    root.drop("after", seconds=0.1)
    root.pump()
    until(lambda: all(root.starts(name) for name in ("slow", "lost", "killed")), "they run")
    assert cluster.run("scontrol", "update", "JobId=" + root.id_of("slow"), "EndTime=now").returncode == 0
    cluster.kill_job(root.id_of("killed"))
    cluster.lose_node("n2")
    why = {name: root.ended(name)["why"] for name in ("slow", "lost", "killed")}
    cluster.start_node("n2")
    assert why == {"slow": "walltime", "lost": "node lost", "killed": "killed (265)"}
    assert root.ended("after")["state"] == "DONE" and root.starts("after") == 1


def test_a_job_that_ran_out_of_time_is_tried_again_with_more(tmp_path: Path, cluster: Cluster) -> None:
    root = SlurmRoot(tmp_path / "root", cluster)
    text = "#!/bin/sh\n#SBATCH -n1 --time=5\necho start >> %s/it\nwhile [ ! -e %s/go ]; do sleep 0.1; done\n"
    hand_over(root, "it", text % (root.ran, root.ran), rule(1, "walltime", set={"walltime": "x2.5"}))
    root.pump()
    until(lambda: root.starts("it") == 1, "it runs")
    assert cluster.run("scontrol", "update", "JobId=" + root.id_of("it"), "EndTime=now").returncode == 0
    until(lambda: root.starts("it") == 2 or (time.sleep(1.1), root.pump()) is None, "the second attempt runs", 120)
    shown = cluster.run("scontrol", "show", "job", root.events("it", "submitted")[1]["pbs"]).stdout
    assert "TimeLimit=00:12:30" in shown or "TimeLimit=00:13:00" in shown, "Slurm counts whole minutes"
    assert [r["why"] for r in root.events("it", "retried")] == [
        "attempt 2 of 2 after walltime, walltime raised to 00:12:30"]
    Path(root.ran, "go").touch()
    until(lambda: root.spool.settled_state("it", 2) or (time.sleep(1.1), root.pump()) is None, "its end", 120)
    assert root.flag("it", 2)[0] == "DONE" and root.starts("it") == 2


def test_what_cannot_begin_is_tried_a_few_times_and_fails(tmp_path: Path, cluster: Cluster) -> None:
    root = SlurmRoot(tmp_path / "root", cluster)
    root.drop("nowhere", directives="#SBATCH --output=/nonexistent/folder/%j")
    told = root.ended("nowhere")
    assert told["state"] == "FAIL" and "could not start 5 times" in told["why"] and root.starts("nowhere") == 0


def test_a_job_that_an_admin_requeues_does_not_run_again(tmp_path: Path, cluster: Cluster) -> None:
    """Slurm refuses that for a job that says --no-requeue, until the admin says otherwise for it."""
    root = SlurmRoot(tmp_path / "root", cluster)
    root.drop("once", seconds=300)
    root.pump()
    until(lambda: root.starts("once") == 1, "it runs")
    job = root.id_of("once")
    assert "disabled" in cluster.run("scontrol", "requeue", job).stderr
    assert cluster.run("scontrol", "update", "JobId=" + job, "Requeue=1").returncode == 0
    assert cluster.run("scontrol", "requeue", job).returncode == 0
    cluster.until(lambda: cluster.told(job)["JobState"] == "PENDING", "it is in the queue again")
    # Its node lets nothing begin under a credential of the second in which the old one was revoked: hence 2 minutes.
    assert cluster.run("scontrol", "update", "JobId=" + job, "StartTime=now+3").returncode == 0
    told = root.ended("once")
    assert told["state"] == "LOST" and "refused" in told["why"] and root.starts("once") == 1


# -- the controller ----------------------------------------------------------------------------------------------------


def test_a_submission_whose_sbatch_was_killed_is_adopted(tmp_path: Path, cluster: Cluster) -> None:
    """tests/relay has the one that is answered by nothing but an exit status."""
    root = SlurmRoot(tmp_path / "root", cluster)
    root.drop("one", seconds=0.2)
    cluster.wrap("sbatch", '"$real" "$@" >/dev/null; kill -9 $$')
    root.pump()
    cluster.wrap("sbatch", 'exec "$real" "$@"')
    root.finish(1)
    assert root.starts("one") == 1 and root.outcomes()["adopted"] == 1


def test_a_submission_that_a_hanging_controller_carries_out_later_is_adopted(tmp_path: Path, cluster: Cluster) -> None:
    """sbatch gives up after MessageTimeout; what it sent is read and done when the controller goes on."""
    root = SlurmRoot(tmp_path / "root", cluster)
    root.drop("late", seconds=0.2)
    cluster.wrap("sbatch", 'kill -STOP %d; exec "$real" "$@"' % cluster.daemons["slurmctld"].pid)
    try:
        root.pump()
    finally:
        cluster.resume_controller()
    text = next(record["text"] for record in root.log() if record["ev"] == "refused")
    assert "Socket timed out" in text, text
    root.finish(1)
    assert root.starts("late") == 1 and root.outcomes()["adopted"] == 1


def test_a_closed_partition_is_a_wait_and_an_unknown_one_is_not(tmp_path: Path, cluster: Cluster) -> None:
    root = SlurmRoot(tmp_path / "root", cluster)
    root.drop("never", directives="#SBATCH -p nowhere")
    root.pump()
    assert root.outcomes()["rejected"] == 1
    assert cluster.run("scontrol", "update", "PartitionName=main", "State=DRAIN").returncode == 0
    try:
        root.drop("waits")
        assert "inactive or drain" in root.pump()["refused"]
    finally:
        assert cluster.run("scontrol", "update", "PartitionName=main", "State=UP").returncode == 0
    root.finish(1)
    assert root.starts("waits") == 1 and root.outcomes()["rejected"] == 1


def test_a_limit_on_the_number_of_jobs_is_a_wait(tmp_path: Path) -> None:
    """The error number of a QOS or an account that is full, from the controller itself."""
    with Cluster(submit_filter='if io.open(folder .. "/full") then return 2050 end') as cluster:
        root = SlurmRoot(tmp_path / "root", cluster, heartbeat=0)
        (cluster.folder / "full").touch()
        root.drop("one")
        root.drop("two")
        assert "violates accounting/QOS policy" in root.pump()["refused"]
        told = [(record["kind"], record["text"]) for record in root.log() if record["ev"] == "refused"]
        assert len(told) == 1 and told[0][0] == "limit", told
        (cluster.folder / "full").unlink()
        root.finish(2)
        assert root.starts("one") == root.starts("two") == 1 and not root.outcomes()["rejected"]


# -- what a job gets ---------------------------------------------------------------------------------------------------


def test_an_array_is_one_job_whose_elements_run_once(tmp_path: Path, cluster: Cluster) -> None:
    root = SlurmRoot(tmp_path / "root", cluster, max_queued=8, max_running=5)
    root.drop("many", seconds=0.3, text='[ "$SLURM_ARRAY_TASK_ID" != 5 ] || exit 3',
              directives="#SBATCH --array=1,3,5-6%2\n#SBATCH -o 'out of %a.txt'")
    root.drop("next", seconds=0.1)
    told = root.ended("many")
    assert root.starts("many") == 4 and (told["elements"]["done"], told["elements"]["failed"]) == (3, 1)
    assert told["state"] == "FAIL" and "1 of 4 elements failed: 5" in told["why"]
    work = root.spool.work_dir(told["job"], 1)
    assert sorted(name for name in os.listdir(work) if name.startswith("out")) == \
        ["out of %d.txt" % index for index in (1, 3, 5, 6)]
    assert root.ended("next")["state"] == "DONE"


def test_a_job_gets_a_login_shell_and_what_it_asks_for(tmp_path: Path, cluster: Cluster) -> None:
    root = SlurmRoot(tmp_path / "root", cluster)
    words = ['#SBATCH -J "her job" --time=0:30:00 --comment="a \\"b\\" c" -p main # ours',
             "#SBATCH --export=ALL,GIVEN='x y',TAKEN --output=%x.%j.log"]
    root.drop("asks", directives="\n".join(words),
              text='echo "[$SLURM_JOB_NAME|$GIVEN|$TAKEN|$LOGIN_SHELL|${SECRET-none}|$PWD]"')
    assert root.agent("pump", TAKEN="taken", SECRET="no")[0] == 0
    job = root.log()[-2]["job"]
    told = root.ended("asks")
    work = root.spool.work_dir(job, 1)
    text = Path(work, "her job.%s.log" % told["pbs"]).read_text()
    assert "[her_job|x y|taken|yes|none|%s]" % work in text, text
    shown = cluster.run("scontrol", "show", "job", told["pbs"]).stdout
    assert 'Comment=a "b" c ' in shown and "TimeLimit=00:30:00" in shown and "Requeue=0" in shown


def test_a_root_made_on_this_host_takes_slurm(tmp_path: Path, cluster: Cluster) -> None:
    root = SlurmRoot(tmp_path / "root", cluster)
    settings.change(root.spool, scheduler="shell")
    os.unlink(os.path.join(root.path, "config.json"))
    assert root.agent("install")[0] == 0
    assert settings.load(root.spool).scheduler == "slurm"
    code, out, _ = root.agent("doctor")
    assert code == 0 and "slurm: 2" in out and "the controller answers" in out, out


def test_the_recorded_refusals_are_still_the_real_ones(cluster: Cluster) -> None:
    """What tests/agent reads where no Slurm is: the same kind, whatever this version's words are."""
    told = json.loads((record.FOLDER / "sbatch.json").read_text())["refused"]
    seen = {each["options"]: slurm_refusals.classify(each["code"], each["err"]).kind for each in told}
    for options in record.REFUSED:
        now = record.refusal(cluster, options)
        assert slurm_refusals.classify(now["code"], now["err"]).kind == seen[options], now


def test_a_pbs_script_is_rejected(tmp_path: Path, cluster: Cluster) -> None:
    root = SlurmRoot(tmp_path / "root", cluster)
    root.drop("pbs", directives="#PBS -l walltime=1:00:00")
    root.pump()
    told = [record["text"] for record in root.log() if record["ev"] == "rejected"]
    assert told == ["the script has #PBS lines; for Slurm it needs #SBATCH lines, and no others"]


# -- bundles -----------------------------------------------------------------------------------------------------------


def test_jobs_share_an_allocation_one_after_the_other(tmp_path: Path, cluster: Cluster) -> None:
    root = SlurmRoot(tmp_path / "root", cluster, bundle=3, parallel=2, heartbeat=0)
    names = ["one", "two", "three"]
    asked = "#SBATCH --ntasks=1 --time=2\n#SBATCH --output=%x-%j.out --job-name="
    for name in names:
        root.drop(name, directives=asked + name, text="note end; exit 3" if name == "two" else "echo $SLURM_JOB_NAME")
    root.pump()
    ids = {record["pbs"] for name in names for record in root.events(name, "submitted")}
    assert len(ids) == 1
    shown = cluster.run("scontrol", "show", "job", *ids).stdout
    assert "TimeLimit=00:08:00" in shown or "TimeLimit=00:07:30" in shown, shown
    assert [root.ended(name)["state"] for name in names] == ["DONE", "FAIL", "DONE"]
    assert [root.starts(name) for name in names] == [1] * 3
    with open(os.path.join(root.spool.work_dir("one", 1), "one-%s.out" % ids.pop())) as stream:
        assert stream.read() == "one\n"
