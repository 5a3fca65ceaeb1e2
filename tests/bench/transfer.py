"""`make bench-transfer`: what moving files costs beside tar, rsync and dpdispatcher. As root, through a real sshd.

    transfer.py [--jobs 1000] [--rounds 5] [--big 10x20] [--submit 100] [--memory 20000] [--file 4096]
                [--rows uploads,vasp,downloads,submission,memory] [--into FOLDER]

Everybody uses one warm connection (dpdispatcher: its own, made before the clock starts), the rounds are interleaved,
medians are compared, and what arrived is compared byte for byte after every run. While files are moved no job is
submitted: one that sleeps has the only slot. chasqui's time holds all it does: hashes, fsync, proof, ledger, journal.

Writes transfer.md and transfer.svg; a bar that is missed is said there and makes the exit status 1.
"""

import argparse
import contextlib
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import needs
from bench import aside, contents, contest, disk, ground, memory, report, submission
from bench.contest import Contestant, Outcome, Side
from bench.report import Row
from ssh import lab as sshd
from ssh.lab import Lab

HERE = Path(__file__).resolve().parent
ALL_ROWS = ("uploads", "vasp", "downloads", "submission", "memory")


@dataclass(frozen=True)
class Asked:
    """How much is done; the command's options. `big` is (files, MB each), `file` MB."""

    jobs: int = 1000
    rounds: int = 5
    big: tuple[int, int] = (10, 20)
    submit: int = 100
    memory: int = 20_000
    file: int = 4096
    rows: tuple[str, ...] = ALL_ROWS
    cluster_python: str = "/usr/bin/python3"


def main() -> int:
    asked, into = _asked()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that sshd and its accounts go, too
    with disk.fresh() as place, sshd.running(str(place)) as lab:
        rows = run(lab, asked)
    report.write(rows, into, asked.jobs, asked.rounds)
    print((into / "transfer.md").read_text(encoding="utf-8"))
    return 0 if all(row.met for row in rows) else 1


def _asked() -> tuple[Asked, Path]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Asked()
    parser.add_argument("--jobs", type=int, default=default.jobs, help="jobs that are uploaded, and downloaded")
    parser.add_argument("--rounds", type=int, default=default.rounds, help="interleaved runs that the medians are of")
    parser.add_argument("--big", default="10x20", help="big result files, COUNTxMB")
    parser.add_argument("--submit", type=int, default=default.submit, help="jobs that are submitted to the mock PBS")
    parser.add_argument("--memory", type=int, default=default.memory, help="jobs while memory is looked at")
    parser.add_argument("--file", type=int, default=default.file, help="MB of the one big file, for memory")
    parser.add_argument("--rows", default=",".join(ALL_ROWS), help="which parts to run")
    parser.add_argument("--cluster-python", default=default.cluster_python, help="what runs the agent")
    parser.add_argument("--into", type=Path, default=HERE, help="where transfer.md and transfer.svg go")
    given = parser.parse_args()
    count, _, size = given.big.partition("x")
    return Asked(given.jobs, given.rounds, (int(count), int(size)), given.submit, given.memory, given.file,
                 tuple(given.rows.split(",")), given.cluster_python), given.into  # fmt: skip


def run(lab: Lab, asked: Asked) -> list[Row]:
    """All rows that are asked for, on a lab that runs."""
    needs.program("rsync")
    place = Path(tempfile.mkdtemp(prefix="cqbench-jobs-", dir=lab.folder.parent))
    rows: list[Row] = []
    try:
        with ground.installed_client() as python:
            if {"uploads", "vasp", "downloads"} & set(asked.rows):
                for slow in (False, True):
                    with Side(lab, "slow" if slow else "loop", python, asked.cluster_python, slow) as side:
                        rows += _transfers(side, place, asked)
            if "submission" in asked.rows:
                rows += submission.rows(lab, python, asked.cluster_python, place, asked.submit, asked.rounds)
            if "memory" in asked.rows:
                rows += memory.rows(lab, python, asked.cluster_python, place, asked.memory, asked.file)
    finally:
        shutil.rmtree(place)
    return report.in_order(rows)


def _transfers(side: Side, place: Path, asked: Asked) -> list[Row]:
    rows: list[Row] = []
    if "uploads" in asked.rows:
        with _folders(place) as here:
            folders = contents.small_jobs(here, asked.jobs, contest.SCRIPT, 1)
            rows += _upload_rows(side, "small", _uploads(side, here, folders, asked.rounds))
    if "vasp" in asked.rows:
        with _folders(place) as here:
            folders = contents.vasp_jobs(here, asked.jobs, contest.SCRIPT, 2)
            rows += _upload_rows(side, "vasp", _uploads(side, here, folders, asked.rounds))
    if "downloads" in asked.rows:
        rows.append(_downloads(side, place, "results", asked.jobs, asked.rounds, 0))
        rows.append(_downloads(side, place, "big", asked.big[0], asked.rounds, asked.big[1] * 1_000_000))
    return rows


@contextlib.contextmanager
def _folders(place: Path) -> Iterator[Path]:
    """A folder for one row."""
    here = Path(tempfile.mkdtemp(dir=place))
    yield here
    aside.put(here, place / "aside")


def _uploads(side: Side, here: Path, folders: list[Path], rounds: int) -> dict[str, Outcome]:
    outcomes = contest.rounds(side, rounds, {
        "chasqui": Contestant(side.fresh, lambda: side.uploads(folders), lambda: side.uploaded(folders)),
        "tar cz | ssh tar xz": Contestant(side.empty, lambda: side.tar_up(here), lambda: side.delivered(folders)),
        "rsync -az": Contestant(side.empty, lambda: side.rsync_up(here), lambda: side.delivered(folders)),
    })  # fmt: skip
    side.empty()
    return outcomes


def _upload_rows(side: Side, kind: str, outcomes: dict[str, Outcome]) -> list[Row]:
    times = {name: outcome.parts["all"] for name, outcome in outcomes.items()}
    with_add = outcomes["chasqui"].parts["add + sync"]
    rows = [Row(f"upload {kind}", side.name, "s", times, report.BARS[f"upload {kind}"], {"add + sync": with_add})]
    if side.slow:
        crossed = {name: outcome.parts["MB"] for name, outcome in outcomes.items()}
        rows.append(Row(f"wire {kind}", side.name, "MB", crossed, report.BARS.get(f"wire {kind}")))
    return rows


def _downloads(side: Side, place: Path, kind: str, count: int, rounds: int, size: int) -> Row:
    """Jobs that have run, with all their results still there, once for each round."""
    with _folders(place) as here:
        source = _ended_jobs(side, here, count, size)
        folders = sorted((here / "jobs").iterdir())
        outcomes = contest.rounds(side, rounds, {
            "chasqui": Contestant(lambda: _as_ended(side, here), lambda: _synced(side), lambda: _home(folders, source)),
            "ssh tar cz | tar xz": Contestant(
                lambda: _emptied(here / "bare"), lambda: side.tar_down(source, here / "bare"),
                lambda: [contest.same(there, here / "bare" / there.name) for there in source.iterdir()] and None),
        })  # fmt: skip
        side.forget()
        aside.put(source, side.lab.path("aside"))
    return Row(f"download {kind}", side.name, "s", {name: outcome.parts["all"] for name, outcome in outcomes.items()},
               report.BARS[f"download {kind}"])  # fmt: skip


def _ended_jobs(side: Side, here: Path, count: int, size: int) -> Path:
    """The state before a sync that brings all results home, kept in `here`; the results alone, there."""
    side.bare_root()
    random_ = random.Random(3)
    source = side.user.home / f"results-{side.name}"
    made: dict[str, dict[str, bytes]] = {}
    for number in range(count):
        made[f"{number:05d}"] = (
            contents.big_results(random_, number, size) if size else contents.small_results(random_)
        )
    ground.finish(side.desk, ground.make_folders(here / "jobs", count), lambda folder: made[folder.name])
    for name, files in made.items():
        contents.folder(source / name, files)
    sshd.give(source, side.user.name)
    shutil.copytree(side.desk.root, here / "root", symlinks=True)
    for path in side.desk.home.path.glob(contest.LEDGER):
        shutil.copy(path, here)
    return source


def _as_ended(side: Side, here: Path) -> None:
    """Nothing has come home yet."""
    side.end_jobs()
    side.forget()
    shutil.copytree(here / "root", side.desk.root, symlinks=True)
    sshd.give(side.desk.root, side.user.name)
    for path in here.glob(contest.LEDGER):
        shutil.copy(path, side.desk.home.path)
    for results in (here / "jobs").glob("*/results"):
        aside.put(results, here / "aside")


def _synced(side: Side) -> dict[str, float]:
    return {"all": contest.clock.seconds(side.desk.command("sync"), side.desk.environment)}


def _home(folders: list[Path], source: Path) -> None:
    for folder in folders:
        contest.same(source / folder.name, folder / "results")


def _emptied(place: Path) -> None:
    aside.put(place, place.parent / "aside")
    place.mkdir()


if __name__ == "__main__":
    sys.exit(main())
