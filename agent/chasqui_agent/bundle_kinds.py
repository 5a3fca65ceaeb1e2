"""Which waiting scripts may share an allocation, how many at most, and what they ask for together.

With `bundle` = K > 1 in config.json, a round of fill.py puts waiting scripts of one priority with equal directives
(less names and outputs) together, K at most, those of the ledger that sent the settings alone. Out stay: what asks for
a rerun, an array, or anything whose meaning for several jobs we don't know; on a batch system, what names no walltime;
what its owner wants alone. A bundle of one is that job, as ever. Walltime: the job's, times the turns it takes (members
/ parallel) and some seconds for each turn, so many members that `bundle_walltime` is kept; cpus and memory: the job's,
times `parallel`; what can't be multiplied, and all for Slurm, runs one by one.
"""

import os
import re
from collections import namedtuple

from . import directives, files, outlook
from .spool import Entry

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Optional, Tuple

    from .pump import Round
    from .spool import Spool

# How a bundle is put together. key: what its members have in common; most: how many they may be; limit: the walltime of
# each in seconds, None for none
Kind = namedtuple("Kind", "key most parallel limit")
_OWN = "SNoejh"  # letters that may differ
SAME = "lqAPpvVmM"  # that have to be equal; scripts with any others go alone
# The same of sbatch's options; these are not passed on, others than these and the ones that follow have to be equal.
_OWN_OPTIONS = "job-name output error hold no-requeue parsable quiet verbose chdir".split()
_ALONE_OPTIONS = (
    "array begin clusters deadline dependency export-file get-user-env input mem-bind open-mode requeue signal"
    " test-only time-min wait wrap"
).split()
_KEPT = ("mpiprocs", "ompthreads", "place")
# Not GPUs: nobody tells each member which of them are its own.
_COUNTED = re.compile(r"(ncpus|ppn|mem|vmem)=([0-9]+)([a-z]*)$")
TURN_SECONDS = 30  # more walltime for each turn: a member that takes too long is ended 17 s late at most


class Group(namedtuple("Group", "path job attempt members kind")):
    """Scripts to be submitted as one; path, job, attempt are the first one's."""

    __slots__ = ()


def grouped(pump: "Round", found: "List[Tuple[Entry, int]]") -> "List[Tuple[Any, int]]":
    """Waiting scripts with those put together that may share an allocation; each at the place of its first."""
    result: "List[Tuple[Any, int]]" = []
    filling: "Dict[Any, Group]" = {}
    for entry, size in found:
        kind = _kind(pump, entry) if size == 1 else None
        group = filling.get(kind.key) if kind else None
        if kind is None:
            result.append((entry, size))
        elif group is not None and len(group.members) < kind.most:
            group.members.append(entry)
        else:
            filling[kind.key] = Group(entry.path, entry.job, entry.attempt, [entry], kind)
            result.append((filling[kind.key], 1))
    return [(one.members[0] if isinstance(one, Group) and len(one.members) == 1 else one, n) for one, n in result]


def _kind(pump: "Round", entry: Entry) -> "Optional[Kind]":
    """What a script may be bundled with, None where it goes alone."""
    try:
        record = pump.spool.job_record(entry.job, entry.attempt)
        with open(entry.path, "rb") as stream:
            script = stream.read()
    except (OSError, ValueError):
        return None  # its own submission says what is wrong
    if record.get("ledger", "") != pump.settings.owner or record.get("rerun") or record.get("bundle") is False:
        return None
    alone = _alone(pump.spool, entry)
    if os.path.exists(alone) or not os.access(os.path.dirname(alone), os.R_OK | os.W_OK | os.X_OK):
        return None
    dialect, letters = directives.dialect(script), directives.options(script)
    same = _same_options(script) if dialect == "SBATCH" else _same(letters)
    outputs = [value.replace(directives.OWN_ID, "", 1) for flag, value in letters if flag in "oe"]
    if same is None or any("^" in value for value in outputs):
        return None
    asked = [value for flag, value in letters if flag == "l"]
    one = _walltime(pump, asked)
    if one == 0:
        return None
    parallel = 1 if dialect == "SBATCH" else _parallel(pump, asked)
    most = _most(pump, one, parallel)
    return Kind((pump.rank_of(entry), dialect, same), most, parallel, one) if most > 1 else None


def _same(letters: "List[Tuple[str, str]]") -> "Optional[Any]":
    """What has to be equal of #PBS lines; None where there is something that nothing is equal to."""
    if any(not flag or flag not in _OWN + SAME for flag, _ in letters):
        return None
    return tuple(sorted(one for one in letters if one[0] in SAME))


def _same_options(script: bytes) -> "Optional[Any]":
    from . import sbatch

    found = [one for one in sbatch.options(script) if one[0] not in _OWN_OPTIONS]
    return None if any(not name or name in _ALONE_OPTIONS for name, _ in found) else tuple(sorted(found))


def _walltime(pump: "Round", asked: "List[str]") -> "Optional[int]":
    """Seconds that each may run: None for as long as it likes, where nobody ends it; 0 where that can't be told, or
    another limit on time counts, which for several jobs nobody has multiplied."""
    items = [item.partition("=") for value in asked for item in value.split(",")]
    times = [outlook.seconds(value) or 0 for name, _, value in items if name == "walltime"]
    if any(re.search("walltime|cput", name) for name, _, _ in items if name != "walltime"):
        return 0
    if not times and not pump.scheduler.asks_a_server:
        return None
    return times[0] if len(times) == 1 else 0


def _parallel(pump: "Round", asked: "List[str]") -> int:
    """How many run at the same time: one, where what they ask for can't be multiplied."""
    parallel = int(pump.settings.parallel)
    if pump.scheduler.asks_a_server and not re.search("(ncpus|ppn)=", ",".join(asked)):
        return 1  # nobody knows what it gets, and how much of that is for one
    return parallel if all(multiplied(value, parallel) is not None for value in asked) else 1


def _most(pump: "Round", walltime: "Optional[int]", parallel: int) -> int:
    """How many there may be in one bundle."""
    most, longest = int(pump.settings.bundle), pump.settings.bundle_walltime
    if walltime is None:
        return most
    turns = max(int(longest // (walltime + TURN_SECONDS)), int(walltime <= longest))
    return min(most, parallel * turns)


def in_turns(walltime: int, turns: int) -> int:
    """Seconds that `turns` jobs take one after the other; a single turn has what each would have had."""
    return walltime if turns == 1 else turns * (walltime + TURN_SECONDS)


def multiplied(value: str, parallel: int, walltime: int = 0) -> "Optional[str]":
    """A `-l` value for `parallel` of its jobs at once, with another walltime; None where it can't be multiplied."""
    found = []
    for item in value.split(","):
        name, _, rest = item.partition("=")
        if name == "walltime":
            found.append("walltime=" + clock(walltime) if walltime else item)
        elif name in ("select", "nodes") and parallel > 1:
            pieces = [_piece(piece, parallel) for piece in rest.split(":")[1:]]
            if "+" in rest or not rest.startswith("1:") or None in pieces:
                return None
            found.append("%s=%s" % (name, ":".join(["1"] + [piece for piece in pieces if piece])))
        else:
            piece = _piece(item, parallel)
            if piece is None:
                return None
            found.append(piece)
    return ",".join(found)


def _piece(item: str, parallel: int) -> "Optional[str]":
    counted = _COUNTED.match(item)
    if parallel == 1 or item.partition("=")[0] in _KEPT:
        return item
    if not counted:
        return None
    return "%s=%d%s" % (counted.group(1), int(counted.group(2)) * parallel, counted.group(3))


def clock(seconds: int) -> str:
    """A walltime as both schedulers read it."""
    return "%02d:%02d:%02d" % (seconds // 3600, seconds // 60 % 60, seconds % 60)


def _alone(spool: "Spool", entry: Entry) -> str:
    """The mark of a script that goes without others."""
    return os.path.join(spool.meta_dir(entry.job, entry.attempt), "alone")


def set_apart(spool: "Spool", entry: Entry) -> None:
    """Let a script go without others from now on."""
    files.write_file(_alone(spool, entry), b"", durable=False)
