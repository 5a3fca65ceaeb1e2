"""The generation lock: one holder, whoever dies, and an owner that is not proved dead is left alone."""

import json
import os
import random
import signal
import sys
import time

import pytest

from chasqui_agent import lock, process
from chasqui_agent.lock import Lock, Lost


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "lock"
    path.mkdir()
    return str(path)


def rewrite_owner(folder, generation, **changes):
    """Make a generation look as if somebody else had taken it."""
    path = os.path.join(folder, "g.%d" % generation)
    owner = json.loads(os.readlink(path))
    owner.update(changes)
    os.unlink(path)
    os.symlink(json.dumps(owner), path)


def test_taken_once_and_given_back(folder):
    first, second = Lock(folder), Lock(folder)
    assert first.acquire() and not second.acquire()
    first.check()
    assert first.release() and second.acquire()
    assert second.generation == 2 and not second.took_over


def test_a_dead_owner_is_replaced_and_that_is_known(folder):
    pid = os.fork()
    if pid == 0:
        Lock(folder).acquire()
        os._exit(0)
    os.waitpid(pid, 0)
    mine = Lock(folder)
    assert mine.acquire() and mine.took_over


def test_an_owner_that_is_stopped_is_believed_alive_for_the_lease_alone(folder):
    """Stopped with Ctrl-Z on the login host, it kept everybody from the lock for as long as it stood there."""
    pid = os.fork()
    if pid == 0:
        Lock(folder).acquire()
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    try:
        os.waitpid(pid, os.WUNTRACED)
        mine = Lock(folder, 600)
        assert not mine.acquire() and 500 < mine.expires <= 600
        os.utime(os.path.join(folder, "g.1"), (1, 1), follow_symlinks=False)
        assert mine.acquire() and mine.took_over
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_reused_pid_is_not_the_owner(folder):
    assert Lock(folder).acquire()
    rewrite_owner(folder, 1, s="clock:1")
    assert Lock(folder).acquire()


def test_an_owner_before_the_last_boot_is_dead(folder):
    if not process.boot_id():
        pytest.skip("this system does not tell its boot")
    assert Lock(folder).acquire()
    rewrite_owner(folder, 1, b="another boot")
    assert Lock(folder).acquire()


@pytest.mark.parametrize("changes", [{"h": "another-host"}, {"n": "another namespace"}])
def test_an_owner_out_of_sight_is_left_alone_for_the_lease(folder, changes):
    assert Lock(folder).acquire()
    rewrite_owner(folder, 1, **changes)
    assert not Lock(folder, lease=600).acquire(wait=0.2)
    time.sleep(0.3)
    assert Lock(folder, lease=0.2).acquire()


def test_who_was_declared_dead_does_nothing_more(folder):
    mine = Lock(folder)
    assert mine.acquire()
    rewrite_owner(folder, 1, h="another-host")
    time.sleep(0.1)
    other = Lock(folder, lease=0.05)
    assert other.acquire()
    with pytest.raises(Lost):
        mine.check()
    assert not mine.release()
    other.check()


def test_a_holder_past_a_fifth_of_the_lease_is_stopped(folder):
    mine = Lock(folder, lease=0.5)
    assert mine.acquire()
    time.sleep(0.15)
    with pytest.raises(Lost):
        mine.check()


def test_old_generations_go_and_the_newest_stay(folder, monkeypatch):
    monkeypatch.setattr(lock, "KEEP_SECONDS", -1)
    for _ in range(200):
        mine = Lock(folder)
        assert mine.acquire() and mine.release()
    generations = [int(name[2:]) for name in os.listdir(folder) if name.startswith("g.")]
    assert max(generations) == 200 and lock.KEEP <= len(generations) <= lock.KEEP + 16


def test_without_symlinks(folder, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    first, second = Lock(folder), Lock(folder)
    assert first.acquire() and not second.acquire()
    assert first.release() and second.acquire()


def test_without_proc(folder, monkeypatch):
    monkeypatch.setattr(process, "PROC", "/nonexistent")
    first = Lock(folder)
    assert first.acquire() and not Lock(folder).acquire()
    pid = os.fork()
    if pid == 0:
        first.release()
        Lock(folder).acquire()
        os._exit(0)
    os.waitpid(pid, 0)
    assert Lock(folder).acquire()


def contend(folder, inside, counts, seed, seconds):
    """One contender: takes the lock again and again; with p = 5 % it is SIGKILLed inside. Never returns."""
    chance = random.Random(seed)
    end = time.time() + seconds
    entered = 0
    while time.time() < end:
        mine = Lock(folder)
        if not mine.acquire():
            time.sleep(chance.uniform(0, 0.05))
            continue
        try:
            fd = os.open(inside, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            with open(inside) as stream:
                pid = int(stream.read() or 0)
            if pid and process.alive(pid, ""):
                with open(counts + ".violations", "a") as stream:
                    stream.write("%d over %d\n" % (os.getpid(), pid))
            fd = os.open(inside, os.O_WRONLY | os.O_TRUNC)
        os.write(fd, b"%d" % os.getpid())
        os.close(fd)
        with open(counts, "ab", 0) as stream:
            stream.write(b".")
        entered += 1
        if chance.random() < 0.05:
            os.kill(os.getpid(), signal.SIGKILL)
        os.unlink(inside)
        mine.release()
    os._exit(0)


def test_contenders_killed_inside(memory_path, size, monkeypatch):
    """Figures printed: acquisitions, crashes inside, violations."""
    monkeypatch.setattr(lock, "KEEP_SECONDS", 2)  # so that deletion takes part in the race
    folder, inside, counts = [str(memory_path / name) for name in ("lock", "inside", "counts")]
    os.mkdir(folder)
    open(counts, "w").close()
    pids, crashes, seed = set(), 0, 0
    wanted = size.acquisitions if sys.version_info >= (3, 7) else size.acquisitions // 10  # once in full is enough
    end = time.time() + 1200
    while True:
        done = os.path.getsize(counts) >= wanted or time.time() > end
        while len(pids) < size.contenders and not done:
            seed += 1
            pid = os.fork()
            if pid == 0:
                contend(folder, inside, counts, seed, 20)
            pids.add(pid)
        if done:
            break
        pid, status = os.waitpid(-1, 0)
        pids.discard(pid)
        crashes += os.WIFSIGNALED(status)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    acquisitions = os.path.getsize(counts)
    violations = os.path.exists(counts + ".violations")
    sys.stdout.write(
        "%d contenders: %d acquisitions, %d crashes inside, %d violations\n"
        % (size.contenders, acquisitions, crashes, violations)
    )
    assert acquisitions >= wanted and crashes > acquisitions / 40
    assert not violations
