"""`chasqui doctor --job`: which wakes work at a site, seen by real jobs; the best goes into config.toml."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.agentroot import AGENT, until
from chasqui_agent import wakes
from chasqui_client import cli, wake_trial
from pbs.cluster import Cluster
from pbs.test_relay import PbsRoot
from pbs.test_wake_via import REFUSAL, SSH
from session.desk import CONFIG, Desk

HOOKS = Path(__file__).resolve().parents[2] / "agent" / "hooks"
# The owner's half of the hook that we ship, as it is, begun by the mom; that root's half gets there is in test_hooks.
# These jobs may be root's, whom it would leave alone, and their home is not that of the user directory.
HOOK = """
import subprocess, pbs
job = pbs.event().job
words = ["/bin/sh", "-c", AS_OWNER, "sh", job.id, job.euser, HOME, job.Variable_List["CHASQUI_ROOT"]]
null = subprocess.DEVNULL
subprocess.Popen(words, stdin=null, stdout=null, stderr=null, start_new_session=True)
"""
NOT_ALLOWED = "You (jane) are not allowed to use this program (crontab)"
PATIENCE = "300"


class Site:
    """A desk at a mock PBS: what its user types, and the programs of the site around it."""

    def __init__(self, folder: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster, self.bin = cluster, folder / "bin"
        self.bin.mkdir()
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PATH", "%s:%s" % (self.bin, cluster.environment["PATH"]))
        self.desk = Desk(folder)
        monkeypatch.setenv("CHASQUI_HOME", str(self.desk.home.path))
        monkeypatch.setattr(wake_trial, "_AFTER", 300.0)  # what is to come may be slow here
        text = CONFIG.replace('host = "local"', 'host = "local" # here\nscheduler = "openpbs"') % self.desk.root
        self.config.write_text("# mine\n" + text)
        self.ssh_calls, self.ssh_works = folder / "ssh calls", folder / "ssh works"
        mark = next("%s=%s" % item for item in os.environ.items() if item[0] == "CHASQUI_TEST_RUN")
        self.program("ssh", SSH.format(calls=f"'{self.ssh_calls}'", works=f"'{self.ssh_works}'", mark=mark))
        self.program("crontab", "#!/bin/sh\necho 'no crontab for jane' >&2\nexit 1\n")

    @property
    def config(self) -> Path:
        return self.desk.home.config_path

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def install_hook(self) -> None:
        text = (HOOKS / "execjob_end.py").read_text()
        as_owner = text.split("AS_OWNER = r'''")[1].split("'''")[0]
        patched = as_owner.replace('[ "$uid" != 0 ] || exit 0\n', "")
        assert patched != as_owner
        source = self.cluster.folder / "hook.py"
        source.write_text("AS_OWNER = %r\nHOME = %r\n%s" % (patched, str(self.cluster.user_home),
                                                            textwrap.dedent(HOOK)))
        for command in ("create hook chasqui", 'set hook chasqui event="execjob_end"',
                        f"import hook chasqui application/x-python default {source}"):
            assert self.cluster.qmgr(command).returncode == 0

    def doctor(self, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
        """The answer of a run; and that nothing of it is left."""
        assert cli.main(["--json", "doctor", "--job", "--patience", PATIENCE, *words]) == code
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        self.nothing_is_left()
        return answer

    def nothing_is_left(self) -> None:
        assert not (self.desk.root / "doctor").exists()
        assert [job for job in self.cluster.table() if job["state"] not in "FX"] == []
        records = self.cluster.user_home / ".chasqui-agent" / "jobs"
        assert not records.exists() or list(records.iterdir()) == []
        assert not list((self.desk.root / "log").iterdir()), "the user's own relay was touched"


    def full(self) -> str:
        """Have another's job take the whole node; its number."""
        number = self.cluster.submit("sleep 600\n", "-l", "select=1:ncpus=8")
        self.cluster.wait_for(number, "R")
        return number

    def empty(self, number: str) -> None:
        self.cluster.run("qdel", "-W", "force", number)
        self.cluster.wait_for(number, "FX")

    def alive(self) -> list[str]:
        return [job["id"] for job in self.cluster.table() if job["state"] not in "FX"]


class Agent:
    """The agent's side of a trial, without a client."""

    def __init__(self, site: Site, forms: list[str], config: dict[str, Any] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", os.path.join(AGENT, "chasqui_agent"), "--root", str(site.desk.root),
             "_wakes", "--nonce", "n"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        asked = {"forms": forms, "seconds": float(PATIENCE), "after": 300.0, "config": config or {}}
        assert self.process.stdin
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()

    def wait_for(self, words: str, times: int = 1) -> None:
        """Read on until it has said so, so many times."""
        assert self.process.stdout
        for line in self.process.stdout:
            times -= words in json.loads(line).get("words", "")
            if not times:
                return
        pytest.fail("it never said: " + words)

    def answer(self) -> dict[str, Any]:
        """The last thing it says."""
        assert self.process.stdout
        found: dict[str, Any] = json.loads(self.process.stdout.read().splitlines()[-1])
        return found

    def hang_up(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def ended(self) -> int:
        assert self.process.stdin and self.process.stdout
        self.process.stdout.read()
        code = self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            stream.close()
        return code


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A login host that runs no jobs, and a node that runs them."""
    with Cluster(scale=0.1, daemon_seconds=0, nodes=("pbshost", "node1")) as cluster:
        cluster.kill_mom("pbshost")
        cluster.until(lambda: not cluster.ask("nodes")["pbshost"]["up"], "only node1 runs jobs")
        yield Site(tmp_path, cluster, monkeypatch)


def verdicts(answer: dict[str, Any]) -> dict[str, str]:
    return {row["form"]: row["verdict"] for row in answer["data"]["forms"]}


def words(answer: dict[str, Any]) -> dict[str, str]:
    return {row["form"]: row["words"] for row in answer["data"]["forms"]}


def test_a_site_with_hooks_where_nodes_may_submit(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.install_hook()
    line = b'[remotes.here]\n'
    before = site.config.read_bytes().replace(line, line + b'wake_via = "sync"\n')
    site.config.write_bytes(before)
    answer = site.doctor(capsys)
    assert verdicts(answer) == {"tail": "yes", "hook": "yes", "ssh": "no", "cron": "yes", "heartbeat": "yes"}, answer
    assert "ssh:%s ended with 255" % os.uname()[1] in words(answer)["ssh"]
    assert answer["data"]["wake_via"] == "auto" and answer["data"]["written"]
    assert site.config.read_bytes() == before.replace(b'"sync"', b'"auto"')
    submitted = [call for call in site.cluster.calls("qsub") if "--version" not in call[4]]
    assert 9 <= len(submitted) <= 9 + 3  # beats, and the one that a beat arms behind itself


def test_a_site_whose_nodes_refuse_qsub_but_lead_back_by_ssh(
        site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.cluster.fault("refuse_hosts", hosts=["node1"], text=REFUSAL)
    site.ssh_works.touch()
    site.program("crontab", "#!/bin/sh\necho '%s' >&2\nexit 1\n" % NOT_ALLOWED)
    answer = site.doctor(capsys, "--only", "tail,ssh,cron,heartbeat")
    assert verdicts(answer) == {"tail": "no", "ssh": "yes", "cron": "no", "heartbeat": "yes"}, answer
    assert REFUSAL in words(answer)["tail"] and NOT_ALLOWED in words(answer)["cron"]
    assert answer["data"]["wake_via"] == "ssh:" + os.uname()[1] and answer["data"]["written"]
    assert 'wake_via = "ssh:%s"\n' % os.uname()[1] in site.config.read_text()
    assert site.desk.home.config().remote().wake_via == "ssh:" + os.uname()[1]


def test_where_nothing_works_each_contact_has_to(
        site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wake_trial, "_AFTER", 1.0)  # nothing is to come, however long it is waited for
    site.cluster.fault("refuse_hosts", hosts=["node1"], text=REFUSAL)
    before = site.config.read_bytes()
    assert cli.main(["doctor", "--job", "--dry-run", "--only", "tail,hook,ssh", "--patience", PATIENCE]) == 0
    lines = capsys.readouterr().out.splitlines()
    site.nothing_is_left()
    assert lines[-1] == 'wake_via = "sync"' and site.config.read_bytes() == before
    table = [line for line in lines if re.match(r"(tail|hook|ssh) ", line)]
    assert len(table) == 3 and all("  no  " in line for line in table), lines
    assert any(re.match(r"  tail +submitted [0-9]+", line) for line in lines), lines


def test_jobs_that_do_not_start_in_time_prove_nothing(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """The node is full with another's job: nothing is written, and what was queued is deleted."""
    site.cluster.run("qsub", "-l", "select=1:ncpus=8", input="sleep 600\n")
    number = site.cluster.table()[0]["id"]
    site.cluster.wait_for(number, "R")
    before = site.config.read_bytes()
    assert cli.main(["doctor", "--job", "--only", "tail", "--patience", "2"]) == 6
    said = capsys.readouterr()
    assert "time is up: submitted " in said.out and "no wake_via can be chosen: time is up" in said.err, said
    assert site.config.read_bytes() == before
    assert [job["id"] for job in site.cluster.table() if job["state"] not in "FX"] == [number]
    site.cluster.run("qdel", "-W", "force", number)
    site.cluster.wait_for(number, "FX")
    site.nothing_is_left()


def test_what_is_tried_next_comes_when_the_jobs_before_are_gone(
        site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """So that there are never more at once than she was told."""
    number = site.full()
    assert cli.main(["doctor", "--job", "--only", "tail,hook,cron", "--patience", "2"]) == 6
    said = capsys.readouterr()
    assert re.search(r"\ntail .* not known .*\nhook .* not known .*\ncron .* works ", said.out), said
    jobs = [job for job in site.cluster.table() if job["id"] != number]
    assert len(jobs) == 3
    calls = [call[1] for call in site.cluster.calls("qsub", "qdel") if "--version" not in call[4]]
    assert calls[:6] == ["qsub"] * 3 + ["qdel"] * 2 + ["qsub"], "the first is the other's"
    site.empty(number)
    site.nothing_is_left()


def test_where_one_job_is_allowed_they_take_turns(site: Site) -> None:
    """Else the first to begin would keep the others out, and nothing could be learnt of them."""
    number = site.full()
    site.cluster.set_server("mock_hide_limits", True)
    site.cluster.set_server("max_queued", "[u:PBS_GENERIC=2]")  # one is the other's
    site.cluster.fault("refuse_hosts", hosts=["node1"], text=REFUSAL)
    site.ssh_works.touch()
    agent = Agent(site, ["tail", "ssh"])
    agent.wait_for("waits for its turn: qsub: would exceed complex's per-user limit")
    site.empty(number)
    answer = agent.answer()
    assert [row[:2] for row in answer["rows"]] == [["tail", "no"], ["ssh", "yes"]], answer
    assert agent.ended() == 0
    site.nothing_is_left()


def test_two_at_once_keep_out_of_each_others_way(site: Site) -> None:
    agents = [Agent(site, ["tail"]) for _ in range(2)]
    for agent in agents:
        answer = agent.answer()
        assert [row[:2] for row in answer["rows"]] == [["tail", "yes"]] and answer["left"] == [], answer
        assert agent.ended() == 0
    site.nothing_is_left()


def test_the_users_caps_count_what_she_has_there(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """All of max_queued is taken by jobs that others of hers submitted: none of ours goes beside them."""
    site.config.write_text(site.config.read_text() + "[remotes.here.caps]\nmax_queued = 2\n")
    held = [site.cluster.submit("true\n", "-h") for _ in range(2)]
    code = cli.main(["doctor", "--job", "--only", "tail,hook", "--patience", PATIENCE])
    said = capsys.readouterr()
    assert code == 6 and "other jobs take all of your caps now (max_running = 30, max_queued = 2)" in said.err
    assert {job["id"] for job in site.cluster.table()} == set(held)
    for number in held:
        site.cluster.run("qdel", number)


def test_the_sites_limits_are_told_in_its_words(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no room for a first job: nobody waits for it."""
    site.cluster.set_server("mock_hide_limits", True)
    site.cluster.set_server("max_queued", "[u:PBS_GENERIC=1]")
    held = site.cluster.submit("true\n", "-h")
    code = cli.main(["doctor", "--job", "--only", "tail,hook", "--patience", PATIENCE])
    said = capsys.readouterr()
    assert code == 6 and "would exceed complex's per-user limit" in said.err, said
    assert "when that has changed: chasqui doctor --job here" in said.err
    assert {job["id"] for job in site.cluster.table()} == {held}
    site.cluster.run("qdel", held)
    site.nothing_is_left()


@pytest.mark.parametrize("full", ["by the site", "by the caps"])
def test_a_wake_that_finds_no_room_is_not_one_that_fails(site: Site, full: str) -> None:
    """Else a site where somebody else was faster would be one where nothing works, and had "sync" for ever."""
    number, text = site.full(), "other jobs take all of your caps now"
    spool = PbsRoot(site.desk.root, site.cluster, max_queued=1).spool
    doctor = wakes.Doctor(spool, {"max_queued": 1, "query_interval": 0}, 300.0, 300.0, lambda *_: None, lambda: False)
    doctor.begin()
    trial = doctor._trial("tail", wake_via="direct")
    trial.begin()
    if full == "by the caps":
        held = site.cluster.submit("true\n", "-h")
    else:
        text = "would exceed complex's per-user limit"
        site.cluster.fault("refuse_hosts", hosts=["node1"], text=text, number=15046)
    site.empty(number)
    until(lambda: [record for record in trial._records() if record.get("reason") == "tail"], "the wake came")
    until(lambda: (trial.look(300.0), trial.is_awaited)[-1], "its job has ended")
    trial.look(0.0)
    assert trial.row and (trial.row.verdict, wakes.choice([trial.row])) == ("open", "") and text in trial.row.words
    site.cluster.clear()
    if full == "by the caps":
        site.cluster.run("qdel", held)
    assert doctor.end() == []
    site.nothing_is_left()


def test_to_the_relay_beside_it_its_jobs_are_others(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """One of two places is the trial's while it lasts; then the relay has both."""
    number = site.full()
    root = PbsRoot(site.desk.root, site.cluster, heartbeat=0, max_queued=2)
    agent = Agent(site, ["tail"], {"max_queued": 2, "heartbeat": 0})
    agent.wait_for("submitted ")
    for name in ("one", "two"):
        root.drop(name)
    assert root.pump()["submitted"] == 1
    agent.hang_up()
    assert agent.ended() == 1 and not (site.desk.root / "doctor").exists()
    until(lambda: (root.pump(), root.spool.entries("submitted")[1:])[-1], "the second follows")
    for name in ("one", "two"):
        assert root.agent("cancel", name)[0] == 0
    until(lambda: (root.pump(), site.alive() == [number])[-1], "both are gone")
    site.empty(number)


def test_once_it_clears_up_no_signal_stops_it(site: Site) -> None:
    number = site.full()
    agent = Agent(site, ["tail", "hook"])
    agent.wait_for("submitted ")
    agent.process.terminate()
    agent.wait_for("takes back")
    for sign in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        agent.process.send_signal(sign)
    assert agent.ended() == 130
    assert site.alive() == [number]
    site.empty(number)
    site.nothing_is_left()


@pytest.mark.parametrize("way", ["doctor", "remove"])
def test_what_a_killed_one_left_goes_with_whoever_comes_next(site: Site, way: str) -> None:
    number = site.full()
    agent = Agent(site, ["tail", "hook"])
    agent.wait_for("submitted ", 2)
    root = PbsRoot(site.desk.root, site.cluster)
    code, _, said = root.agent("remove")
    assert code == 1 and "still waiting or running: doctor/" in said, "it is at work"
    agent.process.kill()
    assert agent.ended() == -signal.SIGKILL and len(site.alive()) == 3
    if way == "remove":
        assert root.agent("remove") == (0, "", "")
    else:
        other = Agent(site, [])
        assert other.ended() == 0
    until(lambda: site.alive() == [number], "its jobs are gone")
    assert not (site.desk.root / "doctor").exists()
    site.empty(number)


def test_who_hangs_up_leaves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C while the jobs queue."""
    def interrupted(text: str, nonce: str) -> dict[str, Any]:
        said = json.loads(text)
        if "submitted" in said["words"]:
            raise KeyboardInterrupt
        return {}

    number = site.full()
    monkeypatch.setattr(wake_trial, "_said", interrupted)
    assert cli.main(["doctor", "--job", "--only", "tail,hook", "--patience", PATIENCE]) == 130
    assert "what was submitted is being deleted" in capsys.readouterr().out
    assert [job["id"] for job in site.cluster.table() if job["state"] not in "FX"] == [number]
    site.cluster.run("qdel", "-W", "force", number)
    site.cluster.wait_for(number, "FX")
    site.nothing_is_left()


def test_a_torque_is_asked_for_its_epilogue_too(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Cluster(scale=0.1, dialect="torque") as cluster:
        site = Site(tmp_path, cluster, monkeypatch)
        site.config.write_text(site.config.read_text().replace('"openpbs"', '"torque"'))
        answer = site.doctor(capsys, "--only", "tail,epilogue")
        assert verdicts(answer) == {"tail": "yes", "epilogue": "yes"}, answer
        assert answer["data"]["wake_via"] == "auto"
        cluster.set_server("mock_refuse_epilogue", True)
        answer = site.doctor(capsys, "--only", "tail,epilogue")
        assert verdicts(answer) == {"tail": "yes", "epilogue": "no"}, answer
        assert "Unknown resource type" in words(answer)["epilogue"]
