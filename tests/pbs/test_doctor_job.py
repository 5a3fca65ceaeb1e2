"""`chasqui doctor --job`: which wakes work at a site, seen by real jobs; the best goes into config.toml."""

import json
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chasqui_client import cli, wake_trial
from pbs.cluster import Cluster
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
    before = site.config.read_bytes()
    answer = site.doctor(capsys)
    assert verdicts(answer) == {"tail": "yes", "hook": "yes", "ssh": "no", "cron": "yes", "heartbeat": "yes"}, answer
    assert "ssh:%s ended with 255" % os.uname()[1] in words(answer)["ssh"]
    assert answer["data"]["wake_via"] == "direct" and answer["data"]["written"]
    line = b'[remotes.here]\n'
    assert site.config.read_bytes() == before.replace(line, line + b'wake_via = "direct"\n')
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


def test_who_hangs_up_leaves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C while the jobs queue."""
    def interrupted(text: str, nonce: str) -> dict[str, Any]:
        said = json.loads(text)
        if "submitted" in said["words"]:
            raise KeyboardInterrupt
        return {}

    number = site.cluster.submit("sleep 600\n", "-l", "select=1:ncpus=8")
    site.cluster.wait_for(number, "R")
    monkeypatch.setattr(wake_trial, "_said", interrupted)
    assert cli.main(["doctor", "--job", "--only", "tail,hook", "--patience", PATIENCE]) == 130
    assert "what was submitted is being deleted" in capsys.readouterr().out
    assert [job["id"] for job in site.cluster.table() if job["state"] not in "FX"] == [number]
    site.cluster.run("qdel", "-W", "force", number)
    site.cluster.wait_for(number, "FX")
    site.nothing_is_left()
