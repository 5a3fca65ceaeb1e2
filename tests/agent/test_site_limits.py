"""Limits learnt from refusals: how low, how high, for how long; and the counts they are compared with."""

import os
import subprocess
import sys
import threading
import time

import pytest

from agent.agentroot import AGENT, until
from agent.test_refused import Choosy, Desk
from chasqui_agent import bounds, files, fill, launch, linger, live, pump, settings, status
from chasqui_agent.bounds import Asked, Bounds, limit
from chasqui_agent.live import Standing
from chasqui_agent.marks import Marks
from chasqui_agent.schedulers.base import EVERYWHERE, Live, Snapshot, Submission, Unreachable
from chasqui_agent.site_limits import Site, learn
from chasqui_agent.spool import Entry
from chasqui_agent.state import State

NOW = 1.8e9
HOUR = bounds.HOUR


@pytest.mark.parametrize(
    "learnt, hours, count, expected",
    [
        (None, 0, 7, 7),
        (None, 0, 0, 1),  # others' jobs fill it: ours must have a try
        (None, 0, None, None),
        (6, 0, 4, 4),  # the site lowered it
        (6, 0, 6, 6),  # a job in E was taken for gone
        (6, 0, 9, 6),
        (6, 0, None, 6),
        (6, 1.5, 6, 6),  # the hourly try failed
        (6, 1.5, 7, 6),
        (6, 1.5, None, 6),
        (6, 1.5, 2, 2),
        (6, 5.5, 8, 8),  # the site raised it by two
        (6, 5.5, None, 10),
    ],
)
def test_what_a_refusal_teaches(learnt, hours, count, expected):
    known = {} if learnt is None else {EVERYWHERE: [learnt, NOW - hours * HOUR]}
    learn(known, EVERYWHERE, count, NOW)
    assert limit(known, EVERYWHERE, NOW) == expected


def test_a_limit_is_raised_by_one_an_hour_and_not_lowered_by_the_clock():
    known = {"": [3, NOW]}
    assert [limit(known, "", NOW + hours * HOUR) for hours in (-5, 0, 0.9, 1, 2.5)] == [3, 3, 3, 4, 5]
    assert limit(known, "other", NOW) is None


def test_a_failed_try_is_not_repeated_before_an_hour_has_passed():
    known = {EVERYWHERE: [6, NOW]}
    tries = 0
    for minute in range(0, 600, 5):
        if limit(known, EVERYWHERE, NOW + minute * 60) > 6:
            tries += 1
            learn(known, EVERYWHERE, None, NOW + minute * 60)
    assert tries == 9


class Ground:
    """Submitted jobs as a pump sees them."""

    def __init__(self, path):
        self.path, self.standing = str(path), []

    def job(self, number, queue="", flag=False, ended=0.0):
        job_id, meta = "%d.server" % number, os.path.join(self.path, str(number))
        os.makedirs(meta)
        with open(os.path.join(meta, "script"), "w") as stream:
            stream.write("#PBS -q %s\n" % queue if queue else "")
        if flag:
            path = os.path.join(meta, "flag.tok.1")
            open(path, "w").close()
            os.utime(path, (ended, ended))
        found = Marks("", int(flag), {} if flag else None, False, False, {})
        self.standing.append(Standing(Entry(meta, "j%d" % number, 1, "tok"), meta, job_id, False, found))
        return Live(job_id, "R")

    def places(self, learnt, live=(), fresh=True, submitting=0, beats=()):
        snapshot = Snapshot({job.id: job for job in live}, {})
        in_flight = [(os.path.join(self.path, "in flight"), submitting)] if submitting else []
        return Site(Bounds(learnt), NOW, self.standing, in_flight, snapshot, fresh, list(beats))


@pytest.fixture
def ground(tmp_path):
    return Ground(tmp_path)


def refusal(places, where=EVERYWHERE):
    places.refused(where)
    return limit(places.known.learnt, where, NOW)


def want(queue="", project=bounds.NO_PROJECT, account="", group=""):
    return Asked(queue, project, account, group)


def test_everything_in_the_server_counts(ground):
    live = [ground.job(1), Live("2.server", "R"), Live("3[].server", "B", "", 4, 2), Live("9.server", "Q")]
    places = ground.places({}, live, submitting=1, beats=["9.server", "10.server"])
    places.took(want("small"))
    # job 1, one of somebody's, six elements, one in flight, two beats, and the one that was let in
    assert refusal(places) == 1 + 1 + 6 + 1 + 2 + 1


def test_only_a_fresh_look_at_the_server_teaches(ground):
    assert refusal(ground.places({}, [ground.job(1)], fresh=False)) is None


def test_a_queue_with_foreign_jobs_teaches_nothing(ground):
    first = ground.job(1, "small")
    assert refusal(ground.places({}, [first, Live("2.server", "Q")]), "small") is None
    assert refusal(ground.places({}, [first]), "small") == 1


def test_queues_count_apart(ground):
    live = [ground.job(1, "small"), ground.job(2), ground.job(3, "small")]
    places = ground.places({"small": [2, NOW]}, live)
    assert not places.room(want("small")) and [place.where for place in places.held_back] == ["small"]
    assert places.room(want()) and places.room(want("large"))
    assert refusal(places, "") == 1


def test_a_full_server_is_full_for_every_queue(ground):
    places = ground.places({EVERYWHERE: [2, NOW]}, [ground.job(1)])
    assert places.room(want("small"))
    places.took(want("small"))
    assert not places.room(want("small")) and not places.room(want())


@pytest.mark.parametrize(
    "seconds, fresh, own, room",
    [
        (0.5, False, False, False),  # 0.3 s in E are normal
        (60, False, False, True),
        (60, True, False, False),  # the server has just said that it is there
        (60, False, True, False),  # our own job, whose tail we are
    ],
)
def test_an_ending_job_counts_until_it_is_gone(ground, monkeypatch, seconds, fresh, own, room):
    live = [ground.job(1, flag=True, ended=NOW - seconds)]
    monkeypatch.setenv("PBS_JOBID", "1.server" if own else "5.server")
    assert ground.places({EVERYWHERE: [1, NOW]}, live, fresh).room(want()) is room


# -- in the pump -------------------------------------------------------------------------------------------------------


class Narrow(Choosy):
    """Takes so many jobs, and has room for no more; counts its calls."""

    def __init__(self, places):
        super(Narrow, self).__init__()
        self.places, self.live, self.why = places, {}, {}

    def query(self, ids, sought=(), held=(), known=()):
        return Snapshot(dict(self.live), {})

    def submit(self, request, timeout, meanwhile):
        self.calls += 1
        self.timeout = timeout
        if len(self.live) >= self.places:
            return Submission("limit", "", "no more", EVERYWHERE)
        job_id = "%d.server" % self.calls
        self.live[job_id] = Live(job_id, "H" if request.hold else "Q")
        return Submission("accepted", job_id, "")

    def release(self, job_id):
        self.calls += 1
        self.live[job_id] = Live(job_id, "Q")

    def waiting_reasons(self, ids):
        self.asked = list(ids)
        return self.why


@pytest.fixture
def narrow(root, monkeypatch):
    desk = Desk(root, monkeypatch)
    desk.scheduler = Narrow(3)
    desk.add(*["good"] * 8)
    return desk


def test_the_pump_stops_before_a_wall_it_knows(narrow):
    assert narrow.pump()["refused"] == "no more"
    assert (narrow.everything(), narrow.scheduler.calls) == ((5, 3, 0, 0), 4)
    for _ in range(3):
        assert narrow.pump()["refused"] == ""
    assert narrow.scheduler.calls == 4
    notes = [note[:21] for note in status.gather(narrow.spool)["notes"]]
    assert notes == ["site limit 3 (learnt ", "scripts wait: the sit", "heartbeat: off"]
    assert State(narrow.spool).value["site_limits"][EVERYWHERE][0] == 3


def test_a_debt_is_noted_only_where_a_job_is_about_to_go(narrow):
    narrow.pump()
    assert not linger.needed(narrow.spool)  # all three run on: their ends will wake the relay
    entry = narrow.spool.entries("submitted")[0]
    meta = narrow.spool.meta_dir(entry.job, 1)
    os.symlink("x", os.path.join(meta, "run.%s.1" % entry.token))
    files.write_file(os.path.join(meta, "flag.%s.1" % entry.token), b"exit=0\nwhole\n")
    report = narrow.pump()
    assert report["debt"] and linger.needed(narrow.spool)
    del narrow.scheduler.live["1.server"]
    assert narrow.pump()["submitted"] == 1
    assert not linger.needed(narrow.spool)


def test_no_more_than_so_many_calls_go_out_in_a_minute(narrow, monkeypatch):
    narrow.scheduler.places = 100
    monkeypatch.setattr(fill, "MAX_CALLS", fill.SPARE_CALLS + 3)
    monkeypatch.setattr(files, "server_time", lambda _: NOW)
    report = narrow.pump()
    assert (report["submitted"], narrow.everything()) == (3, (5, 3, 0, 0))
    assert "3 calls of the scheduler in 60 seconds" in report["note"]
    narrow.scheduler.calls = 0  # a pump has a scheduler of its own; what counts is state.json
    assert narrow.pump()["submitted"] == 0
    for seconds, submitted in ((60, 0), (70, 3)):
        narrow.scheduler.calls = 0
        monkeypatch.setattr(files, "server_time", lambda _, now=NOW + seconds: now)
        assert narrow.pump()["submitted"] == submitted, seconds


def test_what_an_agent_from_before_has_called_in_this_minute_counts(narrow, monkeypatch):
    narrow.scheduler.places = 100
    monkeypatch.setattr(fill, "MAX_CALLS", fill.SPARE_CALLS + 30)
    clock = [60.0 * (NOW // 60)]
    monkeypatch.setattr(files, "server_time", lambda _: clock[0])
    told = {"calls": [int(NOW // 60), 28], "lately": [[int(clock[0] // 10), 5]]}
    files.write_json(os.path.join(narrow.spool.root, "state.json"), told)
    assert narrow.pump()["submitted"] == 2
    narrow.scheduler.calls = 0
    clock[0] += 80
    assert narrow.pump()["submitted"] == 6


def test_our_own_calls_are_not_counted_twice_for_agents_from_before(narrow, monkeypatch):
    narrow.scheduler.places = 100
    for seconds, more, submitted in ((30, 4, 4), (70, 5, 1), (110, 5, 3)):
        narrow.scheduler.calls = 0
        monkeypatch.setattr(fill, "MAX_CALLS", fill.SPARE_CALLS + more)
        monkeypatch.setattr(files, "server_time", lambda _, now=60.0 * (NOW // 60) + seconds: now)
        assert narrow.pump()["submitted"] == submitted, seconds


def test_a_learnt_limit_that_the_site_has_raised_is_forgotten(narrow, monkeypatch):
    """Met once in a bad hour it held for days: it rose by one an hour."""
    clock = [NOW]
    monkeypatch.setattr(files, "server_time", lambda _: clock[0])
    narrow.pump()
    assert State(narrow.spool).value["site_limits"][EVERYWHERE][0] == 3
    narrow.scheduler.places = 100
    clock[0] += HOUR
    narrow.pump()
    assert (narrow.everything(), State(narrow.spool).value["site_limits"]) == ((0, 8, 0, 0), {})


@pytest.mark.parametrize("call", [0.02, 0.4])
def test_in_no_sixty_seconds_more_calls_go_out(narrow, monkeypatch, call):
    """Many small rounds behind a large one; and rounds so long that a minute is over in them. An agent from before
    finds the count as it knows it."""
    narrow.add(*["good"] * 400)
    settings.change(narrow.spool, max_queued=1000, max_running=1000)
    narrow.scheduler.places = 1000
    monkeypatch.setattr(fill, "MAX_CALLS", 100)
    clock, made, plain = [NOW + 58], [], narrow.scheduler.submit
    monkeypatch.setattr(files, "server_time", lambda _: clock[0])

    def submit(*words):
        clock[0] += call
        made.append(clock[0])
        return plain(*words)

    narrow.scheduler.submit = submit
    while clock[0] < NOW + 200:
        narrow.scheduler.calls = 0
        narrow.pump()
        clock[0] += 3
    assert len(made) > 120
    assert max(sum(0 <= other - one < 60 for other in made) for one in made) <= 100
    minute, count = State(narrow.spool).value["calls"]
    assert minute > NOW // 60 and 0 < count <= 100


def test_what_can_not_be_deleted_keeps_nobody_waiting_and_many_take_their_minutes(narrow, monkeypatch):
    def delete(job_id):
        narrow.scheduler.calls += 1
        if job_id == "900.server":
            raise Unreachable("qdel did not answer in 20 seconds")
        deleted.append(job_id)

    deleted = []
    narrow.scheduler.delete = delete
    monkeypatch.setattr(fill, "MAX_CALLS", fill.SPARE_CALLS + 20)
    ids = ["%d.server" % number for number in range(800, 900)]
    files.write_json(os.path.join(narrow.spool.root, "state.json"), {"delete": ids})
    narrow.pump()
    assert narrow.everything()[1] == 3 and 10 < len(deleted) < 20
    narrow.scheduler.places = 5
    monkeypatch.setattr(fill, "MAX_CALLS", 10**9)
    files.write_json(os.path.join(narrow.spool.root, "state.json"), {"delete": ["900.server"]})
    narrow.pump()
    assert narrow.everything()[1] == 5


def test_a_job_that_the_scheduler_may_start_again_keeps_its_place(narrow):
    """Told to end, as by preemption, and put back: its flag stands, and it counted as nothing."""
    settings.change(narrow.spool, max_running=1, max_queued=20)
    narrow.scheduler.live["50.server"] = Live("50.server", "Q")
    meta = narrow.spool.meta_dir("again", 1)
    os.makedirs(meta)
    files.write_json(os.path.join(meta, "job.json"), {"job": "again", "attempt": 1, "rerun": True})
    files.write_file(narrow.spool.entry_path("submitted", "again", 1, "abcdefgh"), b"\n")
    files.write_json(os.path.join(meta, "abcdefgh.id"), {"id": "50.server", "held": False})
    for name in ("claim.abcdefgh", "run.abcdefgh.1"):
        os.symlink("50.server", os.path.join(meta, name))
    files.write_file(os.path.join(meta, "flag.abcdefgh.1"), b"exit=143\nterm=1\nwhole\n")
    narrow.pump()
    assert all(job.held for job in live.standings(narrow.spool) if job.id != "50.server")


def test_a_job_that_could_not_run_yet_is_not_submitted_when_many_calls_went_out(narrow, monkeypatch):
    narrow.scheduler.places = 100
    settings.change(narrow.spool, max_running=2)
    monkeypatch.setattr(fill, "AHEAD_CALLS", 4)
    assert narrow.pump()["submitted"] == 4
    assert [job.held for job in live.standings(narrow.spool)] == [False, False, True, True]
    settings.change(narrow.spool, max_running=5)
    report = narrow.pump()
    assert (report["released"], report["submitted"]) == (2, 1)  # one more that runs at once
    assert not any(job.held for job in live.standings(narrow.spool))


def test_nothing_is_begun_that_would_outlast_the_budget(narrow, monkeypatch):
    monkeypatch.setattr(linger, "leave", lambda _: None)
    begun = []
    monkeypatch.setattr(launch, "detached", lambda argv, _: begun.append(argv))
    report = pump.pump(narrow.spool, "tail", budget=fill.LEAST_SECONDS / 2, attended=False)
    assert (report["submitted"], narrow.scheduler.calls) == (0, 0)
    assert begun and "late" in begun[0]  # but somebody goes on
    assert pump.pump(narrow.spool, "sync")["submitted"] == 3


def test_every_call_has_what_is_left_of_the_budget(narrow):
    scheduler = narrow.scheduler
    assert scheduler.within(30.0) == 30.0
    scheduler.deadline = time.monotonic() + 5
    assert 4 < scheduler.within(30.0) <= 5 and scheduler.within(1.0) == 1.0
    scheduler.deadline = time.monotonic() - 5
    assert 0 < scheduler.within(30.0) < 1


def test_why_jobs_do_not_start_is_asked_now_and_then(narrow, monkeypatch):
    clock = [NOW]
    monkeypatch.setattr(files, "server_time", lambda _: clock[0])
    narrow.scheduler.asked = None
    narrow.scheduler.why = {"2.server": "Can Never Run: no such node"}
    for seconds in (0, 1, 300):
        clock[0] = NOW + seconds
        narrow.pump()
    assert narrow.scheduler.asked is None
    clock[0] += pump.WHY_SECONDS
    narrow.pump()
    assert narrow.scheduler.asked == ["1.server", "2.server", "3.server"]
    entry = next(entry for entry in narrow.spool.entries("submitted") if entry.job == "job0002")
    notes = status.notes(narrow.spool, settings.load(narrow.spool))
    assert "%s does not start: Can Never Run: no such node" % entry.job in notes
    assert any(note.startswith("site limit 3 (learnt ") for note in notes) and "heartbeat: off" in notes
    narrow.scheduler.asked = None
    clock[0] += pump.WHY_SECONDS - 1
    narrow.pump()
    assert narrow.scheduler.asked is None


# -- the process that stays --------------------------------------------------------------------------------------------


DETACHED = """
import os, time
from chasqui_agent import launch, process
leave = os.setsid
os.setsid = lambda: (time.sleep(0.5), leave())
launch.detached(["/bin/sh", "-c", "echo >'%s'"], os.devnull)
print(process.session_members(os.getsid(0), []) == [os.getpid()])
"""


def test_what_is_detached_has_left_the_session_when_we_go_on(tmp_path):
    """A job's end kills what is still in its session."""
    command = [sys.executable, "-c", DETACHED % (tmp_path / "ran")]
    environment = dict(os.environ, PYTHONPATH=AGENT)
    said = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True).communicate()[0]
    assert said == b"True\n"
    until((tmp_path / "ran").exists, "it ran")


def test_one_stays_until_the_debt_is_paid_or_patience_ends(root, monkeypatch):
    pumped = []
    monkeypatch.setattr(linger, "PAUSES", (0.0, 0.0, 0.0))

    def owe(value):
        state = State(root.spool)
        state.value["debt"] = value
        state.save()

    def pay(spool, reason, budget, attended):
        pumped.append(reason)
        owe(len(pumped) < 2)

    monkeypatch.setattr(pump, "pump", pay)
    linger.stay(root.spool)
    assert pumped == []
    owe(True)
    linger.stay(root.spool)
    assert pumped == []  # nothing waits: there is nothing to fill a place with
    root.drop("job")
    linger.stay(root.spool)
    assert pumped == ["linger"] * 2
    monkeypatch.setattr(pump, "pump", lambda *_, **__: pumped.append("again"))
    owe(True)
    linger.stay(root.spool)
    assert pumped == ["linger"] * 2 + ["again"] * 3


def test_one_goes_when_somebody_else_has_paid(root, monkeypatch):
    """However long the pause it is in."""
    monkeypatch.setattr(linger, "PAUSES", (3600.0,))
    monkeypatch.setattr(linger, "LOOK", 0.01)
    root.drop("job")
    state = State(root.spool)
    state.value["debt"] = True
    state.save()
    staying = threading.Thread(target=linger.stay, args=(root.spool,), daemon=True)
    staying.start()
    until(lambda: files.names(os.path.join(root.spool.root, "linger")), "it holds its lock")
    state.value["debt"] = False
    state.save()
    staying.join(60)
    assert not staying.is_alive()


def test_one_stays_until_the_scheduler_may_be_asked_again(root, monkeypatch):
    """Where that is later than it stays otherwise; and no longer than MOST."""
    root.drop("job")
    state = State(root.spool)
    state.value["debt"] = True
    state.save()
    monkeypatch.setattr(linger, "PAUSES", (0.0,))
    monkeypatch.setattr(linger, "MOST", -0.9)
    seen = []
    monkeypatch.setattr(pump, "pump", lambda *_, **__: seen.append(1))
    for interval, pumps in ((30.0, 1), (120.0, 2)):
        settings.change(root.spool, query_interval=interval)
        del seen[:]
        linger.stay(root.spool)
        assert len(seen) == pumps


def test_only_one_stays(root, monkeypatch):
    state = State(root.spool)
    root.drop("job")
    state.value["debt"] = True
    state.save()
    monkeypatch.setattr(linger, "PAUSES", (0.0,))
    seen = []

    def second(spool, reason, budget, attended):
        if len(seen) < 5:
            seen.append(len(seen))
            linger.stay(spool)  # finds the lock taken, and goes

    monkeypatch.setattr(pump, "pump", second)
    linger.stay(root.spool)
    assert seen == [0]
