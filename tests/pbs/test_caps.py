"""Caps and good manners over PBS: limits published and learnt, a site that allows one job, short budgets, a silent
scheduler.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import needs
from agent.agentroot import until
from chasqui_agent import linger, settings
from chasqui_client import deploy, errors
from chasqui_client.config import Remote
from chasqui_client.transport import Local
from pbs.cluster import Cluster, processes_naming
from pbs.test_relay import PbsRoot, Sampler
from session.desk import Desk

GATE = "while [ ! -e '%s' ]; do sleep 0.05; done"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.1, daemon_seconds=0) as made:
        yield made


def submissions(cluster: Cluster, since: float) -> int:
    return len(cluster.calls("qsub", since=since))


def state(root: PbsRoot) -> dict:
    return json.loads(Path(root.path, "state.json").read_text())


def alone(root: PbsRoot) -> None:
    """Wait until no process of the root is left: whoever stayed has gone."""
    until(lambda: not [pid for pid in processes_naming(root.path + "/") if pid != os.getpid()], "all have gone", 120)


# -- limits that are published -----------------------------------------------------------------------------------------


def test_where_the_site_publishes_its_limits_none_is_ever_met(tmp_path: Path, cluster: Cluster) -> None:
    cluster.set_server("max_queued", "[u:PBS_GENERIC=6]")
    cluster.set_queue("max_queued", "[p:PBS_GENERIC=9],[p:ab12=2]")
    # It is asked at every round: what the relay counts is what the site counts, and nothing but that is tested here.
    root, gate = PbsRoot(tmp_path / "root", cluster, query_interval=0, heartbeat=0), tmp_path / "gate"
    names = ["job%02d" % number for number in range(10)]
    for number, name in enumerate(names):
        root.drop(name, text=GATE % gate, seconds=0.1, directives="#PBS -P ab12" if number < 5 else "")
    assert root.pump()["submitted"] == 6
    said = root.agent("status")[1]
    assert "the site publishes: at most 6 jobs\n" in said
    assert "scripts wait: the site allows 2 jobs of project ab12 in queue workq\n" in said
    assert "the site allows 6 jobs" in root.agent("why", "job09")[1]
    assert "the site allows 2 jobs of project ab12 in queue workq" in root.agent("why", "job03")[1]
    with Sampler(root) as sampler:
        gate.touch()
        root.finish(10)
    assert sampler.live <= 6 and sampler.of_project <= 2
    assert root.outcomes()["refused"] == 0 and state(root)["site_limits"] == {}
    assert len(listings(cluster)) == 2  # one of the server, one of its queues


def listings(cluster: Cluster) -> list:
    return [call for call in cluster.calls("qstat") if set(call[4]) & {"-Bf", "-Qf"}]


def test_a_sync_with_nothing_to_do_asks_for_no_limits(tmp_path: Path, cluster: Cluster) -> None:
    root = PbsRoot(tmp_path / "root", cluster)
    root.pump()
    assert listings(cluster) == []
    root.drop("one")
    root.finish(1)
    time.sleep(1.1)
    root.pump()
    assert len(listings(cluster)) == 2


def test_own_caps_by_project_and_queue_hold(tmp_path: Path, cluster: Cluster) -> None:
    caps = {"projects": {"ab12": 2}, "queues": {"workq": 6}}
    root = PbsRoot(tmp_path / "root", cluster, query_interval=0, heartbeat=0, **caps)
    names = ["job%02d" % number for number in range(16)]
    for number, name in enumerate(names):
        root.drop(name, seconds=0.3, directives="#PBS -P ab12" if number % 2 else "")
    with Sampler(root) as sampler:
        root.pump()
        root.finish(16)
    assert sampler.of_project <= 2 and sampler.live <= 6
    assert [root.starts(name) for name in names] == [1] * 16 and root.outcomes()["refused"] == 0


def test_arrays_count_by_element_against_a_published_limit(tmp_path: Path, cluster: Cluster) -> None:
    cluster.set_queue("max_queued", "[u:PBS_GENERIC=5]")
    root, gate = PbsRoot(tmp_path / "root", cluster, query_interval=0, heartbeat=0), tmp_path / "gate"
    root.drop("a", text=GATE % gate, seconds=0.1, directives="#PBS -J 1-4")
    root.drop("b", text=GATE % gate, seconds=0.1, directives="#PBS -J 1-2")
    root.drop("c", text=GATE % gate, seconds=0.1)
    assert root.pump()["submitted"] == 2  # the four of one and a single job
    with Sampler(root) as sampler:
        gate.touch()
        root.finish(3)
    assert sampler.live <= 5 and root.outcomes()["refused"] == 0


# -- limits that are learnt --------------------------------------------------------------------------------------------


def hidden(cluster: Cluster, attribute: str, value: str) -> None:
    """A limit that the site does not publish."""
    cluster.set_server("mock_hide_limits", True)
    cluster.set_server(attribute, value)


def test_a_limit_once_met_is_not_run_into_again(tmp_path: Path, cluster: Cluster) -> None:
    hidden(cluster, "max_queued", "[u:PBS_GENERIC=6]")
    root, gate = PbsRoot(tmp_path / "root", cluster), tmp_path / "gate"
    names = ["job%02d" % number for number in range(14)]
    for name in names:
        root.drop(name, text=GATE % gate, seconds=0.1)
    assert root.pump()["submitted"] == 5  # and the heartbeat
    assert state(root)["site_limits"]["*"][0] == 6
    assert re.search(r"site limit 6 \(learnt \d\d:\d\dZ\)", root.agent("status")[1])
    assert [pumped(root, cluster) for _ in range(2)] == [(0, 0)] * 2
    with Sampler(root) as sampler:
        gate.touch()
        until(lambda: all(root.starts(name) == 1 for name in names), "the others, without a pump by hand", 120)
    assert sampler.live <= 6
    root.finish(14)
    assert state(root)["site_limits"]["*"][0] == 6


def test_a_limit_is_tried_again_after_an_hour(tmp_path: Path, cluster: Cluster) -> None:
    hidden(cluster, "max_queued", "[u:PBS_GENERIC=4]")
    root, gate = PbsRoot(tmp_path / "root", cluster), tmp_path / "gate"
    for number in range(9):
        root.drop("job%d" % number, text=GATE % gate, seconds=0.1)
    assert root.pump()["submitted"] == 3
    cluster.set_server("max_queued", "[u:PBS_GENERIC=5]")
    learnt(root, 4, hours=1)
    assert pumped(root, cluster) == (1, 2)  # it was raised, by one
    assert state(root)["site_limits"]["*"][0] == 5
    assert pumped(root, cluster) == (0, 0)
    learnt(root, 5, hours=1)
    assert pumped(root, cluster) == (0, 1)  # and not again
    assert state(root)["site_limits"]["*"][0] == 5
    assert pumped(root, cluster) == (0, 0)
    gate.touch()
    root.finish(9)


def learnt(root: PbsRoot, limit: int, hours: int) -> None:
    """As if the limit had been learnt so long ago."""
    value = dict(state(root), site_limits={"*": [limit, time.time() - 3600 * hours - 60]})
    Path(root.path, "state.json").write_text(json.dumps(value))


def pumped(root: PbsRoot, cluster: Cluster) -> tuple[int, int]:
    """(submitted, calls of qsub) by a pump that asks afresh."""
    time.sleep(1.1)
    before = time.time()
    return root.pump()["submitted"], submissions(cluster, before)


def test_a_full_queue_does_not_hold_up_the_others(tmp_path: Path, cluster: Cluster) -> None:
    cluster.set_server("mock_hide_limits", True)
    cluster.qmgr("create queue small")
    for attribute, value in (("enabled", True), ("started", True), ("max_queued", "[u:PBS_GENERIC=4]")):
        cluster.set_queue(attribute, value, "small")
    root, gate = PbsRoot(tmp_path / "root", cluster, heartbeat=0, max_queued=6), tmp_path / "gate"
    for number in range(12):
        root.drop("a%02d" % number, text=GATE % gate, seconds=0.1, directives="#PBS -q small")
    root.drop("b", seconds=0.1)
    root.pump()
    assert root.outcomes()["refused"] == 1
    assert state(root)["site_limits"] == {"small": [4, state(root)["site_limits"]["small"][1]]}
    time.sleep(1.1)
    root.pump()  # the limit is known now: it looks behind those that can't be let in
    until(lambda: root.starts("b"), "the other queue's job")
    assert sum(root.starts("a%02d" % number) for number in range(12)) <= 4
    assert "site limit in queue small 4" in root.agent("status")[1]
    gate.touch()
    root.finish(13)


# -- one job a user ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "hide"), [("3.6", True), ("this one", False)])
def test_five_jobs_go_on_alone_where_the_site_allows_one(
        tmp_path: Path, cluster: Cluster, version: str, hide: bool) -> None:
    cluster.set_server("mock_hide_limits", hide)
    cluster.set_server("max_queued", "[u:PBS_GENERIC=1]")
    chosen = {} if version == "this one" else {"python": needs.python36() or needs.missing("Python 3.6")}
    root = PbsRoot(tmp_path / "root", cluster, **chosen)
    names = ["job%d" % number for number in range(5)]
    for name in names:
        root.drop(name, seconds=0.3)
    assert root.pump()["submitted"]
    assert root.beats() == []
    assert "heartbeat: off, a limit leaves no place" in root.agent("status")[1]
    until(lambda: all(root.starts(name) == 1 for name in names), "all five, one by one", 120)
    alone(root)
    root.finish(5)
    assert root.outcomes()["stalled"] == 0 and root.beats() == []


@pytest.mark.parametrize("hide", [True, False], ids=["learnt", "published"])
def test_a_job_that_ends_for_long_is_waited_for_by_one_process(tmp_path: Path, cluster: Cluster, hide: bool) -> None:
    """32 s in E with a bad -o, here 3.2: several tries, one at a time, then none is left."""
    cluster.set_server("mock_hide_limits", hide)
    cluster.set_server("max_queued", "[u:PBS_GENERIC=1]")
    root = PbsRoot(tmp_path / "root", cluster, query_interval=30)
    for name in ("first", "second"):
        root.drop(name, seconds=0.1, directives="#PBS -o /nonexistent/folder/out")
    root.pump()
    before, most = time.time(), 0

    def begun() -> bool:
        nonlocal most
        lingering = [pid for pid in processes_naming(root.path) if b"_linger" in command_line(pid)]
        most = max(most, len(lingering))
        return root.starts("second") == 1

    until(begun, "the second, after the first has gone", 120)
    assert most >= 1
    alone(root)
    assert submissions(cluster, before) <= 2 * len(linger.PAUSES)


def command_line(pid: int) -> bytes:
    try:
        return Path("/proc/%d/cmdline" % pid).read_bytes()
    except OSError:
        return b""


# -- max_running left to the site --------------------------------------------------------------------------------------


def test_without_holds_the_site_keeps_the_running_ones_down(tmp_path: Path, cluster: Cluster) -> None:
    cluster.set_server("max_run", "[u:PBS_GENERIC=2]")
    root, gate = PbsRoot(tmp_path / "root", cluster, max_running=1, max_queued=5, heartbeat=0), tmp_path / "gate"
    for number in range(5):
        root.drop("job%d" % number, text=GATE % gate, seconds=0.1)
    root.pump()

    def states() -> str:
        return "".join(sorted(job["state"] for job in cluster.table() if job["state"] != "F"))

    until(lambda: states() == "HHHHR", "one runs, by our own cap")
    settings.change(root.spool, running_cap="site")
    time.sleep(1.1)
    assert root.pump()["released"] == 4
    until(lambda: states() == "QQQRR", "two run, by the site's")
    gate.touch()
    root.finish(5)


# -- budgets -----------------------------------------------------------------------------------------------------------


def test_a_wake_keeps_to_its_budget_though_the_scheduler_hangs(tmp_path: Path, cluster: Cluster) -> None:
    root = PbsRoot(tmp_path / "root", cluster)
    for number in range(3):
        root.drop("job%d" % number)
    with cluster.faulty("hung"):
        began = time.monotonic()
        assert root.agent("wake", "--budget", "4")[0] == 0
        assert time.monotonic() - began < 20  # a query alone may take 30 s, where there is time
        assert [name for name in os.listdir(root.spool.wake) if name.startswith("kick.")]
    assert root.outcomes()["submitted"] == 0
    root.finish(3)
    assert [root.starts("job%d" % number) for number in range(3)] == [1] * 3


def test_no_submission_is_begun_that_the_budget_has_no_room_for(tmp_path: Path, cluster: Cluster) -> None:
    root = PbsRoot(tmp_path / "root", cluster, grace=2, heartbeat=0)
    for number in range(3):
        root.drop("job%d" % number)
    before = time.time()
    with cluster.faulty("slow_qsub", seconds=3):
        root.agent("wake", "--budget", "4")
        root.finish(3)
    assert [root.starts("job%d" % number) for number in range(3)] == [1] * 3
    assert submissions(cluster, before) <= 5


# -- a session with a silent scheduler ---------------------------------------------------------------------------------


def test_journal_and_results_come_though_the_scheduler_is_silent(
        tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    desk = Desk(tmp_path)
    desk.remote = desk.remote.__class__("here", "local", str(desk.root), scheduler="openpbs",
                                        settings=desk.remote.settings)  # fmt: skip
    desk.deploy()
    done, = desk.add(desk.folder("done"))
    desk.sync()
    until(lambda: cluster.table() and all(job["state"] == "F" or job["name"].startswith("beat.")
                                          for job in cluster.table()), "the job has ended")
    later, = desk.add(desk.folder("later"))
    time.sleep(1.1)  # else it need not ask, and waits for a submission to end: cut short, its outcome is unknown
    with cluster.faulty("hung", seconds=60):
        began = time.monotonic()
        report = desk.sync()
        assert time.monotonic() - began < 50  # ten for the query; the server comes back after sixty
        assert desk.job(later).state == "UPLOADED"
        assert any("does not answer" in note for note in report.notes), report.notes
        assert desk.job(done).state in ("RUNNING", "COMPLETED")
        lingering = [pid for pid in processes_naming(str(desk.root)) if b"_linger" in command_line(pid)]
        assert len(lingering) <= 1
    until(lambda: desk.lines() == ["done", "later"], "the other one, without another sync", 120)
    desk.finish()
    for job in (done, later):
        desk.completed(job)


# -- which scheduler ---------------------------------------------------------------------------------------------------


def test_a_new_root_finds_the_scheduler_of_its_host(tmp_path: Path, cluster: Cluster) -> None:
    root = PbsRoot(tmp_path / "root", cluster)
    for place, path, expected in (("with", "", "openpbs"), ("without", "/usr/bin:/bin", "shell")):
        root.path = str(tmp_path / place)
        code, _, err = root.agent("install", **({"PATH": path, "PBS_CONF_FILE": "/nonexistent"} if path else {}))
        assert (code, err) == (0, "")
        assert json.loads(Path(root.path, "config.json").read_text())["scheduler"] == expected
        assert root.agent("install")[0] == 0  # what a root has it keeps
        assert json.loads(Path(root.path, "config.json").read_text())["scheduler"] == expected


def test_a_torque_is_found_by_its_version(tmp_path: Path) -> None:
    with Cluster(scale=0.1, dialect="torque") as cluster:
        root = PbsRoot(tmp_path / "root", cluster)
        root.path = str(tmp_path / "new")
        assert root.agent("install")[0] == 0
        assert json.loads(Path(root.path, "config.json").read_text())["scheduler"] == "torque"
        code, out, _ = root.agent("doctor")
        assert code == 0 and "torque: Torque 6.1.2, commands in" in out and "server pbshost answers" in out


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A folder with somebody else's qsub: Grid Engine's."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "qsub").write_text("#!/bin/sh\necho 'qsub: ERROR! invalid option argument \"--version\"' >&2\nexit 1\n")
    (place / "qsub").chmod(0o755)
    return place


def test_another_kind_of_qsub_is_named_and_not_used(tmp_path: Path, cluster: Cluster, strange: Path) -> None:
    root = PbsRoot(tmp_path / "root", cluster)
    root.path = str(tmp_path / "new")
    code, _, err = root.agent("install", PATH="%s:/usr/bin:/bin" % strange)
    assert code == 1 and "%s/qsub is not OpenPBS's" % strange in err and 'scheduler = "shell"' in err
    assert not os.path.exists(root.path)
    assert root.agent("install", "--scheduler", "shell", PATH="%s:/usr/bin:/bin" % strange)[0] == 0


def test_a_deployment_finds_the_scheduler_too(
        tmp_path: Path, cluster: Cluster, strange: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deployed(name: str, host: str, **chosen: str) -> str:
        remote = Remote(name, host, str(tmp_path / name), **chosen)
        deploy.ensure(Local(), remote)
        return json.loads((tmp_path / name / "config.json").read_text())["scheduler"]

    monkeypatch.setenv("PBS_CONF_FILE", str(cluster.conf()))
    assert deployed("hpc", "hpc") == "openpbs"  # its commands are not on PATH, and found
    assert deployed("here", "local") == "shell"
    assert deployed("chosen", "hpc", scheduler="shell") == "shell"
    monkeypatch.setenv("PATH", "%s:%s" % (strange, os.environ["PATH"]))
    with pytest.raises(errors.UnsupportedScheduler) as failure:
        deployed("other", "hpc")
    assert "%s/qsub is not" % strange in str(failure.value) and "[remotes.other]" in (failure.value.hint or "")
    assert deployed("told", "hpc", pbs_bin=str(cluster.exec / "bin")) == "openpbs"
