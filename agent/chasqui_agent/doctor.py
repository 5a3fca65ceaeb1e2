"""Does the relay work here? Python, folder, space, scheduler; the client runs a job on top of that."""

import sys

from . import heartbeat, schedulers, selftest, settings, space
from .schedulers.base import Unreachable
from .state import State

MYPY = False
if MYPY:
    from typing import List, Tuple

    from .spool import Spool

_LEAST = {space.BYTES: 50 << 20, space.FILES: 1000}


def run(spool: "Spool") -> "List[Tuple[str, str, bool]]":
    """(rung, answer, whether it is good), ending at the first that is not."""
    rungs: "List[Tuple[str, str, bool]]" = []
    for name, check in CHECKS:
        answer, good = check(spool)
        rungs.append((name, answer, good))
        if not good:
            break
    return rungs


def _python(spool: "Spool") -> "Tuple[str, bool]":
    return "%d.%d.%d, %s" % (sys.version_info[:3] + (sys.executable,)), True


def _folder(spool: "Spool") -> "Tuple[str, bool]":
    wrong = ["%s: %s" % item for item in selftest.run(spool.root) if item[1] and item[0] != "clock"]
    return "; ".join(wrong) or "%s does what the relay needs" % spool.root, not wrong


def _space(spool: "Spool") -> "Tuple[str, bool]":
    limits = space.look([spool.work, spool.root])
    good = all(limit.left >= _LEAST[limit.kind] for limit in limits)
    return "; ".join(space.words(limit) for limit in limits), good


def _scheduler(spool: "Spool") -> "Tuple[str, bool]":
    try:
        return schedulers.choose(spool, settings.load(spool)).describe(), True
    except (Unreachable, schedulers.Unknown) as error:
        return str(error), False


def _heartbeat(spool: "Spool") -> "Tuple[str, bool]":
    """What it costs."""
    chosen = settings.load(spool)
    scheduler = schedulers.choose(spool, chosen)
    if not heartbeat.enabled(chosen, scheduler, State(spool).value):
        return "off" if scheduler.asks_a_server else "none is needed", True
    text = "one job of 1 core for about a second every %g minutes while something waits" % chosen.heartbeat
    return text + "; takes 1 of max_queued, 2 of all", True


CHECKS = (
    ("python", _python),
    ("folder", _folder),
    ("space", _space),
    ("scheduler", _scheduler),
    ("heartbeat", _heartbeat),
)
