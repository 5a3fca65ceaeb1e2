"""The README's commands are run, as they stand, with this computer in place of the cluster; so is what it shows."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.blocks import AGENT_README, README, TOP, Command, commands, fenced, normal

ID = "r2nl"  # the failed job's, in the README
# Their words are about ssh, or about an editor; what they lead to is seen in the other commands.
NOT_COMPARED = ("chasqui login", "chasqui logout", "pip install", "vi ", "scp ", "ssh ")
NOT_SHOWN = "room: "  # names file systems of the machine
NOT_RUN = ("pip install", "vi ", "scp ", "ssh ", "sleep ")
CAPS = {"max_queued = 40": "max_queued = 4", "max_running = 30": "max_running = 2"}
SCRIPT = """\
#!/bin/sh
#PBS -l walltime=01:00:00
[ -s in.dat ] || { echo "in.dat is empty" >&2; exit 3; }
until [ -e "$HOME/monday" ]; do sleep 0.1; done
awk '{ sum += $2 } END { print sum / NR }' in.dat >mean.dat
"""


class Reader:
    """Somebody who types what the README says."""

    def __init__(self, path: Path) -> None:
        self.home, self.here = path / "home", path / "science"
        self.home.mkdir()
        self.here.mkdir()
        self.root = self.home / "chasqui"
        self.replaced = {str(self.home): "/home/jane"}
        self._programs(path / "bin")
        kept = {key: value for key, value in os.environ.items() if key != "CHASQUI_HOME"}
        self.environment = {**kept, "HOME": str(self.home), "PATH": f"{path}/bin:{os.environ['PATH']}"}

    def _programs(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "python3").symlink_to(sys.executable)
        packages = f"{TOP}/client:{TOP}/agent"
        client = f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} -m chasqui_client "$@"\n'
        (folder / "chasqui").write_text(client)
        (folder / "chasqui").chmod(0o755)

    def make_jobs(self) -> None:
        for name in ("T300", "T310", "T320", "T330", "T340", "T710"):
            (self.here / "runs" / name).mkdir(parents=True)
            (self.here / "runs" / name / "in.dat").write_text("" if name == "T710" else "1 2\n3 4\n")
        (self.here / "job.pbs").write_text(SCRIPT)

    def run(self, words: str) -> str:
        """What a command prints; it must succeed."""
        done = subprocess.run(words, shell=True, cwd=self.here, env=self.environment, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        assert done.returncode == 0, f"$ {words}\n{done.stdout}"
        return done.stdout

    def follow(self, command: Command) -> None:
        """Do one thing the README shows; the words must be the same but for numbers, times, ids and places."""
        if not command.words.startswith(NOT_RUN):
            said = self.run(self.translated(command.words)).splitlines()
            if not command.words.startswith(NOT_COMPARED):
                shown = [normal(line, {}) for line in command.output if not line.startswith(NOT_SHOWN)]
                lines = [normal(line, self.replaced) for line in said if not line.startswith(NOT_SHOWN)]
                assert lines == shown, f"$ {command.words}"

    def translated(self, words: str) -> str:
        words = words.replace("--host jane@login.hpc.example.edu", f"--host local --root {self.root}")
        return words.replace(ID, next((real for real, shown in self.replaced.items() if shown == ID), ID))

    def set_caps(self) -> None:
        config = self.home / ".chasqui" / "config.toml"
        text = config.read_text()
        for old, new in CAPS.items():
            assert old in text
            text = text.replace(old, new)
        config.write_text(text)

    def learn_id(self) -> None:
        """The failed job's id as `list` shows it."""
        line = self.run("chasqui list --name T710").splitlines()[1]
        self.replaced[line.split()[0] + " "] = ID + " "
        self.replaced[line.split()[0]] = ID

    def gate(self, is_open: bool) -> None:
        """Jobs end only while it is open: what a sync finds must not depend on this machine's speed."""
        (self.home / "monday").touch() if is_open else (self.home / "monday").unlink()

    def wait(self) -> None:
        """Until the relay has nothing left to do."""
        agent, end = f"python3 -I -S {self.root}/agent/current --root {self.root} status --json", time.monotonic() + 60
        while True:
            known = json.loads(self.run(agent))
            if not any(known[key] for key in ("waiting", "held", "submitting", "submitted")):
                return
            assert time.monotonic() < end, known
            time.sleep(0.1)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    made = Reader(tmp_path)
    yield made
    made.gate(True)  # a failed test must not leave jobs waiting for ever


def _block(path: Path, holds: str) -> list[Command]:
    return next(commands(text) for text in fenced(path, "console") if holds in text)


def test_the_session_and_leaving(reader: Reader) -> None:
    reader.make_jobs()
    for command in _block(README, "chasqui init"):
        if command.words.startswith("# Monday"):
            reader.gate(True)
            reader.wait()
            reader.learn_id()
            reader.gate(False)
        elif command.words.startswith("vi "):
            (reader.here / command.words.split()[1]).write_text("5 6\n")
        else:
            reader.follow(command)
        if command.words.startswith("chasqui init"):
            reader.set_caps()
    reader.gate(True)
    reader.wait()
    example = fenced(README, "python")[0]
    done = subprocess.run([sys.executable, "-c", example], cwd=reader.here, capture_output=True, text=True,
                          env={**reader.environment, "PYTHONPATH": f"{TOP}/client:{TOP}/agent"})
    assert done.returncode == 0 and "'completed': 1" in done.stdout, done.stderr
    for command in _block(README, "agent remove"):
        reader.follow(command)
    assert sorted(os.listdir(reader.root)) == ["work"] and not (reader.home / ".chasqui").exists()
    assert (reader.here / "runs/T300/results/mean.dat").read_text() == "3\n"


@pytest.mark.parametrize("path", [README, AGENT_README], ids=["README", "agent/README"])
def test_the_agent_by_hand(reader: Reader, path: Path) -> None:
    scripts = reader.here / "runs"
    scripts.mkdir()
    for number in (1, 2, 3):
        (scripts / f"scan{number}.sh").write_text("#!/bin/sh\npwd\nuntil [ -e ~/monday ]; do sleep 0.1; done\n")
    reader.run(f"PYTHONPATH={TOP}/client:{TOP}/agent python3 -m chasqui_client.build chasqui-agent.pyz")
    for command in _block(path, "chasqui-agent.pyz"):
        if command.words.startswith("sleep "):
            for script in (reader.root / "waiting").glob("*.sh"):
                os.utime(script, (time.time() - 10, time.time() - 10))
        reader.follow(command)
    reader.gate(True)
    (reader.root / "agent" / "current").symlink_to(reader.here / "chasqui-agent.pyz")
    reader.wait()
    output = next((reader.root / "work" / "scan1" / ".chasqui").glob("*.out"))
    assert output.read_text() == f"{reader.root}/work/scan1\n"
    assert (reader.root / "completed" / "scan1.1.flag").read_text().startswith("DONE\n")
