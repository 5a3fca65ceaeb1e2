"""The heartbeat's own files."""

import errno
import json
import os
import time

import pytest

from agent.test_refused import Choosy, Desk
from chasqui_agent import cli, files, heartbeat, pump, settings
from chasqui_agent.lock import own_identity
from chasqui_agent.schedulers.base import Live, Snapshot, Submission


class Beating(Choosy):
    """A scheduler that has the fifth beat in its queue."""

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
    assert sorted(os.listdir(folder)) == ["hb.4", "hb.5", "script.4", "script.5"]


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
        self.ids, self.state, self.moved = ["7.server"], "Q", []

    def query(self, ids, sought=(), held=(), known=()):
        live = [Live(i, "", "", 1, 0) if i in known else Live(i, self.state) for i in self.ids]
        return Snapshot({job.id: job for job in live}, {}, set(ids))

    def submit(self, request, timeout, meanwhile=lambda: None):
        meanwhile()
        self.ids.append("%d.server" % (len(self.ids) + 7))
        return Submission("accepted", self.ids[-1], "")

    def move_start(self, job_id, when):
        self.moved.append(job_id)
        return True


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
    assert heartbeat.beat(late.desk.spool, chosen, scheduler, 3)
    assert late.known() == [1]
    assert heartbeat.beat(late.desk.spool, chosen, scheduler, 1)
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


def _held_elsewhere(spool):
    """The lock, taken a minute ago by somebody of another host."""
    owner = json.dumps(dict(own_identity(), h="another", b="another"))
    os.symlink(owner, os.path.join(spool.lock, "g.1"))
    then = time.time() - 60
    os.utime(os.path.join(spool.lock, "g.1"), (then, then), follow_symlinks=False)


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
    assert cli.main(["--root", late.desk.spool.root, "_beat", "1"]) == 0
    assert failed and late.known() == [1, 2]
    assert late.desk.everything()[0] < 2
