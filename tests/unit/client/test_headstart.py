"""What a sync begins before anything is imported: only what it would begin anyway, and nothing stays behind."""

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chasqui_client import headstart
from chasqui_client.headstart import NONCE

WORDS = ["/bin/sh", "-c", f"echo {NONCE}; cat; exit 7"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A client's home after a sync through a live master: a configuration, its lock, its note."""
    place = tmp_path / "home"
    place.mkdir()
    monkeypatch.setenv("CHASQUI_HOME", str(place))
    for name in ("config.toml", "sync-hpc.lock", "socket"):
        (place / name).write_text("")
    _new_process(monkeypatch)
    headstart.begin([])
    headstart.leave(str(place / "sync-hpc.lock"), str(place / "socket"), WORDS)
    _new_process(monkeypatch)
    yield place
    headstart.drop()


def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headstart, "_ahead", headstart._Ahead())


def _locked(path: Path) -> bool:
    """Whether somebody else has the lock."""
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True


def test_it_begins_what_was_left_and_holds_the_lock(home: Path) -> None:
    headstart.begin([])
    assert _locked(home / "sync-hpc.lock")
    begun = headstart.take_session(WORDS)
    assert begun
    nonce, child = begun
    assert len(nonce) == 32
    assert int(nonce, 16) >= 0
    assert os.read(child.stdout, 100) == nonce.encode() + b"\n"
    child.close_input()
    assert child.wait() == 7
    child.close()
    fd = headstart.take_lock(str(home / "sync-hpc.lock"))
    assert fd is not None
    assert (headstart.take_session(WORDS), headstart.take_lock(str(home / "sync-hpc.lock"))) == (None, None)
    headstart.drop()
    assert _locked(home / "sync-hpc.lock")  # what was taken is not dropped
    os.close(fd)


def test_other_words_are_not_taken_and_nothing_stays(home: Path) -> None:
    headstart.begin([])
    assert headstart._ahead.session
    child = headstart._ahead.session[2]
    assert headstart.take_session([*WORDS, "more"]) is None
    assert headstart.take_lock(str(home / "sync-other.lock")) is None
    headstart.drop()
    assert child.poll() == 7  # its input ended
    assert (child.stdin, child.stdout, child.stderr) == (-1, -1, -1)
    assert not _locked(home / "sync-hpc.lock")


@pytest.mark.parametrize("words", [["-h"], ["--dry-run"], ["--remote", "other"], ["--remote=other"],
                                   ["--remote=../x/sync"], ["--remote=a\0b"]])
def test_what_is_not_plain_is_left_alone(home: Path, words: list[str]) -> None:
    headstart.begin(words)
    assert headstart.take_session(WORDS) is None
    assert not _locked(home / "sync-hpc.lock")


def test_each_name_typed_has_its_own_note(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headstart.begin(["--remote", "hpc"])
    headstart.leave(str(home / "sync-hpc.lock"), str(home / "socket"), [*WORDS, "named"])
    for typed, words in ((["--remote=hpc"], [*WORDS, "named"]), ([], WORDS)):
        _new_process(monkeypatch)
        headstart.begin(typed)
        begun = headstart.take_session(words)
        assert begun
        begun[1].close()
        begun[1].wait()
        headstart.drop()


def _other_config(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "config.toml").write_text("# changed")


def _same_size(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(home / "config.toml", ns=(1, 1))


def _no_config(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "config.toml").unlink()


def _no_master(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "socket").unlink()


def _other_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/elsewhere")


def _other_runtime(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/elsewhere")


@pytest.mark.parametrize("change", [_other_config, _same_size, _no_config, _no_master, _other_user, _other_runtime])
def test_nothing_is_begun_where_something_changed(home: Path, monkeypatch: pytest.MonkeyPatch, change) -> None:
    change(home, monkeypatch)
    headstart.begin([])
    assert headstart.take_session(WORDS) is None
    assert not _locked(home / "sync-hpc.lock")


def test_nothing_is_begun_while_another_sync_runs(home: Path) -> None:
    with open(home / "sync-hpc.lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        headstart.begin([])
        assert headstart.take_session(WORDS) is None
        assert headstart.take_lock(str(home / "sync-hpc.lock")) is None


@pytest.mark.parametrize("note", [b"", b"\0", b"\0" * 50, b"\xff\xfe", b"chasqui start 1", os.urandom(500)])
def test_a_broken_note_is_no_note(home: Path, note: bytes) -> None:
    (home / "sync.start").write_bytes(note)
    headstart.begin([])
    assert headstart.take_session(WORDS) is None


def test_a_note_cut_anywhere_begins_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (home / "sync.start").read_bytes()
    for length in range(len(whole)):
        _new_process(monkeypatch)
        (home / "sync.start").write_bytes(whole[:length])
        headstart.begin([])
        assert headstart._ahead.session is None
    assert not _locked(home / "sync-hpc.lock")


def test_a_program_that_is_gone_is_not_fatal(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headstart.begin([])
    headstart.leave(str(home / "sync-hpc.lock"), str(home / "socket"), ["/nonexistent/ssh"])
    headstart.drop()
    _new_process(monkeypatch)
    headstart.begin([])
    assert headstart.take_session(["/nonexistent/ssh"]) is None
    headstart.drop()
    assert not _locked(home / "sync-hpc.lock")


def test_a_note_is_written_only_when_it_says_something_new(home: Path) -> None:
    before = (home / "sync.start").stat()
    headstart.begin([])
    headstart.leave(str(home / "sync-hpc.lock"), str(home / "socket"), WORDS)
    after = (home / "sync.start").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert before.st_mode & 0o777 == 0o600
    headstart.leave(str(home / "sync-hpc.lock"), str(home / "socket"), [*WORDS, "new"])
    assert (home / "sync.start").stat().st_ino != before.st_ino


def test_a_configuration_that_changes_meanwhile_is_seen_the_next_time(
        home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headstart.begin([])
    time.sleep(0.01)
    (home / "config.toml").write_text("# saved by an editor while this sync ran")
    headstart.leave(str(home / "sync-hpc.lock"), str(home / "socket"), [*WORDS, "of the old configuration"])
    headstart.drop()
    _new_process(monkeypatch)
    headstart.begin([])
    assert headstart.take_session([*WORDS, "of the old configuration"]) is None


def test_users_of_the_api_leave_no_note(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "sync.start").unlink()
    headstart.leave(str(home / "sync-hpc.lock"), str(home / "socket"), WORDS)
    assert not (home / "sync.start").exists()
