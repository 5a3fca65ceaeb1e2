"""Pumps on two hosts that share a root, with clocks half an hour apart and listings of lock/ and wake/ that never age:
no wake is lost, nothing is submitted twice or by a former holder, and nothing is called LOST before its time."""

import os
import random
import signal
import sys
import time

import pytest

from agent import odd_hosts
from agent.agentroot import publish, until
from chasqui_agent import files, heartbeat, launch, lock, pump, schedulers, settings
from chasqui_agent.lock import Lock
from chasqui_agent.schedulers.base import Live, Scheduler, Snapshot, Submission

SKEW = 900.0
FOR_EVER = 1e9
AT_ONCE = 8


class Board(Scheduler):
    """A batch system that two hosts see alike: a file for each live job, and a list of all submissions."""

    name = "board"
    stages_output = False

    def __init__(self, folder):
        self.folder, self.list = os.path.join(folder, "live"), os.path.join(folder, "submissions")
        self.starts = []
        os.makedirs(self.folder)
        open(self.list, "w").close()

    def query(self, ids, sought=(), held=(), known=()):
        state = {token: "W" if job == "heartbeat" else "R" for job, token in self.live()}
        return Snapshot({token + ".board": Live(token + ".board", state[token], token) for token in state}, {})

    def submit(self, request, timeout, meanwhile=lambda: None):
        meanwhile()
        self.starts.append(request.start)
        job = os.path.basename(request.folder)
        with open(self.list, "ab", 0) as stream:
            stream.write(("%s %s\n" % (job, process_name())).encode("ascii"))
        open(os.path.join(self.folder, "%s.%s" % (job, request.token)), "w").close()
        return Submission("accepted", request.token + ".board", "")

    def delete(self, job_id):
        raise AssertionError("nothing is to be deleted")

    def live(self):
        """(job, token) of each."""
        return [tuple(name.split(".")) for name in sorted(os.listdir(self.folder))]

    def submissions(self):
        with open(self.list) as stream:
            return [tuple(line.split()) for line in stream]


def process_name():
    return "%s:%d" % (lock.process.host(), os.getpid())


@pytest.fixture
def board(root, monkeypatch):
    made = Board(root.path + ".board")
    settings.change(root.spool, heartbeat=0, query_interval=0, max_total=AT_ONCE, max_running=AT_ONCE)
    monkeypatch.setattr(schedulers, "choose", lambda *_: made)
    monkeypatch.setattr(launch, "detached", lambda *_: pytest.fail("a pump's time was over"))
    return made


def hosts(spool):
    """Their listings are as old as can be: made once, and again only after a change of one's own."""
    manners = [odd_hosts.OldListings(FOR_EVER, spool.lock, spool.wake)]
    return [odd_hosts.Host("node1", SKEW, manners), odd_hosts.Host("node2", -SKEW, manners)]


def forked(work):
    """Run `work` in a process of its own; its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def end(board, spool, job, token):
    """The payload is over, and the scheduler has forgotten it: claim, start and flag, as a runner leaves them."""
    meta = spool.meta_dir(job, 1)
    for name in ("claim.%s", "run.%s.1"):
        os.symlink(token + ".board", os.path.join(meta, name % token))
    with open(os.path.join(meta, "flag.%s.1" % token), "w") as stream:
        stream.write("exit=0\nid=%s.board\nk=1\nterm=0\nended=%d\nwhole\n" % (token, time.time()))
    os.unlink(os.path.join(board.folder, "%s.%s" % (job, token)))


def tail(host, board, spool, job, token, chance):
    """One job's end on a host that has looked at lock/ and wake/ before, and believes its eyes."""
    before, since = chance.uniform(0, 0.1), chance.uniform(0, 0.1)

    def work():
        host.become()
        time.sleep(before)
        for folder in (spool.lock, spool.wake):
            os.listdir(folder)
        time.sleep(since)
        end(board, spool, job, token)
        event = "ev.tail.%s.1.%s.1.%s.%d" % (job, token, host.name, os.getpid())
        open(os.path.join(spool.wake, event), "w").close()
        pump.pump(spool, "tail", 120.0, attended=False)

    return forked(work)


def test_no_wake_is_lost(root, board, size):
    """Two, three or all of eight jobs end at about the same moment. When the last of their wakes has gone home, all
    places are filled again."""
    count, chance, pair, waves = size.jobs // 4, random.Random(1), hosts(root.spool), 0
    names = ["job%04d" % number for number in range(count)]
    publish(root.spool, "batch", [(name, "true\n") for name in names])
    pump.pump(root.spool, "by hand")
    while board.live():
        waves += 1
        ends = chance.sample(board.live(), min(len(board.live()), chance.choice((2, 2, 3, AT_ONCE))))
        pids = [tail(pair[n % 2], board, root.spool, job, token, chance) for n, (job, token) in enumerate(ends)]
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids)
        assert len(board.live()) == min(AT_ONCE, len(board.live()) + root.spool.count_waiting()), "wave %d" % waves
        left = [name for name in os.listdir(root.spool.wake) if name.startswith(("kick.", "ev."))]
        assert not left, "wave %d: %s" % (waves, left)
    submitted = [job for job, _ in board.submissions()]
    sys.stdout.write(
        "%d jobs in %d waves of tails on two hosts: %d rounds, submissions by %d processes\n"
        % (count, waves, max(Lock(root.spool.lock)._listing()[0]), len({who for _, who in board.submissions()}))
    )
    assert sorted(submitted) == names and root.finished() == count
    assert not [record for record in root.log() if record.get("state") == "LOST" or record["ev"] == "damaged"]


def other_host_pumps(root, host):
    def work():
        host.become()
        assert not pump.pump(root.spool, "by hand")["busy"]

    assert os.waitpid(forked(work), 0)[1] == 0


@pytest.mark.parametrize("taken_over", [True, False])
def test_a_holder_that_wakes_up_submits_only_what_is_still_its_own(root, board, monkeypatch, taken_over):
    """Frozen with its intent recorded, before it asks the lock for the last time. Another host waits for the lease,
    looks for the submission in vain, and makes another one; or it never comes."""
    settings.change(root.spool, lease=2, grace=0.5)
    node1, node2 = hosts(root.spool)
    publish(root.spool, "batch", [("job", "true\n")])
    move = files.move

    def freeze(old, new):
        move(old, new)
        if "/submitting/" in new:
            monkeypatch.setattr(files, "move", move)
            os.kill(os.getpid(), signal.SIGSTOP)

    monkeypatch.setattr(files, "move", freeze)
    notes = root.path + ".notes"

    def work():
        node1.become()
        with open(notes, "w") as stream:
            stream.write(pump.pump(root.spool, "by hand")["note"] or "none")

    frozen = forked(work)
    monkeypatch.setattr(files, "move", move)
    assert os.WIFSTOPPED(os.waitpid(frozen, os.WUNTRACED)[1])
    if taken_over:
        time.sleep(2.2)
        until(lambda: other_host_pumps(root, node2) or board.submissions(), "the other host submits it")
    os.kill(frozen, signal.SIGCONT)
    assert os.waitpid(frozen, 0)[1] == 0
    for _ in range(2):
        other_host_pumps(root, node2)
    with open(notes) as stream:
        told = stream.read()
    assert told.startswith("lost the lock") == taken_over or "lease" in told
    assert [job for job, _ in board.submissions()] == ["job"]
    assert [entry.job for entry in root.spool.entries("submitted")] == ["job"]


def test_a_clock_ahead_makes_no_job_lost(root, board):
    """The scheduler knows nothing of a job: the grace period is the file server's, whoever asks."""
    settings.change(root.spool, grace=30)
    publish(root.spool, "batch", [("job", "true\n")])
    pair = hosts(root.spool)
    other_host_pumps(root, pair[1])
    ((job, token),) = board.live()
    os.unlink(os.path.join(board.folder, "%s.%s" % (job, token)))
    for host in pair * 3:
        other_host_pumps(root, host)
    assert [entry.job for entry in root.spool.entries("submitted")] == ["job"] and not root.finished()
    settings.change(root.spool, grace=0)
    other_host_pumps(root, pair[0])
    assert root.flag("job")[0] == "LOST"


def test_a_heartbeat_is_one_and_comes_in_its_time_whatever_the_clocks_say(root, board, monkeypatch):
    """Who armed it was a quarter of an hour behind; who looks whether it is pending is as much ahead; and back."""
    settings.change(root.spool, heartbeat=15, max_total=4, query_interval=60)
    publish(root.spool, "batch", [("job%d" % number, "true\n") for number in range(9)])
    right = time.time
    for skew in (-SKEW, SKEW, 0.0, SKEW, -SKEW):
        monkeypatch.setattr(time, "time", lambda skew=skew: right() + skew)
        pump.pump(root.spool, "by hand")
        monkeypatch.setattr(time, "time", right)
        starts = [start for start in board.starts if start is not None]
        assert len(starts) == 1 and len(heartbeat.beats(root.spool)) == 1, skew
        assert abs(starts[0] - right() - 15 * 60) < 60, "it comes in %d s" % (starts[0] - right())
    assert root.spool.count_waiting() == 7
