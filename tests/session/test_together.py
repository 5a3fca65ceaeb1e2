"""`chasqui sync --all` as it is typed: several real relays on this machine, one that fails, two at once, Ctrl-C."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from agent.agentroot import until
from chasqui_client import api, errors, states
from chasqui_client.exchange import SyncOptions, SyncReport
from chasqui_client.jobs import Asked
from chasqui_client.progress import Progress
from chasqui_client.several.board import Board
from chasqui_client.sync import Exchange
from session.desk import Desk

TOP = Path(__file__).resolve().parents[2]
REMOTE = '[remotes.%s]\nhost = "%s"\nroot = "%s"\n[remotes.%s.caps]\nmax_running = %d\nmax_queued = %d\n'


class Several(Desk):
    """A desk with several remotes, and the command as a process."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(path)
        monkeypatch.setenv("CHASQUI_HOME", str(self.home.path))
        monkeypatch.setenv("PYTHONPATH", "%s:%s" % (TOP / "client", TOP / "agent"))
        self.home.config_path.write_text("")

    def remotes(self, caps: tuple[int, int] = (5, 5), **hosts: str) -> None:
        text = "".join(REMOTE % (name, host, self.path / name, name, *caps) for name, host in hosts.items())
        self.home.config_path.write_text(text)

    def add_to(self, remote: str, *names: str, script: str = "") -> None:
        folders = [os.fsencode(self.folder(name, script)) for name in names]
        target = self.home.config().remotes.get(remote)
        if target is None:
            assert self.chasqui("add", *map(os.fsdecode, folders), "--remote", remote)[0] == 0
        else:
            api.add(self.home, folders, Asked(), target)

    def start(self, *words: str, **more: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen([sys.executable, "-m", "chasqui_client", *words], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.path, **more)

    def chasqui(self, *words: str) -> tuple[int, str, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def answer(self, *words: str) -> tuple[int, dict[str, Any]]:
        code, out, _ = self.chasqui(*words, "--json")
        return code, json.loads(out)

    def all_ended(self) -> bool:
        self.chasqui("sync", "--all")
        return all(job.ended for job in self.jobs())

    def states(self) -> dict[str, str]:
        return {job.name: job.state for job in self.jobs()}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Several:
    return Several(tmp_path, monkeypatch)


def test_every_remote_is_synced_and_one_that_fails_stops_no_other(desk: Several) -> None:
    desk.remotes(one="local", nobody="nobody.invalid", two="local")
    desk.add_to("one", "a", "b")
    desk.add_to("two", "c")
    desk.add_to("nobody", "d")
    code, out, err = desk.chasqui("sync", "--all")
    assert code == errors.NotConnected.exit_code == 4
    assert re.search(r"^one: uploaded 2 jobs .* submitted 2", out, re.M), out
    assert re.search(r"^two: uploaded 1 job .* submitted 1", out, re.M), out
    assert all(line.startswith(("one: ", "two: ")) for line in out.splitlines())
    assert "chasqui: nobody: no live connection.\n  hint: chasqui login nobody\n" in err
    until(lambda: desk.all_ended() or sum(job.ended for job in desk.jobs()) == 3, "the others end", 60)
    assert desk.lines() == ["a", "b", "c"] and desk.states()["d"] == states.QUEUED_LOCAL


def test_what_it_answers_in_json_and_with_its_exit_code(desk: Several) -> None:
    desk.remotes(one="local", two="local")
    desk.add_to("one", "good")
    desk.add_to("two", "bad", script="exit 3")
    code, answer = desk.answer("sync", "--all")
    assert (code, answer["ok"], answer["verb"]) == (0, True, "sync")
    found = answer["data"]["remotes"]
    assert [(one["remote"], one["ok"], one["error"], one["report"]["uploaded"]) for one in found] == [
        ("one", True, None, 1), ("two", True, None, 1)]
    failed: list[int] = []

    def seen() -> bool:
        code, answer = desk.answer("sync", "--all", "--fail")
        failed.append(code)
        return code == 3 and [one["exit"] for one in answer["data"]["remotes"]] == [0, 3]

    until(seen, "the failed job told with 3")
    assert set(failed) <= {0, 3}
    (desk.path / "one/uuid").unlink()
    (desk.path / "one/agent").rename(desk.path / "one/gone")
    code, answer = desk.answer("sync", "--all", "--no-deploy", "--fail")
    told = {one["remote"]: one for one in answer["data"]["remotes"]}
    assert (code, told["one"]["error"]["kind"], told["two"]["ok"]) == (6, "AgentMissing", True)


def test_what_it_does_not_go_with(desk: Several) -> None:
    assert desk.chasqui("sync", "--all")[0] == 2
    desk.remotes(one="local")
    for words in (["--remote", "one"], ["--watch", "60"]):
        code, _, err = desk.chasqui("sync", "--all", *words)
        assert code == 2 and "--all goes neither with" in err
    desk.add_to("one", "a")
    code, out, _ = desk.chasqui("sync", "--all", "--dry-run")
    assert code == 0 and "one: would upload  a" in out and "one: 1 job" in out
    assert not (desk.path / "one").exists()


def test_a_job_for_any_goes_to_the_first_with_a_slot_free_and_stays(desk: Several) -> None:
    gate = desk.path / "gate"
    wait = "until [ -e '%s' ]; do sleep 0.05; done" % gate
    desk.remotes((1, 1), nobody="nobody.invalid", one="local", two="local")
    code, out, _ = desk.chasqui("add", str(desk.folder("a", wait)), str(desk.folder("b", wait)),
                                str(desk.folder("c", wait)), "--remote", "any")
    assert code == 0 and out.endswith("next: chasqui sync --all\n")
    assert "any: not synced yet" in desk.chasqui("status", "--offline")[1]
    assert "chooses" not in desk.chasqui("why", "a")[1] and "next: chasqui sync --all" in desk.chasqui("why", "a")[1]
    code, out, _ = desk.chasqui("sync", "--all")
    assert "one: takes 2 jobs of those that go anywhere" in out and "two: takes 1 job of those" in out
    where = {job.name: job.remote for job in desk.jobs()}
    assert where == {"a": "one", "b": "two", "c": "one"}
    gate.touch()
    until(lambda: desk.all_ended() or all(job.ended for job in desk.jobs()), "all end", 60)
    assert {job.name: job.remote for job in desk.jobs()} == where and desk.lines() == ["a", "b", "c"]
    assert desk.chasqui("retry", "a", "--yes")[0] == 0
    desk.chasqui("sync", "--all")
    assert {job.name: job.remote for job in desk.jobs()}["a"] == "one"


def test_two_at_once_run_each_job_on_exactly_one(desk: Several, size: Any) -> None:
    """With what `--remote any` added before, between and meanwhile."""
    jobs = 60 if size.long else 16
    desk.remotes((jobs, jobs), one="local", two="local")
    names = ["j%02d" % number for number in range(jobs)]
    desk.add_to("any", *names[:jobs // 2])
    both = [desk.start("sync", "--all"), desk.start("sync", "--all")]
    desk.add_to("any", *names[jobs // 2:])
    for process in both:
        process.communicate(timeout=120)
    until(lambda: desk.all_ended() or all(job.ended for job in desk.jobs()), "all end", 120)
    assert desk.lines() == names
    took = {name: {flag.name.split(".")[0] for flag in (desk.path / name / "completed").glob("*.flag")}
            for name in ("one", "two")}
    assert not took["one"] & took["two"] and len(took["one"] | took["two"]) == jobs
    assert all(job.id in took[job.remote] for job in desk.jobs())


def test_a_job_given_away_while_a_sync_reads_it_is_not_offered_there(desk: Several) -> None:
    """The sync of `one` has begun and knows its ids; another `sync --all` finds `one` away and takes them back."""
    desk.remotes(one="local", two="local")
    desk.add_to("any", "a", "b")
    config = desk.home.config()
    from chasqui_client.several import place

    with desk.ledger() as ledger, desk.ledger() as other:
        place.place(ledger, config, ["one"])
        exchange = Exchange(ledger, config.remotes["one"], SyncOptions(), SyncReport(), Progress(False))
        slices = exchange._slices(ledger.to_upload("one"))
        held = ledger.jobs_by_id(ledger.to_upload("one"))
        assert len(held) == 2
        ledger_jobs_by_id = ledger.jobs_by_id
        ledger.jobs_by_id = lambda ids: held  # type: ignore[assignment]  # read a moment ago
        assert place.place(other, config, ["two"]) == {"two": 2}
        assert [len(offers) for offers, _ in slices] == [0]
        ledger.jobs_by_id = ledger_jobs_by_id  # type: ignore[method-assign]
        assert [job.offered for job in ledger.jobs()] == [0, 0]


# -- interrupted, killed, watched --------------------------------------------------------------------------------------


def test_ctrl_c_ends_all_of_them_and_nothing_is_half_done(desk: Several) -> None:
    desk.remotes(one="local", two="local")
    desk.add_to("one", "a")
    desk.add_to("two", "b")
    from chasqui_client.holder import sync_lock

    with sync_lock(desk.home, "one"), sync_lock(desk.home, "two"):  # both wait for these
        process = desk.start("sync", "--all", start_new_session=True)
        until(lambda: len(_children(process.pid)) == 2, "both have begun")
        begun = _children(process.pid)
        time.sleep(0.5)  # until they listen: Python itself must have started
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in err
    assert not [pid for pid in begun if os.path.exists("/proc/%d" % pid)]
    assert set(desk.states().values()) == {states.QUEUED_LOCAL}


def test_one_that_is_killed_is_told_and_the_other_goes_on(desk: Several) -> None:
    desk.remotes(one="local", two="local")
    desk.add_to("two", "b")
    from chasqui_client.holder import sync_lock

    with sync_lock(desk.home, "one"):
        process = desk.start("sync", "--all")
        until(lambda: len(_children(process.pid)) >= 1, "they have begun")
        until(lambda: desk.states()["b"] != states.QUEUED_LOCAL, "the other goes on")
        left = [pid for pid in _children(process.pid) if "one" in _words(pid)]
        assert len(left) == 1
        os.kill(left[0], signal.SIGKILL)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "two: uploaded 1 job" in out
    assert "chasqui: one: its sync ended with status -9: " in err and "hint: chasqui sync --remote one" in err


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path("/proc/%d/task/%d/children" % (pid, pid)).read_text().split()]
    except OSError:
        return []


def _words(pid: int) -> list[str]:
    return Path("/proc/%d/cmdline" % pid).read_text().split("\0")


def test_a_line_for_each_on_a_terminal(desk: Several) -> None:
    desk.remotes(one="local", two="local")
    text = desk.home.config_path.read_text()
    desk.home.config_path.write_text(text.replace('host = "local"', 'host = "local"\nbandwidth = "5MB/s"'))
    for remote in ("one", "two"):
        folder = desk.folder("of-" + remote, data=os.urandom(10_000_000))
        api.add(desk.home, [os.fsencode(folder)], Asked(), desk.home.config().remotes[remote])
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "chasqui_client", "sync", "--all"], stdin=theirs, stderr=theirs,
                               stdout=subprocess.PIPE, text=True, cwd=desk.path)
    os.close(theirs)
    seen = b""
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                seen += os.read(ours, 4096)
            except OSError:
                break
    os.close(ours)
    assert process.stdout is not None
    said = process.stdout.read()
    process.stdout.close()
    assert process.wait(60) == 0 and "one: uploaded 1 job" in said and "two: uploaded 1 job" in said
    assert b"uploading " in seen and b" of 10.0 MB" in seen and seen.rstrip().endswith(b"\x1b[J"), seen[-200:]


# An ssh without a network: a login asks for a code on the terminal, a command is run here. It notes what it does.
SSH = """\
#!/bin/sh
for word; do
  case $word in
    ControlPath=*) socket=${word#ControlPath=} ;;
    *.invalid) host=$word ;;
    -fN) login=1 ;;
    check) [ -e "$socket" ]; exit ;;
  esac
  line=$word
done
if [ -z "$login" ]; then
  echo "session $host" >>"$SSH_LOG"
  exec /bin/sh -c "$line"
fi
printf '(%s) code: ' "$host" >&2
echo "asks $host" >>"$SSH_LOG"
read -r code
echo "asked $host" >>"$SSH_LOG"
[ "$code" = good ] || { echo 'Permission denied (keyboard-interactive).' >&2; exit 255; }
: >"$socket"
"""


def test_codes_are_asked_for_one_after_the_other_before_any_session(desk: Several, monkeypatch: Any) -> None:
    programs, log = desk.path / "bin", desk.path / "ssh.log"
    programs.mkdir()
    (programs / "ssh").write_text(SSH)
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", "%s:%s" % (programs, os.environ["PATH"]))
    monkeypatch.setenv("SSH_LOG", str(log))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(desk.path))
    codes = {"one": "good", "no": "wrong", "two": "good"}
    desk.remotes((5, 5), **{name: name + ".invalid" for name in codes})
    desk.add_to("any", *"abcdefghijkl")
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "chasqui_client", "sync", "--all"], stdin=theirs, stderr=theirs,
                               stdout=subprocess.PIPE, text=True, cwd=desk.path)
    os.close(theirs)
    for name, code in codes.items():
        asked = "(%s.invalid) code: " % name
        assert asked in _read_until(ours, asked.encode()).decode()
        os.write(ours, code.encode() + b"\n")
    said, told = process.communicate(timeout=120)[0], _read_until(ours, b"hint: chasqui login no").decode()
    os.close(ours)
    noted = log.read_text().split("\n")
    assert noted[:6] == [word % name for name in codes for word in ("asks %s.invalid", "asked %s.invalid")]
    assert {line for line in noted[6:] if line} == {"session one.invalid", "session two.invalid"}
    assert process.returncode == 4 and "no: the login failed: the password or code was refused" in told
    assert "one: uploaded 7 jobs" in said and "two: uploaded 5 jobs" in said  # 5 to run on each, then a queue
    until(lambda: len(desk.lines()) == 12, "all ran")


def _read_until(terminal: int, text: bytes) -> bytes:
    seen, end = b"", time.monotonic() + 60
    while text not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                seen += os.read(terminal, 4096)
            except OSError:
                break
    return seen


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_the_board_rewrites_its_lines_and_leaves_nothing() -> None:
    stream = Terminal()
    board = Board(["one", "two"], stream)
    board.tell("one", "uploading " + "x" * 200)
    board.tell("two", "results\x1b[2J")
    board.done("one")
    board.tell("two", "more")
    board.done("two")
    board.end()
    text = stream.getvalue()
    assert text.count("\x1b[2A\r") == 2 and text.endswith("\x1b[1A\r\x1b[J") and "\x1b[2J" not in text
    assert all(len(re.sub(r"\x1b\[\w+", "", line).strip("\r")) <= 79 for line in text.split("\n"))
    plain = StringIO()
    board = Board(["one"], plain)
    board.tell("one", "uploading")
    board.done("one")
    assert plain.getvalue() == "one: uploading\n"
