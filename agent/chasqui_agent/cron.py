"""The line for a crontab (or Slurm's scrontab) that wakes the relay now and then, ready to be pasted."""

import os
import shlex
import zlib

from . import install, launch, process
from .spool import SpoolError

MYPY = False
if MYPY:
    from typing import List

    from .spool import Spool

EVERY = 10  # minutes
BUDGET = 60  # seconds
LONGEST = 998  # what cron reads of a line


def lines(spool: "Spool", every: int = EVERY, slurm: bool = False) -> "List[str]":
    """All that is to be added to the table; what is no entry is a comment in it.

    The line stands by itself: it names Python, agent and root in full, and `agent/current`, so that it outlives the
    next deployment. What it needs of the environment was remembered by the last submission made on a login host (see
    `way`). Raises SpoolError for an interval that no hour is divided into, or a path that cannot stand in a crontab.
    """
    if every < 1 or every > 60 or 60 % every:
        raise SpoolError("every %d minutes: must divide an hour (5, 10, 15, 20, 30, 60)" % every)
    # Not all on the same minute, of all users of a site.
    first = zlib.crc32(install.uuid(spool).encode("ascii")) % every
    minutes = ",".join("%d" % minute for minute in range(first, 60, every))
    line = "%s * * * * %s" % (minutes if every > 1 else "*", command(spool))
    if len(line.encode("utf-8")) > LONGEST:
        raise SpoolError("the line would be longer than the %d bytes cron reads of one" % LONGEST)
    return _comments(spool.root, every, slurm) + [line]


def command(spool: "Spool") -> str:
    """The line's command, as it has to stand in the table. Raises SpoolError."""
    current = os.path.join(spool.agent, "current")
    agent = current if os.path.exists(current) else launch.own_path()
    words = [launch.python(), "-I", "-S", agent, "--root", spool.root, "wake", "--reason", "cron"]
    words += ["--budget", "%d" % BUDGET]
    return " ".join(quoted(word) for word in words)


def quoted(word: str) -> str:
    r"""A word that means the same in a crontab and in a shell.

    To cron a bare % is the end of the command, and \% stands for it; to a shell outside quotes \% is a % as well.
    Inside quotes a backslash that belongs to the word could stand before it, so the word is quoted in pieces.
    """
    if not word.isprintable():
        raise SpoolError("a crontab cannot hold this path: %s" % ascii(word))
    pieces = word.split("%")
    return r"\%".join(shlex.quote(piece) if piece or len(pieces) == 1 else "" for piece in pieces)


def _comments(root: str, every: int, slurm: bool) -> "List[str]":
    table = "scrontab" if slurm else "crontab"
    head = "# chasqui: wakes the relay in %s every %d minutes." % (root, every)
    where = "# On %s type: %s -e    and add these lines. To stop it, take them out again." % (process.host(), table)
    found = [os.path.join(place, table) for place in os.environ.get("PATH", os.defpath).split(os.pathsep)]
    missing = [] if any(os.access(path, os.X_OK) for path in found) else ["# (It was not found there: %s.)" % table]
    options = ["#SCRON --job-name=chasqui-wake --time=00:05:00 --ntasks=1 --output=/dev/null"] if slurm else []
    return [head, where] + missing + options
