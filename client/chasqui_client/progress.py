"""How far a transfer is: one line that rewrites itself on a terminal, a plain line now and then elsewhere."""

import os
import sys
import time
from typing import TextIO

from .command import number, size

_TERMINAL, _ELSEWHERE = 0.2, 10.0  # seconds between two lines
EVERY = "CHASQUI_PROGRESS"  # in the environment: seconds between two lines, each behind MARK, for who reads them
MARK = "@ "


class Progress:
    """Counts bytes and files of one direction at a time."""

    def __init__(self, shown: bool, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        told = float(os.environ.get(EVERY) or 0)
        self.shown = shown or told > 0
        self.terminal = shown and not told and self.stream.isatty()
        self._mark, self._every = (MARK, told) if told else ("", _TERMINAL if self.terminal else _ELSEWHERE)
        self._what = ""
        self._drawn = False
        self.total = 0  # bytes; may grow while they come

    def begin(self, what: str, total: int) -> None:
        """A transfer of `total` bytes begins."""
        self._what, self.total, self._bytes, self._files = what, total, 0, 0
        self._started = self._last = time.monotonic()

    def advance(self, amount: int, files: int = 0) -> None:
        """Some of it is done."""
        if not self.shown or not self._what:
            return
        self._bytes += amount
        self._files += files
        if time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self._draw()

    def _draw(self) -> None:
        line = self._line()
        self.stream.write("\r\x1b[K" + line if self.terminal else self._mark + line + "\n")
        self.stream.flush()
        self._drawn = self.terminal

    def _line(self) -> str:
        seconds = max(0.001, time.monotonic() - self._started)
        rate = self._bytes / seconds
        said = "%s %s of %s, %s files, %s/s" % (self._what, size(self._bytes), size(self.total), number(self._files),
                                                size(int(rate)))
        if 0 < self._bytes < self.total and rate > 0:
            left = int((self.total - self._bytes) / rate)
            said += ", %d:%02d left" % (left // 60, left % 60)
        return said

    def end(self) -> None:
        """Leave the terminal's line clean."""
        if self._drawn:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
        self._drawn, self._what = False, ""
