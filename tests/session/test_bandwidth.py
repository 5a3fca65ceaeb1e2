"""Bandwidth over real pipes: what the other side sees pass in so much time, and whole syncs at a pace."""

import os
import shutil
import sys
import time

import pytest

from chasqui_agent import journal
from chasqui_client import build, deploy, errors, states
from chasqui_client.child import Child
from chasqui_client.fields import replace
from chasqui_client.pace import PAUSE, Bandwidth, Pace, Window
from chasqui_client.transport import Channel, Local
from session.desk import Desk

# The far end, which notes how much had passed it when.
FAR = '''
import os, sys, time
notes, size = open(sys.argv[2], "w"), int(sys.argv[3])
passed = 0
while passed < size:
    if sys.argv[1] == "up":
        count = len(os.read(0, 65536))
    else:
        count = os.write(1, b"x" * min(65536, size - passed))
    passed += count
    notes.write("%.6f %d\\n" % (time.monotonic(), passed))
'''
EVERY_DAY = frozenset(range(7))


class Far:
    """A channel at a pace to a program that counts."""

    def __init__(self, path, direction, size, rate):
        self.notes = path / "notes"
        (path / "far.py").write_text(FAR)
        self.channel = Channel(Child([sys.executable, str(path / "far.py"), direction, str(self.notes), str(size)]))
        self.channel.pace = Pace(rate, Local.ahead)
        self.size = size

    def up(self):
        self.channel.write(b"x" * self.size)

    def down(self):
        left = self.size
        while left:
            left -= len(self.channel.read(min(left, 100_000)))

    def passed(self):
        """(when, bytes so far), once the program has ended."""
        assert self.channel.close(60.0) == 0
        rows = [line.split() for line in self.notes.read_text().splitlines()]
        return [(float(at), int(total)) for at, total in rows]


def _spans(passed, seconds):
    """Bytes a second over each span of `seconds`, one beginning every tenth of a second or so."""
    found, first = [], passed[0][0]
    while first + seconds <= passed[-1][0]:
        inside = [total for at, total in passed if first <= at < first + seconds]
        found.append((inside[-1] - inside[0]) / seconds)
        first += 0.1
    return found


@pytest.mark.parametrize("direction", ["up", "down"])
def test_the_other_side_sees_the_pace(tmp_path, direction, size):
    rate, seconds = 2e6, 13.0 if size.long else 3.0
    far = Far(tmp_path, direction, int(rate * seconds), lambda: rate)
    getattr(far, direction)()
    spans = _spans(far.passed(), 10.0 if size.long else 2.0)
    slack = 0.1 if size.long else 0.25
    assert spans
    assert all((1 - slack) * rate <= found <= (1 + slack) * rate for found in spans), (min(spans), max(spans))


@pytest.mark.parametrize("direction", ["up", "down"])
def test_another_rate_in_the_middle(tmp_path, direction):
    start = time.monotonic()
    far = Far(tmp_path, direction, 10_000_000, lambda: 4e5 if time.monotonic() < start + 2 else 4e6)
    getattr(far, direction)()
    passed = far.passed()
    assert max((total for at, total in passed if at < start + 1.8), default=0) < 1.2e6
    late = [(at, total) for at, total in passed if at > start + 3.1]  # a new rate is seen within a second
    assert not late or (late[-1][1] - late[0][1]) > 1e6 * (late[-1][0] - late[0][0])
    assert passed[-1][1] == 10_000_000


def test_slow_is_no_silence(tmp_path, monkeypatch):
    """Both sides give up after a second without a byte; a sync at 8 kB/s takes several, and brings all over."""
    monkeypatch.setenv("CHASQUI_SILENCE", "1.5")
    monkeypatch.setenv("CHASQUI_IDLE", "1.5")
    monkeypatch.setenv("CHASQUI_NOP", "0.3")
    desk = Desk(tmp_path).deploy()
    job, = desk.add(desk.folder("slow", "cp in.dat out.dat", **{"in.dat": os.urandom(30_000)}))
    desk.remote = replace(desk.remote, bandwidth=Bandwidth(10e3))
    start = time.monotonic()
    assert desk.sync().uploaded == 1
    assert time.monotonic() - start > 2.5
    while not desk.job(job).ended:
        desk.sync(download=False)
    start = time.monotonic()
    desk.sync()
    assert time.monotonic() - start > 2.5
    desk.completed(job)
    assert (tmp_path / "jobs/slow/results/out.dat").read_bytes() == (tmp_path / "jobs/slow/in.dat").read_bytes()


def test_a_pause_lets_news_through_and_no_content(tmp_path):
    desk = Desk(tmp_path).deploy()
    unlimited = desk.remote
    paused = replace(desk.remote, bandwidth=Bandwidth(windows=(Window(EVERY_DAY, 0, 24 * 60, PAUSE),)))
    first, = desk.add(desk.folder("first", "echo out >out"))
    desk.sync()
    second, = desk.add(desk.folder("second"))
    desk.remote = paused
    while not desk.job(first).ended:
        report = desk.sync()
    assert desk.job(first).state == states.COMPLETED and desk.job(second).state == states.QUEUED_LOCAL
    assert (report.uploaded, report.results_files) == (0, 0)
    assert any("no transfers until" in note for note in report.notes)
    assert not (tmp_path / "jobs/first/results").exists()
    desk.remote = unlimited
    desk.finish()
    assert desk.lines() == ["first", "second"]


def test_a_pause_that_begins_under_way_costs_nothing(tmp_path):
    desk = Desk(tmp_path).deploy()
    job, = desk.add(desk.folder("cut", "cp in.dat out", **{"in.dat": os.urandom(300_000)}))
    began, plain = time.monotonic(), desk.remote

    class Soon(Bandwidth):
        def at(self, when):
            return 50e3 if time.monotonic() < began + 1.5 else PAUSE

    desk.remote = replace(desk.remote, bandwidth=Soon())
    with pytest.raises(errors.TransfersPaused):
        desk.sync()
    assert desk.job(job).state == states.QUEUED_LOCAL
    desk.remote = plain
    desk.finish()
    desk.completed(job)
    assert desk.lines() == ["cut"]


def _seconds(what):
    start = time.monotonic()
    what()
    return time.monotonic() - start


def test_a_deployment_keeps_to_the_pace_and_a_pause_does_not_stop_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CHASQUI_SILENCE", "1.5")
    rate = len(build.build_pyz()) / 3.0
    paced = Desk(tmp_path / "paced")
    paced.remote = replace(paced.remote, bandwidth=Bandwidth(rate))
    assert _seconds(paced.deploy) > 2.5
    assert paced.sync().deployed == "", "it is there, and whole"
    paused = Desk(tmp_path / "paused")
    paused.remote = replace(paused.remote, bandwidth=Bandwidth(rate, (Window(EVERY_DAY, 0, 24 * 60, PAUSE),)))
    assert _seconds(paused.deploy) > 2.5, "as fast as outside of the window"
    paused.remote = replace(paused.remote, bandwidth=Bandwidth(windows=(Window(EVERY_DAY, 0, 24 * 60, PAUSE),)))
    shutil.rmtree(paused.root / "agent")
    assert paused.sync().deployed == str(paused.root)


def test_what_the_agent_says_comes_at_the_pace(tmp_path):
    desk = Desk(tmp_path).deploy()
    with open(desk.root / "log" / "0000000000000000.000001.seg", "wb") as stream:
        stream.writelines(journal.encode({"t": "2026-01-01T00:00:00Z", "ev": "pumped", "n": n}) for n in range(2000))
    lines = []
    deploy.agent_command(desk.home, desk.remote, ["log"], lines.append)
    size = sum(len(line) + 1 for line in lines)
    assert len(lines) >= 2000
    desk.remote = replace(desk.remote, bandwidth=Bandwidth(size / 3.0))
    again = []
    assert _seconds(lambda: deploy.agent_command(desk.home, desk.remote, ["log"], again.append)) > 2.5
    assert again == lines
