"""One submission is recorded while the next one is under way: what stands where meanwhile, and when that fails."""

import os

import pytest

from chasqui_agent import files, journal, marks, pump, schedulers, settings
from chasqui_agent.lock import Lock
from chasqui_agent.schedulers.base import Live, Scheduler, Snapshot, Submission

JOBS = ("one", "three", "two")  # as they stand in a folder


class Slow(Scheduler):
    """Accepts everything; a test looks about before, while and after a call's other work is done."""

    name = "slow"

    def __init__(self):
        self.accepted, self.live = [], {}
        self.begun = self.done = self.answered = lambda *_: None

    def query(self, ids, sought=(), held=(), known=()):
        return Snapshot(self.live, {})

    def submit(self, request, timeout, meanwhile):
        job = os.path.basename(request.folder)
        self.begun(job)
        meanwhile()
        self.done(job)
        self.accepted.append(job)
        job_id = "%d.server" % len(self.accepted)
        self.live[job_id] = Live(job_id, "H" if request.hold else "Q", request.token)
        self.answered(job, request.token, job_id)
        return Submission("accepted", job_id, "")


class Desk:
    """A root in which `one`, `two` and `three` wait, in this order, and pumps on demand."""

    def __init__(self, root, monkeypatch):
        self.spool, self.scheduler = root.spool, Slow()
        settings.change(self.spool, query_interval=0, heartbeat=0)
        monkeypatch.setattr(schedulers, "choose", lambda *_: self.scheduler)
        shard = os.path.join(self.spool.waiting, "500", "s")
        os.makedirs(shard)
        for number, job in enumerate(("one", "two", "three")):
            os.makedirs(self.spool.meta_dir(job, 1))
            files.write_file(os.path.join(shard, "%03d.%s.1.sh" % (number, job)), b"true\n")

    def pump(self):
        return pump.pump(self.spool, "test")

    def jobs(self, state):
        return [entry.job for entry in self.spool.entries(state)]

    def told(self, *kinds):
        return [(r["ev"], r["job"]) for _, r in journal.records(self.spool.log) if r["ev"] in kinds]

    def runners(self, job):
        return [name for name in os.listdir(self.spool.meta_dir(job, 1)) if name.startswith("runner.")]


@pytest.fixture
def desk(root, monkeypatch):
    return Desk(root, monkeypatch)


def test_the_one_before_is_recorded_while_the_call_is_under_way(desk):
    seen = []
    desk.scheduler.begun = lambda job: seen.append((job, desk.jobs("submitting"), desk.jobs("submitted")))
    desk.scheduler.done = desk.scheduler.begun
    assert desk.pump()["submitted"] == 3
    assert seen == [
        ("one", ["one"], []),
        ("one", ["one"], []),
        ("two", ["one", "two"], []),
        ("two", ["two"], ["one"]),
        ("three", ["three", "two"], ["one"]),
        ("three", ["three"], ["one", "two"]),
    ]
    assert tuple(desk.jobs("submitted")) == JOBS and not desk.jobs("submitting")
    assert [marks.read_id(desk.spool.meta_dir(e.job, 1), e.token)["id"] for e in desk.spool.entries("submitted")] == [
        "1.server",
        "3.server",
        "2.server",
    ]
    told = desk.told("intent", "submitted")
    assert all(told.index(("intent", job)) < told.index(("submitted", job)) for job in JOBS) and len(told) == 6
    assert [len(desk.runners(job)) for job in JOBS] == [1, 1, 1]


def test_nothing_is_prepared_beyond_the_caps(desk):
    settings.change(desk.spool, max_queued=2, max_running=2)
    assert desk.pump()["submitted"] == 2
    assert desk.jobs("submitted") == ["one", "two"] and not desk.runners("three")


def test_a_record_that_fails_ends_the_round_and_the_call_under_way_is_recorded_if_it_can_be(desk):
    os.rename(desk.spool.submitted, desk.spool.submitted + ".away")
    report = desk.pump()
    assert "No such file" in report["note"] and desk.scheduler.accepted == ["one", "two"]
    assert desk.jobs("submitting") == ["one", "two"] and not desk.runners("three")
    assert desk.told("submitted") == [("submitted", "one"), ("submitted", "two")]
    os.rename(desk.spool.submitted + ".away", desk.spool.submitted)
    assert desk.pump()["note"] == ""
    assert tuple(desk.jobs("submitted")) == JOBS and desk.scheduler.accepted == ["one", "two", "three"]


def test_a_journal_that_fails_leaves_both_to_the_next_round(desk, monkeypatch):
    def full(fd, data):
        raise OSError(28, "No space left on device")

    def begin(job):
        if job == "two":
            monkeypatch.setattr(journal.wire, "write_all", full)

    desk.scheduler.begun = begin
    report = desk.pump()
    assert "No space left" in report["note"] and report["full"]
    assert desk.jobs("submitting") == ["one", "two"]
    monkeypatch.undo()
    monkeypatch.setattr(schedulers, "choose", lambda *_: desk.scheduler)
    desk.scheduler.begun = lambda *_: None
    assert desk.pump()["note"] == ""
    assert tuple(desk.jobs("submitted")) == JOBS and desk.scheduler.accepted == ["one", "two", "three"]
    assert [ev for ev, _ in desk.told("submitted", "adopted")].count("adopted") == 2


def taken_over(desk):
    """What somebody does who takes this holder for dead: the lock's next generation."""
    last = max(int(name[2:]) for name in os.listdir(desk.spool.lock) if name.startswith("g."))
    os.symlink('{"broken_by": "another"}', os.path.join(desk.spool.lock, "r.%d" % last))
    other = Lock(desk.spool.lock)
    assert other.acquire()
    return other


def test_one_that_lost_the_lock_calls_nobody_and_records_what_it_has(desk):
    locks = []
    desk.scheduler.done = lambda job: locks.append(taken_over(desk))
    assert "lost the lock" in desk.pump()["note"]
    assert desk.scheduler.accepted == ["one"] and desk.jobs("submitted") == ["one"]
    assert desk.jobs("submitting") == ["two"]
    locks[0].release()


def test_one_that_lost_the_lock_changes_nothing_of_what_was_adopted_meanwhile(desk):
    """The other has found the job, and released its hold: a second record would undo that."""
    settings.change(desk.spool, max_running=1)
    locks = []

    def adopt(job, token, job_id):
        if job == "two":
            locks.append(taken_over(desk))
            marks.write_id(desk.spool.meta_dir(job, 1), token, job_id, False)
            old, new = [desk.spool.entry_path(state, job, 1, token) for state in ("submitting", "submitted")]
            files.move(old, new)

    desk.scheduler.answered = adopt
    assert "lost the lock" in desk.pump()["note"]
    assert desk.scheduler.accepted == ["one", "two"]
    (entry,) = [entry for entry in desk.spool.entries("submitted") if entry.job == "two"]
    assert marks.read_id(desk.spool.meta_dir("two", 1), entry.token) == {"id": "2.server", "held": False}
    assert desk.told("submitted") == [("submitted", "one")]
    locks[0].release()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_each_of_those_in_submitting_is_resolved_by_itself(root, monkeypatch, order):
    """Recorded but for the rename, claimed, live in the scheduler, and unknown to it."""
    desk = Desk(root, monkeypatch)
    settings.change(desk.spool, max_queued=1)
    tokens = ["abcdefg" + letter for letter in "hijk"]
    jobs = ["job%d" % position for position in order]
    for job, token in zip(jobs, tokens):
        os.makedirs(desk.spool.meta_dir(job, 1))
        files.write_file(desk.spool.entry_path("submitting", job, 1, token), b"true\n")
    marks.write_id(desk.spool.meta_dir(jobs[0], 1), tokens[0], "7.server", False)
    os.symlink("8.server", os.path.join(desk.spool.meta_dir(jobs[1], 1), "claim." + tokens[1]))
    desk.scheduler.live = {"9.server": Live("9.server", "Q", tokens[2])}
    desk.pump()
    assert desk.jobs("submitting") == [jobs[3]]
    ids = {e.job: marks.read_id(desk.spool.meta_dir(e.job, 1), e.token)["id"] for e in desk.spool.entries("submitted")}
    assert ids == {jobs[0]: "7.server", jobs[1]: "8.server", jobs[2]: "9.server"}
    assert desk.told("intent") == []
