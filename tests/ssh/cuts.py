"""The ground for cutting syncs at any byte: a client beyond a line that can be cut, jobs to move, and a watcher.

A campaign is a few jobs with large input that leave large results, so that a sync has bytes to carry both ways. All
content is random: a byte that is sent is a byte on the line, and what was sent twice shows in the sum. The line is slow
enough that little of what was sent is still in somebody's buffer when it breaks.
"""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ssh.accounts import owned_processes
from ssh.lab import Lab
from ssh.proxy import Proxy

TOP = Path(__file__).resolve().parents[2]
RATE = 6e6  # bytes a second each way
PATIENCE = 120.0
IMPATIENT = {"CHASQUI_SILENCE": "2"}  # seconds after which a client gives up a silent line, in place of 75
CONNECTION = ("line", "drop", "flip", "sshd", "ssh")  # the kinds after which somebody has to log in again
JOBS, INPUT, OUTPUT = 3, 2_000_000, 2_000_000  # jobs of a campaign, bytes of the large file of each, in and out
SMALL = 20_000
SCRIPT = f"#!/bin/sh\nhead -c {OUTPUT} /dev/urandom >large.out\nhead -c {SMALL} /dev/urandom >small.out\n"


class Cutter:
    """A client of its own, a root of its own on the lab's plain account, and a line between them that can be cut."""

    def __init__(self, lab: Lab, proxy: Proxy, tmp: Path, name: str, random_: random.Random) -> None:
        self.lab, self.proxy, self.tmp, self.user, self.random = lab, proxy, tmp, lab.user("plain"), random_
        self.root = self.user.home / name
        self.environment = {**lab.env(self.user), "PYTHONPATH": f"{TOP / 'client'}:{TOP / 'agent'}"}
        self.config = lab.config(self.user, port=proxy.port)
        Path(self.environment["CHASQUI_HOME"], "config.toml").write_text(
            f'[remotes.hpc]\nhost = "{self.user.host_alias}"\nssh_config = "{self.config}"\nroot = "~/{name}"\n'
            "[remotes.hpc.settings]\nquery_interval = 1\n"
        )
        self.folders: dict[Path, str] = {}  # of every job its id
        self.sessions = 0  # that went through the line
        self.lost = 0  # bytes that were under way to one who had been killed
        self.chasqui("login", "hpc")
        self.chasqui("agent", "deploy")

    # -- commands

    def start(self, *words: str, **environment: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "chasqui_client", *words]
        return subprocess.Popen(command, env={**self.environment, **environment}, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip

    def chasqui(self, *words: str) -> dict:
        """The data of one command that must succeed."""
        process = self.start(words[0], "--json", *words[1:])
        out, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, (words, out[-2000:], said[-2000:])
        return dict(json.loads(out.splitlines()[-1])["data"])

    # -- jobs

    def campaign(self) -> None:
        """More jobs, known to the ledger."""
        made = []
        for _ in range(JOBS):
            folder = self.tmp / f"job{len(self.folders) + len(made)}"
            folder.mkdir()
            files = {"large.in": INPUT, "small.in": SMALL, "empty.in": 0, "tiny.in": 1}
            for name, size in files.items():
                (folder / name).write_bytes(self.random.randbytes(size))
            (folder / "job.sh").write_text(SCRIPT)
            made.append(folder)
        self.chasqui("add", *map(str, made))
        known = {Path(job["folder"]): job["id"] for job in self.chasqui("list", "--all")["jobs"]}
        self.folders.update({folder: known[folder] for folder in made})

    def ran(self) -> None:
        """Every job that has been uploaded has ended there."""
        end = time.monotonic() + PATIENCE
        while len(list(self.root.glob("completed/[!.]*.flag"))) < len(list(self.root.glob("work/[!.]*"))):
            assert time.monotonic() < end, "the jobs did not end"
            time.sleep(0.05)

    def converge(self) -> None:
        """Whole syncs until every job is completed and every result here; both sides are right to the last byte."""
        end = time.monotonic() + PATIENCE
        while self._sync()["counts"] != {"COMPLETED": len(self.folders)}:
            assert time.monotonic() < end, self.chasqui("list", "--all")
            time.sleep(0.2)
        self._sync()
        self.watch()
        for job in self.chasqui("list", "--all")["jobs"]:
            assert job["results_state"] == "VERIFIED", job
        for folder, job in self.folders.items():
            for name in ("large.out", "small.out"):
                assert _digest(folder / "results" / name) == _digest(self.root / "work" / job / name)

    def overhead(self) -> int:
        """Bytes of a login and a sync without news, measured: what a session costs whatever it carries."""
        self.chasqui("logout", "hpc")
        before = self.crossed
        self.chasqui("login", "hpc")
        self._sync()
        return self.crossed - before

    def _sync(self) -> dict:
        self.sessions += 1
        return self.chasqui("sync")

    # -- what has crossed

    @property
    def crossed(self) -> int:
        """Bytes both ways, those left out that nobody was there to take."""
        return self.proxy.bytes_up + self.proxy.bytes_down - self.lost

    @property
    def content(self) -> int:
        """Bytes of all jobs' files and of all results that are here: what had to cross once."""
        return sum(path.stat().st_size for folder in self.folders for path in folder.rglob("*") if path.is_file())

    # -- a cut, and what must hold after it

    def cut(self, kind: str, place: int, up: bool) -> bool:
        """A sync to which `kind` happens after exactly `place` bytes in one direction; false where it ended before."""
        happened: list[int] = []
        self.sessions += 1
        process = None

        def act() -> None:
            happened.append(self._passed(up))
            getattr(self, f"_{kind}")(process, up)

        self.proxy.when(place, act, up=up)
        process = self.start("sync", **(IMPATIENT if kind == "drop" else {}))
        out, said = process.communicate(timeout=PATIENCE)
        self.proxy.forget()
        if kind == "drop" and happened:
            self.proxy.cut()  # what was on a line that is lost is lost
        self.proxy.resume()
        if not happened:
            assert process.returncode == 0, (kind, said)
            return False
        assert "Traceback" not in said, said
        assert process.returncode in (0, 4, 5, -signal.SIGKILL), (kind, place, process.returncode, out, said)
        self._no_agent()
        self.watch()
        if kind == ("agent" if up else "client"):
            self.lost += self._passed(up) - happened[0]
        if kind in CONNECTION:
            self.chasqui("logout", "hpc")  # a master may not have noticed yet
            self.chasqui("login", "hpc")
        return True

    def watch(self) -> None:
        """Whatever stands under a final name, there or here, is whole and right."""
        ids = {job: folder for folder, job in self.folders.items()}
        works = [path for path in self.root.glob("work/*") if not path.name.startswith(".")]
        for work in works:
            for name in ("job.sh", "large.in", "small.in", "empty.in", "tiny.in"):
                assert _digest(work / name) == _digest(ids[work.name] / name), f"{work}/{name}"
        for script in self.root.glob("waiting/*/*/*.sh"):
            assert any(work.name in script.name for work in works), script
        for folder, job in self.folders.items():
            for here in folder.glob("results/[!.]*"):
                there = self.root / "work" / job / here.name
                if there.exists():  # the scheduler's output has another name there
                    assert _digest(here) == _digest(there), here

    def _passed(self, up: bool) -> int:
        return self.proxy.bytes_up if up else self.proxy.bytes_down

    def _no_agent(self) -> None:
        end = time.monotonic() + PATIENCE
        while any("serve --nonce" in words for words in self.lab.processes(self.user).values()):
            assert time.monotonic() < end, "the agent does not end"
            time.sleep(0.02)

    # -- what can happen

    def _line(self, *_: object) -> None:
        self.proxy.cut()

    def _drop(self, *_: object) -> None:
        self.proxy.silence()

    def _flip(self, _: object, up: bool) -> None:
        self.proxy.flip(up)

    def _client(self, process: "subprocess.Popen[str] | None", _: bool) -> None:
        if process:
            process.kill()

    def _agent(self, *_: object) -> None:
        self._kill(pid for pid, words in self.lab.processes(self.user).items() if "serve --nonce" in words)

    def _sshd(self, *_: object) -> None:
        self._kill(pid for pid, words in owned_processes(self.user.name).items() if words.startswith("sshd"))

    def _ssh(self, *_: object) -> None:
        folder = Path(self.environment["XDG_RUNTIME_DIR"], "chasqui")
        sockets = [path for path in folder.iterdir() if path.is_socket()]
        asked = subprocess.run(["ssh", "-o", f"ControlPath={sockets[0]}", "-O", "check", "--", "any"],
                               env=self.environment, capture_output=True, text=True)  # fmt: skip
        found = re.search(r"pid=(\d+)", asked.stderr + asked.stdout)
        assert found, asked
        self._kill([int(found[1])])

    @staticmethod
    def _kill(pids: Iterable[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


KINDS = ("line", "drop", "flip", "client", "agent", "sshd", "ssh")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def places(random_: random.Random, total: int, count: int) -> list[int]:
    """`count` lengths that cut `total` bytes at random places, one after the other."""
    points = sorted(random_.sample(range(1, total), count))
    return [point - before for before, point in zip([0, *points], points, strict=False)]
