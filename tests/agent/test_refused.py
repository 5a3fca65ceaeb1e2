"""What the relay makes of a scheduler that refuses: waiting, giving up, and not emptying a batch into rejected/."""

import os

import pytest

from chasqui_agent import caps, files, fill, journal, pump, quiet, schedulers, settings
from chasqui_agent.lock import Lock
from chasqui_agent.schedulers.base import Scheduler, Snapshot, Submission

WORDS = "qsub: Queue is not open to you"


class Choosy(Scheduler):
    """Refuses what contains the word it is told to, in one kind and text; takes the rest."""

    name = "choosy"

    def __init__(self):
        self.kind, self.word, self.calls = "permanent", b"bad", 0

    def query(self, ids, sought=(), held=(), known=()):
        return Snapshot({}, {})

    def submit(self, request, timeout, meanwhile=lambda: None):
        self.calls += 1
        meanwhile()
        with open(request.script, "rb"), open(os.path.join(request.folder, ".chasqui", "script"), "rb") as script:
            if self.word in script.read():
                return Submission(self.kind, "", WORDS)
        return Submission("accepted", "%d.server" % self.calls, "")


class Desk:
    """A root with waiting scripts, and pumps on demand."""

    def __init__(self, root, monkeypatch):
        self.spool, self.scheduler, self.number = root.spool, Choosy(), 0
        settings.change(self.spool, query_interval=0, max_queued=100, max_running=100, heartbeat=0)
        monkeypatch.setattr(schedulers, "choose", lambda *_: self.scheduler)
        monkeypatch.setattr(fill, "MAX_CALLS", 10**9)  # all rounds of a test are in one minute, with one scheduler

    def add(self, *scripts):
        shard = os.path.join(self.spool.waiting, "500", "s%04d" % self.number)
        os.makedirs(shard)
        for text in scripts:
            self.number += 1
            job = "job%04d" % self.number
            os.makedirs(self.spool.meta_dir(job, 1))
            files.write_file(os.path.join(shard, "%04d.%s.1.sh" % (self.number, job)), text.encode("ascii"))

    def pump(self):
        lock = Lock(self.spool.lock)
        assert lock.acquire()
        writer = journal.Writer(self.spool.log, lock.generation)
        report = quiet.empty_report("test")
        pump.Round(self.spool, settings.load(self.spool), lock, writer, report).run([])
        writer.close()
        lock.release()
        return report

    def count(self, state):
        return sum(1 for name in os.listdir(os.path.join(self.spool.root, state)) if name.endswith(".sh"))

    def waiting(self):
        return sum(len(names) for _, _, names in os.walk(self.spool.waiting))

    def everything(self):
        return self.waiting(), self.count("submitted"), self.count("rejected"), self.count("submitting")


@pytest.fixture
def desk(root, monkeypatch):
    return Desk(root, monkeypatch)


def test_one_bad_script_is_rejected_with_the_schedulers_words(desk):
    desk.add("good", "bad", "good")
    report = desk.pump()
    assert desk.everything() == (0, 2, 1, 0)
    assert (report["submitted"], report["rejected"], report["refused"]) == (2, 1, "")
    errors = [name for name in os.listdir(os.path.join(desk.spool.root, "rejected")) if name.endswith(".err")]
    with open(os.path.join(desk.spool.root, "rejected", errors[0])) as stream:
        assert stream.read() == WORDS + "\n"


def test_a_closed_queue_does_not_empty_a_batch_into_rejected(desk):
    desk.add(*["bad"] * 300)
    first = desk.pump()
    assert first["refused"] == WORDS
    assert desk.everything() == (299, 0, 1, 0)
    assert desk.scheduler.calls == 1 + fill.MAX_DOUBTED
    for _ in range(3):
        desk.pump()
    assert desk.everything() == (299, 0, 1, 0)
    desk.scheduler.word = b"none is bad: the queue is open again"
    for _ in range(3):
        assert desk.pump()["refused"] == ""
    assert desk.everything() == (199, 100, 1, 0)  # as many as the caps allow


def test_bad_scripts_in_a_row_do_not_hold_up_good_ones(desk):
    desk.add("bad", "bad", "bad", "good", "bad", "good")
    report = desk.pump()
    assert desk.everything() == (0, 2, 4, 0)
    assert (report["rejected"], report["refused"]) == (4, "")
    told = [(r["ev"], r["job"]) for _, r in journal.records(desk.spool.log) if r["ev"] in ("rejected", "submitted")]
    assert sorted(told) == sorted(set(told))  # nobody was told twice
    assert sum(ev == "rejected" for ev, _ in told) == 4


def test_a_bad_script_that_waits_alone_is_rejected_each_time(desk):
    for expected in (1, 2, 3):
        desk.add("bad")
        desk.pump()
        assert desk.everything() == (0, 0, expected, 0)


@pytest.mark.parametrize("kind", ["limit", "temporary", "other"])
def test_a_refusal_that_is_none_of_the_scripts_stops_the_pump_and_leaves_no_trace(desk, kind):
    desk.scheduler.kind = kind
    desk.add("bad", "good")
    for calls in (1, 2, 3):
        assert desk.pump()["refused"] == WORDS
        assert desk.scheduler.calls == calls
    assert desk.everything() == (2, 0, 0, 0)
    metas = [desk.spool.meta_dir(job, 1) for job in ("job0001", "job0002")]  # the second was prepared each time
    assert not [name for meta in metas for name in os.listdir(meta) if name.startswith("runner.")]
    assert os.path.exists(os.path.join(metas[1], "script"))


def test_an_unknown_outcome_stays_in_submitting_until_it_is_looked_into(desk):
    desk.scheduler.kind = "unknown"
    desk.add("bad", "good")
    desk.pump()
    assert desk.everything() == (1, 0, 0, 1)


def test_an_array_the_site_has_no_room_for_holds_up_the_others_only_so_long(desk):
    desk.scheduler.kind, desk.scheduler.has_arrays = "limit", True
    desk.add("#PBS -J 1-4\nbad", "good")
    for _ in range(caps.PATIENCE):
        assert desk.pump()["refused"] == WORDS
        assert desk.everything() == (2, 0, 0, 0)
    desk.pump()
    assert desk.everything() == (1, 1, 0, 0)


def test_an_array_is_refused_before_any_scheduler_is_asked(desk):
    desk.add("#PBS -J 1-4\ngood")
    desk.pump()
    assert desk.everything() == (0, 0, 1, 0)
    assert desk.scheduler.calls == 0
