"""`chasqui agent ...` as it is typed, over a real agent."""

import json
from pathlib import Path

import pytest

from agent.agentroot import until
from agent.test_cron import entry, run_as_cron
from chasqui_client import cli
from session.desk import CONFIG, Desk


def test_the_line_for_a_crontab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture[str]) -> None:
    """It comes through the client as it must be pasted; run as cron runs it, it takes in what was dropped there."""
    desk = Desk(tmp_path)
    monkeypatch.setenv("CHASQUI_HOME", str(desk.home.path))
    root = tmp_path / "100%"
    desk.home.config_path.write_text(CONFIG % root + '[remotes.other]\nhost = "local"\n')
    assert cli.main(["agent", "deploy", "here"]) == 0
    capsys.readouterr()
    assert cli.main(["agent", "cron", "here", "--every", "30"]) == 0
    times, command = entry(capsys.readouterr().out)
    assert len(times[0].split(",")) == 2 and "100\\%/agent/current" in command
    (root / "waiting/one.sh").write_text("#!/bin/sh\n")
    until(lambda: not run_as_cron(command, tmp_path).stdout and (root / "completed/one.1.flag").exists(), "it ran")
    assert cli.main(["agent", "log", "here"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "cron" in [record["reason"] for record in records if record["ev"] == "pumped"]
    assert cli.main(["agent", "cron", "--remote", "here", "--slurm", "--json"]) == 0
    assert any(line.startswith("#SCRON ") for line in json.loads(capsys.readouterr().out)["data"]["lines"])
    assert cli.main(["agent", "cron", "here", "--every", "7"]) == 6
    assert "must divide an hour" in capsys.readouterr().out
