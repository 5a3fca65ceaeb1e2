"""The lab as fixtures, one for all tests of a run."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssh.lab import TOP, Lab, python36_copy, running
from ssh.proxy import Proxy


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """One sshd for all tests. Its folder is kept, and named, where a test failed."""
    with running() as made:
        yield made
        made.keep = bool(request.session.testsfailed)


@pytest.fixture
def proxy(lab: Lab) -> Iterator[Proxy]:
    """A line to the lab's sshd that can be delayed, silenced and cut; use it by `lab.config(user, port=proxy.port)`."""
    with Proxy(lab.port) as line:
        yield line


@pytest.fixture(scope="session")
def packages_for_users(lab: Lab) -> Path:
    """A copy of client/ and agent/ that the accounts can read: PYTHONPATH = FOLDER/client:FOLDER/agent."""
    target = lab.path("packages")
    for part in ("client", "agent"):
        shutil.copytree(TOP / part, target / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


@pytest.fixture(scope="session")
def python36_for_users() -> Iterator[Path]:
    """A Python 3.6 that the accounts can run; see `python36_copy`."""
    with python36_copy() as interpreter:
        yield interpreter
