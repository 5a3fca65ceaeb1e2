"""Disks that fill up where nobody looked: at any moment of a session, there or here, in bytes or in inodes.

Each time: one line and a nonzero exit, nothing lost, nothing half-written under a final name; and once there is room,
every payload runs once and every result is verified.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from agent.agentroot import until
from chasqui_agent.spool import Spool
from chasqui_client import cli, deploy, states
from chasqui_client.ledger import Job
from session.desk import Desk
from session.disks import Interrupted, disk

DATA = 30_000  # bytes of a job's own input: eight blocks


@pytest.fixture
def disks() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def types(monkeypatch, capsys):
    """Type a command at a desk; its exit code, and what it said. A sync that is no success says so in one line and a
    hint, and one that is says nothing of space."""

    def do(desk: Desk, *words: str) -> tuple[int, str]:
        monkeypatch.setenv("CHASQUI_HOME", str(desk.home.path))
        code = cli.main(list(words))
        out, err = capsys.readouterr()
        if code:
            assert len(err.splitlines()) == 2 and err.startswith("chasqui: "), (out, err)
            assert "\n  hint: " in err, err
        else:
            assert err == "" and "no space" not in out.lower(), (out, err)
        return code, out + err

    return do


@contextmanager
def interrupted(monkeypatch, turn: int, happens: Callable[[], None]) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(deploy, "transport_to", lambda *_, **__: Interrupted(turn, happens))
        yield


def three_jobs(desk: Desk) -> list[Job]:
    """Three jobs with an input of their own, two they share, and a result for which they wait until there is room."""
    script = "n=0\nuntil cat data >out || [ $((n += 1)) -gt 600 ]; do sleep 0.1; done"
    return desk.add(*(desk.folder("j%d" % n, script, data=os.urandom(DATA), same=b"s" * 9000, none=b"")
                      for n in range(3)))


def _ended(desk: Desk, script: str, **files: bytes) -> list[Job]:
    """A job that has ended there, and nothing of its results is here."""
    jobs = desk.add(desk.folder("job", script, **files))
    until(lambda: [desk.sync(download=False), desk.job(jobs[0]).ended][1], "it ends")
    return jobs


def is_whole(desk: Desk, jobs: list[Job]) -> None:
    """Every job is here, or there with all its files; nothing else has a final name."""
    spool = Spool(str(desk.root))
    built = [name for job in jobs for name in (f"{job.id}.1", ".shard.*")]
    assert not [path for name in built for path in desk.path.rglob(name) if path.is_dir()], "half-built and left behind"
    for job in map(desk.job, jobs):
        assert job.acked == 0 or spool.known(job.id, 1), "acknowledged, and not there"
        work = Path(spool.work_dir(job.id, 1))
        assert work.exists() or not job.acked
        for path in Path(os.fsdecode(job.folder)).iterdir() if work.exists() else ():
            assert path.name == "results" or (work / path.name).read_bytes() == path.read_bytes()
    for results in desk.path.glob("jobs/*/results"):
        assert [p.name for p in results.iterdir()] == [p.name for p in results.iterdir() if p.name != ".chasqui"]


def finishes(desk: Desk, jobs: list[Job]) -> None:
    desk.finish(90)
    assert desk.lines() == sorted(job.name for job in jobs), "each payload ran once"
    for job in jobs:
        desk.completed(job)
        out = Path(os.fsdecode(job.results_path)) / "out"
        assert out.read_bytes() == (Path(os.fsdecode(job.folder)) / "data").read_bytes()
    is_whole(desk, jobs)


# -- there -------------------------------------------------------------------------------------------------------------

# What is left, in blocks, when the first content is about to be sent: that ends the session in content, in a commit, in
# the shard that is published, in the journal, in the runner, in the scheduler's table, in a flag, in a beat.
BLOCKS, BLOCKS_LONG = (0, 14, 38, 50, 66, 76), range(0, 110, 3)
INODES, INODES_LONG = (0, 9, 20, 28, 34, 42), range(0, 60, 2)


@pytest.mark.parametrize("kind", ["blocks", "inodes"])
def test_full_there_at_any_moment_of_a_session(tmp_path, monkeypatch, types, size, kind):
    counts = {"blocks": (BLOCKS, BLOCKS_LONG), "inodes": (INODES, INODES_LONG)}[kind][size.long]
    codes = set()
    for left in counts:
        desk = Desk(tmp_path / str(left))
        with disk(desk.root) as there:
            desk.deploy()
            jobs = three_jobs(desk)
            fill = there.fill if kind == "blocks" else there.fill_inodes
            with interrupted(monkeypatch, 3, lambda fill=fill, left=left: fill(left)):
                code, said = types(desk, "sync")
            codes.add(code)
            assert code == 0 or re.search(r"no space left .*there: .*\(tmpfs\): .* left\.", said), said
            is_whole(desk, jobs)
            types(desk, "sync")  # it is still full
            is_whole(desk, jobs)
            there.clear()
            finishes(desk, jobs)
    assert 6 in codes


@pytest.mark.parametrize("full", ["work", "root"])
@pytest.mark.parametrize("kind", ["blocks", "inodes"])
def test_one_of_two_disks_is_full_there(tmp_path, monkeypatch, types, disks, full, kind):
    desk = Desk(tmp_path)
    mounted = {"root": disks.enter_context(disk(desk.root)), "work": disks.enter_context(disk(tmp_path / "scratch"))}
    (desk.root / "work").symlink_to(tmp_path / "scratch")
    desk.deploy()
    jobs, codes = three_jobs(desk), []
    for left in (0, 6, 12):
        fill = mounted[full].fill if kind == "blocks" else mounted[full].fill_inodes
        for turn in (3, 0):  # the second time it is full from the beginning
            with interrupted(monkeypatch, turn, lambda fill=fill, left=left: fill(left)):
                code, said = types(desk, "sync")
            assert code == 0 or str(mounted[full].at) + " (tmpfs)" in said, "it names the one that is full"
            codes.append(code)
            is_whole(desk, jobs)
        mounted[full].clear()
    assert codes[:2] == [6, 6]
    finishes(desk, jobs)


def test_a_payload_that_fills_the_disk_still_has_its_flag(tmp_path, types, disks):
    desk = Desk(tmp_path)
    there = disks.enter_context(disk(desk.root, "20m"))
    desk.deploy()
    job = desk.add(desk.folder("greedy", "cat data >out; head -c 40m /dev/zero >WAVECAR; touch %s/full" % tmp_path,
                               data=b"d"), exclude=["WAVECAR"])[0]
    types(desk, "sync")
    until((tmp_path / "full").exists, "the disk is full")
    until(lambda: list(desk.root.glob("work/*/.chasqui/flag.*.1")), "the flag is there")
    assert os.statvfs(desk.root).f_bavail == 0
    code, said = types(desk, "sync")
    assert code == 6 and re.search(r"no space left .*: 0 bytes left", said), said
    there.grow()
    finishes(desk, [job])


def test_a_payload_that_takes_all_inodes(tmp_path, types, disks):
    desk = Desk(tmp_path)
    there = disks.enter_context(disk(desk.root, inodes=1000))
    desk.deploy()
    job = desk.add(desk.folder("greedy", "cat data >out; mkdir many; n=0; while : >many/$n; do n=$((n + 1)); done"
                               " 2>/dev/null; touch %s/full" % tmp_path, data=b"d"), outputs=["out"])[0]
    types(desk, "sync")
    # The shell ends a script whose redirection fails, so the payload may end there: the disk is what counts.
    until(lambda: os.statvfs(desk.root).f_favail == 0, "the inodes are gone")
    until(lambda: list(desk.root.glob("work/*/.chasqui/flag.*.1")), "the flag is there")
    code, said = types(desk, "sync")
    assert code == 6 and re.search(r"inodes of .*: 0 left", said), said
    there.grow()
    desk.finish(90)
    assert desk.lines() == ["greedy"] and desk.job(job).results_state == states.VERIFIED


@pytest.mark.parametrize("offered", [False, True], ids=["nothing offered", "a job offered"])
@pytest.mark.parametrize("kind", ["blocks", "inodes"])
def test_results_come_home_from_a_full_disk(tmp_path, types, disks, kind, offered):
    desk = Desk(tmp_path)
    there = disks.enter_context(disk(desk.root))
    jobs = _ended(desk, "cat data >out", data=b"x" * DATA)
    jobs += desk.add(desk.folder("next", "cat data >out", data=b"y" * DATA)) if offered else []
    (there.fill if kind == "blocks" else there.fill_inodes)()
    code, said = types(desk, "sync")
    assert code == (6 if offered else 0) and "results of 1 job verified" in said, said
    assert [desk.job(job).state for job in jobs] == [states.COMPLETED, states.QUEUED_LOCAL][:len(jobs)]
    there.clear()
    finishes(desk, jobs)


# -- here --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["blocks", "inodes"])
def test_no_room_here_for_results(tmp_path, types, disks, kind):
    names = " ".join("f%d" % n for n in range(8))
    desk = Desk(tmp_path)
    job = _ended(desk, "for f in %s; do head -c 100000 /dev/zero >$f; done" % names)[0]
    results = tmp_path / "jobs" / "job" / "results"
    here = disks.enter_context(disk(results))
    for left in (0, 2, 5, 30) if kind == "blocks" else (0, 1, 2, 5):
        (here.fill if kind == "blocks" else here.fill_inodes)(left)
        code, said = types(desk, "sync")
        assert code == 1 and re.search("No space left here in .*/job/results; what had arrived whole", said), said
        assert all(path.stat().st_size == 100_000 for path in results.glob("f?"))
        assert not (results / ".chasqui").exists() or not list((results / ".chasqui").iterdir())
        assert desk.job(job).results_state in (states.NONE, states.PARTIAL)
        here.clear()
    desk.finish()
    assert desk.completed(job) and len(list(results.glob("f?"))) == 8


@pytest.mark.parametrize("turn", [1, 3, 4, 5, 6])
def test_the_ledgers_disk_fills_up_in_a_session(tmp_path, monkeypatch, types, disks, turn):
    home = disks.enter_context(disk(tmp_path / "home", "3m"))
    desk = Desk(tmp_path)
    desk.deploy()
    jobs = three_jobs(desk)
    types(desk, "sync")
    until(lambda: len(list(desk.root.glob("completed/*.flag"))) == 3, "they have ended")
    more = desk.add(desk.folder("more", "cat data >out", data=b"m" * DATA))
    with interrupted(monkeypatch, turn, home.fill):
        code, said = types(desk, "sync")
    assert code == 1 and "No space left for the ledger" in said and "what was recorded before is safe" in said, said
    assert types(desk, "sync")[0] == 1, "it is still full"
    home.clear()
    finishes(desk, jobs + more)


@pytest.mark.parametrize("left", [0, 4, 12])
def test_the_ledgers_disk_fills_up_while_jobs_are_added(tmp_path, types, disks, left):
    """What an `add` sets aside is on that disk, too."""
    home = disks.enter_context(disk(tmp_path / "home", "3m"))
    desk = Desk(tmp_path)
    first = desk.add(desk.folder("first"))
    folders = [str(desk.folder("j%d" % n)) for n in range(300)]
    home.fill(left)
    code, said = types(desk, "add", *folders)
    assert code == 1 and "No space left for the ledger" in said, said
    home.clear()
    assert [job.id for job in desk.jobs()] == [job.id for job in first]
    assert types(desk, "add", *folders)[0] == 0
    assert len(desk.jobs()) == 301
