"""Wakes tried by real jobs, as far as a machine without a batch system goes: the verb, its end, and what it leaves."""

import json
import os
import subprocess
import sys
import time

import pytest

from agent.agentroot import AGENT, Root
from chasqui_agent import lock, settings, wakes
from chasqui_agent.spool import Spool


@pytest.fixture
def root(tmp_path):
    return Root(tmp_path / "root")


def begin(root):
    """The verb, as the client begins it."""
    argv = [sys.executable, "-I", "-S", os.path.join(AGENT, "chasqui_agent"), "--root", root.path, "_wakes"]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv + ["--nonce", "n"], stdin=pipe, stdout=pipe, stderr=pipe, universal_newlines=True)


def ask(process, end="\n", **changed):
    asked = dict({"forms": list(wakes.FORMS), "seconds": 120.0, "after": 60.0, "config": {}}, **changed)
    process.stdin.write(json.dumps(asked) + end)
    process.stdin.flush()


def ended(process):
    """(exit code, lines of JSON, stderr), and nothing is left open."""
    lines = [json.loads(line) for line in process.stdout.read().splitlines()]
    said = process.stderr.read()
    code = process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
    return code, lines, said


def assert_untouched(root):
    assert not os.path.exists(os.path.join(root.path, "doctor"))
    assert os.listdir(root.spool.log) == [] and os.listdir(root.spool.work) == [] and root.table() == {}


def test_where_there_is_no_batch_system_the_end_of_a_process_wakes(root):
    process = begin(root)
    ask(process)
    code, lines, said = ended(process)
    assert (code, said) == (0, ""), said
    rows = {row[0]: row for row in lines[-1]["rows"]}
    assert lines[-1]["scheduler"] == "shell" and lines[-1]["left"] == []
    assert {form: row[1] for form, row in rows.items()} == dict(
        dict.fromkeys(wakes.FORMS, "none"), tail="yes"
    ), lines
    assert rows["tail"][4] == "direct" and rows["tail"][2] >= 0
    assert all(line["doctor"] == "n" for line in lines)
    words = [line["words"] for line in lines[:-1] if line["form"] == "tail"]
    assert words[0].startswith("submitted ") and words[-1].startswith("works, after ")
    assert_untouched(root)


def test_who_asks_and_hangs_up_has_it_all_taken_back(root):
    process = begin(root)
    ask(process, end="", forms=["tail"])  # read when it ends, so that its end is there before the first job is
    process.stdin.close()
    code, lines, said = ended(process)
    assert code == 1 and "whoever asked has gone" in said, (lines, said)
    assert_untouched(root)


def test_settings_that_are_none_are_refused_before_anything_is_made(root):
    process = begin(root)
    ask(process, config={"max_running": -1})
    code, lines, said = ended(process)
    assert code == 1 and lines == [] and "max_running must be" in said
    assert_untouched(root)


def a_run(root, name, **owner):
    """What a doctor had begun. owner: what its note of itself says otherwise than that it is us."""
    run = os.path.join(root.path, "doctor", name)
    spool = Spool(os.path.join(run, "tail"))
    spool.create()
    settings.change(spool, scheduler="shell")
    if owner:
        os.mkdir(os.path.join(run, wakes.OWNER))
        os.symlink(json.dumps(dict(lock.own_identity(), **owner)), os.path.join(run, wakes.OWNER, "g.1"))
    return run


def test_what_a_doctor_left_that_died_goes_with_the_next(root):
    died = a_run(root, "died", s="clock:1")
    alive = a_run(root, "alive", p=os.getpid())
    elsewhere = a_run(root, "elsewhere", h="another")
    half_removed = a_run(root, "old")
    made_this_moment = a_run(root, "young")
    os.utime(half_removed, (time.time() - wakes.YOUNG - 100,) * 2)
    process = begin(root)
    ask(process, forms=["hook"])
    code, lines, said = ended(process)
    assert (code, said, lines[-1]["left"]) == (0, "", []), said
    assert not os.path.exists(died)
    kept = [alive, elsewhere, made_this_moment]
    assert sorted(os.listdir(os.path.join(root.path, "doctor"))) == sorted(map(os.path.basename, kept))
    code, _, said = root.agent("remove")
    assert code == 1 and all("doctor/" + os.path.basename(path) in said for path in kept), said


@pytest.mark.parametrize("job", ["12.server", "13.server"])
def test_only_its_own_records_for_hooks_are_forgotten(root, tmp_path, monkeypatch, job):
    monkeypatch.setenv("HOME", str(tmp_path))
    records = tmp_path / ".chasqui-agent" / "jobs"
    records.mkdir(parents=True)
    (records / "12.server").write_text(root.path + "\n/usr/bin/python3\n/agent\n")
    (records / "13.server").write_text("/somebody/elses\n/usr/bin/python3\n/agent\n")
    wakes._forget_records(root.spool, [job])
    left = sorted(path.name for path in records.iterdir())
    assert left == (["13.server"] if job == "12.server" else ["12.server", "13.server"])
