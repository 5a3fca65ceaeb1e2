"""The submission protocol searched whole: no bad end; and each of its rules left out, to see the bad end it prevents.

The model is in submission_model.py. Its claims, marks and closings are also replayed on the real runner and marks.
"""

import itertools
import os
import re
import subprocess

import pytest

import chasqui_agent
from chasqui_agent import marks, runner
from property import submission_model as model

TWICE = "the payload started twice"
LATE = "started after its end was told"
RUNS = "an end was told of a job that runs"
BOTH = "the retry and the old attempt run together"
TWO_STATES = "in two states"
CODE = os.path.dirname(chasqui_agent.__file__)


@pytest.fixture(scope="module")
def whole():
    """The protocol, searched whole twice: one pump and everything, two pumps and a simpler batch system."""
    return [model.search(model.PROTOCOL, scope) for scope in (model.ONE_PUMP, model.TWO_PUMPS)]


def test_no_bad_end(whole, capsys):
    for found, floor in zip(whole, (100000, 100000), strict=True):
        with capsys.disabled():
            print("\n%d worlds, %d moves" % (found.states, sum(found.taken.values())))
        assert found.traces == {}
        assert found.states > floor


def test_every_move_is_taken(whole):
    taken = whole[0].taken + whole[1].taken
    frozen = {"frozen " + step for step in model.STEPS if step not in model.LOOKS}
    moves = set(model.STEPS) | model.EVERYTHING | frozen | {"pump_wakes", "pump_crashes", "frozen_pump_ends"}
    assert set(taken) == moves


def test_nothing_stands_still_for_ever(whole):
    for found in whole:
        assert sum(1 for world in found.parents if model._is_quiet(world)) > 100
        assert model.stuck(found.parents, model.PROTOCOL) == []


def test_a_pump_that_overlooks_submitting_is_found_to_stand_still(whole, monkeypatch):
    def overlooks(world, pump, holds, rules):
        yield world, pump._replace(step="settle")

    monkeypatch.setitem(model.STEPS, "reconcile_submitting", overlooks)
    standing = model.stuck(whole[1].parents, model.PROTOCOL)
    assert {world.script[0] for world in standing} == {"submitting", "ending"}


ONE, TWO = model.ONE_PUMP, model.TWO_PUMPS
PLAIN = ONE & TWO  # found sooner in a simpler world


@pytest.mark.parametrize(
    "rule, scope, expected",
    [
        ("closing", PLAIN, {TWICE: "runner_looks_again", LATE: "runner_claims", BOTH: "user_retries"}),
        ("new_token", PLAIN, {LATE: "runner_claims", RUNS: "tell_end", BOTH: "user_retries"}),
        ("claim", PLAIN, {TWICE: "runner_looks_again", LATE: "runner_looks_again", RUNS: "tell_end"}),
        ("asked_only", PLAIN, {RUNS: "write_flag", BOTH: "user_retries"}),
        ("deleted_closes", PLAIN, {LATE: "runner_claims"}),
        ("start_looks_again", ONE, {LATE: "runner_claims", RUNS: "tell_end", BOTH: "user_retries"}),
        ("ends_by_rename", PLAIN, {LATE: "runner_claims", RUNS: "runner_claims"}),
        ("ends_by_rename", TWO, {TWO_STATES: "frozen move_to_rest"}),
    ],
)
def test_without_a_rule_there_are_bad_ends(rule, scope, expected, capsys):
    found = model.search(model.PROTOCOL._replace(**{rule: False}), scope, kinds=expected)
    for kind in expected:
        with capsys.disabled():
            print("\nwithout %s, %s: %s" % (rule, kind, " > ".join(found.traces.get(kind, ["never"]))))
    assert {kind: found.traces[kind][-1] for kind in expected if kind in found.traces} == expected


def test_what_the_model_names_is_in_the_code():
    words = "fill submit behind reconcile ending operations marks pump lock runner scheduler journal batch state live"
    modules = {name: _text(os.path.join(CODE, name + ".py")) for name in words.split() if name != "scheduler"}
    named = re.findall(r"\b([a-z]+)\.(_?[a-z_]+)\b(?!\.py)", " ".join(move.__doc__ or "" for move in _moves()))
    checked = [(module, function) for module, function in named if module in modules and function != "py"]
    assert len(checked) > 15
    for module, function in checked:
        assert "def %s(" % function in modules[module], (module, function)


def _moves():
    around = model.SCHEDULER + model.RUNNER + model.USER
    return [*model.STEPS.values(), *around, model.pump_wakes, model.fates]


def _text(path):
    with open(path, encoding="utf-8") as stream:
        return stream.read()


# -- the same on real files --------------------------------------------------------------------------------------------


class Folder:
    """A work folder, a root, and one token's runner, started by hand under any id."""

    token = "abcdefgh"

    def __init__(self, path):
        self.path, self.meta = str(path / "work"), str(path / "work" / ".chasqui")
        os.makedirs(self.meta)
        os.makedirs(str(path / "root" / "wake"))
        values = dict.fromkeys(("name", "agent"), "none")
        values.update(dir=self.path, root=str(path / "root"), job="j", attempt="1", token=self.token)
        values.update(python="/bin/false", path="/usr/bin:/bin")
        self.script = os.path.join(self.path, "runner")
        command = ["/bin/sh", "-c", "echo >> started"]
        with open(self.script, "wb") as stream:
            stream.write(runner.build(b"", values, command, False))

    def close(self, generation="3"):
        return marks.close(self.meta, self.token, int(generation))

    def run(self, job_id):
        environment = {"PATH": "/usr/bin:/bin", "HOME": self.path, "PBS_JOBID": job_id}
        return subprocess.run([runner.shell_path(), self.script], env=environment, timeout=60).returncode

    def starts(self):
        path = os.path.join(self.path, "started")
        return len(_text(path)) if os.path.exists(path) else 0


@pytest.mark.parametrize("order", sorted(set(itertools.permutations(("close", "7.server", "7.server", "8.server")))))
def test_real_runners_and_closings_end_as_the_model_says(tmp_path, order):
    folder, (world, number) = Folder(tmp_path), _modelled()
    for word in order:
        if word == "close":
            claim = folder.close()
            world = next(model.close_link(world, world.pump, True, model.PROTOCOL))[0]
            modelled = world.tokens[0].claim
            assert claim == ("" if modelled == "closed" else number[modelled])
        else:
            world = _run_in_the_model(world, int(word == "8.server"))
            refused = world.jobs[int(word == "8.server")].runner == ""
            assert folder.run(word) == (97 if refused else 0)
        assert folder.starts() == world.starts


def _modelled():
    """One token under which two jobs are queued, as when a request was accepted twice."""
    token = model.Token(None, None, 0, False, False, False, True, "")
    jobs = (model.Job(0, "Q", "", ""), model.Job(0, "Q", "", ""))
    pump = model.Pump("close_link", ("submitting", 0), None, None, "submitting")
    world = model.START._replace(script=("submitting", 0), tokens=(token,), jobs=jobs, pump=pump)
    return world, ("7.server", "8.server")


def _run_in_the_model(world, number):
    """A job's runner from its start to where its payload runs, or to its refusal."""
    world = model.with_job(world, number, state="R", runner="new")
    for move in (model.runner_claims, model.runner_marks_its_start, model.runner_looks_again):
        process = world.jobs[number].runner
        for after in move(world, model.PROTOCOL, number, "runner", process, world.tokens[0]) if process else ():
            world = after
    return world
