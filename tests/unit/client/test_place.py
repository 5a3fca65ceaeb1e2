"""Which remote a job gets that goes anywhere; and that none is offered to two, whoever gives and offers at once."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chasqui_client import cli, config, errors
from chasqui_client.config import Config
from chasqui_client.ledger import InputFile, Job, Ledger
from chasqui_client.several import place

FILE = InputFile(b"job.sh", 3, 0o644, "ab" * 32, 1, b"/x/job.sh")
REMOTE = '[remotes.%s]\nhost = "local"\n[remotes.%s.caps]\nmax_running = %d\nmax_queued = %d\n'
NO_ROOM = "no space left there: work"


def _config(**caps: tuple[int, int]) -> Config:
    return config.parse("".join(REMOTE % (name, name, *both) for name, both in caps.items()), Path("config.toml"))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "jobs.db") as opened:
        yield opened


def _add(ledger: Ledger, name: str, remote: str = "any", priority: int = 0, **options: Any) -> None:
    options = {"any": True, **options} if remote == "any" else options
    ledger.add_job(Job(name, remote, name, b"/f/" + name.encode(), "", 1, priority, b"job.sh", options, "results",
                       "NONE", None, None, "", "", 0, 0, "", ""), [FILE])


def _where(ledger: Ledger) -> dict[str, str]:
    return {job.id: job.remote for job in ledger.jobs()}


def _offer(ledger: Ledger, remote: str) -> set[str]:
    """As a sync does it: read, then marked."""
    found = list(ledger.jobs_by_id(ledger.to_upload(remote)).values())
    return {job.id for job in found if job.id in ledger.mark_offered(found)} if found else set()


def test_the_first_with_a_place_to_run_then_the_first_with_one_in_its_queue(ledger: Ledger) -> None:
    chosen = _config(one=(1, 1), two=(2, 1))
    _add(ledger, "hers", "one")  # takes the first's place to run
    for number in range(6):
        _add(ledger, "j%d" % number, priority=-number)
    assert place.place(ledger, chosen, ["one", "two"]) == {"two": 3, "one": 1}
    assert _where(ledger) == {"hers": "one", "j0": "two", "j1": "two", "j2": "one", "j3": "two", "j4": "any",
                              "j5": "any"}
    assert [event["why"] for event in ledger.events("j2") if event["event"] == "placed"] == ["one"]
    assert place.place(ledger, chosen, ["one", "two"]) == {}, "nothing has changed"


def test_one_that_another_job_waits_for_stays(ledger: Ledger) -> None:
    """The other one was added to the remote that it had then, and can go nowhere else."""
    _add(ledger, "parent")
    _add(ledger, "free")
    assert place.place(ledger, _config(one=(1, 1), two=(1, 1)), ["one"]) == {"one": 2}
    _add(ledger, "child", "one")
    ledger.add_parents("child", ["parent"], "ok")
    assert place.place(ledger, _config(one=(1, 1), two=(1, 1)), ["two"]) == {"two": 1}
    assert _where(ledger) == {"parent": "one", "free": "two", "child": "one"}


def test_the_highest_priority_goes_first(ledger: Ledger) -> None:
    for name, priority in (("low", -5), ("high", 5), ("middle", 0)):
        _add(ledger, name, priority=priority)
    assert place.place(ledger, _config(one=(1, 1)), ["one"]) == {"one": 2}
    assert _where(ledger) == {"low": "any", "high": "one", "middle": "one"}


@pytest.mark.parametrize("report", [{"pump": {"refused": "no allocation"}}, {"pump": {"full": "quota"}},
                                    {"pump": {"note": "the scheduler does not answer"}}, {"stopped": "disk full"},
                                    {"kept": {"j": NO_ROOM}}], ids=str)
def test_a_remote_where_nothing_goes_on_takes_none(ledger: Ledger, report: dict[str, Any]) -> None:
    _add(ledger, "j")
    ledger.set_remote("one", report=report)
    assert place.place(ledger, _config(one=(5, 5), two=(5, 5)), ["one", "two"]) == {"two": 1}


@pytest.mark.parametrize("report", [None, {}, {"pump": 3, "kept": []}, {"kept": {"another": NO_ROOM}}], ids=str)
def test_any_other_word_of_its_last_sync_is_no_obstacle(ledger: Ledger, report: Any) -> None:
    _add(ledger, "j")
    ledger.set_remote("one", report=report)
    assert place.place(ledger, _config(one=(5, 5), two=(5, 5)), ["one", "two"]) == {"one": 1}


def test_one_that_was_not_offered_goes_elsewhere_and_one_that_was_stays(ledger: Ledger) -> None:
    chosen = _config(one=(5, 5), two=(5, 5))
    _add(ledger, "j")
    _add(ledger, "k")
    assert place.place(ledger, chosen, ["two"]) == {"two": 2}
    assert place.place(ledger, chosen, ["one", "two"]) == {}, "it keeps what has room"
    ledger.mark_offered([job for job in ledger.jobs() if job.id == "k"])
    assert place.place(ledger, chosen, ["one"]) == {"one": 1}, "the other could not be reached"
    assert _where(ledger) == {"j": "one", "k": "two"}
    ledger.withdraw("k")
    assert place.place(ledger, chosen, ["one"]) == {"one": 1}, "the agent said that it does not have it"
    assert place.place(ledger, chosen, []) == {} and set(_where(ledger).values()) == {"any"}


def test_only_jobs_that_go_anywhere_and_wait_here_are_given(ledger: Ledger) -> None:
    _add(ledger, "hers", "two", asked={"settings": {"x": '"any": true'}})
    _add(ledger, "held")
    ledger.move("held", "HELD")
    assert place.place(ledger, _config(one=(5, 5), two=(5, 5)), ["one"]) == {}
    assert _where(ledger) == {"hers": "two", "held": "any"}


def test_what_was_given_away_or_held_since_it_was_read_is_not_offered(ledger: Ledger) -> None:
    for name in ("a", "b", "c", "d"):
        _add(ledger, name)
    chosen = _config(one=(9, 9), two=(9, 9))
    place.place(ledger, chosen, ["one"])
    read = ledger.jobs()
    ledger.move("b", "HELD")
    ledger.move("c", "CANCELLED")
    assert ledger.mark_offered([job for job in read if job.id in "bcd"]) == {"d"}
    assert place.place(ledger, chosen, ["two"]) == {"two": 1}
    assert ledger.mark_offered([job for job in read if job.id == "a"]) == set()
    assert {job.id: job.offered for job in ledger.jobs()} == {"a": 0, "b": 0, "c": 0, "d": 1}


def test_what_is_offered_since_it_was_read_can_be_taken_back_by_the_cluster_alone(ledger: Ledger) -> None:
    _add(ledger, "a", "one")
    read = ledger.jobs()[0]
    assert ledger.mark_offered([read]) == {"a"}
    assert ledger.request(read, "cancel", "op1") is False, "it goes with the next sync"
    job = ledger.jobs()[0]
    assert (job.state, [op.op for op in ledger.pending_ops("one")]) == ("QUEUED_LOCAL", ["cancel"])


def test_two_who_give_and_two_who_offer_at_once_offer_each_job_once(tmp_path: Path, size: Any) -> None:
    jobs = 400 if size.long else 80
    path, chosen = tmp_path / "jobs.db", _config(one=(jobs, jobs), two=(jobs, jobs))
    offered: dict[str, list[str]] = {"one": [], "two": []}
    adding, errors_seen = threading.Event(), []

    def work(remote: str) -> None:
        try:
            with Ledger(path, timeout=60) as mine:
                while not adding.is_set() or "any" in set(_where(mine).values()) or mine.to_upload(remote):
                    place.place(mine, chosen, [remote])
                    fresh = [job for job in mine.jobs_by_id(mine.to_upload(remote)).values() if not job.offered]
                    time.sleep(0.003)  # inputs are looked at, before what was read is marked
                    marked = mine.mark_offered(fresh[:3])
                    offered[remote] += marked
                    mine.acknowledge(remote, [(job, 1) for job in marked])
        except Exception as error:
            errors_seen.append(error)

    threads = [threading.Thread(target=work, args=(remote,)) for remote in offered]
    with Ledger(path, timeout=60) as ledger:
        for thread in threads:
            thread.start()
        for number in range(jobs):
            _add(ledger, "j%04d" % number)
        adding.set()
        for thread in threads:
            thread.join(120)
        assert not errors_seen
        assert sorted(offered["one"] + offered["two"]) == ["j%04d" % number for number in range(jobs)]
        assert {job.id: job.remote for job in ledger.jobs()} == {
            job: remote for remote, found in offered.items() for job in found}


def test_any_is_no_remotes_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CHASQUI_HOME", str(tmp_path / "home"))
    with pytest.raises(errors.BadConfig):
        _config(any=(1, 1))
    assert cli.main(["init", "any", "--host", "local"]) == 2
    assert cli.main(["add", str(tmp_path), "--remote", "any"]) == 2
    assert "There is no configuration yet" in capsys.readouterr().err
    assert cli.main(["init", "here", "--host", "local"]) == 0
    assert cli.main(["sync", "--remote", "any"]) == 2
    assert "chasqui sync --all" in capsys.readouterr().err
