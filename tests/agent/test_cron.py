"""The line for a crontab: run as cron runs it, whatever the paths hold, it wakes the relay, and the journal says so."""

import os
import shlex
import subprocess
import sys

import pytest

from agent.agentroot import AGENT, until
from chasqui_agent import cron, way
from chasqui_agent.spool import SpoolError
from chasqui_agent.state import State

# All that cron gives: crontab(5).
CRONS = {"HOME": os.environ.get("HOME", "/"), "LOGNAME": "jane", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"}
ODD = ["plain", "a b", "it's", 'say "x"', "100%", "%", "50%% off", "a\\%b", "a\\\\%b", "tail\\", "$HOME `id` $(id)",
       "#x", "ñandú", "-dash", "!", "*", "a;b|c&d", "~"]


def as_cron_reads(command):
    """What cron passes to the shell of a table's command: up to the first bare %, with \\% for a %."""
    found, escaped = [], False
    for char in command:
        if escaped:
            if char == "%":
                found.pop()
            found.append(char)
            escaped = False
        elif char == "%":
            break
        else:
            found.append(char)
            escaped = char == "\\"
    return "".join(found)


def entry(said):
    """The one entry of a table: its times and its command."""
    entries = [line for line in said.splitlines() if not line.startswith("#")]
    assert len(entries) == 1, said
    fields = entries[0].split(" ", 5)
    return fields[:5], fields[5]


def run_as_cron(command, folder):
    return subprocess.run(["/bin/sh", "-c", as_cron_reads(command)], env=CRONS, cwd=folder, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)


@pytest.mark.parametrize("word", ODD)
def test_a_word_means_the_same_to_cron_and_to_a_shell(word, tmp_path):
    show = "printf %s " + cron.quoted(word)
    for line in (as_cron_reads(show.replace("%s", "\\%s", 1)), show):
        done = subprocess.run(["/bin/sh", "-c", line], env=CRONS, cwd=str(tmp_path), stdout=subprocess.PIPE, timeout=60)
        assert done.stdout.decode("utf-8") == word, line
    assert "%" not in cron.quoted(word).replace("\\%", "")


@pytest.mark.parametrize("word", ["a\nb", "tab\t", "\udcff", "\x1b[2J"], ids=ascii)
def test_what_no_table_can_hold_is_refused(word):
    with pytest.raises(SpoolError):
        cron.quoted(word)


def test_the_printed_line_wakes_the_relay_and_the_journal_says_who_did(make_root, tmp_path):
    root = make_root("jane's 100% \\% \"odd\" root")
    root.drop("one")
    code, said, err = root.agent("cron")
    assert code == 0, err
    times, command = entry(said)
    done = run_as_cron(command, str(tmp_path))
    assert (done.returncode, done.stdout) == (0, b"")
    root.wait_finished(1)
    until(lambda: [r["reason"] for r in root.log() if r["ev"] == "pumped" and r.get("submitted")] == ["cron"], "told")


def test_a_deployed_agent_is_named_by_what_outlives_the_next_deployment(root, tmp_path):
    os.symlink(os.path.join(os.path.realpath(AGENT), "chasqui_agent"), os.path.join(root.spool.agent, "current"))
    words = shlex.split(entry(root.agent("cron")[1])[1])
    assert words[:4] == [sys.executable, "-I", "-S", os.path.join(root.spool.agent, "current")]
    root.drop("one")
    assert run_as_cron(entry(root.agent("cron")[1])[1], str(tmp_path)).stdout == b""
    root.wait_finished(1)


def test_its_times_and_its_comments(root):
    for every in (1, 5, 10, 60):
        times, _ = entry(root.agent("cron", "--every", str(every))[1])
        assert times[1:] == ["*"] * 4
        minutes = [] if times[0] == "*" else [int(text) for text in times[0].split(",")]
        assert len(minutes) == (60 // every if every > 1 else 0) and all(0 <= minute < 60 for minute in minutes)
    said = root.agent("cron")[1]
    assert all(line.startswith("#") for line in said.splitlines()[:-1])
    assert "crontab -e" in said and os.uname()[1] in said and "#SCRON" not in said
    slurm = root.agent("cron", "--slurm")[1].splitlines()
    assert slurm[-2].startswith("#SCRON ") and "scrontab -e" in slurm[1] and slurm[-1] == said.splitlines()[-1]
    for words in (["--every", "7"], ["--every", "0"], ["--every", "61"]):
        assert root.agent("cron", *words)[0] == 1
    for words in (["--every", "x"], ["more"], ["--every"]):
        assert root.agent("cron", *words)[0] == 2


def test_a_path_too_long_for_cron_is_refused(make_root):
    parts = ["x" * 200] * 5
    os.makedirs(os.path.join(*[os.path.dirname(make_root("short").path)] + parts))
    root = make_root(os.path.join(*parts + ["root"]))
    code, out, err = root.agent("cron")
    assert (code, out) == (1, "") and "longer than the 998 bytes" in err


def test_cron_gets_the_environment_that_the_last_submission_needed(root, monkeypatch):
    for state, given in (({}, {}), ({"login": 3}, {}), ({"login": {"environment": [1]}}, {}),
                         ({"login": {"environment": {"PATH": "/opt/pbs/bin", "LD_PRELOAD": "x", "PBS_SERVER": ""}}},
                          {"PATH": "/opt/pbs/bin"})):
        assert way.login_environment(state) == given
    state = State(root.spool)
    state.value["login"] = {"host": "login1", "environment": {"PATH": "/opt/pbs/bin:/usr/bin:/bin"}}
    state.save()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    way.wake(root.spool, "by hand", 5)
    assert os.environ["PATH"] == "/usr/bin:/bin"
    way.wake(root.spool, "cron", 5)
    assert os.environ["PATH"] == "/opt/pbs/bin:/usr/bin:/bin"


@pytest.mark.parametrize("reason", ["cron", "by hand"])
def test_where_cron_runs_is_not_taken_for_a_login_host(root, reason):
    """The line of a scrontab runs as a job, on a compute node."""
    state = State(root.spool)
    state.value["login"] = {"host": "login1", "environment": {}}
    state.save()
    root.drop("one")
    root.agent("wake", "--reason", reason)
    root.wait_finished(1)
    assert State(root.spool).value["login"]["host"] == ("login1" if reason == "cron" else os.uname()[1])
