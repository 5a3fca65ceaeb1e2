"""Contestants that carry the same files over the same warm connection, in turn, each looked at afterwards."""

import filecmp
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench import aside, clock, ground
from bench.ground import Desk
from ssh import slow_line
from ssh.lab import Lab, give

RTT, RATE = 0.030, 12.5e6  # 30 ms, 100 Mbit/s each way
CAPS = "max_queued = 1\nmax_running = 1\nmax_total = 1"
BLOCKER = "#!/bin/sh\nexec sleep 100000\n"
SCRIPT = b"#!/bin/sh\ntrue\n"
# What the agent and the client keep of a campaign; the deployed agent stays.
LEDGER = "jobs.db*"


@dataclass
class Contestant:
    """`prepare` and `check` are not timed; `run` returns seconds by part, of which "all" is what is compared."""

    prepare: Callable[[], None]
    run: Callable[[], dict[str, float]]
    check: Callable[[], None]


@dataclass
class Outcome:
    """Medians of one contestant, by part in seconds; "MB" is what crossed the line where that is counted."""

    parts: dict[str, float] = field(default_factory=dict)


class WrongContent(Exception):
    """A contestant delivered something else than it was given."""


class Side:
    """One line to the sshd: an account's home beyond it, a client of ours with a live master, and what crosses it."""

    def __init__(self, lab: Lab, name: str, python: str, cluster_python: str, slow: bool = False) -> None:
        self.lab, self.name, self.slow, self.user = lab, name, slow, lab.user("plain")
        self.counts = slow_line.new_count(lab.path(f"counts-{name}")) if slow else None
        self.desk = Desk(lab, self.user, python, cluster_python, CAPS, f"bench-{name}", self._ssh_config())
        self.bare = self.user.home / f"bare-{name}"

    def __enter__(self) -> "Side":
        self.desk.chasqui("login", "bench")
        return self

    def __exit__(self, *_: object) -> None:
        self.end_jobs()
        self.desk.chasqui("logout", "bench")

    def _ssh_config(self) -> Path:
        config = self.lab.config(self.user)
        if self.slow:
            with open(config, "a") as more:
                more.write(f"    ProxyCommand {self.line('%p')}\n")
        return config

    def line(self, port: str) -> str:
        """The ProxyCommand of this side; empty where it needs none."""
        argv = [sys.executable, slow_line.__file__, "--port", port, "--rtt", str(RTT), "--rate", str(RATE)]
        return ground.shown([*argv, "--count", str(self.counts)]) if self.slow else ""

    def crossed(self) -> int:
        """Bytes both ways so far; 0 where nobody counts."""
        return sum(slow_line.counted(self.counts)) if self.counts else 0

    def end_jobs(self) -> None:
        """What runs in our root ends: the job that kept all others waiting, its runner, an agent."""
        end = time.monotonic() + 20
        while found := [pid for pid, words in self.lab.processes(self.user).items() if self._is_ours(pid, words)]:
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > end:
                raise RuntimeError(f"still there: {found}")
            time.sleep(0.05)

    def _is_ours(self, pid: int, words: str) -> bool:
        """Not the connection's own processes: between fork and exec they have any name."""
        with suppress(OSError):
            stands = Path(os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)"))
            return stands.is_relative_to(self.desk.root) or str(self.desk.root) in words
        return False

    # -- chasqui

    def fresh(self) -> None:
        """No job, no content there or here from before; one job occupies the only slot, so that none is submitted."""
        self.bare_root()
        blocker = self.lab.path("blocker")
        blocker.mkdir(exist_ok=True)
        (blocker / "job.sh").write_text(BLOCKER)
        self.desk.chasqui("add", str(blocker))
        for _ in range(2):  # the second as every later one: its command starts ahead of the imports
            self.desk.chasqui("sync")

    def bare_root(self) -> None:
        """An agent that has never had a job, and a ledger that knows none."""
        self.end_jobs()
        self.forget()
        self.desk.chasqui("agent", "deploy")

    def forget(self) -> None:
        """Ledger and root are gone, whatever a job's end still wrote there."""
        end = time.monotonic() + 20
        while self.desk.root.exists():
            self.end_jobs()
            with suppress(OSError if time.monotonic() < end else ()):
                aside.put(self.desk.root, self.lab.path("aside"))
        for path in self.desk.home.path.glob(LEDGER):
            path.unlink()

    def uploads(self, folders: list[Path]) -> dict[str, float]:
        """add and sync of these jobs."""
        listed = self.lab.path("folders")
        listed.write_text("".join(f"{folder}\n" for folder in folders))
        add = clock.seconds(self.desk.command("add", "--from", str(listed)), self.desk.environment)
        sync = clock.seconds(self.desk.command("sync"), self.desk.environment)
        return {"all": sync, "add": add, "add + sync": add + sync}

    def uploaded(self, folders: list[Path]) -> None:
        """Every file of every job stands in its work folder there, and none of them has been submitted."""
        jobs = {Path(job["folder"]): job for job in self.desk.chasqui("list", "--all")["jobs"]}
        for folder in folders:
            same(folder, self.desk.root / "work" / jobs[folder]["id"])
        live = list(self.desk.root.glob("submitt*/*.sh"))
        if len(live) != 1:
            raise WrongContent(f"{len(live)} jobs were submitted in place of the one that keeps the slot")

    # -- everybody else

    def empty(self) -> None:
        aside.put(self.bare, self.lab.path("aside"))
        self.bare.mkdir()
        give(self.bare, self.user.name)

    def tar_up(self, place: Path) -> dict[str, float]:
        return self._piped(f"tar -C {place} -cz . | {ground.shown(self.desk.ssh(f'exec tar -C {self.bare} -xz'))}")

    def tar_down(self, source: Path, place: Path) -> dict[str, float]:
        return self._piped(f"{ground.shown(self.desk.ssh(f'exec tar -C {source} -cz .'))} | tar -C {place} -xz")

    def rsync_up(self, place: Path) -> dict[str, float]:
        *ssh, _, host, _ = self.desk.ssh("-")
        argv = ["rsync", "-az", "-e", ground.shown(ssh), f"{place}/", f"{host}:{self.bare}/"]
        return {"all": clock.seconds(argv, self.desk.environment)}

    def delivered(self, folders: list[Path]) -> None:
        for folder in folders:
            same(folder, self.bare / folder.name)

    def _piped(self, line: str) -> dict[str, float]:
        return {"all": clock.seconds(["bash", "-c", f"set -o pipefail; {line}"], self.desk.environment)}


def same(ours: Path, theirs: Path) -> None:
    """Every file of `ours` is in `theirs`, byte for byte. Raises WrongContent."""
    filecmp.clear_cache()  # it believes times and sizes, and a tar brings those back
    names = [path.name for path in ours.iterdir() if path.is_file()]
    _, differing, missing = filecmp.cmpfiles(ours, theirs, names, shallow=False)
    if differing or missing:
        raise WrongContent(f"{theirs}: {differing} differ, {missing} cannot be read")


def rounds(side: Side, count: int, contestants: Mapping[str, Contestant]) -> dict[str, Outcome]:
    """Each contestant once a round; what it delivered is looked at before the next one starts."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for number in range(count):
        for name, contestant in contestants.items():
            contestant.prepare()
            os.sync()  # what the one before left to be written is not this one's time
            before = side.crossed()
            parts = contestant.run()
            parts["MB"] = (side.crossed() - before) / 1e6
            contestant.check()
            taken[name].append(parts)
            shown = json.dumps({part: round(value, 2) for part, value in parts.items()})
            print(f"  {side.name} {number + 1}/{count} {name}: {shown}", flush=True)
    return {name: Outcome(_medians(values)) for name, values in taken.items()}


def _medians(values: list[dict[str, float]]) -> dict[str, float]:
    return {part: statistics.median(value[part] for value in values) for part in values[0]}


def version(*argv: str) -> str:
    """The first line of what a program says of itself."""
    done = subprocess.run(argv, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()[0]
