"""What a runner leaves in .chasqui/ about one submission, and the closing of a token that never started.

claim.<token>        symlink -> the scheduler's id that runs it, or -> closed:<generation>: nobody may any more
run.<token>.<k>      the k-th start: a symlink -> the scheduler's id
term.<token>.<k>     that start was told to end (TERM): its exit status is not its fate
flag.<token>.<k>     it ended: key=value lines up to a line "whole"
<token>.id           JSON {"id", "held"}: ours, written by the pump
cancel.<token>       ours: a cancel was asked for while it ran; the content says why
"""

import os
from collections import namedtuple

from . import fault, files, lock

MYPY = False
if MYPY:
    from typing import Any, Dict, Optional

fault.register(
    {
        "marks.close.before": "a token is to be closed, its claim not yet made by us",
        "marks.close.after": "the token is closed, nothing moved yet",
    }
)

Marks = namedtuple(
    "Marks", "claim runs flag term cancel"
)  # claim: text or ""; runs: highest k or 0; flag: dict or None


def read(meta: str, token: str) -> Marks:
    """The marks of one token; empty ones where the folder is gone."""
    runs, flags, terms, cancel = 0, 0, set(), False
    for name in files.names(meta):
        kind, _, rest = name.partition(".")
        owner, _, number = rest.partition(".")
        if owner != token:
            continue
        if number.isdigit():
            if kind == "run":
                runs = max(runs, int(number))
            elif kind == "flag":
                flags = max(flags, int(number))
            elif kind == "term":
                terms.add(int(number))
        elif kind == "cancel":
            cancel = True
    claim = lock.read_link(os.path.join(meta, "claim." + token)) or ""
    flag = read_flag(os.path.join(meta, "flag.%s.%d" % (token, flags))) if flags else None
    return Marks(claim, runs, flag, bool(terms), cancel)


def read_flag(path: str) -> "Optional[Dict[str, str]]":
    """The lines of a flag, None where it is missing or not whole (an NFS client may show an empty file for a
    moment)."""
    try:
        with open(path, "rb") as stream:
            text = stream.read(8192).decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    body, whole, _ = text.partition("\nwhole\n")
    if not whole:
        return None
    return dict(line.partition("=")[::2] for line in body.split("\n"))


def started_at(meta: str, token: str, k: int) -> float:
    """When the k-th start was, in seconds since 1970 by the file server's clock; 0 where unknown."""
    try:
        return os.lstat(os.path.join(meta, "run.%s.%d" % (token, k))).st_mtime
    except OSError:
        return 0.0


def close(meta: str, token: str, generation: int) -> str:
    """Take the claim of a token so that nothing can start under it: "" if it is closed now, else the id that started.

    A closed token stays closed; a job of the scheduler that comes up with it later refuses to run.
    """
    fault.point("marks.close.before")
    path = os.path.join(meta, "claim." + token)
    mine = "closed:%d" % generation
    found = ""
    while not found:  # empty: a runner that could not begin took its claim back this very moment
        lock.create_link(path, mine)
        files.fsync_folder(meta)
        found = lock.read_link(path) or ""
    fault.point("marks.close.after")
    if not is_closed(found):
        return found
    # The runner looks at its claim once more behind its run mark, and we for that mark behind our claim: one of the
    # two sees the other, also where a second start of the same id came between a claim and its taking back.
    runs = [name for name in files.names(meta) if name.startswith("run.%s." % token)]
    return (lock.read_link(os.path.join(meta, runs[0])) or "") if runs else ""


def is_closed(claim: str) -> bool:
    """Whether a claim's content says that the token is closed."""
    return claim.startswith("closed:")


def write_id(meta: str, token: str, pbs_id: str, held: bool) -> None:
    """Record the scheduler's id of a token, durably."""
    files.write_json(os.path.join(meta, token + ".id"), {"id": pbs_id, "held": held})


def read_id(meta: str, token: str) -> "Dict[str, Any]":
    """{"id", "held"} of a token; {} where none is recorded."""
    found = files.read_json(os.path.join(meta, token + ".id"), {})
    return found if isinstance(found, dict) and isinstance(found.get("id"), str) else {}
