"""The mock's commands start about as fast as Python does: they import little, and never compile what they import."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pbs.cluster import Cluster, python_for_everyone

# Besides the package's own modules and what a bare Python with os has. All are C, and cheap. re, enum, json, socket,
# tempfile, getopt, shlex and subprocess cost 4 to 16 ms each, with what they import in turn.
ALLOWED = {"_socket", "errno", "marshal", "pwd", "select", "time"}
# Calls a command as the launcher's start.py does, and ends with the imported modules on stderr.
SHOW = """
import os, sys
before = set(sys.modules)
sys.path.insert(0, sys.argv.pop(1))
from mockpbs import start
status = start.run(["start.py"] + sys.argv[1:])
print("\\nimported", *sorted(set(sys.modules) - before), file=sys.stderr)
sys.exit(status)
"""
SCRIPT = """#!/bin/bash
#PBS -N small
#PBS -l select=1:ncpus=1:mem=1gb
#PBS -l walltime=00:10:00
#PBS -j oe
#PBS -h
true
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.05) as made:
        (made.user_home / "job.sh").write_text(SCRIPT)
        yield made


def imported(cluster: Cluster, *words: str) -> tuple[str, set[str]]:
    """What a command prints, and what it imported that is neither the package nor in a bare Python."""
    done = cluster.run(python_for_everyone(), "-IS", "-c", SHOW, str(cluster.exec), *words)
    said, _, names = done.stderr.rpartition("\nimported ")
    assert (done.returncode, said) == (0, "")
    assert "mockpbs.client" in names.split()
    return done.stdout, {name for name in names.split() if name.partition(".")[0] != "mockpbs"}


@pytest.mark.parametrize("options", [[], ["-f"], ["-v", "A=1,B=2", "-o", "/dev/null", "-a", "203001010000.00"]])
def test_qsub_imports_little(cluster: Cluster, options: list[str]) -> None:
    """With the background qsub to begin, through it, and without it."""
    for _ in range(2):
        said, names = imported(cluster, "qsub", *options, "job.sh")
        assert said.endswith(".pbshost\n") and names <= ALLOWED


@pytest.mark.parametrize(
    "words",
    [["qselect", "-u", "root"], ["qstat"], ["qstat", "-x", "ID"], ["qstat", "-f", "-w", "ID"], ["qstat", "-B"],
     ["qrls", "ID"], ["qhold", "-h", "u", "ID"], ["qalter", "-N", "other", "ID"], ["qdel", "ID"]],
    ids=" ".join,
)  # fmt: skip
def test_what_asks_about_jobs_imports_little(cluster: Cluster, words: list[str]) -> None:
    number = cluster.submit(SCRIPT)
    _, names = imported(cluster, *(number if word == "ID" else word for word in words))
    assert names <= ALLOWED


def test_nothing_is_compiled_when_it_is_first_called(tmp_path: Path) -> None:
    """Another user can't keep what Python compiles: she would wait for it at every call."""
    cluster = Cluster(tmp_path / "pbs")
    cluster.install()
    package = cluster.exec / "mockpbs"
    for command in ("qsub", "qselect", "qstat", "qdel", "qalter", "qmgr"):
        words = [python_for_everyone(), "-ISv", str(package / "start.py"), command, "--version"]
        said = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL).stderr.splitlines()
        sources = [line for line in said if line.startswith("# code object from") and f"{package}/" in line]
        assert len(sources) > 3
        assert [line for line in sources if "/__pycache__/" not in line] == []
