"""What a pump and a sync cost does not grow with what waits, with what is done, and with the journal."""

import json
import os
import statistics
import subprocess
import sys

import pytest

from agent.agentroot import AGENT, publish
from chasqui_agent import PROTOCOL, files, install, journal, settings, wire
from chasqui_agent.spool import SHARD_SIZE
from needs import linux

FEW = 100
ROUNDS, EACH = 7, 6  # pumps that are measured, and what each submits: from FEW, that must be enough
MOST = 1.5
LOOKS = 4
TAIL = 64 << 10  # bytes: what is looked at of the last segment, to find its last whole record

# The agent, with its calls of the system counted, and the names that listings gave it.
COUNTED = """
import builtins, json, os, sys
told, agent = sys.argv[1:3]
sys.path.insert(0, agent)
counts = {"calls": 0, "names": 0}
def counted(real):
    def call(*args, **more):
        counts["calls"] += 1
        result = real(*args, **more)
        counts["names"] += len(result) if real is listdir else 0
        return result
    return call
listdir = os.listdir
for name in ("listdir open stat lstat fstat symlink link readlink rename unlink mkdir rmdir fsync read write"
             " fork waitpid access utime").split():
    setattr(os, name, counted(getattr(os, name)))
builtins.open = counted(open)
from chasqui_agent import cli
code = cli.main(sys.argv[3:])
with open("/proc/self/io") as stream:
    counts.update((key, int(value)) for key, value in (line.split(": ") for line in stream))
with open(told, "w") as stream:
    json.dump(counts, stream)
sys.exit(code)
"""


class Watched:
    """A root whose agent is watched."""

    def __init__(self, root):
        self.root, self.spool = root, root.spool

    def fill(self, count, blocker):
        """One job runs for ever; `count` scripts wait behind it, and as many jobs are done."""
        self.root.drop("blocker", seconds=blocker)
        self.root.pump()
        writer = journal.Writer(self.spool.log, 10**6)
        for start in range(0, count, SHARD_SIZE):
            numbers = range(start, min(count, start + SHARD_SIZE))
            publish(self.spool, "b%06d" % start, [("new%06d" % number, "#!/bin/sh\ntrue\n") for number in numbers])
            for number in numbers:
                self.complete("old%06d" % number)
            told = [(ev, "old%06d" % number) for ev in ("accepted", "submitted", "ended") for number in numbers]
            writer.append(*[{"ev": ev, "job": job, "attempt": 1, "pbs": "1.host"} for ev, job in told])
        writer.close()
        assert self.root.pump()["accepted"] == count

    def complete(self, job):
        os.makedirs(self.spool.meta_dir(job, 1))
        flag = b"DONE\n1.host\nattempt=1\nexit=0\n"
        files.write_file(self.spool.entry_path("completed", job, 1, suffix="flag"), flag, durable=False)

    def room(self):
        """Make it for as many more as each pump is to submit."""
        chosen = settings.load(self.spool)
        settings.change(self.spool, max_queued=chosen.max_queued + EACH)

    def seconds(self):
        """The processor's time for a pump, interpreter and all."""
        self.room()
        out = os.path.join(self.root.path, "report")
        with open(out, "wb") as stream:
            command = [sys.executable, "-I", "-S", os.path.join(AGENT, "chasqui_agent"), "--root", self.root.path]
            child = subprocess.Popen(command + ["pump", "--json"], stdin=subprocess.DEVNULL, stdout=stream)
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = status
        assert status == 0 and files.read_json(out)["submitted"] == EACH, files.read_json(out)
        return used.ru_utime + used.ru_stime

    def counts(self, *argv, **more):
        """What one verb asked of the system, and what it said."""
        told = os.path.join(self.root.path, "counts")
        command = [sys.executable, "-I", "-S", "-c", COUNTED, told, AGENT, "--root", self.root.path] + list(argv)
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        out, _ = child.communicate(more.get("given", b""), timeout=300)
        assert child.returncode == 0
        return files.read_json(told), out


@pytest.fixture
def pair(make_root):
    """Two roots alike."""
    chosen = {"max_running": 1, "max_queued": 1, "query_interval": 0, "heartbeat": 0}
    return [Watched(make_root(name, **chosen)) for name in ("few", "many")]


def test_a_pump_costs_the_same_whatever_waits_and_is_done(pair, size):
    """As many places are free; what is submitted is held, for the one that runs does not end."""
    linux()
    few, many = pair
    few.fill(FEW, 3600)
    many.fill(size.backlog, 3600)
    pairs = [(few.seconds(), many.seconds()) for _ in range(ROUNDS)]
    ratio = statistics.median(after / before for before, after in pairs)
    counted = []
    for one in pair:
        one.room()
        counts, out = one.counts("pump", "--json")
        assert json.loads(out.decode("ascii"))["submitted"] == EACH
        counted.append(counts)
    sys.stdout.write(
        "%d and %d waiting, done: %.3f and %.3f s of processor, ratio %.2f; calls %d and %d, names listed %d and %d\n"
        % tuple(
            [FEW, size.backlog]
            + [statistics.median(column) for column in zip(*pairs)]
            + [ratio]
            + [counts[key] for key in ("calls", "names") for counts in counted]
        )
    )
    assert ratio <= MOST
    assert counted[1]["calls"] <= MOST * counted[0]["calls"]
    # Each step that asks whether anything waits lists the first shard, and the names of the others.
    assert counted[1]["names"] <= counted[0]["names"] + LOOKS * (SHARD_SIZE + size.backlog // SHARD_SIZE)


def test_a_sync_reads_what_is_new_of_a_journal(pair, size):
    """Ten records behind few and behind many cost the same bytes: of the rest it reads the tail of one segment."""
    linux()
    found = []
    for one, count in zip(pair, (2 * 2000, size.records)):
        writer = journal.Writer(one.spool.log, 1)
        for start in range(0, count, 1000):
            writer.append(*[{"ev": "accepted", "job": "old%07d" % n, "attempt": 1} for n in range(start, start + 1000)])
        writer.close()
        cursor = journal.end(one.spool.log)
        writer = journal.Writer(one.spool.log, 2)
        writer.append(*[{"ev": "accepted", "job": "new%07d" % n, "attempt": 1} for n in range(10)])
        writer.close()
        uuid = install.uuid(one.spool)
        given = wire.message("hello", proto=PROTOCOL, ledger="l", cursor=cursor, root_uuid=uuid) + wire.message("end")
        counts, out = one.counts("serve", "--nonce", "0" * 32, given=given)
        assert [out.count(b"old"), out.count(b"new0")] == [0, 10]
        found.append((counts["rchar"], cursor))
    (small, short), (large, long) = found
    sys.stdout.write("10 records behind %d bytes: %d bytes read in all; behind %d: %d\n" % (short, small, long, large))
    assert large <= small + TAIL
