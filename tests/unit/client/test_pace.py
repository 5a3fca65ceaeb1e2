"""Bandwidth: which rate holds when, and that a stream keeps to it over any ten seconds, by a clock of our own."""

import bisect
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chasqui_client import config, errors, pace
from chasqui_client.pace import PAUSE, UNLIMITED, Bandwidth, Pace

MIB = float(1 << 20)
TOP = '[remotes.x]\nhost = "h"\n'


def _read(text: str) -> Bandwidth | None:
    return config.parse(TOP + text, Path("config.toml")).remotes["x"].bandwidth


def _limits(text: str) -> Bandwidth:
    found = _read(text)
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A wall clock with two changes a year, wherever the tests run; the rule is in the variable itself."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def _at(text: str, summer: int = -1) -> float:
    """Seconds since the epoch of a local time; summer: which of two hours that are called alike."""
    parsed = time.strptime(text, "%Y-%m-%d %H:%M:%S" if text.count(":") == 2 else "%Y-%m-%d %H:%M")
    return time.mktime((*parsed[:8], summer))


# -- which rate holds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "rate"), [
    ("20MiB/s", 20 * MIB), ("20MB/s", 20e6), ("1.5 MiB/s", 1.5 * MIB), ("500kB/s", 5e5), ("500KiB/s", 512e3),
    ("100Mbit/s", 12.5e6), ("1Gbit/s", 125e6), ("2000B/s", 2000.0), ("1GiB/s", float(1 << 30))])
def test_rates(text: str, rate: float) -> None:
    assert _limits('bandwidth = "%s"\n' % text) == Bandwidth(rate)


def test_without_a_limit_there_is_no_pace() -> None:
    assert _read("") is None
    assert _read('bandwidth = "unlimited"\nwindows = []\n') is None


@pytest.mark.parametrize(("text", "said"), [
    ('bandwidth = 20', "line 3: remotes.x.bandwidth: must be text"),
    ('bandwidth = "off"', 'line 3: .*must be "unlimited", in a window also "pause"'),
    ('bandwidth = "pause"', "only a window"),
    ('bandwidth = ""', "must be .unlimited."), ('bandwidth = "20"', "must be"), ('bandwidth = "20MB"', "must be"),
    ('bandwidth = "20iB/s"', "must be"), ('bandwidth = "-1MB/s"', "must be"), ('bandwidth = "0MB/s"', "from 1kB/s"),
    ('bandwidth = "999B/s"', "from 1kB/s"), ('bandwith = "1MB/s"', "unknown key bandwith"),
    ('windows = "08:00"', "must be a list"), ('windows = ["08:00"]', "windows: must be a table"),
    ('windows = [{from = "08:00", to = "18:00"}]', "windows.rate: missing"),
    ('windows = [{from = "08:00", rate = "1MB/s"}]', "windows.to: missing"),
    ('windows = [{from = "08:00", to = "18:00", rate = "off"}]', "windows.rate: must be"),
    ('windows = [{from = "8", to = "18:00", rate = "1MB/s"}]', "windows.from: must be a time"),
    ('windows = [{from = "08:00", to = "24:01", rate = "1MB/s"}]', "windows.to: must be a time"),
    ('windows = [{from = 8, to = "18:00", rate = "1MB/s"}]', "windows.from: must be text"),
    ('windows = [{from = "08:00", to = "08:00", rate = "1MB/s"}]', "whole day"),
    ('windows = [{from = "24:00", to = "08:00", rate = "1MB/s"}]', "whole day"),
    ('windows = [{days = "monday", from = "08:00", to = "18:00", rate = "1MB/s"}]', "windows.days: must be days"),
    ('windows = [{days = "mon-", from = "08:00", to = "18:00", rate = "1MB/s"}]', "windows.days: must be days"),
    ('windows = [{day = "mon", from = "08:00", to = "18:00", rate = "1MB/s"}]', "windows.day: unknown key"),
])
def test_mistakes_are_one_line(text: str, said: str) -> None:
    with pytest.raises(errors.BadConfig, match=said) as caught:
        _read(text + "\n")
    assert "\n" not in str(caught.value)


WORKDAYS = 'bandwidth = "20MB/s"\nwindows = [{days = "mon-fri", from = "08:00", to = "18:00", rate = "2MB/s"}]\n'


@pytest.mark.parametrize(("when", "rate"), [
    ("2026-11-23 07:59:59", 20e6), ("2026-11-23 08:00:00", 2e6), ("2026-11-23 17:59:59", 2e6),  # a Monday
    ("2026-11-23 18:00:00", 20e6), ("2026-11-27 12:00:00", 2e6), ("2026-11-28 12:00:00", 20e6)])
def test_a_window_is_half_open(when: str, rate: float) -> None:
    assert _limits(WORKDAYS).at(_at(when)) == rate


@pytest.mark.parametrize(("when", "rate"), [
    ("2026-11-27 21:59:59", 20e6), ("2026-11-27 22:00:00", UNLIMITED), ("2026-11-28 05:59:59", UNLIMITED),
    ("2026-11-28 06:00:00", 20e6), ("2026-11-28 23:00:00", 20e6), ("2026-11-27 03:00:00", 20e6)])
def test_a_window_over_midnight_belongs_to_the_day_it_begins_on(when: str, rate: float) -> None:
    night = 'bandwidth = "20MB/s"\nwindows = [{days = "fri", from = "22:00", to = "06:00", rate = "unlimited"}]\n'
    assert _limits(night).at(_at(when)) == rate


def test_over_midnight_at_the_end_of_the_week() -> None:
    sunday = 'windows = [{days = "sun", from = "23:00", to = "01:00", rate = "1MB/s"}]\n'
    assert [_limits(sunday).at(_at(when)) for when in
            ("2026-11-29 23:30", "2026-11-30 00:59", "2026-11-30 01:00", "2026-11-29 00:30")] == [
                1e6, 1e6, UNLIMITED, UNLIMITED]


def test_the_first_of_overlapping_windows_holds() -> None:
    both = _limits('windows = [{from = "12:00", to = "13:00", rate = "5MB/s"}, {from = "08:00", to = "24:00", '
                   'rate = "1MB/s"}]\n')
    assert [both.at(_at("2026-11-23 " + hour)) for hour in ("11:59", "12:00", "13:00", "23:59", "00:00")] == [
        1e6, 5e6, 1e6, 1e6, UNLIMITED]


def test_days() -> None:
    found = {days: _limits('windows = [{days = "%s", from = "00:00", to = "24:00", rate = "1MB/s"}]\n' % days
                           ).windows[0].days for days in ("mon-sun", "sat, sun", "Fri-Mon", "wed", "mon,wed-thu")}
    assert found == {"mon-sun": frozenset(range(7)), "sat, sun": {5, 6}, "Fri-Mon": {4, 5, 6, 0}, "wed": {2},
                     "mon,wed-thu": {0, 2, 3}}


def test_windows_as_tables_of_their_own() -> None:
    config_text = '[[remotes.x.windows]]\nfrom = "08:00"\nto = "18:00"\nrate = "2MB/s"\n'
    assert _limits(config_text) == Bandwidth(UNLIMITED, (pace.Window(frozenset(range(7)), 480, 1080, 2e6),))


def test_when_clocks_change() -> None:
    night = _limits('windows = [{from = "02:15", to = "02:45", rate = "1MB/s"}]\n')
    # In March the hour from two to three is left out, and the window with it; in October it comes twice.
    march, october = _at("2026-03-29 01:00"), _at("2026-10-25 01:00")
    assert {night.at(march + 60 * minute) for minute in range(180)} == {UNLIMITED}
    assert sum(night.at(october + 60 * minute) == 1e6 for minute in range(240)) == 60
    twice = [night.at(_at("2026-10-25 02:30", summer)) for summer in (1, 0)]
    assert twice == [1e6, 1e6] and _at("2026-10-25 02:30", 0) - _at("2026-10-25 02:30", 1) == 3600
    over = _limits('windows = [{days = "sat", from = "22:00", to = "06:00", rate = "1MB/s"}]\n')
    began = _at("2026-10-24 22:00")
    assert [over.at(began + 3600 * hours) for hours in (0, 8.99, 9)] == [1e6, 1e6, UNLIMITED]


def test_when_a_pause_is_over() -> None:
    paused = _limits('windows = [{days = "fri-mon", from = "00:00", to = "24:00", rate = "pause"}]\n')
    assert paused.at(_at("2026-11-28 12:00:30")) == PAUSE
    assert paused.resumes(_at("2026-11-28 12:00:30")) == _at("2026-12-01 00:00")
    for_ever = _limits('windows = [{from = "00:00", to = "24:00", rate = "pause"}]\n')
    assert for_ever.resumes(_at("2026-11-28 12:00")) is None
    assert "config.toml" in pace.until(for_ever)


# -- keeping to it -----------------------------------------------------------------------------------------------------


class Clock:
    """Time that goes by in sleeps, each of them a little too long, and while something else is done."""

    def __init__(self, late: float = 0.0) -> None:
        self.now, self.late, self.slept = 1000.0, late, 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + self.late
        self.slept += seconds


def _stream(clock: Clock, kept: Pace, seconds: float, work: float = 0.0,
            take: Callable[[int], int] = lambda most: most) -> list[tuple[float, int]]:
    """(when, bytes) of all that passes in so much time; `work` seconds go by at each piece."""
    passed, end = [], clock.now + seconds
    while clock.now < end:
        amount = take(kept.wait())
        passed.append((clock.now, amount))
        kept.sent(amount)
        clock.now += work
    return passed


def _tens(passed: list[tuple[float, int]], seconds: float = 10.0) -> list[float]:
    """Bytes a second over every span of `seconds` that begins with a piece."""
    times = [at for at, _ in passed]
    sums = [0, *itertools.accumulate(amount for _, amount in passed)]
    return [(sums[bisect.bisect_left(times, start + seconds)] - sums[bisect.bisect_left(times, start)]) / seconds
            for start in times if start + seconds <= times[-1]]


@pytest.mark.parametrize("rate", [1000.0, 50e3, 2 * MIB, 20 * MIB])
@pytest.mark.parametrize("late", [0.0, 0.004])
def test_any_ten_seconds_are_within_ten_percent(rate: float, late: float) -> None:
    clock = Clock(late)
    spans = _tens(_stream(clock, Pace(lambda: rate, 0, clock, clock.sleep), 25.0, 1e-4))
    assert spans and all(0.9 * rate <= found <= 1.1 * rate for found in spans), (min(spans), max(spans))


def test_what_was_missed_is_not_made_up_for_at_once() -> None:
    clock = Clock()
    kept = Pace(lambda: 1e6, 0, clock, clock.sleep)
    before = _stream(clock, kept, 12.0)
    clock.now += 30.0
    after = _stream(clock, kept, 12.0)
    assert all(found <= 1.1e6 for found in _tens(before + after))
    assert all(found >= 0.9e6 for found in _tens(after))


def test_small_messages_do_not_wait() -> None:
    clock = Clock()
    kept = Pace(lambda: 50e3, 64 << 10, clock, clock.sleep)
    for _ in range(8):
        kept.wait()
        kept.received(300)
    assert clock.slept == 0.0


def test_a_change_under_way_holds_within_a_second() -> None:
    clock = Clock()
    start = clock.now
    kept = Pace(lambda: 20e6 if clock.now < start + 20 else 1e6, 0, clock, clock.sleep)
    passed = _stream(clock, kept, 45.0)
    fast = _tens([(at, amount) for at, amount in passed if at < start + 20])
    slow = _tens([(at, amount) for at, amount in passed if at >= start + 21.1])
    assert all(18e6 <= found <= 22e6 for found in fast) and all(0.9e6 <= found <= 1.1e6 for found in slow)
    # What passed just before, at the old rate, is not paid for at the new one: that would be a silence.
    assert max(b - a for (a, _), (b, _) in zip(passed, passed[1:], strict=False)) < 1.0


def test_faster_again_and_without_a_limit() -> None:
    clock = Clock()
    start = clock.now
    kept = Pace(lambda: 1e3 if clock.now < start + 5 else UNLIMITED, 0, clock, clock.sleep)
    _stream(clock, kept, 5.0)
    clock.now += 1.0
    kept.wait()
    slept = clock.slept
    for _ in range(1000):
        kept.sent(kept.wait())
    assert clock.slept == slept and kept.wait() == pace.BLOCK


def test_what_the_way_holds_unread_is_paid_for_as_it_crosses() -> None:
    """The wire fills what is ahead of us at once and then follows our reading: its ten seconds are right, too."""
    rate, ahead = 2 * MIB, 2 << 20
    clock = Clock()
    kept, wire, read, start = Pace(lambda: rate, ahead, clock, clock.sleep), 0, 0, clock.now
    crossed = [(clock.now, ahead)]
    while clock.now < start + 25:
        amount = kept.wait()
        read += amount
        kept.received(amount)
        crossed.append((clock.now, amount))
        wire = ahead + read
    spans = _tens(crossed)
    assert all(0.9 * rate <= found <= 1.1 * rate for found in spans), (min(spans), max(spans))
    assert wire == pytest.approx(25 * rate, rel=0.05)


def test_a_pause_that_begins_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = _limits('bandwidth = "1MB/s"\nwindows = [{days = "mon", from = "08:00", to = "09:00", rate = "pause"}]\n')
    remote = config.Remote("hpc", "h", bandwidth=limits)
    wall, clock = [_at("2026-11-23 07:59:58")], Clock()
    monkeypatch.setattr(time, "time", lambda: wall[0])
    kept = pace.of_session(remote, limits, 0, clock)
    clock.now += 1.5
    kept.wait()
    wall[0] += 2
    clock.now += 1.5
    with pytest.raises(errors.TransfersPaused, match="hpc: no transfers until Mon 09:00"):
        kept.wait()
    # One that begins in the pause carries no content: its few messages go through.
    begun = pace.of_session(remote, limits, 0, clock)
    clock.now += 5
    assert begun.wait() == pace.BLOCK
