"""What jobs wait for: words become jobs of one cluster, parents come first, circles are refused, retries keep them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from chasqui_client import api, cli, errors, schema, states
from chasqui_client.config import ANY, Home, Remote
from chasqui_client.drafts import Drafts
from chasqui_client.jobs import Asked, retry
from chasqui_client.ledger import Job, Ledger
from chasqui_client.select import Selection
from chasqui_client.several import place

HPC, OTHER = Remote("hpc", "local", "/r"), Remote("other", "local", "/s")
CONFIG = '[remotes.hpc]\nhost = "local"\nroot = "%s"\n[remotes.other]\nhost = "local"\nroot = "/s"\n'


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home").create()
    made.config_path.write_text(CONFIG % "/r")
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., bytes]:
    def make(name: str, toml: str = "") -> bytes:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "job.sh").write_text("true\n")
        if toml:
            (tmp_path / name / "job.toml").write_text(toml)
        return os.fsencode(tmp_path / name)

    return make


def add(home: Home, *folders: bytes, remote: Remote = HPC, again: bool = False, **asked: object) -> list[Job]:
    return api.add(home, folders, Asked(**asked), remote, again).jobs  # type: ignore[arg-type]


def parents(home: Home, job: Job) -> list[tuple[str, str]]:
    with Ledger(home.ledger_path) as ledger:
        return [(one.name, one.condition) for one in ledger.parents([job.id]).get(job.id, [])]


def test_ids_beginnings_names_and_folders(home: Home, folder: Callable[..., bytes]) -> None:
    a, b = add(home, folder("a"), folder("b"))
    with_comma, = add(home, folder("c,d"))
    for word in (a.id, a.id[:9], "a", os.fsdecode(folder("a"))):
        job, = add(home, folder("x"), again=True, after=(word,))
        assert parents(home, job) == [("a", "ok")]
    job, = add(home, folder("y"), after=("a,b", "c,d", "a"), condition="any")
    assert parents(home, job) == [("a", "any"), ("b", "any"), ("c,d", "any")]
    assert parents(home, a) == []


@pytest.mark.parametrize("asked, why", [
    ({"after": ("nobody",)}, "No job has this id"), ({"condition": "ok"}, "none is named"),
    ({"after": ("a",), "condition": "never"}, "if must be one of ok, any, fail"),
    ({"after": ("twice",)}, "several jobs"), ({"after": ("far",)}, "far is a job of other"),
])
def test_what_is_refused(home: Home, folder: Callable[..., bytes], asked: dict[str, object], why: str) -> None:
    add(home, folder("a"))
    add(home, folder("twice"))
    add(home, folder("twice"), again=True)
    add(home, folder("far"), remote=OTHER)
    with pytest.raises(errors.BadFolders, match=why):
        add(home, folder("fine"), folder("job"), **asked)
    assert len(api.find(home, Selection())) == 4, "nothing was added"


def test_a_job_that_goes_anywhere_waits_for_none_and_none_for_it(
        home: Home, folder: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CHASQUI_HOME", str(home.path))
    add(home, folder("a"))
    for words in (["--after", "a"], []):
        path = os.fsdecode(folder("b", 'after = ["a"]\n'))
        assert cli.main(["add", path, "--remote", "any", *words]) == 2
        assert "hint: name it: chasqui add --remote NAME --after JOB" in capsys.readouterr().err
    nowhere, = add(home, folder("nowhere"), remote=place.anywhere(home.config()))
    assert nowhere and cli.main(["add", os.fsdecode(folder("c")), "--remote", "hpc", "--after", "nowhere"]) == 2
    assert "nowhere is a job of any" in capsys.readouterr().err
    assert [job.name for job in api.find(home, Selection())] == ["a", "nowhere"]


def test_a_retry_of_a_parent_that_went_anywhere(home: Home, folder: Callable[..., bytes]) -> None:
    parent, = add(home, folder("parent"), remote=place.anywhere(home.config()))
    api.cancel(home, Selection((parent.id,)))
    assert [job.remote for job in api.retry(home, Selection((parent.id,)))] == [ANY]
    with Ledger(home.ledger_path) as ledger:
        assert place.place(ledger, home.config(), ["hpc"]) == {"hpc": 1}
        ledger.mark_offered(ledger.jobs())
    child, = add(home, folder("child"), after=("parent",))
    end(home, parent, "FAIL", 2)
    end(home, child, "")
    found = {job.id: (job.remote, job.attempt) for job in api.retry(home, Selection((parent.id,)))}
    assert found == {parent.id: ("hpc", 3), child.id: ("hpc", 2)}


def test_drafts_are_read_by_number_in_any_order(home: Home) -> None:
    """Also between the writing of others."""
    with Ledger(home.ledger_path) as ledger, Drafts(ledger) as drafts:
        for number in range(50):
            drafts.add({"number": number, "filler": "x" * number * 100})
        assert [drafts[number]["number"] for number in (49, 0, 7, 7, 31)] == [49, 0, 7, 7, 31]
        assert [draft["number"] for draft in drafts] == list(range(50))
        with pytest.raises(IndexError):
            drafts[50]


def test_a_job_toml_names_jobs_added_with_it(home: Home, folder: Callable[..., bytes]) -> None:
    """By name or by path, in whatever order they are given; what the command line says wins."""
    jobs = add(home, folder("runs/c", 'after = ["../b", "a"]\nif = "any"\n'), folder("runs/b", 'after = ["a"]\n'),
               folder("runs/a"))
    assert [job.name for job in jobs] == ["a", "b", "c"]
    assert [parents(home, job) for job in jobs] == [[], [("a", "ok")], [("b", "any"), ("a", "any")]]
    last, = add(home, folder("runs/d", 'after = ["../b"]\n'))
    assert parents(home, last) == [("b", "ok")], "one that is in the ledger"
    again, = add(home, folder("runs/d"), again=True, after=("c",))
    assert parents(home, again) == [("c", "ok")]


@pytest.mark.parametrize("toml, circle", [
    ({"a": "b", "b": "a"}, "a -> b -> a"), ({"a": "b", "b": "c", "c": "a", "d": "a"}, "a -> b -> c -> a"),
    ({"a": "../a"}, "a -> a"),
])
def test_a_circle_is_refused(home: Home, folder: Callable[..., bytes], toml: dict[str, str], circle: str) -> None:
    folders = [folder("runs/" + name, 'after = ["%s"]\n' % word) for name, word in toml.items()]
    with pytest.raises(errors.BadInput, match="These jobs wait for each other: %s" % circle):
        add(home, *folders)
    assert api.find(home, Selection()) == []


def test_a_long_chain_is_put_in_order(home: Home, folder: Callable[..., bytes]) -> None:
    folders = [folder("n%d" % n, 'after = ["n%d"]\n' % (n - 1) if n else "") for n in range(300)]
    jobs = add(home, *reversed(folders))
    assert [job.name for job in jobs] == ["n%d" % n for n in range(300)]


def test_a_retry_keeps_what_it_waits_for(home: Home, folder: Callable[..., bytes]) -> None:
    """Whatever its job.toml says by now: so no job can come to wait for itself."""
    a, = add(home, folder("a"))
    b, = add(home, folder("b"), after=("a",))
    folder("a", 'after = ["b"]\n')
    end(home, a, "FAIL")
    with Ledger(home.ledger_path) as ledger:
        retry(home, ledger, home.config(), ledger.jobs("id = ?", a.id))
    assert parents(home, a) == [] and parents(home, b) == [("a", "ok")]


# -- the ledger --------------------------------------------------------------------------------------------------------


def end(home: Home, job: Job, outcome: str, attempt: int = 1) -> None:
    """The journal tells of a job's end; "" for one that is blocked."""
    record = {"t": "2026-01-01T00:00:00Z", "job": job.id, "attempt": attempt}
    record.update({"ev": "ended", "state": outcome, "exit": int(outcome != "DONE")} if outcome else
                  {"ev": "blocked", "by": "x", "why": "blocked by a (failed)"})
    with Ledger(home.ledger_path) as ledger:
        ledger.apply_records("hpc", [{**record, "ev": "accepted"}, record])


def state(home: Home, job: Job) -> tuple[str, int]:
    with Ledger(home.ledger_path) as ledger:
        found = ledger.job(job.id)
        assert found
        return found.state, found.attempt


def test_parents_are_uploaded_first_whatever_their_priority(home: Home, folder: Callable[..., bytes]) -> None:
    low, = add(home, folder("low"), priority=-5)
    child, = add(home, folder("child"), priority=400, after=("low",))
    grandchild, = add(home, folder("grandchild"), priority=500, after=("child",))
    high, = add(home, folder("high"), priority=100)
    with Ledger(home.ledger_path) as ledger:
        assert ledger.to_upload("hpc") == [high.id, low.id, child.id, grandchild.id]


def test_blocked_is_an_end_from_which_a_retry_leads(home: Home, folder: Callable[..., bytes]) -> None:
    a, = add(home, folder("a"))
    b, = add(home, folder("b"), after=("a",))
    end(home, a, "FAIL")
    end(home, b, "")
    with Ledger(home.ledger_path) as ledger:
        job = ledger.job(b.id)
        assert job and (job.state, job.why, job.ended, job.acked) == ("BLOCKED", "blocked by a (failed)", True, 1)
        assert ledger.results_wanted("hpc") == [(a.id, 1)], "what never ran has no results"
        assert ledger.attempts(b.id)[0]["ended"]
        with pytest.raises(errors.WrongState):
            ledger.request(job, "cancel", "op")
    assert [job.id for job in api.retry(home, Selection((b.id,)))] == [b.id]
    assert state(home, b) == ("QUEUED_LOCAL", 2)


def test_a_retry_takes_those_along_that_it_had_blocked(home: Home, folder: Callable[..., bytes]) -> None:
    a, other = add(home, folder("a"), folder("other"))
    b, = add(home, folder("b"), after=("a",))
    c, = add(home, folder("c"), after=("b",))
    both, = add(home, folder("both"), after=("a", "other"))
    handler, = add(home, folder("handler"), after=("a",), condition="fail")
    for job, outcome in ((a, "FAIL"), (other, "FAIL"), (b, ""), (c, ""), (both, ""), (handler, "DONE")):
        end(home, job, outcome)
    assert {job.id for job in api.retry(home, Selection((a.id,)))} == {a.id, b.id, c.id}
    assert [state(home, job) for job in (a, b, c)] == [("QUEUED_LOCAL", 2)] * 3
    assert state(home, both) == ("BLOCKED", 1), "the other one blocks it yet"
    assert state(home, handler) == ("COMPLETED", 1)
    assert {job.id for job in api.retry(home, Selection((other.id,)))} == {other.id, both.id}


def test_a_ledger_from_before_dependencies_is_brought_on(tmp_path: Path, folder: Callable[..., bytes]) -> None:
    home = Home(tmp_path / "home").create()
    home.config_path.write_text(CONFIG % "/r")
    shutil.copy(Path(__file__).with_name("ledger-v1.db"), home.ledger_path)
    with Ledger(home.ledger_path) as ledger:
        assert ledger.rows("PRAGMA user_version")[0][0] == len(schema.MIGRATIONS)
        old = ledger.jobs()[0]
        assert ledger.parents([old.id]) == {} and ledger.children([old.id]) == []
    job, = add(home, folder("new"), after=(old.id,))
    assert parents(home, job) == [(old.name, "ok")]


# -- what is said ------------------------------------------------------------------------------------------------------


def test_the_command_line(home: Home, folder: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch,
                          capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CHASQUI_HOME", str(home.path))
    paths = [os.fsdecode(folder(name)) for name in ("a", "b", "c")]
    assert cli.main(["add", paths[0], "--remote", "hpc"]) == 0
    assert cli.main(["add", paths[1], "--remote", "hpc", "--after", "a", "--if", "any"]) == 0
    assert cli.main(["add", paths[2], "--remote", "hpc", "--after", "a,b"]) == 0
    capsys.readouterr()
    cli.main(["list"])
    assert "waiting for a, b" in capsys.readouterr().out
    cli.main(["list", "--json"])
    listed = json.loads(capsys.readouterr().out)["data"]["jobs"]
    assert [job["waiting_for"] for job in listed] == [[], ["a"], ["a", "b"]]
    cli.main(["show", "b"])
    assert "after         a (QUEUED_LOCAL); if any" in capsys.readouterr().out
    cli.main(["status", "--offline"])
    assert "of these, 2 jobs waiting for others" in capsys.readouterr().out
    assert cli.main(["add", paths[0], "--again", "--if", "fail", "--remote", "hpc"]) == 2
    assert "none is named (--after)" in capsys.readouterr().err


def test_every_end_of_the_client_is_one_to_the_agent() -> None:
    from chasqui_agent import dependents
    assert {end.lower() for end in states.ENDED} == set(dependents._KINDS)
