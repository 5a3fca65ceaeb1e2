"""40 contenders for the lock on two hosts: whoever is killed, frozen or misled, nobody acts but the one holder.

A holder asks `check` before each act, as the pump does before each qsub. An act is a line appended to one file, so the
file tells their true order: generations never go back in it, and each has one owner.
"""

import os
import random
import signal
import sys
import time

import pytest

from agent import odd_hosts
from chasqui_agent import lock
from chasqui_agent.lock import Lock, Lost

LEASE = 0.5
# A listing is up to 60 s old where the lease is 600, so a tenth of it.
OLD = LEASE / 10
ACTS = 3  # of each holder
KILLED, FROZEN = 0.03, 0.02  # of the turns
SKEW = 900.0
PATIENCE = 600.0


class Contender:
    """One of the processes: takes the lock, acts, gives it back, until it is killed; now and then by itself."""

    def __init__(self, folder, told, seed):
        self.folder, self.chance = folder, random.Random(seed)
        self._told = os.open(told, os.O_WRONLY | os.O_APPEND)
        self._lines, self._freeze = 1000, 0

    def tell(self, word, *more):
        os.write(self._told, (" ".join([word] + [str(item) for item in more]) + "\n").encode("ascii"))

    def run(self):
        while True:
            mine = Lock(self.folder, LEASE)
            freeze = self.chance.random() < FROZEN
            if self._freezing(freeze, lambda mine=mine: mine.acquire(wait=0.02)):
                self._hold(mine)
                self._freezing(freeze, mine.release)
            time.sleep(self.chance.uniform(0, 0.03))

    def _hold(self, mine):
        self.tell("took", mine.generation, os.getpid(), int(mine.took_over))
        for _ in range(ACTS):
            if self.chance.random() < FROZEN / ACTS:
                os.kill(os.getpid(), signal.SIGSTOP)
            before = time.monotonic()
            try:
                mine.check()
            except Lost:
                self.tell("lost", mine.generation)
                return
            self.tell("act", mine.generation, os.getpid())
            if time.monotonic() - before > LEASE / 2:
                self.tell("slow", mine.generation)  # frozen between check and act, by this machine: nobody can see that
            if self.chance.random() < KILLED / ACTS:
                os.kill(os.getpid(), signal.SIGKILL)

    def _freezing(self, freeze, call):
        """`call`, frozen at any of its lines in lock.py where `freeze`."""
        self._line, self._freeze = 0, self.chance.randrange(self._lines) if freeze else -1
        sys.settrace(self._trace if freeze else None)
        try:
            return call()
        finally:
            sys.settrace(None)
            self._lines = max(50, self._line) if freeze else self._lines

    def _trace(self, frame, event, _):
        if frame.f_code.co_filename != lock.__file__:
            return None
        if event == "line":
            self._line += 1
            if self._line == self._freeze:
                os.kill(os.getpid(), signal.SIGSTOP)
        return self._trace


class Arena:
    """The contenders and what they told."""

    def __init__(self, path, hosts):
        self.folder, self.told, self.hosts = str(path / "lock"), str(path / "told"), hosts
        os.mkdir(self.folder)
        open(self.told, "w").close()
        self.pids, self.frozen, self.seed, self.killed, self.thawed = set(), {}, 0, 0, 0

    def contest(self, contenders, wanted):
        """Until the lock was taken `wanted` times, and some that were frozen have gone on."""
        chance, end = random.Random(1), time.monotonic() + PATIENCE
        try:
            while self.count("took") < wanted or not self.thawed:
                assert time.monotonic() < end, "the lock is not taken any more"
                while len(self.pids) < contenders:
                    self.begin()
                self.look(chance)
                time.sleep(0.02)
        finally:
            for pid in self.pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def begin(self):
        self.seed += 1
        pid = os.fork()
        if pid:
            self.pids.add(pid)
            return
        try:
            self.hosts[self.seed % len(self.hosts)].become()
            Contender(self.folder, self.told, self.seed).run()
        finally:
            os._exit(1)

    def look(self, chance):
        """Those that died are replaced, those frozen go on when their time has come, and any one dies anywhere."""
        if chance.random() < 0.2:
            os.kill(chance.choice(sorted(self.pids)), signal.SIGKILL)
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            if not pid:
                break
            if os.WIFSTOPPED(status):
                self.frozen[pid] = time.monotonic() + chance.uniform(0.2, 3) * LEASE
                continue
            assert os.WIFSIGNALED(status), "a contender failed, see above"
            self.killed += 1
            self.pids.discard(pid)
            self.frozen.pop(pid, None)
        for pid in [pid for pid, until in self.frozen.items() if until < time.monotonic()]:
            del self.frozen[pid]
            self.thawed += 1
            os.kill(pid, signal.SIGCONT)

    def lines(self, word):
        with open(self.told) as stream:
            return [tuple(int(item) for item in line.split()[1:]) for line in stream if line.startswith(word)]

    def count(self, word):
        return len(self.lines(word))

    def judge(self):
        """(generations taken twice, acts behind those of a later holder)."""
        taken, slow = self.lines("took"), {generation for (generation,) in self.lines("slow")}
        twice = len(taken) - len({generation for generation, _, _ in taken})
        owners = {generation: pid for generation, pid, _ in taken}
        late = front = 0
        for generation, pid in self.lines("act"):
            late += generation not in slow and (generation < front or owners[generation] != pid)
            front = max(front, generation)
        return twice, late


def two_hosts(*manners, **more):
    skew = more.get("skew", 0.0)
    return [odd_hosts.Host("login1", skew, manners), odd_hosts.Host("node7", -skew, manners)]


def old_listings(path):
    return odd_hosts.OldListings(OLD, str(path / "lock"))


GROUNDS = {
    "as it should be": lambda path: two_hosts(),
    "flock refused, clocks 30 min apart": lambda path: two_hosts(odd_hosts.flock_refused, skew=SKEW),
    "flock for everybody, old listings": lambda path: two_hosts(odd_hosts.flock_for_everybody, old_listings(path)),
    "no symlinks, old listings, clocks apart": lambda path: two_hosts(
        odd_hosts.no_symlinks, old_listings(path), skew=SKEW
    ),
}


@pytest.mark.parametrize("ground", sorted(GROUNDS))
def test_one_holder_on_two_hosts(memory_path, size, monkeypatch, ground):
    """Figures printed: acquisitions, hand-overs, kills, freezes, and how often a holder was told that it is none."""
    monkeypatch.setattr(lock, "KEEP", 2)  # so that time must keep what an old listing may lead to
    monkeypatch.setattr(lock, "KEEP_SECONDS", 2 * OLD)
    arena = Arena(memory_path, GROUNDS[ground](memory_path))
    arena.contest(size.contenders, size.acquisitions // 50)
    handed_over = sum(took_over for _, _, took_over in arena.lines("took"))
    twice, late = arena.judge()
    sys.stdout.write(
        "%s: %d contenders, %d acquisitions, %d hand-overs from the dead or frozen, %d acts, %d killed, %d frozen, "
        "%d holders refused, %d acts too slow to judge, %d generations taken twice, %d acts of former holders\n"
        % (ground, size.contenders, arena.count("took"), handed_over, arena.count("act"), arena.killed, arena.thawed,
           arena.count("lost"), arena.count("slow"), twice, late)
    )  # fmt: skip
    assert not twice and not late
    assert handed_over and arena.thawed


def take_and_give_back(folder, times):
    """Another process takes the lock so often."""
    pid = os.fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
        return
    try:
        for _ in range(times):
            mine = Lock(folder)
            assert mine.acquire() and mine.release()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "lock"
    path.mkdir()
    return str(path)


def test_a_listing_of_a_minute_ago_costs_one_more_try(folder, monkeypatch):
    """It leads to a name that exists by now. Trying that again would last for as long as the listing is believed."""
    take_and_give_back(folder, 1)
    old = odd_hosts.OldListings(1e9, folder)
    for name in ("listdir", "open", "symlink", "link", "unlink", "mkdir", "rmdir", "rename"):
        monkeypatch.setattr(os, name, getattr(os, name))  # so that they come back
    old()
    old.kept[folder] = ["g.1", "r.1"], time.monotonic() + 1e9
    take_and_give_back(folder, 3)
    tries = []
    monkeypatch.setattr(Lock, "_try", lambda self, text, real=Lock._try: tries.append(1) or real(self, text))
    monkeypatch.setattr(lock, "jitter", lambda _: 0.0 if len(tries) < 10 else pytest.fail("it never ends"))
    mine = Lock(folder)
    assert mine.acquire() and mine.generation == 5 and len(tries) == 2


def test_a_clock_ahead_throws_no_generation_away(folder, monkeypatch):
    """What another host released a moment ago may stand in somebody's listing for a minute to come."""
    monkeypatch.setattr(lock, "KEEP", 2)
    take_and_give_back(folder, 20)
    kept = set(os.listdir(folder))
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + SKEW)
    take_and_give_back(folder, 20)
    assert kept <= set(os.listdir(folder))


def test_frozen_behind_its_own_create_and_taken_for_dead(folder, monkeypatch):
    """r.N of a generation that nobody has taken over yet says it, too: whoever made g.N has not got the lock."""
    mine = Lock(folder)
    create = Lock._create

    def frozen(self, name, text):
        made = create(self, name, text)
        if name == "g.1":
            create(self, "r.1", '{"broken_by": "somebody"}')
        return made

    monkeypatch.setattr(Lock, "_create", frozen)
    assert mine.acquire() and mine.generation == 2 and mine.took_over
