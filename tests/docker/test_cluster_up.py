"""`make cluster-up` leaves a cluster running and says how to use it, `make cluster-down` leaves nothing; without an
engine, one line and a failure."""

import os
import re
import shutil
import subprocess
import sys

from cluster import TOP, Cluster, run

NAME = f"try-{os.getpid()}"


def make(target: str, **more: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "CLUSTER_NAME": NAME, **more}
    command = ["make", "--no-print-directory", target, f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=TOP, env=environment, capture_output=True, text=True, timeout=600)


def left() -> str:
    """Containers, volumes and networks of this test's cluster."""
    mine = ["--quiet", "--filter", f"label=com.docker.compose.project=chasqui-{NAME}"]
    return "".join(run(["docker", *kind, *mine]) for kind in (["ps", "--all"], ["volume", "ls"], ["network", "ls"]))


def test_up_says_how_and_down_removes_everything(ready: Cluster) -> None:
    folder = TOP / "build" / NAME
    try:
        up = make("cluster-up")
        assert up.returncode == 0, up.stderr
        assert len(left().split()) == 6  # three hosts, /home, /scratch, the network
        login = re.search(r"^ +(ssh -F \S+ cluster-bash)", up.stdout, re.M)
        assert login and str(folder / "code") in up.stdout
        assert answers(login[1], folder), "the ssh command that was printed"
    finally:
        down = make("cluster-down")
    assert down.returncode == 0, down.stderr
    assert left() == ""
    assert not folder.exists()


def answers(ssh: str, folder: object) -> bool:
    askpass = TOP / "build" / NAME / "askpass"
    askpass.write_text(f"#!/bin/sh\nexec {folder}/code bash\n")
    askpass.chmod(0o700)
    environment = {**os.environ, "SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force"}
    said = subprocess.run([*ssh.split(), "id -un"], env=environment, capture_output=True, text=True, timeout=60)
    return said.stdout == "bash\n"


def test_without_an_engine_there_is_one_line_and_a_failure(ready: Cluster) -> None:
    up = make("cluster-up", DOCKER_HOST="tcp://127.0.0.1:1")
    assert up.returncode != 0
    said = [line for line in up.stderr.splitlines() if not line.startswith("make")]
    shutil.rmtree(TOP / "build" / NAME)
    assert len(said) == 1 and "no Docker engine answers" in said[0], up.stderr
