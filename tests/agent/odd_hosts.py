"""What a forked process takes for its host: a name and a boot of its own, a wrong clock, a file system with manners.

Only what the agent asks the system for is replaced, and only in the process that calls `become`: a fork, so that it
ends with it. The lock knows a host by its name, its boot id and its pid namespace.
"""

import errno
import fcntl
import os
import random
import time

from chasqui_agent import process


class Host:
    """name: of the host; skew: seconds its clock is ahead; manners: functions that spoil the file system."""

    def __init__(self, name, skew=0.0, manners=()):
        self.name, self.skew, self.manners = name, skew, manners

    def become(self):
        """Be a process of this host from now on."""
        right = time.time
        process.host = lambda: self.name
        process.boot_id = lambda: "the boot of " + self.name
        time.time = lambda: right() + self.skew
        for spoil in self.manners:
            spoil()


def flock_refused():
    """No lock daemon (ENOLCK), or no such call at all (ENOSYS)."""

    def refuse(*_):
        number = random.choice([errno.ENOLCK, errno.ENOSYS])
        raise OSError(number, os.strerror(number))

    fcntl.flock = fcntl.lockf = fcntl.fcntl = refuse


def flock_for_everybody():
    """What NFSv3 without lockd, Lustre's localflock and BeeGFS do with locks of two hosts: both get it."""
    fcntl.flock = fcntl.lockf = fcntl.fcntl = lambda *_: None


def no_symlinks():
    """As on FAT and some parallel file systems."""

    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    os.symlink = refuse


class OldListings:
    """Have `os.listdir` answer as an NFS client does: the names of up to `seconds` ago, until this process changes the
    folder itself. A creation that fails because the name exists changes nothing, and the old listing stays."""

    def __init__(self, seconds, *folders):
        self.seconds, self.folders, self.kept = seconds, folders, {}

    def __call__(self):
        self._real = os.listdir
        os.listdir = self.listdir
        for name, place in (("symlink", 1), ("link", 1), ("unlink", 0), ("mkdir", 0), ("rmdir", 0), ("rename", 1)):
            setattr(os, name, self._changing(getattr(os, name), place))
        self._open = os.open
        os.open = self.open

    def listdir(self, path="."):
        if path not in self.folders:
            return self._real(path)
        names, until = self.kept.get(path, ((), 0.0))
        if time.monotonic() >= until:
            names = self._real(path)
            self.kept[path] = names, time.monotonic() + random.uniform(0, self.seconds)
        return list(names)

    def _changing(self, real, place):
        def change(*args, **more):
            result = real(*args, **more)
            for path in args[: place + 1]:
                self.kept.pop(os.path.dirname(path), None)
            return result

        return change

    def open(self, path, flags, *more, **named):
        fd = self._open(path, flags, *more, **named)
        if flags & os.O_CREAT:
            self.kept.pop(os.path.dirname(path), None)
        return fd
