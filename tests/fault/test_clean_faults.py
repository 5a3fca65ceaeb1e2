"""SIGKILL in the middle of a clean, on either side: what is left is right, and the next clean completes it."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from chasqui_agent import clean as agent_clean  # noqa: F401  registers its points
from chasqui_agent import fault
from chasqui_client.cleanup import clean  # noqa: F401
from fault.test_client_faults import Laptop

POINTS = sorted(name for name in fault.POINTS if name.split(".")[0] in ("clean", "cleanup"))
PASSES = [(name, 1) for name in POINTS] + [(name, nth) for name in POINTS for nth in (2, 5) if "unlink" in name]


class Cleaned(Laptop):
    """Two jobs that ended days ago."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self("add", *self.jobs("first", "second"))
        self("sync")
        self.finish(2)
        self("sync")
        with sqlite3.connect(folder / "home" / "jobs.db") as db:
            db.execute("UPDATE proofs SET at = at - 100000, up = up - 100000")
            db.execute("UPDATE attempts SET added = '2020-01-01T00:00:00Z'")
        db.close()
        self.ids = [job["id"] for job in self("list")["jobs"]]

    def states(self) -> set[str]:
        return {job["results_state"] for job in self("list")["jobs"]}

    def left(self) -> list[str]:
        """What stands in the work folders besides what is the relay's own."""
        return sorted(str(path.relative_to(self.folder / "root" / "work")) for job in self.ids
                      for path in (self.folder / "root" / "work" / job).glob("[!.]*"))

    def killed(self, point: str, nth: int) -> None:
        once = self.folder / "once"
        fault_there = {"CHASQUI_FAULT": f"{point}:{nth}", "CHASQUI_FAULT_ONCE": str(once)}
        done = subprocess.run([sys.executable, "-m", "chasqui_client", "clean", "--yes"], stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=120, env={**self.environment, **fault_there})
        assert once.exists(), "no clean comes by " + point
        ours = point.startswith("cleanup.")
        assert done.returncode == (-9 if ours else 5), (done.stdout, done.stderr)

    def whole(self) -> None:
        for name in ("first", "second"):
            assert (self.folder / name / "results" / "out").read_text() == name


@pytest.mark.parametrize("point, nth", PASSES)
def test_clean_killed_at(tmp_path: Path, point: str, nth: int) -> None:
    laptop = Cleaned(tmp_path)
    assert len(laptop.left()) == 10
    laptop.killed(point, nth)
    assert laptop.states() <= {"CLEANUP_ELIGIBLE", "CLEANED"}
    laptop("sync")  # it takes a half-cleaned folder for no news of what came home
    laptop.whole()
    again = laptop("clean", "--yes")
    assert [job["why"] for job in again["jobs"]] in ([""] * 2, [])
    assert laptop.left() == [] and laptop.states() == {"CLEANED"}
    laptop("verify")
    laptop.whole()


@pytest.mark.parametrize("point", ["clean.unlink.after", "clean.folders.before"])
def test_what_appears_after_a_kill_survives(tmp_path: Path, point: str) -> None:
    laptop = Cleaned(tmp_path)
    laptop.killed(point, 1)
    for job in laptop.ids:
        (tmp_path / "root" / "work" / job / "late").write_text("new")
    again = laptop("clean", "--yes")
    assert [job["why"] for job in again["jobs"]] == ["appeared"] * 2
    assert all(f"{job}/late" in laptop.left() for job in laptop.ids)
    assert laptop.states() == {"VERIFIED"}
    for job in laptop.ids:
        os.unlink(tmp_path / "root" / "work" / job / "late")
    laptop("clean", "--yes")
    assert laptop.left() == [] and laptop.states() == {"CLEANED"}
