"""Changing one line of config.toml, and nothing else in it: comments, order and blanks stay as the user wrote them."""

import os
import re
import stat
from typing import Any

from chasqui_agent import files

from . import errors
from .config import Config, Home, parse
from .fields import replace

_HEADER = rb"^[ \t]*\[[ \t]*remotes[ \t]*\.[ \t]*(?:%s|\"%s\"|'%s')[ \t]*\][ \t]*(?:#[^\n]*)?(?:\r?\n|\Z)"
_NEXT = re.compile(rb"^[ \t]*\[", re.M)
_VALUE = rb"""^[ \t]*%s[ \t]*=[ \t]*("[^"\\\n]*"|'[^'\n]*')[ \t]*(?:#[^\n]*)?(?:\r?\n|\Z)"""
_SHOWN = rb"^[ \t]*#[ \t]*%s[ \t]*=[^\n]*(?:\n|\Z)"


class NotOneLine(errors.BadInput):
    """{path} says this in a way that is not changed by replacing one line of it."""

    hint = "put this under [remotes.{remote}] yourself: {line}"


def line(key: str, value: str) -> str:
    """The line that says it."""
    return '%s = "%s"' % (key, value)


def set_text(home: Home, remote: str, key: str, value: str) -> bool:
    """Have config.toml say `key = "value"` for a remote; False where it did already.

    Every other byte stays. The file is the old one, whole, until the new one is on the disk, whole. Raises NotOneLine
    where a table is written another way than `init` does (nothing is changed then), BadConfig, HomeUnusable.
    """
    path = os.path.realpath(home.config_path)  # often a link into a repository of dotfiles
    try:
        with open(path, "rb") as stream:
            text, mode = stream.read(), stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
        before = parse(text.decode("utf-8"), home.config_path)
        old = before.remote(remote)
        if getattr(old, key) == value:
            return False
        said: dict[str, Any] = {key: value}
        wanted = replace(before, remotes={**before.remotes, remote: replace(old, **said)})
        changed = _changed(text, remote, key, value)
        if changed is None or not _says(changed, wanted):
            raise NotOneLine(path=home.config_path, remote=remote, line=line(key, value))
        files.replace_file(path, changed, mode)
    except OSError as error:
        raise errors.HomeUnusable(path=home.config_path, message=errors.describe(error)) from error
    return True


def _says(text: bytes, wanted: Config) -> bool:
    """Whether a text means what it meant, but for the one value."""
    try:
        return parse(text.decode("utf-8"), wanted.path) == wanted
    except errors.BadConfig:
        return False


def _changed(text: bytes, remote: str, key: str, value: str) -> bytes | None:
    name, word = re.escape(remote.encode("ascii")), re.escape(key.encode("ascii"))
    header = re.search(_HEADER % (name, name, name), text, re.M)
    if not header:
        return None
    following = _NEXT.search(text, header.end())
    end = following.start() if following else len(text)
    section = text[header.end() : end]
    old = re.search(_VALUE % word, section, re.M)
    if old:
        start, stop = (header.end() + place for place in old.span(1))
        return text[:start] + b'"%s"' % value.encode("utf-8") + text[stop:]
    shown = re.search(_SHOWN % word, section, re.M)  # the default, as `init` writes it: it stays, as a comment
    at = header.end() + shown.end() if shown else header.end()
    return _inserted(text, at, line(key, value).encode("utf-8"))


def _inserted(text: bytes, at: int, new: bytes) -> bytes:
    """A line more at the beginning of another one, or behind a last one that has no end."""
    end = b"\r\n" if b"\r\n" in text[:at] else b"\n"
    return text[:at] + (b"" if text[:at].endswith(b"\n") else end) + new + end + text[at:]
