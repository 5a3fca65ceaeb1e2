"""The generation lock: one pump at a time among all nodes that share the root, without flock.

flock and fcntl succeed on two nodes at once, without an error, on NFSv3 without lockd, Lustre `localflock` and BeeGFS.
Creating a name is exclusive on all of them. In the folder:

    g.N   "generation N is taken": a symlink whose target is the owner as JSON
    r.N   "generation N is over": target "released", or {"broken_by": owner}

The lock is free when the highest g.N has its r.N; it is taken by creating g.(N+1). Names are never reused, so a cached
listing can mislead nobody into deleting a newer owner: that is the bug of every "stale, so unlink and create" lock.
g.N+1 can exist only after r.N, so two holders are possible only where `_stale` is wrong: a holder frozen for longer
than the lease between its check and its act. N is the fencing number that names the journal's segments.

A file system without symlinks gets a hard link of a full file, with the same meaning.
"""

import errno
import json
import os
import time

from . import fault, files, process
from .spool import random_name

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Optional, Tuple

fault.register(
    {
        "lock.take.before": "the next generation's name not yet created",
        "lock.take.after": "the lock is ours, nothing done yet",
        "lock.release.before": "everything done, the lock not yet released",
        "lock.release.after": "the lock released, late requests not yet looked for",
    }
)

BALLAST_BYTES = 64 << 10
KEEP = 64  # generations never deleted: a stale listing must find EEXIST
KEEP_SECONDS = 120  # twice the longest time an NFS client caches a listing


class Lost(Exception):
    """Somebody declared this holder dead, or it held the lock for longer than it may: do nothing more."""


def jitter(most: float) -> float:
    """A random number of seconds up to `most`. (The random module costs every wake 6 ms on Python 3.6.)"""
    return most * os.urandom(1)[0] / 255


def own_identity() -> "Dict[str, Any]":
    """What a holder writes about itself."""
    pid = os.getpid()
    return {
        "u": random_name(8),
        "h": process.host(),
        "b": process.boot_id(),
        "n": process.pid_namespace(),
        "p": pid,
        "s": process.start_time(pid),
        "j": os.environ.get("PBS_JOBID", "")[:80],
        "t": int(time.time()),
    }


class Lock:
    """The lock in `folder`. `lease` in seconds: how long an owner on another host is believed to be alive."""

    def __init__(self, folder: str, lease: float = 600.0) -> None:
        self.folder = folder
        self.lease = lease
        self.generation = 0  # ours while we hold it
        self.took_over = False  # the generation before ours was broken, not released
        self.expires = 0.0  # seconds until an owner who kept us from it, and is not proved alive, counts as dead
        self._since = 0.0

    # -- taking ----------------------------------------------------------------------------------------------------

    def acquire(self, wait: float = 0.0) -> bool:
        """Take the lock, or False: somebody alive has it (at once), or somebody not proved dead (after `wait`
        seconds)."""
        deadline = time.monotonic() + wait
        me = own_identity()
        text = json.dumps(me, separators=(",", ":"), sort_keys=True)
        while True:
            outcome = self._try(text)
            if outcome == "won":
                self._since = time.monotonic()
                fault.point("lock.take.after")
                return True
            if outcome == "alive" or (outcome == "unknown" and time.monotonic() >= deadline):
                return False
            time.sleep(jitter(0.02) if outcome == "raced" else min(1.0, max(0.05, wait / 20)))

    def _try(self, text: str) -> str:
        self.expires = 0.0
        taken, over = self._listing()
        last = max(taken, default=0)
        broke = False
        if last and last not in over:
            # A cached listing may lack r.N: our own create makes an NFS client read the folder again.
            self._refresh()
            taken, over = self._listing()
            last = max(taken, default=0)
        if last and last not in over:
            verdict = self._judge(last)
            if verdict != "stale":
                return verdict
            self._create("r.%d" % last, json.dumps({"broken_by": json.loads(text)["u"]}))
            broke = True
        fault.point("lock.take.before")
        mine = "g.%d" % (last + 1)
        if not self._create(mine, text) and self._read(mine) != text:
            self._refresh()  # a name that exists already does not make an NFS client read the folder again: we do
            return "raced"
        taken, over = self._listing()
        if max(taken, default=0) != last + 1:
            self._delete(mine)  # an old listing let us create a name behind the front
            return "raced"
        if last + 1 in over:
            return "raced"  # frozen behind our own create, and taken for dead; r.N stands, so g.N has to stay
        self.generation = last + 1
        self.took_over = broke or self._was_broken(last)
        return "won"

    def _was_broken(self, generation: int) -> bool:
        return generation > 0 and self._read("r.%d" % generation) != "released"

    def _judge(self, generation: int) -> str:
        """ "alive", "stale" or "unknown": what can be proved about the owner of a generation that is not over."""
        text = self._read("g.%d" % generation)
        try:
            owner = json.loads(text or "")
        except ValueError:
            owner = {}
        if not text:
            return "raced"
        here = (owner.get("h"), owner.get("b")) == (process.host(), process.boot_id())
        if here and owner.get("n") == process.pid_namespace() and isinstance(owner.get("p"), int):
            if not process.alive(owner["p"], str(owner.get("s", ""))):
                return "stale"
            if not process.stopped(owner["p"]):
                return "alive"
        if owner.get("h") == process.host() and owner.get("b") and process.boot_id() and not here:
            return "stale"  # this host has been booted since
        age = files.file_age(os.path.join(self.folder, "g.%d" % generation), self.folder)
        if age is not None and age > self.lease:
            return "stale"
        self.expires = self.lease - (age or 0.0)
        return "unknown"

    # -- holding ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise Lost unless it is certain that we still hold the lock. To be called before every call that can't be
        undone."""
        if time.monotonic() - self._since > self.lease / 5:
            raise Lost("held for more than a fifth of the lease")
        self._refresh()
        taken, over = self._listing()
        if self.generation in over or max(taken, default=0) != self.generation:
            raise Lost("generation %d was taken over" % self.generation)

    def time_left(self) -> float:
        """Seconds until `check` will refuse; a holder with more to do than that releases and takes the lock again."""
        return self.lease / 5 - (time.monotonic() - self._since)

    def release(self) -> bool:
        """Give the lock back; False where somebody had declared us dead."""
        fault.point("lock.release.before")
        try:
            ours = self._create("r.%d" % self.generation, "released")
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            files.remove(os.path.join(self.folder, "ballast"))
            ours = self._create("r.%d" % self.generation, "released")
        fault.point("lock.release.after")
        if self.generation % 16 == 0:
            self._prune()
        return ours

    def _prune(self) -> None:
        taken, over = self._listing()
        now = self._released_at(self.generation)  # a host's own clock may be a quarter of an hour ahead
        for generation in sorted(set(taken) | set(over)):
            if generation > self.generation - KEEP:
                return
            if now - self._released_at(generation) > KEEP_SECONDS:
                self._delete("g.%d" % generation)
                self._delete("r.%d" % generation)

    def _released_at(self, generation: int) -> float:
        """When a generation was over, by the file server's clock; 0 where that is not known."""
        try:
            return os.lstat(os.path.join(self.folder, "r.%d" % generation)).st_mtime
        except OSError:
            return 0.0

    # -- names -----------------------------------------------------------------------------------------------------

    def _listing(self) -> "Tuple[List[int], List[int]]":
        taken: "List[int]" = []
        over: "List[int]" = []
        for name in os.listdir(self.folder):
            kind, _, number = name.partition(".")
            if kind in ("g", "r") and number.isdigit():
                (taken if kind == "g" else over).append(int(number))
        return taken, over

    def _refresh(self) -> None:
        scratch = os.path.join(self.folder, "s.%s" % random_name(12))
        os.close(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        files.remove(scratch)

    def _create(self, name: str, text: str) -> bool:
        return create_link(os.path.join(self.folder, name), text)

    def _read(self, name: str) -> "Optional[str]":
        return read_link(os.path.join(self.folder, name))

    def _delete(self, name: str) -> None:
        files.remove(os.path.join(self.folder, name))


def ensure_ballast(folder: str) -> None:
    """Keep a file in the lock's folder that can be deleted when the disk is full: a lock must always be given back."""
    path = os.path.join(folder, "ballast")
    if not os.path.exists(path):
        files.write_file(path, os.urandom(BALLAST_BYTES))  # random: a compressing file system keeps its space too


def create_link(path: str, text: str) -> bool:
    """Create the name `path` with the content `text`, atomically; False where the name exists."""
    try:
        os.symlink(text, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(error.errno, error.strerror, path) from None  # by itself it would name the text
    temporary = path + "." + random_name(12)
    files.write_file(temporary, text.encode("utf-8"), exclusive=True)
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    finally:
        files.remove(temporary)


def read_link(path: str) -> "Optional[str]":
    """The text `create_link` gave `path`, None where it does not exist."""
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    try:
        with open(path, "rb") as stream:
            return stream.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return None
