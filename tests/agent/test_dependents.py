"""Jobs that wait for others: they run when, and only when, their parents ended as they should; the rest is blocked."""

import builtins
import json
import os

import pytest

from agent.agentroot import publish
from chasqui_agent import dependents, files, journal, pump, quiet, spool
from chasqui_agent import operations as requests
from chasqui_agent.offers import Refusal, check_job

TEXT = "#!/bin/sh\necho start >> '%s/%s'\nexit %d\n"


def hand_over(root, *jobs, **more):
    """Publish jobs as a session does: (name, names it waits for, exit code) each; those that wait in a shard apart.
    `condition` is theirs all; `told`: what the client says of each parent."""
    texts = {name: TEXT % (root.ran, name, code) for name, _, code in jobs}
    free = [(name, texts[name]) for name, after, _ in jobs if not after]
    batch = more.get("batch", jobs[0][0])
    if free:
        publish(root.spool, batch, free)
    publish_dependents(root.spool, batch + "-after", [(n, after, texts[n]) for n, after, _ in jobs if after], **more)


def publish_dependents(into, shard, jobs, condition="ok", told="", attempt=1, **_):
    building = os.path.join(into.staging, shard)
    os.mkdir(building)
    for position, (name, after, text) in enumerate(jobs):
        os.makedirs(into.meta_dir(name, attempt))
        parents = [[parent.split(".")[0], int((parent + ".1").split(".")[1]), told] for parent in after]
        record = {"job": name, "name": "the-" + name, "after": parents, "if": condition}
        files.write_json(os.path.join(into.meta_dir(name, attempt), "job.json"), record)
        with open(os.path.join(building, spool.shard_name(position, name, attempt)), "w") as stream:
            stream.write(text)
    if jobs:
        into.publish(building, spool.AFTER, "20260101T000000-%s" % shard)
    else:
        os.rmdir(building)


def settle(root, names):
    """Pump until all have come to rest."""
    for _ in range(3 * len(names) + 20):
        if all(root.spool.settled_state(name, 1) for name in names):
            break
        root.pump()
        root.wait_idle()
    return {name: root.spool.settled_state(name, 1) for name in names}


def order(root, *events):
    return [record["job"] for record in root.log() if record["ev"] in events]


# -- which end means what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition, ends, expected", [
    ("ok", ["ok"], ("ready", -1)), ("ok", ["fail"], ("blocked", 0)), ("ok", [""], ("", 0)),
    ("ok", ["ok", "", "fail"], ("blocked", 2)), ("ok", ["ok", "", ""], ("", 1)), ("ok", ["ok", "ok"], ("ready", -1)),
    ("any", ["fail", "ok"], ("ready", -1)), ("any", ["fail", ""], ("", 1)),
    ("fail", ["fail"], ("ready", -1)), ("fail", ["ok", ""], ("blocked", 0)), ("fail", ["", "fail"], ("", 0)),
])
def test_verdict(condition, ends, expected):
    assert dependents.verdict(condition, ends) == expected


@pytest.mark.parametrize("state, flag, told, expected", [
    ("completed", "DONE\n7\n", "", "completed"), ("completed", "FAIL\n7\n", "COMPLETED", "failed"),
    ("completed", "LOST\n7\n", "", "lost"), ("completed", "", "COMPLETED", ""), ("cancelled", "", "", "cancelled"),
    ("rejected", "", "", "rejected"), ("blocked", "", "", "blocked"), ("", "", "COMPLETED", "completed"),
    ("", "", "CANCELLED", "cancelled"), ("", "", "", ""), ("", "", "RUNNING", ""), ("held", "", "COMPLETED", ""),
])
def test_how_a_parent_ended(root, state, flag, told, expected):
    """This root's own record first; what the client says counts only where there is none."""
    if state:
        suffix = "flag" if state == "completed" else "sh"
        with open(root.spool.entry_path(state, "p", 1, suffix=suffix), "w") as stream:
            stream.write(flag)
    if state == "held":
        os.makedirs(root.spool.meta_dir("p", 1))
    assert dependents.end_of(root.spool, "p", 1, told) == expected


@pytest.mark.parametrize("after, condition, why", [
    ([["p", 1]], "ok", "no job, attempt and state"), ([["p", 1, 5]], "ok", "no job"), ("p", "ok", "at most 10000"),
    ([["p", 1, ""]], "sometimes", "ok, any or fail"), ([["j", 1, ""]], "ok", "waits for itself"),
    ([["p", 1, ""]] * 10001, "ok", "at most"),
])
def test_what_a_client_may_not_ask_for(after, condition, why):
    job = {"job": "j", "attempt": 1, "name": "j", "script": "s", "after": after, "if": condition,
           "files": [{"path": "s", "size": 0, "mode": 0o600, "sha256": "0" * 64}]}
    with pytest.raises(Refusal) as caught:
        check_job(job)
    assert why in str(caught.value)


# -- the relay ---------------------------------------------------------------------------------------------------------


def test_a_diamond(root):
    hand_over(root, ("a", [], 0), ("b", ["a"], 0), ("c", ["a"], 0), ("d", ["b", "c"], 0))
    assert set(settle(root, "abcd").values()) == {"completed"}
    assert [root.starts(name) for name in "abcd"] == [1, 1, 1, 1]
    ended = order(root, "ended")
    started = order(root, "intent")
    assert ended[0] == "a" and started[0] == "a" and started[-1] == "d" and ended[-1] == "d"
    for name in "bcd":
        assert [r["ev"] for r in root.events(name)][:4] == ["accepted", "ready", "intent", "submitted"]
    assert os.listdir(root.spool.after) == []
    assert "after" not in json.load(open(os.path.join(root.path, "state.json")))


@pytest.mark.parametrize("condition, code, states", [
    ("ok", 3, {"b": "blocked", "c": "blocked"}), ("fail", 3, {"b": "completed", "c": "blocked"}),
    ("any", 3, {"b": "completed", "c": "completed"}), ("fail", 0, {"b": "blocked", "c": "completed"}),
])
def test_a_chain_of_three(root, condition, code, states):
    hand_over(root, ("a", [], code), ("b", ["a"], 0), ("c", ["b"], 0), condition=condition)
    settled = settle(root, "abc")
    assert {name: settled[name] for name in "bc"} == states
    assert [root.starts(name) for name in "bc"] == [int(states[name] == "completed") for name in "bc"]


def test_a_failed_parent_blocks_its_children_by_name_and_theirs_too(root):
    hand_over(root, ("a", [], 3), ("b", ["a"], 0), ("c", ["b"], 0), ("d", ["c"], 0))
    settle(root, "abcd")
    why = [(r["job"], r["by"], r["why"]) for r in root.log() if r["ev"] == "blocked"]
    assert why == [("b", "a", "blocked by a (failed)"), ("c", "b", "blocked by the-b (blocked)"),
                   ("d", "c", "blocked by the-c (blocked)")]
    assert quiet.idle(root.spool)


def test_one_failed_parent_of_two_blocks_at_once(root):
    """Though the other one, under which the script stands, still runs."""
    hand_over(root, ("slow", [], 0), ("bad", [], 3), ("child", ["slow", "bad"], 0))
    root.agent("hold", "slow")
    assert settle(root, ["bad", "child"]) == {"bad": "completed", "child": "blocked"}
    assert root.spool.known("slow", 1) == "held"
    assert [r["why"] for r in root.events("child", "blocked")] == ["blocked by bad (failed)"]


def test_it_is_blocked_in_the_look_in_which_it_would_move_on_to_another_parent(root):
    """Of its three parents, in one look, the first has ended well and the last badly; the middle one has not."""
    hand_over(root, ("p", [], 0), ("q", [], 0), ("r", [], 3), ("child", ["p", "q", "r"], 0))
    root.agent("hold", "p", "q", "r")
    assert sorted(os.listdir(os.path.join(root.spool.after, "r.1"))) == ["child.1.ok"]
    for name, flag in (("p", "DONE"), ("r", "FAIL")):
        os.unlink(root.spool.entry_path("held", name, 1))
        with open(root.spool.entry_path("completed", name, 1, suffix="flag"), "w") as stream:
            stream.write(flag + "\n7\n")
    os.unlink(os.path.join(root.path, "state.json"))  # so that it looks at all parents
    root.pump()
    assert root.spool.known("child", 1) == "blocked"
    assert [r["why"] for r in root.events("child", "blocked")] == ["blocked by r (failed)"]


def test_a_chain_of_300(make_root, size):
    root = make_root(max_running=4, max_queued=8, query_interval=0)
    length = 300 if size.long else 60
    names = ["n%03d" % number for number in range(length)]
    hand_over(root, *[(name, names[number - 1:number], 0) for number, name in enumerate(names)])
    root.pump()
    root.wait_finished(length)
    root.wait_idle()
    assert order(root, "intent") == names == order(root, "ended")
    assert [root.starts(name) for name in names] == [1] * length


def test_a_chain_of_300_is_blocked_in_one_pump(root):
    names = ["n%03d" % number for number in range(300)]
    hand_over(root, *[(name, names[number - 1:number], 0) for number, name in enumerate(names)])
    root.agent("cancel", names[0])
    assert [name for name in names if root.spool.settled_state(name, 1) != "blocked"] == names[:1]
    assert order(root, "blocked") == names[1:]
    assert not root.spool.has_dependents() and quiet.idle(root.spool)


def test_parents_that_have_ended_already(root):
    hand_over(root, ("good", [], 0), ("bad", [], 1))
    settle(root, ["good", "bad"])
    hand_over(root, ("x", ["good"], 0), ("y", ["bad"], 0), ("z", ["good", "bad"], 0))
    hand_over(root, ("u", ["purged"], 0), told="COMPLETED")
    hand_over(root, ("v", ["taken-back"], 0), told="CANCELLED")
    assert settle(root, "xyzuv") == {"x": "completed", "y": "blocked", "z": "blocked", "u": "completed", "v": "blocked"}
    assert [r["why"] for r in root.events("v", "blocked")] == ["blocked by taken-back (cancelled)"]


def test_what_is_not_proved_does_not_run(root):
    """A parent nobody knows, a record that is damaged, one without a word of whom it waits for."""
    hand_over(root, ("orphan", ["nobody"], 0), ("torn", ["nobody"], 0), ("odd", ["nobody"], 0))
    files.replace_file(os.path.join(root.spool.meta_dir("torn", 1), "job.json"), b"{")
    files.write_json(os.path.join(root.spool.meta_dir("odd", 1), "job.json"), {"job": "odd"})
    root.pump()
    assert [root.spool.known(name, 1) for name in ("orphan", "torn", "odd")] == ["after", "blocked", "blocked"]
    assert [r["why"] for r in root.events("torn", "blocked")] == ["what it waits for is not on record any more"]
    assert quiet.idle(root.spool), "nothing a pump could do"
    assert root.starts("orphan") == 0


# -- changing one's mind -----------------------------------------------------------------------------------------------


def test_cancel_hold_and_release_of_what_waits_for_others(root):
    hand_over(root, ("a", [], 0), ("b", ["a"], 0), ("c", ["b"], 0), ("d", ["a"], 0), ("e", ["a"], 0))
    root.agent("hold", "a")
    root.agent("hold", "d")
    root.agent("hold", "e")
    assert root.agent("release", "b")[1].strip() == "b is not held"
    assert root.agent("cancel", "b")[0] == 0
    assert [root.spool.known(name, 1) for name in "abcde"] == ["held", "cancelled", "blocked", "held", "held"]
    root.agent("release", "d")
    assert root.spool.known("d", 1) == "after", "released, it waits for its parent again"
    root.agent("release", "a")
    settle(root, "ad")
    assert root.spool.known("e", 1) == "held", "its parent's end does not release it"
    root.agent("release", "e")
    settle(root, "ade")
    assert [root.starts(name) for name in "abcde"] == [1, 0, 0, 1, 1]


def test_what_is_held_while_its_parent_fails_is_blocked_when_released(root):
    hand_over(root, ("a", [], 3), ("b", ["a"], 0))
    root.agent("hold", "b")
    settle(root, "a")
    root.pump()
    assert root.spool.known("b", 1) == "held"
    root.agent("release", "b")
    assert root.spool.known("b", 1) == "blocked"


def test_a_new_attempt_of_both_runs(root):
    hand_over(root, ("a", [], 3), ("b", ["a"], 0))
    settle(root, "ab")
    building = os.path.join(root.spool.staging, "again")
    os.mkdir(building)
    os.makedirs(root.spool.meta_dir("a", 2))
    with open(os.path.join(building, spool.shard_name(0, "a", 2)), "w") as stream:
        stream.write(TEXT % (root.ran, "a2", 0))
    root.spool.publish(building, 500, "20260101T000001-again")
    publish_dependents(root.spool, "b2", [("b", ["a.2"], TEXT % (root.ran, "b", 0))], attempt=2)
    for _ in range(6):
        root.pump()
        root.wait_idle()
    assert root.spool.settled_state("b", 1) == "blocked" and root.spool.settled_state("b", 2) == "completed"
    assert root.starts("b") == 1


def test_a_rejected_parent_blocks_in_the_same_pump(root):
    publish(root.spool, "a", [("a", "#!/bin/sh\n#PBS -J 1-2\n")])
    hand_over(root, ("b", ["a"], 0))
    root.pump()
    assert root.spool.settled_state("b", 1) == "blocked"


def test_the_root_is_not_removed_while_something_waits_for_others(root):
    hand_over(root, ("orphan", ["nobody"], 0))
    root.pump()
    code, out, err = root.agent("remove")
    assert code == 1 and "orphan" in out + err
    assert json.loads(root.agent("status", "--json")[1])["after"] == 1
    assert "wait for other jobs: 1" in root.agent("status")[1]


# -- what is remembered ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["forgotten", "beyond the journal", "the journal damaged"])
def test_an_end_that_nobody_looked_at_is_found(root, loss):
    """The end was written by a pump that died before it looked, or by an agent that knows nothing of dependents."""
    hand_over(root, ("a", [], 0), ("b", ["a"], 0))
    root.agent("hold", "a")
    root.agent("cancel", "a", CHASQUI_FAULT="operations.applied", CHASQUI_FAULT_ONCE=root.path + ".once")
    assert root.spool.settled_state("a", 1) == "cancelled" and root.spool.known("b", 1) == "after"
    path = os.path.join(root.path, "state.json")
    state = json.load(open(path))
    if loss == "forgotten":
        os.unlink(path)
    elif loss == "beyond the journal":
        files.write_json(path, dict(state, after=10 ** 9))
    else:
        segment = os.path.join(root.spool.log, sorted(os.listdir(root.spool.log))[-1])
        with open(segment, "rb") as stream:
            lines = stream.read().split(b"\n")
        lines = [line if b'"cancelled"' not in line else b"x" * len(line) for line in lines]
        with open(segment, "wb") as stream:
            stream.write(b"\n".join(lines) + journal.encode({"t": "", "ev": "pumped"}))
    for name in os.listdir(root.spool.wake):
        os.unlink(os.path.join(root.spool.wake, name))
    assert not quiet.idle(root.spool), "the next sync looks"
    root.pump()
    assert root.spool.settled_state("b", 1) == "blocked"


# -- what it costs -----------------------------------------------------------------------------------------------------

CALLS = ("open", "stat", "lstat", "rename", "unlink", "listdir", "scandir", "mkdir", "rmdir", "fsync")


def counting(calls, name, call):
    def count(*args, **named):
        calls[name] += 1
        return call(*args, **named)

    return count


def counted(monkeypatch, work):
    """How many file operations `work` makes in this process."""
    calls = dict.fromkeys(CALLS, 0)
    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counting(calls, name, getattr(os, name)))
        patch.setattr(builtins, "open", counting(calls, "open", builtins.open))
        work()
    return sum(calls.values()), calls


def pumped(root):
    """The pump in this process."""
    return pump.pump(root.spool, "test", budget=600.0)


def test_what_waits_for_others_costs_a_pump_nothing(make_root, monkeypatch, capsys):
    """File operations of a pump with news of another job: as many with 2,000 that wait for 1,000 parents as with none;
    and 2,000 children of one parent are released for a handful each."""
    costs = {}
    for waiting in (0, 20, 2000):
        root = make_root("root%d" % waiting, max_running=1, max_queued=1)
        hand_over(root, ("other", [], 0), ("next", [], 0))
        root.agent("hold", "other")
        parents = ["p%d" % number for number in range(waiting // 2)]
        for parent in parents:
            os.makedirs(root.spool.meta_dir(parent, 1))  # known, and not ended
        for start in range(0, waiting, 1000):
            jobs = [("j%d" % n, [parents[n // 2]], 0) for n in range(start, min(waiting, start + 1000))]
            hand_over(root, *jobs, batch="batch%d" % start)
        pumped(root)
        pumped(root)
        root.wait_idle()
        requests.by_hand(root.spool, "cancel", "other")
        costs[waiting], _ = counted(monkeypatch, lambda root=root: pumped(root))
        assert root.spool.settled_state("other", 1) == "cancelled"
        assert sum(1 for _ in root.spool.dependents()) == waiting
    with capsys.disabled():
        print("\nfile operations of a pump, by dependents that wait: %s" % costs)
    assert costs[2000] <= costs[20] + 5 and costs[2000] <= costs[0] + 40


def test_2000_children_of_one_parent(make_root, monkeypatch, capsys):
    root = make_root(max_running=1, max_queued=1)
    hand_over(root, ("parent", [], 0))
    root.agent("hold", "parent")
    for start in (0, 1000):
        jobs = [("j%04d" % n, ["parent"], 0) for n in range(start, start + 1000)]
        hand_over(root, *jobs, batch="batch%d" % start, condition="any")
    taken_in, calls_in = counted(monkeypatch, lambda: pumped(root))
    assert len(os.listdir(os.path.join(root.spool.after, "parent.1"))) == 2000
    requests.by_hand(root.spool, "cancel", "parent")
    released, calls = counted(monkeypatch, lambda: pumped(root))
    with capsys.disabled():
        print("\n2,000 children of one parent: %d file operations to take them in, %d to release them; %d fsyncs"
              % (taken_in, released, calls["fsync"]))
    assert taken_in < 2000 * 20 and released < 2000 * 12 and calls["fsync"] < 60 and calls_in["fsync"] < 60
    waiting = [entry.job for entry in root.spool.waiting_entries()]
    assert len(waiting) >= 1999 and waiting == sorted(waiting), "in the order they were handed over"
    assert not root.spool.has_dependents()
