"""Does this very file system do what the relay rests on? Asked once, at install or by hand."""

import errno
import os

from . import files, journal
from .lock import Lock, create_link, read_link

MYPY = False
if MYPY:
    from typing import Callable, List, Tuple


def run(folder: str) -> "List[Tuple[str, str]]":
    """(what was tried, "" or what is wrong) for each check, in a scratch folder below `folder` that is removed
    again."""
    scratch = os.path.join(folder, ".selftest.%d" % os.getpid())
    os.mkdir(scratch, 0o700)
    results = []
    try:
        for name, check in CHECKS:
            try:
                results.append((name, check(scratch)))
            except OSError as error:
                results.append((name, "%s (%s)" % (error.strerror, errno.errorcode.get(error.errno or 0, "?"))))
    finally:
        import shutil

        shutil.rmtree(scratch, ignore_errors=True)
    return results


def _rename(folder: str) -> str:
    files.replace_file(os.path.join(folder, "a"), b"one")
    files.replace_file(os.path.join(folder, "a"), b"two")
    with open(os.path.join(folder, "a"), "rb") as stream:
        return "" if stream.read() == b"two" and os.listdir(folder) == ["a"] else "rename over a file left the old one"


def _exclusive(folder: str) -> str:
    path = os.path.join(folder, "x")
    files.write_file(path, b"", exclusive=True)
    try:
        files.write_file(path, b"", exclusive=True)
    except FileExistsError:
        return ""
    return "O_EXCL created a file that existed"


def _links(folder: str) -> str:
    path = os.path.join(folder, "l")
    text = "owner " * 60
    if not create_link(path, text) or create_link(path, "other"):
        return "two creations of one name both succeeded"
    return "" if read_link(path) == text else "a link's text came back changed"


def _append(folder: str) -> str:
    log = os.path.join(folder, "log")
    os.mkdir(log)
    writer = journal.Writer(log, 1)
    writer.append({"ev": "one"})
    writer.append({"ev": "two"})
    writer.close()
    return (
        ""
        if [record["ev"] for _, record in journal.records(log)] == ["one", "two"]
        else "appended records are not there"
    )


def _lock(folder: str) -> str:
    place = os.path.join(folder, "lock")
    os.mkdir(place)
    first, second = Lock(place), Lock(place)
    if not first.acquire() or second.acquire():
        return "the lock was given twice, or not at all"
    first.check()
    return "" if first.release() and second.acquire() else "the lock was not given back"


def _times(folder: str) -> str:
    import time

    skew = files.server_time(folder) - time.time()
    return (
        ""
        if abs(skew) < 300
        else "this node's clock and the file server's differ by %d s (works, but logs will mislead)" % skew
    )


def _shell(folder: str) -> str:
    path = os.path.join(folder, "room")
    files.write_file(path, b" " * 4096)
    code = os.system("printf 'exit=0\\nwhole\\n' 1<>'%s' && mv '%s' '%s.flag'" % (path, path, path))
    return "" if code == 0 and os.path.getsize(path + ".flag") == 4096 else "sh cannot write into a file in place"


CHECKS: "List[Tuple[str, Callable[[str], str]]]" = [
    ("rename over a file", _rename),
    ("exclusive create", _exclusive),
    ("symlink and read back", _links),
    ("append and fsync", _append),
    ("lock", _lock),
    ("flag written by sh", _shell),
    ("clock", _times),
]
