"""SIGKILL to the client at every one of its own fault points: the next sync brings everything to its end, once."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chasqui_agent import fault
from chasqui_client import landing, ledger, session

TOP = Path(__file__).resolve().parents[2]
MODULES = tuple(module.__name__.split(".")[1] for module in (ledger, landing, session))
POINTS = sorted(name for name in fault.POINTS if name.split(".")[0] in MODULES)
LATER = (
    range(2, 9) if os.environ.get("CHASQUI_TEST_SIZE") == "long" else (2, 3, 5)
)  # one sync passes them several times
PASSES = [(name, nth) for name in POINTS for nth in (1, *LATER)]


class Laptop:
    """A home with the embedded remote, used through the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "CHASQUI_HOME": str(folder / "home"),
            "PYTHONPATH": f"{TOP / 'client'}:{TOP / 'agent'}",
        }
        self("init", "here", "--host", "local", "--root", str(folder / "root"))

    def __call__(self, *words: str, code: int = 0, **more: str) -> dict:
        done = subprocess.run(
            [sys.executable, "-m", "chasqui_client", words[0], "--json", *words[1:]],
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return json.loads(done.stdout.splitlines()[-1])["data"] if done.stdout else {}

    def jobs(self, *names: str) -> list[str]:
        made = []
        for name in names:
            folder = self.folder / name
            folder.mkdir()
            (folder / "job.sh").write_text(f"echo start >> '{self.folder}/ran-{name}'\ncat in.dat > out\ncp out out2\n"
                                           "head -c 600000 /dev/zero > large\n")
            (folder / "in.dat").write_text(name)
            made.append(str(folder))
        return made

    def finish(self, count: int) -> None:
        end = time.monotonic() + 60
        while self("sync").get("counts") != {"COMPLETED": count}:
            assert time.monotonic() < end
            time.sleep(0.2)


def killed_sync(laptop: Laptop, point: str, nth: int) -> bool:
    """One sync that dies at the point, if it gets there that often; whether it did."""
    once = laptop.folder / "once"
    done = subprocess.run(
        [sys.executable, "-m", "chasqui_client", "sync"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        env={**laptop.environment, "CHASQUI_FAULT": f"{point}:{nth}", "CHASQUI_FAULT_ONCE": str(once)},
    )
    assert done.returncode in ((-9,) if once.exists() else (0,)), done.stderr
    return once.exists()


@pytest.mark.parametrize("point, nth", PASSES)
def test_client_killed_at(tmp_path: Path, point: str, nth: int) -> None:
    """One job is done and its results are due, two are to be handed over: the killed sync has something of
    everything."""
    laptop = Laptop(tmp_path)
    laptop("add", *laptop.jobs("first"))
    laptop("sync", "--no-results")
    laptop("add", *laptop.jobs("second", "third"))
    killed = killed_sync(laptop, point, nth)
    assert killed or nth > 1, "no sync comes by " + point
    laptop.finish(3)
    laptop("sync")
    for name in ("first", "second", "third"):
        assert (tmp_path / f"ran-{name}").read_text() == "start\n", "run once"
        assert (tmp_path / name / "results" / "out").read_text() == name
        assert (tmp_path / name / "results" / "out2").read_text() == name
        assert (tmp_path / name / "results" / "large").read_bytes() == bytes(600_000)
    assert {job["results_state"] for job in laptop("list")["jobs"]} == {"VERIFIED"}
