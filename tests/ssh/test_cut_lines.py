"""What a lost network, a killed master, client or agent do to a sync in the middle of its data, over a real sshd.

After each: the client ends by itself with one line, a hint and its exit code; nothing half-done stands under a final
name, here or there; no agent is left there; nobody logged in a second time; and the next sync brings all of it home.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ssh.lab import Lab
from ssh.proxy import Proxy

TOP = Path(__file__).resolve().parents[2]
MB = 1 << 20
JOBS, SIZE = 5, 2 * MB  # of content that zlib can't make smaller
CUT = 5 * MB  # into the transfer: more than ssh's window and the proxy hold, so neither side is at the end of it
IDLE = 4.0  # seconds the agents of the silent line wait for a client, in place of 60 and 300
ALIVE = 3.0  # seconds until its master gives up: interval 1, count 2, in place of 15 and 4
BOTH = pytest.mark.parametrize("upload", [True, False], ids=["upload", "download"])
BROKEN = re.compile(r"chasqui: hpc: the connection broke: [^\n]+\. What was acknowledged is safe, "
                    r"the rest goes with the next sync\.\n  hint: ([^\n]+)\n\Z")
LOGIN_HINT, SYNC_HINT = "chasqui login hpc, then: chasqui sync --remote hpc", "chasqui sync --remote hpc"


@dataclass
class Ended:
    """A client that has ended: exit code (negative: by a signal), its stderr, how long after the cut."""

    code: int
    said: str
    after: float


class Line:
    """A client of its own that reaches the lab's bash account through a proxy, and a root of its own there."""

    def __init__(self, lab: Lab, proxy: Proxy, tmp: Path, name: str, options: str = "") -> None:
        self.lab, self.proxy, self.tmp, self.user = lab, proxy, tmp, lab.user("bash")
        self.root = self.user.home / name
        self.environment = {**lab.env(self.user), "PYTHONPATH": f"{TOP / 'client'}:{TOP / 'agent'}"}
        config = lab.config(self.user, port=proxy.port)
        Path(self.environment["CHASQUI_HOME"], "config.toml").write_text(
            f'[remotes.hpc]\nhost = "{self.user.host_alias}"\nssh_config = "{config}"\nroot = "~/{name}"\n'
            f"ssh_options = [{options}]\n[remotes.hpc.settings]\nquery_interval = 1\n"
        )
        self.made = 0
        self.whole = True
        self.chasqui("login", "hpc")
        self.chasqui("agent", "deploy")

    # -- commands

    def start(self, *words: str, **environment: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "chasqui_client", *words]
        return subprocess.Popen(command, env={**self.environment, **environment}, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def chasqui(self, *words: str, code: int = 0) -> dict:
        """One command to its end; its --json answer."""
        process = self.start(words[0], "--json", *words[1:])
        out, said = process.communicate(timeout=60)
        assert process.returncode == code, (words, out[-2000:], said[-2000:])
        return dict(json.loads(out.splitlines()[-1]))

    def cut(self, upload: bool, cut: "Callable[[subprocess.Popen[str]], None]", *words: str, after: int = CUT,
            **environment: str) -> Ended:
        """A sync, or `words`, to which `cut` is done in the middle of its data; how it ended. Bounded by 60 s."""
        self.whole = False
        when: list[float] = []

        def act() -> None:
            when.append(time.monotonic())
            cut(process)

        self.proxy.when(after, act, up=upload)
        process = self.start(*(words or ("sync",)), **environment)
        _, said = process.communicate(timeout=60)
        assert when, f"the sync ended before the cut: {process.returncode} {said}"
        return Ended(process.returncode, said, time.monotonic() - when[0])

    # -- jobs

    def jobs(self, upload: bool) -> list[Path]:
        """Jobs whose input, or else whose output, is large; in the latter case they have ended, unknown to us."""
        if not self.whole:  # an earlier test failed; this one shall not fail for that
            self.proxy.resume()
            self.chasqui("login", "hpc")
        folders = [self._job(upload) for _ in range(JOBS)]
        self.chasqui("add", *map(str, folders))
        if not upload:
            self.chasqui("sync", "--no-results")
            self._await(lambda: len(list(self.root.glob("completed/[!.]*.flag"))) == self.made, 60, "the jobs' end")
        return folders

    def _job(self, upload: bool) -> Path:
        folder = self.tmp / f"job{self.made}"
        self.made += 1
        folder.mkdir()
        work = "" if upload else f"head -c {SIZE} /dev/urandom >out\n"
        (folder / "job.sh").write_text(f"#!/bin/sh\necho ran >>ran\n{work}cat in.dat out | sha256sum >sum\n"
                                       if work else "#!/bin/sh\necho ran >>ran\nsha256sum <in.dat >sum\n")
        (folder / "in.dat").write_bytes(os.urandom(SIZE if upload else 100))
        return folder

    def converges(self, folders: list[Path]) -> None:
        """After further syncs each job has run once, and every result is here and right."""
        end = time.monotonic() + 60
        while self.chasqui("sync")["data"]["counts"] != {"COMPLETED": self.made}:
            assert time.monotonic() < end, self.chasqui("list")
            time.sleep(0.3)
        listed = {Path(job["folder"]): job for job in self.chasqui("list")["data"]["jobs"]}
        for folder in folders:
            assert listed[folder]["results_state"] == "VERIFIED", listed[folder]
            results = folder / "results"
            assert (results / "ran").read_text() == "ran\n"
            content = (folder / "in.dat").read_bytes()
            if (results / "out").exists():
                content += (results / "out").read_bytes()
            assert (results / "sum").read_text().split()[0] == hashlib.sha256(content).hexdigest()
            assert not (results / ".chasqui").exists()
        self.whole = True

    # -- what must hold after a cut

    def nothing_half_done(self, folders: list[Path]) -> None:
        """There: every work folder is complete, and what waits has one. Here: only whole results under their names.

        And the cut was one: of `folders` not all have been uploaded and brought home.
        """
        works = {path.name: path for path in self.root.glob("work/[!.]*")}
        for path in works.values():
            for item in json.loads((path / ".chasqui" / "manifest.json").read_bytes())["files"]:
                assert hashlib.sha256((path / item["path"]).read_bytes()).hexdigest() == item["sha256"], path
        for script in self.root.glob("waiting/*/*/*.sh"):
            assert script.name.split(".")[1] in works, script
        verified = 0
        for job in self.chasqui("list")["data"]["jobs"]:
            folder = Path(job["folder"])
            verified += folder in folders and job["results_state"] == "VERIFIED"
            assert job["id"] in works or job["state"] == "QUEUED_LOCAL", job
            for found in folder.glob("results/[!.]*"):
                theirs = works[job["id"]] / found.name
                if theirs.exists():  # the scheduler's output files have other names there
                    assert found.read_bytes() == theirs.read_bytes()
        assert verified < len(folders)

    def agents(self) -> list[int]:
        return [pid for pid, words in self.lab.processes(self.user).items() if "serve --nonce" in words]

    def no_agent_after(self, seconds: float) -> float:
        return self._await(lambda: not self.agents(), seconds, "the end of the agent")

    def no_ssh_after(self, seconds: float) -> None:
        """No ssh command of ours hangs on here."""
        ours = self.environment["XDG_RUNTIME_DIR"]

        def commands() -> bool:
            done = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True)
            return any("ControlMaster=no" in words and ours in words for words in done.stdout.splitlines())

        self._await(lambda: not commands(), seconds, "the end of ssh")

    @staticmethod
    def _await(true: Callable[[], bool], seconds: float, what: str) -> float:
        start = time.monotonic()
        while not true():
            assert time.monotonic() - start < seconds, f"{what} did not come in {seconds} s"
            time.sleep(0.05)
        return time.monotonic() - start

    # -- cuts

    def kill_master(self, _: "subprocess.Popen[str]") -> None:
        folder = Path(self.environment["XDG_RUNTIME_DIR"], "chasqui")
        socket = next(path for path in folder.iterdir() if path.is_socket())
        asked = subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "check", "--", "any"], env=self.environment,
                               capture_output=True, text=True)
        found = re.search(r"pid=(\d+)", asked.stderr + asked.stdout)
        assert found, asked
        os.kill(int(found[1]), signal.SIGKILL)

    def kill_agent(self, _: "subprocess.Popen[str]") -> None:
        for pid in self.agents():
            os.kill(pid, signal.SIGKILL)

    def kill_ssh(self, client: "subprocess.Popen[str]") -> None:
        """The ssh command under the client. Its pipes stay open: the master has them too."""
        for child in Path(f"/proc/{client.pid}/task/{client.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)

    def silence(self, _: "subprocess.Popen[str]") -> None:
        self.proxy.silence()


@pytest.fixture(scope="module")
def line(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A client with the limits users have."""
    with Proxy(lab.port) as proxy:
        made = Line(lab, proxy, tmp_path_factory.mktemp("line"), "cut")
        yield made
        made.chasqui("logout", "hpc")


@pytest.fixture(scope="module")
def nervous(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A client whose master, and an account whose agents, wait seconds where others wait minutes."""
    rc = lab.user("bash").home / ".bashrc"
    before = rc.read_text()
    rc.write_text(f"export CHASQUI_IDLE={IDLE} CHASQUI_STALL={IDLE}\n")
    try:
        with Proxy(lab.port) as proxy:
            options = '"ServerAliveInterval=1", "ServerAliveCountMax=2"'
            made = Line(lab, proxy, tmp_path_factory.mktemp("nervous"), "silent", options)
            yield made
            proxy.resume()
            made.chasqui("logout", "hpc")
    finally:
        rc.write_text(before)


def broken(ended: Ended, hint: str) -> None:
    """Exit code 5, one line, the hint, and nothing else."""
    found = BROKEN.search(ended.said)
    assert ended.code == 5 and found, ended
    assert found[1] == hint
    assert "Traceback" not in ended.said
    said = [text for text in ended.said.splitlines() if text.startswith("chasqui:")]
    assert len(said) == 1, ended


def only_a_login_helps(line: Line) -> None:
    """Without a master a sync ends at once, and nobody tries to log in."""
    before = line.lab.counts()
    error = line.chasqui("sync", code=4)["error"]
    assert (error["kind"], error["hint"]) == ("NotConnected", "chasqui login hpc")
    assert line.lab.counts() == before
    line.chasqui("login", "hpc")
    assert (line.lab.counts() - before).authentications == 1


@BOTH
def test_the_master_is_killed(line: Line, upload: bool) -> None:
    folders = line.jobs(upload)
    before = line.lab.counts()
    ended = line.cut(upload, line.kill_master)
    broken(ended, LOGIN_HINT)
    assert ended.after < 10
    gone = line.no_agent_after(10)
    line.nothing_half_done(folders)
    assert (line.lab.counts() - before).authentications == 0
    only_a_login_helps(line)
    line.converges(folders)
    print(f"ended {ended.after:.1f} s after the kill, the agent {gone:.1f} s later: {ended.said}")


@BOTH
def test_the_network_falls_silent(nervous: Line, upload: bool) -> None:
    folders = nervous.jobs(upload)
    before = nervous.lab.counts()
    ended = nervous.cut(upload, nervous.silence)
    broken(ended, LOGIN_HINT)
    assert ALIVE - 1 < ended.after < ALIVE + 12
    # The line is still silent: the agent has nothing but its own clock.
    gone = nervous.no_agent_after(IDLE + 10)
    nervous.nothing_half_done(folders)
    assert (nervous.lab.counts() - before).authentications == 0
    nervous.proxy.resume()
    only_a_login_helps(nervous)
    nervous.converges(folders)
    print(f"ended {ended.after:.1f} s after the silence began, the agent {gone:.1f} s later: {ended.said}")


@BOTH
def test_the_client_gives_up_before_its_master_does(line: Line, upload: bool) -> None:
    """When the network is back the same master goes on: nobody has to log in."""
    folders = line.jobs(upload)
    before = line.lab.counts()
    ended = line.cut(upload, line.silence, CHASQUI_SILENCE="2")
    broken(ended, SYNC_HINT)
    assert 1.5 < ended.after < 12
    line.nothing_half_done(folders)
    line.proxy.resume()
    line.no_agent_after(10)
    line.converges(folders)
    assert (line.lab.counts() - before).authentications == 0
    print(f"ended {ended.after:.1f} s after the silence began: {ended.said}")


def test_a_logout_ends_a_connection_that_is_silent(line: Line) -> None:
    folders = line.jobs(upload=True)
    line.cut(True, line.silence, CHASQUI_SILENCE="1")
    start = time.monotonic()
    line.chasqui("logout", "hpc")
    assert time.monotonic() - start < 15
    line.proxy.resume()
    only_a_login_helps(line)
    line.converges(folders)


@BOTH
def test_a_short_silence_is_nothing(line: Line, upload: bool) -> None:
    folders = line.jobs(upload)
    before = line.lab.counts()

    def pause(_: object) -> None:
        time.sleep(2)  # on the proxy's own thread: nothing passes

    ended = line.cut(upload, pause)
    assert ended.code == 0, ended
    line.converges(folders)
    assert (line.lab.counts() - before).authentications == 0


@BOTH
def test_the_client_is_killed(line: Line, upload: bool) -> None:
    folders = line.jobs(upload)
    before = line.lab.counts()
    ended = line.cut(upload, lambda process: process.kill())
    assert ended.code == -signal.SIGKILL
    gone = line.no_agent_after(10)
    line.no_ssh_after(5)
    line.nothing_half_done(folders)
    line.converges(folders)
    counts = line.lab.counts() - before
    assert (counts.authentications, counts.connections) == (0, 0)
    print(f"the agent ended {gone:.1f} s after the client")


@BOTH
def test_ctrl_c(line: Line, upload: bool) -> None:
    folders = line.jobs(upload)
    before = line.lab.counts()
    ended = line.cut(upload, lambda process: process.send_signal(signal.SIGINT))
    assert ended.code == 130
    assert ended.said.endswith("\nchasqui: interrupted; nothing is half done, the next sync goes on from here\n")
    assert "Traceback" not in ended.said
    assert ended.after < 10
    gone = line.no_agent_after(10)
    line.no_ssh_after(5)
    line.nothing_half_done(folders)
    line.converges(folders)
    counts = line.lab.counts() - before
    assert (counts.authentications, counts.connections) == (0, 0)
    print(f"ended {ended.after:.1f} s after Ctrl-C, the agent {gone:.1f} s later")


@BOTH
def test_the_agent_is_killed(line: Line, upload: bool) -> None:
    folders = line.jobs(upload)
    before = line.lab.counts()
    ended = line.cut(upload, line.kill_agent)
    broken(ended, SYNC_HINT)
    assert ended.after < 10
    line.nothing_half_done(folders)
    line.converges(folders)
    counts = line.lab.counts() - before
    assert (counts.authentications, counts.connections) == (0, 0)
    print(f"ended {ended.after:.1f} s after the kill: {ended.said}")


@BOTH
def test_the_ssh_command_is_killed(line: Line, upload: bool) -> None:
    folders = line.jobs(upload)
    before = line.lab.counts()
    ended = line.cut(upload, line.kill_ssh)
    broken(ended, SYNC_HINT)
    assert ended.after < 10
    gone = line.no_agent_after(10)
    line.nothing_half_done(folders)
    line.converges(folders)
    counts = line.lab.counts() - before
    assert (counts.authentications, counts.connections) == (0, 0)
    print(f"ended {ended.after:.1f} s after the kill, the agent {gone:.1f} s later: {ended.said}")


def test_the_master_is_killed_while_the_agent_is_deployed(line: Line) -> None:
    """What stands there is either whole or not in use, and the next sync brings what is missing."""
    folders = line.jobs(upload=True)
    shutil.rmtree(line.root / "agent")
    ended = line.cut(True, line.kill_master, "agent", "deploy", after=60_000)
    broken(ended, LOGIN_HINT)
    assert ended.after < 10
    assert not (line.root / "agent" / "current").exists()
    only_a_login_helps(line)
    assert line.chasqui("sync")["data"]["deployed"] == "~/cut"
    line.converges(folders)
    assert not list((line.root / "agent").glob(".up-*"))
