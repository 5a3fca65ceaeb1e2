"""`make check`: ruff, mypy, shellcheck on every shell file; and the line budgets, reported, failing nothing."""

import re
import subprocess
import sys
from pathlib import Path

from environments import TOP, SetupError, main_python

BUDGETS = {"client core": 3500, "agent": 3500}
ON_THE_CLUSTER = ("agent/", "tests/agent/", "tests/conftest.py", "tests/needs.py")  # also read by Python 3.6


def main() -> int:
    """Exit status 0 when every check passed. All of them run, whatever the first ones said."""
    try:
        tools = main_python().parent
    except SetupError as error:
        print(f"check: {error}", file=sys.stderr)
        return 1
    files = _files()
    old = [name for name in files if name.endswith(".py") and name.startswith(ON_THE_CLUSTER)]
    new = [name for name in files if name.endswith(".py") and name not in old]
    ruff = [tools / "ruff", "check", "--quiet", "--output-format", "concise"]
    passed = [
        _check("ruff, 3.6 side", [*ruff], old),
        _check("ruff", [*ruff, "--target-version", "py311", "--extend-select", "UP", "--ignore", "UP031"], new),
        _check(
            "mypy agent", [tools / "mypy", "--python-version", "3.10", "--check-untyped-defs", "agent/chasqui_agent"]
        ),
        _check(
            "mypy --strict client", [tools / "mypy", "--strict", "--python-version", "3.11", "client/chasqui_client"]
        ),
        _check("shellcheck", [tools / "shellcheck"], _shell_files(files)),
    ]
    _report_budgets(files)
    return 0 if all(passed) else 1


def _files() -> list[str]:
    """What git has, or would take: a file must not escape the checks until it is committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=TOP, check=True, capture_output=True, text=True).stdout
    return sorted({name for name in listed.split("\0") if name and (TOP / name).is_file()})


def _shell_files(files: list[str]) -> list[str]:
    """Every shell file; of a job template a copy with its {{placeholders}} filled, since only that is shell."""
    found = []
    for name in filter(_is_shell, files):
        if "/templates/" in name:
            filled = re.sub(rb"{{\s*(\w+)[^}]*}}", rb"\1", (TOP / name).read_bytes())
            name = f"build/shellcheck/{Path(name).name}"
            (TOP / name).parent.mkdir(parents=True, exist_ok=True)
            (TOP / name).write_bytes(filled)
        found.append(name)
    return found


def _is_shell(name: str) -> bool:
    with open(TOP / name, "rb") as stream:
        first = stream.readline(200)
    words = first[2:].split() if first.startswith(b"#!") else []
    interpreters = {word.rpartition(b"/")[2] for word in words[:2]}
    return bool(interpreters & {b"sh", b"bash", b"dash", b"ksh"}) or (not words and name.endswith((".sh", ".bash")))


def _check(title: str, command: list[str | Path], files: list[str] | None = None) -> bool:
    if files == []:
        print(f"check: {title}: nothing to check")
        return True
    done = subprocess.run(
        [*command, *(files or [])], cwd=TOP, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = "" if done.returncode == 0 else done.stdout
    print(f"check: {title}: {'ok' if done.returncode == 0 else 'FAILED'}\n{said}", end="", flush=True)
    return done.returncode == 0


def _report_budgets(files: list[str]) -> None:
    """Core is what stands in the package itself; what comes later stands in subpackages and is not counted."""
    counted = {
        "client core": [name for name in files if Path(name).parent.as_posix() == "client/chasqui_client"],
        "agent": [name for name in files if name.startswith("agent/chasqui_agent/")],
    }
    for part, names in counted.items():
        lines = sum((TOP / name).read_bytes().count(b"\n") for name in names if name.endswith(".py"))
        verdict = "" if lines <= BUDGETS[part] else ", OVER BUDGET"
        print(f"check: {part}: {lines} lines of {BUDGETS[part]}{verdict}")


if __name__ == "__main__":
    sys.exit(main())
