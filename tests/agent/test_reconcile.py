"""What the relay makes of a job the scheduler no longer knows, where the `shell` scheduler can't be made to forget."""

import os

import pytest

from chasqui_agent import files, journal, lock, marks, pump, quiet, reconcile, schedulers, settings
from chasqui_agent.lock import Lock
from chasqui_agent.schedulers.base import Ended, Live, Scheduler, Snapshot, Submission


class Forgetful(Scheduler):
    """A scheduler with a server: it answers what it is told to."""

    name = "forgetful"
    answer = Snapshot({}, {})
    deleted = ()

    def query(self, ids, sought=(), held=(), known=()):
        return self.answer

    def delete(self, job_id):
        self.deleted += (job_id,)

    def submit(self, request, timeout, meanwhile):
        return Submission("limit", "", "would exceed the limit")

    def release(self, job_id):
        raise AssertionError("nothing is to be released")


class Desk:
    """A root with one submitted job, and pumps on demand. The clock is moved by hand."""

    def __init__(self, root, monkeypatch):
        self.spool, self.scheduler, self.clock = root.spool, Forgetful(), 1000.0
        settings.change(self.spool, heartbeat=0, query_interval=0, grace=300, max_queued=1, max_running=1)
        monkeypatch.setattr(schedulers, "choose", lambda *_: self.scheduler)
        monkeypatch.setattr(files, "server_time", lambda _: self.clock)
        self.meta = self.spool.meta_dir("job", 1)
        os.makedirs(self.meta)
        marks.write_id(self.meta, "abcdefgh", "7.server", False)
        files.write_file(os.path.join(self.meta, "script"), b"true\n")
        self.put("submitted")

    def put(self, state):
        files.write_file(self.spool.entry_path(state, "job", 1, "abcdefgh"), b"true\n")

    def pump(self, seconds=0.0, claim="", handled=()):
        """One round `seconds` later; a runner makes its claim while it is under way."""
        self.clock += seconds
        lock = Lock(self.spool.lock)
        assert lock.acquire()
        writer = journal.Writer(self.spool.log, lock.generation)
        report = quiet.empty_report("test")
        one = pump.Round(self.spool, settings.load(self.spool), lock, writer, report)
        if claim:
            real = one.close_token
            one.close_token = lambda *rest: os.symlink(claim, os.path.join(self.meta, "claim.abcdefgh")) or real(*rest)
        one.run(list(handled))
        writer.close()
        lock.release()

    def claim(self, text="7.server"):
        os.symlink(text, os.path.join(self.meta, "claim.abcdefgh"))

    def outcome(self):
        found = [
            r for _, r in journal.records(self.spool.log) if r["ev"] in ("ended", "cancelled", "closed", "adopted")
        ]
        return [(r["ev"], r.get("state"), r.get("why")) for r in found]


@pytest.fixture
def desk(root, monkeypatch):
    return Desk(root, monkeypatch)


def test_a_vanished_job_is_lost_only_after_the_grace_and_a_second_round(desk):
    desk.claim()
    for seconds in (0, 100, 100):
        desk.pump(seconds)
        assert desk.outcome() == []
    desk.pump(101)
    assert desk.outcome() == [("ended", "LOST", "gone from the scheduler without a trace")]


def test_a_job_that_comes_back_into_sight_starts_the_clock_again(desk):
    desk.claim()
    desk.pump()
    desk.scheduler.answer = Snapshot({"7.server": Live("7.server", "R", "abcdefgh")}, {})
    desk.pump(200)
    desk.scheduler.answer = Snapshot({}, {})
    desk.pump(200)
    desk.pump(200)
    assert desk.outcome() == []


def test_a_vanished_job_without_a_claim_is_closed_before_it_is_lost(desk):
    desk.pump()
    desk.pump(400)
    assert desk.outcome() == [("ended", "LOST", "gone from the scheduler without a trace, before it started")]
    assert marks.is_closed(marks.read(desk.meta, "abcdefgh").claim)


def test_a_job_that_starts_while_it_is_given_up_is_not(desk):
    desk.pump()
    desk.pump(400, claim="7.server")
    assert desk.outcome() == [] and marks.read(desk.meta, "abcdefgh").claim == "7.server"


@pytest.mark.parametrize(
    "ended, expected",
    [
        (Ended("7.server", 265, "", "abcdefgh", False), ("ended", "FAIL", "killed (265)")),
        (Ended("7.server", 271, "deleted", "abcdefgh", False), ("cancelled", None, "deleted in the scheduler")),
        (Ended("7.server", 3, "", "abcdefgh", False), ("ended", "FAIL", "exit 3")),
        (Ended("7.server", 97, "", "abcdefgh", False), ("ended", "LOST", reconcile.REFUSED_RERUN)),
    ],
)
def test_the_schedulers_word_where_there_is_no_flag(desk, ended, expected):
    desk.claim()
    desk.scheduler.answer = Snapshot({}, {"7.server": ended})
    desk.pump()
    desk.pump(301)  # a server's output, and a flag, may be late
    assert desk.outcome() == [expected]


@pytest.mark.parametrize("mark, word", [(True, ""), (False, "term=1\n")])
def test_a_flag_after_term_is_only_provisional(desk, mark, word):
    """The payload ended with 0 after qdel's TERM; history is off. It was terminated, it is not done."""
    desk.claim()
    files.write_file(os.path.join(desk.meta, "run.abcdefgh.1"), b"")
    if mark:
        files.write_file(os.path.join(desk.meta, "term.abcdefgh.1"), b"")
    flag = "exit=0\nid=7.server\n%sended=1\nwhole\n" % word
    files.write_file(os.path.join(desk.meta, "flag.abcdefgh.1"), flag.encode("ascii"))
    desk.scheduler.answer = Snapshot({"7.server": Live("7.server", "R", "abcdefgh")}, {})
    desk.pump()
    assert desk.outcome() == []
    desk.scheduler.answer = Snapshot({}, {})
    desk.pump()
    desk.pump(301)
    assert desk.outcome() == [("ended", "FAIL", "terminated")]


@pytest.mark.parametrize("term", [False, True])
def test_without_a_history_the_mark_of_a_cancel_decides(desk, term):
    desk.claim()
    os.symlink("7.server", os.path.join(desk.meta, "run.abcdefgh.1"))
    files.write_file(os.path.join(desk.meta, "cancel.abcdefgh"), b"")
    if term:
        files.write_file(os.path.join(desk.meta, "term.abcdefgh.1"), b"")
    desk.pump()
    desk.pump(301)
    assert desk.outcome() == [("cancelled", None, "cancelled")]


def test_a_submission_whose_token_is_closed_is_queued_again_and_never_adopted(desk):
    """A pump died between the closing and the rename, and the request was accepted after all: PBS has a job that will
    never run. Adopted, and with no history to tell how it ended, it would be LOST."""
    desk.put("submitting")
    os.unlink(desk.spool.entry_path("submitted", "job", 1, "abcdefgh"))
    os.unlink(os.path.join(desk.meta, "abcdefgh.id"))
    desk.claim("closed:1")
    desk.scheduler.answer = Snapshot({"9.server": Live("9.server", "Q", "abcdefgh")}, {}, ["9.server"])
    desk.pump()
    assert desk.outcome() == [("closed", None, "the scheduler never got it")]
    assert desk.scheduler.deleted == ("9.server",) and not desk.spool.entries("submitting")


def test_a_job_that_is_gone_takes_no_place_while_its_flag_is_waited_for(desk, monkeypatch):
    """All live jobs killed at once, no heartbeat: the one sync that comes by must start the next ones."""
    desk.claim()
    os.symlink("7.server", os.path.join(desk.meta, "run.abcdefgh.1"))
    shard = os.path.join(desk.spool.waiting, "500", "a")
    os.makedirs(shard)
    os.makedirs(desk.spool.meta_dir("next", 1))
    files.write_file(os.path.join(shard, "000.next.1.sh"), b"true\n")
    holds = []
    full = Submission("limit", "", "full")
    monkeypatch.setattr(desk.scheduler, "submit", lambda request, *_: holds.append(request.hold) or full)
    for answer in (Snapshot({"7.server": Live("7.server", "R")}, {}, ["7.server"]), Snapshot({}, {}, [])):
        desk.scheduler.answer = answer  # alive, or not asked for
        desk.pump()
        assert holds.pop() is True
    desk.scheduler.answer = Snapshot({}, {}, ["7.server"])
    desk.pump()
    assert holds == [False] and desk.outcome() == []


def test_a_start_by_pbs_itself_is_told(desk):
    desk.claim()
    desk.scheduler.answer = Snapshot({"7.server": Live("7.server", "R")}, {})
    for k in (1, 2):
        os.symlink("7.server", os.path.join(desk.meta, "run.abcdefgh.%d" % k))
        desk.pump()
        desk.pump()
    told = [r["ev"] for _, r in journal.records(desk.spool.log) if r["ev"] in ("started", "requeued")]
    assert told == ["started", "requeued", "started"]


def test_a_late_flag_repairs_a_loss(desk):
    desk.claim()
    desk.pump()
    desk.pump(301)
    files.write_file(os.path.join(desk.meta, "run.abcdefgh.1"), b"")
    files.write_file(os.path.join(desk.meta, "flag.abcdefgh.1"), b"exit=0\nid=7.server\nended=1\nwhole\n")
    name = "ev.tail.job.1.abcdefgh.99"
    files.write_file(os.path.join(desk.spool.wake, name), b"")
    lock = Lock(desk.spool.lock)
    assert lock.acquire()
    writer = journal.Writer(desk.spool.log, lock.generation)
    pump.Round(desk.spool, settings.load(desk.spool), lock, writer, quiet.empty_report("test")).run([name])
    writer.close()
    lock.release()
    assert [r["state"] for _, r in journal.records(desk.spool.log) if r["ev"] == "repaired"] == ["DONE"]
    with open(desk.spool.entry_path("completed", "job", 1, suffix="flag")) as stream:
        assert stream.readline() == "DONE\n"


@pytest.mark.parametrize("place", ["live", "ended"])
def test_a_submission_without_an_answer_is_adopted_by_its_token(desk, place):
    os.rename(
        desk.spool.entry_path("submitted", "job", 1, "abcdefgh"),
        desk.spool.entry_path("submitting", "job", 1, "abcdefgh"),
    )
    os.unlink(os.path.join(desk.meta, "abcdefgh.id"))
    found = {
        "live": Snapshot({"9.server": Live("9.server", "Q", "abcdefgh")}, {}),
        "ended": Snapshot({}, {"9.server": Ended("9.server", 0, "", "abcdefgh", False)}),
    }
    desk.scheduler.answer = found[place]
    desk.pump()
    assert desk.outcome()[0][0] == "adopted"
    assert marks.read_id(desk.meta, "abcdefgh")["id"] == "9.server"


def test_an_unreachable_scheduler_changes_nothing(desk, monkeypatch):
    from chasqui_agent.schedulers.base import Unreachable

    def silent(*_):
        raise Unreachable("Connection refused")

    monkeypatch.setattr(desk.scheduler, "query", silent)
    for _ in range(5):
        desk.pump(1000)
    assert desk.outcome() == [] and desk.spool.entries("submitted")


def test_a_job_that_is_deleted_before_its_claim_can_never_run_once_it_was_called_cancelled(desk):
    """`qdel -W force`: PBS calls it finished while its runner may still be on the way."""
    desk.scheduler.answer = Snapshot({}, {"7.server": Ended("7.server", 265, "deleted", "abcdefgh", False)})
    desk.pump()
    desk.pump(400)
    assert desk.outcome()[0][0] == "cancelled"
    assert marks.is_closed(marks.read(desk.meta, "abcdefgh").claim)


def test_one_that_started_while_it_was_to_be_called_cancelled_is_not(desk):
    desk.scheduler.answer = Snapshot({}, {"7.server": Ended("7.server", 265, "deleted", "abcdefgh", False)})
    desk.pump(claim="7.server")
    assert desk.outcome() == []


def test_a_token_is_closed_only_where_that_can_be_read_back(desk, monkeypatch):
    path = os.path.join(desk.meta, "claim.abcdefgh")
    os.symlink("7.server", path)
    real = lock.create_link

    def create(name, text):
        made = real(name, text)
        if not made:
            os.unlink(path)  # a runner without room for its start takes its claim back this very moment
            monkeypatch.setattr(lock, "create_link", real)
        return made

    monkeypatch.setattr(lock, "create_link", create)
    assert marks.close(desk.meta, "abcdefgh", 1) == ""
    assert marks.is_closed(lock.read_link(path))


def test_a_start_behind_the_closing_of_a_token_is_seen(desk):
    os.symlink("7.server", os.path.join(desk.meta, "run.abcdefgh.2"))
    assert marks.close(desk.meta, "abcdefgh", 1) == "7.server"


def test_what_was_told_as_rejected_is_never_submitted_again(desk, monkeypatch):
    """A crash between the journal's word and the rename."""
    os.unlink(desk.spool.entry_path("submitted", "job", 1, "abcdefgh"))
    shard = os.path.join(desk.spool.waiting, "500", "a")
    os.makedirs(shard)
    files.write_file(os.path.join(shard, "000.job.1.sh"), b"true\n")
    monkeypatch.setattr(desk.scheduler, "submit", lambda *_: Submission("permanent", "", "unknown queue"))
    real = files.move

    def crash(old, new):
        if "/rejected/" in new:
            raise OSError(5, "crash", new)
        real(old, new)

    monkeypatch.setattr(files, "move", crash)
    with pytest.raises(OSError):
        desk.pump()
    os.symlink("broken", os.path.join(desk.spool.lock, "r.1"))
    monkeypatch.setattr(files, "move", real)
    monkeypatch.setattr(desk.scheduler, "submit", lambda *_: Submission("accepted", "9.server", ""))
    for _ in range(4):
        desk.pump(400)
    told = [record["ev"] for _, record in journal.records(desk.spool.log)]
    assert "rejected" in told and "submitted" not in told
    assert desk.spool.settled_state("job", 1) == "rejected"
