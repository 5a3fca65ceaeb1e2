"""Jobs that wait for others, from `add` to their results: over the embedded remote, with the real agent."""

import os
import time
from pathlib import Path

import pytest

from chasqui_agent import serve, wire
from chasqui_client import api, deploy, errors
from chasqui_client.ledger import Job
from chasqui_client.select import Selection
from chasqui_client.sync import Exchange
from session.desk import CutLocal, Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path).deploy()


def finished(desk: Desk, seconds: float = 60.0) -> dict[str, str]:
    """Sync until every job has ended; their states by name."""
    end = time.monotonic() + seconds
    while not all(job.ended for job in desk.jobs()):
        assert time.monotonic() < end, states(desk)
        desk.sync()
        time.sleep(0.1)
    return states(desk)


def states(desk: Desk) -> dict[str, str]:
    return {job.name: job.state for job in desk.jobs()}


def add(desk: Desk, name: str, *after: str, code: int = 0, **asked: object) -> Job:
    return desk.add(desk.folder(name, "exit %d" % code), **({"after": after} if after else {}), **asked)[0]


def test_a_diamond_comes_home(desk: Desk) -> None:
    """The parents have the lowest priority: they are handed over first all the same, in the same session."""
    for name, after, priority in (("a", (), -10), ("b", ("a",), 5), ("c", ("a",), 400), ("d", ("b", "c"), 500)):
        add(desk, name, *after, priority=priority)
    assert desk.sync().uploaded == 4
    assert finished(desk) == dict.fromkeys("abcd", "COMPLETED")
    ran = desk.ran.read_text().split()
    assert ran[0] == "a" and ran[-1] == "d" and sorted(ran) == list("abcd")
    desk.finish()
    for job in desk.jobs():
        desk.completed(job)


def test_a_failed_parent_blocks_and_its_retry_sets_them_going(desk: Desk) -> None:
    parent = desk.folder("parent", "exit 3")
    a, = desk.add(parent)
    for name, after, condition in (("child", "parent", "ok"), ("grandchild", "child", "ok"),
                                   ("handler", "parent", "fail"), ("always", "parent", "any"),
                                   ("never", "handler", "fail")):
        add(desk, name, after, condition=condition)
    assert finished(desk) == {"parent": "FAILED", "child": "BLOCKED", "grandchild": "BLOCKED", "handler": "COMPLETED",
                              "always": "COMPLETED", "never": "BLOCKED"}
    why = {job.name: job.why for job in desk.jobs() if job.state == "BLOCKED"}
    assert why == {"child": "blocked by parent (failed)", "grandchild": "blocked by child (blocked)",
                   "never": "blocked by handler (completed)"}
    (parent / "job.sh").write_text("#!/bin/sh\necho parent >>%s\n" % desk.ran)
    assert len(api.retry(desk.home, Selection((a.id,)))) == 3
    assert finished(desk) == {"parent": "COMPLETED", "child": "COMPLETED", "grandchild": "COMPLETED",
                              "handler": "COMPLETED", "always": "COMPLETED", "never": "BLOCKED"}
    assert desk.ran.read_text().split()[-3:] == ["parent", "child", "grandchild"]
    assert desk.lines().count("handler") == 1


def test_a_retry_of_the_child_alone_waits_for_the_parents_newest_attempt(desk: Desk) -> None:
    parent = desk.folder("parent", "exit 3")
    a, = desk.add(parent)
    child = add(desk, "child", "parent")
    finished(desk)
    api.retry(desk.home, Selection((child.id,)))
    assert finished(desk)["child"] == "BLOCKED", "its parent is what it was"
    (parent / "job.sh").write_text("#!/bin/sh\ntrue\n")
    api.retry(desk.home, Selection((a.id,)))
    assert finished(desk) == {"parent": "COMPLETED", "child": "COMPLETED"}
    assert desk.job(child).attempt == 3 and desk.lines().count("child") == 1


def test_a_parent_that_is_not_there_yet(desk: Desk) -> None:
    """It is held here: its child is refused in a clear line, stays ours alone, and goes with a later sync."""
    a = add(desk, "a")
    api.hold(desk.home, Selection((a.id,)))
    child = add(desk, "child", "a")
    report = desk.sync()
    assert [item["why"] for item in report.refused] == ["what it waits for is not on the cluster: a"]
    found = desk.job(child)
    assert (found.state, found.offered, found.acked) == ("QUEUED_LOCAL", 0, 0)
    api.release(desk.home, Selection((a.id,)))
    assert finished(desk) == {"a": "COMPLETED", "child": "COMPLETED"}
    assert desk.ran.read_text().split() == ["a", "child"]


def test_a_parent_taken_back_before_it_was_sent(desk: Desk) -> None:
    a = add(desk, "a")
    add(desk, "child", "a")
    add(desk, "handler", "a", condition="fail")
    api.cancel(desk.home, Selection((a.id,)))
    assert finished(desk) == {"a": "CANCELLED", "child": "BLOCKED", "handler": "COMPLETED"}


def test_a_parent_whose_input_is_gone_takes_its_child_along(desk: Desk) -> None:
    """It was to go in the same session, before its child, and can't be sent after all."""
    folder = desk.folder("a", **{"in.dat": b"x"})
    desk.add(folder)
    child = add(desk, "child", "a")
    (folder / "in.dat").unlink()
    report = desk.sync()
    assert desk.job(child).state == "QUEUED_LOCAL" and desk.job(child).offered == 0
    assert [item["why"] for item in report.refused] == ["what it waits for is not on the cluster: a"]
    (folder / "in.dat").write_bytes(b"x")
    assert finished(desk) == {"a": "COMPLETED", "child": "COMPLETED"}


def test_an_input_that_changes_while_it_is_offered(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent is offered, and skipped when its turn comes: its child, offered behind it, is not taken either."""
    folder = desk.folder("a", **{"in.dat": b"x"})
    desk.add(folder)
    child = add(desk, "child", "a")
    whole = Exchange.open

    def gone(self: Exchange, offer: object, file: object) -> object:
        if getattr(file, "path", b"") == b"in.dat":
            raise OSError(2, "No such file or directory")
        return whole(self, offer, file)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Exchange, "open", gone)
        report = desk.sync()
    assert report.uploaded == 0 and desk.job(child).state == "QUEUED_LOCAL"
    assert [item["why"] for item in report.refused] == ["what it waits for is not on the cluster: a"]
    assert finished(desk) == {"a": "COMPLETED", "child": "COMPLETED"}


@pytest.mark.parametrize("direction", ["sent", "received"])
def test_cut_at_every_frame(desk: Desk, monkeypatch: pytest.MonkeyPatch, direction: str) -> None:
    """A parent and its child: whatever came over, the child runs once, and after its parent."""
    desk.impatient()
    for number in range(40):
        names = ["p%d" % number, "c%d" % number]
        add(desk, names[0])
        add(desk, names[1], names[0])
        cut = CutLocal(**{direction: number})
        with monkeypatch.context() as patch:
            patch.setattr(deploy, "transport_to", lambda *_args, cut=cut, **_more: cut)
            try:
                desk.sync(download=False)
            except errors.ChasquiError:
                pass
        assert set(finished(desk).values()) == {"COMPLETED"}
        if not cut.was_cut:
            break
    assert number > 3 and not cut.was_cut
    ran = desk.ran.read_text().split()
    for name in (job.name for job in desk.jobs()):
        assert ran.count(name) == 1
    assert all(ran.index("p%d" % n) < ran.index("c%d" % n) for n in range(number + 1))


def test_a_root_that_was_purged_knows_nothing_of_the_parent(desk: Desk) -> None:
    """What the ledger proved counts; what it did not does not."""
    good, bad, never = add(desk, "good"), add(desk, "bad", code=1), add(desk, "never")
    api.hold(desk.home, Selection((never.id,)))
    while not (desk.job(good).ended and desk.job(bad).ended):
        desk.sync()
    os.rename(desk.root, desk.path / "purged")  # in one step: the last job's tail may still be at it
    desk.deploy()
    for name in ("good", "bad", "never"):
        add(desk, "after-" + name, name)
    api.cancel(desk.home, Selection((never.id,)))
    found = finished(desk)
    assert {name: found["after-" + name] for name in ("good", "bad", "never")} == {
        "good": "COMPLETED", "bad": "BLOCKED", "never": "BLOCKED"}


def test_cancel_hold_and_release_by_sync(desk: Desk) -> None:
    gate = desk.path / "gate"
    a, = desk.add(desk.folder("a", "while [ ! -e %s ]; do sleep 0.05; done" % gate))
    b, c, d = (add(desk, name, "a") for name in "bcd")
    add(desk, "e", "b")
    desk.sync()
    api.hold(desk.home, Selection((c.id, d.id)))
    api.cancel(desk.home, Selection((b.id,)))
    desk.sync()
    assert states(desk) | {"a": ""} == {"a": "", "b": "CANCELLED", "c": "HELD", "d": "HELD", "e": "BLOCKED"}
    api.release(desk.home, Selection((c.id,)))
    desk.sync()
    assert desk.job(c).state == "UPLOADED", "it waits for its parent again"
    gate.touch()
    while not (desk.job(a).ended and desk.job(c).ended):
        desk.sync()
    assert desk.job(d).state == "HELD"
    api.release(desk.home, Selection((d.id,)))
    assert finished(desk) == {"a": "COMPLETED", "b": "CANCELLED", "c": "COMPLETED", "d": "COMPLETED", "e": "BLOCKED"}
    assert desk.lines() == ["a", "c", "d"]


def test_an_agent_that_knows_nothing_of_it_gets_none(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    add(desk, "a")
    child = add(desk, "child", "a")
    welcome = Exchange.welcome
    with monkeypatch.context() as patch:
        patch.setattr(Exchange, "welcome", lambda self, fields: welcome(self, {**fields, "capabilities": 5}))
        with pytest.raises(errors.VersionsApart) as caught:
            desk.sync(deploy=False)
    assert "--after" in (caught.value.hint or "") and desk.job(child).acked == 0
    assert "after" in serve.CAPABILITIES
    assert finished(desk) == {"a": "COMPLETED", "child": "COMPLETED"}


def test_a_parent_and_its_children_in_several_slices(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "SLICE_JOBS", 3)
    add(desk, "a", priority=-1)
    desk.add(*[desk.folder("c%d" % number) for number in range(10)], after=("a",))
    report = desk.sync()
    assert report.uploaded == 11 and report.refused == []
    assert set(finished(desk).values()) == {"COMPLETED"}
    assert desk.ran.read_text().split()[0] == "a" and len(desk.lines()) == 11
