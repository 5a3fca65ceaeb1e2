"""Room is looked at before anything is sent: what fits goes, the rest stays here whole, one line says why and where."""

import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from chasqui_agent import space
from chasqui_client import cli, deploy, errors, states
from session.desk import Desk
from session.disks import Disk, Interrupted, disk

MB = 1 << 20


@pytest.fixture
def small(tmp_path: Path) -> "Callable[..., tuple[Desk, Disk]]":
    """Makes a desk whose remote stands on a small disk of so much room beside the agent, which grows."""
    with ExitStack() as disks:

        def make(size: str = "200m", inodes: int = 100_000) -> tuple[Desk, Disk]:
            desk = Desk(tmp_path)
            mounted = disks.enter_context(disk(desk.root))
            desk.deploy()
            taken = sum(path.stat().st_blocks * 512 for path in (desk.root / "agent").iterdir())
            mounted.grow("%dk" % ((int(size.rstrip("m")) * MB + taken) >> 10), inodes)
            return desk, mounted

        yield make


def _types(desk, monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setenv("CHASQUI_HOME", str(desk.home.path))
    code = cli.main(list(words))
    return (code, *capsys.readouterr())


def _quota(tmp_path, monkeypatch, limit: int) -> Path:
    """A quota program first on PATH, which says that 5,000 of `limit` kB are used."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "quota").write_text(
        "#!/bin/sh\ncat <<'.'\nDisk quotas for user me (uid %d): \n"
        "     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace\n"
        "          tmpfs   5000       0   %d       0      10       0       0       0\n.\n" % (os.geteuid(), limit))
    (programs / "quota").chmod(0o755)
    monkeypatch.setenv("PATH", "%s:%s" % (programs, os.environ["PATH"]))
    return programs / "quota"


def test_what_fits_goes_and_the_rest_stays_and_goes_later(small, monkeypatch, capsys):
    desk, mounted = small("16m")
    big = desk.add(desk.folder("big", data=os.urandom(20 * MB)))[0]
    also = desk.add(desk.folder("also", data=os.urandom(30 * MB)))[0]
    fits = desk.add(desk.folder("fits", data=os.urandom(1 * MB)))[0]
    code, out, err = _types(desk, monkeypatch, capsys, "sync", "--remote", "here")
    line, hint = err.splitlines()
    assert code == 6 and "uploaded 1 job" in out and "not taken" not in out
    assert re.fullmatch(r"chasqui: here: no space left there: %s \(tmpfs\): \d+\.\d MB left; not uploaded, for want of"
                        r" room: 2 jobs\. All else was done\." % re.escape(str(desk.root)), line), line
    assert "make room there, then: chasqui sync --remote here" in hint and "chasqui clean" in hint
    assert (desk.job(big).state, desk.job(also).state) == (states.QUEUED_LOCAL, states.QUEUED_LOCAL)
    assert desk.job(fits).acked == 1
    # Nothing of them went: all that stands there beside the agent is the job that fits, and its content in the cache.
    large = [path for path in desk.root.rglob("*") if path.is_file() and path.stat().st_size >= MB]
    assert {path.stat().st_size for path in large if path.parent != desk.root / "agent"} == {1 * MB}
    assert desk.sync().refused, "and a next sync tries again"
    mounted.grow("200m")
    desk.finish()
    assert desk.lines() == ["also", "big", "fits"]
    assert all(desk.completed(job) for job in (big, also, fits))


def test_a_job_without_room_is_still_ours_to_change_and_to_cancel(small):
    desk, mounted = small("16m")
    folders = [desk.folder("one", data=os.urandom(20 * MB)), desk.folder("two", data=os.urandom(20 * MB))]
    one, two = desk.add(*folders)
    assert len(desk.sync().refused) == 2
    assert [desk.job(job).offered for job in (one, two)] == [0, 0]
    (folders[0] / "data").write_bytes(b"smaller")
    again = desk.sync()
    assert [item["why"] for item in again.changed_inputs] == ["changed since add, uploaded as it is now"]
    assert again.uploaded == 1 and [item["job"] for item in again.refused] == [two.id]


def test_inodes_are_room_too(small):
    desk, mounted = small(inodes=800)
    many = desk.add(desk.folder("many", **{"f%d" % n: b"x" for n in range(600)}))[0]
    few = desk.add(desk.folder("few"))[0]
    report = desk.sync()
    assert [item["job"] for item in report.refused] == [many.id]
    assert re.fullmatch("no space left there: inodes of .* left", report.refused[0]["why"])
    mounted.grow()
    desk.finish()
    assert desk.lines() == ["few", "many"] and desk.completed(many) and desk.completed(few)


def test_a_quota_is_named_and_results_keep_coming(small, monkeypatch, tmp_path):
    desk, mounted = small()
    first = desk.add(desk.folder("first", "echo here >out"))[0]
    desk.finish()
    shutil.rmtree(desk.path / "jobs/first/results")
    second = desk.add(desk.folder("second", "echo more >out"))[0]
    desk.sync()
    program = _quota(tmp_path, monkeypatch, 20000)
    large = desk.add(desk.folder("large", data=os.urandom(20 * MB)))[0]
    report = desk.sync()
    assert [item["job"] for item in report.refused] == [large.id]
    assert re.fullmatch(r"no space left there: quota of \S+ on .*/chasqui \(tmpfs\): 15\.4 MB left",
                        report.refused[0]["why"])
    while desk.job(second).results_state != states.VERIFIED:
        assert [item["job"] for item in desk.sync().refused] == [large.id]
    program.unlink()
    desk.finish()
    assert desk.completed(first) and desk.completed(second) and desk.completed(large)
    assert desk.lines() == ["first", "large", "second"]


def test_watching_goes_on_while_others_run_and_ends_with_the_reason(small, monkeypatch, capsys):
    desk, mounted = small("16m")
    desk.add(desk.folder("big", data=os.urandom(20 * MB)))
    fits = desk.add(desk.folder("fits", "sleep 1"))[0]
    code, out, err = _types(desk, monkeypatch, capsys, "sync", "--watch", "0.3")
    assert code == 6 and "no space left there" in err and len(err.splitlines()) == 2
    assert desk.completed(fits)


@pytest.mark.parametrize("room", ["16m", "20m"])  # for less than two copies; for two, not for that they are made of
def test_a_second_copy_takes_room_although_it_needs_no_line(small, room):
    desk, mounted = small(room)
    shared = os.urandom(7 * MB)
    one, two = desk.add(desk.folder("one", data=shared), desk.folder("two", data=shared))
    assert [item["job"] for item in desk.sync().refused] == [two.id]
    mounted.grow()
    desk.finish()
    assert desk.completed(one) and desk.completed(two)


def _cached(desk: Desk) -> set[int]:
    """The sizes of what the cache holds."""
    return {path.stat().st_size for path in (desk.root / "objects").rglob("*") if path.is_file()}


def _fill_cache(desk: Desk, *sizes: int) -> None:
    """Contents used once, in this order, and then deleted wherever else they are."""
    for size in sizes:
        desk.add(desk.folder("c%d" % size, data=os.urandom(size)))
        desk.finish()
        time.sleep(0.01)  # their times differ
    for data in desk.root.glob("work/*/data"):
        data.unlink()
    assert _cached(desk) == set(sizes)


def test_the_cache_makes_room_what_was_used_longest_ago_first(small):
    desk, mounted = small("60m")
    _fill_cache(desk, 8 * MB, 9 * MB, 10 * MB)
    free = os.statvfs(desk.root).f_bavail * os.statvfs(desk.root).f_frsize
    one = desk.add(desk.folder("one", data=os.urandom(free + 5 * MB - space.RESERVE[space.BYTES])))[0]
    assert desk.sync().refused == []
    assert _cached(desk) == {9 * MB, 10 * MB}, "no more than needed, and the new one is not kept twice"
    two = desk.add(desk.folder("two", data=os.urandom(15 * MB)))[0]
    assert desk.sync().refused == [] and _cached(desk) == set()
    desk.finish()
    assert desk.completed(one) and desk.completed(two)


def test_a_cache_too_small_to_help_stays(small):
    desk, mounted = small("40m")
    _fill_cache(desk, 3 * MB, 4 * MB)
    large, fits = desk.add(desk.folder("large", data=os.urandom(50 * MB)), desk.folder("fits"))
    assert [item["job"] for item in desk.sync().refused] == [large.id]
    assert _cached(desk) == {3 * MB, 4 * MB} and desk.job(fits).acked == 1


def test_inodes_come_back_from_the_cache_too(small):
    desk, mounted = small(inodes=1500)
    shared = {"s%d" % n: b"%d" % n * 100 for n in range(200)}
    desk.add(desk.folder("one", **shared), desk.folder("two", **shared))
    desk.finish()
    for file in desk.root.glob("work/*/s*"):
        file.unlink()
    free = os.statvfs(desk.root).f_favail
    many = desk.add(desk.folder("many", **{"f%d" % n: b"x" for n in range(free - space.RESERVE[space.FILES] + 20)}))[0]
    assert desk.sync().refused == []
    left = sum(path.is_file() for path in (desk.root / "objects").rglob("*"))
    assert 100 < left < 200, "as many as were needed"
    mounted.grow()
    desk.finish()
    assert desk.completed(many)


def test_what_fits_once_is_not_refused_for_the_sake_of_the_cache(small):
    """20 MB for a job of 12: a copy in the cache would not fit beside it."""
    desk, mounted = small("20m")
    job = desk.add(desk.folder("once", data=os.urandom(12 * MB)))[0]
    desk.finish()
    assert desk.completed(job) and _cached(desk) == set()


def test_a_full_disk_costs_the_cache_and_nothing_else(small, monkeypatch):
    desk, mounted = small("60m")
    _fill_cache(desk, 8 * MB, 9 * MB)
    job = desk.add(desk.folder("job", data=os.urandom(7 * MB)))[0]
    with monkeypatch.context() as patch:
        patch.setattr(deploy, "transport_to", lambda *_, **__: Interrupted(3, mounted.fill))
        with pytest.raises(errors.RemoteDiskFull):
            desk.sync()
    assert _cached(desk) == set()
    desk.finish()  # somebody else's data is still there: the cache was room enough
    assert desk.completed(job)


def test_status_and_doctor_tell_the_room(small, monkeypatch, capsys, tmp_path):
    desk, mounted = small("100m")
    room = r"room: %s \(tmpfs\): \d+\.\d MB left" % re.escape(str(desk.root))
    code, out, err = _types(desk, monkeypatch, capsys, "agent", "status")
    assert code == 0 and re.search(room, out) and "room: inodes of " in out
    code, out, err = _types(desk, monkeypatch, capsys, "doctor")
    assert code == 0 and re.search(r"space: .*\(tmpfs\): \d+\.\d MB left; inodes of .* left", out), out
    _quota(tmp_path, monkeypatch, 20000)
    quota = r"quota of \S+ on %s \(tmpfs\): 15\.4 MB left" % re.escape(str(desk.root))
    code, out, err = _types(desk, monkeypatch, capsys, "agent", "status")
    assert code == 0 and re.search("room: " + quota, out)
    code, out, err = _types(desk, monkeypatch, capsys, "doctor")
    assert code != 0 and re.search("space: " + quota, err), err


def test_the_reason_is_recognised_by_its_words():
    """The client knows such a refusal by how it begins; the error's own words begin like that too."""
    said = str(errors.NoRoomThere(space.NO_ROOM + "x", remote="r", jobs="1 job"))
    assert said.startswith("r: no space left")
