"""A child process and its pipes, as `transport` relies on them."""

import os
import signal
from pathlib import Path

import pytest

from chasqui_client.child import Child


def _shell(script: str) -> Child:
    return Child(["/bin/sh", "-c", script])


def _all(fd: int) -> bytes:
    pieces = iter(lambda: os.read(fd, 4096), b"")
    return b"".join(pieces)


def test_three_streams_and_a_status() -> None:
    child = _shell("cat; echo said >&2; exit 5")
    os.write(child.stdin, b"words")
    child.close_input()
    assert (_all(child.stdout), _all(child.stderr)) == (b"words", b"said\n")
    assert (child.wait(), child.wait(), child.poll()) == (5, 5, 5)
    child.close()
    child.close()


def test_a_running_child_has_no_status_and_can_be_killed() -> None:
    child = _shell("cat")
    assert child.poll() is None
    child.kill()
    assert child.wait() == -signal.SIGKILL
    child.kill()  # of what has ended: nothing, whoever has its number now
    child.close()


def test_it_has_a_session_of_its_own_and_signals_as_a_shell_gives_them() -> None:
    """Ctrl-C is not for it; a pipe that nobody reads ends it, although Python ignores that signal."""
    child = _shell("ps -o sid= -p $$; while :; do echo more; done")
    assert int(os.read(child.stdout, 100).split()[0]) == child.pid
    os.close(child.stdout)
    child.stdout = os.open(os.devnull, os.O_RDONLY)
    assert child.wait() in (-signal.SIGPIPE, 128 + signal.SIGPIPE)
    child.close()


def test_no_descriptor_is_left_where_there_is_no_such_program() -> None:
    before = set(os.listdir("/dev/fd"))
    with pytest.raises(FileNotFoundError):
        Child(["no-such-program-anywhere"])
    assert set(os.listdir("/dev/fd")) == before


def test_it_inherits_nothing_but_its_streams(tmp_path: Path) -> None:
    other = _shell("cat")
    with open(tmp_path / "ours", "w") as ours:
        own = (ours.fileno(), other.stdin, other.stdout, other.stderr)
        child = _shell("for fd in %d %d %d %d; do [ -e /dev/fd/$fd ] && echo inherited $fd; done; echo end" % own)
        assert _all(child.stdout) == b"end\n"
    for one in (child, other):
        one.close()
        one.wait()
