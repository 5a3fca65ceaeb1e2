"""Bundles: several jobs in one allocation, each of them once and for itself, over the shell scheduler."""

import json
import os
import re
import shutil
import signal
from types import SimpleNamespace

import pytest

from agent.agentroot import publish, until
from agent.test_dependents import hand_over
from agent.test_refused import Choosy, Desk
from agent.test_retries import finish, rule
from agent.test_retries import hand_over as hand_over_one
from chasqui_agent import bundle_kinds, bundle_script, files, live, marks, serve, settings
from chasqui_agent.schedulers.base import Live, Snapshot, Submission
from chasqui_agent.spool import Entry

BUNDLED = {"query_interval": 0, "grace": 1, "max_running": 2}


@pytest.fixture
def bundled(make_root):
    """A function that makes a root whose jobs go by `size` in one allocation, one at a time."""

    def make(size, **chosen):
        return make_root(**dict(BUNDLED, bundle=size, **chosen))

    return make


def names_of(count):
    return ["job%02d" % number for number in range(count)]


def gated(root, name):
    """A job that ends when `open_gate` says so; on its way it notes its start."""
    root.drop(name, text="while [ ! -e '%s/gate.%s' ]; do sleep 0.1; done" % (root.ran, name))


def open_gate(root, name):
    open(os.path.join(root.ran, "gate." + name), "w").close()


def state(root, name):
    return root.spool.settled_state(name, 1)


def settle(root, names):
    """Pump as syncs would, until all these have ended."""
    until(lambda: root.pump() is not None and all(state(root, name) for name in names), "%s settled" % (names,))


def gone(root):
    """Whether nothing is left of any bundle, after one more pump."""
    root.pump()
    return gone_now(root)


def gone_now(root):
    left = [name for folder in ("work", "submitted", "submitting") for name in os.listdir(getattr(root.spool, folder))]
    return not [name for name in left if "bundle-" in name] and not os.path.exists(os.path.join(root.path, "bundles"))


def ids(root, *names):
    return [record["pbs"] for name in names for record in root.events(name, "submitted", "adopted")]


def test_jobs_share_allocations_and_are_jobs(bundled):
    root = bundled(4, parallel=2)
    names = names_of(10)
    for name in names[:-1]:
        root.drop(name, text="echo $PBS_JOBID $PBS_JOBNAME $PBS_O_WORKDIR $CHASQUI_TOKEN; echo worse >&2")
    root.drop(names[-1], text="exit 3")
    report = root.pump()
    assert (report["accepted"], report["submitted"]) == (10, 10)
    settle(root, names)
    assert [root.starts(name) for name in names] == [1] * 10
    assert [root.flag(name)[0] for name in names] == ["DONE"] * 9 + ["FAIL"]
    assert "exit=3" in root.flag(names[-1])
    assert len(root.table()) == 3
    for name in names:
        events = [record["ev"] for record in root.events(name)]
        assert events == ["accepted", "intent", "submitted", "started", "ended"], name
    meta = root.spool.meta_dir(names[0], 1)
    token = root.events(names[0], "intent")[0]["token"]
    with open(os.path.join(meta, token + ".out")) as stream:
        job_id = ids(root, names[0])[0]
        assert stream.read().split() == [job_id, names[0], root.spool.work_dir(names[0], 1), token]
    with open(os.path.join(meta, token + ".err")) as stream:
        assert stream.read() == "worse\n"
    with open(os.path.join(meta, "final.json")) as stream:
        assert json.load(stream)["stdout"] == ".chasqui/%s.out" % token
    until(lambda: gone(root), "no trace of the bundles")


def test_her_own_variables_are_what_she_set(bundled):
    """sh keeps a variable exported that it assigns to; and all of the script's own names begin alike."""
    own = set(re.findall(r"(?m)(?:^|[\s;({&|'\"])([a-z][a-z_]*)=", bundle_script._SCRIPT))
    assert "cq_stop" in own and all(name.startswith("cq_") for name in own), own
    root = bundled(2, parallel=2)
    for name in names_of(2):
        root.drop(name, text="echo $n $limit $stop", directives="#PBS -v n=1000,limit=0.5,stop=never")
    root.pump()
    settle(root, names_of(2))
    assert len(root.table()) == 1
    for name in names_of(2):
        token = root.events(name, "intent")[0]["token"]
        with open(os.path.join(root.spool.meta_dir(name, 1), token + ".out")) as stream:
            assert stream.read() == "1000 0.5 never\n"


def test_only_so_many_run_at_once(bundled):
    root = bundled(4, parallel=2)
    names = names_of(4)
    for name in names:
        gated(root, name)
    root.pump()
    for place, name in enumerate(names):
        begun = min(4, place + 2)
        until(lambda begun=begun: sum(map(root.starts, names)) >= begun, "two have begun")
        assert sum(map(root.starts, names)) == begun
        open_gate(root, name)
    settle(root, names)
    assert len(root.table()) == 1


def test_what_differs_goes_apart(bundled):
    root = bundled(8, max_running=20)
    root.drop("long1", directives="#PBS -l walltime=2:00:00\n#PBS -N one")
    root.drop("long2", directives="#PBS -l walltime=2:00:00\n#PBS -N two")
    root.drop("endless", directives="#PBS -l walltime=20:00:00")
    root.drop("queue1", directives="#PBS -q q")
    root.drop("queue2", directives="#PBS -q q")
    publish(root.spool, "batch", [("rerun1", "#!/bin/sh\n"), ("rerun2", "#!/bin/sh\n")])
    for name in ("rerun1", "rerun2"):
        with open(os.path.join(root.spool.meta_dir(name, 1), "job.json"), "w") as stream:
            json.dump({"rerun": True}, stream)
    every = ["long1", "long2", "endless", "queue1", "queue2", "rerun1", "rerun2"]
    settle(root, every)
    together = {job_id: sorted(name for name in every if ids(root, name) == [job_id]) for job_id in root.table()}
    expected = [["endless"], ["long1", "long2"], ["queue1", "queue2"], ["rerun1"], ["rerun2"]]
    assert sorted(together.values()) == expected


def test_jobs_of_another_ledger_go_alone(bundled):
    root = bundled(4, owner="hers")
    publish(root.spool, "batch", [(name, "#!/bin/sh\n") for name in names_of(4)])
    for name, ledger in zip(names_of(4), ("hers", "his", "hers", "his")):
        with open(os.path.join(root.spool.meta_dir(name, 1), "job.json"), "w") as stream:
            json.dump({"ledger": ledger}, stream)
    settle(root, names_of(4))
    assert len(root.table()) == 3
    assert ids(root, "job00") == ids(root, "job02")


@pytest.mark.parametrize(
    "value, parallel, walltime, expected",
    [
        ("walltime=1:00:00", 4, 10890, "walltime=03:01:30"),
        # as agent/README.md tells it
        ("select=1:ncpus=2:mem=4gb,walltime=01:00:00", 4, 14520, "select=1:ncpus=8:mem=16gb,walltime=04:02:00"),
        ("walltime=90", 1, 480, "walltime=00:08:00"),
        ("select=1:ncpus=2:mem=4gb,walltime=10:00", 4, 600, "select=1:ncpus=8:mem=16gb,walltime=00:10:00"),
        ("select=1:ncpus=2:mpiprocs=2", 2, 1, "select=1:ncpus=4:mpiprocs=2"),
        ("nodes=1:ppn=2", 3, 1, "nodes=1:ppn=6"),
        ("ncpus=1,place=excl", 2, 1, "ncpus=2,place=excl"),
        ("select=2:ncpus=1", 2, 1, None),
        ("select=1:ncpus=1+1:ncpus=2", 2, 1, None),
        ("select=1", 2, 1, None),
        ("nodes=node03:ppn=1", 2, 1, None),
        ("software=abc", 2, 1, None),
        ("select=1:ncpus=1:ngpus=1", 2, 1, None),
        ("select=2:ncpus=1+1:ngpus=1,software=abc", 1, 9, "select=2:ncpus=1+1:ngpus=1,software=abc"),
    ],
)
def test_what_a_bundle_asks_for(value, parallel, walltime, expected):
    assert bundle_kinds.multiplied(value, parallel, walltime) == expected


@pytest.mark.parametrize(
    "asked, server, expected",
    [
        (["walltime=01:00:00"], True, 3600),
        (["select=1:ncpus=1,walltime=30:00"], True, 1800),
        (["select=1:ncpus=1"], True, 0),
        (["walltime=1:00:00", "walltime=2:00:00"], True, 0),
        (["walltime=1:00:00,cput=1:00:00"], True, 0),
        (["min_walltime=1:00:00,walltime=1:00:00"], True, 0),
        (["walltime=soon"], True, 0),
        ([], False, None),
        (["walltime=1:00:00"], False, 3600),
    ],
)
def test_what_names_no_walltime_goes_alone(asked, server, expected):
    pump = SimpleNamespace(scheduler=SimpleNamespace(asks_a_server=server))
    assert bundle_kinds._walltime(pump, asked) == expected


@pytest.mark.parametrize(
    "walltime, size, parallel, longest, expected",
    [(3600, 16, 4, 86400, 16), (3600, 64, 1, 86400, 23), (3600, 16, 4, 3600, 4), (3600, 16, 4, 3599, 0),
     (None, 16, 1, 10, 16), (7200, 16, 1, 7200, 1), (43200, 16, 1, 86400, 1)],
)
def test_how_many_fit_the_longest_walltime(walltime, size, parallel, longest, expected):
    pump = SimpleNamespace(settings=SimpleNamespace(bundle=size, bundle_walltime=longest))
    assert bundle_kinds._most(pump, walltime, parallel) == expected
    turns = -(-expected // parallel)
    assert not walltime or not expected or bundle_kinds.in_turns(walltime, turns) <= longest
    assert bundle_kinds.in_turns(3600, 4) == 14520


def test_a_killed_bundle_requeues_what_had_not_started(bundled):
    root = bundled(4, max_running=1)
    names = names_of(4)
    gated(root, names[1])
    for name in (names[0], names[2], names[3]):
        root.drop(name)
    root.pump()
    until(lambda: root.starts(names[1]), "the second is at work")
    (job,) = root.table().values()
    os.kill(job["runner"], signal.SIGKILL)
    settle(root, names)
    assert [root.starts(name) for name in names] == [1] * 4
    assert [root.flag(name)[0] for name in names] == ["DONE", "FAIL", "DONE", "DONE"]
    assert "exit=%d" % (256 + signal.SIGKILL) in root.flag(names[1])
    assert [len(root.events(name, "closed")) for name in names] == [0, 0, 1, 1]
    assert [len(root.events(name, "intent")) for name in names] == [1, 1, 2, 2]
    until(lambda: gone(root), "no trace of the bundles")


def test_a_lost_bundle_loses_only_what_had_started(bundled):
    root = bundled(3, max_running=1)
    names = names_of(3)
    gated(root, names[0])
    root.drop(names[1])
    root.drop(names[2])
    root.pump()
    until(lambda: root.starts(names[0]), "the first is at work")
    (job,) = root.table().values()
    end_session(job["pid"])
    settle(root, names)
    assert [root.starts(name) for name in names] == [1] * 3
    assert [root.flag(name)[0] for name in names] == ["LOST", "DONE", "DONE"]


def end_session(leader):
    """KILL all processes of a session, its leader first: nobody is left to tell."""
    for pid in [leader] + [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        try:
            if os.getsid(pid) == leader:
                os.kill(pid, signal.SIGKILL)
        except OSError:
            pass


def test_a_member_whose_runner_is_killed_fails_alone(bundled):
    root = bundled(3, parallel=3)
    names = names_of(3)
    for name in names:
        gated(root, name)
    root.pump()
    until(lambda: all(map(root.starts, names)), "all at work")
    kill_runner(root, names[1])
    open_gate(root, names[0])
    open_gate(root, names[2])
    open_gate(root, names[1])  # its payload lives on, and the bundle may be over before
    settle(root, names)
    assert [root.flag(name)[0] for name in names] == ["DONE", "FAIL", "DONE"]
    assert "why=its runner was killed" in root.flag(names[1])
    assert [root.starts(name) for name in names] == [1] * 3


def kill_runner(root, name):
    """SIGKILL to the runner of a member that is at work."""
    token = root.events(name, "intent")[-1]["token"]
    path = os.path.join(root.spool.meta_dir(name, 1), "runner." + token).encode()
    for pid in [int(one) for one in os.listdir("/proc") if one.isdigit()]:
        try:
            with open("/proc/%d/cmdline" % pid, "rb") as stream:
                words = stream.read().split(b"\0")
        except (IOError, OSError):
            continue
        if path in words:
            os.kill(pid, signal.SIGKILL)
            return
    pytest.fail("no runner of " + name)


@pytest.mark.parametrize("order", ["cancel", "hold"])
def test_one_that_waits_in_its_bundle_is_passed_by(bundled, order):
    root = bundled(3, max_running=1)
    names = names_of(3)
    gated(root, names[0])
    root.drop(names[1])
    root.drop(names[2])
    root.pump()
    until(lambda: root.starts(names[0]), "the first is at work")
    assert root.agent(order, names[1])[0] == 0
    expected = {"cancel": "cancelled", "hold": "held"}[order]
    until(lambda: root.pump() and root.spool.known(names[1], 1) == expected, "it is out")
    open_gate(root, names[0])
    settle(root, [names[0], names[2]])
    assert [root.starts(name) for name in names] == [1, 0, 1]
    assert [root.flag(name)[0] for name in (names[0], names[2])] == ["DONE", "DONE"]
    assert not root.events(names[1], "duplicate")
    if order == "hold":
        root.agent("release", names[1])
        settle(root, names)
        assert root.starts(names[1]) == 1


def test_one_that_runs_is_cancelled_alone(bundled):
    root = bundled(3, parallel=2, max_running=1)
    names = names_of(3)
    root.drop(names[0], text="trap '' TERM\nwhile [ ! -e '%s/gate.deaf' ]; do sleep 0.1; done" % root.ran)
    gated(root, names[1])
    gated(root, names[2])
    root.pump()
    until(lambda: root.starts(names[0]) and root.starts(names[1]), "two are at work")
    root.agent("cancel", names[0])
    settle(root, names[:1])
    assert state(root, names[0]) == "cancelled" and not state(root, names[1])
    open_gate(root, names[1])
    open_gate(root, names[2])
    settle(root, names)
    assert [root.flag(name)[:1] for name in names] == [[], ["DONE"], ["DONE"]]
    assert [root.starts(name) for name in names] == [1] * 3
    assert len(root.table()) == 1


def test_a_bundle_of_cancelled_jobs_is_deleted(bundled):
    root = bundled(2, max_running=1)
    names = names_of(4)
    for name in names:
        gated(root, name)
    root.pump()
    until(lambda: root.starts(names[0]), "the first bundle is at work")
    for name in names[2:]:
        root.agent("cancel", name)
    settle(root, names[2:])
    second = ids(root, names[2])[0]
    until(lambda: root.pump() and root.table()[second]["state"] == "F", "the second bundle is deleted")
    for name in names:
        open_gate(root, name)
    settle(root, names)
    assert [root.starts(name) for name in names] == [1, 1, 0, 0]
    until(lambda: gone(root), "no trace of the bundles")


POINTS = ["bundle.named", "bundle.formed", "bundle.moved", "bundle.recorded", "bundle.settled", "bundle.gone",
          "submit.call.after"]
MOVES = [("files.move.before", 3)]
if os.environ.get("CHASQUI_TEST_SIZE") == "long":
    POINTS += ["submit.call.before", "submit.id.after", "journal.append.before", "journal.append.written"]
    MOVES = [("files.move.%s" % when, nth) for when in ("before", "after") for nth in range(1, 9)]


@pytest.mark.parametrize("point, nth", [(name, 1) for name in POINTS] + MOVES)
def test_a_pump_killed_anywhere_costs_no_job_and_repeats_none(bundled, point, nth):
    root = bundled(3, parallel=3)
    names = names_of(5)
    for name in names:
        root.drop(name)
    once = root.path + ".killed"
    fault = {"CHASQUI_FAULT": "%s:%d" % (point, nth), "CHASQUI_FAULT_ONCE": once}

    def over():
        root.agent("pump", **fault)
        return os.path.exists(once) and all(state(root, name) for name in names)

    until(over, "the fault was met, and all ended")
    assert [root.starts(name) for name in names] == [1] * 5
    assert [root.flag(name)[0] for name in names] == ["DONE"] * 5
    until(lambda: gone(root), "no trace of the bundles")


def test_the_spool_tells_members_from_bundles(bundled):
    root = bundled(2, max_running=1)
    for name in names_of(2):
        gated(root, name)
    root.pump()
    (entry,) = [one for one in root.spool.entries("submitted") if live.is_bundle(one)]
    tokens = {root.events(name, "intent")[0]["token"] for name in names_of(2)}
    assert live.bundled(root.spool) == dict.fromkeys(tokens, entry)
    standing = live.standings(root.spool)
    assert sorted((one.entry.job[:3], one.size) for one in standing) == [("bun", 1), ("job", 0), ("job", 0)]
    assert len({one.id for one in standing}) == 1
    for name in names_of(2):
        open_gate(root, name)
    settle(root, names_of(2))


def why(root, name):
    return root.agent("why", name)[1]


def test_why_says_that_it_shares_a_job(bundled):
    root = bundled(2, max_running=1)
    for name in names_of(4):
        gated(root, name)
    root.pump()
    until(lambda: root.starts("job00"), "the first is at work")
    assert why(root, "job00").startswith("It runs since")
    told = why(root, "job01")
    assert "with others (a bundle). That runs; its turn comes when one of the others has ended." in told
    assert "(a bundle). That has not started. The relay keeps it under a hold: max_running = 1" in why(root, "job02")
    assert "in the scheduler 4" in root.agent("status")[1]
    for name in names_of(4):
        open_gate(root, name)
    settle(root, names_of(4))


def test_what_waits_for_a_member_does_not_wait_for_its_bundle(bundled):
    root = bundled(2)
    for name in ("first", "second"):
        gated(root, name)
    root.pump()
    hand_over(root, ("child", ["first"], 0))
    open_gate(root, "first")
    until(lambda: root.pump() and root.starts("second"), "the second is at work")
    settle(root, ["child"])
    assert not state(root, "second")
    open_gate(root, "second")
    settle(root, ["second"])


def test_one_that_is_wanted_alone_and_one_that_is_damaged(bundled):
    root = bundled(3)
    names = names_of(4)
    publish(root.spool, "batch", [(name, "#!/bin/sh\n") for name in names])
    with open(os.path.join(root.spool.meta_dir(names[0], 1), "job.json"), "w") as stream:
        json.dump({"bundle": False}, stream)
    settle(root, names)
    assert ids(root, names[0]) != ids(root, names[1]) == ids(root, names[2]) == ids(root, names[3])


def test_a_member_whose_folder_is_gone_stops_nobody(bundled):
    root = bundled(3, max_running=1)
    names = names_of(3)
    for name in names:
        gated(root, name)
    root.pump()
    until(lambda: root.starts(names[0]), "the first is at work")
    shutil.rmtree(root.spool.work_dir(names[1], 1))
    for name in names:
        open_gate(root, name)
    settle(root, names)
    assert [root.flag(name)[0] for name in names] == ["DONE", "LOST", "DONE"]
    assert [root.starts(name) for name in names] == [1, 0, 1]
    until(lambda: gone(root), "no trace of the bundles")


def test_bundles_are_swept_up_when_nobody_bundles_any_more(bundled):
    root = bundled(2)
    for name in names_of(2):
        root.drop(name)
    assert root.agent("pump", CHASQUI_FAULT="bundle.formed")[0] == -signal.SIGKILL
    assert not gone_now(root)
    settings.change(root.spool, bundle=1)
    settle(root, names_of(2))
    assert len(root.table()) == 2
    until(lambda: gone(root), "no trace of the bundles")


def test_a_bundle_whose_folder_is_deleted_stops_nobody(bundled):
    root = bundled(2, max_running=1)
    names = names_of(4)
    for name in names:
        gated(root, name)
    root.pump()
    until(lambda: root.starts(names[0]), "the first is at work")
    waits = [one for one in root.spool.entries("submitted") if live.is_bundle(one)]
    for one in waits:
        shutil.rmtree(root.spool.work_dir(one.job, 0))
    for name in names:
        open_gate(root, name)
    settle(root, names)
    assert [root.starts(name) for name in names] == [1] * 4
    until(lambda: gone(root), "no trace of the bundles")


def test_what_a_member_leaves_in_the_background_ends_with_it(bundled):
    root = bundled(2)
    pid = os.path.join(root.ran, "pid")
    root.drop("leaves", text="sleep 3000 &\necho $! >'%s'" % pid)
    gated(root, "next")
    root.pump()
    until(lambda: root.starts("next"), "the next is at work")
    with open(pid) as stream:
        left = int(stream.read())
    until(lambda: not alive(left), "what was left has ended")
    open_gate(root, "next")
    settle(root, ["leaves", "next"])


def alive(pid):
    try:
        with open("/proc/%d/stat" % pid) as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except (IOError, OSError):
        return False


def test_each_is_tried_again_by_its_own_policy(bundled):
    root = bundled(3, owner="it")
    for job, policy in (("once", rule(2, "1-9")), ("never", rule(2, "SIGKILL")), ("good", rule(2, "1-9"))):
        note = "#!/bin/sh\necho start >>%s/%s\ncase $PWD in *.2) ;; *) %s ;; esac\n"
        hand_over_one(root, job, note % (root.ran, job, "exit 0" if job == "good" else "exit 3"), policy)
    finish(root, "once", 2)
    settle(root, ["never", "good"])
    assert len(set(ids(root, "never", "good"))) == 1 and ids(root, "once")[0] == ids(root, "good")[0]
    assert [root.flag("once", 1)[0], root.flag("once", 2)[0]] == ["FAIL", "DONE"]
    assert [root.flag(name)[0] for name in ("never", "good")] == ["FAIL", "DONE"]
    assert [root.starts(name) for name in ("once", "never", "good")] == [2, 1, 1]


# -- in the pump, with a scheduler that says what it is told -----------------------------------------------------------


class Server(Choosy):
    """Takes single jobs; of bundles says `answer`, where there is one. Forgets what has ended."""

    def __init__(self):
        super(Server, self).__init__()
        self.live, self.tried, self.answer = {}, [], None

    def query(self, ids, sought=(), held=(), known=()):
        asked = list(ids) + list(known) + [one.token for one in sought]
        return Snapshot(dict(self.live), {}, asked)

    def submit(self, request, timeout, meanwhile=lambda: None):
        self.calls += 1
        meanwhile()
        members = live.members(os.path.join(request.folder, ".chasqui", "script"))
        self.tried.append(max(1, len(members)))
        if members and self.answer:
            return self.answer
        job_id = "%d.server" % self.calls
        self.live[job_id] = Live(job_id, "H" if request.hold else "Q", request.token)
        return Submission("accepted", job_id, "")

    def release(self, job_id):
        if job_id in self.live:
            self.live[job_id] = self.live[job_id]._replace(state="Q")

    def delete(self, job_id):
        self.live.pop(job_id, None)


class BundleDesk(Desk):
    def __init__(self, root, monkeypatch):
        super(BundleDesk, self).__init__(root, monkeypatch)
        self.scheduler = Server()
        settings.change(self.spool, bundle=3, grace=0)

    def jobs(self, count, lines=""):
        self.add(*["#PBS -l select=1:ncpus=1,walltime=10:00\n%s\n" % lines] * count)

    def rounds(self):
        """Rounds as one pump takes them; their reports."""
        reports = [self.pump()]
        while reports[-1].get("unfinished"):
            assert len(reports) < 20, "it goes on for ever"
            reports.append(self.pump())
        return reports

    def members(self):
        """How many jobs wait, are in the scheduler, and are rejected."""
        in_scheduler = [one for one in self.spool.entries("submitted") if not live.is_bundle(one)]
        return self.waiting(), len(in_scheduler), self.count("rejected")

    def ended(self):
        """Have all that is in the scheduler end well there."""
        for one in self.spool.entries("submitted"):
            meta = self.spool.meta_dir(one.job, one.attempt)
            for kind, text in (("claim", ""), ("run", ".1")):
                os.symlink("x", os.path.join(meta, "%s.%s%s" % (kind, one.token, text)))
            files.write_file(marks.flag_path(meta, one.token, 1), b"exit=0\nended=1\nwhole\n")
        self.scheduler.live.clear()


@pytest.fixture
def desk(root, monkeypatch):
    return BundleDesk(root, monkeypatch)


TOO_MUCH = "qsub: Job violates queue and/or server resource limits"


@pytest.mark.parametrize("kind, text", [
    ("permanent", "qsub: Illegal attribute or resource value"), ("other", "qsub: who knows"), ("limit", TOO_MUCH)])
def test_one_that_is_refused_for_good_is_taken_apart_and_nobody_rejected(desk, kind, text):
    desk.scheduler.answer = Submission(kind, "", text)
    desk.jobs(3)
    first = desk.rounds()[0]
    assert first["submitted"] == first["rejected"] == 0
    assert (desk.scheduler.tried, desk.members()) == ([3, 1, 1, 1], (0, 3, 0))


RESOURCE = Submission("limit", "", "qsub: would exceed limit on resource ncpus")


def test_a_limit_that_teaches_nothing_is_met_by_one_job_alone_each_time(desk):
    """It may be what the bundle asks for: none waits for ever, and none is rejected."""
    desk.scheduler.answer = RESOURCE
    desk.jobs(3)
    desk.rounds()
    assert (desk.scheduler.tried, desk.members()) == ([3, 1, 2], (2, 1, 0))
    desk.ended()
    desk.rounds()
    assert (desk.scheduler.tried[3:], desk.members()) == ([2, 1, 1], (0, 2, 0))


def test_where_jobs_of_ours_may_fill_the_queue_no_bundle_is_taken_apart_for_it(desk):
    desk.jobs(1)
    desk.rounds()
    desk.scheduler.answer = RESOURCE
    desk.jobs(3)
    for _ in range(3):
        assert [report["refused"] for report in desk.rounds()] == [RESOURCE.text]
    assert (desk.scheduler.tried, desk.members()) == ([1, 3, 3, 3], (3, 1, 0))
    desk.ended()
    desk.scheduler.answer = None
    desk.rounds()
    assert (desk.scheduler.tried[4:], desk.members()) == ([3], (0, 3, 0))


def test_a_bundle_whose_every_folder_is_gone_takes_no_place_for_ever(desk):
    """The journal alone knows its members' ids, and by that its own; PBS tells only of what it was asked for."""
    settings.change(desk.spool, max_queued=1)
    desk.jobs(6)
    desk.rounds()
    assert desk.members() == (3, 3, 0)
    for name in os.listdir(desk.spool.work):
        if name.startswith("bundle-") or not desk.spool.find_waiting().get((name, 1)):
            shutil.rmtree(os.path.join(desk.spool.work, name))
    desk.rounds()
    (standing,) = [one for one in live.standings(desk.spool) if live.is_bundle(one.entry)]
    assert standing.id in ("", "1.server") and desk.members() == (3, 3, 0), "it is in the scheduler"
    desk.scheduler.live.clear()
    for _ in range(3):
        desk.rounds()
    assert (desk.scheduler.tried, desk.members()) == ([3, 3], (0, 3, 0))
    ended = [name for name in os.listdir(desk.spool.completed) if name.endswith(".flag")]
    assert len(ended) == 3


def test_a_place_under_a_limit_by_queue_is_one_for_a_bundle(desk):
    settings.change(desk.spool, queues={"small": 2})
    desk.jobs(8, "#PBS -q small")
    desk.rounds()
    assert (desk.scheduler.tried, desk.members()) == ([3, 3], (2, 6, 0))
    desk.rounds()
    assert desk.scheduler.tried == [3, 3], "it is full"


def test_bundles_are_filled_for_each_place_there_is(desk):
    settings.change(desk.spool, max_queued=2)
    desk.jobs(10)
    desk.rounds()
    assert (desk.scheduler.tried, desk.members()) == ([3, 3], (4, 6, 0))


def test_a_full_queue_leaves_the_places_to_the_others(desk):
    """However many of its scripts wait before theirs."""
    settings.change(desk.spool, queues={"small": 1}, max_queued=4)
    desk.jobs(20, "#PBS -q small")
    desk.jobs(3, "#PBS -q large")
    desk.rounds()
    assert (desk.scheduler.tried, desk.members()) == ([3, 3], (17, 6, 0))


def test_under_a_cap_of_all_jobs_what_waits_for_an_ending_bundle_is_a_debt(desk):
    """Though no place is free, and no more is read than there are places for."""
    settings.change(desk.spool, max_total=1)
    desk.jobs(4)
    desk.rounds()
    assert desk.members() == (1, 3, 0)
    there = dict(desk.scheduler.live)
    desk.ended()
    desk.scheduler.live.update(there)  # the scheduler counts it for some seconds more
    assert desk.rounds()[-1]["debt"]
    desk.scheduler.live.clear()
    desk.rounds()
    assert desk.members() == (0, 1, 0)


def test_a_session_tells_of_jobs_and_not_of_bundles(desk):
    desk.jobs(5)
    desk.rounds()
    assert len(desk.spool.entries("submitted")) == 7
    one = next(one for one in desk.spool.entries("submitted") if live.is_bundle(one))
    in_flight = Entry(desk.spool.entry_path("submitting", *one[1:]), *one[1:])
    told = serve.Session(desk.spool, None)._status({})
    assert (told["waiting"], told["submitting"], told["submitted"]) == (0, 0, 5)
    os.rename(one.path, in_flight.path)  # as it stands before its members follow it
    told = serve.Session(desk.spool, None)._status({})
    assert (told["waiting"], told["submitting"], told["submitted"]) == (0, 0, 5)
