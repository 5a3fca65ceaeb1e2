"""What a script asks of Slurm, changed in its own #SBATCH lines: time, memory, partition; values as PBS writes them."""

import re

from . import resources, sbatch

MYPY = False
if MYPY:
    from typing import List

# What can be changed -> the options that ask for it; the first is added where a script has none of them.
OPTIONS = {"walltime": ("time",), "mem": ("mem", "mem-per-cpu", "mem-per-gpu"), "queue": ("partition",)}
_SIZE = re.compile(r"([0-9]{1,15})([KMGTkmgt]?)[Bb]?$")


def unfit(script: bytes, key: str, value: str, each: bool) -> str:
    """Why this can't be asked for in a script with #SBATCH lines; "" where it can. each: whatever unit the script asks
    for memory in, it is meant by that (a multiple, a cap)."""
    if key not in OPTIONS:
        return "%s: of a script for Slurm walltime, mem and queue can be changed, no more" % key
    if key != "queue" and value.isdigit():
        return "%s=%s: of what, in a script for Slurm? Write it like %s" % (
            key, value, "36:00:00" if key == "walltime" else "64gb")
    if key == "mem" and not each and any(name in OPTIONS["mem"][1:] for name, _ in sbatch.options(script)):
        return "mem=%s: the script asks for memory per CPU or GPU; only a multiple of that (mem=x2) can be set" % value
    return ""


def change(script: bytes, key: str, new: "resources.New") -> bytes:
    """As `resources.change`; a key that it does not have is in no line, and added to none."""
    lines = script.split(b"\n")
    known: "List[str]" = []

    def noted(old: str) -> str:
        known.append(old)
        return new(old)

    for at in sbatch.places(lines):
        lines[at] = _changed(lines[at], key, noted)
    value = "" if known or key not in OPTIONS else new("")
    if value:
        text = "#SBATCH --%s=%s" % (OPTIONS[key][0], _theirs(key, value))
        lines.insert(int(lines[0].startswith(b"#!")), text.encode("ascii"))
    return b"\n".join(lines)


def _changed(line: bytes, key: str, new: "resources.New") -> bytes:
    """One line; where nothing in it changes, as it was."""
    options = sbatch.options(line)
    fresh = [(name, _value(key, value, new) if name in OPTIONS.get(key, ()) else value) for name, value in options]
    if fresh == options:
        return line
    words = [("--%s" % name if name else "") + ("=" if name and value else "") + (sbatch.quoted(value) if value else "")
             for name, value in fresh]
    return b"#SBATCH " + " ".join(words).encode("utf-8", "replace")


def _value(key: str, value: str, new: "resources.New") -> str:
    before = _ours(key, value)
    after = new(before)
    return value if after == before else _theirs(key, after)


def _ours(key: str, value: str) -> str:
    """A value of Slurm's as PBS would write it; what can't be told (UNLIMITED, all of a node's memory) as it is."""
    if key == "walltime":
        seconds = sbatch.seconds(value)
        return value if seconds is None else resources.clock(seconds)
    size = _SIZE.match(value) if key == "mem" else None
    if not size:
        return value
    return "%s%sb" % (size.group(1), size.group(2).lower() or "m") if int(size.group(1)) else "all"


def _theirs(key: str, value: str) -> str:
    """A value of PBS's as Slurm reads it: sizes are in its own units, never in bytes."""
    if key == "walltime":
        return resources.clock(resources.amount(key, value) or 0)
    if key != "mem":
        return value
    number, unit = re.match("([0-9]+)([a-z]?)", value.lower()).groups()  # type: ignore[union-attr]
    if unit == "p":
        return "%dT" % (int(number) << 10)
    return number + unit.upper() if unit in ("k", "m", "g", "t") else "%dK" % -(-int(number) >> 10)
