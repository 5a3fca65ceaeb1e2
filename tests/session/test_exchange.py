"""Whole syncs over a child process: jobs there, records and results back, operations, retries, changed inputs."""

import json
import os
import re
import shutil
import threading

import pytest

import chasqui_agent
from agent.agentroot import until
from chasqui_agent import wire
from chasqui_client import api, cli, errors, jobs, results, states, upload
from chasqui_client.config import MAX_FILE
from chasqui_client.exchange import SyncOptions
from chasqui_client.holder import sync_lock
from chasqui_client.ledger import Ledger
from chasqui_client.progress import Progress
from chasqui_client.select import Selection
from chasqui_client.sync import run
from session.desk import Desk


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def test_jobs_run_and_results_come_home(desk):
    folders = [desk.folder("j%d" % n, "cat in.dat >out.dat; echo said; echo complained >&2; mkdir d; echo x >d/deep",
                           **{"in.dat": b"content %d" % n, "shared": b"s" * 300_000}) for n in range(3)]
    added = desk.add(*folders)
    first = desk.sync()
    assert (first.uploaded, first.uploaded_files, first.deployed) == (3, 9, str(desk.root))
    desk.finish()
    assert desk.lines() == ["j0", "j1", "j2"]
    for number, job in enumerate(added):
        assert desk.completed(job).exit == 0
        found = {os.path.relpath(os.path.join(top, name), job.results_path)
                 for top, _, names in os.walk(job.results_path) for name in names}
        logs = {name for name in found if name.startswith(b"j")}
        assert found - logs == {b"out.dat", b"d/deep"}
        assert len(logs) == 2
        assert (folders[number] / "results" / "out.dat").read_bytes() == b"content %d" % number
        assert not (folders[number] / "results" / ".chasqui").exists()
    assert desk.sync().uploaded == 0


def test_failed_jobs_bring_their_files_too(desk):
    job, = desk.add(desk.folder("bad", "echo partial >out; exit 3"))
    desk.finish()
    found = desk.job(job)
    assert (found.state, found.exit, found.results_state) == (states.FAILED, 3, states.VERIFIED)
    assert (desk.path / "jobs/bad/results/out").read_text() == "partial\n"


def test_awkward_names_and_modes(desk):
    folder = desk.folder("odd")
    names = [b"a b", b"quote'\"", b"new\nline", b"-dash", "ñandú".encode(), b"raw\xff\xfe", b"per%cent",
             b"sub/-x y/\xffz"]
    for name in names:
        path = os.path.join(os.fsencode(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(name)
    (folder / "empty").write_bytes(b"")
    (folder / "tool").write_text("#!/bin/sh\necho tool ran >tool.out\n")
    (folder / "tool").chmod(0o755)
    copy = 'for f in * sub/*/*; do [ -f "$f" ] && cp -- "$f" "$f.copy"; done'
    (folder / "job.sh").write_text("#!/bin/sh\n%s\n./tool\n" % copy)
    job, = desk.add(folder)
    desk.finish()
    desk.completed(job)
    for name in names:
        with open(os.path.join(job.results_path, name + b".copy"), "rb") as stream:
            assert stream.read() == name
    assert (folder / "results" / "tool.out").exists()


def test_big_results_stay_and_are_fetched_by_name(desk):
    job, = desk.add(desk.folder("big", "head -c 5000 /dev/zero >WAVECAR; echo small >out"), max_file=1000)
    desk.sync()
    left = []
    while not desk.job(job).ended or not left:
        left += desk.sync().left_out
    assert [(item["path"], item["size"]) for item in left] == [("WAVECAR", 5000)]
    desk.completed(job)
    assert not (desk.path / "jobs/big/results/WAVECAR").exists()
    desk.sync(fetch={job.id: ("WAVE*",)})
    assert (desk.path / "jobs/big/results/WAVECAR").stat().st_size == 5000
    assert (desk.path / "jobs/big/results/out").exists()


def test_retry_sends_only_what_changed_and_keeps_earlier_results(desk):
    folder = desk.folder("again", "cat in.dat >out.dat", **{"in.dat": b"old", "large": os.urandom(400_000)})
    job, = desk.add(folder)
    desk.finish()
    (folder / "in.dat").write_bytes(b"new")
    with desk.ledger() as ledger:
        jobs.retry(desk.home, ledger, desk.home.config(), [desk.job(job)])
    sizes = []
    whole = upload.Upload._content

    def counted(self, offer, file, *rest):
        sizes.append(file.size)
        whole(self, offer, file, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upload.Upload, "_content", counted)
        desk.sync()
    assert sizes == [3]
    desk.finish()
    assert desk.completed(job).attempt == 2
    assert (folder / "results" / "out.dat").read_bytes() == b"new"
    assert (folder / "results.attempt-1" / "out.dat").read_bytes() == b"old"
    assert desk.lines() == ["again", "again"]


def test_changed_inputs_are_named_and_go_as_they_are(desk):
    folder = desk.folder("edited", "cat in.dat >out", **{"in.dat": b"before", "touched": b"same"})
    job, = desk.add(folder)
    (folder / "in.dat").write_bytes(b"after, and longer")
    os.utime(folder / "touched", (1, 1))
    report = desk.sync()
    assert [item["path"] for item in report.changed_inputs] == ["in.dat"]
    desk.finish()
    assert (folder / "results/out").read_bytes() == b"after, and longer"
    desk.completed(job)


def test_a_missing_input_keeps_its_job_here_and_the_others_go(desk):
    broken, fine = desk.folder("broken", **{"in.dat": b"x"}), desk.folder("fine")
    lost, job = desk.add(broken, fine)
    (broken / "in.dat").unlink()
    report = desk.sync()
    assert report.uploaded == 1
    assert [item["name"] for item in report.changed_inputs] == ["broken"]
    assert desk.job(lost).state == states.QUEUED_LOCAL
    (broken / "in.dat").write_bytes(b"back")
    desk.finish()
    assert desk.lines() == ["broken", "fine"]


def test_the_line_behind_what_was_not_taken_brings_it_there(desk, monkeypatch, capsys):
    """An earlier version recorded limits that no agent takes, and a retry asked for them again."""
    monkeypatch.setenv("CHASQUI_HOME", str(desk.home.path))
    old = desk.add(*(desk.folder("old%d" % n, "echo out >out") for n in range(2)), max_file=1000)
    limits = ("-1", "true")
    with desk.ledger() as ledger, ledger.transaction():
        for job, limit in zip(old, limits, strict=True):
            options = json.dumps(job.options).replace('"max_file": 1000', '"max_file": %s' % limit)
            assert options.count(limit) >= 2
            ledger.db.execute("UPDATE jobs SET options = ? WHERE id = ?", (options, job.id))
    good, = desk.add(desk.folder("good"))
    assert cli.main(["sync"]) == 0
    out = capsys.readouterr().out
    assert "uploaded 1 job" in out and out.count("not taken: ") == 2 and "max_file or max_job out of bounds" in out
    line, = re.findall(r"put it right, then: (.*)$", out, re.M)
    for words in line.split(" && "):
        assert cli.main(words.split()[1:]) == 0
    assert "not taken" not in capsys.readouterr().out
    desk.finish()
    assert desk.completed(good) and all(desk.completed(job).options["max_file"] == MAX_FILE for job in old)
    assert desk.lines() == ["good", "old0", "old1"]


def test_operations_are_carried_over(desk):
    blocker, *rest = desk.add(desk.folder("blocker", "while [ ! -e %s/go ]; do sleep 0.05; done" % desk.path),
                              desk.folder("cancelled"), desk.folder("held"))
    desk.remote = type(desk.remote)(**{**vars(desk.remote), "caps": type(desk.remote.caps)(1, 1)})
    desk.sync()
    api.cancel(desk.home, Selection((rest[0].id,)))
    api.hold(desk.home, Selection((rest[1].id,)))
    desk.sync()
    assert [desk.job(job).state for job in rest] == [states.CANCELLED, states.HELD]
    api.release(desk.home, Selection((rest[1].id,)))
    desk.sync()
    (desk.path / "go").touch()
    desk.finish()
    assert desk.lines() == ["blocker", "held"]


def test_dry_run_contacts_nothing(desk):
    desk.add(desk.folder("one", **{"in.dat": b"12345"}))
    report = desk.sync(dry_run=True)
    assert report.would_upload[0]["files"] == 2
    assert not desk.root.exists()


def test_two_syncs_at_once(desk):
    with sync_lock(desk.home, "here"), pytest.raises(errors.LedgerBusy) as caught:
        desk.sync(wait=0.0)
    assert str(os.getpid()) in str(caught.value)


def test_a_new_root_is_read_from_its_beginning(desk):
    job, = desk.add(desk.folder("one"))
    desk.finish()
    shutil.rmtree(desk.root)
    again, = desk.add(desk.folder("two"))
    desk.finish()
    assert (desk.completed(job).state, desk.completed(again).state) == (states.COMPLETED, states.COMPLETED)


def test_no_deploy_says_what_to_type(desk):
    desk.add(desk.folder("one"))
    with pytest.raises(errors.AgentMissing) as caught:
        run(desk.home, desk.remote, SyncOptions(deploy=False))
    assert "agent deploy" in caught.value.hint


def test_an_older_agent_is_replaced_and_its_root_brought_up_to_date(desk, monkeypatch):
    """A folder that the older one did not know is made, and what it left waiting runs."""
    with monkeypatch.context() as earlier:
        source = desk.path / "earlier" / "chasqui_agent"
        shutil.copytree(os.path.dirname(chasqui_agent.__file__), source)
        text = (source / "__init__.py").read_text()
        (source / "__init__.py").write_text(text.replace("SERIAL = %d" % chasqui_agent.SERIAL, "SERIAL = 1"))
        earlier.setattr(chasqui_agent, "__file__", str(source / "__init__.py"))
        earlier.setattr(chasqui_agent, "SERIAL", 1)
        desk.deploy()
        runs = "touch %s/runs; while [ ! -e %s/go ]; do sleep 0.05; done" % (desk.path, desk.path)
        found = desk.add(desk.folder("running", runs), desk.folder("waiting"))
        desk.remote = type(desk.remote)(**{**vars(desk.remote), "caps": type(desk.remote.caps)(1, 1)})
        desk.sync()
        until(lambda: (desk.path / "runs").exists(), "the first one runs")
    older = os.readlink(desk.root / "agent/current")
    os.rmdir(desk.root / "ending")
    assert desk.lines() == ["running"] and desk.sync().deployed
    (desk.path / "go").touch()
    desk.finish()
    assert os.readlink(desk.root / "agent/current") != older
    assert desk.lines() == ["running", "waiting"] and all(desk.completed(job) for job in found)


def test_results_are_not_written_through_a_symlink(desk):
    folder = desk.folder("linked", "echo secret >out")
    job, = desk.add(folder)
    elsewhere = desk.path / "elsewhere"
    elsewhere.mkdir()
    (folder / "results").symlink_to(elsewhere)
    desk.sync()
    notes = []
    while not desk.job(job).ended:
        notes += desk.sync().notes
    notes += desk.sync().notes
    assert any("symlink" in note for note in notes)
    assert list(elsewhere.iterdir()) == []
    (folder / "results").unlink()
    desk.finish()
    assert (folder / "results" / "out").exists()


def test_a_linked_result_there_is_no_result(desk):
    secret = desk.path / "secret"
    secret.write_text("secret")
    job, = desk.add(desk.folder("links", "ln -s %s stolen; mkdir d; ln -s / d/all; echo mine >out" % secret))
    desk.finish()
    found = os.listdir(desk.completed(job).results_path)
    assert b"out" in found
    assert b"stolen" not in found
    assert b"d" not in found


def test_logs_of_a_running_job(desk, capsys):
    wait = "echo begun; while [ ! -e %s/go ]; do sleep 0.05; done; echo over" % desk.path
    job, = desk.add(desk.folder("talks", wait))
    desk.sync()
    threading.Timer(1.0, (desk.path / "go").touch).start()
    assert results.follow_logs(desk.home, desk.remote, desk.job(job)) == 0
    assert capsys.readouterr().out.split() == ["begun", "over"]
    desk.finish()


# -- the progress line -------------------------------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch):
    """What the progress line says of each file that is sent: (bytes so far, of how many, files so far)."""
    said = []
    begin, advance = Progress.begin, Progress.advance

    def noted_begin(self, what, total):
        begin(self, what, total)
        said.append(what)

    def noted_advance(self, amount, files=0):
        advance(self, amount, files)
        if self.shown:
            said.append((self._bytes, self.total, self._files))

    monkeypatch.setattr(Progress, "begin", noted_begin)
    monkeypatch.setattr(Progress, "advance", noted_advance)
    monkeypatch.setattr(wire, "SLICE_JOBS", 2)
    return said


def _of_uploads(said):
    """What was said while jobs were handed over: that began once."""
    assert said.count("uploading") == 1 and said[0] == "uploading"
    return said[1:said.index("results")] if "results" in said else said[1:]


def _seven(desk, prefix, shared):
    return [desk.folder("%s%d" % (prefix, n), "true", lib=shared, own=os.urandom(1000)) for n in range(7)]


def _sizes(folders):
    return sum(path.stat().st_size for folder in folders for path in folder.iterdir() if path.name in ("job.sh", "own"))


def test_progress_counts_the_whole_session_and_not_its_slices(desk, shown):
    shared = os.urandom(600_000)
    first = _seven(desk, "a", shared)
    desk.add(*first)
    desk.sync(progress=True)
    said = _of_uploads(shown)
    assert {total for _, total, _ in said} == {_sizes(first) + len(shared)}, "from the beginning to the end"
    assert said[-1][:2] == (said[-1][1],) * 2 and said[-1][2] == 2 * 7 + 1
    assert [done for done, _, _ in said] == sorted(done for done, _, _ in said)
    del shown[:]
    second = _seven(desk, "b", shared)
    desk.add(*second)
    desk.sync(progress=True)
    assert {total for _, total, _ in _of_uploads(shown)} == {_sizes(second)}, "what all share is in the cache there"


def test_what_was_acknowledged_unheard_is_not_counted(desk, shown):
    folders = _seven(desk, "a", b"lib")
    jobs = desk.add(*folders)
    desk.sync()
    with desk.ledger() as ledger, ledger.transaction():
        ledger.db.execute("UPDATE jobs SET acked = 0, state = 'QUEUED_LOCAL' WHERE id = ?", (jobs[0].id,))
    del shown[:]
    more = _seven(desk, "b", b"lib too")
    desk.add(*more)
    assert desk.sync(progress=True).uploaded == 8
    said = _of_uploads(shown)
    assert {total for _, total, _ in said} == {said[-1][0]} == {_sizes(more) + len(b"lib too")}


@pytest.mark.parametrize("jobs, progress, asked", [
    (0, True, 0), (2, True, 0), (3, False, 0), (3, True, 1), (7, True, 1)])
def test_only_several_slices_and_someone_who_looks_cost_a_query(desk, shown, monkeypatch, jobs, progress, asked):
    calls = []
    known = Ledger.bytes_to_upload
    monkeypatch.setattr(Ledger, "bytes_to_upload", lambda *args: calls.append(args) or known(*args))
    desk.deploy()
    if jobs:
        desk.add(*_seven(desk, "a", b"lib")[:jobs])
    desk.sync(progress=progress)
    assert len(calls) == asked


def test_a_sync_whose_only_job_misses_an_input_does_all_the_rest(desk):
    """Its one slice is empty, and the agent's answer to that is its fourth turn, not its second."""
    folder = desk.folder("j", **{"in.dat": b"1"})
    job, = desk.add(folder)
    (folder / "in.dat").unlink()
    report = desk.sync()
    assert [item["path"] for item in report.changed_inputs] == ["in.dat"]
    assert (report.uploaded, desk.job(job).state) == (0, states.QUEUED_LOCAL)
    (folder / "in.dat").write_bytes(b"1")
    desk.finish()
    desk.completed(job)
