"""How far several syncs are: a line for each, which rewrite themselves on a terminal; plain lines elsewhere."""

import os
from collections.abc import Iterable
from typing import TextIO

from ..command import clean


class Board:
    """The lines of all remotes."""

    def __init__(self, names: Iterable[str], stream: TextIO) -> None:
        """stream: where they go; the terminal's are taken away in the end, the others stay."""
        self.stream, self.terminal = stream, stream.isatty()
        self._lines = dict.fromkeys(names, "")
        self._drawn = 0

    def tell(self, name: str, text: str) -> None:
        """What a remote is at."""
        self._lines[name] = text
        if self.terminal:
            self._draw()
        else:
            self.stream.write("%s\n" % self._line(name))
            self.stream.flush()

    def done(self, name: str) -> None:
        """A remote needs no line any more."""
        self.end()
        del self._lines[name]

    def end(self) -> None:
        """Leave the terminal as it was before the lines."""
        if self._drawn:
            self.stream.write("\x1b[%dA\r\x1b[J" % self._drawn)
            self.stream.flush()
        self._drawn = 0

    def _draw(self) -> None:
        back = "\x1b[%dA\r" % self._drawn if self._drawn else ""
        width = self._width()
        self.stream.write(back + "".join("\x1b[K%s\n" % self._line(name)[:width] for name in self._lines))
        self.stream.flush()
        self._drawn = len(self._lines)

    def _line(self, name: str) -> str:
        return clean("%s: %s" % (name, self._lines[name] or "..."))

    def _width(self) -> int:
        """A line that wraps would be two to rewrite."""
        try:
            return max(20, (os.get_terminal_size(self.stream.fileno()).columns or 80) - 1)
        except OSError:
            return 79
