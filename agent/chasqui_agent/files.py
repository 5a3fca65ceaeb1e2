"""Durable file operations: atomic replace, exclusive create, fsync of folders. Everything here is 0600/0700."""

import errno
import json
import os

from . import fault, wire

MYPY = False
if MYPY:
    from typing import Any, List, Optional, Tuple

fault.register(
    {
        "files.replace.before": "temporary file written and fsynced, not yet renamed over its final name",
        "files.replace.after": "renamed, the folder not yet fsynced",
        "files.move.before": "before the rename that changes a state",
        "files.move.after": "after the rename that changes a state, folders not yet fsynced",
    }
)


def no_space(error: "Any") -> bool:
    """Whether it was for want of space, of inodes or of quota."""
    return getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT)


def fsync_folder(path: str) -> None:
    """Make the names in a folder durable. Some file systems refuse to fsync a folder: they order names themselves."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES):
            raise
    finally:
        os.close(fd)


def write_file(path: str, data: bytes, mode: int = 0o600, exclusive: bool = False, durable: bool = True) -> None:
    """Write `data` to `path`, and fsync it unless it may be lost with the power (`durable` False). After an error a
    partial file may stand there: callers write temporary names."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if exclusive else os.O_TRUNC)
    fd = os.open(path, flags, mode)
    try:
        wire.write_all(fd, data)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: str, data: bytes, mode: int = 0o600, durable: bool = True) -> None:
    """`path` holds `data`, whole, or is untouched: temporary file in the same folder, fsync, rename, fsync the
    folder."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, ".%s.%d.tmp" % (name, os.getpid()))
    try:
        write_file(temporary, data, mode, durable=durable)
        fault.point("files.replace.before")
        os.rename(temporary, path)
    except OSError:
        remove(temporary)
        raise
    fault.point("files.replace.after")
    if durable:
        fsync_folder(folder)


def move(old: str, new: str) -> None:
    """The one rename that is a change of state, made durable. Raises FileNotFoundError where `old` is no longer
    there."""
    fault.point("files.move.before")
    os.rename(old, new)
    fault.point("files.move.after")
    # One folder: file systems that log renames log both ends together, and NFS does not answer before it is done.
    fsync_folder(os.path.dirname(new))


def move_all(pairs: "List[Tuple[str, str]]") -> None:
    """`move` for several (old, new), made durable together. An error leaves those before it moved."""
    for old, new in pairs:
        fault.point("files.move.before")
        os.rename(old, new)
        fault.point("files.move.after")
    for folder in sorted({os.path.dirname(new) for _, new in pairs}):
        fsync_folder(folder)


def remove(path: str) -> bool:
    """Unlink; False where there was nothing."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def read_json(path: str, default: "Any" = None) -> "Any":
    """The JSON in `path`, or `default` where the file does not exist. Raises ValueError where it is damaged."""
    try:
        with open(path, "rb") as stream:
            return json.loads(stream.read().decode("utf-8"))
    except FileNotFoundError:
        return default


def dump_json(value: "Any") -> bytes:
    """`value` as JSON for a person's eyes; the same value gives the same bytes."""
    return json.dumps(value, indent=1, sort_keys=True).encode("ascii") + b"\n"


def write_json(path: str, value: "Any", durable: bool = True) -> None:
    """Atomically replace `path` by `value` as JSON."""
    replace_file(path, dump_json(value), durable=durable)


def names(folder: str) -> "List[str]":
    """The names in `folder`, sorted; none where it does not exist."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def server_time(folder: str) -> float:
    """The file server's idea of now, in seconds since 1970: the time a file created in `folder` this moment gets.

    The clocks of nodes differ by minutes on real clusters; ages are differences of times the file server gave.
    """
    scratch = os.path.join(folder, ".now.%d.%s" % (os.getpid(), os.urandom(4).hex()))
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        return os.fstat(fd).st_mtime
    finally:
        os.close(fd)
        remove(scratch)


def file_age(path: str, scratch_folder: str) -> "Optional[float]":
    """Seconds since `path` itself (not what it links to) was modified, by the file server's clock; None if it is
    gone."""
    try:
        modified = os.lstat(path).st_mtime
    except FileNotFoundError:
        return None
    return server_time(scratch_folder) - modified
