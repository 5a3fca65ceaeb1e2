"""A heartbeat that meets with trouble while it is the only wake left: it stays, or sees to it that another comes."""

import errno
import os
import shutil
import time

import pytest

from agent.test_heartbeat import Full, Hour, Late, _held_elsewhere
from chasqui_agent import cli, files, heartbeat, launch, pump, settings
from chasqui_agent.schedulers import pbs_commands
from chasqui_agent.schedulers.base import Live, NotNow, Snapshot, Submission, Unreachable


class Hung(Full):
    """A server that hangs for so many looks at it; the request that it swallowed arrived."""

    def __init__(self, looks):
        super(Hung, self).__init__()
        self.looks, self.asked = looks, []

    def query(self, ids, sought=(), held=(), known=()):
        self.looks -= 1
        if self.looks >= 0:
            raise Unreachable("qselect did not answer in 30 seconds")
        found = {one.token: Live("8.server", "W", one.token) for one in sought}
        return Snapshot({job.id: job for job in found.values()}, {}, set(ids) | set(found))

    def submit(self, request, timeout, meanwhile=lambda: None):
        meanwhile()
        self.asked += [request.token] if request.start else []
        return Submission("unknown", "", "qsub did not answer in 60 seconds")


@pytest.fixture
def naps(monkeypatch):
    """The seconds it was to sleep; the clock that it ends by goes with them."""
    slept, plain = [], time.monotonic
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: plain() + sum(slept))
    return slept


@pytest.fixture
def left(monkeypatch):
    """The processes that were to go on behind us."""
    found = []
    monkeypatch.setattr(launch, "detached", lambda argv, _: found.append(argv[-1]))
    return found


def run(late, n=1):
    return cli.VERBS["_beat"](late.desk.spool.root, [str(n)])  # `main` would leave its umask to the tests that follow


def test_a_beat_stays_while_nobody_knows_whether_the_next_one_arrived(root, monkeypatch, naps, left):
    late = Late(root, monkeypatch, time.time(), query_interval=0)
    late.desk.scheduler = Hung(3)
    assert run(late) == 0
    assert len(naps) == 3 and late.known() == [1, 2]
    assert heartbeat.beats(late.desk.spool)[-1].id == "8.server"
    assert len(late.desk.scheduler.asked) == 1, "not once more for each look"


def test_a_beat_does_not_stay_for_ever(root, monkeypatch, naps, left):
    late = Late(root, monkeypatch, time.time(), query_interval=0)
    late.desk.scheduler = Hung(10**6)
    assert run(late) == 0
    assert 0.8 * heartbeat.STAY_SECONDS <= sum(naps) < heartbeat.STAY_SECONDS + 15


def test_a_beat_whose_ssh_fails_tries_again_now_and_then(root, monkeypatch, naps, left):
    late = Late(root, monkeypatch, time.time(), query_interval=0, wake_via="ssh:login.invalid")
    monkeypatch.setenv("PBS_JOBID", "7.server")
    calls = []

    def ssh(argv, *_):
        calls.append(argv)
        if len(calls) < 3:
            return pbs_commands.Result(255, "", "ssh: connect to host login.invalid: Connection refused", True)
        late.write(2, time.time() + 900, "8.server")  # as the pump it wakes there does
        return pbs_commands.Result(0, "", "", True)

    monkeypatch.setattr(pbs_commands, "run", ssh)
    assert run(late) == 0
    assert len(calls) == 3 and naps == [60.0, 60.0]


@pytest.mark.parametrize("what", ["config", "waiting", "damaged"])
def test_a_beat_outlives_a_file_server_that_hiccups(root, monkeypatch, naps, what):
    late = Late(root, monkeypatch, time.time(), query_interval=0)
    failed, read, isdir = [], files.read_json, os.path.isdir

    def reads(path, *rest):
        if path.endswith("config.json") and what != "waiting" and not failed:
            failed.append(path)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path) if what == "config" else ValueError("half")
        return read(path, *rest)

    def is_there(path):
        if str(path).endswith("/waiting") and what == "waiting" and not failed:
            failed.append(path)
            return False
        return isdir(path)

    monkeypatch.setattr(files, "read_json", reads)
    monkeypatch.setattr(os.path, "isdir", is_there)
    assert run(late) == 0
    assert failed and late.known() == [1, 2]


# -- what the last query saw -------------------------------------------------------------------------------------------


class Telling(Full):
    """As Slurm: the state of each job is told in each query."""

    def query(self, ids, sought=(), held=(), known=()):
        return Snapshot({i: Live(i, self.state) for i in self.ids}, {}, set(ids))


@pytest.mark.parametrize("taken", [False, True], ids=["by a pump", "where the lock is taken"])
def test_a_beat_that_was_seen_before_its_time_is_not_seen_to_wait(root, monkeypatch, taken):
    """It came, and died with its node before it could arm the next one."""
    late = Late(root, monkeypatch, time.time() + 5, query_interval=300)
    late.desk.scheduler = Telling()
    late.desk.pump()
    assert late.known() == [1]
    late.write(1, time.time() - 100)
    os.utime(os.path.join(late.desk.spool.root, "snapshot.json"), (time.time() - 105, time.time() - 105))
    late.desk.scheduler.ids = []
    if taken:
        _held_elsewhere(late.desk.spool, 2)
        pump.pump(late.desk.spool, "tail", 0.1, attended=False)
    else:
        late.desk.pump()
    assert late.known() == [1, 2]


def test_a_beat_just_due_is_asked_about_and_not_replaced(root, monkeypatch):
    late = Late(root, monkeypatch, time.time() - 20, query_interval=300)
    late.desk.pump()
    late.write(1, time.time() - 80)
    os.utime(os.path.join(late.desk.spool.root, "snapshot.json"), (time.time() - 60, time.time() - 60))
    late.desk.pump()
    assert late.known() == [1], "the look a minute ago saw it in Q"


# -- the last resort ---------------------------------------------------------------------------------------------------


def test_a_beat_that_is_over_is_no_wake_where_the_next_one_was_refused(root, monkeypatch):
    class Closed(Full):
        def submit(self, request, timeout, meanwhile=lambda: None):
            meanwhile()
            return Submission("temporary", "", "qsub: Queue is not enabled")

    late = Late(root, monkeypatch, time.time() - 500, query_interval=0)
    late.desk.scheduler = Closed()
    late.desk.scheduler.ids = []
    assert late.desk.pump()["debt"] and not heartbeat.certain(late.desk.spool, time.time())


def test_the_last_tail_stays_where_the_server_is_away_and_no_beat_will_come(root, monkeypatch, left):
    late = Late(root, monkeypatch, time.time() + 500, query_interval=0)
    late.desk.scheduler = Hung(10**6)
    pump.pump(late.desk.spool, "tail", 15, attended=False)
    assert left == [], "the beat will look again"
    late.write(1, time.time() - 500)
    pump.pump(late.desk.spool, "tail", 15, attended=False)
    assert left == ["_linger"]


def test_a_beat_that_was_given_up_arms_one_where_the_other_is_dead(root, monkeypatch):
    late = Late(root, monkeypatch, time.time() - 500)
    heartbeat.beat(late.desk.spool, settings.load(late.desk.spool), late.desk.scheduler, 3)
    assert late.known() == [1, 4]


def test_a_beat_armed_while_all_was_cancelled_is_deleted(root, monkeypatch):
    """Its note came back, and it stayed in the queue for its quarter of an hour."""
    late = Late(root, monkeypatch, time.time(), query_interval=0)
    desk, deleted = late.desk, []
    tidy = Full()
    tidy.delete = deleted.append

    class Slow(Full):
        def submit(self, request, timeout, meanwhile=lambda: None):
            for name in os.listdir(os.path.join(desk.spool.waiting, "500")):
                shutil.rmtree(os.path.join(desk.spool.waiting, "500", name))
            desk.scheduler = tidy
            desk.pump()
            return Submission("accepted", "8.server", "")

        def delete(self, job_id):
            deleted.append(job_id)

    heartbeat.beat(desk.spool, settings.load(desk.spool), Slow(), 1)
    assert late.known() == [] and "8.server" in deleted


# -- a queue, and a clock, of their own --------------------------------------------------------------------------------


def test_where_the_queue_of_the_jobs_is_closed_the_beat_goes_to_the_sites_own_choice(root, monkeypatch):
    class OneClosed(Full):
        asked = []

        def submit(self, request, timeout, meanwhile=lambda: None):
            self.asked.append(request.directives)
            if request.directives.get("q"):
                return Submission("temporary", "", "qsub: Queue is not enabled")
            return super(OneClosed, self).submit(request, timeout, meanwhile)

    late = Late(root, monkeypatch, time.time(), query_interval=0)
    late.desk.scheduler = OneClosed()
    files.write_json(os.path.join(late.desk.spool.root, "state.json"), {"beat_options": {"q": "long", "P": "p1"}})
    heartbeat.beat(late.desk.spool, settings.load(late.desk.spool), late.desk.scheduler, 1)
    assert [(one.get("q"), one.get("P")) for one in OneClosed.asked] == [("long", "p1"), (None, "p1")]
    assert late.known() == [1, 2] and heartbeat.beats(late.desk.spool)[-1].id == "8.server"


class ByAnotherClock(Hour):
    """The server starts jobs by a clock that is so many seconds ahead of the file server's."""

    def beats(self, ahead=0.0):
        self.ahead, starts = ahead, []
        plain = self.desk.scheduler.submit

        def submit(request, timeout, meanwhile=lambda: None):
            starts.append(request.start)
            return plain(request, timeout, meanwhile)

        self.desk.scheduler.submit = submit
        spool, ran = self.desk.spool, 0
        for _ in range(3600):
            self.now += 1
            last = heartbeat.beats(spool)[-1]
            start = starts[-1] if starts and starts[-1] else last.due
            if last.id in self.desk.scheduler.ids and start <= self.now + ahead:
                ran += 1
                heartbeat.beat(spool, settings.load(spool), self.desk.scheduler, last.n)
                self.desk.scheduler.ids.remove(last.id)
                files.remove(os.path.join(spool.root, "snapshot.json"))
                self.desk.pump()
            if ran > 100:
                break
        return ran


@pytest.mark.parametrize("ahead", [0.0, 300.0, 900.0, 7200.0])
def test_a_server_whose_clock_is_ahead_has_no_beat_come_at_once(root, monkeypatch, ahead):
    """Each armed the next one for a time that was past there: a beat a moment, without end. Each early one tells by how
    much, up to the quarter of an hour it was to wait."""
    hour = ByAnotherClock(root, monkeypatch, Full())
    settings.change(hour.desk.spool, max_queued=2)
    assert 3 <= hour.beats(ahead) <= 5 + ahead / 900


def test_a_beat_that_is_refused_for_a_while_tells_the_clock_once(root, monkeypatch, naps, left):
    """It came 300 s early, and tried four times: the next one would have come 20 minutes late."""

    class Opens(Full):
        tries = 0

        def submit(self, request, timeout, meanwhile=lambda: None):
            if request.start:
                self.tries += 1
            if self.tries < 8:  # each time before it pumps, and as it pumps
                meanwhile()
                return Submission("limit", "", "qsub: would exceed complex's per-user limit")
            return super(Opens, self).submit(request, timeout, meanwhile)

    late = Late(root, monkeypatch, time.time() + 300, query_interval=0)
    late.desk.scheduler = Opens()
    late.desk.scheduler.ids = []
    assert run(late) == 0
    assert len(naps) >= 2
    assert 200 < heartbeat.beats(late.desk.spool)[-1].ahead <= 300


def test_a_beat_that_can_not_be_deleted_holds_up_nobody(root, monkeypatch):
    class Deaf(Full):
        def delete(self, job_id):
            raise NotNow("qdel: Server could not connect to MOM 7.server")

    late = Late(root, monkeypatch, time.time() + 500, query_interval=0)
    late.desk.scheduler = Deaf()
    for n in (2, 3):
        late.write(n, time.time() + 500 + n, "%d.server" % (n + 20))
    late.desk.scheduler.ids += ["22.server", "23.server"]
    assert late.desk.pump()["submitted"] > 0 and late.known() == [2, 3]
