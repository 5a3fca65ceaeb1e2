"""Places that ending jobs still take: who fills them, where the site has no place for a heartbeat."""

import os

import pytest

from agent.test_refused import Desk
from chasqui_agent import files, fill, linger, live, settings
from chasqui_agent.schedulers import refusals
from chasqui_agent.schedulers.base import Live, Scheduler, Snapshot, Submission, Unreachable
from chasqui_agent.state import State

GONE_SECONDS = 0.3  # after its end a job is gone from the server
BY_HAND = "999.server"


class Server(Scheduler):
    """Takes so many jobs of a user's, each until it is quite gone; has a clock of its own."""

    name = "server"

    def __init__(self, places):
        self.places, self.now, self.jobs, self.number = places, 1e9, {}, 0

    def there(self):
        return {name: job for name, job in self.jobs.items() if not job["end"] or self.now < job["end"] + GONE_SECONDS}

    def running(self):
        return [name for name, job in self.jobs.items() if not job["end"] and name != BY_HAND]

    def query(self, ids, sought=(), held=(), known=()):
        found = {name: Live(name, "R", job["token"]) for name, job in self.there().items()}
        return Snapshot(found, {}, list(ids) + list(known))

    def submit(self, request, timeout, meanwhile):
        meanwhile()
        if len(self.there()) >= self.places:
            text = "qsub: would exceed complex's per-user limit"
            said = refusals.classify(38, text)
            return Submission(said.kind, "", text, said.learn, said.here, said.shared)
        self.number += 1
        job_id = "%d.server" % self.number
        self.jobs[job_id] = {"end": None, "token": request.token, "meta": os.path.join(request.folder, ".chasqui")}
        return Submission("accepted", job_id, "")

    def delete(self, job_id):
        self.jobs[job_id]["end"] = self.now

    def end(self, job_id):
        job = self.jobs[job_id]
        for name, text in (("run", b""), ("flag", b"exit=0\nended=1\nwhole\n")):
            path = os.path.join(job["meta"], "%s.%s.1" % (name, job["token"]))
            files.write_file(path, text)
            os.utime(path, (self.now, self.now))
        os.symlink(job_id, os.path.join(job["meta"], "claim." + job["token"]))
        job["end"] = self.now


@pytest.fixture
def served(root, monkeypatch):
    """A function that makes a desk before a server with so many places, whose clock is everybody's."""

    def make(places, **chosen):
        desk = Desk(root, monkeypatch)
        server = desk.scheduler = Server(places)
        settings.change(desk.spool, query_interval=30, **chosen)
        seen = []
        monkeypatch.setattr(files, "server_time", lambda *_: server.now)
        monkeypatch.setattr(State, "keep_snapshot", lambda _, found: seen.append((server.now, found)))
        monkeypatch.setattr(
            State, "cached_snapshot", lambda _, age: seen[-1][1] if seen and server.now - seen[-1][0] < age else None
        )
        return desk, server

    return make


def stay(desk, server):
    """Pump as the process does that stays for a minute, while there is a debt."""
    for pause in linger.PAUSES:
        if not State(desk.spool).value.get("debt"):
            break
        server.now += pause
        desk.pump()


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("by_hand", [2, 8])
def test_a_relay_one_by_one_goes_on_when_a_job_by_hand_takes_a_place(served, monkeypatch, own, by_hand):
    """There always was one payload over, so nothing seemed to end; after ten minutes of that nobody came."""
    desk, server = served(2, heartbeat=15, max_queued=1)
    desk.add(*["true\n"] * 20)
    desk.pump()
    while server.running() and server.number < by_hand + 5:
        server.now += 120
        if server.number == by_hand:
            server.jobs[BY_HAND] = {"end": None, "token": ""}
        for job_id in server.running():
            server.end(job_id)
            if own:
                monkeypatch.setenv("PBS_JOBID", job_id)
        desk.pump()
        monkeypatch.delenv("PBS_JOBID", raising=False)
        stay(desk, server)
    assert server.number == by_hand + 5


@pytest.mark.parametrize("most", [4, 40])
def test_the_places_of_cancelled_jobs_are_filled(served, most):
    """They are deleted at the end of the round; none of them ends, and so tells anybody."""
    desk, server = served(4, heartbeat=0, max_queued=most)
    desk.add(*["true\n"] * 4)
    desk.pump()
    desk.add(*["true\n"] * 4)
    for job in live.standings(desk.spool):
        asked = {"op": "cancel", "job": job.entry.job, "attempt": 1, "id": "x" + job.entry.job}
        files.write_json(os.path.join(desk.spool.wake, "op." + asked["id"]), asked)
    desk.pump()
    stay(desk, server)
    assert desk.waiting() == 0


@pytest.mark.parametrize("most, debt", [(2, False), (4, True)])
def test_where_our_own_cap_is_used_up_nobody_stays_for_one_that_is_refused(served, monkeypatch, most, debt):
    desk, server = served(40, heartbeat=0, max_queued=most)
    plain = server.submit
    text = "qsub: Job violates queue and/or server resource limits"
    monkeypatch.setattr(
        server,
        "submit",
        lambda one, *words: Submission("limit", "", text) if "q" in one.directives else plain(one, *words),
    )
    desk.add("true\n")
    desk.pump()
    desk.add("#PBS -q long\n", *["true\n"] * 2)
    desk.pump()
    server.now += 120
    server.end("1.server")
    desk.add("true\n")
    assert desk.pump()["debt"] is debt


@pytest.mark.parametrize("calls", [True, False])
def test_what_can_not_be_deleted_does_not_end_a_pump_that_is_not_done(served, monkeypatch, calls):
    """Neither a qdel that does not answer nor the number of calls."""
    desk, server = served(40, heartbeat=0)
    desk.add(*["true\n"] * 3)
    desk.pump()
    state = State(desk.spool)
    state.delete.append("1.server")
    state.save()

    def deaf(job_id):
        raise Unreachable("qdel did not answer in 20 seconds")

    def full(work, *words):
        work.report["unfinished"] = True
        if calls:
            monkeypatch.setattr(fill, "MAX_CALLS", 0)

    monkeypatch.setattr(server, "delete", deaf)
    monkeypatch.setattr(fill, "fill", full)
    report = desk.pump()
    assert report["unfinished"] and report["note"] == ""
    assert State(desk.spool).delete == ["1.server"]
    monkeypatch.setattr(fill, "fill", lambda *_: None)
    assert desk.pump()["note"]
