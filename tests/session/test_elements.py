"""What a user sees of a job array's elements: how far it is, and at its end which failed and where their output is."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.agentroot import until
from chasqui_client import cli, messages
from pbs.cluster import Cluster
from session.desk import CONFIG, Desk

ARRAY = """#PBS -J 1-4%2
echo element $PBS_ARRAY_INDEX
until [ -e {go}.$PBS_ARRAY_INDEX ]; do sleep 0.05; done
[ $PBS_ARRAY_INDEX != 2 ] || exit 7
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.05, daemon_seconds=2) as made:
        yield made


@pytest.fixture
def desk(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Desk:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    desk = Desk(tmp_path)
    monkeypatch.setenv("CHASQUI_HOME", str(desk.home.path))
    said = CONFIG.replace('host = "local"', 'host = "local"\nscheduler = "openpbs"') % desk.root
    desk.home.config_path.write_text(said)
    desk.remote = desk.home.config().remote()
    return desk


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out


def data(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    return json.loads(said(capsys, *words, "--json"))["data"]


def test_its_elements_on_the_way_and_at_the_end(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    go = desk.path / "go"
    folder = desk.folder("arr")
    (folder / "job.sh").write_text("#!/bin/sh\n" + ARRAY.format(go=go))
    job = desk.add(folder)[0]

    def synced(text: str) -> bool:
        desk.sync()
        return text in said(capsys, "list")

    until(lambda: synced("elements: 2 running, 2 waiting"), "two run", 120)
    for index in (1, 2):
        (desk.path / ("go.%d" % index)).touch()
    until(lambda: synced("elements: 2 ended, 2 running"), "the others run", 120)
    assert data(capsys, "list")["jobs"][0]["elements"] == {"ended": 2, "running": 2, "waiting": 0}
    assert data(capsys, "show", job.id)["elements"] == {"ended": 2, "running": 2, "waiting": 0}
    assert "elements of job arrays: 2 ended, 2 running\n" in said(capsys, "status")
    assert "Elements: 1 done, 1 failed, 2 running (1 failed, exit 7: 2)." in said(capsys, "why", job.id)
    assert "Its elements: 2 ended, 2 running." in said(capsys, "why", job.id, "--offline")
    for index in (3, 4):
        (desk.path / ("go.%d" % index)).touch()
    desk.finish(120)
    assert "1 of 4 elements failed: 2" in said(capsys, "list")
    shown = said(capsys, "show", job.id)
    assert "elements      3 done, 1 failed\n              1 failed, exit 7: 2\n              3 done: 1,3-4\n" in shown
    told = data(capsys, "show", job.id)
    assert told["elements"] == told["attempts"][0]["elements"] == data(capsys, "list")["jobs"][0]["elements"]
    assert [(row["state"], row["exit"], row["indices"]) for row in told["elements"]["states"]] == [
        ("failed", 7, "2"), ("done", 0, "1,3-4")]
    why = said(capsys, "why", job.id)
    assert "Its elements: 1 failed, exit 7: 2; 3 done." in why and "chasqui logs %s --element 2" % job.id[:8] in why
    number = desk.job(job).pbs.partition("[")[0]
    assert "The output of element 2 is in " in why and "arr.e%s.2, arr.o%s.2." % (number, number) in why
    logs = said(capsys, "logs", job.id, "--element", "2")
    assert "element 2\n" in logs and "element 1\n" not in logs
    assert "elements of job arrays" not in said(capsys, "status")
    assert cli.main(["logs", job.id, "--element", "9"]) == 2
    assert "arr has the elements 1 to 4, and no 9." in capsys.readouterr().err


def test_a_cancelled_array_says_what_had_become_of_it(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    folder = desk.folder("arr")
    (folder / "job.sh").write_text("#!/bin/sh\n" + ARRAY.format(go=desk.path / "go"))
    job = desk.add(folder)[0]
    (desk.path / "go.1").touch()

    def synced(text: str) -> bool:
        desk.sync()
        return text in said(capsys, "list")

    until(lambda: synced("elements: 1 ended, 2 running, 1 waiting"), "1 is over", 120)
    said(capsys, "cancel", job.id)
    until(lambda: (desk.sync(), time.sleep(0.2), desk.job(job).ended)[-1], "it is cancelled", 120)
    assert desk.job(job).state == "CANCELLED"
    states = {row["state"]: row["indices"] for row in data(capsys, "show", job.id)["elements"]["states"]}
    assert states["done"] == "1" and states["unstarted"] == "4"


@pytest.mark.parametrize("told", [None, [], "x", {"j": 7}, *({"j": [1, 2, 3, *row]} for row in ([], [-4], [True]))])
def test_progress_that_is_none_is_left_out(told: Any) -> None:
    assert messages.status({"m": "status", "waiting": 3, "elements": told}) == {"waiting": 3}


def test_progress_is_bounded() -> None:
    told = {"j%d" % number: [1, 2, 3, 4] for number in range(5000)}
    assert len(messages.status({"elements": told})["elements"]) == messages.MAX_PROGRESS
