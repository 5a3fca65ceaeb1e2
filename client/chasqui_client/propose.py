"""What the site publishes of its limits, what the relay learnt from its refusals, and the caps, side by side; and the
caps that follow: the lower of the two, never a higher one.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from chasqui_agent import bounds, wire
from chasqui_agent.schedulers.base import EVERYWHERE

from .config import CAP_TABLES, Caps
from .fields import replace

_MOST = 1000  # rows believed
_BARE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"


def rows(found: Any) -> tuple[list[list[Any]], list[list[Any]]]:
    """(published, learnt) of the agent's `caps --json`, both as rows (where, kind, name, measure, number); what does
    not look like one is left out."""
    found = found if isinstance(found, dict) else {}
    published = [row for row in _list(found.get("published")) if _is_row(row)]
    learnt = [[*row[:1], "", "", "live", *row[1:]] for row in _list(found.get("learnt")) if isinstance(row, list)]
    return published, [row for row in learnt if _is_row(row)]


def _list(value: Any) -> list[Any]:
    return value[:_MOST] if isinstance(value, list) else []


def _is_row(row: Any) -> bool:
    return (isinstance(row, list) and len(row) == 5 and all(isinstance(text, str) for text in row[:4])
            and row[1] in ("", "group", "project") and row[3] in ("live", "waiting", "running")
            and type(row[4]) is int and 0 <= row[4] <= 10 ** 9)


def proposal(caps: Caps, known: Iterable[list[Any]]) -> Caps:
    """The caps, lowered to what is known of the site's limits. Limits of a group, and of a project within one queue,
    can't be written as caps; the relay keeps to them where they are published."""
    for where, kind, name, measure, number in known:
        if not number:
            continue  # nothing may be queued there: no cap says that
        if kind == "project" and where == EVERYWHERE and name and measure == "live":
            caps = replace(caps, projects=_lowered(caps.projects, name, number))
        if kind:
            continue
        if where not in ("", EVERYWHERE) and measure == "live":
            caps = replace(caps, queues=_lowered(caps.queues, where, number))
        elif where == EVERYWHERE:
            caps = _of_everything(caps, measure, number)
    return caps


def _lowered(table: Mapping[str, int], name: str, number: int) -> dict[str, int]:
    return {**table, name: min(number, table.get(name, number))}


def _of_everything(caps: Caps, measure: str, number: int) -> Caps:
    if measure == "live":
        return replace(caps, max_total=min(number, caps.max_total or number))
    if measure == "waiting":
        return replace(caps, max_queued=min(number, caps.max_queued))
    if number >= caps.max_running:
        return caps
    # The site itself starts no more: holding the others back here would only delay them.
    return replace(caps, max_running=number, running_cap="site")


def words(row: list[Any]) -> str:
    """One row for a person."""
    return wire.printable(bounds.published_words(row), 300)


def toml(remote: str, caps: Caps) -> list[str]:
    """The lines of config.toml that say these caps."""
    lines = ["[remotes.%s.caps]" % remote, "max_queued = %d" % caps.max_queued, "max_running = %d" % caps.max_running]
    if caps.max_total:
        lines.append("max_total = %d" % caps.max_total)
    if caps.running_cap != "hold":
        lines.append('running_cap = "%s"' % caps.running_cap)
    for table in CAP_TABLES:
        if getattr(caps, table):
            lines.append("[remotes.%s.caps.%s]" % (remote, table))
            lines += ["%s = %d" % (_key(name), number) for name, number in sorted(getattr(caps, table).items())]
    return lines


def _key(name: str) -> str:
    if all(char in _BARE for char in name):
        return name
    return '"%s"' % wire.printable(name).replace("\\", "\\\\").replace('"', '\\"')
