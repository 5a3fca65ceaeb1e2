"""Why one job is where it is: in every state of a real root, and in words whatever the facts are."""

import json
import os
import time

import pytest

from agent.agentroot import publish, until
from agent.test_dependents import hand_over, settle
from chasqui_agent import files, why
from chasqui_agent.spool import SpoolError
from chasqui_agent.state import State

NOW = time.time()
RELAY = {"counts": [0, 0, 0], "caps": {"max_running": 30, "max_queued": 40, "max_total": 0},
         "refused": None, "called": "PBS", "beat": 0, "debt": 0, "pumped": NOW, "stalled": 0, "asks": True, "relay": {},
         "failed": ""}


def _gathered(root, job, *more):
    code, out, err = root.agent("why", job, "--json", *more)
    assert code == 0, err
    return json.loads(out)


def test_one_that_runs_one_that_waits_one_that_is_held(make_root):
    root = make_root(max_running=1, max_queued=1)
    open_gate = os.path.join(root.path, "gate")
    wait = "until [ -e '%s' ]; do sleep 0.05; done" % open_gate
    for name in ("a", "b", "c", "d"):
        root.drop(name, wait)
    assert _gathered(root, "a")["state"] == "dropped"
    root.pump()
    until(lambda: root.starts("a"), "a running")
    assert "It runs since " in root.agent("why", "a")[1]
    root.pump()  # which takes the place in the queue that it has left
    ran = [name for name in "abcd" if _gathered(root, name)["state"] == "submitted"]
    waits = [name for name in "abcd" if name not in ran]
    assert ran == ["a", "b"]
    held = _gathered(root, "b")
    assert (held["held"], held["began"]) == (True, 0)
    assert "max_running = 1 is reached" in root.agent("why", "b")[1]
    found = [_gathered(root, name) for name in waits]
    assert [(one["state"], one["ahead"]) for one in found] == [("waiting", 0), ("waiting", 1)]
    assert found[0]["counts"] == [1, 1, 2]
    said = root.agent("why", "d")[1]
    assert "1 script goes before it" in said and "max_queued = 1 is reached (1 are queued)" in said
    assert root.agent("hold", "d")[0] == 0
    assert "held there by chasqui hold" in root.agent("why", "d")[1]
    open(open_gate, "w").close()
    root.agent("release", "d")
    root.wait_finished(4)
    assert root.agent("why", "d")[1] == "It has ended there: DONE.\n"


def test_other_ends_and_what_is_not_here(root):
    root.drop("bad", "exit 3")
    root.drop_text("hers.sh", "#!/bin/sh\n#PBS -h\n")
    root.drop_text("array.sh", "#!/bin/sh\n#PBS -J 1-3\n")
    root.pump()
    root.pump()
    root.wait_finished(1)
    assert "FAIL, exit 3." in root.agent("why", "bad")[1]
    assert "by its own line #PBS -h" in root.agent("why", "hers")[1]
    root.agent("cancel", "hers")
    assert root.agent("why", "hers")[1] == "It was cancelled there.\n"
    assert "the shell scheduler has no job arrays" in root.agent("why", "array")[1]
    assert root.agent("why", "nobody")[1] == "The relay there has no such job.\n"
    assert root.agent("why", "bad", "2")[1] == "The relay there has no such job.\n"
    for words in (["why"], ["why", "a", "b"], ["why", "a", "1", "2"]):
        assert root.agent(*words)[0] == 2
    code, out, err = root.agent("why", "../x")
    assert (code, out) == (1, "") and "is not the id of a job" in err


def test_the_order_of_what_waits_is_that_of_the_queue(root):
    publish(root.spool, "low", [("low1", "x"), ("low2", "x")], priority=-5)
    publish(root.spool, "high", [("high1", "x")], priority=5)
    ahead = [why.gather(root.spool, job)["ahead"] for job in ("high1", "low1", "low2")]
    assert ahead == [0, 1, 2]
    with pytest.raises(SpoolError):
        why.gather(root.spool, "a/b")


def test_what_waits_for_others_and_what_they_blocked(root):
    gate = os.path.join(root.path, "gate")
    root.drop("gated", "until [ -e '%s' ]; do sleep 0.05; done; exit 3" % gate)
    root.pump()
    until(lambda: root.starts("gated"), "the parent running")
    root.drop("other", "true")
    root.agent("hold", "other")
    hand_over(root, ("child", ["gated", "other"], 0), ("grandchild", ["child"], 0), batch="one")
    hand_over(root, ("always", ["gated"], 0), batch="two", condition="any")
    expected = "It waits there for gated (gated, running) and other (other, held) to end ok.\n"
    assert root.agent("why", "child")[1] == expected
    root.pump()
    found = _gathered(root, "child")
    assert (found["state"], found["if"], found["more"]) == ("after", "ok", 0)
    assert found["parents"][0] == ["gated", "gated", "running"]
    assert "for the-child (child, waiting for others) to end ok." in root.agent("why", "grandchild")[1]
    assert "gated (gated, running) to end." in root.agent("why", "always")[1]
    open(gate, "w").close()
    until(root.idle, "nothing runs")
    assert settle(root, ["child", "grandchild", "always"]) == {"child": "blocked", "grandchild": "blocked",
                                                               "always": "completed"}
    assert root.agent("why", "child")[1] == "It will not run there: blocked by gated (failed).\n"
    assert root.agent("why", "grandchild")[1] == "It will not run there: blocked by the-child (blocked).\n"


def test_a_submission_whose_answer_was_lost(root):
    name = "lost.1.abcdefgh.sh"
    files.write_file(os.path.join(root.spool.submitting, name), b"#!/bin/sh\n")
    found = why.gather(root.spool, "lost")
    assert (found["state"], found["grace"]) == ("submitting", 300.0)
    assert "the answer was lost" in " ".join(why.words(found))


def test_a_wake_that_failed_is_told_until_a_pump_has_worked(root):
    root.drop_text("held.sh", "#!/bin/sh\n#PBS -h\n")
    root.pump()
    path = os.path.join(root.spool.wake, ".failed")
    files.write_file(path, b"no space left")
    os.utime(path, (time.time() + 60, time.time() + 60))
    files.write_file(os.path.join(root.spool.wake, "debt"), b"123\n")
    found = why.gather(root.spool, "held")
    assert (found["failed"], found["debt"]) == ("no space left", 123)
    os.utime(path, (time.time() - 60, time.time() - 60))
    assert why.gather(root.spool, "held")["failed"] == ""


def test_the_words_of_a_refusal_are_remembered_with_their_time(root):
    from chasqui_agent.fill import _note_refusal

    class Pump:
        state, report, now = State(root.spool), {"refused": "no allocation"}, 100.0

    for now, text, kept in ((100.0, "no allocation", 100.0), (200.0, "no allocation", 100.0), (300.0, "other", 300.0)):
        Pump.now, Pump.report = now, {"refused": text}
        _note_refusal(Pump)
        assert Pump.state.value["refused"] == [text, kept]
    Pump.report = {"refused": ""}
    _note_refusal(Pump)
    assert "refused" not in Pump.state.value


CAUSES = [
    ("next in line", {"state": "waiting", "ahead": 0, "beat": NOW + 60},
     ["it is the next", "room for it", "heartbeat"]),
    ("others before it", {"state": "waiting", "ahead": 1200, "priority": -3},
     ["1,200 scripts go before", "priority -3"]),
    ("queue full", {"state": "waiting", "counts": [30, 40, 70]}, ["max_queued = 40 is reached (40 are queued)"]),
    ("all full", {"state": "waiting", "counts": [9, 1, 10], "caps": {"max_queued": 40, "max_total": 10}},
     ["max_total = 10 is reached (10 are in the scheduler)"]),
    ("site's limit", {"state": "waiting", "back": ["the site allows 5 jobs in queue long", "and 6 in all"]},
     ["No more are submitted now: the site allows 5 jobs in queue long; and 6 in all."]),
    ("refused", {"state": "waiting", "refused": ["qsub: no allocation", NOW]},
     ["PBS refuses submissions since ", "in its words: qsub: no allocation."]),
    ("debt", {"state": "waiting", "debt": NOW}, ["Jobs that have just ended still take their places in PBS"]),
    ("stalled", {"state": "waiting", "stalled": NOW}, ["The relay has stood still since "]),
    ("failed wake", {"state": "waiting", "failed": "disk full"}, ["The last wake of the relay failed: disk full."]),
    ("only at syncs", {"state": "waiting", "relay": {"way": "sync", "contact": True, "refused_on": "n7"}},
     ["Compute nodes may not submit here: the relay goes on at each sync"]),
    ("held by the cap", {"state": "submitted", "id": "7.s", "held": True, "counts": [30, 1, 31]},
     ["in PBS as 7.s", "max_running = 30 is reached (30 run, or may start)"]),
    ("held, cap free by now", {"state": "submitted", "id": "7.s", "held": True}, ["when the relay last looked"]),
    ("PBS's comment", {"state": "submitted", "id": "7.s", "words": "Not Running: not enough ncpus", "letter": "Q"},
     ["PBS says: Not Running: not enough ncpus."]),
    ("no comment", {"state": "submitted", "id": "7.s", "letter": "Q"}, ["PBS gives no reason (state Q)."]),
    ("server silent", {"state": "submitted", "id": "7.s", "silent": "qstat: cannot connect", "words": "Can Never Run"},
     ["PBS did not answer: qstat: cannot connect.", "Before, it said: Can Never Run."]),
    ("runs", {"state": "submitted", "id": "7.s", "began": NOW}, ["It runs since ", "as 7.s."]),
    ("being ended", {"state": "submitted", "id": "7.s", "began": NOW, "told": True}, ["was told to end (TERM)"]),
    ("others", {"state": "after", "parents": [["kx3fabcdefgh", "prepare", "submitted"], ["b", "b", ""]], "more": 1200,
                "if": "fail"}, ["for prepare (kx3fabcd, in the scheduler), b (b, not there) and 1,200 more to fail."]),
    ("others, stalled", {"state": "after", "parents": [["a", "a", "waiting"]], "if": "ok", "stalled": NOW},
     ["for a (a, waiting) to end ok.", "The relay has stood still since "]),
    ("others over", {"state": "after", "parents": [], "beat": NOW + 60},
     ["has ended there; the next pump", "heartbeat"]),
    ("blocked", {"state": "blocked", "words": "blocked by a (failed)"}, ["will not run there: blocked by a (failed)."]),
    ("over", {"state": "submitted", "id": "7.s", "began": NOW, "over": True, "letter": "E"},
     ["PBS, asked now, still lists it (7.s, state E)."]),
    ("over, PBS does not list it", {"state": "submitted", "id": "7.s", "over": True, "pumped": NOW},
     ["Its script has ended (7.s); the relay writes down how once it has looked again; it last looked at "]),
    ("over, server silent", {"state": "submitted", "id": "7.s", "over": True, "silent": "qstat: cannot connect"},
     ["once it has looked again", ". PBS did not answer: qstat: cannot connect."]),
    ("ending", {"state": "ending"}, ["the next pump writes down how"]),
    ("lost", {"state": "completed", "end": "LOST", "words": "gone"}, ["It has ended there: LOST, gone."]),
    ("tried again", {"state": "waiting", "again": "attempt 2 of 3 after exit 137, mem raised to 16gb", "left": 1},
     ["The relay tries it again by itself: attempt 2 of 3 after exit 137, mem raised to 16gb. It waits there"]),
    ("may be tried again", {"state": "submitted", "id": "7.s", "began": NOW, "left": 2},
     ["If it ends as its retry policy says, the relay tries it again, 2 times at most."]),
    ("may be tried once more", {"state": "ending", "left": 1}, ["the relay tries it again, once."]),
    ("was tried again", {"state": "completed", "end": "FAIL", "again": "attempt 3 of 3 after exit 7", "left": 0,
                         "words": "exit 7; not tried again: the last of 2 retries"},
     ["It was attempt 3 of 3 after exit 7. It has ended there: FAIL, exit 7; not tried again: the last of 2 retries."]),
]


@pytest.mark.parametrize("facts,said", [case[1:] for case in CAUSES], ids=[case[0] for case in CAUSES])
def test_each_cause_in_words(facts, said):
    text = " ".join(why.words(dict(RELAY, **facts)))
    assert all(piece in text for piece in said), text


@pytest.mark.parametrize("value", [None, 1, -1.5, "x", "", [], [1], ["a", "b"], {}, {"a": 1}, True, 1e300], ids=repr)
def test_facts_that_are_none_end_in_words_all_the_same(value):
    keys = list(RELAY) + ["ahead", "priority", "by", "grace", "id", "held", "told", "over", "letter", "words", "silent",
                          "began", "end", "parents", "more", "if", "again", "left"]
    for state in why._SAYINGS:
        assert why.words(dict(dict.fromkeys(keys, value), state=state))
        assert why.words({"state": state})
    assert why.words({"state": value}) == [] or value == ""
