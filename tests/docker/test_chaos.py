"""Chaos on a PBS cluster of three hosts: compute hosts lose power, the PBS server is killed and is away, one reply in
twenty is lost while there is trouble, jobs are killed, sshd restarts in the middle of syncs, the disk is full.
All jobs end, each as PBS and its payload say, each payload ran once, the caps held, and the relay never stood still for
longer than its heartbeat.

The jobs take a second, so the relay's own times are shorter than by default, in the same order; PBS's are those of a
real server. CI takes the same jobs and troubles every time, the long size others; CHASQUI_CHAOS_SEED makes them again.
"""

import datetime
import json
import os
import random
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster

from conftest import Size
from docker.ground import Laptop, Sampler, until
from docker.trouble import Trouble, Window

MAX_QUEUED, MAX_RUNNING = 20, 10
GRACE, LEASE, HEARTBEAT = 10, 20, 60  # seconds; by default 300, 600, 900
SETTINGS = f"grace = {GRACE}\nlease = {LEASE}\nheartbeat = {HEARTBEAT / 60:g}\nquery_interval = "
PATIENCE = 600.0  # and for three quarters of it trouble, at most
NOTES, LOCKS = "/home/zsh/notes", "/home/zsh/locks"  # not on the disk that is filled
ENDED = {"COMPLETED", "FAILED", "LOST"}
KILLED = {265, -4, -20}  # SIGKILL, a host that started again, a host that was lost: PBS's own words

SCRIPT = f"""\
#!/bin/bash
exec 9>>{LOCKS}/{{n}}
flock -s 9
echo start {{n}} `date +%s.%N` $PBS_JOBID >>{NOTES}
sleep {{seconds}}
{{kind}}
cksum <in.dat >out; code=$?
[ $code = 0 ] && code={{code}}
echo end {{n}} `date +%s.%N` $code >>{NOTES}
exit $code
"""
SUICIDE = "pkill -KILL -s 0"  # runner, login shell and all


class Batch:
    """What each job is to be: its seconds, and who of them fails, is killed (from inside, or from outside after some
    seconds), or may be run again by PBS."""

    def __init__(self, jobs: int, rng: random.Random) -> None:
        self.jobs, self.seconds = jobs, [round(rng.uniform(0.1, 3.0), 2) for _ in range(jobs)]
        chosen = rng.sample(range(jobs), jobs * 15 // 100)
        killed = jobs // 50
        self.killed, self.shot = set(chosen[: killed // 2]), chosen[killed // 2 : killed]
        self.shots = {str(number): rng.uniform(0, self.seconds[number] + 0.5) for number in self.shot}
        self.failing, self.rerun = set(chosen[killed : 2 * killed]), set(chosen[2 * killed :])

    def write(self, path: Path) -> list[Path]:
        return [self.folder(path / f"job{number:04d}", number) for number in range(self.jobs)]

    def folder(self, folder: Path, number: int) -> Path:
        folder.mkdir(parents=True)
        (folder / "job.sh").write_text(SCRIPT.format(
            n=number, seconds=self.seconds[number], code=3 if number in self.failing else 0,
            kind=SUICIDE if number in self.killed else ""))  # fmt: skip
        (folder / "in.dat").write_bytes(b"%d\n" % number * 300)
        if number in self.rerun:
            (folder / "job.toml").write_text("rerun = true\n")
        return folder


@pytest.fixture
def interval(size: Size) -> int:
    """query_interval; by default 30. 1,000 jobs in ten minutes need nearly all the calls the relay may make in them."""
    return 10 if size.long else 5


@pytest.fixture
def laptop(cluster: Cluster, tmp_path: Path, interval: int) -> Laptop:
    cluster.execute("login", "runuser", "-u", "zsh", "mkdir", LOCKS)
    caps = f"max_queued = {MAX_QUEUED}\nmax_running = {MAX_RUNNING}"
    return Laptop(cluster, tmp_path / "laptop", "zsh", caps, f"{SETTINGS}{interval}", root="/scratch/zsh")


@contextmanager
def kept(laptop: Laptop, sampler: Sampler, path: Path) -> Iterator[None]:
    """Where it fails: what is there in the cluster, beside what pytest keeps."""
    try:
        yield
    except BaseException:
        (path / "table.json").write_text(laptop.cluster.execute("login", "ask-pbs", '{"verb": "table"}'))
        (path / "looks.json").write_text("".join(json.dumps(look) + "\n" for look in sampler.looks))
        packed = [*laptop.cluster.exec_command("login"), "tar", "-cz", laptop.root, NOTES]
        with open(path / "root.tar.gz", "wb") as packing:
            subprocess.run(packed, stdout=packing, stderr=subprocess.DEVNULL)
        raise


def test_chaos(laptop: Laptop, tmp_path: Path, size: Size, interval: int, capsys: pytest.CaptureFixture[str]) -> None:
    fresh = random.SystemRandom().randrange(1, 10**6) if size.long else 5
    seed = int(os.environ.get("CHASQUI_CHAOS_SEED", fresh))
    rng = random.Random(seed)
    batch = Batch(size.chaos, rng)
    folders = batch.write(tmp_path / "jobs")
    with capsys.disabled():
        print(f"\nchaos: CHASQUI_CHAOS_SEED={seed}, {batch.jobs} jobs", flush=True)
    listed = tmp_path / "list"
    listed.write_text("".join(f"{folder}\n" for folder in folders))
    assert len(laptop("add", "--from", str(listed))["jobs"]) == batch.jobs
    trouble = Trouble(laptop, rng, (16, 26) if size.long else (0.5, 3),
                      20, batch.shots)  # fmt: skip
    with Sampler(laptop, NOTES, LOCKS) as sampler, kept(laptop, sampler, tmp_path):
        began = time.time()
        assert visit(laptop)["uploaded"] == batch.jobs
        trouble.make(sampler, 100 if size.long else 1, lambda: (
            sampler.last()["settled"] > 0.9 * batch.jobs or time.time() - began > 0.75 * PATIENCE))  # fmt: skip
        until(lambda: sampler.last()["settled"] == batch.jobs, "all end", PATIENCE - (time.time() - began))
        took = time.time() - began
    visit(laptop)
    story = Story(batch, laptop, trouble)
    looks = Looks(sampler.looks, trouble.windows, story, interval)
    with capsys.disabled():
        print(f"{took:.0f} s; {story.described()}; {looks.described()}")
    story.check(folders)
    looks.check()


def visit(laptop: Laptop) -> dict[str, Any]:
    laptop("login", "hpc")
    done = laptop("sync")
    laptop("logout", "hpc")
    return done


class Story:
    """What everybody says of each job: the payload's notes, PBS, the relay's journal, the laptop's ledger."""

    def __init__(self, batch: Batch, laptop: Laptop, trouble: Trouble) -> None:
        self.batch, self.trouble = batch, trouble
        self.starts: dict[int, list[str]] = {number: [] for number in range(batch.jobs)}  # the ids of PBS
        self.codes: dict[int, list[int]] = {number: [] for number in range(batch.jobs)}
        for kind, number, _, said in map(str.split, laptop.there(f"cat {NOTES}").splitlines()):
            self.starts[int(number)].append(said) if kind == "start" else self.codes[int(number)].append(int(said))
        self.pbs = {row["id"]: row for row in trouble.ask({"verb": "table"})}
        self.journal = [json.loads(line.split(" ", 2)[2]) for line in laptop.there("cat log/*.seg").splitlines()]
        self.ends = {record["job"]: record for record in self.journal if record["ev"] in ("ended", "repaired")}
        self.ledger, self.fetched = read_ledger(laptop.home / "jobs.db")

    def check(self, folders: list[Path]) -> None:
        assert set(self.ledger) == set(range(self.batch.jobs)) and len(self.ends) == self.batch.jobs
        wrong = {number: what for number in self.ledger for what in [self.wrong(number)] if what}
        assert not wrong, wrong
        for number, folder in enumerate(folders):
            assert self.ledger[number]["results_state"] == "VERIFIED" or self.ledger[number]["state"] == "LOST", folder
            if 0 in self.codes[number]:
                came_home(folder)
        assert set(self.fetched.values()) == {1}, "results came home twice"
        assert all(self.trouble.count(kind) for kind in Trouble.KINDS)
        assert self.events("adopted") or self.batch.jobs < 1000, "of a few jobs perhaps none lost its reply"

    def wrong(self, number: int) -> str:
        """What is not as it should be about one job."""
        job, row = self.ledger[number], self.pbs.get(self.ledger[number]["pbs"], {})
        end, starts = self.ends[job["id"]], self.starts[number]
        told = (job, row.get("exit_status"), row.get("run_count"), end, starts, self.codes[number])
        if len(set(starts)) > 1 or len(starts) > (row.get("run_count", 1) if number in self.batch.rerun else 1):
            return "started more than once: %s" % (told,)
        if job["state"] != {"DONE": "COMPLETED", "FAIL": "FAILED", "LOST": "LOST"}[end["state"]]:
            return "the ledger says something else than the relay: %s" % (told,)
        return "" if (end["state"], end["exit"]) in self.true_ends(number, row) else "not the truth: %s" % (told,)

    def true_ends(self, number: int, row: dict[str, Any]) -> set[tuple[str, int | None]]:
        """The payload's own word where it had one; PBS's where PBS or somebody else killed it, perhaps after that, or
        before its first line."""
        ends = {("FAIL" if code else "DONE", code) for code in self.codes[number]}
        if row.get("exit_status") in KILLED:
            ends.add(("FAIL", row["exit_status"]))
        if row.get("exit_status") == 97 and row["run_count"] > 1 and not ends:
            ends.add(("LOST", None))  # the second start was refused, and the first one's host lost power
        return ends

    def events(self, kind: str) -> int:
        return sum(record["ev"] == kind for record in self.journal)

    def described(self) -> str:
        counts = Counter(job["state"].lower() for job in self.ledger.values())
        words = Counter(row["exit_status"] for row in self.pbs.values() if row["exit_status"] in KILLED)
        reruns = {number: len(ids) for number, ids in self.starts.items() if len(ids) > 1}
        events = {kind: self.events(kind) for kind in ("adopted", "closed", "duplicate", "repaired", "stalled")}
        return (
            f"{dict(counts)}; {sum(map(bool, self.starts.values()))} payloads started once, of these by PBS again"
            f" {len(reruns)}: {reruns}; PBS's words {dict(words)};"
            f" {sum((row['run_count'] or 0) > 1 for row in self.pbs.values())} queued again by PBS; {events};"
            f" troubles { {kind: self.trouble.count(kind) for kind in Trouble.KINDS} }, visits {self.trouble.visits}"
        )


def read_ledger(path: Path) -> tuple[dict[int, dict[str, Any]], Counter[str]]:
    """Each job by its number, and how often a job's results were complete."""
    with sqlite3.connect(path) as ledger:
        ledger.row_factory = sqlite3.Row
        jobs = {int(row["name"][3:]): dict(row) for row in ledger.execute(
            "SELECT name, id, state, exit, signal, why, pbs, results_state FROM jobs")}  # fmt: skip
        verified = ledger.execute("SELECT job FROM events WHERE event = 'results' AND new = 'results VERIFIED'")
        return jobs, Counter(row["job"] for row in verified)


def came_home(folder: Path) -> None:
    expected = subprocess.run(["cksum"], input=(folder / "in.dat").read_bytes(), capture_output=True).stdout
    assert (folder / "results/out").read_bytes() == expected, folder


class Looks:
    """What the sampler saw, against the caps, the heartbeat and the query interval."""

    def __init__(self, looks: list[dict[str, Any]], windows: list[Window], story: Story, interval: int) -> None:
        self.interval = interval
        # Who is killed may be in the middle of a pump.
        killed = [row["obittime"] for row in story.pbs.values() if row["exit_status"] in KILLED and row["obittime"]]
        self.looks, self.windows = looks, windows + [Window("killed", when - 1, when) for when in killed]
        self.moves = sorted(seconds(record["t"]) for record in story.journal
                            if record["ev"] in ("submitted", "adopted", "released"))  # fmt: skip
        calls = [(when, words) for look in looks for when, words in look.get("calls", ())]
        self.rounds = sorted(when for when, words in calls if words == "qselect -u zsh")
        self.calls = Counter(int(when // 60) for when, _ in calls)  # in each minute
        self.most = {series: max(look.get(series, 0) for look in looks) for series in ("alive", "fresh", "waiting")}
        self.stall, self.stalled_at = self.longest_stall()

    def excused(self, begin: float, end: float, kinds: tuple[str, ...]) -> bool:
        return any(window.kind in kinds and window.begin <= end and window.end >= begin for window in self.windows)

    def longest_stall(self) -> tuple[float, float]:
        """(seconds, when it ended): work waits, a payload could run, and nothing is submitted or released. The time in
        which no server or no room was there does not count, nor end it."""
        moves, stall, longest = list(self.moves), 0.0, (0.0, 0.0)
        for before, look in zip(self.looks, self.looks[1:], strict=False):
            moved = bool(moves) and moves[0] <= look["t"]
            while moves and moves[0] <= look["t"]:
                moves.pop(0)
            could = "free" in look and look["free"] < MAX_RUNNING and look["scripts"] + look["held"] > 0
            if moved or not could and "free" in look:
                stall = 0.0
            elif could and not self.excused(before["t"], look["t"], ("disk", "server down", "server killed")):
                stall += look["t"] - before["t"]
                longest = max(longest, (stall, look["t"]))
        return longest

    def too_soon(self) -> list[tuple[float, float]]:
        """Query rounds that came before their time, and nobody was killed and no disk was full in between."""
        pairs = zip(self.rounds, self.rounds[1:], strict=False)
        kinds = (*Trouble.KINDS, "killed")
        return [(b - a, b) for a, b in pairs if b - a < self.interval and not self.excused(a, b, kinds)]

    def described(self) -> str:
        soon = sum(b - a < self.interval for a, b in zip(self.rounds, self.rounds[1:], strict=False))
        gaps = max((b["t"] - a["t"] for a, b in zip(self.looks, self.looks[1:], strict=False)), default=0)
        return (
            f"{len(self.looks)} looks, {gaps:.2f} s apart at most: {self.most['alive']} payloads of {MAX_RUNNING},"
            f" {self.most['fresh']} waiting of {MAX_QUEUED} ({self.most['waiting']} with what PBS queued again);"
            f" longest stall {self.stall:.1f} s of {HEARTBEAT}; {len(self.rounds)} query rounds, {soon} within"
            f" {self.interval} s of the one before, {len(self.too_soon())} of these without a trouble;"
            f" {max(self.calls.values())} calls of PBS in the busiest minute"
        )

    def check(self) -> None:
        assert self.most["alive"] <= MAX_RUNNING
        assert self.most["fresh"] <= MAX_QUEUED
        assert self.stall <= HEARTBEAT, self.stalled_at
        assert not self.too_soon()


def seconds(moment: str) -> float:
    """Of a journal's time."""
    return datetime.datetime.fromisoformat(moment).timestamp()
