"""Reads what the site publishes of its limits: once a day while something waits, and when a refusal contradicts it.

    state.json "published": what schedulers/pbs_limits.py made of it, and: asked (when), doubt (a refusal contradicts)
"""

import time

from .bounds import HOUR
from .schedulers.base import Unreachable

MYPY = False
if MYPY:
    from .pump import Round

DAY = 86400.0
SECONDS = 10.0  # the server has just answered: it does so in a fifth of a second


def refresh(pump: "Round") -> None:
    """Ask, if it is time. An answer that can't be had or read changes nothing, and is asked for again in an hour."""
    known = pump.state.value.setdefault("published", {})
    age = pump.now - known.get("asked", 0)
    # What keeps scripts back may have been lowered for a night.
    binds = any(row[-1] == "published" for row in pump.state.value.get("held_back", ()))
    if 0 <= age < (HOUR if binds or known.get("doubt") else DAY) or not pump.spool.has_waiting():
        return
    budget = pump.scheduler.deadline
    pump.scheduler.deadline = min(budget, time.monotonic() + SECONDS)
    try:
        found = pump.scheduler.published()
    except Unreachable:
        found = None
    finally:
        pump.scheduler.deadline = budget
    if found is None:
        known["asked"] = pump.now if binds else pump.now - DAY + HOUR
        known.pop("doubt", None)
        return
    pump.state.value["published"] = dict(found, asked=pump.now)
    learnt = pump.state.value.setdefault("site_limits", {})
    if found.get("default") and "" in learnt:  # now the default queue has a name
        learnt.setdefault(found["default"], learnt.pop(""))
