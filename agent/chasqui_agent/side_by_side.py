"""The limits the site publishes, those learnt from its refusals and the caps, side by side: for a person who asks."""

import time

from . import bounds, schedulers, settings
from .schedulers.base import Unreachable
from .state import State

MYPY = False
if MYPY:
    from typing import Any, Dict, List

    from .spool import Spool


def gather(spool: "Spool") -> "Dict[str, Any]":
    """What is known, as JSON can hold it; changes nothing:

    published: rows as in schedulers/pbs_limits.py, asked for now, [] where the site does not say; silent: why it could
    not be asked, ""; learnt: [[where, number]]; caps: max_running, max_queued, max_total, running_cap, queues,
    projects, accounts as they are set.
    """
    chosen, now = settings.load(spool), time.time()
    learnt = State(spool).value.get("site_limits", {})
    found = {"published": [], "silent": ""}  # type: Dict[str, Any]
    try:
        found["published"] = (schedulers.choose(spool, chosen).published() or {}).get("rows", [])
    except (Unreachable, schedulers.Unknown) as error:
        found["silent"] = str(error)
    names = ["max_running", "max_queued", "max_total", "running_cap"] + list(bounds.OWN)
    caps = {name: getattr(chosen, name) for name in names}
    return dict(found, learnt=[[where, bounds.limit(learnt, where, now)] for where in sorted(learnt)], caps=caps)


def lines(found: "Dict[str, Any]") -> "List[str]":
    """The same for people."""
    published = [bounds.published_words(row) for row in found["published"]]
    told = ["published: " + text for text in published]
    if not told:
        told = ["published: nothing" + (", the site could not be asked: " + found["silent"] if found["silent"] else "")]
    learnt = [bounds.published_words([where, "", "", "live", number]) for where, number in found["learnt"]]
    told += ["learnt: " + text for text in learnt or ["nothing"]]
    caps = found["caps"]
    own = ["%s = %s" % (name, caps[name]) for name in sorted(caps) if name not in bounds.OWN]
    for table in bounds.OWN:
        own += ["%s.%s = %d" % (table, name, number) for name, number in sorted(caps[table].items())]
    return told + ["caps: " + ", ".join(own)]
