"""The relay on the `shell` scheduler: scripts dropped by hand run once each, under the caps, and every end is told."""

import json
import os
import signal
import subprocess
import time

import pytest

from agent.agentroot import publish, until
from chasqui_agent import operations, pump, settings


def overlap(folder):
    """The largest number of payloads that ran at the same time, by their own notes of start and end."""
    changes = []
    for name in os.listdir(folder):
        with open(os.path.join(folder, name)) as stream:
            for line in stream:
                word, when = line.split()[:2]
                changes.append((float(when), 1 if word == "start" else -1))
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def test_dropped_scripts_run_in_their_own_folders(root):
    for number in range(5):
        root.drop("job%d" % number)
    root.pump()
    root.wait_finished(5)
    for number in range(5):
        with open(os.path.join(root.ran, "job%d" % number)) as stream:
            assert stream.read().split()[2] == os.path.join(root.spool.work, "job%d" % number)


def test_the_relay_alone_finishes_a_batch_under_the_caps(make_root):
    """One pump, then nobody: the tails do the rest. The slot table is sampled all the while."""
    root = make_root(max_running=4, max_queued=8)
    for number in range(40):
        root.drop("job%d" % number, seconds=0.1)
    root.pump()
    most_queued = most_running = 0
    while root.finished() < 40:
        table = root.table()
        queued = sum(1 for job in table.values() if job["state"] in "QH")
        flags = {
            name.split(".")[1]
            for job in root.spool.entries("submitted")
            for name in os.listdir(root.spool.meta_dir(job.job, job.attempt))
            if name.startswith("flag.") and not name.endswith(".new")
        }
        most_queued = max(most_queued, queued)
        most_running = max(
            most_running,
            sum(
                1
                for job in table.values()
                if job["state"] == "R"
                and job["token"] not in flags
                and job["token"] in {e.token for e in root.spool.entries("submitted")}
            ),
        )
        time.sleep(0.05)
    root.wait_idle()
    assert [root.starts("job%d" % number) for number in range(40)] == [1] * 40
    assert most_queued <= 8 and most_running <= 4 and overlap(root.ran) <= 4
    log = root.log()
    order = {(r["ev"], r["job"]): position for position, r in enumerate(log) if "job" in r}
    for number in range(40):
        job = "job%d" % number
        assert order["accepted", job] < order["intent", job] < order["submitted", job] < order["ended", job]


def queries(root):
    """How often the scheduler was asked, by its own count."""
    with open(os.path.join(root.path, "shell", "table.json")) as stream:
        return json.load(stream)["queries"]


def test_jobs_that_end_together_become_few_queries_and_one_pump_at_a_time(make_root):
    """40 end in the same second: every slot is filled again, the scheduler is asked at most three times."""
    root = make_root(max_running=40, max_queued=80)
    gate = root.path + ".gate"
    for number in range(40):
        root.drop("first%d" % number, "while [ ! -e '%s' ]; do sleep 0.1; done" % gate)
    for number in range(40):
        root.drop("second%d" % number)
    root.pump()
    until(lambda: sum(root.starts("first%d" % n) for n in range(40)) == 40, "40 payloads run")
    asked = queries(root)
    open(gate, "w").close()
    root.wait_finished(80)
    root.wait_idle()
    assert queries(root) - asked <= 3
    owners = [r for r in root.log() if r["ev"] == "pumped"]
    assert sum(r.get("ended", 0) for r in owners) == 80
    assert all(root.starts("second%d" % n) == 1 for n in range(40))


@pytest.mark.parametrize(
    "text, head, why",
    [
        ("", "DONE", ""),
        ("exit 3", "FAIL", "exit 3"),
        ("kill -9 $$", "FAIL", "exit 137"),
        ("exec true", "DONE", ""),
        ("set -e\nfalse", "FAIL", "exit 1"),
        ("nosuchcommand_", "DONE", ""),
    ],
)
def test_ends(root, text, head, why):
    root.drop("job", text)
    root.pump()
    root.wait_finished(1)
    flag = root.flag("job")
    assert flag[0] == head and "why=" + why in flag
    assert len(root.events("job", "ended")) == 1


def running_job(root, query_interval=0, **more):
    """One job whose payload runs for long; its scheduler id."""
    root.drop("job", seconds=300, **more)
    root.pump()
    until(lambda: root.starts("job"), "the payload began")
    return next(job_id for job_id, job in root.table().items() if job["state"] == "R")


def test_a_cancelled_job_is_killed_and_cancelled(make_root):
    root = make_root(query_interval=0)
    running_job(root)
    assert root.agent("cancel", "job")[0] == 0
    root.wait_idle()
    until(lambda: root.pump() and root.spool.settled_state("job", 1) == "cancelled", "cancelled")
    assert root.events("job", "cancelled")[0]["exit"] == 271
    with open(os.path.join(root.ran, "job")) as stream:
        assert "end" not in stream.read()


def test_a_job_deleted_behind_our_back_is_cancelled(make_root):
    from chasqui_agent.schedulers.shell import Shell

    root = make_root(query_interval=0)
    job_id = running_job(root)
    Shell(root.spool, settings.load(root.spool)).delete(job_id)
    root.wait_idle()
    until(lambda: root.pump() and root.spool.settled_state("job", 1) == "cancelled", "cancelled")
    assert "deleted in the scheduler" in root.events("job", "cancelled")[0]["why"]


def session_of(root, job_id):
    return root.table()[job_id]["pid"]


@pytest.mark.parametrize("how, head", [("runner", "FAIL"), ("session", "LOST")])
def test_a_killed_job_is_told_apart_from_a_failed_one(make_root, how, head):
    """SIGKILL to the runner: the scheduler knows. SIGKILL to everything, its own process too: nobody knows."""
    root = make_root(query_interval=0)
    job_id = running_job(root)
    until(lambda: root.table()[job_id]["runner"], "the runner's pid is recorded")
    if how == "runner":
        os.kill(root.table()[job_id]["runner"], signal.SIGKILL)
    else:
        subprocess.call(["pkill", "-KILL", "-s", str(session_of(root, job_id))])
    until(lambda: root.pump() and root.flag("job"), "an end")
    assert root.flag("job")[0] == head
    assert root.starts("job") == 1
    assert ("why=killed by signal 9" in root.flag("job")) == (how == "runner")


def test_a_reboot_marks_running_jobs_lost_and_keeps_queued_ones(make_root):
    root = make_root(query_interval=0, max_running=1)
    running_job(root)
    root.drop("later")
    root.pump()
    path = os.path.join(root.path, "shell", "table.json")
    for job in root.table().values():
        if job["state"] == "R":
            subprocess.call(["pkill", "-KILL", "-s", str(job["pid"])])
    with open(path) as stream:
        table = json.load(stream)
    table["boot"] = "the boot before"
    with open(path, "w") as stream:
        json.dump(table, stream)
    until(lambda: root.pump() and root.flag("job"), "an end")
    assert root.flag("job")[0] == "LOST" and "why=the machine was rebooted" in root.flag("job")
    root.wait_finished(2)
    assert root.flag("later")[0] == "DONE"


def test_a_supervisor_that_died_leaves_the_runner_alone(make_root):
    """The job runs on, is seen as running while it does, and its flag tells its end."""
    root = make_root(query_interval=0)
    root.drop("job", "sleep 2")
    root.pump()
    until(lambda: root.starts("job"), "the payload began")
    job_id = next(iter(root.table()))
    os.kill(session_of(root, job_id), signal.SIGKILL)
    assert root.pump()["ended"] == 0
    root.wait_finished(1)
    assert root.flag("job")[0] == "DONE" and root.starts("job") == 1


def test_hold_release_cancel_of_what_waits(make_root):
    root = make_root(max_running=1, max_queued=1)
    root.drop("first", seconds=1)
    for name in ("second", "third"):
        root.drop(name)
    root.pump()
    assert root.agent("hold", "second")[0] == 0 and root.agent("cancel", "third")[0] == 0
    root.wait_finished(1)
    root.wait_idle()
    root.pump()
    assert root.spool.known("second", 1) == "held" and root.spool.known("third", 1) == "cancelled"
    assert root.starts("second") == root.starts("third") == 0
    assert root.agent("release", "second")[0] == 0
    root.wait_finished(2)
    assert root.starts("second") == 1 and root.starts("third") == 0


def test_a_submitted_job_that_has_not_started_can_be_held_and_never_runs_twice(make_root):
    """It sits in the scheduler with our hold; its token is closed, it is deleted there, and runs later under a new
    one."""
    root = make_root(max_running=1, max_queued=5)
    root.drop("first", seconds=1.5)
    root.drop("second")
    root.pump()
    assert {e.job for e in root.spool.entries("submitted")} == {"first", "second"}
    assert root.agent("hold", "second")[0] == 0
    assert root.spool.known("second", 1) == "held"
    root.wait_finished(1)
    root.wait_idle()
    assert root.starts("second") == 0
    root.agent("release", "second")
    root.wait_finished(2)
    assert root.starts("second") == 1
    assert len({r["token"] for r in root.events("second", "intent")}) == 2


def test_what_she_holds_in_the_script_stays_held_until_released(root):
    root.drop("job", directives="#PBS -h")
    root.pump()
    assert root.spool.known("job", 1) == "held"
    root.agent("release", "job")
    root.wait_finished(1)
    assert root.starts("job") == 1


def test_an_operation_is_applied_once(make_root):
    root = make_root(max_running=1, max_queued=1)
    root.drop("first", seconds=1)
    root.drop("second")
    root.pump()
    operation = {"id": "op-1", "op": "hold", "job": "second", "attempt": 1}
    operations.request(root.spool, operation)
    root.pump()
    assert root.spool.known("second", 1) == "held"
    root.agent("release", "second")
    operations.request(root.spool, operation)  # the client did not hear that it was done
    root.pump()
    assert root.spool.known("second", 1) != "held"


@pytest.mark.parametrize(
    "operation",
    [
        {},
        {"id": "../x", "op": "hold", "job": "a", "attempt": 1},
        {"id": "x", "op": "rm", "job": "a", "attempt": 1},
        {"id": "x", "op": "hold", "job": "../a", "attempt": 1},
        {"id": "x", "op": "hold", "job": "a", "attempt": "1"},
    ],
)
def test_bad_operations_are_refused(root, operation):
    with pytest.raises(ValueError):
        operations.request(root.spool, operation)


def test_a_half_copied_script_waits(make_root):
    root = make_root(settle=5)
    root.drop("job")
    report = root.pump()
    assert report["settling"] == 1 and report["submitted"] == 0
    os.utime(os.path.join(root.spool.waiting, "job.sh"), (time.time() - 6, time.time() - 6))
    assert root.pump()["submitted"] == 1
    root.wait_finished(1)


@pytest.mark.parametrize(
    "name", ["sp ace.sh", "-rf.sh", "quo'te\".sh", "\u00e9.sh", "new\nline.sh", "1.sh", "a.b.pbs", "$(x).sh"]
)
def test_odd_script_names(root, name):
    with open(os.path.join(root.spool.waiting, name), "w") as stream:
        stream.write("echo x >> '%s/count'\n" % root.ran)
    root.pump()
    root.wait_finished(1)
    with open(os.path.join(root.ran, "count")) as stream:
        assert stream.read() == "x\n"
    assert [r for r in root.log() if r["ev"] == "ended"][0]["state"] == "DONE"


def test_the_same_name_twice_is_two_jobs(root):
    for _ in range(2):
        root.drop("job")
        root.pump()
        root.wait_idle()
    root.wait_finished(2)
    assert root.starts("job") == 2 and root.flag("job-2")[0] == "DONE"


def test_priorities_and_order(make_root):
    root = make_root(max_running=1, max_queued=1)
    order = root.ran + "/order"
    for batch, priority in (("a", 0), ("b", 5), ("c", -5)):
        jobs = ["%s%d" % (batch, number) for number in range(3)]
        publish(root.spool, batch, [(job, "echo %s >> '%s'\n" % (job, order)) for job in jobs], priority)
    root.pump()
    root.wait_finished(9)
    with open(order) as stream:
        assert stream.read().split() == ["b0", "b1", "b2", "a0", "a1", "a2", "c0", "c1", "c2"]


def test_lowered_caps_never_kill(make_root):
    root = make_root(max_running=3, max_queued=3)
    for number in range(8):
        root.drop("job%d" % number, seconds=0.7)
    root.pump()
    until(lambda: sum(1 for j in root.table().values() if j["state"] == "R") == 3, "three run")
    settings.change(root.spool, max_running=1, max_queued=1)
    root.wait_finished(8)
    assert [root.starts("job%d" % number) for number in range(8)] == [1] * 8
    late = [r for r in root.log() if r["ev"] == "submitted"]
    assert len(late) == 8


def test_a_stalled_relay_says_since_when_and_goes_on(make_root):
    root = make_root(query_interval=0, max_running=1, max_queued=1)
    running_job(root)
    root.drop("next")
    root.pump()
    subprocess.call(["pkill", "-KILL", "-s", str(session_of(root, next(iter(root.table()))))])
    root.pump()
    state = os.path.join(root.path, "state.json")
    root.wait_finished(2)
    root.wait_idle()
    root.drop("third")
    with open(state) as stream:
        value = json.load(stream)
    value.update(pumped=value["pumped"] - 3600, waiting=True)
    with open(state, "w") as stream:
        json.dump(value, stream)
    code, out, _ = root.agent("status")
    assert "STALLED since" in out
    report = root.pump()
    assert report["stalled_since"] and report["submitted"] == 1
    assert [r for r in root.log() if r["ev"] == "stalled"]


def test_without_proc_the_relay_works(make_root, monkeypatch):
    """As on macOS: no /proc, `ps` tells who is alive."""
    monkeypatch.setenv("CHASQUI_PROC", "/nonexistent")
    root = make_root(max_running=2, max_queued=4)
    for number in range(6):
        root.drop("job%d" % number)
    root.pump()
    root.wait_finished(6)
    assert [root.starts("job%d" % number) for number in range(6)] == [1] * 6


def test_arrays_are_refused_with_the_reason(root):
    root.drop("job", directives="#PBS -J 1-4")
    assert root.pump()["rejected"] == 1
    with open(root.spool.entry_path("rejected", "job", 1, suffix="err")) as stream:
        assert "the shell scheduler has no job arrays (#PBS -J)" in stream.read()
    assert root.events("job", "rejected")


def test_a_wake_is_silent_and_succeeds_whatever_happens(root, tmp_path):
    assert root.agent("wake", "--budget", "nonsense")[0] == 0
    root.path = str(tmp_path / "nowhere")
    assert root.agent("wake") == (0, "", "")


def test_what_is_said_about_a_missing_root(root, tmp_path):
    root.path = str(tmp_path / "nowhere")
    code, out, err = root.agent("status")
    assert code == 1 and out == "" and err.count("\n") == 1 and "install" in err


def test_a_root_others_can_write_to_is_refused(root):
    os.chmod(root.path, 0o777)
    code, _, err = root.agent("install")
    assert code == 1 and "chmod go-w" in err


def test_remove_refuses_while_something_waits_then_keeps_work(root):
    root.drop("job", seconds=1)
    root.pump()
    code, _, err = root.agent("remove")
    assert code == 1 and "job" in err
    root.wait_finished(1)
    root.wait_idle()
    assert root.agent("remove")[0] == 0
    assert sorted(os.listdir(root.path)) == ["work"]


def test_selftest_and_doctor(root):
    code, out, _ = root.agent("selftest")
    assert code == 0 and out.count("ok ") == 7
    code, out, _ = root.agent("doctor")
    assert code == 0 and "scheduler" in out


def test_a_full_disk_ends_the_round_and_loses_nothing(root, monkeypatch):
    """Writing fails at the journal; the script stays where it was, and the next pump takes it."""
    from chasqui_agent import journal, pump

    root.drop("job")
    real = journal.Writer._write

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.Writer, "_write", full)
    assert "No space left" in pump.pump(root.spool, "test")["note"]
    monkeypatch.setattr(journal.Writer, "_write", real)
    assert root.starts("job") == 0
    root.pump()
    root.wait_finished(1)
    assert root.starts("job") == 1


def test_a_wake_that_came_when_the_budget_was_gone_is_not_lost(root, monkeypatch):
    """Its owner saw the lock taken and went home: whoever holds it has to see to it, or nobody ever pumps again."""
    run_round, came = pump.Round.run, []

    def round_with_a_visitor(self, handled):
        run_round(self, handled)
        if not came:
            came.append(root.drop("late"))
            pump.request(root.spool, "tail")

    monkeypatch.setattr(pump.Round, "run", round_with_a_visitor)
    pump.request(root.spool, "tail")
    pump.pump(root.spool, "tail", budget=0.0, attended=False)
    assert came
    root.wait_finished(1)
    root.wait_idle()
    assert root.starts("late") == 1
