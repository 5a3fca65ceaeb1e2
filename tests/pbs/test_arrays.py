"""Job arrays over PBS: each element once, caps by element, one outcome for the whole whatever becomes of an element."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import needs
from agent.agentroot import until
from chasqui_agent import deliver, marks
from pbs.cluster import Cluster
from pbs.test_relay import PbsRoot, Sampler


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.1, daemon_seconds=2) as made:
        yield made


class ArrayRoot(PbsRoot):
    """Drops arrays whose elements note their starts and ends as NAME.INDEX."""

    def array(self, name: str, indices: str, text: str = "", seconds: float = 0.2, directives: str = "") -> None:
        note = "note() { echo \"$1 $(date +%%s.%%N)\" >> '%s/%s'.$PBS_ARRAY_INDEX; }" % (self.ran, name)
        body = [note, "note start", "sleep %s" % seconds, text, "note end", ""]
        self.drop_text(name + ".sh", "\n".join(["#!/bin/sh", "#PBS -J " + indices, directives, *body]))

    def began(self, name: str, *indices: int) -> list[int]:
        return [self.starts("%s.%d" % (name, index)) for index in indices]

    def settle(self, *names: str) -> None:
        """Pump now and then, as syncs would, until these attempts have ended."""
        ended = [lambda name=name: self.spool.settled_state(name, 1) for name in names]
        until(lambda: all(one() for one in ended) or (time.sleep(1.1), self.pump(), all(one() for one in ended))[-1],
              "%s settled" % (names,), 120)

    def end_of(self, name: str) -> dict:
        return self.events(name, "ended", "cancelled")[0]

    def states(self, name: str) -> list[tuple[str, int | None, str]]:
        return [(row["state"], row["exit"], row["indices"]) for row in self.end_of(name)["elements"]["states"]]

    def parent(self) -> str:
        """The id of the one array there is."""
        return next(job["id"] for job in self.cluster.table() if job["array"])

    def element(self, index: int) -> str:
        return self.parent().replace("[]", "[%d]" % index)

    def why_rejected(self, name: str) -> str:
        return Path(self.spool.entry_path("rejected", name, 1, suffix="err")).read_text()


@pytest.mark.parametrize("version", ["3.6", "this one"])
def test_arrays_and_single_jobs_run_once_under_the_caps(
        tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str], version: str) -> None:
    python = sys.executable if version == "this one" else needs.python36() or needs.missing("Python 3.6")
    root = ArrayRoot(tmp_path / "root", cluster, python, max_queued=8, max_running=6, heartbeat=0)
    singles = ["job%d" % number for number in range(10)]
    for number, name in enumerate(singles):
        root.drop(name, seconds=0.2 + number % 3 * 0.2)
        if number in (1, 4):
            root.array("job%dsix" % number, "1-6", directives="#PBS -l select=1:ncpus=1")
        if number == 6:  # in the order of their names
            root.array("job6four", "0-6:2%2", seconds=0.4)
    runs = [(name, index) for name in ("job1six", "job4six") for index in range(1, 7)]
    runs += [("job6four", index) for index in (0, 2, 4, 6)]
    with Sampler(root) as sampler:
        root.pump()
        until(lambda: all(root.began(*run) == [1] for run in runs) and all(map(root.starts, singles)),
              "every payload started, by the tails alone", 120)
        root.finish(13)
    assert [root.began(*run) for run in runs] == [[1]] * 16 and [root.starts(name) for name in singles] == [1] * 10
    assert [root.flag(name)[0] for name in ("job1six", "job4six", "job6four")] == ["DONE"] * 3
    assert root.states("job6four") == [("done", 0, "0-6:2")]
    assert sampler.samples > 20 and sampler.payloads <= 6 and sampler.waiting <= 8
    with capsys.disabled():
        print("\narrays over PBS: %d samples, at most %d payloads of 6, %d waiting of 8, %d live" %
              (sampler.samples, sampler.payloads, sampler.waiting, sampler.live))


def test_elements_claim_apart_and_have_their_own_output(tmp_path: Path, cluster: Cluster) -> None:
    """qsub -J gives every element the same -v, and so the same token."""
    root = ArrayRoot(tmp_path / "root", cluster)
    root.array("arr", "1-3", text="echo I am $PBS_ARRAY_INDEX of $PBS_ARRAY_ID, $PBS_JOBID; cat $PBS_O_WORKDIR/none")
    root.pump()
    parent = root.parent()
    root.settle("arr")
    meta = Path(root.spool.meta_dir("arr", 1))
    token = next(meta.glob("*.id")).stem
    claims = {path.name: path.readlink() for path in meta.glob("claim.*")}
    assert claims == {"claim." + token: Path(parent),
                      **{"claim.%s.%d" % (token, i): Path(parent.replace("[]", "[%d]" % i)) for i in (1, 2, 3)}}
    for index in (1, 2, 3):
        said = (meta / ("%s.%d.out" % (token, index))).read_text()
        assert said == "I am %d of %s, %s\n" % (index, parent, parent.replace("[]", "[%d]" % index))
        assert "No such file" in (meta / ("%s.%d.err" % (token, index))).read_text()
    assert root.outcomes()["duplicate"] == 0
    listing = deliver.listing(root.spool, ("arr", 1), root.spool.job_record("arr", 1).get("ledger"))
    names = ["arr.%s%s.%d" % (letter, parent.partition("[")[0], index) for letter in "oe" for index in (1, 2, 3)]
    assert listing and {(row[0], row[4]) for row in listing.files} == {(name, "log") for name in names}
    submitted = next(call[4] for call in cluster.calls("qsub") if "%s/runner.%s" % (meta, token) in call[4])
    assert submitted[submitted.index("-r") + 1] == "y"  # PBS: "cannot submit non-rerunable Array Job"


def test_a_folder_for_output_gets_a_file_an_element(tmp_path: Path, cluster: Cluster) -> None:
    root = ArrayRoot(tmp_path / "root", cluster)
    root.array("arr", "1-2", text="mkdir -p logs; echo $PBS_ARRAY_INDEX",
               directives="#PBS -N her.own -j oe\n#PBS -o ./logs/")
    root.pump()
    root.settle("arr")
    logs = Path(root.spool.work_dir("arr", 1), "logs")
    assert sorted(path.read_text() for path in logs.iterdir()) == ["1\n", "2\n"]
    listing = deliver.listing(root.spool, ("arr", 1), root.spool.job_record("arr", 1).get("ledger"))
    assert {(row[0], row[4]) for row in listing.files} == {("logs/" + path.name, "log") for path in logs.iterdir()}


def test_elements_of_a_held_array_report_q_and_count_as_held(tmp_path: Path, cluster: Cluster) -> None:
    root = ArrayRoot(tmp_path / "root", cluster, max_queued=6, max_running=5, heartbeat=0)
    root.drop("a_long", text="while [ ! -e '%s/gate' ]; do sleep 0.05; done" % tmp_path, seconds=0.1)
    root.array("arr", "1-5")
    root.pump()
    until(lambda: root.starts("a_long"), "it runs")
    parent = root.parent()
    root.pump()
    assert cluster.run("qselect", "-T", "-s", "H").stdout == ""
    assert len(cluster.run("qselect", "-T", "-s", "Q").stdout.split()) == 5
    time.sleep(1.1)
    root.pump()
    assert cluster.job(parent)["state"] == "H" and root.began("arr", 1, 2, 3, 4, 5) == [0] * 5
    (tmp_path / "gate").touch()
    until(lambda: root.began("arr", 1, 2, 3, 4, 5) == [1] * 5, "all five at once, by the tail")
    root.settle("arr", "a_long")


def test_an_array_larger_than_a_cap_is_rejected_with_what_it_needs(tmp_path: Path, cluster: Cluster) -> None:
    root = ArrayRoot(tmp_path / "root", cluster, max_queued=6, max_running=6)
    root.array("six", "1-6")
    root.array("five", "1-9:2")
    root.drop("single")
    root.pump()
    words = "an array of 6 elements goes whole, and needs max_queued = 7, 1 of them for the heartbeat; it is 6\n"
    assert root.why_rejected("six") == words
    root.settle("five", "single")
    assert root.began("five", 1, 3, 5, 7, 9) == [1] * 5 and root.starts("single") == 1


def test_a_range_that_pbs_does_not_take_is_rejected_in_its_words(tmp_path: Path, cluster: Cluster) -> None:
    root = ArrayRoot(tmp_path / "root", cluster)
    root.array("bad", "5-5")
    root.pump()
    assert "illegal -J value" in root.why_rejected("bad")


@pytest.mark.parametrize("history", [True, False])
def test_an_element_that_fails(tmp_path: Path, history: bool) -> None:
    with Cluster(scale=0.1, daemon_seconds=2, history=history) as cluster:
        root = ArrayRoot(tmp_path / "root", cluster)
        root.array("arr", "1-4", text="[ $PBS_ARRAY_INDEX != 2 ] || exit 7; [ $PBS_ARRAY_INDEX != 4 ] || exit 9")
        root.pump()
        root.settle("arr")
        told = root.end_of("arr")
        assert (told["state"], told["exit"], told["why"]) == ("FAIL", 7, "2 of 4 elements failed: 2, 4")
        assert root.states("arr") == [("failed", 7, "2"), ("failed", 9, "4"), ("done", 0, "1,3")]
        assert root.flag("arr")[0] == "FAIL" and root.flag("arr")[-2].startswith('elements={"done":2,"failed":2,')


def test_an_array_deleted_by_hand_is_cancelled(tmp_path: Path, cluster: Cluster) -> None:
    root = ArrayRoot(tmp_path / "root", cluster)
    root.array("arr", "1-3%2", seconds=300)
    root.pump()
    until(lambda: root.began("arr", 1, 2) == [1, 1], "two run")
    assert cluster.run("qdel", root.parent()).returncode == 0
    root.settle("arr")
    assert (root.end_of("arr")["ev"], root.end_of("arr")["why"]) == ("cancelled", "deleted in PBS")
    assert root.began("arr", 3) == [0] and root.states("arr")[-1] == ("unstarted", None, "3")


@pytest.mark.parametrize("index", [1, 3])
def test_an_element_deleted_by_hand_fails_the_array(tmp_path: Path, cluster: Cluster, index: int) -> None:
    """1 runs when it is deleted, 3 waits."""
    root = ArrayRoot(tmp_path / "root", cluster, grace=1)
    root.array("arr", "1-3%2", text="while [ ! -e '%s/gate' ]; do sleep 0.05; done" % tmp_path)
    root.pump()
    until(lambda: root.began("arr", 1, 2) == [1, 1], "two run")
    assert cluster.run("qdel", root.element(index)).returncode == 0
    cluster.wait_for(root.element(index), "XF")
    (tmp_path / "gate").touch()
    root.settle("arr")
    told = root.end_of("arr")
    assert (told["ev"], told["state"]) == ("ended", "FAIL")
    assert told["elements"]["done"] == 2 and re.search(r"of 3 .*: %d\b" % index, told["why"]), told
    assert root.states("arr")[0][2] == str(index) and root.states("arr")[1][0] == "done"


@pytest.mark.parametrize("history", [True, False])
def test_an_element_killed_without_a_word_fails_the_array(tmp_path: Path, history: bool) -> None:
    with Cluster(scale=0.1, daemon_seconds=2, history=history) as cluster:
        root = ArrayRoot(tmp_path / "root", cluster, grace=1)
        root.array("arr", "1-3", text="while [ ! -e '%s/gate' ]; do sleep 0.05; done" % tmp_path)
        root.pump()
        until(lambda: root.began("arr", 1, 2, 3) == [1] * 3, "all run")
        cluster.kill_job(root.element(2))
        until(lambda: cluster.job(root.element(2))["state"] in "XF", "PBS has noticed")
        (tmp_path / "gate").touch()
        root.settle("arr")
        told = root.end_of("arr")
        assert told["state"] == ("FAIL" if history else "LOST"), told
        assert told["exit"] is None and told["why"].startswith("1 of 3 did not finish: 2")
        assert root.states("arr") == [("unfinished", None, "2"), ("done", 0, "1,3")]


def test_a_cancel_ends_every_element(tmp_path: Path, cluster: Cluster) -> None:
    root = ArrayRoot(tmp_path / "root", cluster, max_running=3, heartbeat=0)
    root.array("a_runs", "1-3", seconds=300)
    root.array("b_held", "1-2", seconds=300)
    root.pump()
    until(lambda: root.began("a_runs", 1, 2, 3) == [1] * 3, "three run")
    for name in ("b_held", "a_runs"):
        assert root.agent("cancel", name)[0] == 0
    root.settle("b_held", "a_runs")
    assert [root.end_of(name)["ev"] for name in ("b_held", "a_runs")] == ["cancelled"] * 2
    until(lambda: not [job for job in cluster.table() if job["state"] not in "FX"], "nothing is left in PBS")
    assert root.began("b_held", 1, 2) == [0, 0]


def test_a_hold_before_it_starts_takes_it_back_and_a_release_runs_it(tmp_path: Path, cluster: Cluster) -> None:
    root = ArrayRoot(tmp_path / "root", cluster, max_running=3, heartbeat=0)
    root.drop("a_long", text="while [ ! -e '%s/gate' ]; do sleep 0.05; done" % tmp_path, seconds=0.1)
    root.array("arr", "1-3")
    root.pump()
    parent = root.parent()
    assert root.agent("hold", "arr")[0] == 0
    until(lambda: cluster.job(parent)["state"] == "F" or (time.sleep(1.1), root.pump())[0], "it is deleted in PBS")
    (tmp_path / "gate").touch()
    root.settle("a_long")
    assert root.began("arr", 1, 2, 3) == [0] * 3
    assert root.agent("release", "arr")[0] == 0
    root.settle("arr")
    assert root.began("arr", 1, 2, 3) == [1] * 3 and root.flag("arr")[0] == "DONE"


def test_a_second_start_of_an_element_is_refused(tmp_path: Path, cluster: Cluster) -> None:
    """A mom that is restarted kills what ran and has it queued again under the same id; arrays can't be -r n."""
    root = ArrayRoot(tmp_path / "root", cluster, grace=1)
    root.array("arr", "1-2", text="while [ ! -e '%s/gate' ]; do sleep 0.05; done" % tmp_path)
    root.pump()
    until(lambda: root.began("arr", 1, 2) == [1, 1], "both run")
    cluster.restart_mom()
    (tmp_path / "gate").touch()
    root.settle("arr")
    assert root.began("arr", 1, 2) == [1, 1]
    told = [record["why"] for record in root.log() if record["ev"] == "duplicate"]
    assert told == ["rerun", "rerun"] and root.end_of("arr")["state"] == "FAIL"


def test_a_reply_that_is_lost_makes_no_second_array(tmp_path: Path, cluster: Cluster) -> None:
    root = ArrayRoot(tmp_path / "root", cluster, grace=2, max_queued=9, max_running=7)
    cluster.fault("lose_reply", every=2)
    for number in range(4):
        root.array("arr%d" % number, "1-3", seconds=0.1)
    root.pump()
    names = ["arr%d" % number for number in range(4)]
    root.settle(*names)
    assert [root.began(name, 1, 2, 3) for name in names] == [[1] * 3] * 4
    assert root.outcomes()["adopted"] >= 1
    known = [marks.read_id(root.spool.meta_dir(name, 1), Path(found).stem)["id"]
             for name in names for found in Path(root.spool.meta_dir(name, 1)).glob("*.id")]
    assert all("[]" in job_id for job_id in known) and len(set(known)) == len(known) == 4


def test_the_relay_goes_on_after_a_whole_array_was_killed(tmp_path: Path, cluster: Cluster) -> None:
    """Nobody pumps by hand: no tail ran, and only the heartbeat is left."""
    root = ArrayRoot(tmp_path / "root", cluster, max_queued=6, max_running=4, heartbeat=0.05, grace=1)
    root.array("a_long", "1-3", seconds=300)
    root.pump()
    until(lambda: root.began("a_long", 1, 2, 3) == [1] * 3, "it runs")
    root.array("b_next", "1-3", seconds=0.1)
    cluster.kill_all_jobs()
    until(lambda: root.began("b_next", 1, 2, 3) == [1] * 3 and root.finished() == 2, "the rest, by itself", 120)
    assert root.states("a_long") == [("unfinished", None, "1-3")]
