"""The heartbeat's own files."""

import errno
import json
import os
import time

import pytest

from agent.test_refused import Choosy, Desk
from chasqui_agent import cli, files, heartbeat, marks, pump, settings
from chasqui_agent.lock import own_identity
from chasqui_agent.schedulers.base import Live, NotNow, Snapshot, Submission
from chasqui_agent.state import State


class Beating(Choosy):
    """A scheduler that has the fifth beat in its queue, and takes all that comes."""

    def submit(self, request, timeout, meanwhile=lambda: None):
        meanwhile()
        return Submission("accepted", "9.server", "")

    def query(self, ids, sought=(), held=(), known=()):
        return Snapshot({"5.server": Live("5.server", "W")}, {})


def test_beats_that_rearm_themselves_leave_no_trail(root, monkeypatch):
    """A weekend has 300 of them, and every pump reads all that are there."""
    desk = Desk(root, monkeypatch)
    desk.scheduler = Beating()
    settings.change(desk.spool, heartbeat=15)
    folder = os.path.join(desk.spool.root, "heartbeat")
    os.makedirs(folder)
    now = time.time()
    for n in range(1, 6):
        beat = {"token": "abcdefg%d" % n, "id": "%d.server" % n, "made": now, "due": now + 900 * (n - 4)}
        files.write_json(os.path.join(folder, "hb.%d" % n), beat)
        files.write_file(os.path.join(folder, "script.%d" % n), b"")
    desk.add("good")
    desk.pump()
    assert [beat.n for beat in heartbeat.beats(desk.spool)] == [4, 5]
    spare = ["reserve.hb", "reserve.script"]
    assert sorted(os.listdir(folder)) == ["hb.4", "hb.5"] + spare + ["script.4", "script.5"]


class Mute(Choosy):
    """A scheduler that takes requests without a word; by what can be asked, none has arrived."""

    answer = Submission("unknown", "", "no answer")

    def query(self, ids, sought=(), held=(), known=()):
        return Snapshot({}, {}, {one.token for one in sought})

    def submit(self, request, timeout, meanwhile=lambda: None):
        meanwhile()
        return self.answer


def test_where_nobody_knows_whether_anything_arrived_somebody_stays_and_looks(root, monkeypatch):
    """Not for the whole of the grace period: the one who stays would be gone by then."""
    desk = Desk(root, monkeypatch)
    desk.scheduler = Mute()
    settings.change(desk.spool, heartbeat=15)
    desk.add("good")
    assert desk.pump()["debt"]
    assert [(beat.n, beat.id) for beat in heartbeat.beats(desk.spool)] == [(1, "")]
    desk.scheduler.answer = Submission("accepted", "7.server", "")
    assert desk.pump()["debt"]  # it may be on its way yet
    monkeypatch.setattr(heartbeat, "DOUBT_SECONDS", 0.0)
    assert not desk.pump()["debt"]
    assert [(beat.n, beat.id) for beat in heartbeat.beats(desk.spool)] == [(1, ""), (2, "7.server")]


def test_a_beat_of_which_nothing_was_noted_is_made_anew(root, monkeypatch):
    """Whoever took its place was killed before the next line, or found the disk full: it was believed to come for
    ever, and where nothing else woke the relay it stood still until the next contact."""
    desk = Desk(root, monkeypatch)
    desk.scheduler = Mute()
    desk.scheduler.answer = Submission("accepted", "7.server", "")
    settings.change(desk.spool, heartbeat=15)
    folder = os.path.join(desk.spool.root, "heartbeat")
    os.makedirs(folder)
    files.write_file(os.path.join(folder, "hb.1"), b"")
    desk.add("good")
    desk.pump()
    assert [beat.n for beat in heartbeat.beats(desk.spool)] == [1]  # it may be on its way yet
    long_ago = time.time() - heartbeat.DOUBT_SECONDS - 10
    os.utime(os.path.join(folder, "hb.1"), (long_ago, long_ago))
    desk.pump()
    assert [(beat.n, beat.id) for beat in heartbeat.beats(desk.spool)][-1] == (2, "7.server")


# -- one that is late --------------------------------------------------------------------------------------------------


class Full(Choosy):
    """Takes all that comes; of what is in `known` it tells no state, and of the rest `state`."""

    def __init__(self):
        super(Full, self).__init__()
        self.ids, self.state, self.moved, self.last = ["7.server"], "Q", [], 7

    def query(self, ids, sought=(), held=(), known=()):
        live = [Live(i, "", "", 1, 0) if i in known else Live(i, self.state) for i in self.ids]
        return Snapshot({job.id: job for job in live}, {}, set(ids))

    def submit(self, request, timeout, meanwhile=lambda: None):
        meanwhile()
        self.last += 1
        self.ids.append("%d.server" % self.last)
        return Submission("accepted", self.ids[-1], "")

    def move_start(self, job_id, when):
        self.moved.append(job_id)
        return True

    def delete(self, job_id):
        self.ids = [one for one in self.ids if one != job_id]


class Late:
    """A root with a pending beat, and jobs that wait behind one that runs."""

    def __init__(self, root, monkeypatch, due, **chosen):
        self.desk = desk = Desk(root, monkeypatch)
        desk.scheduler = Full()
        settings.change(desk.spool, heartbeat=15, max_running=1, max_queued=3, **chosen)
        self.folder = os.path.join(desk.spool.root, "heartbeat")
        os.makedirs(self.folder)
        self.write(1, due)
        desk.add("good", "good")

    def write(self, n, due, job_id="7.server"):
        note = {"token": "abcdefg%d" % n, "id": job_id, "made": time.time() - 1000, "due": due}
        files.write_json(os.path.join(self.folder, "hb.%d" % n), note)

    def known(self):
        return [beat.n for beat in heartbeat.beats(self.desk.spool)]


def test_a_beat_that_waits_for_a_cpu_is_not_replaced(root, monkeypatch):
    """Each pump of a full cluster armed another one: they filled the queue, and then armed each other for ever."""
    late = Late(root, monkeypatch, time.time() - 500, query_interval=30)
    late.desk.pump()
    assert late.known() == [1], "asked now"
    late.desk.pump()
    assert late.known() == [1], "asked a moment ago"
    late.desk.scheduler.state = "R"
    settings.change(late.desk.spool, query_interval=0)
    late.desk.pump()
    assert late.known() == [1, 2], "it runs, and has not armed the next one"


def test_a_late_beat_that_is_gone_is_made_anew(root, monkeypatch):
    late = Late(root, monkeypatch, time.time() - 500, query_interval=0)
    late.desk.scheduler.ids = []
    late.desk.pump()
    assert late.known() == [1, 2]


def test_a_beat_that_was_given_up_arms_no_other(root, monkeypatch):
    late = Late(root, monkeypatch, time.time() + 500)
    scheduler, chosen = late.desk.scheduler, settings.load(late.desk.spool)
    heartbeat.beat(late.desk.spool, chosen, scheduler, 3)
    assert late.known() == [1]
    heartbeat.beat(late.desk.spool, chosen, scheduler, 1)
    assert late.known() == [1, 2]


@pytest.mark.parametrize("since", [None, 500.0])
@pytest.mark.parametrize("job_id", ["7.server", ""])
def test_where_the_locks_holder_may_be_dead_no_beat_is_counted_on_but_one_to_come(root, monkeypatch, since, job_id):
    """since: seconds since its time, None where it said itself that it is over (by ssh)."""
    late = Late(root, monkeypatch, 0.0)
    late.write(1, 0.0 if since is None else time.time() - since, job_id)
    _held_elsewhere(late.desk.spool)
    report = pump.pump(late.desk.spool, "tail", 0.1, attended=False)
    assert report["busy"] and late.known() == [1, 2]
    assert late.desk.scheduler.moved == ["8.server"]


def test_where_the_holder_may_have_died_over_a_beat_another_one_is_armed(root, monkeypatch):
    late = Late(root, monkeypatch, 0.0)
    files.write_file(os.path.join(late.folder, "hb.1"), b"")
    _held_elsewhere(late.desk.spool)
    pump.pump(late.desk.spool, "tail", 0.1, attended=False)
    assert late.known() == [1, 2]


def test_a_beat_to_come_is_only_brought_forward_and_none_armed_where_nothing_waits(root, monkeypatch):
    late = Late(root, monkeypatch, time.time() + 850)
    _held_elsewhere(late.desk.spool)
    pump.pump(late.desk.spool, "tail", 0.1, attended=False)
    assert (late.known(), late.desk.scheduler.moved) == ([1], ["7.server"])
    os.unlink(os.path.join(late.folder, "hb.1"))
    monkeypatch.setattr(heartbeat, "needed", lambda _: False)
    pump.pump(late.desk.spool, "tail", 0.1, attended=False)
    assert late.known() == []


def test_a_beat_that_was_seen_to_wait_for_a_cpu_is_counted_on(root, monkeypatch):
    """On a full cluster each wake that met somebody else's lock armed another one."""
    late = Late(root, monkeypatch, time.time() - 500, query_interval=0)
    late.desk.pump()
    _held_elsewhere(late.desk.spool, 2)
    pump.pump(late.desk.spool, "tail", 0.1, attended=False)
    assert late.known() == [1]


def _held_elsewhere(spool, generation=1):
    """The lock, taken a minute ago by somebody of another host."""
    owner = json.dumps(dict(own_identity(), h="another", b="another"))
    path = os.path.join(spool.lock, "g.%d" % generation)
    os.symlink(owner, path)
    then = time.time() - 60
    os.utime(path, (then, then), follow_symlinks=False)


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EIO, errno.ENOSPC])
def test_a_beat_that_can_not_write_pumps_and_tries_again(root, monkeypatch, error):
    late = Late(root, monkeypatch, time.time(), query_interval=0)
    plain, failed = files.write_file, []

    def fails_once(path, *rest, **more):
        if "hb." in path and not failed:
            failed.append(path)
            raise OSError(error, os.strerror(error), path)
        return plain(path, *rest, **more)

    monkeypatch.setattr(files, "write_file", fails_once)
    assert cli.VERBS["_beat"](late.desk.spool.root, ["1"]) == 0  # `main` would leave its umask to the tests that follow
    assert failed and late.known() == [1, 2]
    assert late.desk.everything()[0] < 2


# -- how often ---------------------------------------------------------------------------------------------------------


class Hour(Late):
    """An hour, second by second, in which the beats are all that runs."""

    def __init__(self, root, monkeypatch, scheduler, script=b"\n", **chosen):
        self.now = time.time()
        super(Hour, self).__init__(root, monkeypatch, self.now + 800, query_interval=30, **chosen)
        monkeypatch.setattr(files, "server_time", lambda _: self.now)
        self.desk.scheduler = scheduler
        spool = self.desk.spool
        self.meta = spool.meta_dir("there", 1)
        os.makedirs(self.meta)
        self.id = "5[].server" if b"-J" in script else "5.server"
        scheduler.ids = ["7.server", self.id]
        files.write_file(spool.entry_path("submitted", "there", 1, "abcdefgh"), script)
        marks.write_id(self.meta, "abcdefgh", self.id, False)
        os.symlink(self.id, os.path.join(self.meta, "claim.abcdefgh"))

    def beats(self):
        """How many ran."""
        spool, scheduler, ran = self.desk.spool, self.desk.scheduler, 0
        for _ in range(3600):
            self.now += 1
            last = heartbeat.beats(spool)[-1]
            if last.id in scheduler.ids and last.due <= self.now:
                ran += 1
                heartbeat.beat(spool, settings.load(spool), scheduler, last.n)
                scheduler.ids.remove(last.id)
                files.remove(os.path.join(spool.root, "snapshot.json"))
                self.desk.pump()
        return ran


class NoPlace(Full):
    """A site that lets beats in, and no jobs."""

    has_arrays = True

    def submit(self, request, timeout, meanwhile=lambda: None):
        if request.start is None:
            meanwhile()
            return Submission("limit", "", "would exceed queue's per-group limit", None, False, ("group", ""))
        return super(NoPlace, self).submit(request, timeout, meanwhile)


@pytest.mark.parametrize("array", [False, True])
def test_where_an_end_lasts_for_hours_no_beat_comes_each_minute(root, monkeypatch, array):
    """A job that stands in E; an array of which one element is over. There were 47 in an hour, and as many qsub."""
    hour = Hour(root, monkeypatch, NoPlace(), b"#PBS -J 1-10\n" if array else b"\n")
    settings.change(hour.desk.spool, max_queued=100, max_running=100)
    element = "abcdefgh.1" if array else "abcdefgh"
    os.symlink(hour.id, os.path.join(hour.meta, "run.%s.1" % element))
    files.write_file(os.path.join(hour.meta, "flag.%s.1" % element), b"exit=0\nwhole\n")
    assert 4 <= hour.beats() <= 15


def test_where_a_job_can_not_be_cancelled_no_beat_comes_each_minute(root, monkeypatch):
    class Deaf(Full):
        def delete(self, job_id):
            raise NotNow("qdel: Server could not connect to MOM 5.server")

    hour = Hour(root, monkeypatch, Deaf())
    settings.change(hour.desk.spool, max_queued=2)
    os.symlink(hour.id, os.path.join(hour.meta, "run.abcdefgh.1"))
    asked = {"id": "abcdefghijkl", "op": "cancel", "job": "there", "attempt": 1}
    files.write_json(os.path.join(hour.desk.spool.wake, "op.abcdefghijkl"), asked)
    assert 3 <= hour.beats() <= 5


@pytest.mark.parametrize("size", [1, 2])
def test_a_job_in_a_queue_that_has_no_place_for_beats_does_not_put_the_heartbeat_off(root, monkeypatch, size):
    desk = Desk(root, monkeypatch)
    desk.scheduler = Full()
    settings.change(desk.spool, heartbeat=15, max_queued=20, bundle=size)
    rows = [["debug", "", "", "live", 1], ["long", "", "", "live", 50]]
    files.write_json(os.path.join(desk.spool.root, "state.json"),
                     {"published": {"default": "workq", "rows": rows, "asked": time.time()}})  # fmt: skip
    for script, queue in (("#PBS -q long\n", "long"), ("#PBS -q debug\n", "long")):
        desk.add(*[script + "#PBS -l walltime=60,ncpus=1\n"] * size)
        assert desk.pump()["submitted"] == size
        value = State(desk.spool).value
        assert value["beat_options"] == {"q": queue}
        assert heartbeat.enabled(settings.load(desk.spool), desk.scheduler, value)
