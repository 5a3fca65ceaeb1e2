"""Records of jobs that died without taking theirs away go in time, and no others."""

import os
import time
from collections import namedtuple

import pytest

from chasqui_agent import records
from chasqui_agent.schedulers.base import Live, Scheduler, Snapshot

OLD = 2 * records.YOUNG
State = namedtuple("State", "value")
Pump = namedtuple("Pump", "scheduler now state")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".chasqui-agent" / "jobs"
    folder.mkdir(parents=True)
    return folder


def write(folder, name, age):
    (folder / name).write_text(u"root\n")
    os.utime(str(folder / name), (time.time() - age,) * 2)


def prune(live=(), state=None):
    state = {} if state is None else state
    snapshot = Snapshot({job_id: Live(job_id, "R") for job_id in live}, {})
    records.prune(Pump(Scheduler(), time.time(), State(state)), snapshot)
    return state


def test_the_old_ones_of_jobs_that_are_gone(home):
    for name, age in (("1.s", OLD), ("2.s", OLD), ("3.s", 0), ("7[4].s", OLD), ("8[4].s", OLD)):
        write(home, name, age)
    prune(live=["2.s", "7[].s"])
    assert sorted(os.listdir(str(home))) == ["2.s", "3.s", "7[4].s"]


def test_only_once_an_hour_and_some_at_a_time(home):
    for number in range(3 * records.LOOKS):
        write(home, "%d.s" % number, OLD)
    state = prune()
    assert len(os.listdir(str(home))) == 2 * records.LOOKS
    prune(state=state)
    assert len(os.listdir(str(home))) == 2 * records.LOOKS
    state["pruned"] -= records.EVERY + 1
    prune(state=state)
    assert len(os.listdir(str(home))) == records.LOOKS


def test_a_home_that_is_broken_stops_nothing(home):
    (home / "1.s").mkdir()
    os.utime(str(home / "1.s"), (0, 0))
    prune()
    os.rmdir(str(home / "1.s"))
    os.rmdir(str(home))
    prune()
    home.write_text(u"")
    prune()
