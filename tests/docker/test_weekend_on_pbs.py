"""Friday to Monday on a PBS cluster of three hosts: one login, one sync, logout; the relay alone runs 200 jobs of all
kinds on the compute hosts, under the user's caps and the site's limit; one login and one sync bring them home.

Everything is at its default: holds, grace, lease, query_interval, heartbeat, and the waits of a real server. The agent
runs on Python 3.6 there, where this machine has one to lend.
"""

import datetime
import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster

from docker.ground import PYTHON36, Laptop, Sampler, until

JOBS = 200
MAX_QUEUED, MAX_RUNNING, SITE_LIMIT = 8, 4, 12
QUERY_INTERVAL = 30  # seconds, the default
SECONDS = (0.1, 3.0, 5.0, 7.0, 4.0, 6.0)  # long enough that a loaded machine does not decide what the relay keeps
NOTES = "/home/tcsh/notes"  # one file for all: a payload adds a line when it starts and one when it ends

START = f"echo start {{n}} `date +%s.%N` $PBS_JOBID >> {NOTES}"
WORK = "cat in.dat shared.dat | cksum > out; sleep {seconds}"
END = f"echo end {{n}} `date +%s.%N` >> {NOTES}"
BODY = f"{START}\n{WORK}\n{END}\n"
SAYS = "echo said\necho complained >&2\n"
CALL = "import subprocess\nsubprocess.call('''{}''', shell=True)\n"
KINDS = {
    "bash": f"#!/bin/bash\n#PBS -N her.own\n{BODY}{SAYS}",
    "csh": f"#!/bin/csh -f\n{BODY}",
    "python": "#!/usr/bin/env python3\n" + CALL.replace("{}", f"{START}; {WORK}; {END}"),
    "set -e": f"#!/bin/sh\nset -e\n{BODY}true\n",
    "exec": f"#!/bin/sh\n{START}\nexec sh -c '{WORK}; {END}'\n",
    "trap": f"#!/bin/bash\ntrap '{END}' EXIT\n{START}\n{WORK}\n",
    "workdir": f"#!/bin/bash\ncd /\ncd $PBS_O_WORKDIR\n{BODY}",
    "no shebang": BODY,
    "joined": f"#!/bin/sh\n#PBS -N joined -j oe\n{BODY}{SAYS}",
    "output": f"#!/bin/sh\n#PBS -j oe\n#PBS -o mine.log\n{BODY}{SAYS}",
    "fails": f"#!/bin/sh\n{BODY}exit 3\n",
}
# kind -> what its output is brought home as, and what is in it
OUTPUTS = {
    "bash": {"*_bash.o*": ["said\n"], "*_bash.e*": ["complained\n"]},
    "joined": {"*_joined.o*": ["said\ncomplained\n"], "*_joined.e*": []},
    "output": {"mine.log": ["said\ncomplained\n"], "*_output.*": []},
}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = []
    for number in range(JOBS):
        kind, script = list(KINDS.items())[number % len(KINDS)]
        folder = tmp_path / "jobs" / f"{number:04d} {kind}"
        folder.mkdir(parents=True)
        (folder / "job.sh").write_text(script.format(n=number, seconds=SECONDS[number % len(SECONDS)]))
        (folder / "in.dat").write_bytes(b"%d\n" % number * 300)
        (folder / "shared.dat").write_bytes(b"the same everywhere\n" * 5000)
        made.append(folder)
    return made


@pytest.fixture
def laptop(cluster: Cluster, tmp_path: Path) -> Iterator[Laptop]:
    """A tcsh user's, where an admin has limited how many jobs a user may have."""
    qmgr = ["/opt/pbs/bin/qmgr", "-c"]
    cluster.execute("login", *qmgr, f"set server max_queued = [u:PBS_GENERIC={SITE_LIMIT}]")
    yield Laptop(cluster, tmp_path / "laptop", "tcsh", f"max_queued = {MAX_QUEUED}\nmax_running = {MAX_RUNNING}")
    cluster.execute("login", *qmgr, "unset server max_queued")


def test_the_weekend(laptop: Laptop, folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert len(laptop("add", *map(str, folders))["jobs"]) == JOBS
    with Sampler(laptop, NOTES) as sampler:
        assert visit(laptop)["uploaded"] == JOBS
        friday = laptop.counts()
        until(lambda: sampler.last()["over"] == JOBS, "the relay alone runs everything", 10.0 * JOBS)
        # The last ends are known once PBS says so too, and it is never asked more often than this.
        time.sleep(QUERY_INTERVAL)
    assert laptop.counts() == friday, "somebody logged in meanwhile"
    monday = visit(laptop)

    notes = laptop.there(f"cat {NOTES}")
    slots = Slots(notes, laptop.there("cat log/*.seg"))
    with capsys.disabled():
        print(f"\nthe weekend on PBS: {described(sampler)}; {slots}")
    failing = sum(folder.name.endswith("fails") for folder in folders)
    assert monday["counts"] == {"COMPLETED": JOBS - failing, "FAILED": failing}
    each_ran_once(notes)
    for folder in folders:
        came_home(folder)
    pythons = laptop.there("grep -h ^cq_python= work/*/.chasqui/runner.* | sort -u")
    assert not laptop.cluster.python36 or pythons == f"cq_python={PYTHON36}\n"
    assert sampler.most("running") <= MAX_RUNNING
    assert sampler.most("waiting") <= MAX_QUEUED
    assert sampler.most("live") <= SITE_LIMIT
    assert slots.kept >= 0.9


def visit(laptop: Laptop) -> dict:
    """One login, one sync, logout: one authentication, and what the sync did."""
    _, login = laptop.counted("login", "hpc")
    done, sync = laptop.counted("sync")
    laptop("logout", "hpc")
    assert (login.authentications, sync.authentications) == (1, 0)
    return done


def described(sampler: Sampler) -> str:
    busiest = max(sampler.looks, key=lambda look: look["ending"])
    return (
        f"{len(sampler.looks)} looks: at most {sampler.most('running')} payloads of {MAX_RUNNING},"
        f" {sampler.most('waiting')} waiting of {MAX_QUEUED}, {sampler.most('live')} live of {SITE_LIMIT};"
        f" {busiest['ending']} in R or E while {busiest['flags']} of them had written their flag"
    )


class Slots:
    """What became of the payload slots from the first payload's start to the last one's, in seconds.

    An ideal feeder would release the next job in the very moment a payload ends. It too would then wait for PBS, from
    there to the payload's start: that time is no fault of a feeder, and on a busy machine it is not short.
    """

    def __init__(self, notes: str, journal: str) -> None:
        lines = [line.split() for line in notes.splitlines()]
        ends = {words[1]: float(words[2]) for words in lines if words[0] == "end"}
        starts = [(float(words[2]), words[3], ends[words[1]]) for words in lines if words[0] == "start"]
        first, last = min(starts)[0], max(starts)[0]
        released = dict(map(let_go, filter(may_start, map(record_of, journal.splitlines()))))
        self.all = MAX_RUNNING * (last - first)
        self.used = sum(min(end, last) - start for start, _, end in starts)
        self.starting = sum(start - max(released[pbs], first) for start, pbs, _ in starts)

    def __str__(self) -> str:
        return (
            f"of {MAX_RUNNING} slots {self.used / self.all:.0%} used by payloads, {self.starting / self.all:.0%} by PBS"
            f" starting them: {self.kept:.0%} of an ideal feeder's"
        )

    @property
    def kept(self) -> float:
        return (self.used + self.starting) / self.all


def record_of(line: str) -> dict:
    return json.loads(line.split(" ", 2)[2])


def may_start(record: dict) -> bool:
    """The last of these two: a job without a hold may start as soon as it is submitted."""
    return record["ev"] in ("submitted", "released")


def let_go(record: dict) -> tuple[str, float]:
    return record["pbs"], datetime.datetime.fromisoformat(record["t"]).timestamp()


def each_ran_once(notes: str) -> None:
    counted = Counter(tuple(line.split()[:2]) for line in notes.splitlines())
    assert counted == {(word, str(number)): 1 for word in ("start", "end") for number in range(JOBS)}


def came_home(folder: Path) -> None:
    results = folder / "results"
    expected = subprocess.run("cat in.dat shared.dat | cksum", shell=True, cwd=folder, capture_output=True).stdout
    assert (results / "out").read_bytes() == expected, folder
    for pattern, texts in OUTPUTS.get(folder.name.partition(" ")[2], {}).items():
        assert [path.read_text() for path in results.glob(pattern)] == texts, (folder, pattern)
