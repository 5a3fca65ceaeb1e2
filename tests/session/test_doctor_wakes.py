"""`chasqui doctor --job` where there is nothing to choose, and where the agent cannot do it."""

import re
import zipfile
from pathlib import Path

import pytest

from chasqui_client import cli
from session.desk import Desk


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    made = Desk(tmp_path)
    monkeypatch.setenv("CHASQUI_HOME", str(made.home.path))
    return made


def test_without_a_batch_system_there_is_nothing_to_choose(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    before = desk.home.config_path.read_bytes()
    assert cli.main(["doctor", "--job"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "plain processes of this host: there is nothing to choose"
    told = {line.split()[0]: line for line in lines if re.match("(tail|hook|ssh|cron|heartbeat) ", line)}
    assert " works " in told.pop("tail") and len(told) == 4
    assert all(" not tried " in line and "there is no batch system" in line for line in told.values()), lines
    assert desk.home.config_path.read_bytes() == before and not (desk.root / "doctor").exists()


def test_an_agent_of_another_version_says_what_to_do(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.deploy()
    without_trials(desk)
    before = desk.home.config_path.read_bytes()
    assert cli.main(["doctor", "--job"]) == 6
    said = capsys.readouterr().err
    assert "here: the agent there is of another version, which can't try wakes; nothing was submitted." in said
    assert "hint: chasqui agent deploy --remote here" in said
    assert desk.home.config_path.read_bytes() == before and not (desk.root / "doctor").exists()


def without_trials(desk: Desk) -> None:
    """The deployed agent as it was before it could try wakes."""
    path = (desk.root / "agent" / "current").resolve()
    for compiled in path.parent.glob("*.zip"):
        compiled.unlink()
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    verb = b'    "_wakes": _wakes,\n'
    assert verb in parts["chasqui_agent/cli.py"]
    parts["chasqui_agent/cli.py"] = parts["chasqui_agent/cli.py"].replace(verb, b"")
    with zipfile.ZipFile(path, "w") as target:
        for name, data in parts.items():
            target.writestr(name, data)
