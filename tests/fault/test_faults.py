"""SIGKILL at every fault point of the relay: at most two wakes later everything has run, once.

The points are the registry of `chasqui_agent.fault`. A scenario's first process and everything that grows out of it
(its tails, its supervisors) carry the fault; whoever passes first is killed there, and nobody after. `grace` and
`lease` are shortened here and nowhere else. The points of a session are in test_session_faults.
"""

import json
import os
import subprocess
import sys
import time

import pytest

from agent.agentroot import publish
from agent.test_dependents import publish_dependents
from chasqui_agent import cli, fault, install, intake, operations, pump, selftest  # noqa: F401  register their points
from chasqui_agent.schedulers import shell  # noqa: F401
from chasqui_agent.spool import Spool
from needs import python36

GRACE = 1.0
LEASE = 30.0
# The modules of the relay. The heartbeat is killed in tests/pbs, a bundle in tests/agent/test_bundle, a session in
# tests/session/test_kills, the client in test_client_faults, a clean on both sides in test_clean_faults, a retry in
# test_retry_faults.
RELAY = ("dependents", "ending", "files", "fill", "intake", "journal", "lock", "marks", "operations", "pump", "shell",
         "submit")
ELSEWHERE = ("bundle", "heartbeat", "channel", "deliver", "receive", "serve", "ledger", "landing", "session", "clean",
             "cleanup", "retries")
POINTS = sorted(name for name in fault.POINTS if name.split(".")[0] in RELAY)
LATER = (2, 3, 5, 7, 11) if os.environ.get("CHASQUI_TEST_SIZE") == "long" else (3,)
REPEATED = ("dependents", "files", "journal", "lock", "submit", "shell")  # one process passes these several times
PASSES = [(name, 1) for name in POINTS]
PASSES += [(name, nth) for name in POINTS for nth in LATER if name.split(".")[0] in REPEATED]
AGENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "agent")


class Scenario:
    """One root with jobs, driven by the real agent on the cluster's Python, with a fault in its environment."""

    def __init__(self, folder, python, point, nth):
        self.root, self.ran, self.once = str(folder / "root"), str(folder / "ran"), str(folder / "killed")
        self.python, self.point, self.nth = python, point, nth
        self.spool = Spool(self.root)
        os.mkdir(self.ran)
        self.environment = {
            **os.environ,
            "CHASQUI_FAULT": "%s:%d" % (point, nth),
            "CHASQUI_FAULT_ONCE": self.once,
        }
        self.agent({}, "install")
        with open(os.path.join(self.root, "config.json"), "w") as stream:
            json.dump(
                {
                    "max_running": 2,
                    "max_queued": 3,
                    "settle": 0,
                    "query_interval": 0,
                    "grace": GRACE,
                    "lease": LEASE,
                    "scheduler": "shell",
                },
                stream,
            )

    def agent(self, environment, *argv):
        command = [self.python, "-I", "-S", os.path.join(AGENT, "chasqui_agent"), "--root", self.root, *argv]
        return subprocess.run(
            command, env=environment or os.environ, stdin=subprocess.DEVNULL, capture_output=True
        ).returncode

    def text(self, name, seconds=0.2):
        return "#!/bin/sh\necho start >> '%s/%s'\nsleep %s\n" % (self.ran, name, seconds)

    def drop(self, *names, seconds=0.2):
        for name in names:
            with open(os.path.join(self.spool.waiting, name + ".sh"), "w") as stream:
                stream.write(self.text(name, seconds))

    def publish(self, *names):
        publish(self.spool, "test", [(name, self.text(name)) for name in names])

    def killed(self):
        return os.path.exists(self.once)

    def starts(self, name):
        try:
            with open(os.path.join(self.ran, name)) as stream:
                return len(stream.readlines())
        except FileNotFoundError:
            return 0

    def settled(self, names):
        return all(self.spool.settled_state(name, 1) for name in names)

    def quiet(self):
        """Wait until nothing of the relay is alive, so that only a wake can go on."""
        end = time.time() + 60
        while self._alive() and time.time() < end:
            time.sleep(0.05)

    def _alive(self):
        # Processes that take their root from the command line, runners included (their path is below it).
        done = subprocess.run(["pgrep", "-f", self.root], capture_output=True, text=True)
        return [pid for pid in done.stdout.split() if int(pid) != os.getpid()]

    def recover(self, names):
        """At most two wakes, spaced by the grace period; how many it took."""
        self.quiet()
        for wakes in range(3):
            if self.settled(names):
                return wakes
            if wakes < 2:
                time.sleep(GRACE + 0.2 if wakes else 0.0)
                self.agent(self.environment, "wake")
                self.quiet()
        return 3


@pytest.fixture(scope="session")
def cluster_python():
    """The cluster's side runs on Python 3.6 where there is one."""
    return python36() or sys.executable


@pytest.fixture
def scenario(memory_path, cluster_python):
    return lambda point, nth: Scenario(memory_path, cluster_python, point, nth)


def relay(run):
    """Five jobs by both ways in, then the relay alone. The names, and how often each has to have run."""
    run.publish("pub1", "pub2")
    run.drop("one", "two", "three")
    run.agent(run.environment, "pump")
    return ["pub1", "pub2", "one", "two", "three"]


def operate(run):
    """A hold and a cancel of what has not started; the user types again what was killed under her fingers."""
    run.drop("one", "two", "three")
    run.agent({}, "pump")
    for words in (["hold", "three"], ["cancel", "two"]):
        if run.agent(run.environment, *words) == -9:
            run.agent(run.environment, *words)
    run.quiet()
    run.agent(run.environment, "release", "three")
    return ["one", "two", "three"]


def cancel(run):
    """A cancel of what is in the scheduler and held there by the relay."""
    run.drop("one", "two", "xthree", seconds=2)
    run.agent({}, "pump")
    if run.agent(run.environment, "cancel", "xthree") == -9:
        run.agent(run.environment, "cancel", "xthree")
    return ["one", "two", "xthree"]


def refuse(run):
    """One script that the scheduler refuses for good."""
    run.drop("one", "two")
    with open(os.path.join(run.spool.waiting, "bad.sh"), "w") as stream:
        stream.write(run.text("bad").replace("\n", "\n#PBS -J 1-2\n", 1))
    run.agent(run.environment, "pump")
    return ["one", "two", "bad"]


def depend(run):
    """A parent with children that its end frees, one that its end blocks, and one that waits for two others."""
    after = [("child1", ["one"]), ("child2", ["one"]), ("last", ["child1", "child2"])]
    publish_dependents(run.spool, "good", [(name, parents, run.text(name)) for name, parents in after])
    after = [("bad1", ["one"]), ("bad2", ["bad1"])]
    publish_dependents(run.spool, "bad", [(name, parents, run.text(name)) for name, parents in after], "fail")
    run.publish("one")
    run.agent(run.environment, "pump")
    return ["one", "child1", "child2", "last", "bad1", "bad2"]


def scenario_of(point):
    """What comes by a point."""
    if point.startswith("dependents."):
        return depend
    return operate if point.startswith(("operations.", "marks.", "pump.delete.")) else relay


@pytest.mark.parametrize("point, nth", PASSES)
def test_killed_at(scenario, point, nth):
    all_once(scenario(point, nth), scenario_of(point))


@pytest.mark.parametrize("kind", [cancel, refuse])
@pytest.mark.parametrize("point", [name for name in POINTS if name.startswith("ending.")])
def test_killed_in_another_kind_of_end(scenario, point, kind):
    """An end that is no flag: cancelled and rejected."""
    all_once(scenario(point, 1), kind)


def all_once(run, what_happens):
    """Killed on the way, everything is settled after two wakes at most, each payload ran once, each end is told."""
    names = what_happens(run)
    wakes = run.recover(names)
    states = {name: run.spool.settled_state(name, 1) for name in names}
    assert wakes <= 2, states
    assert run.nth > 1 or run.killed(), "no run comes by " + run.point
    for name, state in states.items():
        # What is cancelled may have been running, or not have started.
        never = state == ("rejected" if name == "bad" else "blocked" if name == "bad1" else "cancelled")
        assert run.starts(name) == 1 or (never and run.starts(name) == 0), (name, state)
    assert list(states.values()).count("cancelled") <= 1
    code = subprocess.run(
        [run.python, "-I", "-S", os.path.join(AGENT, "chasqui_agent"), "--root", run.root, "log"], capture_output=True
    )
    events = [json.loads(line) for line in code.stdout.splitlines()]
    assert not [event for event in events if event["ev"] in ("damaged", "lost")]
    for name in names:
        ends = {event["state"] for event in events if event.get("job") == name and event["ev"] == "ended"}
        assert ends == ({"DONE"} if states[name] == "completed" else set()), name


@pytest.mark.parametrize("point", ["lock.take.after", "submit.call.before", "submit.call.after", "pump.drain.before"])
def test_killed_on_another_host(scenario, point):
    """The lock's owner is out of sight: nobody touches it before the lease is over; then everything goes on."""
    run = scenario(point, 1)
    run.publish("one", "two")
    assert run.agent(run.environment, "pump") == -9
    name = max((n for n in os.listdir(run.spool.lock) if n.startswith("g.")), key=lambda n: int(n[2:]))
    path = os.path.join(run.spool.lock, name)
    owner = dict(json.loads(os.readlink(path)), h="another-host")
    os.unlink(path)
    os.symlink(json.dumps(owner), path)
    assert run.agent({}, "pump") == 0
    assert not os.path.lexists(os.path.join(run.spool.lock, "r" + name[1:]))
    with open(os.path.join(run.root, "config.json")) as stream:
        config = json.load(stream)
    with open(os.path.join(run.root, "config.json"), "w") as stream:
        json.dump(dict(config, lease=1.0), stream)
    time.sleep(1.1)
    with open(os.path.join(run.root, "config.json"), "w") as stream:
        json.dump(dict(config, lease=6.0), stream)
    end = time.time() + 30
    while not run.settled(["one", "two"]) and time.time() < end:
        run.agent({}, "wake")
        time.sleep(0.5)
    assert [run.starts("one"), run.starts("two")] == [1, 1]


def test_how_many_points_there_are():
    assert {name.split(".")[0] for name in fault.POINTS} <= {*RELAY, *ELSEWHERE}, "a module no fault test looks after"
    print("%d fault points in the relay, %d passes killed" % (len(POINTS), len(PASSES)))
    assert len(POINTS) >= 30
