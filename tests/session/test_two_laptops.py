"""Two laptops share a root, and on each two shells add and sync at once: every job runs once, and is told of once."""

import json
import os
import signal
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest

from chasqui_agent import journal
from chasqui_client.cli import main
from conftest import Size
from session.desk import CONFIG, Desk

SHELLS = 2
PATIENCE = 300.0
TAKE_CAPS = "chasqui sync --take-caps"
ONCE = ("accepted", "submitted", "started", "ended")  # journal records of a job, of each one


class Laptop(Desk):
    """A home of its own, and a root that is not."""

    def __init__(self, path: Path, root: Path) -> None:
        super().__init__(path)
        self.root = root
        self.home.config_path.write_text(CONFIG % root)
        self.remote = type(self.remote)(**{**vars(self.remote), "root": str(root)})

    def shell(self, number: int, jobs: int) -> int:
        """A process that adds `jobs` jobs, some between two syncs, and syncs until all of this ledger have ended and
        their results are here; its pid."""
        pid = os.fork()
        if pid:
            return pid
        try:
            self.work(number, jobs)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def work(self, number: int, jobs: int) -> None:
        names = ["%s.%d.%03d" % (self.path.name, number, count) for count in range(jobs)]
        folders = [self.folder(name, "echo %s >out" % name) for name in names]
        uploaded, notes, end = 0, set(), time.monotonic() + PATIENCE
        for some in (folders[: jobs // 2], folders[jobs // 2 :]):
            self.add(*some)
            while not uploaded or some[-1] is folders[-1]:
                report = self.sync(wait=PATIENCE)
                uploaded += report.uploaded
                notes.update(report.notes)
                if self.all_here():
                    break
                assert time.monotonic() < end, report
                time.sleep(0.1)
        (self.path / ("told.%d" % number)).write_text(json.dumps([uploaded, sorted(notes)]))

    def all_here(self) -> bool:
        with self.ledger() as ledger:
            return all(job.ended for job in self.jobs()) and not ledger.results_wanted("here")

    def told(self) -> list[list]:
        return [json.loads((self.path / ("told.%d" % number)).read_text()) for number in range(SHELLS)]


@pytest.fixture
def laptops(tmp_path: Path) -> list[Laptop]:
    made = []
    for name in ("hers", "his"):
        (tmp_path / name).mkdir()
        made.append(Laptop(tmp_path / name, tmp_path / "root").deploy())
    return made


def all_at_once(laptops: list[Laptop], jobs: int) -> None:
    pids = {laptop.shell(number, jobs) for laptop in laptops for number in range(SHELLS)}
    try:
        while pids:
            pid, status = os.wait()
            pids.discard(pid)
            assert status == 0, "a shell failed, see above"
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_each_job_runs_once_and_is_told_of_once(laptops: list[Laptop], size: Size) -> None:
    jobs = size.jobs // 20
    all_at_once(laptops, jobs)
    root = laptops[0].root
    ledgers = [{job.id for job in laptop.jobs()} for laptop in laptops]
    assert [len(ids) for ids in ledgers] == [SHELLS * jobs] * 2 and not ledgers[0] & ledgers[1]
    records = [record for _, record in journal.records(str(root / "log")) if "job" in record]
    counted = Counter((record["ev"], record["job"]) for record in records if record["ev"] in ONCE)
    assert counted == Counter({(event, job): 1 for event in ONCE for job in ledgers[0] | ledgers[1]})
    for laptop in laptops:
        assert laptop.lines() == sorted(job.name for job in laptop.jobs()), "each ran once"
        assert sum(uploaded for uploaded, _ in laptop.told()) == SHELLS * jobs, "each went once"
        for job in laptop.jobs():
            assert laptop.completed(job).exit == 0
            with laptop.ledger() as ledger:
                told = Counter(event["event"] for event in ledger.events(job.id))
            assert [told[event] for event in ONCE] == [1] * len(ONCE), (job.name, told)
    notes = sorted({note for _, told in laptop.told() for note in told} for laptop in laptops)
    assert notes == [set(), {"the caps of this root belong to another ledger; to take them over: " + TAKE_CAPS}]


def test_foreign_jobs_are_shown_as_such(
        laptops: list[Laptop], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hers, his = laptops
    gate = hers.path / "go"
    hers.add(*[hers.folder("waits%d" % number, "until [ -e '%s' ]; do sleep 0.05; done" % gate) for number in range(3)])
    his.add(his.folder("waits", "until [ -e '%s' ]; do sleep 0.05; done" % gate))
    said = []
    for laptop in laptops:
        laptop.sync()
    for laptop in laptops:
        monkeypatch.setenv("CHASQUI_HOME", str(laptop.home.path))
        assert main(["status"]) == 0
        said.append(capsys.readouterr().out)
    gate.touch()
    for laptop in laptops:
        laptop.finish()
    for text, foreign in zip(said, ("1 job", "3 jobs"), strict=True):
        assert "  at least %s there not of this ledger: " % foreign in text
