"""What class each failure is, when the next try is, and what a watch makes of both: by a clock of our own."""

import inspect
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chasqui_client import api, cli, errors, retry
from chasqui_client.exchange import SyncOptions, SyncReport

EVERY = [found for _, found in inspect.getmembers(errors, inspect.isclass)
         if issubclass(found, errors.ChasquiError) and found.__module__ == errors.__name__]


@pytest.mark.parametrize("failure", EVERY, ids=lambda failure: failure.__name__)
def test_every_failure_is_of_one_class(failure: type[errors.ChasquiError]) -> None:
    assert [kind for kind, failures in retry.TABLE.items() for known in failures if known is failure] == [
        retry.kind(failure.__new__(failure))]


def test_what_derives_from_a_failure_is_of_its_class() -> None:
    class Odd(errors.HostUnreachable):
        """{message}"""

    assert retry.kind(Odd("x", remote="r", host="h")) == retry.NETWORK


def test_nothing_that_asks_for_a_login_is_tried_again_by_itself() -> None:
    again = (retry.NETWORK, retry.LATER, retry.DAMAGED)
    assert not [found for kind in again for found in retry.TABLE[kind] if issubclass(found, errors.ConnectionNeeded)]


def test_back_off() -> None:
    early, late = retry.Backoff(lambda: 0.0), retry.Backoff(lambda: 1.0)
    assert [early.next() for _ in range(7)] == [30, 120, 480, 1800, 7200, 7200, 7200]
    assert [late.next() for _ in range(5)] == pytest.approx([33, 132, 528, 1980, 7920])
    early.reset()
    assert early.next() == 30
    assert all(30 <= retry.Backoff().next() <= 33 for _ in range(100))


# -- a watch -----------------------------------------------------------------------------------------------------------


class World:
    """Time, and what each sync of a watch ends with."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.tries: list[float] = []
        self.options: list[SyncOptions] = []
        self.ends: Iterator[SyncReport | errors.ChasquiError] = iter(())

    def sync(self, home: object, remote: object, options: SyncOptions) -> SyncReport:
        self.tries.append(self.now)
        self.options.append(options)
        end = next(self.ends)
        if isinstance(end, errors.ChasquiError):
            raise end
        assert isinstance(end, SyncReport)
        return end

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def waits(self) -> list[float]:
        """Seconds between the tries."""
        return [b - a for a, b in zip(self.tries, self.tries[1:], strict=False)]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setenv("CHASQUI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(api, "run_sync", made.sync)
    monkeypatch.setattr(time, "sleep", made.sleep)
    monkeypatch.setattr(time, "time", lambda: made.now)
    monkeypatch.setattr(retry, "_SPREAD", 0.0)
    assert cli.main(["init", "here", "--host", "local"]) == 0
    return made


def _watch(world: World, *ends: SyncReport | errors.ChasquiError) -> int:
    world.ends = iter(ends)
    return cli.main(["sync", "--watch", "10"])


def _running() -> SyncReport:
    return SyncReport(remote="here", counts={"RUNNING": 1})


def _done() -> SyncReport:
    return SyncReport(remote="here", counts={"COMPLETED": 1})


def _lost() -> errors.ChasquiError:
    return errors.ConnectionLost("nothing was heard", remote="here")


def test_the_network_is_tried_again_ever_later_until_it_works(
        world: World, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    unreachable = errors.HostUnreachable("No route to host", remote="here", host="h")
    assert _watch(world, _lost(), unreachable, _lost(), _lost(), _lost(), _lost(), _running(), _lost(), _done()) == 0
    assert world.waits() == [30, 120, 480, 1800, 7200, 7200, 10, 30]
    said = capsys.readouterr()
    due = time.strftime("%H:%M:%S", time.localtime(world.tries[1]))
    assert said.err.startswith("chasqui: here: the connection broke: nothing was heard.")
    assert said.err.splitlines()[1] == "  next try at " + due
    assert said.err.count("next try at") == 7
    assert said.out == "in the scheduler 1\nnothing new\n"


def test_a_laptop_that_slept_tries_when_it_wakes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def lid(seconds: float) -> None:
        world.now += seconds if len(world.tries) < 2 else 86400.0

    monkeypatch.setattr(time, "sleep", lid)
    assert _watch(world, _lost(), _lost(), _done()) == 0
    assert world.waits() == [30, 86400]


def test_a_clock_set_back_makes_no_wait_longer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    slept = []

    def back(seconds: float) -> None:
        slept.append(seconds)
        world.now -= 3600

    monkeypatch.setattr(time, "sleep", back)
    assert _watch(world, _lost(), _lost(), _done()) == 0
    assert slept == [30, 30, 30, 30, 30]


@pytest.mark.parametrize(("failure", "code"), [
    (errors.NotConnected(remote="here"), 4), (errors.LoginFailed("denied", remote="here"), 4),
    (errors.HostKeyRefused("changed", remote="here", host="h"), 4), (errors.MasterDied("gone", remote="here"), 5),
    (errors.DiskFullHere(path="/x"), 1), (errors.LedgerFull(path="/x"), 1),
    (errors.RemoteDiskFull(remote="here", root="r"), 6), (errors.NoPython(remote="here"), 6),
    (errors.BadConfig("x", where="y"), 2)])
def test_what_no_time_heals_ends_the_watch_at_once(world: World, failure: errors.ChasquiError, code: int,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert _watch(world, _running(), failure) == code
    assert len(world.tries) == 2
    assert capsys.readouterr().err == "chasqui: %s\n  hint: %s\n" % (failure, failure.hint)


def test_another_sync_and_a_pause_are_waited_for(world: World) -> None:
    busy = errors.LedgerBusy(path="p", holder="another")
    paused = errors.TransfersPaused(remote="here", until="Mon 18:00")
    assert _watch(world, busy, busy, paused, busy, _done()) == 0
    assert world.waits() == [10, 10, 10, 10]


def test_what_arrived_damaged_is_tried_once_more(world: World) -> None:
    def damaged() -> errors.ChasquiError:
        return errors.ProtocolBroken("frame damaged on the way", remote="here")

    assert _watch(world, damaged(), _running(), damaged(), damaged()) == 6
    assert world.waits() == [10, 10, 10]


def test_a_full_disk_there_stops_uploads_and_nothing_else(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> errors.ChasquiError:
        found = errors.RemoteDiskFull(remote="here", root="r")
        found.report = SyncReport(remote="here", counts={"QUEUED_LOCAL": 2})
        return found

    capsys.readouterr()
    waiting = SyncReport(remote="here", counts={"QUEUED_LOCAL": 2})
    ends = [full(), waiting, waiting, full(), *[waiting] * 11, _done()]
    assert _watch(world, *ends) == 0
    assert set(world.waits()) == {10.0}
    assert [at for at, options in enumerate(world.options) if options.upload] == [0, 3, 15]
    said = capsys.readouterr()
    assert said.err.count("no space left") == said.err.count("hint: make room there") == 2
    assert said.err.count("  uploads again at ") == 2


def test_only_the_first_try_may_log_in(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chasqui_client.command.Command.interactive", True)
    assert _watch(world, _lost(), _running(), _done()) == 0
    assert [options.interactive for options in world.options] == [True, False, False]
