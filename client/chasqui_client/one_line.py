"""Changing one line of config.toml, and nothing else in it: comments, order and blanks stay as the user wrote them."""

import errno
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


_TRIES = 5


class NotOneLine(errors.BadInput):
    """{path} says this in a way that is not changed by replacing one line of it."""

    hint = "put this under [remotes.{remote}] yourself: {line}"


class NotWritten(errors.ChasquiError):
    """{path} was not changed: {message}"""

    hint = "put this under [remotes.{remote}] yourself: {line}"


def line(key: str, value: str) -> str:
    """The line that says it."""
    return '%s = "%s"' % (key, value)


def set_text(home: Home, remote: str, key: str, value: str) -> bool:
    """Have config.toml say `key = "value"` for a remote; False where it did already.

    Every other byte stays, what an editor writes at the same time included. The file is the old one, whole, until the
    new one is on the disk, whole. Nothing is changed where NotOneLine (a table is written another way than `init`
    does), NotWritten or BadConfig is raised.
    """
    path = os.path.realpath(home.config_path)  # often a link into a repository of dotfiles
    told: dict[str, Any] = {"path": home.config_path, "remote": remote, "line": line(key, value)}
    try:
        for _ in range(_TRIES):
            text = _read(path)
            changed = _with(text, home, remote, key, value)
            if changed is None:
                raise NotOneLine(**told)
            if changed == text or _replaced(path, text, changed):
                return changed != text
    except OSError as error:
        raise NotWritten(errors.describe(error), **told) from error
    raise NotWritten("another program changes it all the time", **told)


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def _with(text: bytes, home: Home, remote: str, key: str, value: str) -> bytes | None:
    """The text that says it, `text` itself where it does; None where no change of one line has that meaning alone."""
    before = _parsed(text, home)
    old = before.remote(remote)
    if getattr(old, key) == value:
        return text
    said: dict[str, Any] = {key: value}
    wanted = replace(before, remotes={**before.remotes, remote: replace(old, **said)})
    changed = _changed(text, remote, key, value)
    return changed if changed is not None and _says(changed, wanted, home) else None


def _replaced(path: str, before: bytes, text: bytes) -> bool:
    """Put `text` there, as private as the file is; False where it is no longer what it was `before`."""
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "it is read-only", path)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, ".%s.%d.tmp" % (name, os.getpid()))
    try:
        files.write_file(temporary, text)
        os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
        same = _read(path) == before  # as late as can be: to write the other one may have taken seconds
        if same:
            os.rename(temporary, path)
            files.fsync_folder(folder)
        return same
    finally:
        files.remove(temporary)


def _parsed(text: bytes, home: Home) -> Config:
    try:
        return parse(text.decode("utf-8"), home.config_path)
    except UnicodeDecodeError as error:
        raise errors.BadConfig("not UTF-8 text", where=home.config_path) from error


def _says(text: bytes, wanted: Config, home: Home) -> bool:
    """Whether a text means what it meant, but for the one value."""
    try:
        return _parsed(text, home) == wanted
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
