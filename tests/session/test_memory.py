"""What handing over takes of memory, on both sides, measured on the real processes: it grows with nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.agentroot import until
from chasqui_agent.spool import Spool
from chasqui_client import api
from chasqui_client.jobs import Asked
from session.desk import CONFIG, Desk

TOP = Path(__file__).resolve().parents[2]
MOST = 100 << 10  # kilobytes
# Runs the client on ARGV; says what it, and the largest process it waited for, the agent, have had of memory. (Its own
# ru_maxrss would begin with the size of the process it was forked from.)
CLIENT = """
import json, resource, sys
from chasqui_client import cli
code = cli.main(sys.argv[1:])
own = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps(own + [resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
sys.exit(code)
"""


@pytest.fixture
def desk(tmp_path):
    """One job runs there, and all that are handed over wait behind it."""
    desk = Desk(tmp_path).deploy()
    desk.home.config_path.write_text(CONFIG % desk.root + "[remotes.here.caps]\nmax_running = 1\nmax_queued = 1\n")
    gate = tmp_path / "gate"
    job, = desk.add(desk.folder("first", "until [ -e %s ]; do sleep 0.1; done" % gate))
    yield desk
    for priority in (desk.root / "waiting").iterdir():
        shutil.rmtree(priority)
    gate.touch()
    until(lambda: Spool(str(desk.root)).settled_state(job.id, 1), "the end of the job that runs")


def typed(desk, *words):
    """A command, by a client of its own: its answer, and kilobytes of client and agent."""
    environment = {**os.environ, "CHASQUI_HOME": str(desk.home.path), "PYTHONPATH": f"{TOP}/client:{TOP}/agent"}
    done = subprocess.run([sys.executable, "-c", CLIENT, *words, "--json"], env=environment, capture_output=True,
                          stdin=subprocess.DEVNULL, text=True, timeout=3000)
    report, sizes = map(json.loads, done.stdout.splitlines()[-2:])
    return report["data"], sizes


def handed_over(desk):
    """Sync; how many jobs went, kilobytes of client and agent."""
    report, sizes = typed(desk, "sync")
    return report["uploaded"], sizes


def small_folders(desk, first, count):
    folders = []
    for number in range(first, first + count):
        folder = desk.path / "jobs" / ("%06d" % number)
        folder.mkdir(parents=True)
        (folder / "job.sh").write_bytes(b"#!/bin/sh\ntrue\n")
        for name in ("a", "b", "c"):
            (folder / name).write_bytes(b"%d %s\n" % (number, name.encode()) * 20)
        folders.append(os.fsencode(folder))
    return folders


def test_adding_many_jobs_takes_little_more_than_adding_some(tmp_path, size):
    desk = Desk(tmp_path)
    sizes, counts = [], (2_000, 20_000) if size.long else (1_000, 3_000)
    for first, count in zip((1, 1 + counts[0]), counts, strict=True):
        listed = desk.path / "listed"
        listed.write_bytes(b"".join(folder + b"\n" for folder in small_folders(desk, first, count)))
        added, (most, _) = typed(desk, "add", "--from", str(listed))
        assert len(added["jobs"]) == count and added["files"] == 4 * count
        sizes.append(most)
    print("add of %d jobs: %d kB, of %d: %d kB" % (counts[0], sizes[0], counts[1], sizes[1]))
    assert max(sizes) < MOST
    assert sizes[1] - sizes[0] < 1.5 * (counts[1] - counts[0])  # kB: of each the folder's name and the answer's line


def test_many_jobs_take_what_one_takes_and_little_more(desk, size):
    uploaded, one = handed_over(desk)
    assert uploaded == 1
    count = 20_000 if size.long else 2_000
    api.add(desk.home, small_folders(desk, 1, count), Asked())
    uploaded, many = handed_over(desk)
    print("1 job: client %d kB, agent %d kB; %d jobs: client %d kB, agent %d kB" % (*one, count, *many))
    assert uploaded == count
    assert max(many) < MOST


def test_a_large_file_takes_what_a_small_one_takes(desk, size):
    _, small = handed_over(desk)
    large = 4 << 30 if size.long else 200 << 20
    folder = desk.path / "jobs" / "large"
    folder.mkdir()
    (folder / "job.sh").write_bytes(b"#!/bin/sh\ntrue\n")
    block = os.urandom(1 << 20)
    with open(folder / "WAVECAR", "wb") as stream:
        for _ in range(large >> 20):
            stream.write(block)
    api.add(desk.home, [os.fsencode(folder)], Asked())
    uploaded, sizes = handed_over(desk)
    print("small: client %d kB, agent %d kB; %d bytes: client %d kB, agent %d kB" % (*small, large, *sizes))
    assert uploaded == 1
    assert max(sizes) < MOST
    for before, after in zip(small, sizes, strict=True):
        assert after < before + (16 << 10)
