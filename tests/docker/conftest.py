"""The cluster of docker/ as a fixture: engine and image made ready first, then the services by pytest-docker."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_docker.plugin import Services

import needs
from ssh.lab import python36_copy

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "docker"))

from cluster import Cluster, Missing, compose_command, run  # noqa: E402

PROJECT = "chasqui-tests-"  # and the pid of the run


@pytest.fixture(scope="session")
def python36() -> Iterator[Path | None]:
    """A Python 3.6 to lend to the hosts, None where this machine has none."""
    if not needs.python36():
        yield None
        return
    with python36_copy() as interpreter:
        yield interpreter.parent.parent


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory, python36: Path | None) -> Iterator[Cluster]:
    """Everything that has to be there before the services. In the end, engine included, what we started is gone."""
    needs.linux()
    needs.program("ssh")
    made = Cluster(tmp_path_factory.mktemp("cluster"), PROJECT + str(os.getpid()), python36)
    try:
        made.prepare()
        drop_stale()
        yield made
        made.down()  # once more: pytest-docker removes nothing where the start failed
    except Missing as missing:
        needs.missing(str(missing))
    finally:
        made.stop_engine()


def drop_stale() -> None:
    """Remove the services of runs that were killed."""
    listed = run(["docker", "ps", "--all", "--format", '{{.Label "com.docker.compose.project"}}']).split()
    for project in {name for name in listed if name.startswith(PROJECT)}:
        if not Path("/proc", project.removeprefix(PROJECT)).exists():
            stale = ["docker", "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={project}"]
            run(["docker", "rm", "--force", "--volumes", *run(stale).split()])
            for kind in ("volume", "network"):
                names = ["docker", kind, "ls", "--quiet", "--filter", f"label=com.docker.compose.project={project}"]
                run(["docker", kind, "rm", *run(names).split()])


@pytest.fixture(scope="session")
def docker_compose_command(ready: Cluster) -> str:
    return " ".join([*compose_command(), "--env-file", str(ready.folder / "env")])


@pytest.fixture(scope="session")
def docker_compose_file(ready: Cluster) -> list[str]:
    return [str(path) for path in ready.files()]


@pytest.fixture(scope="session")
def docker_compose_project_name(ready: Cluster) -> str:
    return ready.project


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    return ["up --detach"]


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    return ["down --volumes"]


@pytest.fixture(scope="session")
def cluster(ready: Cluster, docker_services: Services, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The running cluster; where a test failed, what the hosts said stands in hosts.log of its folder."""
    ready.wait()
    yield ready
    if request.session.testsfailed:
        with contextlib.suppress(OSError), open(ready.folder / "hosts.log", "wb") as log:
            subprocess.run([*ready.compose(), "logs", "--no-color"], stdout=log, stderr=log)
        print(f"\nwhat the hosts said: {ready.folder}/hosts.log")
