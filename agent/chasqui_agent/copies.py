"""Copies of a file inside one file system, as cheap as it lets us: a reflink, else in the kernel, else by hand."""

import fcntl
import os

from . import wire

MYPY = False
if MYPY:
    from typing import Callable, Optional

    Tick = Optional[Callable[[], None]]

_FICLONE = 0x40049409  # Linux: the copy shares the blocks until either is written to (XFS, btrfs, bcachefs)
_PIECE = 64 << 20


def copy(source: "bytes", target: "bytes", mode: int, tick: "Tick" = None) -> None:
    """`target`, which must not exist, gets the content of `source`. Not durable; after an OSError it may be there
    in part. tick: called before every piece, and may raise.

    Never a hard link: jobs rewrite their inputs in place.
    """
    copy_open(os.open(source, os.O_RDONLY | os.O_CLOEXEC), target, mode, tick)


def copy_open(reading: int, target: "bytes", mode: int, tick: "Tick" = None) -> None:
    """`copy` of an open file, which is closed."""
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            _fill(reading, writing, tick or _nothing)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _nothing() -> None:
    pass


def _fill(reading: int, writing: int, tick: "Callable[[], None]") -> None:
    tick()
    try:
        fcntl.ioctl(writing, _FICLONE, reading)
        return
    except OSError:
        pass  # another kind of file system; what else is wrong shows below
    done = _in_kernel(reading, writing, tick)
    os.lseek(reading, done, os.SEEK_SET)
    os.lseek(writing, done, os.SEEK_SET)
    while True:
        tick()
        data = os.read(reading, wire.CHUNK)
        if not data:
            return
        wire.write_all(writing, data)


def _in_kernel(reading: int, writing: int, tick: "Callable[[], None]") -> int:
    """Bytes that the kernel has copied; it may stop anywhere, and what is missing is copied by hand."""
    done, size = 0, os.fstat(reading).st_size
    try:
        while done < size:
            tick()
            if hasattr(os, "copy_file_range"):  # Python 3.8
                step = os.copy_file_range(reading, writing, min(_PIECE, size - done), done, done)
            else:
                step = os.sendfile(writing, reading, done, min(_PIECE, size - done))
            if step == 0:
                break
            done += step
    except OSError:
        pass  # not between these two files
    return done
