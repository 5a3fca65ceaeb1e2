"""The users of these tests: without privileges, each with nothing done yet."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ssh.lab import Lab
from trouble.person import Person, python_for


@pytest.fixture(scope="session")
def her_environment(lab: Lab) -> Iterator[dict[str, str]]:
    """One for all tests: with it go the live connections, closed in the end."""
    environment = lab.env(lab.user("plain"), account=lab.user("plain"))
    yield environment
    for socket in Path(environment["XDG_RUNTIME_DIR"], "chasqui").glob("*"):
        subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "any"], capture_output=True, timeout=20)


@pytest.fixture(scope="session")
def her_python(lab: Lab) -> str:
    return python_for(lab.user("plain"))


@pytest.fixture(scope="session")
def people(
    lab: Lab, her_python: str, packages_for_users: Path, her_environment: dict[str, str]
) -> Iterator[Callable[[], Person]]:
    """Makes users, each with nothing done yet; their small disks go in the end."""
    with ExitStack() as disks:
        yield lambda: Person(lab, her_python, packages_for_users, her_environment, disks)


@pytest.fixture
def person(people: Callable[[], Person]) -> Person:
    return people()
