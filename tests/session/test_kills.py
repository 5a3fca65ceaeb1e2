"""The agent killed at each of the session's fault points: the next sync finishes the work, once."""

import os
import secrets

import pytest

from chasqui_agent import channel, deliver, fault, receive, serve
from chasqui_client import errors
from session.desk import Desk

MODULES = (channel, deliver, receive, serve)  # their points are registered by importing them
POINTS = sorted(name for name in fault.POINTS if name.split(".")[0] in [m.__name__.split(".")[1] for m in MODULES])


def test_killed_at_every_point(tmp_path, monkeypatch):
    desk = Desk(tmp_path)
    first, = desk.add(desk.folder("first", "echo result >out; head -c 100000 /dev/zero >large"))
    desk.finish()
    for number, point in enumerate(POINTS):
        something_in_every_turn(desk, first, number)
        once = tmp_path / ("once%d" % number)
        with monkeypatch.context() as patch:
            patch.setenv("CHASQUI_FAULT", point)
            patch.setenv("CHASQUI_FAULT_ONCE", str(once))
            with pytest.raises((errors.ConnectionLost, errors.NoGreeting)):
                desk.sync()
        assert once.exists(), "never reached: " + point
        desk.finish()
    assert desk.lines() == sorted(["first"] + ["job%d" % number for number in range(len(POINTS))])
    for job in desk.jobs():
        desk.completed(job)


def something_in_every_turn(desk, first, number):
    """A job to hand over, an operation, and results to bring home."""
    with desk.ledger() as ledger, ledger.transaction():
        ledger.db.execute("UPDATE jobs SET results_state = 'NONE' WHERE id = ?", (first.id,))
        ledger.db.execute("DELETE FROM results_files WHERE job = ?", (first.id,))
        ledger.db.execute("INSERT INTO ops(id, remote, op, job, attempt, requested) VALUES (?,?,?,?,?,?)",
                          (secrets.token_hex(8), "here", "hold", first.id, 1, "2026-01-01T00:00:00Z"))
    os.rename(first.results_path, first.results_path + b".%d" % number)
    desk.add(desk.folder("job%d" % number, "echo out >out", **{"in.dat": b"%d" % number}))
