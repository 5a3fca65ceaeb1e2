"""Making many files durable by one pass over their file system: an fsync for each is what made uploads slow."""

import errno
import os

from . import files

MYPY = False
if MYPY:
    from typing import Any, List

_known: "List[Any]" = []  # syncfs of the C library, or None where there is none


def settle(folders: "List[str]") -> None:
    """Everything below `folders` is on the disk when this returns: contents, names and modes. Raises OSError.

    Where there is syncfs(2) (Linux) it is called once for each file system, whatever else is dirty there goes with it.
    Kernels before 5.8 do not report through it that writing back failed; a full disk shows at write or, on NFS, at
    close all the same, and a medium that fails silently is what the hashes are for. Elsewhere each file and folder is
    fsynced.
    """
    seen = set()
    for folder in folders:
        device = os.stat(folder).st_dev
        if device not in seen:
            seen.add(device)
            if not _sync_file_system(folder):
                for each in folders:
                    _sync_tree(each)
                return


def _sync_file_system(folder: str) -> bool:
    """False where the system can't."""
    call = _syncfs()
    if call is None:
        return False
    fd = os.open(folder, os.O_RDONLY)
    try:
        if call(fd) == 0:
            return True
        import ctypes
        code = ctypes.get_errno()
        if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            return False
        raise OSError(code, os.strerror(code), folder)
    finally:
        os.close(fd)


def _syncfs() -> "Any":
    if not _known:
        try:
            import ctypes  # late: it costs 10 ms, and only sessions that bring jobs come here
            _known.append(ctypes.CDLL(None, use_errno=True).syncfs)
        except (ImportError, OSError, AttributeError):
            _known.append(None)
    return _known[0]


def _sync_tree(folder: str) -> None:
    for top, _, names in os.walk(os.fsencode(folder)):
        for name in names:
            fd = os.open(os.path.join(top, name), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        files.fsync_folder(os.fsdecode(top))
