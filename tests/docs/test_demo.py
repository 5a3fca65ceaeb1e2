"""The parts of `make demo`; that it runs as a whole, on a bare machine, is seen in tests/fresh."""

import json
from pathlib import Path

import pytest

from chasqui_client.demo import __main__ as demo
from chasqui_client.demo import ising


def test_exact_energies() -> None:
    """Limits known in closed form: all spins parallel, none correlated, and the transition itself."""
    assert demo.exact_energy(0.5) == pytest.approx(-2, abs=1e-4)
    assert demo.exact_energy(1e6) == pytest.approx(0, abs=1e-4)
    assert demo.exact_energy(2.269) == pytest.approx(-(2**0.5), abs=1e-2)


def test_the_job_calculates_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {"temperature": 1.5, "size": 16, "sweeps": 400, "seed": 1}
    Path("parameters.json").write_text(json.dumps(asked))
    ising.main()
    result = json.loads(Path("result.json").read_text())
    assert result["energy"] == pytest.approx(demo.exact_energy(1.5), abs=0.1)
    assert len(Path("series.csv").read_text().splitlines()) == result["samples"] + 1 == 16


def test_a_folder_that_no_remote_could_have_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "my folder"
    odd.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(odd))
    found = demo._folder()
    found.rmdir()
    assert found.parent == Path("/tmp")


def test_a_job_that_did_not_complete_fails_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [{"state": "COMPLETED", "results_state": "VERIFIED", "results": str(tmp_path)}] * 23
    jobs.append({**jobs[0], "state": "LOST"})
    monkeypatch.setattr(demo.Demo, "answer", lambda *_: json.dumps({"data": {"jobs": jobs}}))
    with pytest.raises(demo.Failed, match="23 of 24"):
        demo._verified(demo.Demo(tmp_path))
