"""Patterns for files of a job: *, **, ?, [..], relative to the job's folder, on bytes.

`*` and `?` stop at a slash, `**` does not. A pattern without a slash matches a name at any depth; one that matches a
folder matches everything in it. A leading "./" or "/" ties a pattern to the job's folder.
"""

import re

MYPY = False
if MYPY:
    from typing import Iterable, Optional, Pattern

LONGEST = 1000  # characters of a pattern that an agent takes


def compile_globs(patterns: "Iterable[str]") -> "Optional[Pattern[str]]":
    """One regular expression for all of `patterns`, None for none. Raises ValueError for an empty or odd one."""
    parts = [_translate(pattern) for pattern in patterns]
    return re.compile(r"(?s:(?:%s)(?:/.*)?)\Z" % "|".join(parts)) if parts else None


def matches(pattern: "Optional[Pattern[str]]", path: bytes) -> bool:
    """Whether the relative `path` matches; nothing matches None.

    Patterns came as UTF-8, so paths are read as such: os.fsdecode knows only ASCII under LC_ALL=C on Python 3.6.
    """
    return pattern is not None and pattern.match(path.decode("utf-8", "surrogateescape")) is not None


def literal(path: bytes) -> str:
    """A pattern that the relative `path` matches, and no other."""
    return "./" + re.sub(r"[*?[]", r"[\g<0>]", path.decode("utf-8", "surrogateescape"))


def _translate(pattern: str) -> str:
    bare = (pattern[2:] if pattern.startswith("./") else pattern).strip("/")
    if not bare or ".." in bare.split("/"):
        raise ValueError("not a pattern inside the job's folder: %r" % pattern)
    anywhere = "" if "/" in pattern.rstrip("/") else "(?:.*/)?"
    return anywhere + "".join(_piece(token) for token in re.findall(r"\*\*/|\*\*|\[!?\]?[^\]/]*\]|.", bare, re.S))


def _piece(token: str) -> str:
    fixed = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    if token in fixed:
        return fixed[token]
    if len(token) > 1:
        inside = token[1:-1].replace("\\", "\\\\").replace("[", "\\[")
        negated = inside.startswith("!")
        return "(?!/)[%s%s]" % ("^" if negated else "", inside[negated:].replace("^", "\\^").replace("]", "\\]"))
    return re.escape(token)
