"""What `doctor` says of caps: the site's limits, those learnt, the user's own, and the lines to put in their place."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from chasqui_client import cli, config, doctor
from pbs.cluster import Cluster
from session.desk import CONFIG, Desk


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.05, daemon_seconds=2) as made:
        yield made


@pytest.fixture
def desk(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Desk:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    desk = Desk(tmp_path)
    monkeypatch.setattr(doctor, "_PATIENCE", 0.0)  # its tiny job is not what is tested here
    monkeypatch.setenv("CHASQUI_HOME", str(desk.home.path))
    said = CONFIG.replace('host = "local"', 'host = "local"\nscheduler = "openpbs"') % desk.root
    desk.home.config_path.write_text(said)
    return desk


def said_by_doctor(capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert cli.main(["doctor"]) == 0
    return capsys.readouterr().out.splitlines()


def test_doctor_proposes_caps_that_then_fit(
        desk: Desk, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.set_server("max_queued", "[u:PBS_GENERIC=9],[p:ab12=4]")
    cluster.set_queue("max_run", "[u:PBS_GENERIC=3]")
    cluster.set_queue("max_queued", "[u:PBS_GENERIC=7]")
    lines = said_by_doctor(capsys)
    at = next(at for at, line in enumerate(lines) if line.startswith("ok    caps: the site allows less"))
    told = [line.strip() for line in lines[at + 1 : lines.index(next(line for line in lines if "ok    job" in line))]]
    assert told[:5] == ["published: at most 9 jobs", "published: at most 4 jobs of project ab12",
                        "published: at most 7 jobs in queue workq", "published: at most 3 jobs in queue workq, running",
                        "configured: max_queued = 40, max_running = 30"]  # fmt: skip
    assert told[5] == "put this in place of the caps in %s:" % desk.home.config_path
    text = desk.home.config_path.read_text() + "\n".join(told[6:])
    desk.home.config_path.write_text(text)
    assert desk.home.config().remote().caps == config.Caps(40, 30, 9, "hold", {"workq": 7}, {"ab12": 4})
    assert any(line == "ok    caps: 4 limits of the site are known, and the caps keep to them"
               for line in said_by_doctor(capsys))


def test_what_the_relay_learnt_stands_beside_it(
        desk: Desk, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    desk.deploy()
    (desk.root / "state.json").write_text(json.dumps({"site_limits": {"*": [6, 4e9], "workq": [5, 4e9]}}))
    lines = [line.strip() for line in said_by_doctor(capsys)]
    assert "learnt: at most 6 jobs" in lines and "learnt: at most 5 jobs in queue workq" in lines
    assert "max_total = 6" in lines and "workq = 5" in lines
