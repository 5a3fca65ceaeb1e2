"""Slices that are handed over without waiting for an answer: which they are, what they cost, and what can go wrong."""

import contextlib
import hashlib
import itertools
import os
import sys

import pytest

from chasqui_agent import batch, receive, wire
from chasqui_agent.spool import Spool
from chasqui_client import deploy, errors, upload
from chasqui_client.messages import Changed
from chasqui_client.sync import Exchange
from session import disks
from session.desk import CutLocal, Desk

SYNC = sys.modules["chasqui_client.sync"]  # the package has a function of that name
SCRIPT = b"#!/bin/sh\ntrue\n"


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Slices of 1, 2, 2... jobs."""
    monkeypatch.setattr(SYNC, "FIRST", 1)
    monkeypatch.setattr(SYNC, "FRESH", 2)
    return Desk(tmp_path).deploy()


@pytest.fixture
def asked(monkeypatch):
    """For every slice whether the agent was asked, and the size of every content that was sent."""
    slices, contents = [], []
    offer, new, add = upload.Upload.offer, upload.Upload.hand_over_new, upload.Bundle.add
    monkeypatch.setattr(upload.Upload, "offer", lambda self, *given: (slices.append(True), offer(self, *given)))
    monkeypatch.setattr(upload.Upload, "hand_over_new", lambda self, *given: (slices.append(False), new(self, *given)))
    monkeypatch.setattr(upload.Bundle, "add", lambda self, *given: (contents.append(len(given[1])), add(self, *given)))
    return slices, contents


def _jobs(desk, count, **more):
    return desk.add(*(desk.folder("j%d" % n, "cat mine >out", mine=b"number %d" % n, **more) for n in range(count)))


def _all_ran_once(desk, jobs):
    desk.finish()
    assert desk.lines() == sorted(job.name for job in jobs)
    for job in jobs:
        desk.completed(job)
        assert (desk.path / "jobs" / job.name / "results/out").read_bytes() == b"number %s" % job.name[1:].encode()


def test_only_the_first_slice_waits_for_an_answer(desk, asked):
    jobs = _jobs(desk, 6, same=b"x" * 5000)  # no script is as long, wherever it runs
    assert desk.sync().uploaded == 6
    slices, contents = asked
    assert slices == [True, False, False, False]
    assert len(contents) == 13 and contents.count(5000) == 1, "a script and a number each, what all use once"
    _all_ran_once(desk, jobs)


def test_what_the_cache_may_have_is_asked_for(desk, asked):
    """Large contents, those of two jobs of a slice, and those of jobs that were offered before."""
    first = _jobs(desk, 1)
    twice = desk.add(*(desk.folder("t%d" % n, both=b"in both") for n in range(2)))
    large = desk.add(desk.folder("large", data=os.urandom(wire.PIECE + 1)), desk.folder("beside"))
    offered = desk.add(*(desk.folder(name, own=name.encode()) for name in ("o1", "o2")))
    with desk.ledger() as ledger:
        ledger.mark_offered(offered)
    desk.sync()
    assert asked[0] == [True, True, True, True]
    desk.finish()
    assert all(desk.completed(job) for job in [*first, *twice, *large, *offered])


def test_a_job_that_can_not_be_read_is_left_out_alone(desk, asked, monkeypatch):
    jobs = _jobs(desk, 5)
    opened = Exchange.open

    def changed(self, offer, file):
        if offer.job == jobs[3].id:
            raise Changed("it changed since it was offered")
        return opened(self, offer, file)

    with monkeypatch.context() as patch:
        patch.setattr(Exchange, "open", changed)
        report = desk.sync()
    assert asked[0] == [True, False, False]
    assert report.uploaded == 4 and [item["job"] for item in report.changed_inputs] == [jobs[3].id]
    _all_ran_once(desk, jobs)


def test_a_cut_at_any_frame(tmp_path, monkeypatch, size):
    monkeypatch.setattr(SYNC, "FIRST", 1)
    monkeypatch.setattr(SYNC, "FRESH", 2)
    for number in range(0, 100, 1 if size.long else 3):
        desk = Desk(tmp_path / str(number)).deploy()
        jobs = _jobs(desk, 5)
        line = CutLocal(sent=number)
        with monkeypatch.context() as patch, contextlib.suppress(errors.ConnectionLost):
            patch.setattr(deploy, "transport_to", lambda *_, line=line, **__: line)
            desk.sync()
        _all_ran_once(desk, jobs)
        if not line.was_cut:
            break
    assert 15 < number < 99


def test_without_room_in_plenty_everything_is_asked_for(tmp_path, monkeypatch, asked):
    monkeypatch.setattr(SYNC, "FIRST", 1)
    monkeypatch.setattr(SYNC, "FRESH", 2)
    desk = Desk(tmp_path)
    with disks.disk(desk.root, "200m", 20_000):
        desk.deploy()
        jobs = _jobs(desk, 4)
        desk.sync()
        assert asked[0] == [True, True, True]
        _all_ran_once(desk, jobs)


# -- the agent's side --------------------------------------------------------------------------------------------------


@pytest.fixture
def receiver(tmp_path):
    spool = Spool(str(tmp_path / "root"))
    spool.create()
    found = receive.Receiver(spool, "a" * 26, 0, contextlib.nullcontext)
    found.consider([])
    found.end_slice(True)
    yield found
    found.staging.close(keep=False)


def _offer(number, *contents, **fields):
    """A job message, and its key."""
    job = "j%010d" % number
    files = [{"path": "job.sh" if not at else "f%d" % at, "size": len(data), "mode": 0o600,
              "sha256": hashlib.sha256(data).hexdigest()} for at, data in enumerate((SCRIPT, *contents))]
    return {"m": "job", "job": job, "attempt": 1, "name": "n", "script": "job.sh", "files": files, **fields}, (job, 1)


def _bring(receiver, *contents):
    receiver.contents.bundle({"sha": [hashlib.sha256(data).hexdigest() for data in contents],
                              "size": [len(data) for data in contents]}, b"".join(contents))


def test_what_is_refused_is_dropped_and_said_at_the_end(receiver):
    good, good_key = _offer(1, b"good")
    bad, bad_key = _offer(2, b"bad", script="not there")
    receiver.consider_unasked([bad, good])
    _bring(receiver, b"bad", SCRIPT, b"good")
    receiver.commit(bad_key)
    receiver.commit(good_key)
    receiver.flush()
    assert receiver.acked == [good_key]
    (key, why), = receiver.refused
    assert key == bad_key and "its script is not one of its files" in why
    assert not [path for path in os.listdir(receiver.staging.folder) if path.startswith(bad_key[0])]


def test_what_is_there_already_is_acknowledged(receiver):
    job, key = _offer(1, b"once")
    for slice_ in range(2):
        receiver.consider_unasked([job])
        _bring(receiver, SCRIPT, b"once")
        receiver.commit(key)
        receiver.flush()
        receiver.end_slice(True)
    assert receiver.acked == [key, key] and receiver.refused == []
    other, _ = _offer(1, b"other")
    receiver.consider_unasked([other])
    assert receiver.refused == [(key, "the cluster has this attempt with other files")]


def test_what_does_not_come_or_is_damaged_refuses_the_job(receiver):
    (without, first), (damaged, second) = _offer(1, b"never sent"), _offer(2, b"right")
    receiver.consider_unasked([without, damaged])
    receiver.contents.bundle({"sha": [hashlib.sha256(data).hexdigest() for data in (SCRIPT, b"right")],
                              "size": [len(SCRIPT), 5]}, SCRIPT + b"wrong")
    for key in (first, second):
        receiver.commit(key)
    assert receiver.refused == [(first, "content was missing or damaged"), (second, "content was missing or damaged")]


@pytest.mark.parametrize("fields", [
    {"sha": ["0" * 64], "size": [wire.PIECE + 1]}, {"sha": ["0" * 64], "size": [-1]}, {"sha": [7], "size": [1]},
    {"sha": ["0" * 64], "size": ["1"]}, {"sha": ["0" * 64], "size": [1, 1]}])
def test_what_no_client_of_ours_sends_ends_the_session(receiver, fields):
    job, _ = _offer(1)
    receiver.consider_unasked([job])
    with pytest.raises(wire.WireError):
        receiver.contents.bundle(fields, b"x")
    with pytest.raises(wire.WireError):
        receiver.contents.blob({"sha": job["files"][0]["sha256"], "size": len(SCRIPT)}, lambda: SCRIPT)
    with pytest.raises(wire.WireError):
        receiver.consider_unasked([job])


def test_a_slow_disk_is_not_asked_at_every_pause_of_the_line(receiver, monkeypatch):
    """A hundred jobs are made real while nothing comes, but that may take only a tenth of the time."""
    clock, batches = [1000.0], []
    monkeypatch.setattr(batch.time, "monotonic", lambda: clock[0])

    def settle(folders):
        batches.append(clock[0])
        clock[0] += 0.3

    monkeypatch.setattr(batch.durable, "settle", settle)
    receiver._batch.published = clock[0]
    for number in range(1, 401):
        job, key = _offer(number)
        receiver.consider_unasked([job])
        _bring(receiver, SCRIPT)
        receiver.commit(key)
        receiver.end_slice(True)
        clock[0] += 0.01
        receiver.idle()
    assert batches[0] == pytest.approx(1001.0)
    assert [later - earlier >= 3.0 for earlier, later in itertools.pairwise(batches)] == [True] * (len(batches) - 1)
    assert len(batches) == 2 and len(receiver.acked) > 300
