"""What a refused qsub means: exit code and text in, kind out, nothing else.

qsub exits with the server's error number modulo 256 (15142 -> 38), 1 and 2 for what it finds wrong by itself. The
texts count where a site's wrapper, Torque or another version exits with another code.
"""

import re
from collections import namedtuple

from .base import EVERYWHERE

MYPY = False
if MYPY:
    from typing import Optional, Tuple


class Refusal(namedtuple("Refusal", "kind learn here shared")):
    """As in Submission."""

    __slots__ = ()

    def __new__(
        cls, kind: str, learn: "Optional[str]", here: bool, shared: "Optional[Tuple[str, str]]" = None
    ) -> "Refusal":
        return super().__new__(cls, kind, learn, here, shared)


_COUNT_LIMIT = 38  # the one code that is about a number of jobs, and about nothing else

_CODES = {
    38: "limit",  # over a limit on the number of jobs
    39: "limit",  # over a limit on a resource
    198: "limit",  # max_queuable of a queue
    226: "limit",  # Torque: maximum number of jobs
    160: "temporary",  # unknown host
    162: "temporary",  # can't connect
    173: "temporary",  # queue not enabled
    222: "temporary",  # a mom does not answer
    183: "unknown",  # the connection died while the server had the request
    255: "unknown",  # qsub's background process lost the reply
    2: "permanent",  # an illegal value on the command line or in a directive
    3: "permanent",  # an array larger than the site takes
    166: "permanent",  # illegal resource value
    170: "permanent",  # unknown queue
    187: "permanent",  # unknown resource
}

_TIME_OUT = "(?<!wall)time ?out(?! of range)"  # a time that is out of range is none

# Looked for in this order, before the codes; only an unknown outcome comes first.
_TEXTS = (
    # The server may have the job: a wrapper's exit code, and Torque's numbers, don't say so.
    (
        "unknown",
        "protocol error|premature end|end of file|timed out|%s|socket close|(read|writ)ing .*socket" % _TIME_OUT,
    ),
    ("temporary", "no free connections|server (is currently too )?busy|queue is not enabled"),
    # A limit at some sites and an empty allocation at others: a wait that somebody has to be told of when it lasts.
    ("limit", "would exceed [^\n]* limit|maximum number of jobs|violates queue and/or server resource limits"),
    ("permanent", "rejected by all possible destinations|array job exceeds server or queue size limit"),
    ("temporary", "cannot connect to server"),  # Torque exits with the errno
    ("permanent", "directive error|unknown queue|unknown resource|illegal attribute or resource value"),
)
# The last is Torque's of a host that is none of its submit_hosts.
_HERE = "not allowed from this host|access from host not allowed|ruserok failed validating"

# Limits of a group or project are shared with others, one on jobs "in 'Q' state" does not count what runs: the number
# of our own live jobs says nothing about either.
_SHARED = "per-(group|project) limit|maximum number of jobs[^\n]* for (group|project) "
_OURS = "per-user limit$|maximum number of jobs for user"


def classify(code: "Optional[int]", text: str, queue: str = "", array: bool = False) -> Refusal:
    """What a submission that got no id means. code: qsub's exit, negative where a signal ended it, None where we did;
    queue: the one the job asks for, "" for the default; array: whether it is a job array."""
    here = bool(re.search(_HERE, text, re.IGNORECASE))
    if code is None or code < 0 or code == 0 or _CODES.get(code) == "unknown":
        return Refusal("unknown", None, here)
    for kind, pattern in _TEXTS:
        if re.search(pattern, text, re.IGNORECASE):
            return Refusal(kind, _teaches(code, text, queue, array), here, _shared(text) if kind == "limit" else None)
    return Refusal(_CODES.get(code, "other"), _teaches(code, text, queue, array), here)


def _shared(text: str) -> "Optional[Tuple[str, str]]":
    found = re.search(_SHARED, text, re.IGNORECASE | re.MULTILINE)
    if not found:
        return None
    kind = (found.group(1) or found.group(2)).lower()
    return kind, "" if re.search(r"exceed queue \S+ per-|already in queue", text, re.IGNORECASE) else EVERYWHERE


def _teaches(code: int, text: str, queue: str, array: bool) -> "Optional[str]":
    # An array is refused as a whole: how far it was over the limit is not known.
    if code != _COUNT_LIMIT or array or not re.search(_OURS, text.strip(), re.IGNORECASE | re.MULTILINE):
        return None
    # "queue generic's per-user limit" does not name the queue: "generic" is any user.
    return queue if re.search(r"exceed queue \S+ per-user|already in queue", text, re.IGNORECASE) else EVERYWHERE
