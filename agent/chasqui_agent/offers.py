"""What a client offers, checked: job messages, their files, patterns and hashes. All is bounded before it is used."""

import hashlib
import json
import os
import re

from . import globs, spoiled, wire
from .spool import JOB

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Tuple

    Key = Tuple[str, int]

MAX_FILES, MAX_SCRIPT, MAX_PARENTS = 100000, 16 << 20, 10000
_ENCODER = json.JSONEncoder(separators=(",", ":"))
_HEX = frozenset("0123456789abcdef")


class Refusal(Exception):
    """A job this agent won't take; the message says why."""


def manifest_digest(listed: "List[Dict[str, Any]]") -> str:
    """The name of a job's content: equal exactly if paths, sizes, modes and hashes are."""
    rows = sorted([item["path"], item["size"], item["mode"], item["sha256"]] for item in listed)
    return hashlib.sha256(_ENCODER.encode(rows).encode("ascii")).hexdigest()


def key_of(fields: "Dict[str, Any]") -> "Key":
    """(job, attempt) of a message. Raises WireError where they are none."""
    job, attempt = fields.get("job"), fields.get("attempt")
    if not isinstance(job, str) or not JOB.match(job) or not isinstance(attempt, int) or not _whole(attempt, 1, 100000):
        raise wire.WireError("a job id or attempt that is none")
    return job, attempt


def keys_of(fields: "Dict[str, Any]") -> "List[Key]":
    """The (job, attempt) of a message's `jobs`. Raises WireError where they are none."""
    listed = fields.get("jobs")
    if not isinstance(listed, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in listed):
        raise wire.WireError("jobs that are no list of them")
    return [key_of({"job": pair[0], "attempt": pair[1]}) for pair in listed]


def manifest_of(folder: str) -> "List[Dict[str, Any]]":
    """What was uploaded into a work folder; nothing where its record is gone or damaged."""
    try:
        return list(spoiled.read_json(os.path.join(folder, ".chasqui"), "manifest.json").get("files", []))
    except (ValueError, TypeError, KeyError):
        return []


def is_sha(value: "Any") -> bool:
    """Whether `value` is a SHA-256 as it stands in messages."""
    return isinstance(value, str) and len(value) == 64 and _HEX.issuperset(value)


def _whole(value: "Any", least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def are_patterns(value: "Any") -> bool:
    """Whether `value` is a list of at most 1,000 patterns that can be used."""
    if not isinstance(value, list) or len(value) > 1000:
        return False
    if not all(isinstance(pattern, str) and len(pattern) <= globs.LONGEST for pattern in value):
        return False
    try:
        globs.compile_globs(value)
    except (ValueError, re.error):
        return False
    return True


def check_job(job: "Dict[str, Any]") -> None:
    """Raises Refusal where a job message can't be accepted, WireError where a path tries to leave the work folder."""
    listed = job.get("files")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_FILES:
        raise Refusal("it must have 1 to %d files" % MAX_FILES)
    seen: "Dict[bytes, Dict[str, Any]]" = {}
    for item in listed:
        path = _check_file(item)
        if path in seen:
            raise Refusal("a file is listed twice: %s" % wire.printable(item["path"]))
        seen[path] = item
    for path in seen:
        if path.split(b"/")[0] == b".chasqui":
            raise Refusal("the name .chasqui is the relay's own")
        if b"/" in path and any(path[:i] in seen for i in range(len(path)) if path[i:i + 1] == b"/"):
            raise Refusal("a name is a file and a folder at once: %s" % wire.printable(wire.path_text(path)))
    script = seen.get(wire.confined(job.get("script")))
    if script is None or script["size"] > MAX_SCRIPT:
        raise Refusal("its script is not one of its files, or larger than %d bytes" % MAX_SCRIPT)
    _check_rest(job)


def _check_file(item: "Any") -> bytes:
    if not isinstance(item, dict):
        raise wire.WireError("a file that is no object")
    path = wire.confined(item.get("path"))
    size, mode = item.get("size"), item.get("mode")
    if not _whole(size, 0, 1 << 50) or not _whole(mode, 0, 0o7777) or not is_sha(item.get("sha256")):
        raise wire.WireError("a file without a proper size, mode or sha256")
    return path


def _check_rest(job: "Dict[str, Any]") -> None:
    if not isinstance(job.get("name"), str) or len(job["name"]) > 1000:
        raise Refusal("its name is not text of at most 1,000 characters")
    if not all(are_patterns(job.get(kind, [])) for kind in ("outputs", "exclude", "expect")):
        raise Refusal("outputs, exclude and expect must be lists of at most 1,000 patterns")
    if not _whole(job.get("priority", 0), -1000, 1000) or not _whole(job.get("previous", 0), 0, 100000):
        raise Refusal("priority or previous attempt out of bounds")
    if not all(_whole(job.get(limit, 0), 0, 1 << 50) for limit in ("max_file", "max_job")):
        raise Refusal("max_file or max_job out of bounds")
    if not isinstance(job.get("rerun", False), bool) or not isinstance(job.get("bundle", True), bool):
        raise Refusal("rerun or bundle is not what it should be")
    if job.get("retry") is not None:
        _check_policy(job)
    _check_after(job)


def _check_policy(job: "Dict[str, Any]") -> None:
    from . import policy

    why = policy.wrong(job["retry"])
    if why:
        raise Refusal(why)
    if keeps_inputs(job) and sum(item["size"] for item in job["files"]) > policy.MOST_COPIED:
        raise Refusal("its inputs are too large to be kept for retries: resume = true needs no copies of them")


def keeps_inputs(job: "Dict[str, Any]") -> bool:
    """Whether a job's inputs are kept as they were uploaded, to be tried again from them."""
    return bool(job.get("retry")) and not job["retry"].get("resume")


def _check_after(job: "Dict[str, Any]") -> None:
    after = job.get("after", [])
    if not isinstance(after, list) or len(after) > MAX_PARENTS or job.get("if", "ok") not in ("ok", "any", "fail"):
        raise Refusal("it must wait for at most %d jobs, if they end ok, any or fail" % MAX_PARENTS)
    for parent in after:
        if not isinstance(parent, list) or len(parent) != 3 or not isinstance(parent[2], str) or len(parent[2]) > 20:
            raise Refusal("what it waits for is no job, attempt and state")
        if key_of({"job": parent[0], "attempt": parent[1]})[0] == job["job"]:
            raise Refusal("it waits for itself")
