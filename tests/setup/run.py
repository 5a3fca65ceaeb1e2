"""`make test`: the checks, the whole suite on this Python, the agent's suite on Python 3.6, one line with the total.

What waits for a PBS cluster most of its time runs beside the rest, in processes of its own; at the long size, where
some tests take all the machine has, after it.

With CI=true whatever is missing fails the run; elsewhere it is skipped and the reason printed.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from environments import BUILD, TOP, SetupError, main_python, python36

STUCK = 300  # seconds in one test, after which pytest prints where every thread stands
BESIDE = {"pbs": ["tests/pbs"], "cluster": ["tests/mock_pbs", "tests/docker", "tests/slurm"]}
LIMITS = {"short": 2400, "long": 6 * 3600}  # seconds a suite may take: one that hangs must still end in a report
IN_CI = os.environ.get("CI") == "true"


@dataclass
class Total:
    """What all runs came to. `trouble` is anything that is no test and still makes the run a failure."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def add(self, report: Path, name: str, status: int) -> None:
        """Count one junit report. A run that wrote none, or failed without a failed test, is trouble."""
        with self.one_at_a_time:
            before = self.failed
            for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
                self._count(case)
            if status != 0 and self.failed == before:
                self.trouble.append(f"{name}: pytest ended with status {status}")

    def _count(self, case: ElementTree.Element) -> None:
        if case.find("failure") is not None or case.find("error") is not None:
            self.failed += 1
        elif (skip := case.find("skipped")) is not None:
            self.skipped += 1
            self.reasons.append(f"{case.get('classname')}.{case.get('name')}: {skip.get('message')}")
        else:
            self.passed += 1


def main() -> int:
    """Exit status 0 when nothing failed and, in CI, nothing was skipped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("short", "long"), default="short")
    parser.add_argument("tests", nargs="*", help="pytest arguments in place of the whole suite")
    asked = parser.parse_args()
    started, total = time.monotonic(), Total()
    try:
        _run_all(asked.size, asked.tests, total)
    except SetupError as error:
        total.trouble.append(str(error))
    return _close(total, time.monotonic() - started)


def _run_all(size: str, tests: list[str], total: Total) -> None:
    python = main_python()
    if subprocess.run([sys.executable, str(TOP / "tests/setup/check.py")], cwd=TOP).returncode != 0:
        total.trouble.append("make check failed")
    options = ["-o", "tmp_path_retention_policy=failed", "--durations=15"]
    if tests:
        _pytest(python, "main", size, options + tests, total)
        return
    main = options + ["--ignore=" + folder for folders in BESIDE.values() for folder in folders]
    others = [(python, name, size, options + folders, total) for name, folders in BESIDE.items()]
    with _beside(others) if size == "short" else contextlib.nullcontext():
        _pytest(python, "main", size, main, total)
        _old_python(size, total)
    for each in others if size == "long" else ():
        _pytest(*each)


@contextlib.contextmanager
def _beside(suites: list[tuple]) -> Iterator[None]:
    """They run until the end of the block or longer; then what they said is shown."""
    threads = [threading.Thread(target=_pytest, args=(*each, True)) for each in suites]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread, (_, name, *_) in zip(threads, suites, strict=True):
            thread.join()
            print((BUILD / f"test-{name}.log").read_text(errors="replace"))


def _old_python(size: str, total: Total) -> None:
    if not (TOP / "tests/agent").is_dir():
        total.trouble.append("tests/agent is missing")
    elif old := python36():
        _pytest(old, "python36", size, ["tests/agent"], total)
    else:
        _missing(total, "the agent's suite on Python 3.6: no python3.6 on PATH or in ~/.pyenv/versions")


def _pytest(python: Path, name: str, size: str, arguments: list[str], total: Total, beside: bool = False) -> None:
    """One run of pytest; what it says goes to build/test-NAME.log where it runs beside another."""
    report = BUILD / f"test-{name}.xml"
    report.unlink(missing_ok=True)
    environment = {**os.environ, "CHASQUI_TEST_SIZE": size}
    print(f"\n=== {name}: {python.relative_to(TOP)}, size {size}", flush=True)
    command = [str(python), "-m", "pytest", f"--junitxml={report}", "-o", f"faulthandler_timeout={STUCK}", *arguments]
    output = open(BUILD / f"test-{name}.log", "wb") if beside else None
    try:
        with output or contextlib.nullcontext():
            done = subprocess.run(command, cwd=TOP, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                                  stderr=output, timeout=LIMITS[size])  # fmt: skip
    except subprocess.TimeoutExpired:
        total.trouble.append(f"{name}: stopped after {LIMITS[size]} s, and so not counted")
        return
    total.add(report, name, done.returncode)


def _missing(total: Total, what: str) -> None:
    (total.trouble if IN_CI else total.reasons).append(f"not run: {what}")


def _close(total: Total, seconds: float) -> int:
    if IN_CI and total.skipped:
        total.trouble.append(f"{total.skipped} skipped, and in CI nothing may be missing")
    for reason in total.reasons:
        print(f"skipped: {reason}")
    for trouble in total.trouble:
        print(f"FAILED: {trouble}")
    print(f"took {seconds:.0f} s")
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped", flush=True)
    return 1 if total.failed or total.trouble else 0


if __name__ == "__main__":
    sys.exit(main())
