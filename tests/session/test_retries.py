"""Jobs tried again by the relay while nobody syncs: what the ledger learns, what comes home; and retries by hand."""

import json
import os
import sys

import pytest

from agent.agentroot import until
from chasqui_agent import serve, wire
from chasqui_client import api, errors, results, states
from chasqui_client.exchange import SyncOptions, SyncReport
from chasqui_client.progress import Progress
from chasqui_client.select import Selection
from chasqui_client.sync import Exchange
from session.desk import Desk

FAILS = "echo $(wc -l <%s) >out\ncat in >>seen\necho spoilt >in\n[ $(wc -l <%s) -ge %d ] || exit 7\n"


@pytest.fixture
def desk(memory_path):
    return Desk(memory_path)


def fails(desk: Desk, times: int, name: str = "it") -> object:
    """A folder whose job fails so often before it succeeds, and rewrites its input each time."""
    return desk.folder(name, FAILS % (desk.ran, desk.ran, times + 1), **{"in": b"as sent\n"})


def alone(desk: Desk, attempt: int, job: object) -> None:
    """Wait until the relay, and no sync, has brought a job to the end of this attempt."""
    until(lambda: os.path.exists(desk.root / "completed" / ("%s.%d.flag" % (job.id, attempt))), "its end, by the relay")


def test_two_failures_and_a_success_over_a_weekend(desk):
    job, = desk.add(fails(desk, 2), retry={"retries": 3, "on": ["7"]})
    desk.sync()
    alone(desk, 3, job)
    report = desk.sync()
    assert (report.completed, report.failed) == (1, 0)
    found = desk.completed(job)
    assert (found.attempt, found.acked, found.offered, found.exit) == (3, 3, 3, 0)
    assert (desk.path / "jobs/it/results/seen").read_text() == "as sent\n"
    assert (desk.path / "jobs/it/results/out").read_text() == "3\n"
    with desk.ledger() as ledger:
        attempts = [(row["attempt"], row["state"], row["exit"]) for row in ledger.attempts(job.id)]
        assert attempts == [(1, "FAILED", 7), (2, "FAILED", 7), (3, "COMPLETED", 0)]
        told = [(row["attempt"], row["why"]) for row in ledger.events(job.id) if row["event"] == "retried"]
        assert told == [(1, "attempt 2 of 4 after exit 7"), (2, "attempt 3 of 4 after exit 7")]
        assert [file.path for file in ledger.files(job.id, 3)] == [b"in", b"job.sh"]
    assert desk.sync().completed == 0 and sorted(os.listdir(desk.path / "jobs/it")) == ["in", "job.sh", "results"]


def test_a_job_that_is_about_to_be_tried_again_is_waiting_and_the_end_of_its_retries_is_its_end(desk):
    job, = desk.add(fails(desk, 9), retry={"retries": 1, "on": ["7"]})
    desk.sync()
    alone(desk, 2, job)
    report = desk.sync()
    assert (report.failed, desk.job(job).state, desk.job(job).attempt) == (1, states.FAILED, 2)
    assert desk.job(job).why == "exit 7; not tried again: the last of one retry"
    api.retry(desk.home, Selection((job.id,)))
    desk.sync()
    alone(desk, 4, job)  # the user's own attempt 3 has a retry of its own
    desk.sync()
    assert (desk.job(job).state, desk.job(job).attempt) == (states.FAILED, 4)
    assert desk.job(job).results_state == states.VERIFIED
    assert desk.lines() == ["it"] * 4


def test_a_cancel_of_the_attempt_she_knows_of_stops_the_retries(desk):
    """The one that runs when her word comes does not end by itself."""
    script = "case $PWD in *.3) exec sleep 600;; *) exit 7;; esac"
    job, = desk.add(desk.folder("it", script), retry={"retries": 100, "on": ["7"]})
    desk.sync()
    until(lambda: len(desk.lines()) == 3, "the relay has tried it again, twice")
    assert desk.job(job).attempt == 1
    api.cancel(desk.home, Selection((job.id,)))
    until(lambda: (desk.sync(), desk.job(job).state == states.CANCELLED)[1], "it is cancelled")
    desk.sync()
    assert len(desk.lines()) == 3 and (desk.job(job).state, desk.job(job).attempt) == (states.CANCELLED, 3)


def test_resumed_its_results_are_those_of_all_its_attempts(desk):
    script = "echo $(wc -l <%s) >>steps\n[ $(wc -l <steps) -ge 3 ] || exit 1\n" % desk.ran
    job, = desk.add(desk.folder("it", script), retry={"retries": 5, "resume": True})
    desk.sync()
    alone(desk, 3, job)
    desk.sync()
    desk.completed(job)
    assert (desk.path / "jobs/it/results/steps").read_text() == "1\n2\n3\n"


def test_an_agent_that_makes_more_attempts_than_the_policy_has_is_not_believed(desk):
    job, other = desk.add(fails(desk, 9), fails(desk, 9, "other"), retry={"retries": 1, "on": ["SIGKILL"]})
    desk.sync()
    until(lambda: (desk.sync(), all(one.ended for one in desk.jobs()))[1], "both ended")
    record = {"ev": "retried", "t": "2026-01-01T00:00:00Z", "why": "7", "attempt": 1}
    with desk.ledger() as ledger:
        for wanted in (3, 1, 0, -1, "2", None, True):
            assert ledger.apply_record("here", {**record, "job": job.id, "next": wanted}) == ""
        assert ledger.apply_record("here", {**record, "job": job.id, "next": 2}) == states.UPLOADED
        assert ledger.apply_record("here", {**record, "job": job.id, "attempt": 2, "next": 3}) == ""
        assert ledger.apply_record("here", {**record, "job": job.id, "next": 2}) == ""
        assert ledger.apply_record("elsewhere", {**record, "job": other.id, "next": 2}) == ""
    assert (desk.job(job).attempt, desk.job(other).attempt) == (2, 1)
    assert (desk.job(job).why, desk.job(other).why) == ("7", "exit 7")


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_no_commit_comes_between_an_end_and_the_retry_that_follows(desk, monkeypatch, step):
    """Who looks into the ledger while a sync goes on never sees a job failed that is tried again."""
    job, = desk.add(fails(desk, 9), retry={"retries": 9, "on": ["SIGKILL"]})
    desk.sync()
    end = {"ev": "ended", "state": "FAIL", "exit": 9, "why": "exit 9", "job": job.id, "t": "2026-01-01T00:00:00Z"}
    found = [{**end, **change, "attempt": n, "next": n + 1} for n in (1, 2, 3) for change in ({}, {"ev": "retried"})]
    monkeypatch.setattr(sys.modules[Exchange.__module__], "_STEP", step)  # the package has a function of its name
    seen = []
    with desk.ledger() as ledger:
        with ledger.transaction():  # whatever that sync has seen
            ledger.db.execute("UPDATE jobs SET state = 'RUNNING' WHERE id = ?", (job.id,))
        exchange = Exchange(ledger, desk.remote, SyncOptions(), SyncReport("here"), Progress(False))
        exchange.records(found, 1)
        while exchange._cursor >= 0:
            exchange._settle(step)
            seen.append(desk.job(job).state)
    assert set(seen) == {states.UPLOADED} and desk.job(job).attempt == 4
    assert len(seen) == {1: 3, 2: 3, 3: 2}.get(step, 1)


def test_a_retry_by_hand_with_other_resources(desk):
    """In the script that runs, not in the user's; and again at the next retry."""
    folder = desk.path / "jobs/it"
    folder.mkdir(parents=True)
    text = "#!/bin/sh\n#PBS -l select=1:ncpus=1:mem=8gb,walltime=12:00:00\necho it >>%s\ncp \"$0\" ran.sh\nexit 1\n"
    (folder / "job.sh").write_text(text % desk.ran)
    job, = desk.add(folder)
    desk.finish()
    api.retry(desk.home, Selection((job.id,)), {"walltime": "48:00:00", "mem": "64gb", "queue": "long"})
    desk.finish()
    ran = (folder / "results/ran.sh").read_text()
    wanted = "#!/bin/sh\n#PBS -q long\n#PBS -l select=1:ncpus=1:mem=64gb,walltime=48:00:00\n"
    assert ran == wanted + (text % desk.ran).partition("00\n")[2]
    assert (folder / "job.sh").read_text() == text % desk.ran
    api.retry(desk.home, Selection((job.id,)), {"walltime": "1:00"})
    desk.finish()
    assert (folder / "results/ran.sh").read_text() == ran.replace("48:00:00", "1:00")
    assert desk.job(job).attempt == 3


@pytest.mark.parametrize("change", [
    {"retries": 1000}, {"on": ["sometimes"]}, {"set": {"mem": "8\n#PBS -q x"}}, {"x": 1}])
def test_the_agent_takes_no_policy_that_is_none(desk, change):
    job, = desk.add(fails(desk, 1), retry={"retries": 1})
    with desk.ledger() as ledger, ledger.transaction():
        options = dict(job.options, retry={**job.options["retry"], **change})
        ledger.db.execute("UPDATE jobs SET options = ? WHERE id = ?", (json.dumps(options), job.id))
    report = desk.sync()
    assert [item["job"] for item in report.refused] == [job.id] and desk.lines() == []
    assert wire.printable(report.refused[0]["why"]) == report.refused[0]["why"]


@pytest.mark.parametrize("times, states_then", [
    (1, {"it": "COMPLETED", "ok": "COMPLETED", "fail": "BLOCKED", "any": "COMPLETED", "late": "COMPLETED"}),
    (9, {"it": "FAILED", "ok": "BLOCKED", "fail": "COMPLETED", "any": "COMPLETED", "late": "BLOCKED"})])
def test_jobs_that_wait_for_it_wait_for_its_last_attempt(desk, times, states_then):
    """One is handed over when the relay has made attempts that the ledger does not know of."""
    job, = desk.add(fails(desk, times), retry={"retries": 2, "on": ["7"]})
    for condition in ("ok", "fail", "any"):
        desk.add(desk.folder(condition), after=("it",), condition=condition)
    desk.sync()
    until(lambda: (desk.root / ("work/%s.2" % job.id)).exists(), "the relay has tried it again")
    desk.add(desk.folder("late"), after=("it",))
    assert desk.job(job).attempt == 1
    until(lambda: (desk.sync(), all(one.ended for one in desk.jobs()))[1], "the end of all")
    assert {one.name: one.state for one in desk.jobs()} == states_then
    lines = desk.ran.read_text().split()
    runs = [name for name, state in states_then.items() if state == "COMPLETED" and name != "it"]
    made = min(times + 1, 3)
    assert lines[:made] == ["it"] * made and sorted(lines[made:]) == sorted(runs)
    by = "it (%s)" % ("completed" if times == 1 else "failed")
    assert {one.why for one in desk.jobs() if one.state == "BLOCKED"} == {"blocked by " + by}


def test_its_output_is_followed_from_attempt_to_attempt(desk, capsys):
    """From the one that the ledger knows of to the last that the relay makes; and where one of them is cancelled."""
    script = "echo said $(wc -l <%s); [ $(wc -l <%s) -ge 3 ] || exit 7" % (desk.ran, desk.ran)
    job, = desk.add(desk.folder("it", script), retry={"retries": 5, "on": ["7"]})
    desk.sync()
    assert desk.job(job).attempt == 1
    assert results.follow_logs(desk.home, desk.remote, desk.job(job)) == 0
    assert capsys.readouterr().out.splitlines() == ["said 1", "said 2", "said 3"]
    flag = desk.root / ("completed/%s.3.flag" % job.id)
    flag.write_text(flag.read_text().replace("DONE", "FAIL") + "next=4\n")
    (desk.root / ("cancelled/%s.4.sh" % job.id)).touch()
    assert results.follow_logs(desk.home, desk.remote, desk.job(job)) == 0, "its folder was never made"


def test_a_retry_by_hand_takes_along_what_the_last_attempt_had_blocked(desk):
    """The new attempt has other resources; what waited for it keeps its own."""
    script = "#!/bin/sh\n#PBS -l walltime=1:00:00\necho %%s >>%s\n%%s\n" % desk.ran
    for name, text in (("it", "grep -q '^#PBS -l walltime=9' \"$0\" || exit 7"), ("child", "")):
        (desk.path / "jobs" / name).mkdir(parents=True)
        (desk.path / "jobs" / name / "job.sh").write_text(script % (name, text))
    job, = desk.add(desk.path / "jobs/it", retry={"retries": 1, "on": ["7"]})
    child, = desk.add(desk.path / "jobs/child", after=("it",))
    until(lambda: (desk.sync(), all(one.ended for one in desk.jobs()))[1], "the end of both")
    assert (desk.job(child).state, desk.job(job).attempt) == (states.BLOCKED, 2)
    assert len(api.retry(desk.home, Selection((job.id,)), {"walltime": "9:00:00"})) == 2
    until(lambda: (desk.sync(), all(one.ended for one in desk.jobs()))[1], "the end of both")
    assert desk.job(child).state == desk.job(job).state == states.COMPLETED and desk.job(job).attempt == 3
    assert "resources" not in {key for key, value in desk.job(child).options["asked"].items() if value}
    assert desk.ran.read_text().split() == ["it", "it", "it", "child"]


def test_an_agent_that_knows_nothing_of_retries_gets_none(desk, monkeypatch):
    plain, = desk.add(desk.folder("plain"))
    desk.sync()
    job, = desk.add(desk.folder("it", "case $PWD in *.2) ;; *) exit 7;; esac"), retry={"retries": 1, "on": ["7"]})
    welcome = Exchange.welcome
    with monkeypatch.context() as patch:
        patch.setattr(Exchange, "welcome", lambda self, fields: welcome(self, {**fields, "capabilities": ["after"]}))
        with pytest.raises(errors.VersionsApart) as caught:
            desk.sync(deploy=False)
    assert "--retries" in (caught.value.hint or "") and desk.job(job).acked == 0
    assert "retry" in serve.CAPABILITIES
    desk.finish()
    assert (desk.completed(plain).attempt, desk.completed(job).attempt) == (1, 2)


def test_arrays_are_not_tried_again(desk):
    folder = desk.folder("array", "#PBS -J 1-3")
    (folder / "job.sh").write_text("#!/bin/sh\n#PBS -J 1-3\ntrue\n")
    with pytest.raises(errors.BadFolders, match="a job array can't be tried again"):
        desk.add(folder, retry={"retries": 1})
