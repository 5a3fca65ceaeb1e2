"""`sync` and `sync --watch` over an `ssh` that fails as it is told: a program on PATH, the agent behind it is real."""

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from chasqui_client import cli, retry, ssh, states
from session.desk import Desk

# Its master is a file. Each work session takes the next word of `modes`; none left, or "ok": it works.
SSH = '''#!/bin/sh
cd {world} || exit 255
for word; do
  last=$word
  case $word in ControlPath=*) socket=${{word#ControlPath=}} ;; esac
done
case " $* " in
  *" -O "*) [ -e master ] || exit 255; exit 0 ;;
  *" -fN "*)
    echo login >>log
    [ -e denied ] && {{ echo "jane@h: Permission denied (keyboard-interactive)." >&2; exit 255; }}
    : >master; : >"$socket"; exit 0 ;;
esac
[ -e master ] || {{ echo "Control socket connect($socket): Connection refused" >&2; exit 255; }}
read -r mode <modes
sed -i 1d modes
echo "work ${{mode:-ok}}" >>log
case $mode in
  dropped) exit 255 ;;
  died) rm master; exit 255 ;;
  timeout) echo "Timeout, server h not responding." >&2; exit 255 ;;
  cut) /bin/sh -c "$last" | head -c 100; exit 255 ;;
  damaged) /bin/sh -c "$last" </dev/null | head -n 1; printf 'X%060d' 0; exec cat >/dev/null ;;
esac
exec /bin/sh -c "$last"
'''


class World(Desk):
    """A desk whose remote is reached through that ssh."""

    def __init__(self, path: Path, sockets: str) -> None:
        super().__init__(path)
        self.deploy()
        self.at = path / "ssh"
        self.at.mkdir()
        program = self.at / "ssh"
        program.write_text(SSH.format(world=self.at))
        program.chmod(0o755)
        self.home.config_path.write_text(self.home.config_path.read_text().replace('"local"', '"h"', 1))
        self.remote = self.home.config().remote("here")
        self.socket = Path(ssh.control_path(self.remote, self.home))
        self.modes()

    def connected(self) -> "World":
        (self.at / "master").touch()
        self.socket.touch()
        return self

    def modes(self, *modes: str) -> None:
        (self.at / "modes").write_text("".join(mode + "\n" for mode in modes))

    def log(self) -> list[str]:
        log = self.at / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def world(tmp_path, monkeypatch):
    # A short path: ssh's socket must find room in an address, and tmp_path is a long one.
    sockets = tempfile.mkdtemp(prefix="cq", dir="/tmp")
    monkeypatch.setenv("XDG_RUNTIME_DIR", sockets)
    monkeypatch.setenv("CHASQUI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(retry, "DELAYS", (0.05, 0.1, 0.15))
    made = World(tmp_path, sockets)
    monkeypatch.setenv("PATH", "%s:%s" % (made.at, os.environ["PATH"]))
    yield made
    shutil.rmtree(sockets)


def test_without_watch_a_lost_connection_is_one_line(world, capfd):
    world.connected().modes("dropped")
    assert cli.main(["sync"]) == 5
    assert capfd.readouterr().err == (
        "chasqui: here: the connection broke: ssh ended without a word. What was acknowledged is safe, the rest goes "
        "with the next sync.\n  hint: chasqui sync --remote here\n")
    assert world.log() == ["work dropped"]


def test_watch_outlives_the_network_and_finishes(world, capfd, monkeypatch):
    monkeypatch.setenv("CHASQUI_IDLE", "2")  # of the agent behind the line that is cut
    job, = world.add(world.folder("one", "echo out >out"))
    world.connected().modes("dropped", "timeout", "cut", "ok", "dropped")
    assert cli.main(["sync", "--watch", "0.1"]) == 0
    said = capfd.readouterr()
    assert said.err.count("  next try at ") == 4, said
    assert world.log()[:6] == ["work dropped", "work timeout", "work cut", "work ok", "work dropped", "work ok"]
    assert "login" not in world.log()
    world.completed(job)
    assert world.lines() == ["one"]


def test_what_is_damaged_twice_ends_the_watch(world, capfd):
    world.add(world.folder("one"))
    world.connected().modes("damaged", "damaged", "ok")
    assert cli.main(["sync", "--watch", "0.1"]) == 6
    assert world.log() == ["work damaged", "work damaged"]
    assert capfd.readouterr().err.count("does not keep to the protocol") == 2


def test_without_a_terminal_a_dead_master_ends_the_watch(world, capfd):
    job, = world.add(world.folder("one", "sleep 1"))
    world.connected().modes("ok", "died")
    assert cli.main(["sync", "--watch", "0.1"]) == 5
    assert "hint: chasqui login here, then: chasqui sync --remote here" in capfd.readouterr().err
    assert world.log() == ["work ok", "work died"]
    assert cli.main(["sync", "--watch", "0.1"]) == 4
    assert "hint: chasqui login here" in capfd.readouterr().err
    assert world.log() == ["work ok", "work died"]
    world.connected()
    assert cli.main(["sync", "--watch", "0.1"]) == 0
    world.completed(job)


@contextlib.contextmanager
def _terminal(monkeypatch):
    """A person's terminal: yields what types at it."""
    master, slave = os.openpty()
    with os.fdopen(slave, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr("chasqui_client.command.Command.interactive", True)
        yield lambda: os.write(master, b"\n")
    os.close(master)


def _when(true, act, seconds=30.0):
    """Do something in the background as soon as something is true, again and again until nobody cares."""
    over = threading.Event()

    def wait():
        end = time.monotonic() + seconds
        while not over.is_set() and time.monotonic() < end:
            if true():
                act()
            time.sleep(0.1)

    thread = threading.Thread(target=wait)
    thread.start()
    return lambda: (over.set(), thread.join())


def test_at_a_terminal_enter_logs_in_again(world, monkeypatch, capfd):
    job, = world.add(world.folder("one", "sleep 0.5"))
    world.connected().modes("ok", "died")
    with _terminal(monkeypatch) as enter:
        enter()  # long before anybody was asked: no answer
        stop = _when(lambda: "work died" in world.log() and not (world.at / "master").exists(), enter)
        try:
            assert cli.main(["sync", "--watch", "0.1"]) == 0
        finally:
            stop()
    said = capfd.readouterr().err
    assert said.count("Press Enter to log in here; or elsewhere: chasqui login here.") == 1
    assert world.log()[:4] == ["work ok", "work died", "login", "work ok"]
    world.completed(job)


def test_a_login_elsewhere_lets_the_watch_go_on(world, monkeypatch, capfd):
    monkeypatch.setattr("chasqui_client.watch._LOOK", 0.1)
    job, = world.add(world.folder("one", "sleep 0.5"))
    world.connected().modes("ok", "died")
    with _terminal(monkeypatch):
        stop = _when(lambda: "work died" in world.log() and not (world.at / "master").exists(), world.connected)
        try:
            assert cli.main(["sync", "--watch", "0.1"]) == 0
        finally:
            stop()
    assert "login" not in world.log()
    world.completed(job)


def test_a_login_that_is_refused_is_never_tried_twice(world, monkeypatch, capfd):
    world.add(world.folder("one"))
    (world.at / "denied").touch()
    with _terminal(monkeypatch):
        assert cli.main(["sync", "--watch", "0.1"]) == 4
    assert world.log() == ["login"]
    assert "Permission denied" in capfd.readouterr().err
    with world.ledger() as ledger:
        assert ledger.counts("here") == {states.QUEUED_LOCAL: 1}
    assert stat.S_IMODE(world.socket.parent.stat().st_mode) == 0o700
