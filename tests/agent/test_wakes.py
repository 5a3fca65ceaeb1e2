"""Wakes tried by real jobs, as far as a machine without a batch system goes: the verb, its end, and what it leaves."""

import json
import os
import subprocess
import sys
import time

import pytest

from agent.agentroot import AGENT, Root
from agent.test_refused import Choosy
from chasqui_agent import heartbeat, lock, schedulers, settings, wakes
from chasqui_agent.schedulers.base import Live, Snapshot, Submission
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


def test_one_on_another_host_is_believed_alive_as_long_as_a_doctor_can_take(root):
    """Nobody can look there; one that takes its time at a full site must not lose its jobs to the next."""
    at_work, died = a_run(root, "at_work", h="another"), a_run(root, "died", h="another")
    for run, age in ((at_work, wakes.STALE - 600), (died, wakes.STALE + 600)):
        os.utime(os.path.join(run, wakes.OWNER, "g.1"), (time.time() - age,) * 2, follow_symlinks=False)
    assert wakes.clear_dead(root.spool) == []
    assert not os.path.exists(died) and os.path.isdir(at_work)
    assert wakes.remains(root.spool) == ["doctor/at_work"]
    assert wakes.STALE > (len(wakes.FORMS) - 1) * (wakes.LONGEST + wakes.AFTER), "each form may have to wait its turn"


class Timed(Choosy):
    """Takes jobs, and keeps a list of the heartbeat's, with when each is to come."""

    def __init__(self):
        super(Timed, self).__init__()
        self.live, self.beats = {}, []

    def query(self, ids, sought=(), held=(), known=()):
        return Snapshot(dict(self.live), {}, list(ids) + list(known))

    def submit(self, request, timeout, meanwhile=lambda: None):
        meanwhile()
        job_id = "%d.server" % (len(self.live) + 1)
        self.live[job_id] = Live(job_id, "W" if request.start else "Q", request.token)
        if request.start:
            self.beats.append(request.start)
        return Submission("accepted", job_id, "")

    def delete(self, job_id):
        self.live.pop(job_id, None)


def test_no_more_heartbeats_come_than_she_was_told(root, monkeypatch):
    """The first one comes soon, the one that it arms behind itself not before all is cleared up; and her own root's are
    as she set them."""
    scheduler = Timed()
    monkeypatch.setattr(schedulers, "choose", lambda *_: scheduler)
    settings.change(root.spool, scheduler="openpbs", heartbeat=7)
    seconds = []

    def comes(doctor, trials):
        """As the first beat does when its time has come."""
        spool = trials[0].root
        assert [beat.n for beat in heartbeat.beats(spool)] == [1] == [len(scheduler.beats)]
        heartbeat.beat(spool, settings.load(spool), scheduler, 1)
        assert [beat.n for beat in heartbeat.beats(spool)] == [1, 2]
        scheduler.delete(heartbeat.beats(spool)[0].id)  # it is over
        seconds.extend(start - time.time() for start in scheduler.beats)
        trials[0].close("yes", "")

    monkeypatch.setattr(wakes.Doctor, "_watch", comes)
    doctor = wakes.Doctor(root.spool, {}, 300.0, 60.0, lambda *_: None, lambda: False)
    doctor.begin()
    assert doctor._by_heartbeat("direct").verdict == "yes"
    assert seconds[0] <= 60 * wakes.BEAT_MINUTES and len(seconds) == wakes.BEATS
    assert seconds[1] > wakes.CLEAR_SECONDS + 600
    monkeypatch.setattr(wakes, "PATIENT_SECONDS", 0.0)
    assert doctor.end() == [] and scheduler.live == {}, "what is armed goes, too"
    assert settings.load(root.spool).heartbeat == 7 and not os.path.exists(os.path.join(root.path, "doctor"))


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
