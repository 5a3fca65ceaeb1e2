"""Which wake_via follows from what was seen, and that nothing but rows is believed of a remote's answer."""

import pytest

from chasqui_agent import wakes
from chasqui_client import wake_trial


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
    bad = [None, [], ["tail"], ["fax", "yes", 1, "", "direct"], ["hook", "maybe", 1, "", "hook"], {"form": "tail"}]
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
