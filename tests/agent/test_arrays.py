"""Job arrays as the relay sees them: marks by element, counts for the caps, one outcome; without a scheduler."""

import errno
import os

import pytest

from agent.test_reconcile import Desk
from chasqui_agent import arrays, directives, elements, files, journal, live, marks, submit
from chasqui_agent.schedulers.base import Ended, Live, Snapshot
from chasqui_agent.spool import Entry

TOKEN, PBS_ID = "abcdefgh", "7[].server"


@pytest.mark.parametrize(
    "value, indices",
    [
        ("1-4", [1, 2, 3, 4]),
        ("0-9:2%3", [0, 2, 4, 6, 8]),
        ("3-7:3", [3, 6]),
        ("1-4%2", [1, 2, 3, 4]),
        ("5-5", [5]),
        ("4-1", []),
        ("1-4:0", [1, 2, 3, 4]),
        ("1,3", []),
        ("-", []),
        ("", []),
    ],
)
def test_the_elements_a_script_asks_for(value, indices):
    assert list(directives.elements(directives.asked(b"#PBS -J " + value.encode("ascii")))) == indices


def test_each_element_has_its_own_output():
    each = "^array_index^"
    ours = ("/w/.chasqui/t.%s.out" % each, "/w/.chasqui/t.%s.err" % each, False)
    assert submit.output_paths({"J": "1-3"}, "/w", "/w/.chasqui/t", "n", "t") == ours
    asked = {"J": "1-3", "o": "logs/", "j": "oe"}
    assert submit.output_paths(asked, "/w", "/w/.chasqui/t", "n", "t")[0] == "/w/logs/n.ot." + each


class Array(object):
    """An array of four in submitted/, and what its elements leave."""

    def __init__(self, folder):
        self.meta = str(folder)
        self.script = os.path.join(self.meta, "script")
        files.write_file(self.script, b"#PBS -J 1-4\n", durable=False)

    def leave(self, index, code=None, term=False, k=1):
        """An element began; it ended, with `code`."""
        if not os.path.lexists(os.path.join(self.meta, "claim." + TOKEN)):
            os.symlink(PBS_ID, os.path.join(self.meta, "claim." + TOKEN))
        own = "%s.%d" % (TOKEN, index)
        os.symlink("7[%d].server" % index, os.path.join(self.meta, "run.%s.%d" % (own, k)))
        if term:
            files.write_file(os.path.join(self.meta, "term.%s.%d" % (own, k)), b"", durable=False)
        if code is not None:
            flag = b"exit=%d\nended=%d\nwhole\n" % (code, 100 + index)
            files.write_file(marks.flag_path(self.meta, own, k), flag, durable=False)

    def standing(self, held=False):
        entry = Entry(self.script, "job", 1, TOKEN)
        return live.Standing(entry, self.meta, PBS_ID, held, marks.read(self.meta, TOKEN), range(1, 5))

    def counts(self, held=False, seen=None):
        snapshot = Snapshot({PBS_ID: Live(PBS_ID, "B", "", *seen)} if seen else {}, {})
        return tuple(live.count([self.standing(held)], 0, snapshot))[:3]


@pytest.fixture
def array(tmp_path):
    return Array(tmp_path)


def test_an_array_counts_by_element(array):
    assert array.counts(held=True) == (0, 4, 4)
    assert array.counts() == (4, 4, 4)  # any of them may start at any moment
    array.leave(1)
    array.leave(2, code=0)
    assert array.counts() == (3, 2, 4)
    assert array.counts(seen=(2, 1)) == (3, 2, 3)  # PBS has let go of the one that ended
    assert array.counts(held=True) == (3, 2, 4)  # a release that we do not know of: the others may start, too
    array.leave(3, code=1)
    array.leave(4, code=1)
    assert array.counts(seen=(0, 2)) == (1, 0, 2)  # one of them still ends
    assert array.counts(seen=(0, 0)) == (1, 0, 1)  # an answer that can't be: the marks know better


def test_a_heartbeat_and_what_is_in_flight_count_beside_it(array):
    foreign = Live("9[].server", "B", "", 3, 2)
    counts = live.count([array.standing()], 5, Snapshot({"9[].server": foreign}, {}), ["8.server"])
    assert tuple(counts) == (4 + 5 + 2, 4 + 5 + 3 + 1, 4 + 5 + 5 + 2, 2, 4, 7)


def test_flags_alone_are_certain_only_when_all_are_there(array):
    for index in (1, 2, 3):
        array.leave(index, code=0)
        assert arrays.by_flags(array.standing()) is None
    array.leave(4, code=0)
    assert arrays.by_flags(array.standing()) == {
        "state": "DONE",
        "exit": 0,
        "why": "",
        "when": 104,
        "elements": {
            "done": 4,
            "failed": 0,
            "unfinished": 0,
            "unstarted": 0,
            "states": [{"state": "done", "exit": 0, "count": 4, "indices": "1-4"}],
        },
    }


def test_a_flag_that_is_not_whole_is_waited_for(array):
    for index in (1, 2, 3, 4):
        array.leave(index, code=0)
    files.write_file(marks.flag_path(array.meta, TOKEN + ".3", 1), b"exit=0\n", durable=False)
    assert arrays.by_flags(array.standing()) is None


def test_after_term_only_the_scheduler_knows(array):
    for index in (1, 2, 3, 4):
        array.leave(index, code=0, term=index == 2)
    assert arrays.by_flags(array.standing()) is None
    outcome = arrays.by_scheduler(array.standing(), "walltime")
    assert (outcome["state"], outcome["exit"]) == ("FAIL", None)
    assert outcome["why"] == "1 of 4 did not finish: 2 (walltime)"


@pytest.mark.parametrize("lost, state", [(True, "LOST"), (False, "FAIL")])
def test_what_left_no_flag_did_not_finish(array, lost, state):
    array.leave(1, code=0)
    array.leave(2)
    outcome = arrays.by_scheduler(array.standing(), "", lost)
    assert (outcome["state"], outcome["why"]) == (state, "3 of 4 did not finish: 2, 3, 4")
    array.leave(3, code=5)
    outcome = arrays.by_scheduler(array.standing(), "", lost)
    assert (outcome["state"], outcome["exit"]) == ("FAIL", 5)
    assert outcome["why"] == "1 of 4 elements failed: 3; 2 of 4 did not finish: 2, 4"
    told = [("failed", 5, "3"), ("unfinished", None, "2"), ("unstarted", None, "4"), ("done", 0, "1")]
    assert [(row["state"], row["exit"], row["indices"]) for row in outcome["elements"]["states"]] == told


def test_how_far_it_is(array):
    array.leave(1, code=0)
    array.leave(2, code=3)
    array.leave(3)
    standing = array.standing()
    assert live.progress([standing]) == {"job": [1, 2, 1, 1]}
    assert live.progress([standing._replace(indices=()), standing._replace(spoilt=True)]) == {}
    told = elements.short(arrays.states(standing, alive=True))
    assert told == "1 done, 1 failed, 1 running, 1 waiting"
    array.leave(3, k=2, code=0)  # PBS began it again
    assert elements.short(arrays.states(array.standing(), alive=True)) == "2 done, 1 failed, 1 waiting"


def test_a_file_server_that_does_not_answer_leaves_no_table(array, monkeypatch):
    """A cancel does not depend on one."""
    for index in (1, 2, 3, 4):
        array.leave(index, code=0)

    def stale(path):
        raise OSError(errno.ESTALE, "Stale file handle", path)

    monkeypatch.setattr(marks, "read_flag", stale)
    assert arrays.states(array.standing()) is None


def test_without_its_folder_nobody_says_that_an_element_never_started(array):
    array.leave(1, code=0)
    told = arrays.states(array.standing()._replace(spoilt=True))["states"]
    assert [(row["state"], row["indices"]) for row in told] == [("unfinished", "2-4"), ("done", "1")]


def test_after_term_an_element_that_says_0_did_not_finish(array):
    array.leave(1, code=0, term=True)
    array.leave(2, code=4, term=True)
    told = [(row["state"], row["indices"]) for row in arrays.states(array.standing())["states"]]
    assert told == [("failed", "2"), ("unfinished", "1"), ("unstarted", "3-4")]


def test_a_long_list_is_cut(array):
    standing = array.standing()._replace(indices=range(1000))
    why = arrays.by_scheduler(standing, "")["why"]
    assert why == "1000 of 1000 did not finish: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..."


def test_the_start_of_an_array_is_its_first_elements(array):
    array.leave(3)
    os.utime(os.path.join(array.meta, "run.%s.3.1" % TOKEN), (5000, 5000), follow_symlinks=False)
    array.leave(1)
    assert marks.started_at(array.meta, TOKEN, marks.read(array.meta, TOKEN)) == 5000
    assert marks.started_at(array.meta, TOKEN, marks.read(array.meta, "nosuchto")) == 0


@pytest.fixture
def desk(root, monkeypatch):
    """A root with an array of two in submitted/, one element begun, and a scheduler that knows nothing of it."""
    made = Desk(root, monkeypatch)
    marks.write_id(made.meta, TOKEN, PBS_ID, False)
    for path in (os.path.join(made.meta, "script"), root.spool.entry_path("submitted", "job", 1, TOKEN)):
        files.write_file(path, b"#PBS -J 1-2\n")
    made.claim(PBS_ID)
    os.symlink("7[1].server", os.path.join(made.meta, "run.%s.1.1" % TOKEN))
    return made


def test_an_array_without_a_trace_is_lost_and_repaired_by_its_flags(desk):
    desk.pump()
    assert desk.outcome() == []
    desk.pump(400)
    why = "2 of 2 did not finish: 1, 2 (gone from the scheduler without a trace)"
    assert desk.outcome() == [("ended", "LOST", why)]
    for index, expected in ((1, []), (2, [("repaired", "DONE")])):
        flag = marks.flag_path(desk.meta, "%s.%d" % (TOKEN, index), 1)
        files.write_file(flag, b"exit=0\nended=1\nwhole\n", durable=False)
        event = "ev.tail.job.1.%s.%d.host.4711" % (TOKEN, index)
        files.write_file(os.path.join(desk.spool.wake, event), b"7[%d].server\n" % index, durable=False)
        desk.pump(1, handled=[event])
        told = [r for _, r in journal.records(desk.spool.log) if r["ev"] == "repaired"]
        assert [(r["ev"], r["state"]) for r in told] == expected


def test_an_array_that_ends_by_its_flags_waits_for_the_scheduler_to_let_go(desk):
    for index in (1, 2):
        flag = marks.flag_path(desk.meta, "%s.%d" % (TOKEN, index), 1)
        files.write_file(flag, b"exit=%d\nended=1\nwhole\n" % (index - 1), durable=False)
    desk.scheduler.answer = Snapshot({PBS_ID: Live(PBS_ID, "B", TOKEN, 0, 1)}, {}, [])
    desk.pump()
    assert desk.outcome() == []
    desk.scheduler.answer = Snapshot({}, {}, [])  # nobody asks what became of it
    desk.pump(1)
    assert desk.outcome() == [("ended", "FAIL", "1 of 2 elements failed: 2")]


def test_an_array_of_which_nothing_started_waits_again_under_a_new_token(desk):
    for name in ("run.%s.1.1" % TOKEN, "claim." + TOKEN):
        os.unlink(os.path.join(desk.meta, name))
    desk.scheduler.answer = Snapshot({}, {PBS_ID: Ended(PBS_ID, 1, "", TOKEN, False)})
    desk.pump()
    assert desk.outcome() == [("closed", None, "its runner could not start (exit 1)")]
    assert marks.is_closed(marks.read(desk.meta, TOKEN).claim)
