"""What of an attempt's files the next one gets (retries.py): copied before the end of the one, or moved behind it.

A pump that copies holds the lock, and whoever has something to submit waits for it. So a copy is compared with the room
there is before it begins, and stops where it would take most of the lock's time: the end is then left for another round
(`PutOff`), and this one goes on with everything else. Each try is counted first, durably, so that copies which take too
long, or during which somebody dies, are given up behind the third.
"""

import errno
import os
import stat

from . import beneath, copies, durable, files, leftovers, offers, policy, space, spoiled, wire
from .lock import Lost

MYPY = False
if MYPY:
    from typing import Any, Dict, Iterator, List, Tuple

    from .pump import Round
    from .spool import Entry

    Found = Tuple[bytes, os.stat_result]

INPUTS = "inputs"
TRIED = "copied"  # in .chasqui of the attempt before: how often this was begun
TRIES = 3


class Refused(Exception):
    """There can be no next attempt; the message says why."""


class PutOff(Exception):
    """There is no time for it in this round."""


class Copier:
    """Builds what the next attempt of `entry` begins with in the new folder `new`. What fails is Refused or OSError."""

    def __init__(self, pump: "Round", entry: "Entry", new: str) -> None:
        """Counts a try. Raises PutOff, Refused behind the last."""
        self.pump, self.new = pump, new
        self.old = pump.spool.work_dir(entry.job, entry.attempt)
        self.rows: "List[Dict[str, Any]]" = offers.manifest_of(self.old)
        self._anew = " (chasqui retry %s starts it anew)" % entry.job
        if not self.rows:
            raise Refused("the record of its inputs is gone")
        left, lease = pump.lock.time_left(), pump.settings.lease
        if pump.copying and left < lease / 10:
            raise PutOff()  # not for what it needs itself: no try of its own
        pump.copying = True
        self._least = min(lease / 20, left / 2)
        self._count(pump.spool.meta_dir(entry.job, entry.attempt))

    def _count(self, meta: str) -> None:
        path = os.path.join(meta, TRIED)
        tried = os.path.getsize(path) if os.path.lexists(path) else 0
        if tried >= TRIES:
            raise Refused("%d pumps had no time to copy its files%s" % (TRIES, self._anew))
        spoiled.let_in(meta, lambda: files.write_file(path, b"x" * (tried + 1)))

    def inputs(self) -> "List[Dict[str, Any]]":
        """The inputs as they were uploaded; their rows for the manifest."""
        self._bound(self.rows)
        spoiled.unlock(os.path.join(self.old, ".chasqui", INPUTS))
        found = []
        for row in self.rows:
            source = os.path.join(self.old, ".chasqui", INPUTS, row["sha256"])
            target = os.path.join(os.fsencode(self.new), wire.confined(row["path"]))
            os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
            try:
                if not stat.S_ISREG(os.lstat(source).st_mode):
                    raise Refused("%s as it was uploaded is not there any more" % row["path"])
                copies.copy(os.fsencode(source), target, row["mode"], self.tick)
            except FileNotFoundError:
                raise Refused("%s as it was uploaded is not there any more" % row["path"]) from None
            if leftovers.hash_of(os.fsdecode(target), self.tick) != row["sha256"]:
                raise Refused("%s is not what was uploaded any more" % row["path"])
            found.append(dict(row, mtime_ns=os.lstat(target).st_mtime_ns))
        return found

    def everything(self) -> "List[Dict[str, Any]]":
        """All there is now, as if it were moved, with its times: by those the manifest knows its inputs. Sockets stay,
        nobody listens there; folders can be written to."""
        folder = beneath.open_folder(self.old)
        try:
            found = []
            for item in self._below(folder):
                self.tick()
                found.append(item)
            self._bound([{"path": wire.path_text(path), "size": status.st_size if stat.S_ISREG(status.st_mode) else 0}
                         for path, status in found])
            for path, status in found:
                self._take(folder, path, status)
            for path, status in reversed(found):
                if stat.S_ISDIR(status.st_mode):
                    self._as_it_was(path, status, status.st_mode | 0o700)
        finally:
            os.close(folder)
        return self.rows

    def _bound(self, listed: "List[Dict[str, Any]]") -> None:
        """Raise Refused where it is more than is copied, or than there is room for."""
        total = sum(item["size"] for item in listed)
        if total > policy.MOST_COPIED:
            most = space.size(policy.MOST_COPIED)
            raise Refused("its files are %s, and at most %s are copied%s" % (space.size(total), most, self._anew))
        lacking = space.Room(self.pump.spool.work, self.pump.spool.root).take(*space.need(listed))
        if lacking:
            raise Refused(lacking + self._anew)

    def _below(self, folder: int, prefix: bytes = b"", depth: int = 0) -> "Iterator[Found]":
        """All but .chasqui, folders before what they hold. Raises Refused where something can't be looked at."""
        try:
            names = sorted(map(os.fsencode, os.listdir(folder)))
            if depth > beneath.MAX_DEPTH:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        except OSError as error:
            raise self._left_out(prefix, error) from None
        for name in names if depth else [name for name in names if name != b".chasqui"]:
            try:
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                yield prefix + name, status
                below = beneath.open_below(folder, name) if stat.S_ISDIR(status.st_mode) else -1
            except FileNotFoundError:
                continue  # its processes may live on
            except OSError as error:
                raise self._left_out(prefix + name, error) from None
            try:
                for item in self._below(below, prefix + name + b"/", depth + 1) if below >= 0 else ():
                    yield item
            finally:
                if below >= 0:
                    os.close(below)

    def _take(self, folder: int, path: bytes, status: "os.stat_result") -> None:
        target = os.path.join(os.fsencode(self.new), path)
        try:
            if stat.S_ISDIR(status.st_mode):
                os.mkdir(target, 0o700)
            elif stat.S_ISLNK(status.st_mode):
                os.symlink(_link(folder, path), target)
            elif stat.S_ISFIFO(status.st_mode):
                os.mkfifo(target, 0o600)
                self._as_it_was(path, status, status.st_mode)
            elif stat.S_ISREG(status.st_mode):
                copies.copy_open(beneath.open_file(folder, path), target, 0o600, self.tick)
                self._as_it_was(path, status, status.st_mode)
        except FileNotFoundError:
            pass  # gone meanwhile
        except OSError as error:
            if files.no_space(error):
                raise
            raise self._left_out(path, error) from None

    def _as_it_was(self, path: bytes, status: "os.stat_result", mode: int) -> None:
        target = os.path.join(os.fsencode(self.new), path)
        if os.path.lexists(target):
            os.chmod(target, mode & 0o777)
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _left_out(self, path: bytes, error: OSError) -> Refused:
        name = wire.printable(wire.path_text(path.rstrip(b"/"))) or "its folder"
        return Refused("%s can't be copied: %s%s" % (name, error.strerror, self._anew))

    def tick(self) -> None:
        """To be called at every piece. Raises PutOff, Lost."""
        left = self.pump.lock.time_left()
        if left < 1:
            raise Lost("no time left to copy files for a retry")
        if left < self._least:
            raise PutOff()

    def settle(self) -> None:
        """All of it is durable. Raises Lost where the lock is not ours any more: nobody can stop a sync."""
        durable.settle([self.new])
        files.fsync_folder(os.path.dirname(self.new))
        self.pump.lock.check()


def _link(folder: int, path: bytes) -> bytes:
    above, name = beneath.open_above(folder, path)
    try:
        return os.readlink(name, dir_fd=above)
    finally:
        os.close(above)


# -- behind the end ----------------------------------------------------------------------------------------------------


def move_on(old: str, new: str, everything: bool) -> None:
    """Move the kept inputs of an attempt to the next one's folder, and (everything) whatever else it left. Called
    again, it moves what is left. What can't be moved stays: no job's files may stop the relay. A full disk raises."""
    for name in _names(old) if everything else ():
        if name != ".chasqui":
            _rename(os.path.join(old, name), os.path.join(new, name))
    _rename(os.path.join(old, ".chasqui", INPUTS), os.path.join(new, ".chasqui", INPUTS))
    files.fsync_folder(new)


def _names(folder: str) -> "List[str]":
    for _ in range(2):
        try:
            return files.names(folder)
        except OSError:
            spoiled.unlock(folder)
    return []


def _rename(old: str, new: str) -> None:
    """What is gone was moved before; what has come back under the name of a folder that was moved stays, and so does
    what is in use, or another file system's."""
    try:
        os.rename(old, new)
        return
    except OSError as error:
        if files.no_space(error):
            raise
        if error.errno not in (errno.EACCES, errno.EPERM):
            return
    # Jobs protect their folders; one that goes to another place has to be writable itself.
    mode = spoiled.unlock(old)
    spoiled.unlock(os.path.dirname(old))
    try:
        os.rename(old, new)
        if mode >= 0:
            os.chmod(new, mode)
    except OSError as error:
        if files.no_space(error):
            raise
