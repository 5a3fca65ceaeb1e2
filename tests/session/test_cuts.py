"""A session that breaks at each message boundary, in both directions: nothing half-published, lost or run twice."""

import os
import shutil
import sys

import pytest

from agent.agentroot import until
from chasqui_agent.spool import Spool
from chasqui_client import deploy, errors, launcher
from chasqui_client.child import Child
from chasqui_client.messages import Handler, JobOffer, Offer
from chasqui_client.session import Session, new_nonce
from chasqui_client.transport import Channel
from session.desk import CutLocal, Desk, unbundled


@pytest.mark.parametrize("direction", ["sent", "received"])
def test_cut_at_every_message(tmp_path, monkeypatch, direction):
    desk = Desk(tmp_path).impatient()
    first, = desk.add(desk.folder("first", "echo result >out"))
    desk.finish()
    for number in range(60):
        forget_results(desk, first)
        job, = desk.add(desk.folder("job%d" % number, "echo out >out", **{"in.dat": b"%d" % number, "other": b"o"}))
        line = CutLocal(**{direction: number})
        with monkeypatch.context() as patch:
            patch.setattr(deploy, "transport_to", lambda *_, line=line: line)
            desk_sync(desk)
        assert Spool(str(desk.root)).known(job.id, 1) or not os.path.exists(desk.root / "work" / job.id)
        desk.finish()
        assert desk.completed(job)
        assert desk.completed(first)
        if not line.was_cut:
            break
    assert 8 < number < 59
    assert desk.lines() == sorted(["first"] + ["job%d" % n for n in range(number + 1)])


def forget_results(desk, job):
    """As if this finished job's results had never come home, so that every session has all six turns."""
    with desk.ledger() as ledger, ledger.transaction():
        ledger.db.execute("UPDATE jobs SET results_state = 'NONE' WHERE id = ?", (job.id,))
        ledger.db.execute("DELETE FROM results_files WHERE job = ?", (job.id,))
    shutil.rmtree(job.results_path, ignore_errors=True)


def desk_sync(desk):
    try:
        desk.sync()
    except errors.ConnectionLost:
        pass


class Stop(Exception):
    """The client does nothing more."""


def test_an_agent_that_falls_silent(tmp_path, monkeypatch):
    desk = Desk(tmp_path)
    (desk.root / "agent").mkdir(parents=True)
    (desk.root / "agent/python").write_text(sys.executable + "\n")
    (desk.root / "agent/current").write_text("import time; time.sleep(30)")
    monkeypatch.setenv("CHASQUI_SILENCE", "0.5")
    with pytest.raises(errors.ConnectionLost):
        desk.sync()


def test_a_client_that_falls_silent_leaves_what_it_committed(tmp_path, monkeypatch):
    """The agent gives up by itself, and publishes what was committed."""
    desk = Desk(tmp_path).deploy()
    monkeypatch.setenv("CHASQUI_IDLE", "0.5")
    unbundled(monkeypatch)
    jobs = desk.add(desk.folder("one"), desk.folder("two"))
    with desk.ledger() as ledger:
        offers = [JobOffer(job.id, 1, ledger.files(job.id, 1), {"name": job.name, "script": "job.sh"}) for job in jobs]
        hello = {"client": "0", "ledger": ledger.id, "root_uuid": "", "cursor": 0, "config": None}

    class Opens(Handler):
        def open(self, offer, file):
            if offer.job == jobs[1].id:
                session._packer.flush()
                raise Stop
            return open(file.source, "rb")

    nonce = new_nonce()
    channel = Channel(Child(["/bin/sh", "-c", launcher.agent(desk.remote.root, ["serve", "--nonce", nonce])]))
    session = Session(channel, nonce, Opens())
    with pytest.raises(Stop):
        session.run(Offer(hello, [(offers, False)]))
    until(lambda: channel.process.poll() is not None, "the end of an agent that is not spoken to")
    assert channel.process.poll() == 1
    channel.close()
    assert Spool(str(desk.root)).known(jobs[0].id, 1) == "waiting"
    assert Spool(str(desk.root)).known(jobs[1].id, 1) == ""
    desk.finish()
    assert desk.lines() == ["one", "two"]
