"""Who goes on when a job ends, where compute nodes may not submit: found out once, then by ssh, or at each contact."""

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import needs
from agent.agentroot import AGENT, until
from chasqui_agent import settings
from pbs.cluster import Cluster
from pbs.test_relay import PbsRoot

REFUSAL = "Job submission is not allowed from this host"
# A login host at the other end of ssh: the words are noted, the command runs with nothing of the node's environment.
SSH = """#!/bin/sh
printf '%s\\n' "$*" >>{calls}
[ -e {works} ] || exit 255
for line; do :; done
exec env -i HOME="$HOME" USER="$USER" LOGNAME="$LOGNAME" PATH=/usr/bin:/bin {mark} sh -c "$line"
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A login host that runs no jobs, and a node that may not submit."""
    with Cluster(scale=0.1, daemon_seconds=0, nodes=("pbshost", "node1")) as made:
        made.kill_mom("pbshost")
        made.until(lambda: not made.ask("nodes")["pbshost"]["up"], "only node1 runs jobs")
        made.fault("refuse_hosts", hosts=["node1"], text=REFUSAL)
        yield made


class Site(PbsRoot):
    """A root, and an ssh first on the PATH of its jobs. ssh_works: a file; while it is there, ssh gets through."""

    def __init__(self, folder: Path, cluster: Cluster, python: str = sys.executable, **chosen: object) -> None:
        super().__init__(folder / "root", cluster, python,
                         **{"max_queued": 4, "max_running": 2, "heartbeat": 0, **chosen})
        self.ssh_calls, self.ssh_works, bin_ = folder / "ssh calls", folder / "ssh works", folder / "bin"
        self.gate = folder / "gate"  # jobs end once it is there: not while the pump that began them is at work
        bin_.mkdir()
        mark = next("%s=%s" % item for item in os.environ.items() if item[0] == "CHASQUI_TEST_RUN")
        (bin_ / "ssh").write_text(SSH.format(calls=f"'{self.ssh_calls}'", works=f"'{self.ssh_works}'", mark=mark))
        (bin_ / "ssh").chmod(0o755)
        self.path_first = "%s:%s" % (bin_, cluster.environment["PATH"])

    def agent(self, *argv: str, **more: str) -> tuple[int, str, str]:
        return super().agent(*argv, **{"PATH": self.path_first, **more})

    def drop_all(self, count: int, directives: str = "#PBS -l walltime=00:10:00") -> list[str]:
        names = ["job%02d" % number for number in range(count)]
        text = "while [ ! -e '%s' ]; do sleep 0.05; done" % self.gate
        for name in names:
            self.drop(name, text=text, seconds=0.1, directives=directives)
        return names

    def dialled(self) -> list[str]:
        return self.ssh_calls.read_text().splitlines() if self.ssh_calls.exists() else []

    def submitters(self) -> set[str]:
        """The hosts from which qsub was called."""
        return {call[3] for call in self.cluster.calls("qsub") if "--version" not in call[4]}

    def noticed(self) -> list[dict]:
        return [record for record in self.log() if record["ev"] == "refused"]

    def quiet(self) -> None:
        """Every job has ended and told its end, or is held until a contact; nothing of a wake is left at work."""
        until(lambda: all(job["state"] in "FH" for job in self.cluster.table()), "no job is left that runs")
        until(lambda: not list(self.cluster_processes()), "no wake is left")

    def cluster_processes(self) -> Iterator[int]:
        from pbs.cluster import processes_naming
        return (pid for pid in processes_naming("wake\0--reason") if self.path.encode() in _words(pid))

    def go_on_by_hand(self, names: list[str]) -> int:
        """Pump where one logs in whenever all has come to rest, as syncs would; how many pumps it took."""
        for pumps in range(1, 30):
            self.pump()
            self.quiet()
            if self.finished() == len(names):
                return pumps
            time.sleep(1.1)
        raise AssertionError("thirty pumps, and %d of %d" % (self.finished(), len(names)))


def _words(pid: int) -> bytes:
    try:
        return Path("/proc/%d/cmdline" % pid).read_bytes()
    except OSError:
        return b""


def test_noticed_once_then_each_contact_goes_on(tmp_path: Path, cluster: Cluster) -> None:
    """ssh gets nobody in: tried once. Nothing is rejected or doubted, and what is in PBS is told with its end."""
    root = Site(tmp_path, cluster)
    names = root.drop_all(9)
    assert root.pump()["submitted"] == 4
    root.gate.touch()
    root.quiet()
    assert [(record["kind"], record["text"]) for record in root.noticed()] == [("here", "qsub: " + REFUSAL)]
    assert root.noticed()[0]["where"] == os.uname()[1] and "job" not in root.noticed()[0]
    assert root.submitters() == {"pbshost", "node1"}
    refused_calls = [call for call in cluster.calls("qsub") if call[3] == "node1"]
    assert len(refused_calls) <= 2  # two tails may have been at it before the first had learnt anything
    assert len(root.dialled()) == 1
    assert root.go_on_by_hand(names) >= 2
    assert [root.starts(name) for name in names] == [1] * 9
    assert [call for call in cluster.calls("qsub") if call[3] == "node1"] == refused_calls
    assert len(root.dialled()) == 1 and len(root.noticed()) == 1
    assert root.outcomes()["rejected"] == root.outcomes()["lost"] == root.outcomes()["duplicate"] == 0


def test_status_says_how_long_the_queue_lasts(tmp_path: Path, cluster: Cluster) -> None:
    root = Site(tmp_path, cluster, max_queued=3)
    root.drop("first", seconds=4)
    root.pump()
    assert "compute nodes" not in root.agent("status")[1]
    for number in range(7):
        root.drop("job%d" % number, text="while [ ! -e '%s' ]; do sleep 0.05; done" % root.gate, seconds=0.1,
                  directives="#PBS -l select=1:ncpus=1,walltime=02:00:00")
    root.pump()
    until(lambda: root.noticed(), "the end of the first one was refused on its node")
    time.sleep(1.1)
    root.pump()
    until(lambda: root.starts("job0") and root.starts("job1"), "two run")
    before = time.time()
    status = json.loads(root.agent("status", "--json")[1])
    relay = status["relay"]
    assert (relay["way"], relay["refused_on"], relay["contact"]) == ("sync", os.uname()[1], True)
    assert relay["runnable"] == 2 and relay["held_back"] == status["submitted"] - 2
    # Two at a time: the longest, and the rest of the sum shared out.
    assert abs(relay["lasts"] - before - 3 * 3600) < 120
    said = root.agent("status")[1]
    assert "compute nodes may not submit here: the relay goes on at each sync" in said
    assert "what is submitted now lasts until" in said
    assert re.search(r" [0-2]\d:[0-5]\d \(2 jobs, by their walltimes\)", said)
    assert root.beats() == []
    root.gate.touch()
    root.quiet()


@pytest.mark.parametrize("version", ["3.6", "this one"])
def test_by_ssh_the_relay_goes_on_alone(tmp_path: Path, cluster: Cluster, version: str) -> None:
    """The first refusal tries it, the pump at its other end finds that it works, and all later ends go that way."""
    python = sys.executable if version == "this one" else needs.python36() or needs.missing("Python 3.6")
    root = Site(tmp_path, cluster, python, heartbeat=15)
    root.ssh_works.touch()
    names = root.drop_all(12)
    root.pump()
    root.gate.touch()
    until(lambda: all(root.starts(name) for name in names), "all of them, by the tails alone", 120)
    root.finish(12)
    assert [root.starts(name) for name in names] == [1] * 12
    assert len(root.noticed()) == 1 and root.outcomes()["rejected"] == 0
    assert "ssh" in {record["reason"] for record in root.log() if record["ev"] == "pumped"}
    for line in root.dialled():
        assert "-o BatchMode=yes -o ConnectTimeout=10" in line and " -- %s env " % os.uname()[1] in line
    root.quiet()
    last = max(call[0] for call in cluster.calls("qsub") if call[3] == "node1")
    assert sum(1 for call in cluster.calls("qsub") if call[0] > last and call[3] == "pbshost") >= 4


def test_told_to_go_by_ssh_no_node_ever_tries(tmp_path: Path, cluster: Cluster) -> None:
    root = Site(tmp_path, cluster, wake_via="ssh:someone@login.site")
    root.ssh_works.touch()
    names = root.drop_all(8)
    root.pump()
    root.gate.touch()
    until(lambda: all(root.starts(name) for name in names), "all of them, by the tails alone", 120)
    root.finish(8)
    assert root.submitters() == {"pbshost"} and root.noticed() == []
    assert all(" -- someone@login.site env " in line for line in root.dialled()) and root.dialled()
    assert "by ssh to someone@login.site" in root.agent("status")[1]


def test_an_ssh_that_fails_leaves_the_request(tmp_path: Path, cluster: Cluster) -> None:
    root = Site(tmp_path, cluster, wake_via="ssh:login.site")
    names = root.drop_all(6)
    root.pump()
    root.gate.touch()
    root.quiet()
    assert [name for name in os.listdir(root.spool.wake) if name.startswith("kick.")] and root.dialled()
    root.ssh_works.touch()
    assert root.go_on_by_hand(names) >= 1
    assert [root.starts(name) for name in names] == [1] * 6


def test_told_to_wait_for_contacts_nothing_wakes(tmp_path: Path, cluster: Cluster) -> None:
    """No pump, no query, no beat on any node; the ends are noted, and the next contact counts them."""
    cluster.clear()
    root = Site(tmp_path, cluster, wake_via="sync", heartbeat=0.02)
    names = root.drop_all(5, directives="")
    root.pump()
    since = time.time()
    root.gate.touch()
    root.quiet()
    assert [call for call in cluster.calls(since=since) if call[3] == "node1"] == []
    assert sum(name.startswith("ev.tail") for name in os.listdir(root.spool.wake)) == 2
    assert root.beats() == []
    said = root.agent("status")[1]
    assert "wake_via is sync: the relay goes on at each sync; nothing that could run is submitted" in said
    root.go_on_by_hand(names)
    assert root.dialled() == [] and root.noticed() == []


def test_the_heartbeat_goes_on_by_ssh(tmp_path: Path, cluster: Cluster) -> None:
    """All jobs die at once; a beat on a node that may not submit has the login host go on, and make the next one."""
    root = Site(tmp_path, cluster, wake_via="ssh:login.site", max_running=3, max_queued=6, heartbeat=0.05)
    root.ssh_works.touch()
    for number in range(2):
        root.drop("long%d" % number, seconds=300)
    root.pump()
    until(lambda: root.starts("long0") and root.starts("long1"), "both run")
    names = root.drop_all(4)
    root.gate.touch()
    cluster.kill_all_jobs()
    until(lambda: all(root.starts(name) == 1 for name in names) and root.finished() == 6, "the rest, by itself", 120)
    until(lambda: not root.beats(), "no heartbeat where nothing is left to wait for")
    assert root.submitters() == {"pbshost"}


def test_a_node_that_may_submit_again_or_another_setting_is_another_try(tmp_path: Path, cluster: Cluster) -> None:
    root = Site(tmp_path, cluster)
    names = root.drop_all(6)
    root.pump()
    root.gate.touch()
    until(lambda: root.noticed(), "refused")
    root.quiet()
    state = Path(root.path, "state.json")
    assert json.loads(state.read_text())["wake_via"]["refused"] == os.uname()[1]
    cluster.clear()
    words = [root.python, "-I", "-S", os.path.join(AGENT, "chasqui_agent"), "--root", root.path, "pump"]
    job = cluster.run(*words, node="node1", env={"PBS_JOBID": "1.pbshost", "PATH": root.path_first})
    assert job.returncode == 0 and "submitted" in job.stdout, job.stdout
    assert "wake_via" not in json.loads(state.read_text())
    assert "compute nodes" not in root.agent("status")[1]
    until(lambda: all(root.starts(name) for name in names), "its tails go on alone again", 120)


def test_a_login_host_that_is_refused_says_nothing_of_nodes(tmp_path: Path, cluster: Cluster) -> None:
    cluster.fault("refuse_hosts", hosts=["pbshost"], text=REFUSAL)
    root = Site(tmp_path, cluster)
    names = root.drop_all(3)
    root.gate.touch()
    report = root.pump()
    assert REFUSAL in report["refused"] and report["submitted"] == 0 and report["note"] == ""
    assert "compute nodes" not in root.agent("status")[1]
    assert root.noticed()[0]["kind"] == "other" and root.outcomes()["rejected"] == 0
    cluster.clear()
    time.sleep(1.1)
    root.finish(3)
    assert [root.starts(name) for name in names] == [1] * 3


def test_the_users_own_epilogue_goes_on_where_the_jobs_were_killed(tmp_path: Path) -> None:
    """On a Torque: no tail ran, there is no heartbeat, and nobody pumps by hand."""
    with Cluster(scale=0.1, dialect="torque") as cluster:
        root = PbsRoot(tmp_path / "root", cluster, max_running=2, heartbeat=0)
        settings.change(root.spool, scheduler="torque")
        for name in ("one", "two"):
            root.drop(name, seconds=300)
        root.pump()
        until(lambda: root.starts("one") and root.starts("two"), "they run")
        root.drop("next", seconds=0.1)
        root.pump()
        assert root.starts("next") == 0
        cluster.kill_all_jobs()
        until(lambda: root.starts("next"), "the next one, by itself", 120)
        assert "epilogue" in [record.get("reason") for record in root.log() if record["ev"] == "pumped"]
        root.finish(3)


def test_where_the_site_takes_no_epilogue_the_jobs_go_without(tmp_path: Path) -> None:
    with Cluster(scale=0.1, dialect="torque") as cluster:
        cluster.set_server("mock_refuse_epilogue", True)
        root = PbsRoot(tmp_path / "root", cluster, max_running=2)
        settings.change(root.spool, scheduler="torque")
        names = ["job%d" % number for number in range(8)]
        for name in names:
            root.drop(name, seconds=0.1)
        root.pump()
        until(lambda: all(root.starts(name) for name in names), "all, by their tails", 120)
        root.finish(8)
        assert [root.starts(name) for name in names] == [1] * 8 and root.outcomes()["rejected"] == 0
        refused = len(cluster.calls("qsub")) - root.outcomes()["submitted"] - len(_beats(cluster))
        assert 1 <= refused <= 2  # two, where the next one's runner was written meanwhile
        assert "takes no -l epilogue=" in root.agent("doctor")[1]


def _beats(cluster: Cluster) -> list[object]:
    return [call for call in cluster.calls("qsub") if "/heartbeat/" in call[4][-1]]


def test_an_epilogue_of_her_own_is_the_one_that_runs(tmp_path: Path) -> None:
    with Cluster(scale=0.1, dialect="torque") as cluster:
        root = PbsRoot(tmp_path / "root", cluster)
        settings.change(root.spool, scheduler="torque")
        mine, told = tmp_path / "mine", tmp_path / "told"
        mine.write_text('#!/bin/sh\necho "$4 ${10}" >>%s\n' % told)
        mine.chmod(0o700)
        root.drop("hers", seconds=0.1, directives="#PBS -l nodes=1:ppn=1,epilogue=%s" % mine)
        root.drop("plain", seconds=0.1)
        root.pump()
        root.finish(2)
        until(told.exists, "it has run")
        assert told.read_text().startswith("hers") and told.read_text().endswith(" 0\n")
        assert len(told.read_text().splitlines()) == 1
