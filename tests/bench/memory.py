"""Peak memory of client and agent: with one job, with many, with one big file, up and down."""

import filecmp
import os
import shutil
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

from bench import contents, ground, report
from bench.contest import SCRIPT, Side, WrongContent
from bench.report import Row
from ssh.lab import Lab, give

MB = 1 << 20


class Watch:
    """The highest VmHWM seen of processes whose command line has these words; it only rises, so a look now and then
    misses no more than the last moments before an end."""

    def __init__(self, **wanted: str) -> None:
        self.wanted, self.peaks = wanted, dict.fromkeys(wanted, 0)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _run(self) -> None:
        known: dict[str, str] = {}
        while not self.ended.wait(0.02):
            for pid in filter(str.isdigit, os.listdir("/proc")):
                with suppress(OSError, ValueError):
                    self._look(pid, known)

    def _look(self, pid: str, known: dict[str, str]) -> None:
        # The command line of a fork that has not called exec yet is its parent's: only what is found stays known.
        name = known.get(pid) or self._name(Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode())
        if name:
            known[pid] = name
            told = Path("/proc", pid, "status").read_text().partition("VmHWM:")[2].split()
            self.peaks[name] = max(self.peaks[name], int(told[0]) * 1024 if told else 0)  # a zombie has none

    def _name(self, words: str) -> str:
        # Not the shells around it: they carry the same words, and are small anyway.
        return next((name for name, text in self.wanted.items() if text in words and "python" in words.split()[0]), "")


def rows(lab: Lab, python: str, cluster_python: str, place: Path, many: int, big: int) -> list[Row]:
    """many: jobs of four files; big: MB of the one file."""
    with Side(lab, "memory", python, cluster_python) as side:
        made = []
        for jobs, file in ((1, 0), (many, 0), (1, big)):
            here = place / f"memory{jobs}-{file}"
            what = f"one file of {file} MB" if file else f"{jobs} job{'s' if jobs > 1 else ''} of 4 files"
            made.append(_row(f"{what}, up", _up(side, here / "up", jobs, file)))
            made.append(_row(f"{what}, down", _down(side, here / "down", jobs, file)))
            shutil.rmtree(here)
        return made


def _row(what: str, peaks: dict[str, float]) -> Row:
    return Row("memory", "loop", "MB", peaks, report.BARS["memory"], what=what)


def _up(side: Side, here: Path, jobs: int, file: int) -> dict[str, float]:
    side.fresh()
    folders = [_with_file(here / "0", file)] if file else contents.small_jobs(here, jobs, SCRIPT, 4)
    listed = side.lab.path("folders")
    listed.write_text("".join(f"{folder}\n" for folder in folders))
    peaks = _watched(side, side.desk.command("add", "--from", str(listed)))
    side.uploaded(folders)
    shutil.rmtree(here)
    return peaks


def _down(side: Side, here: Path, jobs: int, file: int) -> dict[str, float]:
    side.bare_root()
    folders = ground.make_folders(here, jobs)
    small = {"a.out": b"a" * 2000, "b.out": b"b" * 3000, "c.out": os.urandom(4000), "d.out": os.urandom(1000)}
    results = {} if file else small
    made = ground.finish(side.desk, folders, lambda folder: results)
    if file:
        work = side.desk.root / "work" / made[0].id
        _write_file(work / "file", file)
        give(work, side.user.name)
    peaks = _watched(side)
    for job, folder in zip(made, folders, strict=True):
        _have(folder / "results", results)
        if file and not filecmp.cmp(work / "file", folder / "results" / "file", shallow=False):
            raise WrongContent(str(folder))
    return peaks


def _have(folder: Path, results: dict[str, bytes]) -> None:
    if any((folder / name).read_bytes() != content for name, content in results.items()):
        raise WrongContent(str(folder))


def _watched(side: Side, *before: list[str]) -> dict[str, float]:
    """The peaks, in MB, of a sync and of the client's commands before it."""
    with Watch(client="-m chasqui_client", agent="--root .. serve") as watch:
        for argv in (*before, side.desk.command("sync")):
            subprocess.run(argv, env=side.desk.environment, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        time.sleep(0.2)
    if not all(watch.peaks.values()):
        raise RuntimeError(f"nothing seen of one of them: {watch.peaks}")
    print(f"  {watch.peaks}", flush=True)
    return {name: peak / MB for name, peak in watch.peaks.items()}


def _with_file(folder: Path, size: int) -> Path:
    contents.folder(folder, {"job.sh": SCRIPT})
    _write_file(folder / "file", size)
    return folder


def _write_file(path: Path, size: int) -> None:
    """`size` MB that nothing makes smaller: no packer looks back a whole MB."""
    piece = os.urandom(MB - 8)
    with open(path, "wb") as stream:
        for number in range(size):
            stream.write(number.to_bytes(8, "big") + piece)
