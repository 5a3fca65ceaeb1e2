"""The last resort: a process that stays for a minute where nothing else will wake the relay.

Where the site allows a job or two there is no place for a heartbeat, and the tail of a job can't submit the next one:
its own job counts until it is quite gone (0.3 s after a normal end, 32 s with a bad -o). A session of its own outlives
the job it was begun in, unless the site ends everything that a job left in its cgroup: then the next contact says
that the relay stood still. There is one such process at a time.
"""

import os
import time

from . import launch, settings, way
from .lock import Lock
from .quiet import idle
from .state import State

MYPY = False
if MYPY:
    from .spool import Spool

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
LOOK = 2.0  # seconds after which it is looked at whether somebody else has paid
BUDGET = 15.0
LONG, MOST = 45.0, 300.0  # query_interval: with a longer one PAUSES may ask nobody; a longer one is not waited for
LEASE = 600.0  # longer than one that goes by these can take


def leave(spool: "Spool") -> None:
    """Begin one; where there is one already, the new one goes at once."""
    launch.detached(launch.command(spool.root) + ["_linger"], os.devnull)


def stay(spool: "Spool") -> None:
    """Pump now and then until no place is left unfilled, or patience ends."""
    os.environ[way.LEFT_BY] = os.environ.pop("PBS_JOBID", "")  # the job we were begun in ends now
    folder = os.path.join(spool.root, "linger")
    os.makedirs(folder, 0o700, exist_ok=True)
    lock, patient = Lock(folder, LEASE), True
    # Looked at again after the lock is given back: a tail's process may have found it taken meanwhile, and gone.
    while patient and needed(spool) and lock.acquire():
        try:
            patient = _fill(spool)
        finally:
            lock.release()


def needed(spool: "Spool") -> bool:
    """Whether the last pump left places unfilled that nobody else will fill, and there is something to fill them with.
    A pump with nothing to do does not come as far as to say that the debt is paid."""
    return bool(State(spool).value.get("debt")) and not idle(spool)


def _fill(spool: "Spool") -> bool:
    from .pump import pump

    interval = settings.load(spool).query_interval
    for pause in PAUSES + ((min(interval, MOST) + 1.0,) if interval > LONG else ()):
        until = time.monotonic() + pause
        while time.monotonic() < until and needed(spool):
            time.sleep(min(LOOK, max(0.0, until - time.monotonic())))
        if needed(spool):
            pump(spool, "linger", BUDGET, attended=False)
        if not needed(spool):
            return True
    return False
