"""Ends that come together, and ends nobody was told of: how often the server is asked, and who fills the slots then."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.agentroot import AGENT, until
from conftest import Size
from pbs.cluster import Cluster
from pbs.test_relay import PbsRoot

CLIENT = str(Path(__file__).resolve().parents[2] / "client")


@pytest.fixture
def cluster(size: Size) -> Iterator[Cluster]:
    with Cluster(scale=1.0 if size.long else 0.1, ncpus=64, daemon_seconds=2) as made:
        yield made


def wait_at(gate: Path) -> str:
    """Shell text: wait until the gate is there."""
    return "while [ ! -e '%s' ]; do sleep 0.2; done" % gate


def started(root: PbsRoot, names: list[str]) -> int:
    return sum(root.starts(name) == 1 for name in names)


# -- manners -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [8, 300], ids=["short jobs follow", "long jobs follow"])
def test_forty_ends_at_once_cost_three_questions_a_minute(tmp_path: Path, cluster: Cluster, seconds: int) -> None:
    root = PbsRoot(tmp_path / "root", cluster, query_interval=30, grace=300, max_queued=81, max_running=41)
    gate, first, second = tmp_path / "gate", ["a%02d" % n for n in range(40)], ["b%02d" % n for n in range(40)]
    for name in first:
        root.drop(name, text=wait_at(gate), seconds=0.1)
    for name in second + (["c%02d" % n for n in range(40)] if seconds < 30 else []):
        root.drop(name, seconds=seconds)
    root.pump()
    until(lambda: started(root, first) == 40, "forty run", 120)
    # The last round is long past: the first of the forty ends has to ask.
    os.utime(os.path.join(root.path, "snapshot.json"), (1, time.time() - 100))
    since = time.time()
    gate.touch()
    until(lambda: started(root, second) == 40, "every free slot is filled", 120)
    assert time.time() - since < 30, "within one query_interval"
    time.sleep(max(0.0, since + 60 - time.time()))
    asked = [call for call in cluster.calls("qselect", "qstat", since=since) if call[0] < since + 60]
    assert 1 <= len(asked) <= 3, asked


# -- slots that ending jobs still hold ---------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [0, 1], ids=["together", "one after the other"])
def test_ending_jobs_hold_their_slots_for_long_and_all_finish(
        tmp_path: Path, cluster: Cluster, size: Size, apart: int) -> None:
    """A bad -o keeps a job in E, where it counts against the site's limit: a relay by tails alone stops for ever."""
    scale = 1.0 if size.long else 0.1
    cluster.set_server("mock_hide_limits", True)
    cluster.set_server("max_queued", "[u:PBS_GENERIC=6]")
    root = PbsRoot(tmp_path / "root", cluster, query_interval=30 * scale, grace=300 * scale, heartbeat=15)
    gate, names = tmp_path / "gate", ["job%02d" % number for number in range(14)]
    for number, name in enumerate(names):
        root.drop(name, text="%s\nsleep %s" % (wait_at(gate), number * apart * scale), seconds=0.1,
                  directives="#PBS -o /nonexistent/folder/out")
    root.pump()
    until(lambda: started(root, names) >= 5, "as many as the limit lets in, and the heartbeat")
    gate.touch()
    emptied = time.time()
    until(lambda: started(root, names) >= 10, "as many again", 180 * max(scale, 0.5))
    assert time.time() - emptied < 180 * max(scale, 0.5)
    until(lambda: started(root, names) == 14, "the others, without a pump by hand", 600)
    assert root.outcomes()["refused"] > 0, "the limit was never met: this test shows nothing"
    root.finish(14)
    assert [root.starts(name) for name in names] == [1] * 14


# -- ends that nobody was told of --------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_under_a_cap_of_all_jobs_each_follows_the_one_before(tmp_path: Path, cluster: Cluster, most: int) -> None:
    """Its tail counts it, too, and the heartbeat, where there is a place for one, is a quarter of an hour away."""
    root = PbsRoot(tmp_path / "root", cluster, max_total=most)
    names = ["job%d" % number for number in range(4)]
    for name in names:
        root.drop(name, seconds=0.3)
    root.pump()
    until(lambda: started(root, names) == len(names), "all of them, without another pump by hand", 180)


def killed_at_once(root: PbsRoot) -> list[str]:
    """Two jobs that ran and were SIGKILLed together, so that no tail ran; the names of six that wait."""
    for number in range(2):
        root.drop("first%d" % number, seconds=300)
    names = ["job%d" % number for number in range(6)]
    for name in names:
        root.drop(name, seconds=0.1)
    root.pump()
    until(lambda: started(root, ["first0", "first1"]) == 2, "both run")
    root.cluster.kill_all_jobs()
    return names


def test_the_heartbeat_goes_on_where_all_jobs_were_killed(tmp_path: Path, cluster: Cluster) -> None:
    root = PbsRoot(tmp_path / "root", cluster, max_queued=6, max_running=2, heartbeat=0.1)
    names = killed_at_once(root)
    assert len(root.beats()) == 1, "queued at its interval"
    until(lambda: started(root, names) == 6 and root.finished() == 8, "the rest, by itself", 120)
    assert sorted(root.flag(record["job"])[0] for record in root.log() if record["ev"] == "ended") == \
        ["DONE"] * 6 + ["FAIL"] * 2  # fmt: skip
    assert root.outcomes()["stalled"] == 0
    until(lambda: not root.beats(), "no heartbeat where nothing is left to wait for")


def test_a_heartbeat_that_no_cpu_is_free_for_stays_the_only_one(tmp_path: Path) -> None:
    """Each pump armed another one: they took the places of the queue, and armed each other for ever."""
    gate = tmp_path / "gate"
    with Cluster(scale=0.1, ncpus=1, daemon_seconds=0) as cluster:
        root = PbsRoot(tmp_path / "root", cluster, query_interval=1, max_queued=4, max_running=1, heartbeat=15)
        for number in range(6):
            root.drop(f"job{number}", text=f"while [ ! -e {gate} ]; do sleep 0.1; done")
        root.pump()
        until(lambda: root.starts("job0") == 1, "the only cpu is taken")
        (note,) = (tmp_path / "root/heartbeat").glob("hb.*")
        beat = json.loads(note.read_text())
        past = time.localtime(time.time() - 5)
        assert cluster.run("qalter", "-a", time.strftime("%Y%m%d%H%M.%S", past), beat["id"]).returncode == 0
        note.write_text(json.dumps(dict(beat, due=time.time() - 65, made=time.time() - 965)))
        until(lambda: [job["state"] for job in root.beats()] == ["Q"], "its time has come")
        for pause in (1.1, 0, 1.1):  # behind a query interval, and within it
            time.sleep(pause)
            root.pump()
            assert [job["id"] for job in root.beats()] == [beat["id"]]
        gate.touch()
        until(lambda: all(root.starts(f"job{number}") for number in range(6)), "all run, by themselves")
        root.finish(6)
        until(lambda: not root.beats(), "no heartbeat where nothing is left to wait for")


def test_without_a_heartbeat_a_pump_finds_that_the_relay_stood_still(tmp_path: Path, cluster: Cluster) -> None:
    root = PbsRoot(tmp_path / "root", cluster, max_queued=6, max_running=2, heartbeat=0)
    names = killed_at_once(root)
    assert root.beats() == [] and started(root, names) == 0, "nobody is left to wake it"
    until(lambda: "STALLED since" in root.agent("status")[1], "the status says so")
    _told_long_ago(root)
    assert root.pump()["stalled_since"]
    root.finish(8)
    assert [root.starts(name) for name in names] == [1] * 6


def test_at_home_the_status_says_that_it_stands_still_and_a_sync_starts_it_again(
        tmp_path: Path, cluster: Cluster) -> None:
    def chasqui(*words: str) -> str:
        home = {"CHASQUI_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join((CLIENT, AGENT))}
        done = cluster.run(sys.executable, "-m", "chasqui_client", *words, env=home, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (tmp_path / "home").mkdir(0o700)
    (tmp_path / "home/config.toml").write_text(
        f'[remotes.here]\nhost = "local"\nroot = "{tmp_path}/root"\nscheduler = "openpbs"\n'
        "[remotes.here.caps]\nmax_queued = 6\nmax_running = 2\n"
        '[remotes.here.settings]\nquery_interval = 1\nheartbeat = "off"\n')
    ran = tmp_path / "ran"
    for number in range(8):
        (tmp_path / f"job{number}").mkdir()
        (tmp_path / f"job{number}/job.sh").write_text(f"echo {number} >>{ran}\n[ {number} -gt 1 ] || exec sleep 300\n")
    chasqui("add", *(str(tmp_path / f"job{number}") for number in range(8)))
    chasqui("sync")
    until(lambda: ran.exists() and len(ran.read_text().split()) == 2, "two run")
    assert "STALLED" not in chasqui("status")
    cluster.kill_all_jobs()
    said = until(lambda: "STALLED since 20" in (text := chasqui("status")) and text, "the status says so", 30)
    assert "next: chasqui sync  (starts the relay again)" in said and "there now: " in said
    assert "STALLED" not in chasqui("status", "--offline")
    until(lambda: "COMPLETED" in chasqui("sync", "--json") and len(ran.read_text().split()) == 8, "all have run", 60)
    assert sorted(ran.read_text().split()) == list("01234567"), "each once"


def _told_long_ago(root: PbsRoot) -> None:
    """As if the last pump had been a while ago."""
    path = Path(root.path, "state.json")
    state = json.loads(path.read_text())
    path.write_text(json.dumps(dict(state, pumped=state["pumped"] - 300)))


# -- slots -------------------------------------------------------------------------------------------------------------

RUNNING = 4


def share(folder: Path) -> float:
    """Payload-seconds of the slots there were, from the first start to the last, by the payloads' own notes."""
    notes = [dict(line.split()[:2] for line in path.read_text().splitlines()) for path in folder.iterdir()]
    spans = sorted((float(note["start"]), float(note["end"])) for note in notes)
    first, last = spans[0][0], spans[-1][0]
    return sum(max(0.0, min(end, last) - start) for start, end in spans) / (RUNNING * (last - first))


def lengths(count: int) -> list[float]:
    """Of 1 to 3 seconds, never two neighbours alike; of more where they are so many that 300 calls of the scheduler a
    minute, two a job and some refused, would be what limits the relay."""
    least = 1 if count < 60 else 2.5
    return [least + number * 7 % 20 / 10 for number in range(count)]


def ideal(path: Path, count: int) -> float:
    """Everything in the queue from the beginning, and PBS itself lets four run at a time."""
    ran = path / "ideal"
    ran.mkdir()
    with Cluster(ncpus=16) as cluster:
        cluster.set_server("max_run", "[u:PBS_GENERIC=%d]" % RUNNING)
        for number, seconds in enumerate(lengths(count)):
            note = "echo $1 $(date +%%s.%%N) >>'%s/%d'" % (ran, number)
            cluster.submit("#!/bin/sh\nnote() { %s; }\nnote start\nsleep %s\nnote end\n" % (note, seconds))
        until(lambda: sum(path.read_text().count("end") for path in ran.iterdir()) == count, "all have run", 300)
    return share(ran)


def relayed(path: Path, count: int) -> float:
    with Cluster(ncpus=16) as cluster:
        cluster.set_server("max_queued", "[u:PBS_GENERIC=12]")
        root = PbsRoot(path / "root", cluster, query_interval=30, grace=300, max_queued=8, max_running=RUNNING)
        for number, seconds in enumerate(lengths(count)):
            root.drop("job%02d" % number, seconds=seconds)
        root.pump()
        until(lambda: sum(path.read_text().count("end") for path in Path(root.ran).iterdir()) == count, "all", 300)
        until(lambda: all(job["state"] not in "RE" for job in cluster.table()), "the last tails")
    return share(Path(root.ran))


def test_the_relay_keeps_the_slots_as_full_as_an_ideal_feeder(
        tmp_path: Path, size: Size, capsys: pytest.CaptureFixture[str]) -> None:
    """Payloads of 1-3 s are hard on purpose: each end is a wake, a release and a submission. On default intervals."""
    count = 120 if size.long else 48
    best, ours = ideal(tmp_path, count), relayed(tmp_path, count)
    with capsys.disabled():
        print("\nslots in use: relay %.3f, ideal feeder %.3f: %.0f %%" % (ours, best, 100 * ours / best))
    assert ours >= 0.9 * best
