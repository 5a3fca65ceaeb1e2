"""The caps that follow from what a site allows: lowered, never raised; as lines that can be pasted."""

from pathlib import Path
from typing import Any

import pytest

from chasqui_client import config, propose
from chasqui_client.config import Caps

OWN = Caps(40, 30, None, "hold", {"long": 5}, {"ab12": 20})


@pytest.mark.parametrize(("row", "expected"), [
    (["*", "", "", "live", 20], Caps(40, 30, 20)),
    (["*", "", "", "waiting", 4], Caps(4, 30)),
    (["*", "", "", "waiting", 400], Caps()),
    (["*", "", "", "running", 8], Caps(40, 8, None, "site")),
    (["*", "", "", "running", 30], Caps()),
    (["long", "", "", "live", 9], Caps(queues={"long": 9})),
    (["long", "", "", "running", 9], Caps()),
    (["*", "project", "ab12", "live", 9], Caps(projects={"ab12": 9})),
    (["*", "project", "", "live", 9], Caps()),
    (["long", "project", "ab12", "live", 9], Caps()),
    (["*", "group", "staff", "live", 9], Caps()),
    (["", "", "", "live", 9], Caps()),
    (["*", "", "", "live", 0], Caps()),
])
def test_what_follows_from_one_limit(row: list[Any], expected: Caps) -> None:
    assert propose.proposal(Caps(), [row]) == expected


def test_caps_are_lowered_and_never_raised() -> None:
    rows = [["*", "", "", "live", number] for number in (70, 50, 60)]
    rows += [["long", "", "", "live", 9], ["small", "", "", "live", 3], ["*", "project", "ab12", "live", 10]]
    assert propose.proposal(OWN, rows) == Caps(40, 30, 50, "hold", {"long": 5, "small": 3}, {"ab12": 10})
    assert propose.proposal(Caps(max_total=9), rows[:3]).max_total == 9


def test_the_lines_can_be_pasted() -> None:
    caps = Caps(8, 4, 12, "site", {"long": 5, "two words": 3}, {'"quoted"\\': 1}, {"k-1": 2})
    text = "[remotes.hpc]\nhost = 'h'\n" + "\n".join(propose.toml("hpc", caps))
    assert config.parse(text, Path("config.toml")).remote().caps == caps
    assert propose.toml("hpc", Caps()) == ["[remotes.hpc.caps]", "max_queued = 40", "max_running = 30"]


def test_an_agents_answer_is_read_and_nothing_else() -> None:
    found = {"published": [["*", "", "", "live", 6]], "learnt": [["small", 4]], "caps": {}}
    assert propose.rows(found) == ([["*", "", "", "live", 6]], [["small", "", "", "live", 4]])


@pytest.mark.parametrize("found", [
    None, 3, [], {}, {"published": 3, "learnt": {}},
    {"published": [3, [], ["*"], ["*", "", "", "live", "6"], ["*", "", "", "live", -1], ["*", "", "", "live", True]]},
    {"published": [["*", "", "", "dead", 6], ["*", "queue", "", "live", 6], [None, "", "", "live", 6]]},
    {"learnt": [3, [], ["*"], ["*", "6"], ["*", 1, 2], [["*"], 6], ["*", 10 ** 10], ["*", 1e3]]},
])
def test_what_is_no_answer_of_an_agent_says_nothing(found: Any) -> None:
    assert propose.rows(found) == ([], [])


def test_words_from_the_cluster_are_harmless() -> None:
    said = propose.words(["a\x1b[2J", "project", "p\n", "live", 3])
    assert said == "at most 3 jobs of project p\\x0a in queue a\\x1b[2J"
