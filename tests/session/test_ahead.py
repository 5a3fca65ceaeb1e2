"""Results that come before they are asked for, and those that are asked for before it is their turn."""

import contextlib
import os

import pytest

from chasqui_agent import journal
from chasqui_client import deploy, errors
from session.ended import Campaign, CountingLocal
from session.test_download import killed

SMALL = {"out": os.urandom(3000), "sub/log": b"42\n"}
LARGE = {"out": os.urandom(100_000)}  # goes by itself


@pytest.fixture
def campaign(memory_path):
    return Campaign(memory_path)


def end_now(campaign, jobs):
    """Their ends are news to the client, which has none of their results."""
    with campaign.ledger() as ledger, ledger.transaction():
        ledger.db.executemany("UPDATE jobs SET state = 'RUNNING' WHERE id = ?", [(job.id,) for job in jobs])
    writer = journal.Writer(str(campaign.root / "log"), 0)
    writer.append(*({"ev": "ended", "job": job.id, "attempt": 1, "state": "DONE", "exit": 0} for job in jobs))
    writer.close()


class Line(CountingLocal):
    """Keeps the order of what is said and heard: "want" and the `more` of listings, by first appearance in a frame."""

    compress = False

    def __init__(self, **cut):
        super().__init__(**cut)
        self.order = []

    def start(self, line):
        channel = super().start(line)
        if " serve " in line:
            write, read = channel.write, channel.read
            channel.write = lambda data: (self.order.extend(["want"] * data.count(b'"m":"want"')), write(data))[1]
            channel.read = lambda count: self._heard(read(count))
        return channel

    def _heard(self, data):
        for name in (b"listed", b"bundle", b"file", b"bye"):
            self.order.extend([name.decode()] * data.count(b'"m":"%s"' % name))
        return data


def sync(campaign, monkeypatch, **cut):
    line = Line(**cut)
    with monkeypatch.context() as patch:
        patch.setattr(deploy, "transport_to", lambda *_: line)
        return line, campaign.sync()


def whole(campaign, jobs, files):
    assert all(campaign.completed(job) and campaign.here(job) == files for job in jobs)


def test_small_results_of_jobs_that_have_just_ended_come_unasked(campaign, monkeypatch):
    jobs = campaign.make(SMALL, count=30)
    end_now(campaign, jobs)
    line, report = sync(campaign, monkeypatch)
    assert line.order == ["listed", "bundle", "bye"]
    assert (report.completed, report.results_jobs, report.results_files) == (30, 30, 60) and not report.notes
    whole(campaign, jobs, SMALL)
    assert sync(campaign, monkeypatch)[0].order == ["bye"]


def test_what_the_client_knew_of_and_what_is_larger_is_asked_for(campaign, monkeypatch):
    known, large, small = (campaign.make(files)[0] for files in (SMALL, LARGE, SMALL))
    end_now(campaign, [large, small])
    line, report = sync(campaign, monkeypatch)
    assert sorted(line.order) == ["bundle"] * 2 + ["bye", "file", "listed"] + ["want"] * 2
    assert report.results_jobs == 3
    whole(campaign, [known, small], SMALL)
    whole(campaign, [large], LARGE)


def test_more_than_a_line_carries_in_the_meantime_does_not_come_unasked(campaign, monkeypatch):
    jobs = campaign.make({"out": os.urandom(60_000)}, count=80)
    end_now(campaign, jobs)
    line, report = sync(campaign, monkeypatch)
    assert line.order.count("want") == 80 - (4 << 20) // 60_000
    assert report.results_jobs == 80


def test_the_next_slice_is_asked_for_while_this_one_comes(campaign, monkeypatch):
    """The line has something to carry all the time: a want is said before the turn that lists its job is over."""
    jobs = campaign.make({"out": os.urandom(20_000)}, count=1300)
    line, report = sync(campaign, monkeypatch)
    second = line.order.index("listed", line.order.index("listed") + 1)
    before = line.order[second:line.order.index("want", second)].count("bundle")
    assert 0 < before < 5  # of the sixteen of the first slice
    assert report.results_jobs == len(jobs) and line.order.count("want") == len(jobs)


def test_unasked_results_of_a_journal_that_is_sent_again_change_nothing(campaign, monkeypatch):
    """The client lost its place in the journal: what it has and what it tidied away stay as they are."""
    first, second = campaign.make(SMALL, count=2)
    end_now(campaign, [first, second])
    sync(campaign, monkeypatch)
    mine = os.path.join(os.fsdecode(first.results_path), "out")
    with open(mine, "wb") as stream:
        stream.write(b"mine now")
    os.unlink(os.path.join(os.fsdecode(second.results_path), "out"))
    with campaign.ledger() as ledger:
        ledger.set_remote("here", cursor=0)
    line, report = sync(campaign, monkeypatch)
    assert "bundle" in line.order and report.results_files == 0
    assert campaign.here(first) == {**SMALL, "out": b"mine now"}
    assert campaign.here(second).keys() == {"sub/log"}


def test_a_client_that_is_killed_has_recorded_the_journal_before(campaign, monkeypatch):
    """Else all that came unasked would come again, and again with the next one that is killed."""
    jobs = campaign.make(SMALL, count=30)
    end_now(campaign, jobs)
    killed(campaign, "landing.durable.after", monkeypatch, client=True)
    line, report = sync(campaign, monkeypatch)
    assert line.brought == 0 and report.results_jobs == 30
    whole(campaign, jobs, SMALL)


@pytest.mark.parametrize("received", range(1, 14))
def test_a_line_that_is_cut_at_any_frame(campaign, monkeypatch, received):
    jobs = campaign.make({"out": os.urandom(5000), "log": b"well\n" * 40}, count=10)
    end_now(campaign, jobs)
    with contextlib.suppress(errors.ConnectionLost, errors.NoGreeting):
        sync(campaign, monkeypatch, received=received)
    line, report = sync(campaign, monkeypatch)
    assert all(campaign.completed(job) and len(campaign.here(job)) == 2 for job in jobs)
    with campaign.ledger() as ledger:
        assert all([event["event"] for event in ledger.events(job.id)].count("ended") == 1 for job in jobs)
