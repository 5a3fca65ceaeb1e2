"""A user's whole session over a real Slurm: add, sync, jobs, results at home, cancel, why, a retry."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chasqui_agent import journal, settings
from chasqui_agent.spool import Spool
from chasqui_client import cli, states
from session.desk import CONFIG, Desk
from slurm.cluster import Cluster

HEAD = "#SBATCH --ntasks=1 --time=5\n"
PATIENCE = 120.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as made:
        yield made


class SlurmDesk(Desk):
    """A desk whose remote is this computer, with a Slurm on it."""

    def __init__(self, path: Path, cluster: Cluster) -> None:
        super().__init__(path)
        self.cluster = cluster
        text = CONFIG.replace('host = "local"', 'host = "local"\nscheduler = "slurm"') % self.root
        self.home.config_path.write_text(text)
        self.remote = replace(self.remote, scheduler="slurm")

    def folder(self, name: str, script: str = "", **files: bytes) -> Path:
        folder = super().folder(name, script, **files)
        text = (folder / "job.sh").read_text()
        (folder / "job.sh").write_text(text.replace("#!/bin/sh\n", "#!/bin/sh\n" + HEAD, 1))
        return folder

    def sync_until(self, condition: Any, what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, (what, [(job.name, job.state, job.why) for job in self.jobs()])
            time.sleep(0.2)
            self.sync()


@pytest.fixture
def desk(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmDesk]:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    made = SlurmDesk(tmp_path, cluster)
    monkeypatch.setenv("CHASQUI_HOME", str(made.home.path))
    yield made
    cluster.run("scancel", "--user=%d" % os.getuid())
    cluster.until(lambda: (cluster.kill_all_jobs(), not cluster.table())[-1], "no job is left")


def chasqui(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """A command that succeeds; its answer."""
    code = cli.main(["--json", *words])
    said = capsys.readouterr()
    assert code == 0, (words, said.out, said.err)
    answer: dict[str, Any] = json.loads(said.out)
    return answer


def test_jobs_go_there_and_their_results_come_home(desk: SlurmDesk, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [desk.folder("sum%d" % n, "sort -n in.dat | tail -n 1 >most.dat; echo $SLURM_JOB_ID >id.txt",
                           **{"in.dat": b"%d\n%d\n" % (n, 100 + n)}) for n in range(3)]
    chasqui(capsys, "add", *map(str, folders))
    desk.add(desk.folder("bad", "echo left >before.txt; exit 3"))
    assert chasqui(capsys, "sync")["data"]["uploaded"] == 4
    desk.finish(PATIENCE)
    done = {job.name: job for job in desk.jobs()}
    for n, folder in enumerate(folders):
        desk.completed(done["sum%d" % n])
        assert (folder / "results" / "most.dat").read_text() == "%d\n" % (100 + n)
        assert (folder / "results" / "id.txt").read_text().strip().isdigit()
    assert (done["bad"].state, done["bad"].exit, done["bad"].results_state) == (states.FAILED, 3, states.VERIFIED)
    assert Path(os.fsdecode(done["bad"].results_path), "before.txt").read_text() == "left\n"
    assert desk.lines() == ["bad", "sum0", "sum1", "sum2"]
    assert chasqui(capsys, "verify", "--all", "--deep")["ok"]
    assert "exit code 3" in chasqui(capsys, "why", "bad")["data"]["why"]


def test_what_waits_and_what_runs_is_told_and_cancelled(desk: SlurmDesk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.add(desk.folder("long", "sleep 300"))
    wide = desk.folder("wide")
    (wide / "job.sh").write_text("#!/bin/sh\n#SBATCH --exclusive --nodes=2 --time=5\ntrue\n")
    desk.add(wide)
    by_name = lambda name: next(job for job in desk.jobs() if job.name == name)  # noqa: E731
    desk.sync_until(lambda: by_name("long").state == states.RUNNING and by_name("wide").state == states.SUBMITTED,
                    "one runs, the other waits for its node")
    assert "It runs since " in chasqui(capsys, "why", "long")["data"]["why"]
    told = chasqui(capsys, "why", "wide")["data"]
    assert told["state"] == states.SUBMITTED and told["asked"] and "slurm" in told["why"].lower(), told
    chasqui(capsys, "cancel", "wide")
    chasqui(capsys, "cancel", "long")
    desk.sync_until(lambda: by_name("long").state == by_name("wide").state == states.CANCELLED, "both are cancelled")
    desk.cluster.until(lambda: not [row for row in desk.cluster.table() if not row["name"].startswith("beat.")],
                       "neither is in the queue")
    assert desk.lines() == ["long"]
    chasqui(capsys, "retry", "wide")
    desk.sync_until(lambda: by_name("wide").state == states.COMPLETED, "its second attempt has run")


def test_what_wakes_the_relay_is_found_out(desk: SlurmDesk, capsys: pytest.CaptureFixture[str]) -> None:
    answer = chasqui(capsys, "doctor", "--job", "--only", "tail,heartbeat", "--patience", "300")
    found = {row["form"]: row["verdict"] for row in answer["data"]["forms"]}
    assert found == {"tail": "yes", "heartbeat": "yes"}, answer
    assert answer["data"]["wake_via"] == desk.home.config().remote().wake_via == "auto"
    assert not (desk.root / "doctor").exists() and not list((desk.root / "log").iterdir())
    desk.cluster.until(lambda: not desk.cluster.table(), "nothing of it is in the queue")


def test_the_line_for_scrontab_moves_the_relay_on(desk: SlurmDesk, capsys: pytest.CaptureFixture[str]) -> None:
    """Slurm runs it as a batch job with the options above it; scrontab itself is not in Debian's Slurm."""
    desk.deploy()
    settings.change(Spool(str(desk.root)), settle=0)
    options, command = chasqui(capsys, "agent", "cron", "--slurm")["data"]["lines"][-2:]
    assert options.startswith("#SCRON ")
    script = desk.path / "entry.sh"
    script.write_text("#!/bin/sh\n%s\n%s\n" % (options.replace("#SCRON", "#SBATCH"), command.split(" ", 5)[5]))
    (desk.root / "waiting" / "one.sh").write_text("#!/bin/sh\n%stouch ran\n" % HEAD)
    done = desk.cluster.run("sbatch", str(script))
    assert done.returncode == 0, done.stderr
    desk.cluster.until(lambda: (desk.root / "work" / "one" / "ran").exists(), "the script that waited has run")
    records = [record for _, record in journal.records(str(desk.root / "log"))]
    assert "cron" in [record["reason"] for record in records if record["ev"] == "pumped"]
