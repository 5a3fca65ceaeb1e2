"""Verify, keep and clean from end to end: real jobs, the deployed agent, one exec each over a child process."""

import json
import os
import shutil
import sys

import pytest

from chasqui_client import api, cli, deploy, errors, launcher, states
from chasqui_client.child import Child
from chasqui_client.cleanup import book, clean, verify
from chasqui_client.cleanup import errand as errands
from chasqui_client.fields import replace
from chasqui_client.jobs import retry
from chasqui_client.rows import now
from chasqui_client.transport import Channel, Local
from session.desk import Desk

SCRIPT = "mkdir -p d; cat in.dat >out; echo deep >d/deep; echo said"


class Cleaner(Desk):
    """A desk whose first job has ended, with its results here: proved once, by the sync that brought them."""

    def __init__(self, path):
        super().__init__(path)
        self.one, = self.add(self.folder("one", SCRIPT, **{"in.dat": b"input"}))
        self.finish()
        self.work = self.root / "work" / self.one.id

    def later(self, hours):
        """Let everything recorded so far be `hours` ago."""
        with self.ledger() as ledger, ledger.transaction():
            ledger.db.execute("UPDATE proofs SET at = at - ?, up = up - ?", (hours * 3600, hours * 3600))
            ledger.db.execute("UPDATE clearances SET at = at - ?", (hours * 3600,))
            ledger.db.execute("UPDATE attempts SET added = '2020-01-01T00:00:00Z'")

    def clean(self, **options):
        with self.ledger() as ledger:
            return clean.clean(self.home, ledger, self.remote, [job.id for job in self.jobs()],
                               self.home.config().jobs.keep, **options)

    def why(self, **options):
        """The word for the first job."""
        report = self.clean(**options)
        assert report.failure is None
        return report.jobs[0].why

    def verify(self, deep=False):
        with self.ledger() as ledger:
            return verify.verify(self.home, self.home.config(), ledger, self.jobs(), deep)

    def files(self):
        """What is left of the first job's folder there, less what is the relay's own."""
        return {os.path.relpath(os.path.join(top, name), self.work) for top, _, names in os.walk(self.work)
                for name in names if not os.path.relpath(top, self.work).startswith(".chasqui")}

    def results_state(self):
        return self.job(self.one).results_state

    def events(self):
        with self.ledger() as ledger:
            return [event["new"] for event in ledger.events(self.one.id) if event["event"] == "results"]

    def proofs(self):
        with self.ledger() as ledger:
            return [row["how"] for row in ledger.rows("SELECT how FROM proofs ORDER BY rowid")]


ALL = {"out", "d/deep", "in.dat", "job.sh"}


@pytest.fixture
def desk(tmp_path):
    return Cleaner(tmp_path)


@pytest.fixture
def execs(monkeypatch):
    """The lines that were run there, in order."""
    ran = []
    start = Local.start

    def counted(self, line):
        ran.append(line)
        return start(self, line)

    monkeypatch.setattr(Local, "start", counted)
    return ran


def test_a_job_proved_twice_goes_and_its_results_stay(desk, execs):
    desk.later(25)
    assert desk.why(dry_run=True) == "" and desk.files() == ALL and desk.results_state() == "VERIFIED"
    del execs[:]
    report = desk.clean()
    assert len(execs) == 1 and "clean" in execs[0]
    assert (report.jobs[0].why, report.jobs[0].numbers["files"]) == ("", 4)
    assert desk.files() == set() and desk.results_state() == "CLEANED"
    assert desk.events()[-2:] == ["results CLEANUP_ELIGIBLE", "results CLEANED"]
    assert (desk.path / "jobs/one/results/out").read_bytes() == b"input"
    assert {"job.json", "manifest.json", "script", "final.json"} <= set(os.listdir(desk.work / ".chasqui"))
    assert os.path.exists(desk.root / "completed" / ("%s.1.flag" % desk.one.id))
    assert desk.why() == "cleaned"


# -- the interlocks, one a row: what was done before the clean, and its word ------------------------------------------


def nothing_yet(desk):
    return "once" if desk.proofs() == [] else "young"


def an_hour(desk):
    desk.later(1)
    return "young"


def a_clock_set_back(desk):
    """The first proof's clock was days ahead, and has been set right since."""
    desk.later(-72)
    return "clock"


def a_clock_set_forward(desk):
    """Days by the clock on the wall, none by the one that nobody sets."""
    with desk.ledger() as ledger, ledger.transaction():
        ledger.db.execute("UPDATE proofs SET at = at - 300000")
        ledger.db.execute("UPDATE attempts SET added = '2020-01-01T00:00:00Z'")
    return "young"


def a_first_proof_from_1970(desk):
    with desk.ledger() as ledger, ledger.transaction():
        ledger.db.execute("UPDATE proofs SET at = 1000, boot = 'another'")
    return "clock"


def appears(desk):
    desk.later(25)
    (desk.work / "late").write_text("written after its results came home")
    return "appeared"


def appears_below(desk):
    desk.later(25)
    (desk.work / "d" / "late").write_text("x")
    return "appeared"


def changes(desk):
    desk.later(25)
    (desk.work / "out").write_bytes(b"INPUT")
    return "changed"


def input_changes(desk):
    desk.later(25)
    (desk.work / "in.dat").write_bytes(b"INPUT")
    return "changed"


def symlinked_folder(desk):
    desk.later(25)
    (desk.work / "d").rename(desk.path / "elsewhere")
    (desk.work / "d").symlink_to(desk.path / "elsewhere")
    return "symlink"


def symlinked_work_folder(desk):
    desk.later(25)
    desk.work.rename(desk.path / "moved")
    desk.work.symlink_to(desk.path / "moved")
    return "symlink"


def symlinked_file(desk):
    desk.later(25)
    (desk.work / "out").rename(desk.path / "moved")
    (desk.work / "out").symlink_to(desk.path / "moved")
    return "symlink"


def kept(desk):
    desk.later(25)
    with desk.ledger() as ledger:
        book.keep(ledger, desk.jobs())
    return "kept"


def gone_here(desk):
    desk.later(25)
    (desk.path / "jobs/one/results/out").unlink()
    return "damaged"


def changed_here(desk):
    desk.later(25)
    (desk.path / "jobs/one/results/out").write_bytes(b"INPUT")
    return "damaged"


def linked_here(desk):
    desk.later(25)
    out = desk.path / "jobs/one/results/out"
    out.rename(desk.path / "out")
    out.symlink_to(desk.path / "out")
    return "damaged"


def newer_attempt_here(desk):
    desk.later(25)
    with desk.ledger() as ledger:
        retry(desk.home, ledger, desk.home.config(), desk.jobs())
    return "running"


def newer_attempt_there(desk):
    """The ledger came out of a backup: the cluster knows a later attempt."""
    desk.later(25)
    shutil.copytree(desk.work, str(desk.work) + ".2", symlinks=True)
    return "newer"


def foreign_ledger(desk):
    desk.later(25)
    with desk.ledger() as ledger, ledger.transaction():
        ledger.db.execute("UPDATE meta SET value = ? WHERE key = 'id'", (json.dumps("ab" * 16),))
    return "foreign"


def not_settled(desk):
    desk.later(25)
    (desk.root / "completed" / ("%s.1.flag" % desk.one.id)).rename(desk.path / "flag")
    return "unsettled"


def lost_there(desk):
    desk.later(25)
    flag = desk.root / "completed" / ("%s.1.flag" % desk.one.id)
    flag.write_text(flag.read_text().replace("DONE", "LOST", 1))
    return "lost"


def not_all_here(desk):
    desk.later(25)
    with desk.ledger() as ledger:
        ledger.set_results_state(desk.one.id, "PARTIAL")
    return "unverified"


def more_came_home(desk):
    """What was proved twice is no longer all that is here."""
    desk.later(25)
    with desk.ledger() as ledger, ledger.transaction():
        ledger.db.execute("INSERT INTO results_files SELECT job, attempt, ?, size, mode, mtime_ns, sha256, kind, state,"
                          " why FROM results_files WHERE path = ?", (b"more", b"out"))
    return "once"


INTERLOCKS = [nothing_yet, an_hour, a_clock_set_back, a_clock_set_forward, a_first_proof_from_1970, appears,
              appears_below, changes, input_changes, symlinked_folder, symlinked_work_folder, symlinked_file, kept,
              gone_here, changed_here, linked_here, newer_attempt_here, newer_attempt_there, foreign_ledger,
              not_settled, lost_there, not_all_here, more_came_home]


@pytest.mark.parametrize("interlock", INTERLOCKS)
def test_interlocks(desk, interlock):
    word = interlock(desk)
    there = {path: path.read_bytes() for path in desk.root.glob("work/**/*") if path.is_file()}
    before = desk.results_state()
    assert desk.why(dry_run=True) == word
    assert desk.why() == word
    assert {path: path.read_bytes() for path in desk.root.glob("work/**/*") if path.is_file()} == there
    assert desk.results_state() == before


def test_a_revoked_keep_is_none(desk):
    kept(desk)
    assert desk.why() == "kept"
    with desk.ledger() as ledger:
        assert [job.id for job in book.keep(ledger, desk.jobs(), revoke=True)] == [desk.one.id]
        assert book.keep(ledger, desk.jobs(), revoke=True) == []
    assert desk.why() == "" and desk.files() == set()


def test_patterns_keep_files_and_the_rest_goes(desk):
    desk.later(25)
    config = desk.home.config_path
    config.write_text('[jobs]\nkeep = ["d", "*.dat"]\n' + config.read_text())
    report = desk.clean()
    assert report.jobs[0].why == "" and report.jobs[0].numbers["kept"] == 2
    assert desk.files() == {"d/deep", "in.dat"} and desk.results_state() == "CLEANED"


def test_patterns_that_are_none_are_said(desk):
    desk.later(25)
    config = desk.home.config_path
    config.write_text('[jobs]\nkeep = ["../x"]\n' + config.read_text())
    with pytest.raises(errors.BadInput, match="keep"):
        desk.clean()
    assert desk.files() == ALL


def test_what_never_came_home_stays(tmp_path):
    desk = Desk(tmp_path)
    made = "head -c 5000 /dev/zero >WAVECAR; echo x >scratch.tmp; echo small >out"
    job, = desk.add(desk.folder("big", made), max_file=1000, exclude=("*.tmp",))
    desk.finish()
    Cleaner.later(desk, 25)
    report = Cleaner.clean(desk)
    assert report.jobs[0].why == ""
    assert (report.jobs[0].numbers["left"], report.jobs[0].numbers["left_bytes"]) == (2, 5002)
    assert sorted(os.listdir(desk.root / "work" / job.id)) == [".chasqui", "WAVECAR", "scratch.tmp"]
    desk.sync(fetch={job.id: ("WAVECAR",)})
    assert (tmp_path / "jobs/big/results/WAVECAR").stat().st_size == 5000, "still to be had"
    assert desk.job(job).results_state == "CLEANED"


def test_a_cleaned_job_is_not_asked_for_again_and_can_be_tried_again(desk):
    desk.later(25)
    assert desk.why() == ""
    with desk.ledger() as ledger:
        ledger.set_remote("here", cursor=0)  # its end is read once more, and its results are offered
        before = ledger.result_files(desk.one.id, 1)
    desk.sync()
    with desk.ledger() as ledger:
        assert ledger.result_files(desk.one.id, 1) == before
        retry(desk.home, ledger, desk.home.config(), desk.jobs())
    desk.finish()
    assert desk.completed(desk.one).attempt == 2 and desk.lines() == ["one", "one"]
    assert (desk.path / "jobs/one/results/out").read_bytes() == b"input"


def test_one_that_is_tried_again_while_it_is_cleaned(desk, monkeypatch):
    """retry takes no lock: whichever is recorded first, the job's new attempt is not touched."""
    desk.later(25)
    settle = clean._Cleaning._settle

    def tried_again(self, answered):
        retry(desk.home, self.ledger, desk.home.config(), desk.jobs())
        settle(self, answered)

    monkeypatch.setattr(clean._Cleaning, "_settle", tried_again)
    desk.clean()
    assert (desk.job(desk.one).attempt, desk.results_state()) == (2, "NONE")
    desk.finish()
    desk.completed(desk.one)


def test_kept_at_the_last_moment(desk, monkeypatch):
    desk.later(25)
    eligible = clean._Cleaning._eligible

    def keep_first(self, drawn):
        book.keep(self.ledger, desk.jobs())
        return eligible(self, drawn)

    monkeypatch.setattr(clean._Cleaning, "_eligible", keep_first)
    assert desk.why() == "kept" and desk.files() == ALL


# -- earlier attempts --------------------------------------------------------------------------------------------------


@pytest.fixture
def again(desk):
    """The first job was tried again, and the results of both attempts are here; each was proved a day ago."""
    with desk.ledger() as ledger:
        retry(desk.home, ledger, desk.home.config(), desk.jobs())
    desk.finish()
    desk.later(25)
    assert desk.job(desk.one).attempt == 2 and desk.files() == ALL
    return desk


def whys(desk, **options):
    """(attempt, word) of everything a clean looked at."""
    return [(cleared.job.attempt, cleared.why) for cleared in desk.clean(**options).jobs]


def test_an_earlier_attempt_goes_with_the_newest(again, execs):
    newest = again.work.with_name(again.work.name + ".2")
    assert whys(again, dry_run=True) == [(2, ""), (1, "")] and again.files() == ALL
    del execs[:]
    assert whys(again) == [(2, ""), (1, "")] and len(execs) == 1
    assert again.files() == set() and os.listdir(newest) == [".chasqui"]
    assert again.results_state() == "CLEANED"
    for results in ("results", "results.attempt-1"):
        assert (again.path / "jobs/one" / results / "out").read_bytes() == b"input"
    with again.ledger() as ledger:
        assert [event["attempt"] for event in ledger.events(again.one.id) if event["event"] == "cleaned"] == [1]
    assert whys(again) == [(2, "cleaned")], "of the earlier one nothing is asked any more"


def attempt_kept(desk):
    with desk.ledger() as ledger:
        book.keep(ledger, desk.jobs())
    return "kept"


def attempt_young(desk):
    desk.later(-24)
    return "young"


def attempt_grew(desk):
    (desk.work / "late").write_text("x")
    return "appeared"


def attempt_changed(desk):
    (desk.work / "out").write_bytes(b"INPUT")
    return "changed"


def attempt_deleted_here(desk):
    shutil.rmtree(desk.path / "jobs/one/results.attempt-1")
    return "damaged"


def attempt_changed_here(desk):
    (desk.path / "jobs/one/results.attempt-1/out").write_bytes(b"INPUT")
    return "damaged"


def attempt_never_proved(desk):
    with desk.ledger() as ledger, ledger.transaction():
        ledger.db.execute("DELETE FROM proofs WHERE attempt = 1")
    return "unverified"


def attempt_lost(desk):
    with desk.ledger() as ledger, ledger.transaction():
        ledger.db.execute("UPDATE attempts SET state = 'LOST' WHERE attempt = 1")
    return "lost"


def newest_not_at_rest_there(desk):
    (desk.root / "completed" / ("%s.2.flag" % desk.one.id)).unlink()
    return "newer"


@pytest.mark.parametrize("interlock", [
    attempt_kept, attempt_young, attempt_grew, attempt_changed, attempt_deleted_here, attempt_changed_here,
    attempt_never_proved, attempt_lost, newest_not_at_rest_there])
def test_interlocks_of_an_earlier_attempt(again, interlock):
    word = interlock(again)
    there = {path: path.read_bytes() for path in again.work.glob("**/*") if path.is_file()}
    assert whys(again, dry_run=True)[1:] == [(1, word)]
    assert whys(again)[1:] == [(1, word)]
    assert {path: path.read_bytes() for path in again.work.glob("**/*") if path.is_file()} == there


@pytest.mark.parametrize("state", ["NONE", "PARTIAL"])
def test_an_earlier_attempt_waits_for_the_results_of_the_newest(again, state):
    with again.ledger() as ledger, ledger.transaction():
        ledger.db.execute("UPDATE jobs SET results_state = ?", (state,))
    assert whys(again) == [(2, "unverified")] and again.files() == ALL


def test_an_earlier_attempt_of_a_job_that_is_tried_again_at_the_last_moment(again, monkeypatch):
    eligible = clean._Cleaning._eligible

    def tried_again(self, drawn):
        retry(again.home, self.ledger, again.home.config(), again.jobs())
        return eligible(self, drawn)

    monkeypatch.setattr(clean._Cleaning, "_eligible", tried_again)
    assert whys(again) == [(2, "running"), (1, "running")] and again.files() == ALL


def test_an_earlier_attempt_that_stayed_goes_when_its_job_is_clean(again, monkeypatch, capsys):
    monkeypatch.setenv("CHASQUI_HOME", str(again.home.path))
    attempt_grew(again)
    assert whys(again) == [(2, ""), (1, "appeared")]
    assert cli.main(["clean", "--dry-run"]) == 0 and "one, attempt 1" in capsys.readouterr().out
    (again.work / "late").unlink()
    assert cli.main(["clean", "--yes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["data"]["jobs"]
    assert [(job["attempt"], job["why"]) for job in found] == [(2, "cleaned"), (1, "")] and again.files() == set()
    assert cli.main(["clean", "--dry-run"]) == 0 and "attempt" not in capsys.readouterr().out


def test_an_earlier_attempt_is_cleaned_again_where_that_was_not_recorded(again, monkeypatch):
    monkeypatch.setattr(clean._Cleaning, "_settle", lambda self, answered: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        again.clean()
    monkeypatch.undo()
    assert again.files() == set()
    assert whys(again) == [(2, ""), (1, "")] and whys(again) == [(2, "cleaned")]


@pytest.mark.parametrize("resume", [False, True])
def test_attempts_that_the_relay_made(tmp_path, resume):
    """The newest goes, its inputs known by those that were uploaded; of the others nothing came home: all stays."""
    desk = Desk(tmp_path)
    script = "cat in.dat >>out; echo spoilt >in.dat; echo $PWD >>made; case $PWD in *.3) ;; *) exit 7;; esac"
    job, = desk.add(desk.folder("it", script, **{"in.dat": b"input", "plain": b"plain"}),
                    retry={"retries": 2, "on": ["7"], "resume": resume})
    desk.finish()
    assert desk.completed(job).attempt == 3
    there = [desk.root / "work" / (job.id + suffix) for suffix in ("", ".2", ".3")]
    with desk.ledger() as ledger, ledger.transaction():
        ledger.db.execute("UPDATE proofs SET at = at - 90000, up = up - 90000")
        ledger.db.execute("UPDATE attempts SET added = '2020' || substr(added, 5)")
        assert {len(one["added"]) for one in ledger.attempts(job.id)} == {len(now())}, "in this computer's words"
    with desk.ledger() as ledger:
        report = clean.clean(desk.home, ledger, desk.remote, [job.id], ())
    assert [(one.job.attempt, one.why) for one in report.jobs] == [(3, ""), (1, "unverified"), (2, "unverified")]
    left = [sorted(os.listdir(folder)) for folder in there]
    earlier = [".chasqui"] if resume else [".chasqui", "in.dat", "job.sh", "made", "out", "plain"]
    assert left == [earlier, earlier, [".chasqui"]]
    assert (tmp_path / "jobs/it/results/out").read_text() == ("inputspoilt\nspoilt\n" if resume else "input")


@pytest.mark.parametrize("added, why", [
    ("2020-01-01T20:22:17.211Z", ""), ("2099-01-01T20:22:17.211Z", "clock"), ("2020-01-01", "young"), ("", "young")])
def test_attempts_whose_time_is_in_other_words(desk, added, why):
    """As ledgers have it where the relay made an attempt, before this computer's own time stood there."""
    desk.later(25)
    with desk.ledger() as ledger, ledger.transaction():
        ledger.db.execute("UPDATE attempts SET added = ?", (added,))
    desk.remote = replace(desk.remote, cleanup="verified")
    desk.sync()
    assert desk.files() == (ALL if why else set())
    assert desk.why() == (why or "cleaned")


def test_a_sync_cleans_earlier_attempts_with_the_newest(again):
    again.remote = replace(again.remote, cleanup="verified")
    report = again.sync()
    assert any("of 1 job" in note and "cleaned: 8 files" in note for note in report.notes), report.notes
    assert again.files() == set()


# -- no answer is no pass ----------------------------------------------------------------------------------------------


class TornChannel(Channel):
    """A line that breaks after the agent has said so many bytes."""

    left = 0

    def read_some(self):
        data = super().read_some() if self.left else b""
        data = data[:self.left]
        self.left -= len(data)
        if not data:
            self.process.kill()
        return data


class Torn(Local):
    """A way there whose lines break."""

    def __init__(self, after):
        self.after = after

    def start(self, line):
        channel = TornChannel(Child(self.argv(line)))
        channel.left = self.after
        return channel


def torn(desk, monkeypatch, after=60):
    monkeypatch.setattr(deploy, "transport_to", lambda *_, **__: Torn(after))


def no_agent(desk, monkeypatch):
    shutil.rmtree(desk.root / "agent")


def older_agent(desk, monkeypatch):
    real = launcher.agent
    monkeypatch.setattr(launcher, "agent", lambda root, words: real(root, ["nothing", *words[1:]]))


def banner_instead(desk, monkeypatch):
    monkeypatch.setattr(launcher, "agent",
                        lambda *_: "echo '{\"lines\": \"0123456789abcdef\"}'; echo '{\"bye\": true}'")


def liar(desk, monkeypatch):
    """Answers, but not the question."""
    compared = errands.Errand.ask
    monkeypatch.setattr(errands.Errand, "ask", lambda self, questions: (
        {**answer, "job": "another"} for answer in compared(self, questions)))


def hanging(desk, monkeypatch):
    monkeypatch.setenv("CHASQUI_SILENCE", "0.3")
    monkeypatch.setattr(launcher, "agent", lambda *_: "sleep 5")


FAILURES = [torn, no_agent, older_agent, banner_instead, liar, hanging]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_probe_that_fails_is_no_pass(desk, monkeypatch, failure):
    desk.later(25)
    proofs = desk.proofs()
    failure(desk, monkeypatch)
    report = desk.verify(deep=True)
    assert isinstance(report.failure, errors.ChasquiError) and report.failure.hint
    assert [outcome.proved for outcome in report.outcomes] == [False]
    assert desk.proofs() == proofs, "nothing proved, nothing voided"
    cleaned = desk.clean()
    assert isinstance(cleaned.failure, errors.ChasquiError)
    assert cleaned.jobs[0].why == "silent"
    assert desk.results_state() != "CLEANED"


def test_torn_after_any_line(desk, monkeypatch):
    """The whole conversation is 400 bytes or so; wherever it stops, the job is proved only after the last of them."""
    for after in range(0, 360, 40):
        with monkeypatch.context() as patch:
            torn(desk, patch, after)
            report = desk.verify(deep=True)
            assert report.failure and not report.outcomes[0].proved, after
    assert desk.verify(deep=True).outcomes[0].proved


def test_a_clean_that_was_cut_is_completed_by_the_next(desk, monkeypatch):
    desk.later(25)
    with monkeypatch.context() as patch:
        torn(desk, patch, 60)
        assert desk.clean().failure
    assert desk.results_state() == "CLEANUP_ELIGIBLE"
    assert desk.why() == "" and desk.results_state() == "CLEANED" and desk.files() == set()


# -- verify ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
def test_whole_results_are_proved_and_recorded(desk, execs, deep):
    assert desk.proofs() == ["sync"]
    report = desk.verify(deep)
    assert report.outcomes[0].proved and report.outcomes[0].files == 4 and report.failure is None
    assert desk.proofs() == ["sync", "deep" if deep else "local"]
    assert len(execs) == deep


def test_what_is_wrong_here_is_named_and_voids_earlier_proofs(desk):
    (desk.path / "jobs/one/results/out").write_bytes(b"INPUT")
    (desk.path / "jobs/one/results/d/deep").unlink()
    report = desk.verify()
    assert [(p.path, p.why) for p in report.outcomes[0].here] == [("d/deep", "missing"), ("out", "changed")]
    assert desk.proofs() == []
    (desk.path / "jobs/one/results/out").write_bytes(b"input")
    (desk.path / "jobs/one/results/d/deep").write_text("deep\n")
    assert desk.verify().outcomes[0].proved
    desk.later(25)
    assert desk.why() == "", "proved by two runs again"


def test_what_is_wrong_there_is_named(desk):
    (desk.work / "out").write_bytes(b"INPUT")
    (desk.work / "d" / "deep").unlink()
    for log in (desk.work / ".chasqui").glob("*.out"):
        log.write_text("other words")
    report = desk.verify(deep=True)
    named = {p.path: p.why for p in report.outcomes[0].there}
    assert named.pop("out") == "changed" and "No such file" in named.pop("d/deep")
    assert list(named.values()) == ["changed"] and list(named)[0].startswith("one.o")
    assert not report.outcomes[0].proved and desk.proofs() == ["sync"]


def test_many_jobs_in_one_exec_and_in_slices(tmp_path, execs, monkeypatch):
    monkeypatch.setattr(errands, "SLICE_JOBS", 2)
    desk = Desk(tmp_path)
    desk.add(*(desk.folder("j%d" % n, "echo %d >out" % n) for n in range(5)))
    desk.finish()
    del execs[:]
    report = Cleaner.verify(desk, deep=True)
    assert [outcome.proved for outcome in report.outcomes] == [True] * 5 and len(execs) == 1
    Cleaner.later(desk, 25)
    del execs[:]
    (desk.root / "work" / desk.jobs()[3].id / "late").touch()
    assert [job.why for job in Cleaner.clean(desk).jobs] == ["", "", "", "appeared", ""] and len(execs) == 1


# -- at the end of a sync ----------------------------------------------------------------------------------------------


def test_a_sync_cleans_only_where_it_was_asked_to(desk, execs):
    desk.later(25)
    desk.sync()
    assert desk.files() == ALL
    desk.remote = replace(desk.remote, cleanup="verified")
    del execs[:]
    report = desk.sync()
    assert len(execs) == 2 and desk.files() == set() and desk.results_state() == "CLEANED"
    assert any("cleaned: 4 files (" in note for note in report.notes)
    del execs[:]
    desk.sync()
    assert len(execs) == 1, "nothing is eligible: one exec"


def test_a_sync_that_just_brought_results_cleans_nothing_of_them(tmp_path, execs):
    desk = Desk(tmp_path)
    desk.remote = replace(desk.remote, cleanup="verified", cleanup_min_age=0.0)
    job, = desk.add(desk.folder("one", "echo x >out"))
    desk.sync()
    while desk.job(job).results_state == states.NONE:
        desk.sync()
    assert desk.job(job).results_state == states.VERIFIED, "one run proves once"
    desk.sync()
    assert desk.job(job).results_state == states.CLEANED


def test_a_refusal_is_not_asked_about_at_every_sync(desk, execs):
    appears(desk)
    desk.remote = replace(desk.remote, cleanup="verified")
    desk.sync()
    del execs[:]
    desk.sync()
    assert len(execs) == 1
    desk.later(25)
    (desk.work / "late").unlink()
    desk.sync()
    assert desk.results_state() == "CLEANED"


def test_a_run_has_an_end(tmp_path, monkeypatch):
    """However much there is to hash: at least one job a run, and the others the next time."""
    monkeypatch.setattr(clean, "BUDGET", 0.0)
    desk = Desk(tmp_path)
    desk.add(*(desk.folder("j%d" % n, "echo %d >out" % n) for n in range(3)))
    desk.finish()
    Cleaner.later(desk, 25)
    for left in (2, 1, 0):
        assert [job.why for job in Cleaner.clean(desk).jobs].count("later") == left
    assert {job.results_state for job in desk.jobs()} == {"CLEANED"}


def test_a_sync_with_nothing_to_clean_loads_nothing_for_it(desk):
    script = """import sys; from chasqui_client import cli; cli.main(['sync', '--json'])
sys.exit(any(name.startswith('chasqui_client.cleanup') for name in sys.modules))"""
    assert os.spawnve(os.P_WAIT, sys.executable, [sys.executable, "-c", script], {
        **os.environ, "CHASQUI_HOME": str(desk.home.path), "PYTHONPATH": os.pathsep.join(sys.path)}) == 0


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(desk, monkeypatch, capsys):
    monkeypatch.setenv("CHASQUI_HOME", str(desk.home.path))
    monkeypatch.setattr(sys, "stdin", open(os.devnull))

    def command(*words):
        code = cli.main(list(words))
        return code, capsys.readouterr().out
    yield command
    sys.stdin.close()


def test_verbs(desk, run):
    assert run("verify")[1] == "1 of 1 job proved: 4 files, 15 bytes\n"
    code, said = run("clean", "--dry-run")
    assert code == 0 and "stays" in said and "young" in said and "cleanup_min_age" in said
    desk.later(25)
    assert run("keep", "one")[0] == 0
    assert json.loads(run("clean", "--dry-run", "--json")[1])["data"]["jobs"][0]["why"] == "kept"
    assert run("keep", "one", "--revoke")[0] == 0
    code, said = run("clean", "--dry-run")
    assert "would go" in said and "4 files" in said
    assert run("clean")[0] == 2 and desk.files() == ALL, "nobody to ask"
    code, said = run("clean", "--yes")
    assert code == 0 and "gone" in said and desk.files() == set()
    assert run("verify", "--deep")[0] == 0, "what is cleaned is proved here"
    os.unlink(desk.path / "jobs/one/results/out")
    code, said = run("verify", "one", "--json")
    found = json.loads(said)
    assert code == 1 and found["ok"] is False
    assert found["data"]["jobs"][0]["problems"] == [{"where": "here", "path": "out", "why": "missing"}]
    said = run("verify")[1]
    assert "missing in" in said and ": out; cleaned on here, it can't come again\n" in said
    assert "was cleaned" in run("results", "fetch", "one", "--glob", "out")[1]


def test_a_failed_probe_is_an_exit_code(desk, run):
    shutil.rmtree(desk.root / "agent")
    code, said = run("verify", "--deep", "--json")
    assert code == 6 and json.loads(said)["data"]["proved"] == 0


def test_a_job_without_results_is_not_proved(desk, run):
    desk.add(desk.folder("fresh"))
    assert run("verify")[0] == 0, "it has none to lose"
    code, said = run("verify", "fresh")
    assert code == 1 and "not ended" in said


def test_a_remote_that_is_not_configured_any_more_holds_up_no_others(desk, monkeypatch, capsys):
    monkeypatch.setenv("CHASQUI_HOME", str(desk.home.path))
    other, = desk.add(desk.folder("other", SCRIPT))
    desk.later(25)
    with desk.ledger() as ledger, ledger.transaction():
        ledger.db.execute("UPDATE jobs SET remote = 'gone' WHERE id = ?", (other.id,))
    code = cli.main(["clean", "--yes"])
    out, err = capsys.readouterr()
    assert code == 2 and desk.files() == set() and "gone: 0 files" in out and "no remote named gone" in err


def test_answers_of_a_person(desk, monkeypatch, capsys):
    desk.later(25)
    monkeypatch.setenv("CHASQUI_HOME", str(desk.home.path))
    monkeypatch.setattr("chasqui_client.command.Command.interactive", property(lambda self: True))
    for answer, left in (("n\n", ALL), ("y\n", set())):
        with open(desk.path / "answer", "w") as stream:
            stream.write(answer)
        with open(desk.path / "answer") as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            code = cli.main(["clean", "one"])
        assert (code, desk.files()) == (2 if left else 0, left)
    assert "delete these 4 files" in capsys.readouterr().err


def test_the_api_finds_what_was_cleaned(desk):
    desk.later(25)
    desk.clean()
    assert api.show(desk.home, "one")["results_state"] == "CLEANED"
