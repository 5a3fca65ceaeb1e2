"""Jobs that end as their policy says are tried again by the relay alone: from their inputs, or carrying on."""

import hashlib
import os
import shutil

import pytest

from agent.agentroot import Root, end_jobs, publish, until
from chasqui_agent import files, offers, operations, settings

WAITS = "while [ ! -e %s/go.%s ]; do sleep 0.05; done\n"


@pytest.fixture
def root(tmp_path):
    made = Root(tmp_path / "root", scheduler="shell", query_interval=0, grace=0.3, max_running=2)
    yield made
    end_jobs(made)


def hand_over(root, job, script, retry, inputs=None, **more):
    """One job as a session leaves it: work folder, record, manifest, the inputs kept beside them, its script."""
    inputs = dict(inputs or {}, **{"job.sh": script.encode("ascii")})
    folder, kept, rows = root.spool.work_dir(job, 1), os.path.join(root.spool.meta_dir(job, 1), "inputs"), []
    os.makedirs(kept)
    for name, content in inputs.items():
        sha = hashlib.sha256(content).hexdigest()
        os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
        for path in (os.path.join(folder, name), os.path.join(kept, sha)):
            files.write_file(path, content)
        rows.append({"path": name, "size": len(content), "mode": 0o600, "sha256": sha,
                     "mtime_ns": os.lstat(os.path.join(folder, name)).st_mtime_ns})
    record = dict({"job": job, "attempt": 1, "name": job, "ledger": "it", "retry": retry}, **more)
    if not offers.keeps_inputs(record):
        for name in os.listdir(kept):
            os.unlink(os.path.join(kept, name))
        os.rmdir(kept)
    files.write_json(os.path.join(root.spool.meta_dir(job, 1), "manifest.json"), {"files": rows})
    files.write_json(os.path.join(root.spool.meta_dir(job, 1), "job.json"), record)
    os.rename(*_without_meta(root, job))
    publish(root.spool, "of-" + job, [(job, script)], more.get("priority", 0))
    os.rmdir(root.spool.meta_dir(job, 1))
    os.rename(*reversed(_without_meta(root, job)))


def _without_meta(root, job):
    # `publish` makes the folder itself.
    return root.spool.meta_dir(job, 1), os.path.join(root.spool.work_dir(job, 1), ".kept")


def rule(retries, *on, **more):
    return dict({"retries": retries, "on": list(on or ("1-255",))}, **more)


def over(root, job, attempt):
    return lambda: root.spool.settled_state(job, attempt) and root.idle()


def finish(root, job, attempt):
    """Pump until this attempt is the job's last, and over; its end."""
    until(lambda: (root.pump(), root.spool.settled_state(job, attempt))[1], "the end of %s.%d" % (job, attempt))
    root.wait_idle()
    assert root.spool.final_attempt(job, 1) == attempt
    return root.flag(job, attempt)[0]


def work(root, job, attempt, name):
    with open(os.path.join(root.spool.work_dir(job, attempt), name)) as stream:
        return stream.read()


# It rewrites its input, and counts in a file outside how often it has run.
COUNTS = "#!/bin/sh\necho x >> %s/count\ncat in.txt >> %s/seen\necho spoilt > in.txt\n"
COUNTS += "echo out > out.$(wc -l < %s/count)\n"


def counting(root, text):
    return COUNTS % ((root.ran,) * 3) + text


def test_it_fails_twice_and_then_succeeds_each_time_from_its_inputs(root):
    script = counting(root, "[ $(wc -l < %s/count) -ge 3 ] || exit 7\n" % root.ran)
    hand_over(root, "it", script, rule(3, "7"), {"in.txt": b"as sent\n", "deep/er.txt": b"too\n"})
    assert finish(root, "it", 3) == "DONE"
    with open(os.path.join(root.ran, "seen")) as stream:
        assert stream.read() == "as sent\n" * 3
    assert [sorted(os.listdir(root.spool.work_dir("it", n))) for n in (1, 2, 3)] == [
        [".chasqui", "deep", "in.txt", "job.sh", "out.%d" % n] for n in (1, 2, 3)]
    assert work(root, "it", 3, "deep/er.txt") == "too\n"
    told = [(r["ev"], r["attempt"], r.get("next")) for r in root.events("it", "ended", "retried")]
    assert told == [("ended", 1, 2), ("retried", 1, 2), ("ended", 2, 3), ("retried", 2, 3), ("ended", 3, None)]
    assert "next=2" in root.flag("it", 1)
    left = [path for path, names, _ in os.walk(root.spool.work) if os.path.basename(path) == "inputs"]
    assert left == [] and os.listdir(os.path.join(root.spool.work, ".retries")) == []


def test_retries_run_out(root):
    hand_over(root, "it", counting(root, "exit 9\n"), rule(2), {"in.txt": b"x\n"})
    assert finish(root, "it", 3) == "FAIL"
    assert [r["why"] for r in root.events("it", "ended")] == [
        "exit 9", "exit 9", "exit 9; not tried again: the last of 2 retries"]
    assert root.pump()["submitted"] == 0


@pytest.mark.parametrize("text, on", [("exit 3", ("4-9", "walltime", "memory", "node", "lost")),
                                      ("kill -9 $$", ("SIGTERM", "9")), ("true", ("1-255",))])
def test_another_end_is_an_end(root, text, on):
    hand_over(root, "it", counting(root, text + "\n"), rule(2, *on), {"in.txt": b"x\n"})
    finish(root, "it", 1)
    assert root.events("it", "retried") == []
    assert not os.path.exists(os.path.join(root.spool.meta_dir("it", 1), "inputs"))


def test_a_signal_by_name(root):
    hand_over(root, "it", counting(root, "[ -e ../it.2 ] || kill -9 $$\n"), rule(1, "SIGKILL"), {"in.txt": b"x\n"})
    assert finish(root, "it", 2) == "DONE"
    assert root.events("it", "retried")[0]["why"] == "attempt 2 of 2 after exit 137"


@pytest.mark.parametrize("name, content, why", [("in.txt", b"other", "in.txt is not what was uploaded any more"),
                                               ("in.txt", None, "in.txt as it was uploaded is not there any more")])
def test_without_its_inputs_as_they_were_it_is_not_tried_again(root, name, content, why):
    hand_over(root, "it", counting(root, "exit 1\n"), rule(2), {name: b"right\n"})
    kept = os.path.join(root.spool.meta_dir("it", 1), "inputs", hashlib.sha256(b"right\n").hexdigest())
    os.unlink(kept)
    if content:
        files.write_file(kept, content)
    assert finish(root, "it", 1) == "FAIL"
    assert root.events("it", "ended")[0]["why"] == "exit 1; not tried again: " + why
    assert os.listdir(os.path.join(root.spool.work, ".retries")) == []


@pytest.mark.parametrize("damage", ['{"files": [{}]}', '{"files": [{"path": "../out", "sha256": "00", "mode": 384}]}',
                                    '{"files": [5]}', "not json", '{"files": 7}'])
def test_a_job_that_damages_its_own_record_stops_nobody(root, damage):
    text = "printf '%%s' '%s' > .chasqui/manifest.json\nexit 1\n" % damage
    hand_over(root, "it", counting(root, text), rule(2), {"in.txt": b"x\n"})
    assert finish(root, "it", 1) == "FAIL"
    assert "the record of its inputs is" in root.events("it", "ended")[0]["why"]
    assert not os.path.exists(os.path.join(root.path, "out"))


def test_a_full_disk_makes_no_retry_and_ends_the_job(root, tmp_path):
    """What can't be written is told with the end: it is not kept open until there is room."""
    hand_over(root, "it", counting(root, "exit 1\n"), rule(2), {"in.txt": b"x\n"})
    files.write_file(os.path.join(root.spool.work, ".retries"), b"")  # no folder can be made there
    assert finish(root, "it", 1) == "FAIL"
    assert root.events("it", "ended")[0]["why"] == "exit 1; not tried again: Not a directory"


def test_resumed_it_carries_its_files_on(root):
    """The files of the attempt that failed move on; its own .chasqui, with its output, stays."""
    script = "#!/bin/sh\necho step >> restart\nmkdir -p deep; echo $(wc -l < restart) > deep/last\n"
    script += "[ $(wc -l < restart) -ge 3 ] || exit 1\n"
    hand_over(root, "it", script, rule(5, resume=True))
    assert finish(root, "it", 3) == "DONE"
    assert work(root, "it", 3, "restart") == "step\n" * 3 and work(root, "it", 3, "deep/last") == "3\n"
    assert os.listdir(root.spool.work_dir("it", 1)) == os.listdir(root.spool.work_dir("it", 2)) == [".chasqui"]
    assert {"flag", "claim"} <= {name.split(".")[0] for name in os.listdir(root.spool.meta_dir("it", 1))}


@pytest.mark.parametrize("named", [0, 1])
def test_a_cancel_stops_it(root, named):
    """Also one that was meant for the attempt before: her ledger may not know of the retry yet."""
    settings.change(root.spool, max_running=1, max_total=1)
    hand_over(root, "it", counting(root, WAITS % (root.ran, "it") + "exit 1\n"), rule(5), {"in.txt": b"x\n"})
    root.pump()
    hand_over(root, "blocker", "#!/bin/sh\n" + WAITS % (root.ran, "blocker"), None, priority=400)
    files.write_file(os.path.join(root.ran, "go.it"), b"")
    until(lambda: (root.pump(), root.spool.known("it", 2) == "waiting")[1], "the next attempt waits for the only place")
    operations.request(root.spool, {"id": "op", "op": "cancel", "job": "it", "attempt": named})
    until(lambda: (root.pump(), root.spool.known("it", 2) == "cancelled")[1], "cancelled, by whoever has the lock")
    assert root.events("it", "cancelled")[0]["attempt"] == 2
    assert not os.path.exists(os.path.join(root.spool.meta_dir("it", 2), "inputs"))
    files.write_file(os.path.join(root.ran, "go.blocker"), b"")
    assert finish(root, "blocker", 1) == "DONE"
    with open(os.path.join(root.ran, "count")) as stream:
        assert stream.read() == "x\n"


def test_a_cancel_on_its_way_while_it_fails_stops_it(root):
    hand_over(root, "it", counting(root, "trap 'exit 5' TERM; sleep 60 & wait\n"), rule(5), {"in.txt": b"x\n"})
    root.pump()
    until(lambda: os.path.exists(os.path.join(root.ran, "count")), "it runs")
    root.agent("cancel", "it")
    until(lambda: (root.pump(), root.spool.settled_state("it", 1))[1], "its end")
    assert root.spool.final_attempt("it", 1) == 1 and not os.path.exists(root.spool.work_dir("it", 2))


def test_a_retry_keeps_its_priority_and_goes_behind_what_waits(root):
    settings.change(root.spool, max_running=1, max_total=1)
    hand_over(root, "it", counting(root, "exit 1\n"), rule(1), {"in.txt": b"x\n"}, priority=7)
    for name in ("one", "two"):
        hand_over(root, name, "#!/bin/sh\n" + WAITS % (root.ran, "all"), None, priority=7)

    def behind():
        return [(entry.job, entry.attempt) for entry in root.spool.waiting_entries()] == [("two", 1), ("it", 2)]

    until(lambda: (root.pump(), behind())[1], "the retry waits, behind the other one")
    assert "/493/" in list(root.spool.waiting_entries())[-1].path
    files.write_file(os.path.join(root.ran, "go.all"), b"")
    assert finish(root, "it", 2) == "FAIL"


def test_a_policy_that_is_none_on_the_disk_is_no_policy(root):
    hand_over(root, "it", counting(root, "exit 1\n"), {"retries": "many", "on": 5}, {"in.txt": b"x\n"})
    assert finish(root, "it", 1) == "FAIL"


def killed_behind_its_first_end(root):
    """A job whose end is told, with the next attempt built and not made; nothing is alive."""
    hand_over(root, "it", counting(root, "exit 1\n"), rule(1), {"in.txt": b"x\n"})
    root.agent("pump", CHASQUI_FAULT="ending.told", CHASQUI_FAULT_ONCE=root.path + ".killed")
    until(lambda: os.path.exists(root.path + ".killed") and root.idle(), "killed")
    assert root.spool.known("it", 1) == "completed" and root.spool.final_attempt("it", 1) == 2
    return os.path.join(root.spool.work, ".retries", *os.listdir(os.path.join(root.spool.work, ".retries")))


def test_what_a_client_made_of_the_same_number_counts(root):
    killed_behind_its_first_end(root)
    os.makedirs(root.spool.meta_dir("it", 2))
    root.pump()
    assert os.listdir(root.spool.meta_dir("it", 2)) == [] and root.spool.known("it", 2) == ""
    assert os.listdir(root.spool.ending) == [] and "inputs" not in os.listdir(root.spool.meta_dir("it", 1))


def test_a_next_attempt_whose_folder_was_deleted_is_cancelled(root):
    shutil.rmtree(killed_behind_its_first_end(root))
    root.pump()
    assert root.spool.known("it", 2) == "cancelled" and os.listdir(root.spool.ending) == []
    assert root.events("it", "cancelled")[0]["why"] == "its folder is gone"
    assert "inputs" not in os.listdir(root.spool.meta_dir("it", 1))


def test_a_late_flag_of_a_lost_attempt_that_is_tried_again_repairs_nothing(root):
    built = killed_behind_its_first_end(root)
    path = root.spool.entry_path("completed", "it", 1, suffix="flag")
    with open(path) as stream:
        text = stream.read().replace("FAIL", "LOST", 1)
    files.write_file(path, text.encode("ascii"))
    token, = [name[6:] for name in os.listdir(root.spool.meta_dir("it", 1)) if name.startswith("claim.")]
    files.write_file(os.path.join(root.spool.wake, "ev.tail.it.1.%s.host.1" % token), b"1\n")
    assert os.path.isdir(built)
    root.pump()
    assert root.events("it", "repaired") == [] and finish(root, "it", 2) == "FAIL"
