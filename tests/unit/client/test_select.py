"""Which jobs the words on a command line mean."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chasqui_client import errors
from chasqui_client.fields import replace
from chasqui_client.ledger import Job, Ledger
from chasqui_client.select import Selection, find, one, parse_states, short_ids

JOBS = [("kx3faaaa", "Fe-1", "a"), ("kx3gbbbb", "Fe-2", "b"), ("mmmmcccc", "Co-1", "c"), ("nnnndddd", "Co-1", "d")]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "jobs.db") as opened:
        for job, name, folder in JOBS:
            opened.add_job(Job(job, "hpc" if folder < "d" else "other", name, str(tmp_path / folder).encode(), "", 1, 0,
                               b"", {}, "results", "NONE", None, None, "", "", 0, 0, "", ""), [])
        opened.move("mmmmcccc", "CANCELLED")
        yield opened


def _ids(ledger: Ledger, *words: str, **more: object) -> list[str]:
    return [job.id[:4] for job in find(ledger, Selection(words, **more))]  # type: ignore[arg-type]


def test_words(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _ids(ledger, "kx3faaaa") == _ids(ledger, "kx3f") == _ids(ledger, "Fe-1") == _ids(ledger, "a") == ["kx3f"]
    assert _ids(ledger, str(tmp_path / "a"), "./b", "Fe-2") == ["kx3f", "kx3g"]
    assert _ids(ledger, "Co-1") == ["mmmm", "nnnn"]
    assert _ids(ledger, "Co-1", remote="other") == ["nnnn"]


def test_filters(ledger: Ledger) -> None:
    assert _ids(ledger, name="Fe*") == ["kx3f", "kx3g"]
    assert _ids(ledger, states=("CANCELLED",)) == ["mmmm"]
    assert _ids(ledger, "Co-1", states=("QUEUED_LOCAL",)) == ["nnnn"]
    assert len(_ids(ledger, all=True)) == 4


def test_words_that_mean_nothing_or_too_much(ledger: Ledger) -> None:
    with pytest.raises(errors.AmbiguousJob, match="kx3faaaa, kx3gbbbb"):
        _ids(ledger, "kx3")
    with pytest.raises(errors.NoSuchJob, match="nope"):
        _ids(ledger, "kx3f", "nope")
    with pytest.raises(errors.NoSuchJob) as caught:
        _ids(ledger, "\x1b[2J\udcff")
    assert "\x1b" not in str(caught.value)
    with pytest.raises(errors.NothingSelected):
        _ids(ledger)


def test_a_name_that_many_jobs_have_is_one_short_line(ledger: Ledger) -> None:
    mmmm, = find(ledger, Selection(("mmmm",)))
    for number in range(20):
        ledger.add_job(replace(mmmm, id="oooo%04d" % number, state=""), [])
    with pytest.raises(errors.AmbiguousJob) as caught:
        one(ledger, "Co-1")
    assert str(caught.value).endswith(": mmmmcccc, nnnndddd, oooo0000, oooo0001, oooo0002, ....")


def test_states() -> None:
    assert parse_states("failed, LOST") == ("FAILED", "LOST")
    with pytest.raises(errors.BadInput, match="no state BROKEN"):
        parse_states("broken")


def test_short_ids_mean_one_job(ledger: Ledger) -> None:
    short = short_ids(ledger, 2)
    assert short == {"kx3faaaa": "kx3f", "kx3gbbbb": "kx3g", "mmmmcccc": "mm", "nnnndddd": "nn"}
    assert all(_ids(ledger, word) == [job[:4]] for job, word in short.items())
