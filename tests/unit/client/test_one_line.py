"""One line of config.toml is changed, and no other byte; what could not be read back as meant is not written."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from chasqui_agent import files
from chasqui_client import config, errors, one_line
from chasqui_client.config import Home

LINE = b'wake_via = "direct"'


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


def change(home: Home, text: bytes, remote: str = "hpc") -> bytes:
    home.config_path.write_bytes(text)
    assert one_line.set_text(home, remote, "wake_via", "direct")
    assert home.config().remote(remote).wake_via == "direct"
    return home.config_path.read_bytes()


def test_of_what_init_writes_the_comment_stays(home: Home) -> None:
    config.init(home, "other", "b")
    config.init(home, "hpc", "a")
    text = home.config_path.read_bytes()
    changed = change(home, text)
    shown = b'\n#wake_via = "auto" '
    at = text.index(b"\n", text.rindex(shown) + 1) + 1
    assert changed == text[:at] + LINE + b"\n" + text[at:]
    assert home.config().remote("other").wake_via == "auto"


@pytest.mark.parametrize(("before", "after"), [
    (b'[remotes.hpc]\nhost = "a"\n\twake_via =  "sync"   # why not\nroot = "~/x"\n',
     b'[remotes.hpc]\nhost = "a"\n\twake_via =  "direct"   # why not\nroot = "~/x"\n'),
    (b"[remotes.hpc]\nhost = 'a'\nwake_via = 'sync'", b"[remotes.hpc]\nhost = 'a'\nwake_via = \"direct\""),
    (b'# \xc3\xa9\r\n[ remotes . "hpc" ] # mine\r\nhost = "a"\r\n',
     b'# \xc3\xa9\r\n[ remotes . "hpc" ] # mine\r\nwake_via = "direct"\r\nhost = "a"\r\n'),
    (b'[remotes.x]\nhost="b"\nwake_via = "sync"\n[remotes.hpc]\nhost = "a"\n[remotes.hpc.caps]\n',
     b'[remotes.x]\nhost="b"\nwake_via = "sync"\n[remotes.hpc]\nwake_via = "direct"\nhost = "a"\n[remotes.hpc.caps]\n'),
    (b'[remotes.hpc.caps]\nmax_running = 3\n[remotes.hpc]\nhost = "a"\nbandwidth = "2MiB/s"',
     b'[remotes.hpc.caps]\nmax_running = 3\n[remotes.hpc]\nwake_via = "direct"\nhost = "a"\nbandwidth = "2MiB/s"'),
], ids=["a value", "no end of line", "crlf", "of several", "last"])
def test_nothing_else_moves(home: Home, before: bytes, after: bytes) -> None:
    assert change(home, before) == after


@pytest.mark.parametrize("text", [
    b'remotes.hpc.host = "a"\n',
    b'[remotes]\nhpc = {host = "a"}\n',
    b'[remotes]\nhpc.host = "a"\n',
    b'[remotes.hpc]\nhost = "a"\n"wake_via" = "sync"\n',
    b'[jobs]\ninputs = ["""\n[remotes.hpc]\n"""]\n[remotes]\nhpc = {host = "a"}\n',
], ids=["dotted", "inline", "half dotted", "a quoted key", "a text that looks like it"])
def test_what_is_written_another_way_is_left_to_the_user(home: Home, text: bytes) -> None:
    home.config_path.write_bytes(text)
    with pytest.raises(one_line.NotOneLine) as caught:
        one_line.set_text(home, "hpc", "wake_via", "direct")
    assert home.config_path.read_bytes() == text
    assert caught.value.hint == 'put this under [remotes.hpc] yourself: wake_via = "direct"'


def test_what_is_said_already_is_not_written_again(home: Home) -> None:
    home.config_path.write_bytes(b'[remotes.hpc]\nhost = "a"\n')
    before = home.config_path.stat().st_mtime_ns
    assert not one_line.set_text(home, "hpc", "wake_via", "auto")
    assert home.config_path.stat().st_mtime_ns == before


def test_a_link_and_the_mode_stay(home: Home, tmp_path: Path) -> None:
    kept = tmp_path / "dotfiles.toml"
    kept.write_bytes(b'[remotes.hpc]\nhost = "a"\n')
    kept.chmod(0o640)
    home.config_path.symlink_to(kept)
    assert one_line.set_text(home, "hpc", "wake_via", "direct")
    assert home.config_path.is_symlink() and kept.stat().st_mode & 0o777 == 0o640
    assert LINE in kept.read_bytes()


def test_until_the_new_one_is_whole_the_old_one_is(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b'[remotes.hpc]\nhost = "a"\n'
    home.config_path.write_bytes(text)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(one_line.NotWritten, match="no space left"):
        one_line.set_text(home, "hpc", "wake_via", "direct")
    monkeypatch.undo()
    assert home.config_path.read_bytes() == text and os.listdir(home.path) == ["config.toml"]


def meanwhile(monkeypatch: pytest.MonkeyPatch, path: Path, texts: list[bytes]) -> None:
    """While the new file is made durable, an editor replaces the old one, once for each of `texts`."""
    real = os.fsync

    def slow(fd: int) -> None:
        real(fd)
        if texts and stat.S_ISREG(os.fstat(fd).st_mode):
            path.write_bytes(texts.pop(0))

    monkeypatch.setattr(files.os, "fsync", slow)


def test_what_an_editor_writes_at_the_same_time_is_kept(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.config_path.write_bytes(b'[remotes.hpc]\nhost = "a"\n')
    meanwhile(monkeypatch, home.config_path, [b'[remotes.hpc]\nhost = "b"\n'])
    assert one_line.set_text(home, "hpc", "wake_via", "direct")
    assert home.config_path.read_bytes() == b'[remotes.hpc]\n' + LINE + b'\nhost = "b"\n'
    assert os.listdir(home.path) == ["config.toml"]


def test_a_file_that_never_rests_is_left_alone(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [b'[remotes.hpc]\nhost = "%d"\n' % n for n in range(100)]
    home.config_path.write_bytes(texts[0])
    meanwhile(monkeypatch, home.config_path, texts[1:])
    with pytest.raises(one_line.NotWritten, match="another program changes it") as caught:
        one_line.set_text(home, "hpc", "wake_via", "direct")
    assert caught.value.hint == 'put this under [remotes.hpc] yourself: wake_via = "direct"'
    assert LINE not in home.config_path.read_bytes() and os.listdir(home.path) == ["config.toml"]


def test_whom_it_was_open_to_it_still_is(home: Home) -> None:
    home.config_path.write_bytes(b'[remotes.hpc]\nhost = "a"\n')
    home.config_path.chmod(0o664)
    mask = os.umask(0o077)
    try:
        assert one_line.set_text(home, "hpc", "wake_via", "direct")
    finally:
        os.umask(mask)
    assert home.config_path.stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize(("modes", "why"), [
    ((0o700, 0o400), "it is read-only"),
    ((0o500, 0o600), "permission denied"),
], ids=["file", "folder"])
def test_what_is_read_only_stays_so(memory_path: Path, modes: tuple[int, int], why: str) -> None:
    """By a user without root's rights, who owns both: a folder of dotfiles that something else writes."""
    text = b'[remotes.hpc]\nhost = "a"\n'
    home = Home(memory_path / "home").create()
    home.config_path.write_bytes(text)
    nobody = os.getuid() or 65534
    memory_path.chmod(0o755)
    for path, mode in zip((home.path, home.config_path), modes, strict=True):
        os.chown(path, nobody, -1)
        path.chmod(mode)
    assert as_user(nobody, lambda: one_line.set_text(home, "hpc", "wake_via", "direct")) == (
        "%s was not changed: %s" % (home.config_path, why),
        'put this under [remotes.hpc] yourself: wake_via = "direct"')
    assert home.config_path.read_bytes() == text and os.listdir(home.path) == ["config.toml"]


def as_user(uid: int, act: Callable[[], object]) -> tuple[str, str]:
    """Message and hint of what `act` raises, done by a process of that user's."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            if os.getuid() != uid:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            act()
        except errors.ChasquiError as error:
            os.write(writing, json.dumps([str(error), error.hint]).encode())
        except BaseException as error:
            os.write(writing, json.dumps([repr(error), ""]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as stream:
        said = stream.read()
    os.waitpid(pid, 0)
    message, hint = json.loads(said or b'["nothing was raised", ""]')
    return message, hint
