"""`make demo`: 24 jobs of a temperature scan, with the commands a user would type, in a folder of their own.

    python -m chasqui_client.demo

Needs Python alone: no network, no batch system. Exit 0 only if all 24 jobs completed and their results arrived whole.
"""

import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chasqui_agent
import chasqui_client

from .. import config, errors

JOBS = 24
TEMPERATURES = [round(1.0 + 0.1 * i, 1) for i in range(JOBS)]  # around the transition at 2.269
SIZE, SWEEPS = 32, 10_000
TOLERANCE = 0.1  # of the energy per spin: a finite lattice differs, most of all at the transition
CAPS = {"max_queued": 6, "max_running": 4}

_SCRIPT = """\
#!/bin/sh
#PBS -N ising
#PBS -l walltime=00:10:00
exec %s ising.py
"""


class Failed(Exception):
    """The demo did not show what it says; the message says where it stopped."""


class Demo:
    """The folder of one demo and the commands run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        packages = (Path(package.__file__ or "").parents[1] for package in (chasqui_client, chasqui_agent))
        self.path = os.pathsep.join(dict.fromkeys(map(str, packages)))
        self.environment = {**os.environ, "CHASQUI_HOME": str(folder / "home"), "PYTHONPATH": self.path}

    def command(self, *words: str, shown: str = "") -> None:
        """Print a command as a user would type it, and run it with its output going where ours goes."""
        print("\n$ chasqui %s" % (shown or " ".join(words)), flush=True)
        status = self._run(words).returncode
        if status:
            raise Failed("`chasqui %s` ended with %d" % (words[0], status))

    def answer(self, *words: str) -> str:
        """What a command prints."""
        done = self._run(words, stdout=subprocess.PIPE)
        if done.returncode:
            raise Failed("`chasqui %s` ended with %d" % (words[0], done.returncode))
        return done.stdout

    def _run(self, words: Sequence[str], stdout: int | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-m", "chasqui_client", *words], cwd=self.folder, env=self.environment,
                              stdin=subprocess.DEVNULL, stdout=stdout, encoding="utf-8", errors="replace")


def main() -> int:
    """Run the demo; 0 where it showed what it promises, 1 where not, 130 where it was interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    started = time.monotonic()
    demo = Demo(_folder())
    try:
        _show(demo)
    except Failed as error:
        print("\nchasqui demo: %s\nwhat there is of it: %s" % (error, demo.folder), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; taking the jobs back", file=sys.stderr)
        for words in (("cancel", "--all", "--yes"), ("sync", "--no-results")):
            demo._run(words, stdout=subprocess.DEVNULL)
        return 130
    print("took %.0f s" % (time.monotonic() - started))
    return 0


def _show(demo: Demo) -> None:
    print("24 Ising models at 24 temperatures, %d running at a time, relayed on this computer." % CAPS["max_running"])
    print("Everything is in %s; `chasqui` below is python -m chasqui_client there." % demo.folder)
    _make_jobs(demo.folder / "jobs")
    demo.command("init", "local", "--host", "local", "--root", str(demo.folder / "relay"))
    _set_caps(demo.folder / "home" / "config.toml")
    demo.command("add", *("jobs/" + name for name in sorted(os.listdir(demo.folder / "jobs"))), shown="add jobs/*")
    demo.command("sync")
    demo.command("sync", "--watch", "2")
    demo.command("list")
    _tell_results(_verified(demo))
    print("\n$ chasqui agent log | tail -n 4")
    print("\n".join(demo.answer("agent", "log").splitlines()[-4:]))
    print("\n%d COMPLETED, their results verified by SHA-256: %s" % (JOBS, demo.folder / "jobs" / "T1.0" / "results"))
    print("                                               .. %s" % (demo.folder / "jobs" / "T3.3" / "results"))
    print("look around:  export CHASQUI_HOME=%s PYTHONPATH=%s" % (
        shlex.quote(demo.environment["CHASQUI_HOME"]), shlex.quote(demo.path)))
    print("              %s -m chasqui_client show T2.3" % shlex.quote(sys.executable))
    print("forget it:    rm -r %s" % shlex.quote(str(demo.folder)))


# -- what is made ------------------------------------------------------------------------------------------------------


def _folder() -> Path:
    """A new folder whose path a remote's root may begin with; /tmp where $TMPDIR can't be used for that."""
    for place in (tempfile.gettempdir(), "/tmp"):
        try:
            config.check_root(place)
            return Path(tempfile.mkdtemp(prefix="chasqui-demo-", dir=place))
        except (errors.BadInput, OSError):
            continue
    raise SystemExit("chasqui demo: no folder for temporary files; set TMPDIR")


def _make_jobs(folder: Path) -> None:
    """24 folders of three files each, as somebody's own script would make them."""
    program = Path(__file__).with_name("ising.py").read_bytes()
    for number, temperature in enumerate(TEMPERATURES):
        job = folder / ("T%.1f" % temperature)
        job.mkdir(parents=True)
        (job / "ising.py").write_bytes(program)
        (job / "job.sh").write_text(_SCRIPT % shlex.quote(sys.executable))
        asked = {"temperature": temperature, "size": SIZE, "sweeps": SWEEPS, "seed": number}
        (job / "parameters.json").write_text(json.dumps(asked) + "\n")


def _set_caps(path: Path) -> None:
    """What the user does with her editor."""
    print("\n$ vi home/config.toml          # %s" % ", ".join("%s = %d" % item for item in CAPS.items()))
    lines = path.read_text("utf-8").splitlines()
    for number, line in enumerate(lines):
        key = line.partition("=")[0].strip()
        if key in CAPS:
            lines[number] = "%s = %d" % (key, CAPS[key])
    path.write_text("\n".join(lines) + "\n", "utf-8")


# -- what came of it ---------------------------------------------------------------------------------------------------


def _verified(demo: Demo) -> list[dict[str, float]]:
    """The 24 results. Raises Failed unless every job completed, its results are verified, and physics agrees."""
    jobs = json.loads(demo.answer("list", "--json"))["data"]["jobs"]
    good = [job for job in jobs if job["state"] == "COMPLETED" and job["results_state"] == "VERIFIED"]
    if len(jobs) != JOBS or len(good) != JOBS:
        raise Failed("%d of %d jobs completed with verified results" % (len(good), JOBS))
    found = [_result(Path(job["results"])) for job in good]
    found.sort(key=lambda result: result["temperature"])
    if [result["temperature"] for result in found] != TEMPERATURES:
        raise Failed("the results are not those of the jobs")
    wrong = [r["temperature"] for r in found if abs(r["energy"] - exact_energy(r["temperature"])) > TOLERANCE]
    if wrong:
        raise Failed("energies far from Onsager's at T = %s" % wrong)
    return found


def _result(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "result.json").read_bytes())
        return found
    except (OSError, ValueError) as error:
        raise Failed("no result in %s: %s" % (folder, error)) from error


def _tell_results(found: list[dict[str, float]]) -> None:
    print("\n   T   energy  exact    magnetisation  specific heat   (from the 24 files jobs/*/results/result.json)")
    for r in found:
        bar = "*" * round(10 * r["specific_heat"])
        row = r["temperature"], r["energy"], exact_energy(r["temperature"]), r["magnetisation"], r["specific_heat"], bar
        print(("%5.1f %7.3f %7.3f %10.3f %14.3f   %s" % row).rstrip())


def exact_energy(temperature: float) -> float:
    """Per spin of the infinite lattice, at any temperature but the critical one (L. Onsager, Phys. Rev. 65, 117)."""
    k = 2 / temperature
    a, b = 1.0, math.sqrt(max(0.0, 1 - (2 * math.sinh(k) / math.cosh(k) ** 2) ** 2))
    while a - b > 1e-12:
        a, b = (a + b) / 2, math.sqrt(a * b)
    return -(1 + (2 * math.tanh(k) ** 2 - 1) / a) / math.tanh(k)


if __name__ == "__main__":
    sys.exit(main())
