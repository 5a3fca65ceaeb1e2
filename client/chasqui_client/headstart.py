"""ssh started before the client itself is: most of a sync is two programs starting, one here and one on the cluster,
and they can do it at the same time.

A sync leaves a note: the words of its ssh command, and all that they depend on. The next one, if nothing of that has
changed, takes the sync lock and starts that command first thing. Then it reads config.toml and does everything as
always; what runs is used only where its own words turn out to be the same ones, and else ended. (An agent that is not
spoken to does nothing, and goes when its stdin does.)

Imports only what `chasqui --version` has loaded already, and `fcntl`: everything else is what this is ahead of.
"""

import fcntl
import os

from .child import Child

NONCE = "@nonce@"  # stands in a note where each session has its own
_OTHER = ("-h", "--help", "--dry-run", "--all")
_FORMAT = "chasqui start 1"


class _Ahead:
    """What this process has begun."""

    note = ""  # path; "" where no note is wanted
    basis: tuple[str, ...] = ()  # what the words of a note depend on, as it was when we began
    lock: tuple[str, int] | None = None  # path, descriptor
    session: tuple[tuple[str, ...], str, Child] | None = None  # argv with NONCE, the nonce, ssh


_ahead = _Ahead()


def home_folder() -> str:
    """The client's own folder: $CHASQUI_HOME, else ~/.chasqui."""
    return os.path.abspath(os.path.expanduser(os.environ.get("CHASQUI_HOME") or "~/.chasqui"))


def begin(words: list[str]) -> None:
    """Start what `chasqui sync WORDS` ended up starting the last time. Where anything is odd, nothing is started."""
    home, name = home_folder(), _remote(words)
    if any(word in _OTHER for word in words) or "/" in name:
        return
    _ahead.note = os.path.join(home, "sync%s.start" % ("-" + name if name else ""))
    try:
        _ahead.basis = _basis(home)
        with open(_ahead.note, encoding="utf-8", errors="surrogateescape") as note:
            noted = tuple(note.read().split("\0"))
        count = len(_ahead.basis)
        lock, socket, program, *arguments, end = noted[count:]
        whole = noted[:count] == _ahead.basis and end == _FORMAT
        if whole and os.path.exists(socket) and _lock(lock):
            argv = [program, *arguments]
            nonce = os.urandom(16).hex()
            _ahead.session = tuple(argv), nonce, Child([word.replace(NONCE, nonce) for word in argv])
    except (OSError, ValueError):
        return


def _remote(words: list[str]) -> str:
    """What --remote says."""
    for at, word in enumerate(words):
        if word.startswith("--remote="):
            return word.partition("=")[2]
        if word == "--remote" and words[at + 1:]:
            return words[at + 1]
    return ""


def _basis(home: str) -> tuple[str, ...]:
    """Everything besides the command line that decides what ssh is told."""
    config = os.stat(os.path.join(home, "config.toml"))
    places = [os.environ.get(name, "") for name in ("HOME", "XDG_RUNTIME_DIR")]
    return (_FORMAT, home, *places, "%d %d %d" % (config.st_ino, config.st_size, config.st_mtime_ns))


def _lock(path: str) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return False
    _ahead.lock = path, fd
    return True


def take_lock(path: str) -> int | None:
    """The descriptor of the lock on `path`, if we hold it; the caller closes it."""
    if _ahead.lock is None or _ahead.lock[0] != path:
        return None
    fd, _ahead.lock = _ahead.lock[1], None
    return fd


def take_session(argv: list[str]) -> tuple[str, Child] | None:
    """(nonce, process) of the session begun with exactly these words; the caller ends it."""
    if _ahead.session is None or _ahead.session[0] != tuple(argv):
        return None
    (_, nonce, child), _ahead.session = _ahead.session, None
    return nonce, child


def leave(lock: str, socket: str, argv: list[str]) -> None:
    """Note what a session was started with, for the next sync; nothing is written where that stands there already."""
    if not _ahead.note or not _ahead.basis:
        return
    text = "\0".join((*_ahead.basis, lock, socket, *argv, _FORMAT)).encode("utf-8", "surrogateescape")
    try:
        with open(_ahead.note, "rb") as note:
            if note.read() == text:
                return
    except OSError:
        pass
    from chasqui_agent import files
    try:
        files.replace_file(_ahead.note, text, durable=False)
    except OSError:
        return  # a full disk: the next sync starts as late as this one


def drop() -> None:
    """End and release what was begun and not taken."""
    if _ahead.session is not None:
        from .transport import Channel
        Channel(_ahead.session[2]).close()
        _ahead.session = None
    if _ahead.lock is not None:
        os.close(_ahead.lock[1])
        _ahead.lock = None
