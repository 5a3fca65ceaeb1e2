"""The heartbeat far ahead: when there is one, where it makes room, and what it does when it comes."""

import os
import time

import pytest

from agent.test_heartbeat import Full, Late
from chasqui_agent import cli, files, heartbeat, reserve, settings
from chasqui_agent.schedulers.base import Live, Snapshot, Submission
from chasqui_agent.state import State

INTERVAL = 900.0


class Queue(Full):
    """A queue without end, arrays and all; it may be closed."""

    has_arrays, open = True, True

    def __init__(self):
        super(Queue, self).__init__()
        self.starts, self.sizes, self.deleted = {}, {}, []

    def query(self, ids, sought=(), held=(), known=()):
        live = [Live(i, "W" if i in self.starts else "Q", "", self.sizes.get(i, 1), 0) for i in self.ids]
        return Snapshot({job.id: job for job in live}, {}, set(ids))

    def submit(self, request, timeout, meanwhile=lambda: None):
        if not self.open:
            meanwhile()
            return Submission("temporary", "", "qsub: Queue is not enabled")
        answer = super(Queue, self).submit(request, timeout, meanwhile)
        if request.start:
            self.starts[answer.id] = request.start
        elif "J" in request.directives:
            self.sizes[answer.id] = int(request.directives["J"].split("-")[1])
        return answer

    def move_start(self, job_id, when):
        self.starts[job_id] = when
        return super(Queue, self).move_start(job_id, when)

    def delete(self, job_id):
        self.deleted.append(job_id)
        super(Queue, self).delete(job_id)


class Days(Late):
    """A root whose third beat is pending, and its jobs wait behind one that runs."""

    def __init__(self, root, monkeypatch, n=3, **chosen):
        super(Days, self).__init__(root, monkeypatch, 0.0, query_interval=0)
        self.now = time.time()
        monkeypatch.setattr(files, "server_time", lambda _: self.now)
        os.unlink(os.path.join(self.folder, "hb.1"))
        self.write(n, self.now + 800)
        self.desk.scheduler = Queue()
        settings.change(self.desk.spool, **dict({"max_queued": 20}, **chosen))
        self.desk.add(*["good"] * 30)

    def pump(self, seconds=0.0):
        self.now += seconds
        report = self.desk.pump()
        return [beat.due - self.now for beat in heartbeat.reserve(self.desk.spool)], report

    def spare(self):
        return heartbeat.reserve(self.desk.spool)[0]


@pytest.mark.parametrize("n, chosen, there", [
    (2, {}, False),
    (3, {}, True),
    (3, {"max_queued": 9}, False),
    (3, {"max_total": 9}, False),
    (3, {"max_total": 30}, True),
])  # fmt: skip
def test_there_is_one_where_a_batch_lasts_and_places_are_not_few(root, monkeypatch, n, chosen, there):
    days = Days(root, monkeypatch, n, **chosen)
    dues, _ = days.pump()
    assert dues == [heartbeat.AHEAD * INTERVAL] * there
    assert len(days.desk.scheduler.starts) == there


def test_a_limit_of_the_site_that_is_small_leaves_it_no_place(root, monkeypatch):
    days = Days(root, monkeypatch)
    rows = [["*", "", "", "live", 9]]
    value = {"published": {"default": "workq", "rows": rows, "asked": days.now}}
    files.write_json(os.path.join(days.desk.spool.root, "state.json"), value)
    assert days.pump()[0] == []
    rows[0][-1] = 10
    files.write_json(os.path.join(days.desk.spool.root, "state.json"), value)
    assert days.pump()[0] != []


def test_it_counts_against_the_cap_and_is_moved_on_when_it_comes_nearer(root, monkeypatch):
    days = Days(root, monkeypatch)
    days.desk.add(*["good"] * 30)
    _, report = days.pump()
    scheduler = days.desk.scheduler
    # One runs at a time here; the pending beat, and the one far ahead, are two of those that wait.
    assert report["submitted"] == 18 and len(scheduler.ids) == 20
    assert days.pump(10)[1]["submitted"] == 0
    moved = list(scheduler.moved)
    for hour in range(1, 9):
        days.write(3, days.now + 4400)
        dues, _ = days.pump(3600)
        assert dues[0] >= reserve.LEAST * INTERVAL
    assert len(scheduler.moved) - len(moved) == 1 and scheduler.moved[-1] == days.spare().id


def test_it_is_deleted_when_nothing_is_left_to_wait_for(root, monkeypatch):
    days = Days(root, monkeypatch)
    days.pump()
    there = days.spare().id
    monkeypatch.setattr(heartbeat, "needed", lambda _: False)
    assert days.pump(10)[0] == [] and there in days.desk.scheduler.deleted


def test_it_is_deleted_when_the_last_that_waits_is_rejected(root, monkeypatch):
    days = Days(root, monkeypatch)
    days.pump()
    there, scheduler = days.spare().id, days.desk.scheduler
    _empty(days)
    days.desk.add("bad")
    plain = scheduler.submit

    def submit(request, timeout, meanwhile=lambda: None):
        if request.start:
            return plain(request, timeout, meanwhile)
        meanwhile()
        return Submission("permanent", "", "qsub: Invalid account")

    scheduler.submit = submit
    assert days.pump(40)[1]["rejected"] == 1
    assert there in scheduler.deleted and heartbeat.every(days.desk.spool) == []


def test_it_is_deleted_by_a_beat_where_the_last_pump_could_not(root, monkeypatch):
    days = Days(root, monkeypatch)
    days.pump()
    there, scheduler = days.spare(), days.desk.scheduler
    _empty(days)
    heartbeat.beat(days.desk.spool, settings.load(days.desk.spool), scheduler, 3)
    assert there.id in scheduler.deleted and heartbeat.reserve(days.desk.spool) == []


def test_it_is_deleted_where_its_id_is_only_known_to_the_server(root, monkeypatch):
    days = Days(root, monkeypatch)
    days.pump()
    there, scheduler = days.spare(), days.desk.scheduler
    path = os.path.join(days.folder, "reserve.hb")
    files.write_json(path, dict(files.read_json(path), id=""))
    _empty(days)
    live = {there.id: Live(there.id, "W", there.token)}
    scheduler.query = lambda ids, sought=(), held=(), known=(): Snapshot(live, {}, {one.token for one in sought})
    days.pump(5)
    assert there.id in scheduler.deleted


@pytest.mark.parametrize("size, stays", [(18, True), (19, False)])
def test_an_array_that_needs_its_place_has_it(root, monkeypatch, size, stays):
    days = Days(root, monkeypatch, max_running=100)
    days.pump()
    there, scheduler = days.spare().id, days.desk.scheduler
    _empty(days)
    days.desk.add("#PBS -J 1-%d\n" % size)
    assert there in scheduler.ids
    days.pump(40)
    days.pump(40)
    assert (there in scheduler.ids) == stays
    assert size in scheduler.sizes.values()


def test_an_array_that_its_queue_has_no_room_for_beside_it_goes(root, monkeypatch):
    """Where limits differ by queue it is not among the next scripts: it never was seen to need the place."""
    days = Days(root, monkeypatch, max_running=100, max_queued=200)
    rows = [["workq", "", "", "live", 20]]
    value = {"published": {"default": "workq", "rows": rows, "asked": days.now}}
    files.write_json(os.path.join(days.desk.spool.root, "state.json"), value)
    days.pump()
    assert days.spare()
    _empty(days)
    days.desk.scheduler.ids.append("7.server")
    days.desk.add("#PBS -J 1-19\n")
    for _ in range(3):
        days.pump(40)
    assert 19 in days.desk.scheduler.sizes.values() and heartbeat.reserve(days.desk.spool) == []


def _empty(days):
    """All that waited or ran is over."""
    spool = days.desk.spool
    for folder, _, names in os.walk(spool.waiting):
        for name in names:
            os.unlink(os.path.join(folder, name))
    for name in os.listdir(os.path.join(spool.root, "submitted")):
        os.unlink(os.path.join(spool.root, "submitted", name))
    days.desk.scheduler.ids = [one for one in days.desk.scheduler.ids if one in days.desk.scheduler.starts]


def test_when_it_comes_it_brings_the_relay_back(root, monkeypatch):
    """The queue was closed when the third beat came, and until the last job was over."""
    days = Days(root, monkeypatch)
    days.pump()
    scheduler, spool = days.desk.scheduler, days.desk.spool
    scheduler.open, there = False, days.spare()
    scheduler.ids = [there.id]
    days.pump(1000)
    assert not heartbeat.certain(spool, days.now) and days.spare().id == there.id
    scheduler.open = True
    days.now = there.due + 1
    scheduler.ids = []
    waiting = days.desk.everything()[0]
    assert cli.VERBS["_beat"](spool.root, ["0"]) == 0
    assert days.desk.everything()[0] < waiting
    assert heartbeat.beats(spool)[-1].due == days.now + INTERVAL
    assert days.spare().due == days.now + heartbeat.AHEAD * INTERVAL


def test_one_that_comes_while_all_goes_well_arms_no_second_chain(root, monkeypatch):
    days = Days(root, monkeypatch)
    days.pump()
    days.now = days.spare().due
    days.write(7, days.now + 500)
    heartbeat.beat(days.desk.spool, settings.load(days.desk.spool), days.desk.scheduler, heartbeat.RESERVE)
    assert [beat.n for beat in heartbeat.beats(days.desk.spool)] == [3, 7] and heartbeat.reserve(days.desk.spool) == []


def test_one_that_was_replaced_forgets_nothing(root, monkeypatch):
    days = Days(root, monkeypatch)
    days.pump()
    newer = days.spare()
    heartbeat.beat(days.desk.spool, settings.load(days.desk.spool), days.desk.scheduler, heartbeat.RESERVE)
    assert heartbeat.reserve(days.desk.spool) == [newer]


def test_one_that_was_refused_is_tried_again_an_interval_later(root, monkeypatch):
    days = Days(root, monkeypatch)
    days.desk.scheduler.open = False
    days.pump()
    assert heartbeat.reserve(days.desk.spool) == [] and State(days.desk.spool).value["reserve"] == days.now
    days.desk.scheduler.open = True
    assert days.pump(INTERVAL / 2)[0] == []
    assert days.pump(INTERVAL / 2)[0] != []


def test_one_that_was_refused_takes_no_place_of_a_job(root, monkeypatch):
    days = Days(root, monkeypatch, max_running=100)
    scheduler = days.desk.scheduler
    plain = scheduler.submit

    def submit(request, timeout, meanwhile=lambda: None):
        if request.script.endswith("reserve.script"):
            return Submission("temporary", "", "qsub: no")
        return plain(request, timeout, meanwhile)

    scheduler.submit = submit
    assert days.pump()[1]["submitted"] + days.pump(40)[1]["submitted"] == 19
