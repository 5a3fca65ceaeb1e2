"""A client that takes nothing for long: one that says that it is there is waited for, no other."""

import os
import select
import threading
import time
from contextlib import contextmanager

import pytest

from chasqui_agent import wire
from chasqui_agent.channel import Channel

MUCH = b"x" * (1 << 20)  # more than pipes hold


@pytest.fixture
def ends():
    """(the agent's channel, what the client reads from, what it writes to)"""
    (source, to_agent), (from_agent, sink) = os.pipe(), os.pipe()
    fds = {source, to_agent, from_agent, sink}
    yield Channel(source, sink), from_agent, to_agent
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass  # the test has closed it


@contextmanager
def client(does):
    thread = threading.Thread(target=does)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def drained(fd, size):
    """`size` bytes; fewer where nothing more comes."""
    got = b""
    while len(got) < size and select.select([fd], [], [], 20)[0]:
        got += os.read(fd, 1 << 20)
    return got


def test_a_client_that_says_that_it_works_is_waited_for(ends):
    channel, from_agent, to_agent = ends
    channel.stall = 1.5
    got = []

    def works():
        for _ in range(60):
            os.write(to_agent, wire.frame(wire.NOTHING))
            time.sleep(0.05)
        got.append(drained(from_agent, len(wire.frame(wire.DATA, MUCH))))
        os.write(to_agent, wire.message("end", more=True))

    with client(works):
        channel.send(wire.frame(wire.DATA, MUCH))
        channel.flush()
        assert channel.message() == {"m": "end", "more": True}  # what came meanwhile is still read in its order
    assert got == [wire.frame(wire.DATA, MUCH)] and not channel.broken


@pytest.mark.parametrize("ends_its_pipe", [False, True])
def test_a_client_that_says_nothing_is_not(ends, ends_its_pipe):
    channel, _, to_agent = ends
    channel.stall = 0.3
    os.write(to_agent, wire.frame(wire.NOTHING))
    if ends_its_pipe:
        os.close(to_agent)
    with pytest.raises(wire.Closed, match="takes no data"):
        channel.send(wire.frame(wire.DATA, MUCH))
        channel.flush()
    assert channel.broken


def test_a_client_that_never_stops_talking_fills_no_memory(ends):
    channel, _, to_agent = ends
    channel.stall = 0.5
    over = threading.Event()
    os.set_blocking(to_agent, False)

    def talks():
        while not over.is_set():
            try:
                os.write(to_agent, wire.frame(wire.NOTHING) * 400)
            except BlockingIOError:
                time.sleep(0.01)

    with client(talks):
        try:
            with pytest.raises(wire.Closed, match="takes no data"):
                channel.send(wire.frame(wire.DATA, MUCH))
                channel.flush()
        finally:
            over.set()
    assert len(channel._buffer) < 2 * wire.CHUNK


def test_signs_of_life_alone_are_not_enough_for_ever(ends, monkeypatch):
    channel, _, to_agent = ends
    monkeypatch.setattr("chasqui_agent.channel.WORKING_FOR", 0.5)
    over = threading.Event()

    def breathes():
        while not over.wait(0.02):
            os.write(to_agent, wire.frame(wire.NOTHING))

    with client(breathes):
        try:
            with pytest.raises(wire.Closed, match="takes no data"):
                channel.send(wire.frame(wire.DATA, MUCH))
                channel.flush()
        finally:
            over.set()
