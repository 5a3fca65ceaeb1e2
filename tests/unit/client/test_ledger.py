"""The ledger: states move by the table alone, records count once, a no-op sync does not pay for the past."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chasqui_client import errors, holder, schema, states
from chasqui_client.cleanup import book
from chasqui_client.config import Home, Remote
from chasqui_client.exchange import SyncOptions, SyncReport
from chasqui_client.ledger import InputFile, Job, Ledger, ResultFile
from chasqui_client.progress import Progress

FILE = InputFile(b"job.sh", 3, 0o644, "ab" * 32, 1, b"/x/job.sh")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "jobs.db") as opened:
        yield opened


def _add(ledger: Ledger, name: str = "j1", remote: str = "hpc", priority: int = 0) -> Job:
    ledger.add_job(Job(name, remote, name, b"/f/" + name.encode(), "", 1, priority, b"job.sh", {"outputs": []},
                       "results", "NONE", None, None, "", "", 0, 0, "", ""), [FILE])
    return _job(ledger, name)


def _job(ledger: Ledger, name: str = "j1") -> Job:
    job = ledger.job(name)
    assert job
    return job


def _record(event: str, second: int = 0, job: str = "j1", attempt: int = 1, **more: Any) -> dict[str, Any]:
    return {"t": "2026-01-01T00:00:%02dZ" % second, "ev": event, "job": job, "attempt": attempt, **more}


def test_a_request_that_came_to_nothing_is_told_by_the_name_of_its_job(ledger: Ledger) -> None:
    from chasqui_client.sync import Exchange
    job = _add(ledger)
    with ledger.transaction():
        ledger.db.execute("UPDATE jobs SET name = 'T300', offered = 1, acked = 1")
    ledger.request(job, "cancel", "op1")
    report = SyncReport()
    Exchange(ledger, Remote("hpc", "h"), SyncOptions(), report, Progress(False)).done("op1", "j1 is not waiting")
    assert report.notes == ["T300 is not waiting"] and not ledger.pending_ops("hpc")


STORY = [
    _record("accepted", 1), _record("intent", 2, token="abcdefgh"), _record("submitted", 3, pbs="7.s"),
    _record("started", 4, pbs="7.s", when=1767225604),
    _record("ended", 5, state="FAIL", pbs="7.s", exit=3, why="exit 3", when=1767225605),
]


def test_a_new_ledger_has_an_id_that_stays(tmp_path: Path) -> None:
    with Ledger(tmp_path / "jobs.db") as first, Ledger(tmp_path / "jobs.db") as second:
        assert first.id == second.id and len(first.id) == 32
    assert (tmp_path / "jobs.db").stat().st_mode & 0o777 == 0o600


def test_the_journal_tells_a_jobs_story(ledger: Ledger) -> None:
    _add(ledger)
    ledger.acknowledge("hpc", [("j1", 1)])
    assert [ledger.apply_record("hpc", record) for record in STORY] == ["", "", "SUBMITTED", "RUNNING", "FAILED"]
    job = _job(ledger)
    assert (job.state, job.exit, job.why, job.pbs, job.acked) == ("FAILED", 3, "exit 3", "7.s", 1)
    attempt = ledger.attempts("j1")[0]
    assert (attempt["started"], attempt["ended"]) == ("2026-01-01T00:00:04Z", "2026-01-01T00:00:05Z")
    moves = [(event["old"], event["new"]) for event in ledger.events("j1") if event["new"]]
    assert moves[1:] == [("PREPARED", "QUEUED_LOCAL"), ("QUEUED_LOCAL", "UPLOADED"), ("UPLOADED", "SUBMITTED"),
                         ("SUBMITTED", "RUNNING"), ("RUNNING", "FAILED")]


TABLE = {"done": 1, "failed": 1, "unfinished": 0, "unstarted": 0, "states": [
    {"state": "failed", "exit": 3, "count": 1, "indices": "2"},
    {"state": "done", "exit": 0, "count": 1, "indices": "1"}]}


@pytest.mark.parametrize(("told", "kept"), [
    (TABLE, TABLE), ({**TABLE, "more": 1}, TABLE), ({"done": 1, "failed": 1, "unfinished": 0}, None), ("x", None),
    ({**TABLE, "states": [{**TABLE["states"][0], "indices": "\x1b"}]}, None),  # type: ignore[index]
])
def test_what_became_of_an_arrays_elements_is_kept_with_its_attempt(ledger: Ledger, told: Any, kept: Any) -> None:
    """Damaged, or in the words of an older agent, it is left out, and nothing else of the record."""
    _add(ledger)
    for record in (*STORY[:-1], {**STORY[-1], "elements": told}):
        ledger.apply_record("hpc", record)
    job = _job(ledger)
    assert (job.state, job.exit) == ("FAILED", 3) and json.loads(job.elements or "null") == kept
    assert ledger.attempts("j1")[0]["elements"] == kept
    ledger.add_attempt(job, [FILE])
    assert _job(ledger).elements == "" and [one["elements"] for one in ledger.attempts("j1")] == [kept, None]


def test_a_lost_acknowledgement_is_made_up_for(ledger: Ledger) -> None:
    _add(ledger)
    assert ledger.apply_record("hpc", STORY[0]) == "UPLOADED"
    assert _job(ledger).acked == 1 and ledger.to_upload("hpc") == []
    assert ledger.acknowledge("hpc", [("j1", 1)]) == []


@given(st.lists(st.sampled_from(range(len(STORY))), max_size=12))
@settings(max_examples=40, deadline=None)
def test_repeated_records_change_nothing_once_the_story_is_told(repeats: list[int]) -> None:
    with Ledger(":memory:") as ledger:
        _add(ledger)
        for record in STORY:
            ledger.apply_record("hpc", record)
        before = (_job(ledger), ledger.events("j1"))
        for number in repeats:
            assert ledger.apply_record("hpc", STORY[number]) == ""
        assert (_job(ledger), ledger.events("j1")) == before


@given(st.lists(st.tuples(st.sampled_from([
    "accepted", "intent", "submitted", "adopted", "held", "released", "started", "ended", "repaired", "lost",
    "rejected", "cancelled", "closed", "requeued", "refused", "duplicate", "nonsense"]),
    st.sampled_from(["DONE", "FAIL", "LOST", ""]), st.integers(0, 2)), max_size=25))
@settings(max_examples=100, deadline=None)
def test_whatever_the_journal_says_only_allowed_moves_are_made(said: list[tuple[str, str, int]]) -> None:
    with Ledger(":memory:") as ledger:
        _add(ledger)
        for second, (event, outcome, attempt) in enumerate(said):
            ledger.apply_record("hpc", _record(event, second, attempt=attempt, state=outcome, pbs="1"))
        state = ""
        for event_row in ledger.events("j1"):
            if event_row["new"]:
                assert event_row["old"] == state and event_row["new"] in states.JOB_MOVES[state]
                state = event_row["new"]
        assert state == _job(ledger).state


def test_a_whole_journal_read_again_leads_to_the_same_end(ledger: Ledger) -> None:
    _add(ledger)
    story = [*STORY[:3], _record("closed", 4, token="abcdefgh"), _record("submitted", 5, pbs="9.s"),
             _record("lost", 6, why="gone"), _record("repaired", 7, state="DONE", exit=0, pbs="9.s")]
    for record in story * 2:
        ledger.apply_record("hpc", record)
    assert (_job(ledger).state, _job(ledger).exit) == ("COMPLETED", 0)


def test_records_of_others_and_of_older_attempts(ledger: Ledger) -> None:
    _add(ledger)
    ledger.apply_record("other", STORY[4])
    ledger.apply_record("hpc", _record("ended", job="unknown", state="DONE"))
    ledger.apply_record("hpc", _record("ended", attempt=2, state="DONE"))
    ledger.apply_record("hpc", {"ev": "pumped", "t": "x"})
    for broken in ({"ev": 5, "job": "j1", "attempt": 1}, {"ev": "ended", "job": "j1", "attempt": "1"}, {"job": ["j1"]}):
        assert ledger.apply_record("hpc", broken) == ""
    assert _job(ledger).state == "QUEUED_LOCAL"
    for record in STORY:
        ledger.apply_record("hpc", record)
    ledger.add_attempt(_job(ledger), [FILE])
    assert ledger.apply_record("hpc", _record("repaired", 9, state="DONE")) == ""
    job = _job(ledger)
    assert (job.state, job.attempt, job.exit, job.why) == ("QUEUED_LOCAL", 2, None, "")
    assert [attempt["state"] for attempt in ledger.attempts("j1")] == ["FAILED", "QUEUED_LOCAL"]


def test_released_goes_back_to_where_it_was(ledger: Ledger) -> None:
    _add(ledger)
    for record in (STORY[0], _record("held", 2)):
        ledger.apply_record("hpc", record)
    assert _job(ledger).state == "HELD"
    assert ledger.apply_record("hpc", _record("released", 3)) == "UPLOADED"
    for record in (STORY[2], _record("held", 4)):
        ledger.apply_record("hpc", record)
    assert ledger.apply_record("hpc", _record("released", 5)) == "SUBMITTED"
    assert ledger.apply_record("hpc", _record("released", 6)) == ""


def test_forbidden_moves_leave_no_trace(ledger: Ledger) -> None:
    _add(ledger)
    before = ledger.events("j1")
    with pytest.raises(errors.ForbiddenMove, match="QUEUED_LOCAL to PREPARED"):
        ledger.move("j1", "PREPARED")
    with pytest.raises(errors.ForbiddenMove):
        ledger.set_results_state("j1", "CLEANED")
    assert ledger.events("j1") == before


def test_every_state_is_in_the_tables() -> None:
    assert set(states.JOB_MOVES) == {"", *states.STATES}
    assert all(after <= set(states.STATES) for after in states.JOB_MOVES.values())
    assert set(states.RESULTS_MOVES) == set(states.RESULTS_STATES)
    for state in states.ENDED:
        assert states.QUEUED_LOCAL in states.JOB_MOVES[state], "an ended job can be tried again"


def test_what_a_sync_asks(ledger: Ledger) -> None:
    for name, priority in (("low", -5), ("mid", 0), ("high", 5)):
        _add(ledger, name, priority=priority)
    assert ledger.to_upload("hpc") == ["high", "mid", "low"]
    ledger.acknowledge("hpc", [("high", 1), ("mid", 1), ("nobody", 1), ("low", 7)])
    assert ledger.to_upload("hpc") == ["low"]
    ledger.apply_record("hpc", _record("ended", job="high", state="DONE"))
    assert ledger.results_wanted("hpc") == [("high", 1)] and ledger.results_due("hpc") == (1, 0)
    ledger.record_results("high", 1, [ResultFile(b"out\xff", 3, 0o644, 1500, "cd" * 32, "output", "WANTED"),
                                      ResultFile(b"big", 3, 0o644, 1500, "", "output", "LEFT", "larger than 100 MB")])
    ledger.set_results_state("high", "PARTIAL")
    ledger.set_result("high", 1, b"out\xff", "HERE")
    assert {f.path: f.state for f in ledger.result_files("high", 1)} == {b"out\xff": "HERE", b"big": "LEFT"}
    ledger.set_results_state("high", "VERIFIED")
    assert ledger.results_wanted("hpc") == []
    assert ledger.counts("hpc") == {"QUEUED_LOCAL": 1, "UPLOADED": 1, "COMPLETED": 1}
    assert ledger.counts("hpc", open_only=True) == {"QUEUED_LOCAL": 1, "UPLOADED": 1}


def test_results_of_many_jobs_are_those_of_their_newest_attempts(ledger: Ledger) -> None:
    offer = ResultFile(b"out", 3, 0o644, 1500, "", "output", "WANTED")
    for name in ("j1", "j2", "j3"):
        _add(ledger, name)
        ledger.record_results(name, 1, [offer])
    for record in STORY:
        ledger.apply_record("hpc", {**record, "job": "j2"})
    ledger.add_attempt(_job(ledger, "j2"), [FILE])
    ledger.record_results("j1", 1, [offer, ResultFile(b"b", 1, 0o600, 1, "", "log", "LEFT", "big")])
    assert {key: len(files) for key, files in ledger.results_of(["j1", "j2", "no"]).items()} == {("j1", 1): 2}


def test_missing_results_are_counted_apart_until_a_new_attempt(ledger: Ledger) -> None:
    _add(ledger)
    for record in STORY:
        ledger.apply_record("hpc", record)
    ledger.set_missing("j1", ["OUT*"])
    assert _job(ledger).missing == ("OUT*",)
    assert ledger.results_due("hpc") == (0, 1) and ledger.results_wanted("hpc") == [("j1", 1)]
    ledger.add_attempt(_job(ledger), [FILE])
    assert _job(ledger).missing == () and ledger.results_due("hpc") == (0, 0)


# -- operations --------------------------------------------------------------------------------------------------------


def test_operations_on_jobs_the_cluster_cannot_know_happen_here(ledger: Ledger) -> None:
    assert ledger.request(_add(ledger), "hold", "op1")
    assert _job(ledger).state == "HELD" and ledger.to_upload("hpc") == []
    assert ledger.request(_job(ledger), "release", "op2") and ledger.request(_job(ledger), "cancel", "op3")
    assert _job(ledger).state == "CANCELLED" and ledger.pending_ops("hpc") == []
    with pytest.raises(errors.WrongState, match="is CANCELLED: nothing to hold"):
        ledger.request(_job(ledger), "hold", "op4")


def test_what_may_have_been_sent_is_asked_of_the_cluster(ledger: Ledger) -> None:
    job = _add(ledger)
    ledger.mark_offered([job])
    assert not ledger.request(_job(ledger), "cancel", "op1")
    assert not ledger.request(_job(ledger), "cancel", "op2")
    assert [op.id for op in ledger.pending_ops("hpc")] == ["op2"]
    assert _job(ledger).state == "QUEUED_LOCAL" and ledger.to_upload("hpc") == []
    ledger.finish_op("op2")
    assert _job(ledger).state == "CANCELLED" and ledger.pending_ops("hpc") == []


def test_a_cancel_of_a_job_there_waits_for_the_journal(ledger: Ledger) -> None:
    job = _add(ledger)
    ledger.acknowledge("hpc", [("j1", 1)])
    assert not ledger.request(_job(ledger), "cancel", "op1")
    ledger.finish_op("op1")
    assert _job(ledger).state == "UPLOADED"
    assert ledger.apply_record("hpc", _record("cancelled", 8, why="by hand")) == "CANCELLED"
    assert job.id == "j1" and ledger.results_wanted("hpc") == [("j1", 1)]


def test_hold_and_release_both_on_their_way(ledger: Ledger) -> None:
    ledger.mark_offered([_add(ledger)])
    ledger.request(_job(ledger), "hold", "a")
    ledger.request(_job(ledger), "release", "b")
    assert [op.op for op in ledger.pending_ops("hpc")] == ["hold", "release"]
    ledger.finish_op("a")
    ledger.finish_op("b")
    assert _job(ledger).state == "QUEUED_LOCAL" and ledger.to_upload("hpc") == ["j1"]


# -- remotes -----------------------------------------------------------------------------------------------------------


def test_another_root_resets_the_cursor_and_settings_count_up(ledger: Ledger) -> None:
    ledger.set_remote("hpc", uuid="u1", cursor=77, synced="2026-01-01T00:00:00Z", report={"waiting": 3})
    ledger.set_remote("hpc", uuid="u1")
    known = ledger.remote_state("hpc")
    assert (known.cursor, known.report) == (77, {"waiting": 3})
    ledger.set_remote("hpc", uuid="u2")
    assert ledger.remote_state("hpc").cursor == 0
    revisions = [ledger.config_revision("hpc", {"max_running": n}) for n in (4, 4, 5, 4)]
    assert revisions == [1, 1, 2, 3]


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_transaction_is_whole_or_not_at_all(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError), ledger.transaction():
        _add(ledger)
        raise RuntimeError
    assert ledger.jobs() == []


def test_a_locked_ledger_names_the_process(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    Ledger(path).close()
    script = ("import sqlite3, sys; d = sqlite3.connect(sys.argv[1], isolation_level=None);"
              "d.execute('BEGIN EXCLUSIVE'); print('ok', flush=True); sys.stdin.read()")
    other = subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin and other.stdout and other.stdout.readline()
    with pytest.raises(errors.LedgerBusy) as caught:
        Ledger(path, timeout=0.1)
    other.stdin.close()
    other.wait()
    other.stdout.close()
    assert caught.value.exit_code == 7
    if os.path.exists("/proc/locks"):
        assert "process %d" % other.pid in str(caught.value)


HOLD_SYNC_LOCK = """
import sys
sys.path[:0] = %r
from chasqui_client import config, holder
with holder.sync_lock(config.Home(sys.argv[1]), "hpc"):
    print("held", flush=True)
    sys.stdin.read()
""" % sys.path


def test_one_sync_at_a_time(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD_SYNC_LOCK, str(tmp_path)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    assert other.stdin and other.stdout and other.stdout.readline() == b"held\n"
    with pytest.raises(errors.LedgerBusy, match="a sync: process %s on" % other.pid), \
            holder.sync_lock(Home(tmp_path), "hpc", 0.3):
        pass
    with holder.sync_lock(Home(tmp_path), "another"):
        pass
    other.stdin.close()
    with holder.sync_lock(Home(tmp_path), "hpc", 20):
        pass
    other.wait()
    other.stdout.close()


def test_a_full_disk_is_one_clear_error(ledger: Ledger) -> None:
    pages = ledger.rows("PRAGMA page_count")[0][0]
    ledger.rows("PRAGMA max_page_count = %d" % pages)
    with pytest.raises(errors.LedgerFull, match="No space left for the ledger"):
        ledger.add_job(Job("big", "hpc", "x" * 100_000, b"", "", 1, 0, b"", {}, "r", "NONE", None, None, "", "", 0, 0,
                           "", ""), [])
    assert ledger.jobs() == []


def test_files_that_are_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, whatever its name says " * 100)
    with pytest.raises(errors.LedgerDamaged, match="not a database"):
        Ledger(tmp_path / "text")
    with pytest.raises(errors.LedgerDamaged):
        Ledger(tmp_path)
    newer = sqlite3.connect(tmp_path / "newer")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(errors.LedgerNewer, match="99"):
        Ledger(tmp_path / "newer")


def test_a_ledger_of_the_first_format_is_brought_up_to_date(tmp_path: Path) -> None:
    """The file was written by the first version: a finished job with results here, wanted and left, one failed job."""
    shutil.copy(Path(__file__).with_name("ledger-v1.db"), tmp_path / "jobs.db")
    for _ in range(2):
        with Ledger(tmp_path / "jobs.db") as ledger:
            assert len(ledger.id) == 32 and ledger.rows("PRAGMA user_version")[0][0] == len(schema.MIGRATIONS)
            done, failed = ledger.jobs()
            assert (done.state, done.results_state, done.missing, done.options["outputs"]) == (
                "COMPLETED", "PARTIAL", (), ["*"])
            assert [(f.path, f.size, f.mtime_ns, f.state, f.why) for f in ledger.result_files(done.id, 1)] == [
                (b"big", 10 ** 9, 0, "LEFT", "larger than 100000000 bytes"),
                (b"out\xff", 3, 1767225600 * 10 ** 9, "HERE", ""), (b"sub/more", 5, 1767225601 * 10 ** 9, "WANTED", "")]
            assert failed.state == "FAILED" and len(ledger.events(failed.id)) == 6
            ledger.set_missing(done.id, [])
            assert ledger.results_due("hpc") == (2, 0)


def test_a_ledger_from_before_proofs_is_brought_on(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("ledger-v1.db"), tmp_path / "jobs.db")
    with Ledger(tmp_path / "jobs.db") as ledger:
        job = ledger.jobs()[0]
        assert book.facts(ledger, job, "").proofs == []
        assert book.keep(ledger, [job]) == [job] and book.is_kept(ledger, job.id)


def test_what_comes_home_is_proved_once_by_each_run(tmp_path: Path) -> None:
    with Ledger(tmp_path / "jobs.db") as ledger:
        _add(ledger)
        for state in ("PARTIAL", "VERIFIED", "VERIFIED", "CLEANUP_ELIGIBLE", "VERIFIED"):
            ledger.set_results_state("j1", state)
        first, = book.facts(ledger, _job(ledger), "").proofs
    with Ledger(tmp_path / "jobs.db") as ledger:
        ledger.set_results_state("j1", "NONE")
        ledger.set_results_state("j1", "VERIFIED")
        proofs = book.facts(ledger, _job(ledger), "").proofs
        assert proofs[0] == first and len({proof.run for proof in proofs}) == 2


def test_what_may_be_cleaned_does_not_cost_what_was(tmp_path: Path) -> None:
    with Ledger(tmp_path / "jobs.db") as ledger:
        _many(ledger, "CLEANED")
        steps: list[int] = []
        ledger.db.set_progress_handler(lambda: steps.append(1), 100)  # type: ignore[arg-type, return-value]
        assert book.due(ledger, "hpc", 0.0) == []
        ledger.db.set_progress_handler(None, 0)
        assert len(steps) <= 3


def _many(ledger: Ledger, results_state: str) -> None:
    with ledger.transaction():
        for number in range(5000):
            ledger.db.execute(
                "INSERT INTO jobs(id, remote, name, folder, state, attempt, script, options, results_dir,"
                " results_state, acked, added, changed) VALUES (?, 'hpc', 'n', ?, 'COMPLETED', 1, x'', '{}', 'r',"
                " ?, 1, '', '')", ("j%d" % number, b"/%d" % number, results_state))


def test_a_noop_does_not_pay_for_finished_jobs(tmp_path: Path) -> None:
    with Ledger(tmp_path / "jobs.db") as ledger:
        _many(ledger, "VERIFIED")
        for sql in ("to_upload", "results_wanted", "pending_ops"):
            steps: list[int] = []
            ledger.db.set_progress_handler(lambda steps=steps: steps.append(1), 100)  # type: ignore[misc]
            assert getattr(ledger, sql)("hpc") == []
            ledger.db.set_progress_handler(None, 0)
            assert len(steps) <= 3, "%s looks at finished jobs" % sql
        began = time.perf_counter()
        ledger.counts("hpc", open_only=True)
        assert time.perf_counter() - began < 0.05
