"""What a script asks of the scheduler, changed in its own lines: walltime, memory and the like, queue.

The lines are rewritten, not added to: qsub refuses `-l mem` beside a `-l select` that a script has, and what stands
first or last of two `-l walltime` counts differs from one PBS to the other. #SBATCH lines are for sbatch_changes.py;
values are PBS's everywhere.
"""

import math
import re
import shlex

from . import directives

MYPY = False
if MYPY:
    from typing import Any, Callable, List, Optional, Tuple

    New = Callable[[str], str]

QUEUE = "queue"
TIMES = ("walltime", "cput", "pcput", "min_walltime", "max_walltime")
_OF_A_CHUNK = ("mem", "vmem", "ncpus", "mpiprocs", "ngpus", "ompthreads")  # into `select`, where there is one
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}\Z")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:-]{0,99}\Z")
_FACTOR = re.compile(r"x([0-9]{1,2}(?:\.[0-9]{1,3})?)\Z")
_TIME = re.compile(r"(?:(?:([0-9]{1,5}):)?([0-9]{1,5}):)?([0-9]{1,7})(?:\.[0-9]{1,3})?\Z")
_SIZE = re.compile(r"([0-9]{1,15})([kmgtp]?)([bw]?)\Z", re.I)


def wrong(key: str, value: "object", most: bool = False) -> str:
    """What is wrong with setting a resource (or the queue) to a value or, "x1.5", to a multiple; "" where nothing is.
    most: the value is a cap, and no multiple."""
    if not _NAME.match(key) or not isinstance(value, str):
        return "%.40s is not the name of a resource, or its value is no text" % key
    if key == QUEUE:
        return "" if _WORD.match(value) and not most else "queue must be a queue's name"
    if factor(value):
        return "the most of %s can't be a multiple" % key if most else ""
    if amount(key, value) is None and (most or key in TIMES or not _WORD.match(value)):
        return "%s can't be %.40s: it must be like %s" % (
            key, value, '"36:00:00"' if key in TIMES else '"256gb"' if most else '"x2", "64gb" or "16"')
    return ""


def factor(value: str) -> float:
    """1.5 of "x1.5"; 0 of what is no multiple above 1."""
    found = _FACTOR.match(value)
    number = float(found.group(1)) if found else 0.0
    return number if number > 1 else 0.0


def amount(key: str, value: str) -> "Optional[int]":
    """Seconds of a time, bytes (or how many) of anything else; None where it is neither."""
    if key in TIMES:
        found = _TIME.match(value)
        return sum(int(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1))) if found else None
    found = _SIZE.match(value)
    return int(found.group(1)) << 10 * " kmgtp".index(found.group(2).lower() or " ") if found else None


def grown(key: str, old: str, times: float, most: str) -> str:
    """`old` so many times, at most `most` ("": no limit), and never less than it was; as it was, where it can't be
    told."""
    before = amount(key, old)
    if before is None:
        return old
    if key in TIMES:
        seconds = int(math.ceil(before * times - 1e-9))
        new = clock(seconds)
    else:
        number, unit = re.match(r"([0-9]+)(.*)", old).groups()  # type: ignore[union-attr]
        new = "%d%s" % (math.ceil(int(number) * times - 1e-9), unit)
    if most and (amount(key, new) or 0) > (amount(key, most) or 0):
        new = most
    return new if (amount(key, new) or 0) > before else old


def clock(seconds: int) -> str:
    """Seconds as hours:minutes:seconds."""
    return "%02d:%02d:%02d" % (seconds // 3600, seconds // 60 % 60, seconds % 60)


def unfit(script: bytes, key: str, value: str, dialect: str = "PBS", cap: bool = False) -> str:
    """Why a value that is not `wrong` can't be asked for in this script, or be a cap there; "" where it can."""
    if dialect != "SBATCH":
        return ""
    from . import sbatch_changes

    return sbatch_changes.unfit(script, key, value, cap or factor(value) > 0)


def example(key: str, dialect: str) -> str:
    """The line that asks for a resource."""
    if dialect != "SBATCH":
        return "#PBS -l %s=..." % key
    from . import sbatch_changes

    return "#SBATCH --%s=..." % sbatch_changes.OPTIONS[key][0]


def asked(script: bytes, key: str, dialect: str = "PBS") -> "List[str]":
    """Every value that a script's lines give `key`, in their order."""
    found: "List[str]" = []

    def note(old: str) -> str:
        found.append(old)
        return old

    change(script, key, note, dialect)
    return [old for old in found if old]


def change(script: bytes, key: str, new: "New", dialect: str = "PBS") -> bytes:
    """The script with each value of `key` replaced by new(value). Where no line asks for it, new("") is added, unless
    that is "". dialect: "PBS" or "SBATCH", whose lines those are."""
    if dialect == "SBATCH":
        from . import sbatch_changes

        return sbatch_changes.change(script, key, new)
    lines = script.split(b"\n")
    known: "List[str]" = []

    def noted(old: str) -> str:
        known.append(old)
        return new(old)

    for at in _directive_lines(lines):
        lines[at] = _changed(lines[at], key, noted)
    value = "" if known else new("")
    if value:
        lines = _added(lines, key, value)
    return b"\n".join(lines)


def _directive_lines(lines: "List[bytes]") -> "List[int]":
    """Where the #PBS lines stand, as `directives.lines` finds them."""
    found = []
    for at, raw in enumerate(lines):
        line = raw.strip()
        if line.startswith(b"#PBS") and line[4:5] in (b"", b" ", b"\t"):
            found.append(at)
        elif line and not line.startswith((b"#", b":")):
            break
    return found


def _changed(line: bytes, key: str, new: "New") -> bytes:
    """One line; where nothing in it changes, as it was."""
    options = directives.options(line)
    fresh = [(flag, _value(flag, value, key, new)) for flag, value in options]
    if fresh == options:
        return line
    words = [shlex.quote(value) if not flag else ("-%s %s" % (flag, shlex.quote(value)) if value else "-" + flag)
             for flag, value in fresh]
    return b"#PBS " + " ".join(words).encode("utf-8", "replace") + (b"\r" if line.endswith(b"\r") else b"")


def _value(flag: str, value: str, key: str, new: "New") -> str:
    if flag == "q" and key == QUEUE:
        return new(value)
    if flag != "l" or key == QUEUE:
        return value
    return ",".join(_item(item, key, new) for item in value.split(","))


def _item(item: str, key: str, new: "New") -> str:
    """One item of a -l list: walltime=1:00:00, or select=2:mem=8gb+1:mem=64gb, whose chunks have their own."""
    name, equals, value = item.partition("=")
    if name.strip() == key and equals:
        return name + equals + new(value)
    if name.strip() not in ("select", "nodes"):
        return item
    return name + equals + re.sub(r"(?<=:)(%s=)([^:+]*)" % re.escape(key),
                                  lambda match: match.group(1) + new(match.group(2)), value)


def _added(lines: "List[bytes]", key: str, value: str) -> "List[bytes]":
    """The lines with one more request."""
    into = [_in_chunks(lines[at], key, value) for at in _directive_lines(lines)] if key in _OF_A_CHUNK else []
    if any(done for _, done in into):
        for at, (line, _) in zip(_directive_lines(lines), into):
            lines[at] = line
        return lines
    text = "#PBS -q %s" % value if key == QUEUE else "#PBS -l %s=%s" % (key, value)
    first = int(lines[0].startswith(b"#!"))
    return lines[:first] + [text.encode("ascii")] + lines[first:]


def _in_chunks(line: bytes, key: str, value: str) -> "Tuple[bytes, bool]":
    """A line with the request in every chunk of its `select`; whether it has one."""
    more = ("%s=%s" % (key, value)).encode("ascii")

    def grown_chunks(match: "Any") -> bytes:
        return bytes(match.group(1)) + b"+".join(chunk + b":" + more for chunk in match.group(2).split(b"+"))

    done = re.sub(br"(?<![A-Za-z_])(select=)([^,\s\"']+)", grown_chunks, line)
    return done, done != line
