"""A site whose compute hosts may not submit, and its real sshd: with a key of their own between the hosts jobs wake the
relay on the login host; without one each sync does, and the status says how long what is in PBS lasts."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import NODES, Cluster

from docker.ground import Laptop, until

JOBS = 10
CAPS = "max_queued = 4\nmax_running = 2"
REFUSAL = "Job submission is not allowed from this host"
OWN_KEY = (
    "mkdir -p ~/.ssh && ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519 &&"
    " cp ~/.ssh/id_ed25519.pub ~/.ssh/authorized_keys"
)
FROM_A_NODE = "Accepted publickey for bash from"


@pytest.fixture
def closed(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, where qsub is refused on both compute hosts."""
    values = {"hosts": list(NODES), "text": REFUSAL}
    ask(cluster, {"verb": "fault", "name": "refuse_hosts", "values": values})
    yield cluster
    ask(cluster, {"verb": "clear"})


def ask(cluster: Cluster, request: dict) -> object:
    return json.loads(cluster.execute("login", "ask-pbs", json.dumps(request)))


def folders(path: Path, seconds: float) -> list[str]:
    for number in range(JOBS):
        (path / f"job{number}").mkdir()
        (path / f"job{number}" / "job.sh").write_text(
            f"#!/bin/sh\n#PBS -l walltime=00:10:00\necho started >> out\nsleep {seconds}\n")
    return [str(path / f"job{number}") for number in range(JOBS)]


def each_ran_once(path: Path) -> None:
    assert [(path / f"job{number}/results/out").read_text() for number in range(JOBS)] == ["started\n"] * JOBS


def test_with_a_key_between_the_hosts_the_relay_goes_on_alone(closed: Cluster, tmp_path: Path) -> None:
    closed.execute("login", "runuser", "-l", "bash", "-c", OWN_KEY)
    laptop = Laptop(closed, tmp_path / "laptop", "bash", CAPS, "query_interval = 1", root="by-ssh")
    laptop("add", *folders(tmp_path, 1))
    laptop("login", "hpc")
    laptop("sync")
    laptop("logout", "hpc")
    until(lambda: started(laptop) == JOBS, "all of them, without a contact", 180)
    laptop("login", "hpc")
    until(lambda: laptop("sync")["counts"] == {"COMPLETED": JOBS}, "all home", 60, every=2)
    relay = laptop("status")["remotes"][0]["now"]["relay"]
    laptop("logout", "hpc")
    each_ran_once(tmp_path)
    assert (relay["way"], relay["contact"]) == ("ssh:login", False)
    refused = [record for record in journal(laptop) if record["ev"] == "refused"]
    assert [(record["kind"], record["text"]) for record in refused] == [("here", "qsub: " + REFUSAL)]
    assert laptop.logged(FROM_A_NODE) >= 1


def test_without_one_each_sync_goes_on_and_the_status_says_until_when(closed: Cluster, tmp_path: Path) -> None:
    laptop = Laptop(closed, tmp_path / "laptop", "fish", CAPS, "query_interval = 1", root="by-sync")
    laptop("add", *folders(tmp_path, 3))
    laptop("login", "hpc")
    laptop("sync")
    until(lambda: any(record["ev"] == "refused" for record in journal(laptop)), "the first end is refused", 60)
    said = laptop.says("status")
    syncs = 0
    while laptop("sync")["counts"] != {"COMPLETED": JOBS}:
        syncs += 1
        assert syncs < 60
        until(lambda: not alive(closed), "what was in PBS has run", 60)
    laptop("logout", "hpc")
    each_ran_once(tmp_path)
    assert "compute nodes may not submit here: the relay goes on at each sync" in said
    assert syncs >= 2, "somebody else went on: this shows nothing"
    assert sum(record["ev"] == "refused" for record in journal(laptop)) == 1


def started(laptop: Laptop) -> int:
    return int(laptop.there("cat work/*/out 2>/dev/null | wc -l"))


def alive(cluster: Cluster) -> list[dict]:
    """Jobs that run or could: not those under a hold."""
    return [job for job in ask(cluster, {"verb": "table"}) if job["state"] not in "FH"]


def journal(laptop: Laptop) -> list[dict]:
    return [json.loads(line.split(" ", 2)[2]) for line in laptop.there("cat log/*.seg").splitlines()]
