"""SIGKILL on the way from a failed attempt to the next one: the job goes on after two wakes at most, each attempt runs
once, and none is made twice; where it is resumed, no file is lost on the way; and who waits for it waits for its
last."""

import json
import os
import subprocess
import time

import pytest

from agent.test_dependents import publish_dependents
from agent.test_retries import hand_over
from chasqui_agent import fault, retries  # noqa: F401  register its points
from fault.test_faults import AGENT, GRACE, Scenario, cluster_python, scenario  # noqa: F401

POINTS = [name for name in sorted(fault.POINTS) if name.startswith(("retries.", "ending."))]
LONG = os.environ.get("CHASQUI_TEST_SIZE") == "long"
STEPS = ["files.move.after", "journal.append.torn", "journal.append.written"]  # what one pump passes several times
STEPS += ["files.move.before", "files.replace.after", "journal.append.before"] if LONG else []
PASSES = [(name, 1, resume) for name in POINTS for resume in (False, True)]
PASSES += [(name, nth, resume) for name in STEPS for nth in range(1, 6) for resume in (True, False)[: 1 + LONG]]
COUNT = "#!/bin/sh\necho start.$(basename \"$PWD\") >> %s/it\ncat in >>seen\necho spoilt >in\n"


class Owner:
    """What `hand_over` wants to know of a root."""

    def __init__(self, run: Scenario) -> None:
        self.spool, self.ran = run.spool, run.ran


def settled_at_last(run: Scenario, wakes: int = 4) -> int:
    """How many wakes by hand it takes until the job's last attempt is over, and who waits for it has come to rest."""
    for done in range(wakes):
        run.quiet()
        if run.spool.settled_state("it", run.spool.final_attempt("it", 1)) and run.settled(["friend", "heir"]):
            return done
        time.sleep(GRACE + 0.2 if done else 0.0)  # a submission without a trace is given up behind two rounds
        run.agent(run.environment, "wake")
    return wakes


@pytest.mark.parametrize("point, nth, resume", PASSES)
def test_killed_between_two_attempts(scenario, point, nth, resume):  # noqa: F811
    run = scenario(point, nth)
    # Fails twice; the attempt tells of itself which one it is.
    script = COUNT % run.ran + "case $PWD in *.3) exit 0 ;; esac\nexit 7\n"
    rule = {"retries": 3, "on": ["7"], "set": {"walltime": "1:00"}, "resume": resume}
    hand_over(Owner(run), "it", script, rule, {"in": b"as sent\n"})
    for name, condition in (("friend", "ok"), ("heir", "fail")):
        publish_dependents(run.spool, name, [(name, ["it"], run.text(name, 0))], condition=condition)
    run.agent(run.environment, "pump")
    assert settled_at_last(run) <= 2
    assert run.killed() or point in STEPS, "no run comes by " + point
    with open(os.path.join(run.ran, "it")) as stream:
        assert stream.read().split() == ["start.it", "start.it.2", "start.it.3"]
    assert run.starts("friend") == 1 and run.spool.settled_state("heir", 1) == "blocked"
    assert run.spool.final_attempt("it", 1) == 3 and not os.path.exists(run.spool.work_dir("it", 4))
    with open(os.path.join(run.spool.work_dir("it", 3), "seen")) as stream:
        assert stream.read() == ("as sent\nspoilt\nspoilt\n" if resume else "as sent\n")
    with open(os.path.join(run.spool.meta_dir("it", 3), "script")) as stream:
        assert stream.read().count("#PBS -l walltime=1:00\n") == 1
    for folder in (run.spool.ending, os.path.join(run.spool.work, ".retries")):
        assert os.listdir(folder) == []
    assert os.listdir(run.spool.after) == []
    told = [(r["attempt"], r["state"]) for r in log(run) if r["ev"] == "ended" and r["job"] == "it"]
    assert sorted(set(told)) == [(1, "FAIL"), (2, "FAIL"), (3, "DONE")]
    assert {(r["attempt"], r["next"]) for r in log(run) if r["ev"] == "retried"} == {(1, 2), (2, 3)}


def log(run: Scenario) -> list:
    command = [run.python, "-I", "-S", os.path.join(AGENT, "chasqui_agent"), "--root", run.root, "log"]
    return [json.loads(line) for line in subprocess.run(command, capture_output=True).stdout.splitlines()]
