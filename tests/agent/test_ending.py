"""The end of an attempt: begun by one rename, finished by whoever finds it, once told in one way only."""

import os
from types import SimpleNamespace

import pytest

from agent.agentroot import Root
from chasqui_agent import ending, fault
from chasqui_agent.spool import Entry

JOB, TOKEN = "scan", "abcdefgh"
RECORDS = {
    "completed": {"ev": "ended", "job": JOB, "attempt": 1, "pbs": "7.server", "state": "FAIL", "exit": 3, "why": "x"},
    "cancelled": {"ev": "cancelled", "job": JOB, "attempt": 1, "pbs": "7.server", "exit": None, "why": "asked for"},
    "rejected": {"ev": "rejected", "job": JOB, "attempt": 1, "text": "qsub: Unknown queue"},
}
RESTS = {"completed": "flag", "cancelled": "sh", "rejected": "sh"}


class Holder(object):
    """A pump that holds the lock in one generation, or believes so; `told` is what its journal took."""

    def __init__(self, spool, generation):
        self.spool, self.told = spool, []
        self.lock = SimpleNamespace(generation=generation)
        self.journal = SimpleNamespace(append=self.told.append)

    def begin(self, state, where="submitted"):
        path = self.spool.entry_path(where, JOB, 1, TOKEN)
        ending.begin(self, Entry(path, JOB, 1, TOKEN), state, RECORDS[state], {"pbs": "7.server"})


@pytest.fixture
def spool(tmp_path):
    made = Root(tmp_path / "root").spool
    os.makedirs(made.meta_dir(JOB, 1))
    for where in ("submitting", "submitted"):
        with open(made.entry_path(where, JOB, 1, TOKEN), "w") as stream:
            stream.write("#!/bin/sh\n")
    return made


def everywhere(spool):
    """Every file of the attempt, as folder/name."""
    folders = ("submitted", "ending", "completed", "cancelled", "rejected", "held")
    return sorted("%s/%s" % (f, name) for f in folders for name in os.listdir(os.path.join(spool.root, f)))


def at(monkeypatch, point, action):
    """Do something else at one point of the code, as another host does while this one is frozen there."""

    def reached(name):
        if name == point:
            monkeypatch.setattr(fault, "point", lambda name: None)
            action()

    monkeypatch.setattr(fault, "point", reached)


@pytest.mark.parametrize("state", sorted(RECORDS))
@pytest.mark.parametrize("where", ["submitting", "submitted"])
def test_an_end_of_every_kind(spool, state, where):
    os.unlink(spool.entry_path("submitted" if where == "submitting" else "submitting", JOB, 1, TOKEN))
    holder = Holder(spool, 5)
    holder.begin(state, where)
    rest = ["rejected/scan.1.err"] if state == "rejected" else []
    assert everywhere(spool) == rest + ["%s/scan.1.%s" % (state, RESTS[state])]
    assert holder.told == [RECORDS[state]]
    assert not spool.any_on_their_way()


def test_the_flag_of_a_completed_attempt(spool):
    Holder(spool, 5).begin("completed")
    with open(spool.entry_path("completed", JOB, 1, suffix="flag")) as stream:
        assert stream.read() == "FAIL\n7.server\nattempt=1\nexit=3\nwhy=x\n"


@pytest.mark.parametrize("mine", sorted(RECORDS))
@pytest.mark.parametrize("theirs", sorted(RECORDS))
def test_who_comes_too_late_ends_nothing(spool, monkeypatch, mine, theirs):
    """Frozen between the record and the rename, past its lease: meanwhile the next holder told of another end."""
    os.unlink(spool.entry_path("submitting", JOB, 1, TOKEN))
    frozen, holder = Holder(spool, 5), Holder(spool, 6)
    at(monkeypatch, "ending.record.after", lambda: (ending.resume(holder), holder.begin(theirs)))
    with pytest.raises(FileNotFoundError):
        frozen.begin(mine)
    assert frozen.told == [] and holder.told == [RECORDS[theirs]]
    assert spool.settled_state(JOB, 1) == theirs
    assert not spool.any_on_their_way()
    assert {name.split("/")[0] for name in everywhere(spool)} == {theirs}


@pytest.mark.parametrize("point", ["ending.begun", "ending.flag.after", "ending.told"])
@pytest.mark.parametrize("state", sorted(RECORDS))
def test_an_end_that_was_begun_is_finished_by_the_next_holder(spool, monkeypatch, state, point):
    os.unlink(spool.entry_path("submitting", JOB, 1, TOKEN))
    frozen, holder = Holder(spool, 5), Holder(spool, 6)
    at(monkeypatch, point, lambda: ending.resume(holder))
    try:
        frozen.begin(state)
    except FileNotFoundError:
        pass  # the script or the record is gone by now
    assert holder.told == [RECORDS[state]]
    assert spool.settled_state(JOB, 1) == state
    assert {name.split("/")[0] for name in everywhere(spool)} == {state}


def test_an_end_whose_record_is_lost_is_found_out_again(spool):
    os.rename(spool.entry_path("submitted", JOB, 1, TOKEN), os.path.join(spool.ending, "scan.1.abcdefgh.5.sh"))
    os.unlink(spool.entry_path("submitting", JOB, 1, TOKEN))
    open(os.path.join(spool.ending, "scan.1.abcdefgh.5.json"), "w").close()
    assert spool.known(JOB, 1) == "ending"
    ending.resume(Holder(spool, 6))
    assert spool.known(JOB, 1) == "submitting"
    assert everywhere(spool) == ["submitted/" + name for name in os.listdir(spool.submitted)]
