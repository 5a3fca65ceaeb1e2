"""Jobs that wait for one that the relay tries again: they wait for the end of its last attempt, whichever they name."""

import os

import pytest

from agent.agentroot import Root, end_jobs, until
from agent.test_dependents import publish_dependents
from agent.test_retries import WAITS, hand_over, rule
from chasqui_agent import dependents, files, operations, settings

CHILD = "#!/bin/sh\necho start >> '%s/%s'\n"
# It notes each attempt, waits for its own word, and fails unless it is the last of so many.
PARENT = "#!/bin/sh\necho start >> '%s/p'\n" + WAITS.replace("go.%s", "go.$(basename $PWD)") + "%s"
CONDITIONS = ("ok", "fail", "any")


@pytest.fixture
def root(tmp_path):
    made = Root(tmp_path / "root", scheduler="shell", query_interval=0, grace=0.3, max_running=4)
    yield made
    for name in ("p", "p.2", "p.3"):
        files.write_file(os.path.join(made.ran, "go." + name), b"")
    end_jobs(made)


def parent(root, good, retries=2, **more):
    """Hand over `p`, which fails until attempt `good`."""
    ends = "case $PWD in *p%s) ;; *) exit 7;; esac\n" % (".%d" % good if good > 1 else "")
    hand_over(root, "p", PARENT % (root.ran, root.ran, ends), rule(retries, "7", **more))


def go(root, attempt):
    files.write_file(os.path.join(root.ran, "go.p" + (".%d" % attempt if attempt > 1 else "")), b"")


def children(root, attempt, names=CONDITIONS):
    """One for each condition, waiting for this attempt: their names."""
    for name in names:
        job = "%s%d" % (name, attempt)
        waits = [(job, ["p.%d" % attempt], CHILD % (root.ran, job))]
        publish_dependents(root.spool, "of-" + job, waits, condition=name)
    return ["%s%d" % (name, attempt) for name in names]


def pumped(root, condition, what):
    until(lambda: (root.pump(), condition())[1], what)


def state(root):
    return files.read_json(os.path.join(root.path, "state.json"), {})


def running(root, attempt):
    pumped(root, lambda: root.starts("p") == attempt, "attempt %d runs" % attempt)


def settled(root, names):
    """Pump until all have come to rest: the state of each, without the number of the attempt it waited for."""
    pumped(root, lambda: all(root.spool.settled_state(name, 1) for name in names), "the end of all")
    root.wait_idle()
    root.pump()
    return {name: root.spool.settled_state(name, 1) for name in names}


def expected(names, ended):
    good = ("ok", "any") if ended == "ok" else ("fail", "any")
    return {name: "completed" if name.rstrip("0123456789") in good else "blocked" for name in names}


@pytest.mark.parametrize("good, last, ended", [(2, 2, "ok"), (3, 3, "ok"), (9, 3, "fail")])
def test_whichever_attempt_they_wait_for_its_last_one_counts(root, good, last, ended):
    """Handed over before any attempt ended, between two under the one that has ended and under the next, and late."""
    parent(root, good)
    names = children(root, 1)
    running(root, 1)
    go(root, 1)
    running(root, 2)
    assert {root.spool.known(name, 1) for name in names} == {"after"}, "a retry is no end"
    names += children(root, 2)
    publish_dependents(root.spool, "late", [("ok10", ["p.1"], CHILD % (root.ran, "ok10"))])
    pumped(root, lambda: root.spool.known("ok10", 1) == "after", "it waits for an attempt that has ended")
    names.append("ok10")
    for attempt in range(2, last + 1):
        running(root, attempt)
        go(root, attempt)
    assert settled(root, names) == expected(names, ended)
    publish_dependents(root.spool, "after", [("ok11", ["p.1"], CHILD % (root.ran, "ok11"))])
    assert settled(root, ["ok11"]) == expected(["ok11"], ended)
    assert os.listdir(root.spool.after) == []
    log = root.log()
    end = [at for at, r in enumerate(log) if r["ev"] == "ended" and r["job"] == "p"]
    moved = [at for at, r in enumerate(log) if r["ev"] in ("ready", "blocked")]
    assert len(end) == last and min(moved) > end[-1]
    assert {r["why"] for r in log if r["ev"] == "blocked"} == {"blocked by p (%s)" % (
        "completed" if ended == "ok" else "failed")}
    assert all(root.starts(name) == int(root.spool.settled_state(name, 1) == "completed") for name in names)


def test_a_cancel_of_the_next_attempt_is_the_end_of_all(root):
    parent(root, 9)
    names = children(root, 1)
    running(root, 1)
    settings.change(root.spool, max_running=1, max_total=1)
    hand_over(root, "blocker", "#!/bin/sh\n" + WAITS % (root.ran, "blocker"), None, priority=400)
    go(root, 1)
    pumped(root, lambda: root.spool.known("p", 2) == "waiting", "the next attempt waits for the only place")
    operations.request(root.spool, {"id": "op", "op": "cancel", "job": "p", "attempt": 1})
    pumped(root, lambda: root.spool.known("p", 2) == "cancelled", "cancelled, by whoever has the lock")
    settings.change(root.spool, max_running=4, max_total=0)
    files.write_file(os.path.join(root.ran, "go.blocker"), b"")
    assert settled(root, names) == expected(names, "fail")


def test_one_of_two_parents(root):
    """It waits for the other one first; the word under the one that is tried again is still there at its end."""
    parent(root, 9, retries=1)
    hand_over(root, "q", "#!/bin/sh\n" + WAITS % (root.ran, "q"), None)
    publish_dependents(root.spool, "both", [("both", ["q", "p"], CHILD % (root.ran, "both"))])
    running(root, 1)
    assert os.listdir(os.path.join(root.spool.after, "p.1")) == ["both.1.ok"]
    go(root, 1)
    running(root, 2)
    assert root.spool.known("both", 1) == "after"
    go(root, 2)
    pumped(root, lambda: root.spool.known("both", 1) == "blocked", "blocked at once, though the other one still runs")
    files.write_file(os.path.join(root.ran, "go.q"), b"")
    root.wait_idle()


@pytest.mark.parametrize("lost", ["state.json", ""])
def test_looking_at_every_parent_takes_no_retry_for_an_end(root, lost):
    parent(root, 2)
    names = children(root, 1)
    running(root, 1)
    go(root, 1)
    running(root, 2)
    until(lambda: [job["state"] for job in root.table().values()].count("F") == 1, "no pump but ours")
    root.pump()
    if lost:
        os.unlink(os.path.join(root.path, lost))
    else:  # a record in between that can't be read
        newest = max(name for name in os.listdir(root.spool.log) if name.endswith(".seg"))
        with open(os.path.join(root.spool.log, newest), "ab") as stream:
            stream.write(b"garbage\n")
    pumped(root, lambda: "after" in state(root), "somebody has looked at all of them")
    assert {root.spool.known(name, 1) for name in names} == {"after"}
    go(root, 2)
    assert settled(root, names) == expected(names, "ok")


def test_what_waited_itself_is_tried_again_without_waiting(root):
    """Its next attempt can be held and released, too, though what it waited for is no more."""
    hand_over(root, "first", CHILD % (root.ran, "first"), None)
    ends = "case $PWD in *p.2) ;; *) exit 7;; esac\n"
    text = PARENT % (root.ran, root.ran, ends)
    hand_over(root, "p", text, rule(1, "7"), after=[["first", 1, ""]], **{"if": "ok"})
    pumped(root, lambda: root.spool.known("p", 1) == "submitted", "it runs: it was not published as one that waits")
    settings.change(root.spool, max_running=1, max_total=1)
    hand_over(root, "blocker", "#!/bin/sh\n" + WAITS % (root.ran, "blocker"), None, priority=400)
    go(root, 1)
    pumped(root, lambda: root.spool.known("p", 2) == "waiting", "the next attempt waits for the only place")
    root.agent("hold", "p")
    pumped(root, lambda: root.spool.known("p", 2) == "held", "held, by whoever has the lock")
    pumped(root, lambda: root.spool.settled_state("first", 1), "what it waited for is out of the queue")
    os.unlink(root.spool.entry_path("completed", "first", 1, suffix="flag"))
    root.agent("release", "p")
    pumped(root, lambda: root.spool.known("p", 2) == "waiting", "released")
    settings.change(root.spool, max_running=4, max_total=0)
    files.write_file(os.path.join(root.ran, "go.blocker"), b"")
    go(root, 2)
    pumped(root, lambda: root.spool.settled_state("p", 2), "its end")
    assert root.flag("p", 2)[0] == "DONE"


def test_between_an_end_and_the_next_attempt_a_parent_has_not_ended(root):
    """Killed where the flag is there and the next attempt's folder is not: what a client claims counts for nothing."""
    parent(root, 2)
    go(root, 1)
    once = root.path + ".killed"
    root.agent("pump", CHASQUI_FAULT="ending.told", CHASQUI_FAULT_ONCE=once)
    until(lambda: os.path.exists(once) and root.idle(), "killed")
    assert root.spool.next_attempt("p", 1) == 2 and not os.path.exists(root.spool.work_dir("p", 2))
    for told in ("", "FAILED", "COMPLETED"):
        assert dependents.end_of(root.spool, "p", 1, told) == ""
    assert dependents.missing(root.spool, [["p", 1, ""]]) == ""
    go(root, 2)
    pumped(root, lambda: root.spool.settled_state("p", 2), "its end")
    assert dependents.end_of(root.spool, "p", 1, "FAILED") == "completed"
