"""The tables and examples of the READMEs against the code they describe."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chasqui_agent import clearance, elements, journal, settings, wakes, wire
from chasqui_agent import cli as agent_cli
from chasqui_client import cli, config
from chasqui_client.errors import EXIT_CODES
from docs.blocks import AGENT_README, README, TOP, fenced, table

AGENT, CLIENT = TOP / "agent" / "chasqui_agent", TOP / "client" / "chasqui_client"
VERBS = [verb for _, verbs in cli._GROUPS for verb, _, _ in verbs]


def _sources(*folders: Path) -> str:
    return "\n".join(path.read_text("utf-8") for folder in folders for path in sorted(folder.rglob("*.py")))


# -- README ------------------------------------------------------------------------------------------------------------


def test_readme_names_every_verb() -> None:
    documented = {verb for row in table(README, "verb") for verb in re.findall(r"`(\w+)`", row[0])}
    assert documented == set(VERBS)


def test_readme_tells_every_exit_code() -> None:
    assert [(int(code), text) for code, text in table(README, "exit code")] == list(EXIT_CODES.items())


def test_readme_configuration_is_one() -> None:
    found = config.parse(fenced(README, "toml")[0], Path("config.toml")).remote("hpc")
    assert (found.host, found.caps.max_queued, found.work_root, found.settings) == (
        "jane@login.hpc.example.edu", 40, "/scratch/jane/chasqui", config.Settings())
    assert found.settings.cache_size == settings.DEFAULTS["cache_size"][0]


@pytest.mark.parametrize("path", [README, AGENT_README], ids=["README", "agent/README"])
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


def test_readme_is_short() -> None:
    assert README.read_text("utf-8").count("\n") < 330


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(verb: str) -> None:
    done = subprocess.run([sys.executable, "-m", "chasqui_client", verb, "-h"], capture_output=True, text=True,
                          env={"PYTHONPATH": f"{CLIENT.parent}:{AGENT.parent}", "HOME": "/nonexistent"})
    assert done.returncode == 0, done.stderr
    assert f"example:\n  chasqui {verb}" in done.stdout
    for option in re.findall(r"^  (?:-\w, )?(--[\w-]+)([^\n]*(?:\n {20,}[^\n]*)?)", done.stdout, re.M):
        assert re.search(r"[a-z]{2}", option[1].split("  ", 1)[-1]), f"{verb} {option[0]} says nothing"


# -- agent/README ------------------------------------------------------------------------------------------------------


def test_the_agents_help_names_its_verbs() -> None:
    for verb in (verb for verb in agent_cli.VERBS if not verb.startswith("_")):
        assert re.search(r"\b%s\b" % verb, agent_cli.USAGE), verb


def test_journal_lines_are_records() -> None:
    lines = fenced(AGENT_README, "journal")[0].splitlines(keepends=True)
    records = [journal.parse(line.encode("ascii")) for line in lines]
    assert [record and record["ev"] for record in records] == ["intent", "submitted", "started", "ended"]
    assert [journal.encode(record) for record in records if record] == [line.encode("ascii") for line in lines]


def test_journal_events_are_all_described() -> None:
    written = set(re.findall(r'(?:"ev": |ev=)"(\w+)"', _sources(AGENT))) - {"one", "two", "damaged"}
    written |= {"adopted", "held", "released"}  # written through a variable
    written |= set(re.findall(r'record_id\([^)]*"(\w+)"\)', _sources(AGENT)))
    assert {row[0] for row in table(AGENT_README, "ev")} == written


def test_whatever_wakes_the_relay_is_told() -> None:
    hooks = "".join((AGENT.parent / "hooks" / name).read_text("utf-8") for name in ("epilogue", "execjob_end.py"))
    written = set(re.findall(r'"--reason", "(\w+)"', _sources(AGENT))) | set(re.findall(r"--reason (\w+)", hooks))
    written |= {reason for reasons in wakes.REASONS.values() for reason in reasons}
    told = re.search(r"The `reason` of `pumped`.*?\n\n", AGENT_README.read_text("utf-8"), re.S)
    assert told and {"cron", "hook", "ssh", "late", "linger"} <= written <= set(re.findall(r"`([\w ]+)`", told[0]))


def test_the_table_of_elements_is_what_the_code_writes() -> None:
    told = json.loads(fenced(AGENT_README, "json")[0])
    ends = {3: ("failed", 3), 7: ("failed", 3), 9: ("unfinished", None)}
    written = elements.tally([(index, *ends.get(index, ("done", 0))) for index in range(10)], elements.ENDED)
    assert written == elements.checked(told) == told and list(written) == list(told)


def test_bytes_are_what_the_code_writes() -> None:
    shown = {}
    for line in fenced(AGENT_README, "bytes")[0].splitlines():
        name, _, digits = line.partition("  ")
        shown[name.strip()] = bytes.fromhex(digits)
    assert shown.pop("greeting") == wire.greeting("00112233445566778899aabbccddeeff")
    assert shown == {"end": wire.message("end"), "data abc": wire.frame(wire.DATA, b"abc"),
                     "nothing": wire.frame(wire.NOTHING)}
    for data in shown.values():
        assert wire.frame(*wire.read_frame(io.BytesIO(data).read)) == data


def test_every_message_is_in_the_table_and_in_a_turn() -> None:
    source = _sources(AGENT, CLIENT)
    sent = set(re.findall(r'\b(?:say|message)\(\s*"(\w+)"', source)) | set(re.findall(r'"m": "(\w+)"', source))
    described = {row[0] for row in table(AGENT_README, "message")}
    assert described == sent
    turns = " ".join(row[2] for row in table(AGENT_README, "turn"))
    assert {name for name in described if not re.search(r"\b%s\b" % name, turns)} == {"error"}
    assert {row[1] for row in table(AGENT_README, "turn")} == {"client", "agent"}


def test_settings_and_their_defaults_are_told() -> None:
    text = AGENT_README.read_text("utf-8")
    told = {key: float(value) for key, value in re.findall(r"`(\w+)`\s+(\d+)\b", text)}
    assert told == {key: float(default) for key, (default, _) in settings.DEFAULTS.items()}


def test_every_reason_not_to_clean_is_told() -> None:
    assert {row[0] for row in table(AGENT_README, "why")} == set(clearance.REASONS)
