"""The heartbeat's own files."""

import os
import time

from agent.test_refused import Choosy, Desk
from chasqui_agent import files, heartbeat, settings
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
