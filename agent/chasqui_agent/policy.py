"""A job's retry policy: after which ends it is tried again, how often, and with which resources. Pure.

    {"retries": 2, "on": ["1-9", "SIGKILL", "walltime", "memory", "node", "lost"], "set": {"walltime": "x1.5",
     "queue": "long"}, "max": {"walltime": "48:00:00"}, "resume": false}

Nothing here is ever tried again on silence: what is asked about is the record of an end, and LOST itself is one only
where the scheduler answered twice without the job. An end by TERM of which the scheduler says no more ("terminated") is
no condition: it may have been her qdel.
"""

import re
import signal
from collections import namedtuple

from . import resources

MYPY = False
if MYPY:
    from typing import Any, Dict, List

CONDITIONS = ("walltime", "memory", "node", "lost")
DEFAULT_ON = ("1-255", "walltime", "memory", "node")  # whatever failed for certain
MOST = 100  # retries; more would be a loop
MOST_COPIED = 4 << 30  # bytes of inputs that a pump can copy while it holds the lock
NOT_AGAIN = "; not tried again: "  # in the words of an end, before why the policy's retry can't be made
_CODES = re.compile(r"([0-9]{1,3})(?:-([0-9]{1,3}))?\Z")
_ENDS = {"walltime": "walltime", "memory": "memory", "mem": "memory", "vmem": "memory", "pmem": "memory",
         "node lost": "node"}

# What the next attempt is to run, and what it asks for that is new; or script None, and `why` there is none.
Try = namedtuple("Try", "script changes why")


def wrong(policy: "Any") -> str:
    """What is wrong with a policy that came from elsewhere, "" where nothing is."""
    if not isinstance(policy, dict) or not set(policy) <= {"retries", "on", "set", "max", "resume"}:
        return "a retry policy that is none"
    retries, on = policy.get("retries"), policy.get("on")
    if not isinstance(retries, int) or isinstance(retries, bool) or not 1 <= retries <= MOST:
        return "retries must be a whole number up to %d" % MOST
    if not isinstance(on, list) or not 1 <= len(on) <= 100 or not all(is_condition(word) for word in on):
        return "retry_on must be a list of exit codes (7), ranges of them (1-9), signals (SIGKILL), %s" % (
            " and ".join([", ".join(CONDITIONS[:-1]), CONDITIONS[-1]]))
    if not isinstance(policy.get("resume", False), bool):
        return "resume must be true or false"
    for kind in ("set", "max"):
        table = policy.get(kind, {})
        if not isinstance(table, dict) or len(table) > 20:
            return "retry_%s must be a table of at most 20 resources" % kind
        for key, value in table.items():
            why = resources.wrong(str(key), value, kind == "max")
            if why:
                return "retry_%s: %s" % (kind, why)
    return ""


def is_condition(word: "Any") -> bool:
    """Whether a word of `retry_on` means anything."""
    if not isinstance(word, str):
        return False
    codes = _CODES.match(word)
    if codes:
        return 1 <= int(codes.group(1)) <= int(codes.group(2) or codes.group(1)) <= 255
    return word in CONDITIONS or (bool(re.match("SIG[A-Z0-9]+$", word)) and hasattr(signal, word))


def matched(on: "List[str]", record: "Dict[str, Any]") -> str:
    """The first of these conditions that an end fulfils, "" where none is. record: the journal's, of `ended`."""
    return next((word for word in on if _fulfils(word, record)), "")


def _fulfils(word: str, record: "Dict[str, Any]") -> bool:
    code = record.get("exit")
    if record["state"] == "LOST":
        return word == "lost"
    if record["why"] in _ENDS:
        return word == _ENDS[record["why"]]
    if code is None or code <= 0 or word in CONDITIONS:
        return False
    codes = _CODES.match(word)
    if codes:
        return int(codes.group(1)) <= code <= int(codes.group(2) or codes.group(1))
    return _signal(code) == getattr(signal, word)


def _signal(code: int) -> int:
    """Which signal ended a job, by its exit status: PBS says 256 + signal, a shell 128 + signal."""
    return code - 256 if code >= 256 else code - 128 if code > 128 else 0


def next_try(policy: "Dict[str, Any]", condition: str, made: int, script: bytes, dialect: str = "PBS") -> Try:
    """What follows an end that fulfils `condition`, after so many retries made. script: of the attempt that ended, and
    dialect: what its directives are, or would be, written in."""
    if made >= policy["retries"]:
        return Try(None, (), "the last of %s" % ("%d retries" % made if made > 1 else "one retry"))
    most, told, stuck = policy.get("max", {}), [], []
    for key, value in sorted(policy.get("set", {}).items()):
        times = resources.factor(value)
        if times and not _concerns(condition, key):
            continue
        why = resources.unfit(script, key, value, dialect)
        if why:
            return Try(None, (), why)
        before = resources.asked(script, key, dialect)
        script = resources.change(script, key, _new(key, value, most.get(key, "")), dialect)
        after = resources.asked(script, key, dialect)
        if after != before:
            told.append("%s %s %s" % (key, "raised to" if times else "set to", "+".join(after)))
        elif times:
            stuck.append("%s is at its most, %s" % (key, "+".join(before)) if before else "no %s to raise" % key)
    if stuck and not told and condition in ("walltime", "memory") and not policy.get("resume"):
        return Try(None, (), stuck[0])  # it would end as it did
    return Try(script, tuple(told), "")


def _new(key: str, value: str, most: str) -> "resources.New":
    times = resources.factor(value)
    return lambda old: resources.grown(key, old, times, most) if times else value


def _concerns(condition: str, key: str) -> bool:
    """Whether a multiple of a resource helps after such an end: more memory is no cure for a lost node."""
    if condition in ("walltime", "memory"):
        return (condition == "walltime") == (key in resources.TIMES)
    return condition not in CONDITIONS
