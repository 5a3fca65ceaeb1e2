"""Opening and walking what lies below a folder without ever following a symlink there.

Every component is opened relative to the descriptor of the one above it, so a folder that is replaced by a symlink
while we are on the way leads nowhere.
"""

import errno
import os
import stat

MYPY = False
if MYPY:
    from typing import Iterator, Tuple

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_DEPTH = 100


def open_folder(path: str) -> int:
    """A descriptor of the folder `path`, whose last component must not be a symlink (the ones above may be)."""
    return os.open(path, _FOLDER)


def open_below(folder: int, name: bytes) -> int:
    """A descriptor of the folder `name` in the descriptor `folder`."""
    return os.open(name, _FOLDER, dir_fd=folder)


def open_file(folder: int, path: bytes, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """A descriptor of the regular file `path`, relative to the descriptor `folder`.

    Raises OSError, also (ELOOP) where any component is a symlink or the file is something else than a regular one.
    """
    # O_NONBLOCK: opening a fifo that somebody put there must not wait for its other end.
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if b"/" not in path:
        fd = os.open(path, flags, mode, dir_fd=folder)
    else:
        above, name = open_above(folder, path)
        try:
            fd = os.open(name, flags, mode, dir_fd=above)
        finally:
            os.close(above)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ELOOP, "not a regular file")
    return fd


def open_above(folder: int, path: bytes) -> "Tuple[int, bytes]":
    """(descriptor of the folder that holds `path`, its name there); OSError (ELOOP, ENOTDIR) where a symlink leads."""
    *parents, name = path.split(b"/")
    above = os.dup(folder)
    try:
        for parent in parents:
            below = os.open(parent, _FOLDER, dir_fd=above)
            os.close(above)
            above = below
    except OSError:
        os.close(above)
        raise
    return above, name


def walk(
    folder: int, prefix: bytes = b"", depth: int = 0, leave: str = ""
) -> "Iterator[Tuple[bytes, os.stat_result]]":
    """(path, status) of every regular file below the descriptor `folder`, sorted; symlinks and odd files are left out.

    What disappears meanwhile, or can't be read, is left out as well, and the folder's own entry `leave`.
    """
    for text in sorted(os.listdir(folder)):
        if text == leave:
            continue
        name = os.fsencode(text)
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            yield prefix + name, status
        elif stat.S_ISDIR(status.st_mode) and depth < MAX_DEPTH:
            for item in _walk_below(folder, name, prefix, depth):
                yield item


def _walk_below(folder: int, name: bytes, prefix: bytes, depth: int) -> "Iterator[Tuple[bytes, os.stat_result]]":
    try:
        below = open_below(folder, name)
    except OSError:
        return
    try:
        for item in walk(below, prefix + name + b"/", depth + 1):
            yield item
    finally:
        os.close(below)
