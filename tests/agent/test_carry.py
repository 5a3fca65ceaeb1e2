"""What a retry costs the others: copies end in time, and no job's files stop the relay; and what is copied is whole."""

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import traceback

import pytest

import needs
from agent.agentroot import Root, publish
from agent.test_reconcile import Forgetful
from chasqui_agent import (  # noqa: F401  a child without rights can't import
    arrays,
    carry,
    copies,
    dependents,
    durable,
    ending,
    files,
    journal,
    lock,
    marks,
    operations,
    policy,
    pump,
    records,
    resources,
    retries,
    schedulers,
    settings,
    site_limits,
    space,
)
from chasqui_agent.schedulers import openpbs, pbs_commands, shell, slurm, torque  # noqa: F401
from chasqui_agent.schedulers.base import Ended, Snapshot

LEASE = 600.0
NOBODY = 65534
EXIT, NODE = (7, ""), (-4, "node lost")
ANEW = " (chasqui retry it starts it anew)"


class Bench:
    """A root whose scheduler says of one job how it ended; its pumps are ours."""

    def __init__(self, path, end, resume=True):
        self.root = Root(path, heartbeat=0, query_interval=0, grace=300, max_queued=1, max_running=1, lease=LEASE)
        self.spool, self.scheduler = self.root.spool, Forgetful()
        self.scheduler.stages_output = self.scheduler.asks_a_server = False
        self.scheduler.answer = Snapshot({}, {})
        self.work, self.meta = self.spool.work_dir("it", 1), self.spool.meta_dir("it", 1)
        self.next = self.spool.work_dir("it", 2)
        self.job("it", "abcdefgh", "7.server", end, resume)

    def job(self, name, token, job_id, end, resume=True):
        """One that has run, and has one input."""
        meta, sha = self.spool.meta_dir(name, 1), hashlib.sha256(b"as sent\n").hexdigest()
        os.makedirs(os.path.join(meta, "inputs"))
        marks.write_id(meta, token, job_id, False)
        for mark in ("claim.%s", "run.%s.1"):
            os.symlink(job_id, os.path.join(meta, mark % token))
        if end == EXIT:
            files.write_file(os.path.join(meta, "flag.%s.1" % token), b"exit=7\nended=1\nwhole\n")
        self.scheduler.answer.ended[job_id] = Ended(job_id, end[0], end[1], token, False)
        record = {"job": name, "attempt": 1, "name": name, "ledger": "it",
                  "retry": {"retries": 3, "on": ["7", "node"], "resume": resume}}
        files.write_json(os.path.join(meta, "job.json"), record)
        row = {"path": "in", "size": 8, "mode": 0o600, "sha256": sha, "mtime_ns": 0}
        files.write_json(os.path.join(meta, "manifest.json"), {"files": [row]})
        for path in (os.path.join(self.spool.work_dir(name, 1), "in"), os.path.join(meta, "inputs", sha)):
            files.write_file(path, b"as sent\n")
        files.write_file(self.spool.entry_path("submitted", name, 1, token), b"#!/bin/sh\n")

    def pump(self):
        """Pump until nothing is left to do at once; the report."""
        real, schedulers.choose = schedulers.choose, lambda *_: self.scheduler
        try:
            return pump.pump(self.spool, "test")
        finally:
            schedulers.choose = real

    def told(self, *events):
        return [record for _, record in journal.records(self.spool.log) if record["ev"] in events]

    def why(self):
        """How the job ended, for good: no retry."""
        assert self.told("retried") == [] and not os.path.exists(self.next)
        assert files.names(os.path.join(self.spool.work, ".retries")) == files.names(self.spool.ending) == []
        ended, = self.told("ended")
        return ended["why"]


@pytest.fixture
def bench(tmp_path):
    return lambda *rest, **more: Bench(tmp_path / "root", *rest, **more)


class Clock:
    """The time as the lock sees it, moved on by hand."""

    sleep, time = staticmethod(time.sleep), staticmethod(time.time)
    ahead = 0.0

    def monotonic(self):
        return time.monotonic() + self.ahead


def slow(monkeypatch, seconds, more=lambda: None):
    """A disk on which each piece of a file takes so long, by the lock's clock."""
    clock, real = Clock(), copies._in_kernel
    monkeypatch.setattr(lock, "time", clock)

    def in_kernel(reading, writing, tick):
        clock.ahead += seconds
        more()
        tick()
        return real(reading, writing, tick)

    monkeypatch.setattr(copies, "_in_kernel", in_kernel)
    monkeypatch.setattr(copies, "_FICLONE", 0)  # no file system shares blocks then
    return clock


# -- the relay goes on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [True, False])
def test_copies_that_take_too_long_are_given_up_and_everything_else_goes_on_meanwhile(bench, monkeypatch, resume):
    on = bench(NODE, resume=resume)
    publish(on.spool, "other", [("other", "#!/bin/sh\n")])
    operations.by_hand(on.spool, "hold", "other")
    clock = slow(monkeypatch, 0.17 * LEASE)  # of a fifth of it, which is a holder's time
    rounds = []
    real = pump.Round.run
    monkeypatch.setattr(pump.Round, "run", lambda self, handled: rounds.append(self) or real(self, handled))
    report = on.pump()
    assert report["note"] == "" and on.spool.known("other", 1) == "held"
    assert on.why() == "node lost; not tried again: 3 pumps had no time to copy its files" + ANEW
    assert len(rounds) == 4 and clock.ahead == pytest.approx(3 * 0.17 * LEASE)
    assert [record["ev"] for record in on.told("held", "ended")] == ["held", "ended"]


def test_what_runs_past_the_lease_each_time_is_given_up_as_well(bench, monkeypatch):
    """Nobody can stop a sync: those rounds are lost, three of them."""
    on = bench(NODE)
    clock, real = slow(monkeypatch, 0.0), durable.settle

    def settle(folders):
        clock.ahead += LEASE
        real(folders)

    monkeypatch.setattr(durable, "settle", settle)
    for _ in range(3):
        assert on.pump()["note"].startswith("lost the lock") and on.told("ended") == []
    assert on.pump()["note"] == "" and "3 pumps had no time to copy its files" in on.why()


def test_a_second_copy_waits_for_another_round_and_that_is_no_try_of_its_own(bench, monkeypatch):
    on = bench(NODE)
    on.job("other", "bcdefghi", "8.server", NODE)
    slow(monkeypatch, 0.12 * LEASE)
    assert on.pump()["note"] == ""
    assert [record["job"] for record in on.told("retried")] == ["it", "other"]
    for job in ("it", "other"):
        assert os.path.getsize(os.path.join(on.spool.meta_dir(job, 1), carry.TRIED)) == 1


@pytest.mark.parametrize("resume", [True, False])
def test_what_is_too_much_is_not_begun(bench, resume):
    """A file with nothing in it but its size: copied it would be quick, and hashed not."""
    on = bench(NODE, resume=resume)
    os.truncate(os.path.join(on.work, "in"), policy.MOST_COPIED + 1)
    if not resume:
        manifest = files.read_json(os.path.join(on.meta, "manifest.json"))
        manifest["files"][0]["size"] = policy.MOST_COPIED + 1
        files.write_json(os.path.join(on.meta, "manifest.json"), manifest)
    assert on.pump()["note"] == ""
    assert on.why() == "node lost; not tried again: its files are 4.3 GB, and at most 4.3 GB are copied" + ANEW


def test_where_there_is_no_room_nothing_is_begun(bench, monkeypatch, tmp_path):
    on = bench(NODE)
    os.truncate(os.path.join(on.work, "in"), 30 << 20)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "quota").write_text(
        "#!/bin/sh\ncat <<'.'\nDisk quotas for user me (uid %d): \n"
        "     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace\n"
        "          tmpfs   5000       0   20000       0      10       0       0       0\n.\n" % os.geteuid())
    (programs / "quota").chmod(0o755)
    monkeypatch.setenv("PATH", "%s:%s" % (programs, os.environ["PATH"]))
    assert on.pump()["note"] == ""
    why = on.why()
    assert why.startswith("node lost; not tried again: no space left there: quota of ") and "15.4 MB left" in why
    assert why.endswith(ANEW)


def taken_over(spool):
    """The lock's holder is declared dead; the next one sweeps away what it finds."""
    last = max(int(name[2:]) for name in os.listdir(spool.lock) if name.startswith("g."))
    os.symlink('{"broken_by":"x"}', os.path.join(spool.lock, "r.%d" % last))
    os.symlink("{}", os.path.join(spool.lock, "g.%d" % (last + 1)))
    shutil.rmtree(os.path.join(spool.work, ".retries"))


def test_who_lost_the_lock_while_copying_says_nothing(bench, monkeypatch):
    on = bench(EXIT, resume=False)
    slow(monkeypatch, 0.0, lambda: taken_over(on.spool))
    assert on.pump()["note"].startswith("lost the lock")
    assert on.told("ended") == [] and on.spool.known("it", 1) == "submitted"


def test_who_lost_the_lock_with_the_next_script_written_begins_no_end(bench, monkeypatch):
    on = bench(EXIT)
    real = files.write_file

    def write_file(path, *rest, **more):
        real(path, *rest, **more)
        if path.endswith(".next"):
            taken_over(on.spool)

    monkeypatch.setattr(files, "write_file", write_file)
    assert on.pump()["note"].startswith("lost the lock")
    assert [name for name in os.listdir(on.spool.ending) if not name.endswith(".next")] == []
    assert on.told("ended") == [] and on.spool.known("it", 1) == "submitted"


def test_an_end_that_is_followed_is_durable_before_it_begins(bench, monkeypatch):
    """Else a power cut leaves an end that says nothing of the next attempt, which may run by then."""
    on = bench(EXIT)
    synced, begun = set(), []
    fsync, move = os.fsync, files.move

    def moved(old, new):
        if os.path.dirname(new) == on.spool.ending:
            begun.append({os.stat(new[:-2] + suffix).st_ino for suffix in ("json", "next")} <= synced)
        move(old, new)

    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.fstat(fd).st_ino) or fsync(fd))
    monkeypatch.setattr(files, "move", moved)
    assert on.pump()["note"] == "" and len(on.told("retried")) == 1
    assert begun == [True]


# -- what is moved -----------------------------------------------------------------------------------------------------


def as_somebody(test):
    """Run `test(folder)` in a child without root's rights, which no mode of a folder stops."""
    folder = tempfile.mkdtemp()
    uid = os.geteuid() or NOBODY
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            assert os.geteuid() == uid
            signal.alarm(120)
            os.chdir(folder)
            test(folder)
            code = 0
        except BaseException:
            with open(os.path.join(folder, "failed"), "w") as stream:
                traceback.print_exc(file=stream)
            code = 1
        os._exit(code)
    try:
        _, status = os.waitpid(child, 0)
        if status:
            with open(os.path.join(folder, "failed")) as stream:
                pytest.fail(stream.read())
    finally:
        subprocess.call(["chmod", "-R", "u+rwx", folder])
        shutil.rmtree(folder)


def tree(folder):
    """path -> (kind and mode, content) of everything but .chasqui."""
    found = {}
    for top, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != ".chasqui"]
        for name in folders + names:
            path = os.path.join(top, name)
            status = os.lstat(path)
            content = os.readlink(path) if stat.S_ISLNK(status.st_mode) else ""
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as stream:
                    content = stream.read()
            mode = 0 if stat.S_ISLNK(status.st_mode) else status.st_mode
            found[os.path.relpath(path, folder)] = (mode, content)
    return found


def _protected(folder):
    """A job protects what it has: its folders, and the work folder itself."""
    on = Bench(os.path.join(folder, "root"), EXIT)
    for name, mode in (("done", 0o500), ("shut", 0o000), ("open", 0o755)):
        os.mkdir(os.path.join(on.work, name))
        files.write_file(os.path.join(on.work, name, "file"), b"x")
    for name, mode in (("done", 0o500), ("shut", 0o000), ("open", 0o755)):
        os.chmod(os.path.join(on.work, name), mode)
    os.chmod(on.work, 0o300)
    assert on.pump()["note"] == ""
    assert len(on.told("retried")) == 1 and on.spool.known("it", 2) == "waiting"
    assert sorted(os.listdir(on.next)) == [".chasqui", "done", "in", "open", "shut"]
    modes = [stat.S_IMODE(os.lstat(os.path.join(on.next, name)).st_mode) for name in ("done", "shut", "open")]
    assert modes == [0o500, 0o000, 0o755]
    assert os.listdir(on.work) == [".chasqui"] and os.listdir(on.spool.ending) == []


def test_what_a_job_protects_is_carried_on_all_the_same():
    as_somebody(_protected)


def _closed(folder):
    for number, resume in enumerate((True, False)):
        on = Bench(os.path.join(folder, "root%d" % number), EXIT, resume)
        subprocess.check_call(["chmod", "-R", "a-w", on.work])
        assert on.pump()["note"] == ""
        assert len(on.told("retried")) == 1 and on.spool.known("it", 2) == "waiting"
        assert sorted(os.listdir(on.next)) == [".chasqui", "in"]
        assert ("in" in os.listdir(on.work), os.listdir(on.meta).count("inputs")) == (not resume, 0)


def test_a_job_that_protects_our_folder_too_is_tried_again_and_stops_nobody():
    as_somebody(_closed)


def _closed_for_good(folder):
    """Its runner is one of an agent before this one, which leaves the folders as they are."""
    on = Bench(os.path.join(folder, "root"), EXIT)
    files.write_json(os.path.join(on.meta, "job.json"), {"job": "it", "attempt": 1})
    subprocess.check_call(["chmod", "-R", "a-w", on.work])
    assert on.pump()["note"] == "" and on.spool.known("it", 1) == "completed" and on.why() == "exit 7"
    assert {"final.json", "inputs"} & set(os.listdir(on.meta)) == {"final.json"}


def test_a_job_that_protects_our_folder_too_ends_and_leaves_no_inputs():
    as_somebody(_closed_for_good)


def test_what_can_not_be_moved_stays_and_stops_nobody(bench):
    """A file system of its own, as overlays and containers leave them: EBUSY."""
    needs.root()
    on = bench(EXIT)
    folder = os.path.join(on.work, "mounted")
    os.mkdir(folder)
    if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]):
        needs.missing("the right to mount a tmpfs")
    try:
        assert on.pump()["note"] == ""
    finally:
        subprocess.check_call(["umount", folder])
    assert on.spool.known("it", 2) == "waiting" and os.listdir(on.spool.ending) == []
    assert sorted(os.listdir(on.work)) == [".chasqui", "mounted"] and sorted(os.listdir(on.next)) == [".chasqui", "in"]


# -- what is copied ----------------------------------------------------------------------------------------------------


def test_a_copy_is_what_a_move_would_be(bench):
    on = bench(NODE)
    os.makedirs(os.path.join(on.work, "deep", "empty"))
    os.symlink("in", os.path.join(on.work, "link"))
    os.symlink("/nowhere/at all", os.path.join(on.work, "deep", "dangling"))
    os.mkfifo(os.path.join(on.work, "deep", "fifo"), 0o600)
    for name, mode in (("deep/read only", 0o400), ("run.sh", 0o750), ("deep/big", 0o644)):
        files.write_file(os.path.join(on.work, name), name.encode("ascii") * 100000)
        os.chmod(os.path.join(on.work, name), mode)
    os.chmod(os.path.join(on.work, "deep", "empty"), 0o750)
    os.utime(os.path.join(on.work, "deep"), ns=(10**18, 10**18 + 7))
    before = tree(on.work)
    assert on.pump()["note"] == "" and len(on.told("retried")) == 1
    assert tree(on.next) == tree(on.work) == before and len(before) == 9
    for name in ("in", "run.sh", "deep"):
        assert os.lstat(os.path.join(on.next, name)).st_mtime_ns == os.lstat(os.path.join(on.work, name)).st_mtime_ns


def _unreadable(folder):
    for number, (name, mode) in enumerate((("file", 0o000), ("folder", 0o000), ("folder", 0o300))):
        on = Bench(os.path.join(folder, "root%d" % number), NODE)
        path = os.path.join(on.work, name)
        files.write_file(path, b"x") if name == "file" else os.mkdir(path)
        os.chmod(path, mode)
        assert on.pump()["note"] == ""
        assert on.why() == "node lost; not tried again: %s can't be copied: Permission denied%s" % (name, ANEW)


def test_what_can_not_be_copied_is_said():
    as_somebody(_unreadable)


def test_what_vanishes_meanwhile_is_not_missed(bench, monkeypatch):
    """The job's processes may live on."""
    on = bench(NODE)
    files.write_file(os.path.join(on.work, "z"), b"x")
    os.mkdir(os.path.join(on.work, "y"))
    files.write_file(os.path.join(on.work, "y", "x"), b"x")
    slow(monkeypatch, 0.0, lambda: [shutil.rmtree(os.path.join(on.work, "y"), ignore_errors=True),
                                    files.remove(os.path.join(on.work, "z"))])
    assert on.pump()["note"] == ""
    assert sorted(tree(on.next)) == ["in", "y"] and len(on.told("retried")) == 1


# -- what is kept no longer than needed --------------------------------------------------------------------------------


def test_a_blocked_job_needs_its_inputs_no_more(bench):
    on = bench(EXIT)
    record = files.read_json(os.path.join(on.meta, "job.json"))
    for name in ("heir", "held"):
        meta = on.spool.meta_dir(name, 1)
        os.makedirs(os.path.join(meta, "inputs"))
        files.write_file(os.path.join(meta, "inputs", "content"), b"x")
        files.write_json(os.path.join(meta, "job.json"), dict(record, job=name, after=[["it", 1, ""]], **{"if": "ok"}))
        folder = os.path.join(on.spool.waiting, "1000", "20260101T000000-%s.new" % name)
        os.makedirs(folder)
        files.write_file(os.path.join(folder, "000.%s.1.sh" % name), b"#!/bin/sh\n")
    files.write_json(os.path.join(on.meta, "job.json"), dict(record, retry=None))
    operations.by_hand(on.spool, "cancel", "held")
    on.pump()
    assert (on.spool.known("heir", 1), on.spool.known("held", 1)) == ("blocked", "cancelled")
    for name in ("heir", "held"):
        assert "inputs" not in os.listdir(on.spool.meta_dir(name, 1))


def test_the_record_of_a_try_is_no_file_of_the_job(bench):
    on = bench(NODE)
    on.pump()
    assert carry.TRIED in os.listdir(on.meta) and carry.TRIED not in os.listdir(on.spool.meta_dir("it", 2))
    with open(os.path.join(on.spool.meta_dir("it", 2), "job.json")) as stream:
        assert json.load(stream)["tries"] == 1
