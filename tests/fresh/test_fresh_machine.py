"""What a stranger meets: git, make, Python 3.11 and no network."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fresh.minbase import clone, minbase, run_inside

LIMIT = 120.0  # seconds; what the README promises for `make demo`


@pytest.fixture(scope="session")
def root() -> Path:
    return minbase()


@pytest.fixture
def folder(root: Path) -> Iterator[Path]:
    with clone(root) as made:
        yield made


def test_the_root_is_as_bare_as_it_says(root: Path, folder: Path) -> None:
    asked = (
        "python3 --version; id -u; ls /sys/class/net 2>/dev/null; cat /proc/net/dev; command -v ssh pip curl gcc; true"
    )
    said = run_inside(root, folder, asked, 30).stdout
    assert "Python 3.11" in said and "12345" in said
    interfaces = re.findall(r"^\s*(\w+):", said, re.M)
    assert interfaces == ["lo"]
    assert "/bin/" not in said, f"a tool that should not be here: {said}"


def test_help_is_what_make_says(root: Path, folder: Path) -> None:
    done = run_inside(root, folder, "make", 30)
    assert done.returncode == 0, done.stdout
    for target in "demo test test-long check agent deploy bench cluster-up cluster-down clean".split():
        assert f"make {target} " in done.stdout


def test_the_demo_runs(root: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    done = run_inside(root, folder, "make demo", LIMIT + 60)
    seconds = time.monotonic() - started
    with capsys.disabled():
        print(f"\nmake demo on a fresh machine: {seconds:.0f} s")
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b24 COMPLETED\b|\bCOMPLETED\s+24\b", done.stdout) or done.stdout.count("COMPLETED") >= 24, (
        done.stdout
    )
    assert seconds < LIMIT


def test_the_agent_is_built_without_anything_installed(root: Path, folder: Path) -> None:
    done = run_inside(root, folder, "make agent && python3 -I -S build/chasqui-agent.pyz version", 60)
    assert done.returncode == 0 and '"protocol"' in done.stdout, done.stdout
