"""Friday to Monday: one login, one sync, logout; the relay alone runs the whole batch; one login, one sync bring it
home.

Through a real sshd with one-time codes, on Python 3.6 and a tcsh account, caps 8 queued and 4 running. The jobs are
of all kinds a user writes. A sampler reads the slot table every 50 ms; the payloads note their own start and end.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ssh.lab import Counts, Lab

TOP = Path(__file__).resolve().parents[2]
MAX_RUNNING, MAX_QUEUED = 4, 8
NOTE = "echo start `date +%s.%N` >> count"
ENDS = {
    "bash": f"#!/bin/bash\n#PBS -N bash-job\n{NOTE}\ncat in.dat shared.dat | cksum > out\nsleep 0.4\n",
    "csh": f"#!/bin/csh -f\n{NOTE}\ncat in.dat shared.dat | cksum > out\nsleep 0.4\n",
    "python": "#!/usr/bin/env python3\nimport os, subprocess, time\n"
    "open('count', 'a').write('start %f\\n' % time.time())\n"
    "subprocess.call('cat in.dat shared.dat | cksum > out', shell=True)\ntime.sleep(0.4)\n",
    "set -e": f"#!/bin/sh\nset -e\n{NOTE}\ncat in.dat shared.dat | cksum > out\ntrue\n",
    "exec": f"#!/bin/sh\n{NOTE}\nexec sh -c 'cat in.dat shared.dat | cksum > out'\n",
    "trap": f"#!/bin/bash\ntrap 'cat in.dat shared.dat | cksum > out' EXIT\n{NOTE}\n",
    "workdir": f"#!/bin/bash\n#PBS -j oe\ncd /\ncd $PBS_O_WORKDIR\n{NOTE}\ncat in.dat shared.dat | cksum > out\n",
    "no shebang": f"{NOTE}\ncat in.dat shared.dat | cksum > out\n",
    "fails": f"#!/bin/sh\n{NOTE}\ncat in.dat shared.dat | cksum > out\nexit 3\n",
}


class Laptop:
    """A client of its own against the lab's tcsh account."""

    def __init__(self, lab: Lab, python: Path) -> None:
        self.lab, self.user = lab, lab.user("tcsh")
        self.environment = {**lab.env(self.user), "PYTHONPATH": f"{TOP / 'client'}:{TOP / 'agent'}"}
        home = Path(self.environment["CHASQUI_HOME"])
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.toml").write_text(
            f'[remotes.hpc]\nhost = "{self.user.host_alias}"\nssh_config = "{self.user.ssh_config}"\n'
            f'root = "~/weekend"\npython = "{python}"\n'
            f"[remotes.hpc.caps]\nmax_running = {MAX_RUNNING}\nmax_queued = {MAX_QUEUED}\n"
        )

    def __call__(self, *words: str) -> dict:
        done = subprocess.run(
            [sys.executable, "-m", "chasqui_client", words[0], "--json", *words[1:]],
            env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
        )
        assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
        return dict(json.loads(done.stdout.splitlines()[-1])["data"])

    def counted(self, *words: str) -> tuple[dict, Counts]:
        before = self.lab.counts()
        return self(*words), self.lab.counts() - before


class Sampler(threading.Thread):
    """Reads the slot table every 50 ms: the most jobs queued or held, and the most payloads running, it ever saw."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        self.root, self.over = root, threading.Event()
        self.queued = self.running = self.samples = 0

    def run(self) -> None:
        while not self.over.wait(0.05):
            try:
                jobs = json.loads((self.root / "shell" / "table.json").read_bytes())["jobs"].values()
            except FileNotFoundError:
                continue
            self.samples += 1
            self.queued = max(self.queued, sum(job["state"] in "QH" for job in jobs))
            self.running = max(self.running, sum(job["state"] == "R" and not self._ended(job) for job in jobs))

    def _ended(self, job: dict) -> bool:
        """A payload's end is its runner's flag; the job stays R while its tail pumps."""
        flags = Path(job["script"]).parent.glob(f"flag.{job['token']}.*")
        return any(flag.suffix != ".new" for flag in flags)


@pytest.fixture
def folders(tmp_path: Path, size) -> list[Path]:
    made = []
    for number in range(size.jobs):
        kind, script = list(ENDS.items())[number % len(ENDS)]
        folder = tmp_path / f"{number:04d} {kind}"
        folder.mkdir()
        (folder / "job.sh").write_text(script)
        (folder / "in.dat").write_bytes(b"%d\n" % number * 300)
        (folder / "shared.dat").write_bytes(b"the same everywhere\n" * 5000)
        made.append(folder)
    return made


def wait_for_the_relay(root: Path, count: int) -> None:
    """Nobody but the relay itself may do anything now."""
    end = time.monotonic() + 5.0 * count
    while (done := len(list((root / "completed").glob("[!.]*.flag")))) < count:
        assert time.monotonic() < end, f"{done} of {count} after the patience ran out"
        time.sleep(0.2)


def test_the_weekend(lab: Lab, python36_for_users: Path, folders: list[Path]) -> None:
    laptop = Laptop(lab, python36_for_users)
    root = laptop.user.home / "weekend"
    assert len(laptop("add", *map(str, folders))["jobs"]) == len(folders)
    laptop("login", "hpc")
    laptop("agent", "deploy")
    laptop("logout", "hpc")

    sampler = Sampler(root)
    sampler.start()
    _, login = laptop.counted("login", "hpc")
    friday, sync = laptop.counted("sync")
    laptop("logout", "hpc")
    assert (login.authentications, sync.authentications, sync.execs, sync.connections) == (1, 0, 1, 0)
    assert friday["uploaded"] == len(folders)
    wait_for_the_relay(root, len(folders))
    sampler.over.set()
    sampler.join()

    _, login = laptop.counted("login", "hpc")
    monday, sync = laptop.counted("sync")
    laptop("logout", "hpc")
    assert (login.authentications, sync.authentications, sync.execs) == (1, 0, 1)
    failing = sum(folder.name.endswith("fails") for folder in folders)
    assert monday["counts"] == {"COMPLETED": len(folders) - failing, "FAILED": failing}
    for folder in folders:
        expected = subprocess.run("cat in.dat shared.dat | cksum", shell=True, cwd=folder, capture_output=True).stdout
        assert (folder / "results" / "out").read_bytes() == expected, folder
        assert (folder / "results" / "count").read_text().count("start") == 1, folder
    print(
        f"{len(folders)} jobs, each once; {sampler.samples} samples: at most {sampler.running} payloads running of"
        f" {MAX_RUNNING}, {sampler.queued} queued of {MAX_QUEUED}; one authentication a login, one exec a sync"
    )
    assert sampler.samples > 20
    assert sampler.running <= MAX_RUNNING
    assert sampler.queued <= MAX_QUEUED
