"""The two interpreters that tests run on: a venv of this Python, and one of a real Python 3.6.

Both stand below build/ and are made again when what they were made from changes. Standard library alone: this runs
before anything is installed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
BUILD = TOP / "build"
PYTEST_36 = ["pytest==7.0.1"]  # the last that runs on 3.6
PIP_36 = "pip==21.3.1"  # the last for 3.6; the pip that came with it takes versions that need a newer Python


class SetupError(Exception):
    """An environment could not be made; says why."""


def main_python() -> Path:
    """The venv with the test, lint and packaging groups of pyproject.toml; made where it is missing or out of date."""
    groups = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    return _environment(BUILD / "venv", sys.executable, sorted(sum(groups.values(), [])))


def python36() -> Path | None:
    """A venv with pytest on a real Python 3.6, None where this machine has no Python 3.6."""
    found = next(interpreters36(), None)
    return _environment(BUILD / "venv36", found, PYTEST_36, first=PIP_36) if found else None


def interpreters36() -> Iterator[str]:
    """Every Python 3.6 of this machine that answers, on PATH first."""
    roots = [Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()]
    places = ["python3.6", *(str(p) for root in roots for p in sorted(root.glob("versions/3.6*/bin/python3.6")))]
    for place in places:
        # A pyenv shim stands on PATH and fails when called: only what answers counts.
        done = subprocess.run(
            ["/usr/bin/env", place, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True
        )
        if done.returncode == 0:
            yield done.stdout.strip()


def _environment(folder: Path, interpreter: str, packages: list[str], first: str = "") -> Path:
    """The python of the venv at `folder`; after an error there is no venv, so the next run starts afresh."""
    stamp, python = folder / "made-from", folder / "bin" / "python"
    made_from = hashlib.sha256("\n".join([interpreter, str(folder), first, *packages]).encode()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == made_from:
        return python
    print(f"preparing {folder.relative_to(TOP)}: {' '.join(packages)}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _run([interpreter, "-m", "venv", str(folder)])
        for wanted in filter(None, [[first] if first else [], packages]):
            _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted])
    except SetupError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    stamp.write_text(made_from)
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode != 0:
        raise SetupError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
