"""`chasqui why` as it is typed: over a real agent, in slots of this machine, on the mock PBS, where nobody answers."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.agentroot import end_jobs, until
from chasqui_agent.spool import Spool
from chasqui_client import cli
from chasqui_client.config import Caps
from chasqui_client.fields import replace
from chasqui_client.ledger import Job
from pbs.cluster import Cluster
from session.desk import CONFIG, Desk


class Asker(Desk):
    """Somebody who types `chasqui why`."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(path)
        monkeypatch.setenv("CHASQUI_HOME", str(self.home.path))
        monkeypatch.chdir(path)
        self.capsys, self.gate = capsys, path / "gate"
        self.wait = "until [ -e '%s' ]; do sleep 0.05; done" % self.gate

    def why(self, *words: str) -> str:
        self.capsys.readouterr()
        assert cli.main(["why", *words]) == 0
        return self.capsys.readouterr().out

    def causes(self, *words: str) -> list[str]:
        answer = json.loads(self.why(*words, "--json"))
        assert (answer["chasqui"], answer["verb"], answer["ok"]) == (1, "why", True)
        return [item["cause"] for item in answer["data"]["causes"]]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Asker]:
    made = Asker(tmp_path, monkeypatch, capsys)
    yield made
    made.gate.touch()

    class Root:
        """What `end_jobs` needs."""

        spool = Spool(str(made.root))

        @staticmethod
        def table() -> dict[str, Any]:
            try:
                return json.loads((made.root / "shell/table.json").read_text())["jobs"]
            except FileNotFoundError:
                return {}

        @classmethod
        def idle(cls) -> bool:
            return all(job["state"] == "F" for job in cls.table().values())

    if Root.table():
        end_jobs(Root)


def test_from_the_desk_to_the_end(desk: Asker) -> None:
    folders = [desk.folder("j%d" % n, desk.wait + ("; exit 3" if n == 0 else "")) for n in range(4)]
    jobs = desk.add(*folders)
    assert "no sync with here has run to its end yet.\nnext: chasqui sync\n" in desk.why("j0")
    assert cli.main(["hold", "j3"]) == 0
    assert desk.causes("j3") == ["state", "held-here"]
    assert cli.main(["release", "j3"]) == 0
    desk.remote = replace(desk.remote, caps=Caps(1, 1))
    desk.sync()
    ran = desk.path / "ran"
    until(lambda: ran.exists() and ran.read_text().split() == ["j0"], "the first runs")
    said = desk.why("j0")
    assert said.startswith("j0 is RUNNING. It runs since ")
    assert said.endswith("next: chasqui logs -f %s\n" % jobs[0].id[:8])
    desk.sync()
    assert "max_running = 1 is reached (1 run, or may start)" in desk.why("j1")
    assert "1 script goes before it (priority 0)" in desk.why("j3")
    assert "max_queued = 1 is reached" in desk.why("j3")
    assert "1 job before it (priority 0)" in desk.why("j3", "--offline")
    assert cli.main(["cancel", "j3"]) == 0
    assert desk.causes("j3")[-1] == "to-be-cancelled"
    desk.gate.touch()
    until(lambda: "there-completed" in desk.causes("j0"), "the first has ended there")
    desk.finish()
    assert desk.why("j0").startswith("j0 is FAILED. Its script ended with exit code 3.\nnext: chasqui logs ")
    assert desk.why("j1") == "j1 is COMPLETED. It completed (exit 0).\n"
    assert desk.causes("j3") == ["state", "cancelled"]


def test_jobs_that_wait_for_others(desk: Asker) -> None:
    parent = desk.folder("parent", desk.wait + "; exit 3")
    a, = desk.add(parent)
    child, = desk.add(desk.folder("child"), after=("parent",))
    desk.add(desk.folder("grandchild"), after=("child",))
    assert "It waits for parent (%s, still here) to end ok. It is still here: " % a.id[:8] in desk.why("child")
    assert cli.main(["hold", "parent"]) == 0
    desk.sync()
    said = desk.why("child")
    assert "(%s, held) to end ok. The last sync did not hand it over: what it waits for is not" % a.id[:8] in said
    assert said.endswith("next: chasqui why %s\n" % a.id[:8])
    assert cli.main(["release", "parent"]) == 0
    desk.sync()
    until(lambda: "(%s, running) to end ok.\n" % a.id[:8] in desk.why("child"), "the parent runs")
    assert "It waits there for child (%s, waiting for others) to end ok." % child.id[:8] in desk.why("grandchild")
    assert desk.causes("child", "--offline")[1] == "waits"
    desk.gate.touch()
    until(lambda: "there-blocked" in desk.causes("grandchild"), "both are blocked there")
    desk.finish()
    again = "of parent (%s, failed) takes along what it alone had blocked.\nnext: chasqui retry %s && chasqui sync"
    for name, before in (("child", "parent (failed)"), ("grandchild", "child (blocked)")):
        said = desk.why(name)
        assert said.startswith("%s is BLOCKED. It will not run: blocked by %s. " % (name, before))
        assert again % (a.id[:8], a.id[:8]) in said
    (parent / "job.sh").write_text("#!/bin/sh\ntrue\n")
    assert cli.main(["retry", child.id]) == 0
    assert "It will be blocked: it waits for parent (%s, failed) to end ok." % a.id[:8] in desk.why("child")
    assert cli.main(["retry", "parent"]) == 0
    desk.finish()
    assert desk.why("child") == "child is COMPLETED, attempt 2. It completed (exit 0).\n"
    assert desk.causes("grandchild") == ["state", "completed"]


def test_a_job_that_the_relay_tries_again(desk: Asker) -> None:
    """Before and after a sync tells of it, and when it is over."""
    folder = desk.folder("it")
    text = "#!/bin/sh\n#PBS -l walltime=1:00:00\ncase $PWD in *.2) %s;; esac\nexit 7\n" % desk.wait
    (folder / "job.sh").write_text(text)
    desk.add(folder, retry={"retries": 2, "on": ["7"], "set": {"walltime": "x2"}})
    assert "retry" not in desk.why("it")
    desk.sync()
    again = "attempt 2 of 3 after exit 7, walltime raised to 02:00:00."
    until(lambda: again + " It runs since" in desk.why("it"), "the second runs")
    said = desk.why("it")
    assert said.startswith("it is RUNNING, attempt 2. The relay tries it again by itself: " + again)
    assert "If it ends as its retry policy says, the relay tries it again, once." in said
    until(lambda: (desk.sync(), desk.jobs()[0].state == "RUNNING")[1], "the ledger knows it")
    assert desk.causes("it", "--offline") == ["state", "again", "running", "retries-left", "as-of"]
    assert again in desk.why("it", "--offline")
    desk.gate.touch()
    until(lambda: (desk.sync(), desk.jobs()[0].ended)[1], "its end")
    desk.finish()
    said = desk.why("it")
    assert said.startswith("it is FAILED, attempt 3. It was attempt 3 of 3 after exit 7, walltime raised to 04:00:00. ")
    assert "code 7. The relay does not try it again: the last of 2 retries.\nnext: chasqui logs " in said


def test_one_that_waits_for_a_job_that_is_tried_again(desk: Asker) -> None:
    a, = desk.add(desk.folder("parent", "case $PWD in *.2) %s; exit 0;; esac; exit 7" % desk.wait),
                  retry={"retries": 1, "on": ["7"]})
    desk.add(desk.folder("child"), after=("parent",), retry={"retries": 1})
    desk.sync()
    until(lambda: "(%s, running) to end ok.\n" % a.id[:8] in desk.why("child"), "the parent's second attempt runs")
    desk.gate.touch()
    desk.finish()
    assert desk.why("child") == "child is COMPLETED. It completed (exit 0).\n"


def test_inputs_that_changed_or_went_away(desk: Asker) -> None:
    folder = desk.folder("j", **{"in.dat": b"1"})
    job, = desk.add(folder)
    (folder / "in.dat").write_bytes(b"22")
    assert desk.causes("j") == ["state", "inputs-changed"]
    (folder / "in.dat").unlink()
    assert "in.dat, no such file or directory.\nnext: put it back, then: chasqui sync" in desk.why("j")
    desk.sync()
    (folder / "in.dat").write_bytes(b"1")
    with desk.ledger() as ledger:
        assert job.id in ledger.remote_state("here").report["kept"]
    assert "not uploaded" in desk.why("j")
    desk.finish()
    assert desk.why("j").startswith("j is COMPLETED.")


def test_what_the_relay_refused_for_good(desk: Asker) -> None:
    folder = desk.folder("array")
    (folder / "job.sh").write_text("#!/bin/sh\n#PBS -J 1-3\n")
    desk.add(folder)
    desk.sync()
    said = desk.why("array")
    assert "refused for good, in the scheduler's words: the shell scheduler has no job arrays (#PBS -J)." in said
    assert "next: correct its script, then: chasqui retry " in said


def test_results_that_are_missing_or_were_left_there(desk: Asker) -> None:
    desk.add(desk.folder("less"), expect=("OUTCAR",))
    desk.add(desk.folder("more", "head -c 5000 /dev/zero >WAVECAR"), max_file=1000)
    end = time.monotonic() + 60
    while any(not job.ended for job in desk.jobs()) or "results-left" not in desk.causes("more"):
        assert time.monotonic() < end
        desk.sync()
        time.sleep(0.2)
    assert "it left no OUTCAR, and every sync looks again" in desk.why("less")
    assert desk.why("more").splitlines()[-1].startswith("next: chasqui results ")


def test_a_cluster_that_nobody_is_connected_to(desk: Asker) -> None:
    job, = desk.add(desk.folder("j"))
    with desk.ledger() as ledger:
        ledger.mark_offered([job])
        ledger.acknowledge("here", [(job.id, 1)])
        ledger.set_remote("here", synced="2026-01-01T00:00:00Z", report={"pump": {"refused": "qsub: no \x1b quota"}})
    config = desk.home.config_path
    config.write_text((CONFIG % desk.root).replace('host = "local"', 'host = "nobody.invalid"'))
    said = desk.why("j")
    assert "It was refused, in the scheduler's words: qsub: no \\x1b quota." in said
    assert "days ago; here could not be asked: no connection is open.\nnext: chasqui sync\n" in said
    config.write_text('[remotes.other]\nhost = "local"\n')
    assert "init here" not in desk.why("j")
    assert cli.main(["why", "nobody"]) == 2


def test_an_agent_that_is_older_than_the_question(desk: Asker) -> None:
    """Its words and exit code are those of an agent that does not know the verb."""
    desk.add(desk.folder("j", desk.wait))
    desk.sync()
    os.unlink(desk.root / "agent/current")
    old = 'import sys; sys.stderr.write("chasqui-agent: no verb \'why\'; try --help\\n"); sys.exit(2)\n'
    (desk.root / "agent/current").write_text(old)
    assert "the agent there is older than this question; the next sync replaces it." in desk.why("j")
    (desk.root / "agent/current").write_text("print('[1]')\n")
    assert "here could not be asked: here: the agent says: " in desk.why("j")
    os.unlink(desk.root / "agent/current")
    assert "no connection is open" in desk.why("j")


# -- on PBS ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.05, daemon_seconds=2, ncpus=2) as made:
        yield made


@pytest.fixture
def on_pbs(desk: Asker, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Asker:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    config = CONFIG.replace('host = "local"', 'host = "local"\nscheduler = "openpbs"') % desk.root
    desk.home.config_path.write_text(config)
    desk.remote = desk.home.config().remote("here")
    return desk


def _job(desk: Asker, name: str, directives: str, script: str = "sleep 300") -> Job:
    folder = desk.folder(name)
    (folder / "job.sh").write_text("#!/bin/sh\n%s\n%s\n" % (directives, script))
    return desk.add(folder)[0]


def test_the_schedulers_own_reasons(on_pbs: Asker, cluster: Cluster) -> None:
    _job(on_pbs, "runs", "#PBS -l select=1:ncpus=2")
    _job(on_pbs, "waits", "#PBS -l select=1:ncpus=2")
    never = _job(on_pbs, "never", "#PBS -l select=1:ncpus=64")
    on_pbs.sync()
    until(lambda: "It runs since" in on_pbs.why("runs"), "one runs")
    until(lambda: "PBS says: Not Running: Insufficient amount of resource: ncpus" in on_pbs.why("waits"), "PBS's word")
    until(lambda: "PBS says: Can Never Run: " in on_pbs.why("never"), "PBS's word")
    assert on_pbs.why("never").splitlines()[-1].startswith("next: chasqui cancel %s && chasqui sync" % never.id[:8])
    cluster.set_server("max_queued", "[u:PBS_GENERIC=3]")
    _job(on_pbs, "later", "")
    time.sleep(1.1)
    on_pbs.sync()
    said = on_pbs.why("later")
    assert "PBS refuses submissions since " in said and "limit" in said, said
    with cluster.faulty("down"):
        assert "PBS did not answer: " in on_pbs.why("waits")


def test_a_walltime_that_was_too_short(on_pbs: Asker) -> None:
    _job(on_pbs, "long", "#PBS -l walltime=1")
    on_pbs.finish()
    assert "ran longer than the walltime it had asked for" in on_pbs.why("long")
    assert on_pbs.causes("long")[1] == "walltime"
