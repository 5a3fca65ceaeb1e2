"""TOML tables taken apart key by key, so that a wrong type or an unknown key is one line with file and line number."""

import re
import tomllib
from pathlib import Path
from typing import Any

from chasqui_agent import wire

from . import errors

MOST_BYTES = 1 << 50  # of any limit; the agent takes no more
BYTES = "a whole number of bytes from 0 to %s" % format(MOST_BYTES, ",")


def read_toml(text: str, path: Path) -> "Table":
    """The top table of a TOML text that was read from `path`. Raises BadConfig."""
    try:
        values = tomllib.loads(text)
    except ValueError as error:  # tomllib's own, and int's for a number of thousands of digits
        raise errors.BadConfig("not valid TOML: %s" % wire.printable(str(error)), where=path) from error
    return Table(Reader(text, path), (), values)


class Table:
    """One table of the file, its keys taken out one by one; what is left at the end is unknown."""

    def __init__(self, reader: "Reader", where: tuple[str, ...], values: Any) -> None:
        self.reader, self.where = reader, where
        if not isinstance(values, dict):
            raise reader.bad(where[:-1], where[-1], "must be a table")
        self.values = dict(values)

    def bad(self, key: str, why: str) -> errors.BadConfig:
        return self.reader.bad(self.where, key, why)

    def table(self, key: str) -> "Table":
        return Table(self.reader, (*self.where, key), self.values.pop(key, {}))

    def text(self, key: str, default: str) -> str:
        value = self.values.pop(key, default)
        if not isinstance(value, str) or not value.isprintable():
            raise self.bad(key, 'must be text in quotes, such as %s = "%s"' % (key, default))
        return value

    def whole(self, key: str, default: int | None, least: int = 1) -> int | None:
        value = self.values.pop(key, default)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise self.bad(key, "must be a whole number from %d" % least)
        return value

    def bytes(self, key: str, default: int) -> int:
        value = self.values.pop(key, default)
        if not are_bytes(value):
            raise self.bad(key, "must be " + BYTES)
        return int(value)

    def seconds(self, key: str, default: float, least: float) -> float:
        value = self.values.pop(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= 10 ** 6:
            raise self.bad(key, "must be a number of seconds from %d" % least)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.values.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.bad(key, 'must be a list of texts, such as ["a", "b"]')
        return tuple(value)

    def flag(self, key: str) -> bool:
        value = self.values.pop(key, False)
        if not isinstance(value, bool):
            raise self.bad(key, "must be true or false")
        return value

    def done(self, known: str) -> None:
        for key in self.values:
            raise self._unknown(key, known)

    def only(self, known: str) -> None:
        """As `done`, while nothing was taken out yet: a key that is misspelt is told before what is missing."""
        for key in [key for key in self.values if key not in known.split(", ")]:
            raise self._unknown(key, known)

    def _unknown(self, key: str, known: str) -> errors.BadConfig:
        return self.bad(key, "unknown key %s (known: %s)" % (key, known))


def are_bytes(value: Any) -> bool:
    """Whether a value of a file or of a caller is `BYTES`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_BYTES


class Reader:
    """The text behind the tables, to find lines in."""

    def __init__(self, text: str, path: Path) -> None:
        self.text, self.path = text, path

    def bad(self, where: tuple[str, ...], key: str, why: str) -> errors.BadConfig:
        line = _line_of(self.text, where, key)
        place = "%s, line %d" % (self.path, line) if line else str(self.path)
        said = "%s: %s" % (".".join((*where, key)), why) if key else why
        return errors.BadConfig(wire.printable(said), where=place)


def _line_of(text: str, where: tuple[str, ...], key: str) -> int:
    """The line on which `key` of table `where` stands, or that table where key is ""; 0 where it can't be told (tomllib
    keeps no positions)."""
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*([^\]]+?)\s*\]", line)
        if header:
            table = tuple(part.strip().strip("\"'") for part in header.group(1).split("."))
            if table == (*where, key) or not key and table[:len(where)] == where:
                return number
        elif table == where and re.match(r"\s*[\"']?%s[\"']?\s*[=.]" % re.escape(key), line):
            return number
    return 0
