"""What the relay does, on every scheduler alike: OpenPBS and Torque as mocks, a real Slurm by its own commands and by
those that imitate Torque's, and plain processes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import needs
from agent.agentroot import until
from pbs.test_relay import Sampler
from relay import grounds
from relay.grounds import CANNOT, GROUNDS, Ground, all_but
from slurm.cluster import Cluster as SlurmCluster


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    with SlurmCluster() as made:
        yield made


@pytest.fixture(scope="module")
def started(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """The ground of this name, begun once for all its tests."""
    with contextlib.ExitStack() as stack:
        name = request.param
        if name in ("slurm", "slurm-torque"):
            kind = {"slurm": grounds.Slurm, "slurm-torque": grounds.SlurmTorque}[name]
            yield kind(request.getfixturevalue("slurm"))
        elif name == "shell":
            yield grounds.Plain()
        else:
            yield {"openpbs": grounds.OpenPBS, "torque": grounds.Torque}[name](stack)


@pytest.fixture
def ground(started: Ground) -> Iterator[Ground]:
    """The same, left empty by each test."""
    yield started
    started.clear()


def on(names: "tuple[str, ...] | list[str]") -> pytest.MarkDecorator:
    return pytest.mark.parametrize("started", names, indirect=True, scope="module")


VERSIONS = [(name, "this one") for name in GROUNDS] + [("openpbs", "3.6"), ("slurm", "3.6")]


@pytest.mark.parametrize(("started", "version"), VERSIONS, indirect=["started"], scope="module")
def test_everything_runs_once_under_the_caps(
        tmp_path: Path, ground: Ground, capsys: pytest.CaptureFixture[str], version: str) -> None:
    """With one among them that fails, and one that is refused. The last few go on by the tails alone."""
    python = needs.python36() or needs.missing("Python 3.6") if version == "3.6" else ""
    root = ground.root(tmp_path / "root", python, max_queued=8, max_running=4)
    names = ["job%02d" % number for number in range(16)]
    root.drop("refused", directives=ground.refused)
    for number, name in enumerate(names):
        root.drop(name, text="note end; exit 3" if number == 5 else "", seconds=0.2 + number % 5 * 0.1)
    with Sampler(root) as sampler:
        assert root.pump()["submitted"]  # how many before the first tail helps is a matter of speed
        until(lambda: all(root.starts(name) for name in names), "every payload started, by the tails alone", 120)
        root.finish(16)
    assert sampler.samples > 5
    assert [root.starts(name) for name in names] == [1] * 16
    assert root.outcomes()["ended"] == 16 and root.outcomes()["rejected"] == 1 and not root.starts("refused")
    failed = root.events("job05", "ended")[0]
    assert (failed["state"], failed["exit"], failed["why"]) == ("FAIL", 3, "exit 3")
    assert sampler.payloads <= 4 and sampler.waiting <= 8
    with capsys.disabled():
        print("\nrelay over %s: %d samples, at most %d payloads of 4, %d waiting of 8, %d live" % (
            ground.name, sampler.samples, sampler.payloads, sampler.waiting, sampler.live))


@on(GROUNDS)
def test_a_job_is_cancelled_before_and_after_its_start_and_deleted_by_hand(tmp_path: Path, ground: Ground) -> None:
    root = ground.root(tmp_path / "root", max_running=2, heartbeat=0)
    for name in ("a_runs", "b_runs", "c_waits", "d_next"):
        root.drop(name, seconds=0.1 if name == "d_next" else 300)
    root.pump()
    until(lambda: root.starts("a_runs") and root.starts("b_runs"), "they run")
    for name in ("c_waits", "a_runs"):
        assert root.agent("cancel", name)[0] == 0
    ground.delete(root, root.id_of("b_runs"))
    told = {name: root.ended(name) for name in ("a_runs", "b_runs", "c_waits")}
    assert {one["ev"] for one in told.values()} == {"cancelled"}
    assert (told["b_runs"]["why"], told["b_runs"]["exit"]) == ("deleted in " + ground.called, 271)
    assert root.starts("c_waits") == 0
    assert root.ended("d_next")["state"] == "DONE" and root.starts("d_next") == 1


@on(GROUNDS)
def test_the_relay_holds_what_is_too_much_and_releases_it(tmp_path: Path, ground: Ground) -> None:
    """And keeps what she holds until she releases it."""
    root, gate = ground.root(tmp_path / "root", max_queued=4, max_running=1), tmp_path / "gate"
    names = ["one", "three", "two"]
    for name in names:
        root.drop(name, text="until [ -e '%s' ]; do sleep 0.1; done" % gate)
    root.pump()
    until(lambda: sum(root.starts(name) for name in names), "one runs")
    states = [row["state"] for row in ground.cluster.table() if not row["name"].startswith("beat.")]
    assert states.count("H") == 2
    root.drop("hers", seconds=0.1)
    assert root.agent("hold", "hers")[0] == 0
    gate.touch()
    root.finish(3)
    assert [root.starts(name) for name in names] == [1, 1, 1] and root.outcomes()["released"] >= 2
    assert root.starts("hers") == 0
    assert root.agent("release", "hers")[0] == 0
    root.finish(4)
    assert root.starts("hers") == 1


@on(all_but("limit"))
def test_what_the_scheduler_ends_has_failed_with_its_reason(tmp_path: Path, ground: Ground) -> None:
    root = ground.root(tmp_path / "root", grace=2)
    root.drop("slow", seconds=300, directives=ground.brief)
    root.drop("killed", seconds=300)
    root.drop("after", seconds=0.1)
    root.pump()
    until(lambda: root.starts("slow") and root.starts("killed"), "they run")
    ground.end_by_limit(root.id_of("slow"))
    assert root.ended("slow")["why"] == "walltime"
    ground.cluster.kill_job(root.id_of("killed"))
    told = root.ended("killed")
    assert (told["state"], told["why"]) == ("FAIL", "killed (265)")
    assert root.ended("after")["state"] == "DONE" and root.starts("after") == 1


@on(all_but("answer lost"))
def test_a_submission_whose_answer_was_lost_is_adopted(tmp_path: Path, ground: Ground) -> None:
    root = ground.root(tmp_path / "root")
    for name in ("one", "two"):
        root.drop(name, seconds=0.2)
    with ground.answers_lost():
        root.pump()
        assert root.outcomes()["intent"] > 0 and root.outcomes()["submitted"] == 0
    root.finish(2)
    assert root.starts("one") == root.starts("two") == 1
    assert root.outcomes()["adopted"] >= 1 and not root.outcomes()["rejected"]


@on(all_but("server down"))
def test_a_server_that_is_down_changes_nothing(tmp_path: Path, ground: Ground) -> None:
    root = ground.root(tmp_path / "root", heartbeat=0)
    gate = tmp_path / "gate"
    root.drop("runs", text="until [ -e '%s' ]; do sleep 0.1; done" % gate)
    root.pump()
    until(lambda: root.starts("runs"), "it runs")
    root.drop("waits")
    with ground.down():
        # One right after another query does not ask, and is refused the submission.
        said = until(lambda: next((out for code, out, _ in [root.agent("pump")] if code == 1), ""), "it is noticed")
    assert "does not answer" in said
    assert root.outcomes()["submitted"] == 1 and not root.outcomes()["rejected"]
    gate.touch()
    root.finish(2)
    assert root.starts("runs") == root.starts("waits") == 1
    assert root.outcomes()["submitted"] == 2


@on(all_but("forgotten"))
def test_a_job_that_was_forgotten_is_lost_or_told_by_its_flag(tmp_path: Path, ground: Ground) -> None:
    """Nobody looked in time: without a flag nobody knows how it ended."""
    gate = tmp_path / "gate"
    with ground.forgetful() as place:
        root = place.root(tmp_path / "root", grace=2, wake_via="sync")
        root.drop("killed", seconds=300)
        root.drop("good", text="until [ -e '%s' ]; do sleep 0.1; done" % gate)
        root.pump()
        until(lambda: root.starts("killed") and root.starts("good"), "they run")
        place.cluster.kill_job(root.id_of("killed"))
        told = lambda: place.cluster.run(*place.asked, root.id_of("killed")).returncode == 0  # noqa: E731
        until(lambda: not told(), "it is forgotten", 120)
        gate.touch()
        assert root.ended("killed")["state"] == "LOST" and root.ended("good")["state"] == "DONE"


@on(GROUNDS)
def test_the_relay_goes_on_after_all_its_jobs_were_killed(tmp_path: Path, ground: Ground) -> None:
    """Nobody pumps by hand: no tail ran, only the heartbeat is left. (`shell` has none, and sees the end itself.)"""
    root = ground.root(tmp_path / "root", max_queued=6, max_running=3, heartbeat=0.05, grace=2)
    for number in range(2):
        root.drop("long%d" % number, seconds=300, directives=ground.lonely)
    root.pump()
    until(lambda: root.starts("long0") and root.starts("long1"), "both run")
    names = ["job%d" % number for number in range(4)]
    for name in names:
        root.drop(name, seconds=0.1, directives=ground.lonely)
    assert bool(root.beats()) == (ground.name in all_but("heartbeat"))  # one, or two while it is changed
    ground.kill_all()
    until(lambda: all(root.starts(name) == 1 for name in names) and root.finished() == 6, "the rest, by itself", 120)
    until(lambda: not root.beats(), "no heartbeat where nothing is left to wait for")
    assert root.outcomes()["stalled"] == 0
    assert sorted(root.flag(record["job"])[0] for record in root.log() if record["ev"] == "ended") == \
        ["DONE"] * 4 + ["FAIL"] * 2


@pytest.mark.parametrize(("started", "what"), list(CANNOT), indirect=["started"], scope="module")
def test_what_it_cannot_do_it_still_cannot(
        tmp_path: Path, ground: Ground, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    reason, proof = CANNOT[ground.name, what]
    proof(ground, tmp_path)
    with capsys.disabled():
        print("\n%s, not there: %s (%s)" % (ground.name, what, reason))
