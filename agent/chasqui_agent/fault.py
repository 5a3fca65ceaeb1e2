"""Named instants at which a test kills the process; in production every call returns at once.

With CHASQUI_FAULT=name[:n] in the environment the n-th pass (default 1) through `point(name)` is the last thing the
process does (SIGKILL, so no handler and no `finally` runs). CHASQUI_FAULT_ONCE names a file that is created,
exclusively, just before: where it exists already the point lets everybody pass, so a relay that is started again gets
through. CHASQUI_FAULT_LOG names a file that gets the name of every point passed. Names must stand in POINTS: a test
fails for a point that no run reaches.
"""

import os

MYPY = False
if MYPY:
    from typing import Dict

POINTS: "Dict[str, str]" = {}  # name -> where it is
_fault = os.environ.get("CHASQUI_FAULT", "")
_log = os.environ.get("CHASQUI_FAULT_LOG", "")
_passes: "Dict[str, int]" = {}  # name -> how often this process came by


def register(points: "Dict[str, str]") -> None:
    """Add `points` (name -> description) to the registry; each module registers its own when it is imported."""
    POINTS.update(points)


def armed() -> bool:
    """Whether a test watches this process."""
    return bool(_fault or _log)


def environment() -> "Dict[str, str]":
    """The variables that carry a test's wish on to the processes a job starts; none in production."""
    names = ("CHASQUI_FAULT", "CHASQUI_FAULT_ONCE", "CHASQUI_FAULT_LOG")
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def point(name: str) -> None:
    """Die here if the environment says so."""
    if not armed():
        return
    if name not in POINTS:
        raise KeyError("unregistered fault point: " + name)
    if _log:
        fd = os.open(_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, name.encode("ascii") + b"\n")
        os.close(fd)
    wanted, _, nth = _fault.partition(":")
    if name != wanted:
        return
    _passes[name] = _passes.get(name, 0) + 1
    if _passes[name] == int(nth or 1) and _first_time():
        os.kill(os.getpid(), 9)


def _first_time() -> bool:
    once = os.environ.get("CHASQUI_FAULT_ONCE")
    if not once:
        return True
    try:
        os.close(os.open(once, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True
