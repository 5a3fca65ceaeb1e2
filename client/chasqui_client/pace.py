"""How fast bytes may go at a time of the week, and what keeps a stream of them to that pace.

    bandwidth = "20MiB/s"
    windows = [{days = "mon-fri", from = "08:00", to = "18:00", rate = "2MiB/s"}]

Times are the wall clock's of this computer, [from, to). A window over midnight belongs to the day on which it begins.
Of windows that overlap the first in the list holds, outside of all of them `bandwidth`. When clocks change nothing is
reckoned: an hour that does not exist has no windows, one that comes twice has its windows twice.

There is no "off": to some it means that the limit is off, to others the transfer. A rate is "unlimited" or "pause".
"""

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import errors
from .fields import dataclass
from .tables import Table

if TYPE_CHECKING:
    from .config import Remote

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")  # as struct_time counts them
PAUSE, UNLIMITED = 0.0, float("inf")
SLOWEST = 1000.0  # bytes a second; below, single frames last longer than either side waits for a byte
BURST = 0.5  # seconds of the rate that may be made up for after a wait: 5 % of ten seconds
FIRST = 0.1  # seconds of the rate that a session may begin with: the few messages of most syncs
STEP = 0.05  # seconds of the rate that pass as one piece
BLOCK = 256 << 10
_LEAST = 512
_SHORTEST = 0.001  # seconds; less than the clock can tell apart would be for ever
_WORDS = {"pause": PAUSE, "unlimited": UNLIMITED}
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?) ?([kKMG]?)(i?)(B|bit)/s\Z")
_TIME = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)\Z")
_DAY = 24 * 60


@dataclass(frozen=True)
class Window:
    """A time of the week with its own rate: days it begins on (0 is Monday), minutes of the day, bytes a second."""

    days: frozenset[int]
    start: int
    end: int
    rate: float

    def holds(self, day: int, minute: int) -> bool:
        """Whether it holds at this minute of this day."""
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        return day in self.days and minute >= self.start or (day - 1) % 7 in self.days and minute < self.end


@dataclass(frozen=True)
class Bandwidth:
    """What a remote's configuration allows, in bytes a second."""

    rate: float = UNLIMITED
    windows: tuple[Window, ...] = ()

    def at(self, when: float) -> float:
        """The rate at a time (seconds since the epoch), PAUSE and UNLIMITED included."""
        local = time.localtime(when)
        minute = local.tm_hour * 60 + local.tm_min
        for window in self.windows:
            if window.holds(local.tm_wday, minute):
                return window.rate
        return self.rate

    def resumes(self, when: float) -> float | None:
        """The first minute from `when` on that is no pause; None where a week has none."""
        minutes = (when - when % 60 + 60 * ahead for ahead in range(8 * _DAY))
        return next((at for at in minutes if self.at(at) != PAUSE), None)


class Pace:
    """Keeps a stream to a rate that may change under way. Half of a session speaks at a time: one pace serves both."""

    def __init__(self, rate: Callable[[], float], ahead: int = 0, clock: Callable[[], float] = time.monotonic,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        """rate: bytes a second now. ahead: bytes that the way here holds while we don't read.

        Those cross the wire as fast as it can, whenever we read: they are taken for passed beside what we read first.
        """
        self._rate, self._ahead, self._clock, self._sleep = rate, ahead, clock, sleep
        # A time and not an amount of bytes: what is due keeps its meaning when the rate changes.
        self._free, self._looked = clock() - FIRST, clock()
        self._now = UNLIMITED
        self._look(clock())

    def wait(self) -> int:
        """Return when something may pass, with how many bytes of it may at once."""
        now = self._clock()
        while self._free > now:
            self._sleep(max(_SHORTEST, self._free - now))
            now = self._clock()
        self._free = max(self._free, now - BURST)
        if now - self._looked >= 1:
            self._look(now)
        return int(max(_LEAST, min(BLOCK, self._now * STEP)))

    def _look(self, now: float) -> None:
        self._looked = now
        # A pause is the business of who begins and ends sessions: what little a session says in one needs no pace.
        self._now = self._rate() or self._now

    def sent(self, count: int) -> None:
        """So many bytes went out."""
        self._free += count / self._now

    def received(self, count: int) -> None:
        """So many bytes were read."""
        unread = min(count, self._ahead)
        self._ahead -= unread
        self._free += (count + unread) / self._now


def of_session(remote: "Remote", bandwidth: Bandwidth, ahead: int,
               clock: Callable[[], float] = time.monotonic) -> Pace:
    """The pace of a session that begins now. A pause that begins during it ends it: raises TransfersPaused."""
    paused = bandwidth.at(time.time()) == PAUSE

    def rate() -> float:
        now = bandwidth.at(time.time())
        if now == PAUSE and not paused:
            raise errors.TransfersPaused(remote=remote.name, until=until(bandwidth))
        return now

    return Pace(rate, ahead, clock)


def of_command(bandwidth: Bandwidth, ahead: int) -> Pace:
    """The pace of a command that somebody typed, or of a deployment: a pause does not stop it, then it goes as fast as
    outside of all windows."""
    return Pace(lambda: bandwidth.at(time.time()) or bandwidth.rate, ahead)


def until(bandwidth: Bandwidth) -> str:
    """When the pause that holds now is over, in words."""
    end = bandwidth.resumes(time.time())
    return "the windows in config.toml change" if end is None else time.strftime("%a %H:%M", time.localtime(end))


# -- reading -----------------------------------------------------------------------------------------------------------


def read(table: Table) -> Bandwidth | None:
    """The keys `bandwidth` and `windows` of a remote; None where they limit nothing. Raises BadConfig."""
    rate = _rate(table, "bandwidth")
    if rate == PAUSE:
        raise table.bad("bandwidth", "only a window can be a pause")
    listed = table.values.pop("windows", [])
    if not isinstance(listed, list):
        raise table.bad("windows", "must be a list, such as " + _SUCH)
    windows = tuple(_window(Table(table.reader, (*table.where, "windows"), item)) for item in listed)
    return Bandwidth(rate, windows) if windows or rate < UNLIMITED else None


_SUCH = '[{days = "mon-fri", from = "08:00", to = "18:00", rate = "2MiB/s"}]'


def _window(table: Table) -> Window:
    for key in ("from", "to", "rate"):
        if key not in table.values:
            raise table.bad(key, "missing in a window; this is one: " + _SUCH)
    days, start, end = _days(table), _minute(table, "from"), _minute(table, "to")
    if start == end or start == _DAY:
        raise table.bad("from", 'a window ends at another time than it begins; a whole day is from "00:00" to "24:00"')
    window = Window(days, start, end, _rate(table, "rate"))
    table.done("days, from, to, rate")
    return window


def _rate(table: Table, key: str) -> float:
    text = table.text(key, "unlimited")
    if text in _WORDS:
        return _WORDS[text]
    found = _RATE.match(text)
    amount, sign, binary, unit = found.groups() if found else ("0", "", "", "B")
    unit_size = float((1024 if binary else 1000) ** " KMG".index(sign.upper() or " "))
    rate = float(amount) * unit_size / (8 if unit == "bit" else 1)
    if rate < SLOWEST or binary and not sign:
        raise table.bad(key, 'must be "unlimited", in a window also "pause", or a rate from 1kB/s on, such as "20MiB/s"'
                             ' or "100Mbit/s"')
    return rate


def _minute(table: Table, key: str) -> int:
    found = _TIME.match(table.text(key, "08:00"))
    minute = int(found[1]) * 60 + int(found[2]) if found else _DAY + 1
    if minute > _DAY:
        raise table.bad(key, 'must be a time from "00:00" to "24:00"')
    return minute


def _days(table: Table) -> frozenset[int]:
    """"mon-fri", "sat,sun", "fri-mon"; every day where nothing is said."""
    days: set[int] = set()
    for part in table.text("days", "mon-sun").replace(" ", "").lower().split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or dash and last not in DAYS:
            raise table.bad("days", 'must be days such as "mon-fri" or "sat,sun": %s' % " ".join(DAYS))
        at, end = DAYS.index(first), DAYS.index(last or first)
        days.update((at + step) % 7 for step in range((end - at) % 7 + 1))
    return frozenset(days)
