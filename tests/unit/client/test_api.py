"""What `from chasqui_client import sync, SyncConfig` gives, whatever was imported before."""

import importlib
import inspect
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import chasqui_client
from chasqui_client import api, config, errors, exchange


def test_the_public_names() -> None:
    assert chasqui_client.sync is api.sync
    assert chasqui_client.SyncConfig is api.SyncConfig
    with pytest.raises(AttributeError):
        chasqui_client.nonsense  # noqa: B018
    assert str(inspect.signature(api.sync)).replace(" ", "").startswith(
        "(local_db_path:str|os.PathLike[str]='~/.chasqui/jobs.db',remote_host:str|None=None,dry_run:bool=False,config:")


def test_sync_stays_the_function_after_the_module_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("chasqui_client.sync")
    monkeypatch.setitem(sys.modules, "chasqui_client.sync", module)
    chasqui_client.sync = module  # type: ignore[assignment]  # what importing chasqui_client.sync does
    assert importlib.import_module("chasqui_client").sync is api.sync


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands in for the exchange itself; says what it was asked."""
    calls: list[Any] = []

    def run_sync(*words: Any) -> exchange.SyncReport:
        calls.append(words)
        return exchange.SyncReport(uploaded=1, submitted=2, completed=3, failed=4, timestamp="2026-01-01T00:00:00Z")

    monkeypatch.setattr(api, "run_sync", run_sync)
    return calls


def test_sync_answers_as_promised(tmp_path: Path, asked: list[Any]) -> None:
    answer = api.sync(tmp_path / "my.db", "jane@h", config=api.SyncConfig(max_running=3, download_results=True))
    assert answer == {"uploaded": 1, "submitted": 2, "completed": 3, "failed": 4, "timestamp": "2026-01-01T00:00:00Z"}
    home, remote, options = asked[0]
    assert (home.path, home.ledger_path) == (tmp_path, tmp_path / "my.db")
    assert (remote.host, remote.caps.max_running, remote.root) == ("jane@h", 3, "~/chasqui")
    assert options.download and options.deploy and not options.interactive and not options.dry_run


def test_sync_uses_the_configured_remote(tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHASQUI_HOME", str(tmp_path))
    config.init(config.Home(), "hpc", "jane@h", "~/elsewhere")
    api.sync(dry_run=True)
    api.sync(remote_host="jane@h")
    home, remote, options = asked[0]
    assert home.ledger_path == tmp_path / "jobs.db" and remote.root == "~/elsewhere" and options.dry_run
    assert not options.download
    assert asked[1][1] == remote


def test_a_host_like_an_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.BadHost):
        api.sync(tmp_path / "jobs.db", "-oProxyCommand=x")
