"""Which wake_via follows from what was seen, and that nothing but rows is believed of a remote's answer."""

import argparse
import io
from pathlib import Path

import pytest

from chasqui_agent import wakes
from chasqui_client import command, config, errors, wake_trial
from chasqui_client.config import Remote


def row(form: str, verdict: str, way: str = "") -> wakes.Row:
    given = {"tail": "direct", "hook": "hook", "ssh": "ssh:login1"}
    return wakes.Row(form, verdict, 1.0, "", way or given.get(form, ""))


@pytest.mark.parametrize(("verdicts", "choice"), [
    ({"tail": "yes", "hook": "yes", "ssh": "yes"}, "direct"),
    ({"tail": "no", "hook": "yes", "ssh": "yes"}, "hook"),
    ({"tail": "open", "hook": "no", "ssh": "yes"}, "ssh:login1"),
    ({"tail": "no", "hook": "no", "ssh": "no", "cron": "yes"}, "sync"),
    ({"tail": "no", "hook": "open", "ssh": "no"}, ""),
    ({"tail": "no", "ssh": "no"}, ""),
    ({"cron": "yes", "heartbeat": "yes"}, ""),
])
def test_the_choice(verdicts: dict[str, str], choice: str) -> None:
    assert wakes.choice([row(*item) for item in verdicts.items()]) == choice


def test_rows_that_are_none_are_dropped() -> None:
    good = ["tail", "yes", 2.5, "", "direct"]
    bad: list[object] = [None, [], ["tail"]]
    bad += [["fax", "yes", 1, "", "direct"], [[], {}, 1, "", ""], ["hook", "maybe", 1, "", "hook"], {"form": "tail"}]
    assert wake_trial._rows([*bad, good], wakes.FORMS) == [wakes.Row(*good)]
    assert wake_trial._rows("rows", wakes.FORMS) == []
    assert wake_trial._rows([good], ["hook"]) == []


@pytest.mark.parametrize("way", ["", "ssh:-oProxyCommand=x", "ssh:a b", 'direct"\nhost = "x', 7, None])
def test_a_way_that_could_not_be_typed_is_no_way(way: object) -> None:
    found = wake_trial._rows([["ssh", "yes", 1, "", way]], wakes.FORMS)
    assert [(one.verdict, one.way) for one in found] == [("open", "")] and wakes.choice(found) == ""


def test_words_are_bounded_and_harmless() -> None:
    found = wake_trial._rows([["tail", "no", 1e99, "\x1b[2J" + "x" * 5000, "direct"]], wakes.FORMS)
    assert found[0].seconds == 0.0 and "\x1b" not in found[0].words and len(found[0].words) < 400


def test_lines_of_others_are_no_answer() -> None:
    assert wake_trial._said('{"doctor": "a", "rows": []}', "a") == {"doctor": "a", "rows": []}
    for text in ("welcome", "[1]", '{"doctor": "b", "rows": []}', "[" * 100000):
        assert wake_trial._said(text, "a") == {}


def asked(monkeypatch: pytest.MonkeyPatch, answer: str, **args: bool) -> str:
    """What is left unread of `answer` when somebody who is at the terminal has been asked."""
    stdin = io.StringIO(answer)
    monkeypatch.setattr(command.Command, "interactive", True)
    monkeypatch.setattr("sys.stdin", stdin)
    given = argparse.Namespace(**{"json": False, "yes": False, **args})
    wake_trial._ask(command.Command("doctor", given), Remote("hpc", "local"), wakes.FORMS)
    return stdin.read()


def test_who_is_there_is_asked_before_anything_is_submitted(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(monkeypatch, "y\n") == ""
    said = capsys.readouterr()
    assert "up to 11 jobs" in said.out and "at most 5 of them at once, under your caps" in said.out
    assert "submit them? [y/N]" in said.err
    for no in ("n\n", "\n", ""):
        with pytest.raises(errors.BadInput, match="Nothing was submitted"):
            asked(monkeypatch, no)
    assert asked(monkeypatch, "n\n", yes=True) == asked(monkeypatch, "n\n", json=True) == "n\n"


def test_the_sync_that_takes_the_choice_there_is_named(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CHASQUI_HOME", str(tmp_path))
    for name, line in (("one", "chasqui sync"), ("two", "chasqui sync --remote two")):
        remote = config.init(config.Home(), name, "local").remote(name)
        wake_trial._write(command.Command("doctor", argparse.Namespace(json=False, dry_run=False)), remote, "sync")
        assert capsys.readouterr().out.endswith("\nnext: %s    (it takes the setting there)\n" % line)


def test_forms_are_checked() -> None:
    assert wake_trial._forms("ssh,tail") == ["ssh", "tail"]
    with pytest.raises(errors.BadInput, match="known are tail, hook, ssh, epilogue, cron, heartbeat"):
        wake_trial._forms("tail,fax")
