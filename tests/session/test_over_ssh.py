"""The same work through a real sshd with one-time codes, for every login shell: one authentication, one exec a sync."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssh.lab import Lab

TOP = Path(__file__).resolve().parents[2]
CONFIG = """\
[remotes.lab]
host = "{host}"
ssh_config = "{config}"
root = "{root}"
[remotes.lab.settings]
query_interval = 1
"""


class Laptop:
    """A client with a home of its own, as a program."""

    def __init__(self, lab: Lab, kind: str, codes: str = "right") -> None:
        self.lab, self.user = lab, lab.user(kind)
        self.environment = {**lab.env(self.user, codes), "PYTHONPATH": "%s:%s" % (TOP / "client", TOP / "agent")}
        self.home = Path(self.environment["CHASQUI_HOME"])
        self.home.mkdir(parents=True, exist_ok=True)
        text = CONFIG.format(host=self.user.host_alias, config=self.user.ssh_config, root="~/chasqui")
        (self.home / "config.toml").write_text(text)

    def chasqui(self, *words: str, code: int = 0, **more: str) -> dict:
        command = [sys.executable, "-m", "chasqui_client", words[0], "--json", *words[1:]]
        done = subprocess.run(command, env={**self.environment, **more}, stdin=subprocess.DEVNULL, timeout=120,
                              capture_output=True, text=True)
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["bash", "tcsh", "zsh", "fish", "noisy", "single"])
def test_a_campaign_through_one_login(lab: Lab, kind: str, tmp_path: Path) -> None:
    laptop = Laptop(lab, kind)
    folders = []
    for number in range(3):
        folder = tmp_path / ("job%d" % number)
        folder.mkdir()
        (folder / "job.sh").write_text("#!/bin/sh\necho ran >>ran; cat in.dat >out\n")
        (folder / "in.dat").write_bytes(b"content %d\n" % number * 50_000)
        folders.append(str(folder))
    laptop.chasqui("add", *folders)
    refused = laptop.chasqui("sync", code=4)["error"]
    assert (refused["kind"], refused["hint"]) == ("NotConnected", "chasqui login lab")
    before = lab.counts()
    laptop.chasqui("login", "lab")
    first = laptop.chasqui("sync")["data"]
    assert first["uploaded"] == 3
    assert first["deployed"] == "~/chasqui"
    syncs, end = 0, time.monotonic() + 60
    after_first = lab.counts()
    while laptop.chasqui("sync")["data"]["counts"] != {"COMPLETED": 3}:
        syncs += 1
        assert time.monotonic() < end
        time.sleep(0.3)
    assert (lab.counts() - after_first).execs == syncs + 1
    counts = lab.counts() - before
    assert (counts.authentications, counts.connections) == (1, 1)
    laptop.chasqui("sync")
    for number, folder in enumerate(folders):
        assert Path(folder, "results/out").read_bytes() == b"content %d\n" % number * 50_000
        assert Path(folder, "results/ran").read_text() == "ran\n"
    assert laptop.chasqui("doctor", "lab")["ok"]
    assert laptop.chasqui("agent", "status")["ok"]
    laptop.chasqui("agent", "remove", "--purge")
    laptop.chasqui("logout", "lab")
    assert laptop.chasqui("sync", code=4)["error"]["kind"] == "NotConnected"
    assert (lab.counts() - before).authentications == 1


@pytest.mark.parametrize("codes", ["none", "wrong"])
def test_a_login_that_fails(lab: Lab, codes: str) -> None:
    laptop = Laptop(lab, "bash", codes)
    error = laptop.chasqui("login", "lab", code=4)["error"]
    assert error["kind"] == "LoginFailed"
    assert "chasqui doctor" in error["hint"]
    assert laptop.chasqui("sync", code=4)["error"]["kind"] == "NotConnected"


WATCHED = """
import sys
from chasqui_client import cli, headstart
take = headstart.take_session
def watched(argv):
    taken = take(argv)
    sys.stderr.write("ahead" if taken else "ordinary")
    return taken
headstart.take_session = watched
sys.exit(cli.main(["sync"]))
"""


def test_a_sync_starts_ahead_of_its_own_imports(lab: Lab) -> None:
    """From the second one on, until what the command depends on changes; and it is one exec either way."""
    laptop = Laptop(lab, "bash")

    def sync() -> str:
        before = lab.counts()
        done = subprocess.run([sys.executable, "-c", WATCHED], env=laptop.environment, stdin=subprocess.DEVNULL,
                              timeout=120, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (lab.counts() - before).execs == 1
        return done.stderr

    laptop.chasqui("login", "lab")
    laptop.chasqui("agent", "deploy")
    assert [sync(), sync()] == ["ordinary", "ahead"]
    with open(laptop.home / "config.toml", "a") as config:
        config.write("grace = 200\n")
    assert [sync(), sync()] == ["ordinary", "ahead"]
    laptop.chasqui("agent", "remove", "--purge")
    laptop.chasqui("logout", "lab")
