"""Results on this computer: in <job folder>/<results dir>/, under their final name only once their hash is right.

The job's folder may have changed under us, and what the cluster calls a result is not trusted: every folder on the way
is opened relative to the one above without following symlinks, and a file is written into results/.chasqui/, checked,
fsynced and then renamed to its place. A crash leaves at most a file in there, which the next sync removes.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from chasqui_agent import fault, wire

from . import errors, states
from .config import Home, Remote
from .exchange import SyncReport
from .ledger import Job, Ledger, ResultFile
from .messages import Key, Listed, Listing, Target

fault.register(
    {
        "results.rename.before": "a result is whole and verified, not yet under its final name",
        "results.rename.after": "a result is under its final name, not yet recorded",
    }
)

PARTS = b".chasqui"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT)
_BATCH = 200  # files between two commits of the ledger


@contextmanager
def _opened(path: bytes, above: int | None = None, make: bool = False) -> Iterator[int]:
    """A descriptor of the folder `path`; raises OSError where it is a symlink."""
    if make:
        try:
            os.mkdir(path, 0o777, dir_fd=above)
        except FileExistsError:
            pass
    fd = os.open(path, _FOLDER, dir_fd=above)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _folder_of(results: bytes, path: bytes) -> Iterator[tuple[int, bytes]]:
    """(descriptor of the folder that `path` stands in below `results`, its name there); makes what is missing."""
    *parents, name = path.split(b"/")
    fd = os.open(results, _FOLDER)
    try:
        for parent in parents:
            with _opened(parent, fd, make=True) as below:
                below = os.dup(below)
            os.close(fd)
            fd = below
        yield fd, name
    finally:
        os.close(fd)


def _hash_of(results: bytes, file: Listed) -> str:
    """SHA-256 of a file that is here already and has the right size, else ""."""
    try:
        with _folder_of(results, file.path) as (folder, name):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as stream:
        if os.fstat(fd).st_size != file.size:
            return ""
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Arriving:
    """One file on its way in."""

    def __init__(self, receiver: "Receiver", job: Job, file: Listed) -> None:
        self.receiver, self.job, self.file = receiver, job, file
        self.results = job.results_path
        self.part = b"%s.part" % os.urandom(8).hex().encode("ascii")
        self.digest = hashlib.sha256()
        with _opened(self.results) as results, _opened(PARTS, results) as parts:
            # The user's umask decides who may read it; of the cluster's mode only "executable" counts.
            mode = 0o777 if file.mode & 0o100 else 0o666
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.fd = os.open(self.part, flags, mode, dir_fd=parts)

    def write(self, data: bytes) -> None:
        """Take some of the content."""
        self.digest.update(data)
        wire.write_all(self.fd, data)
        self.receiver.arrived(len(data))

    def finish(self, sha256: str) -> None:
        """All has come: check, fsync, rename. A file that is not what was listed is dropped, and asked for again."""
        try:
            right = self.digest.hexdigest() == sha256 == self.file.sha256
            if right:
                os.utime(self.fd, (self.file.mtime, self.file.mtime))
                os.fsync(self.fd)
        finally:
            os.close(self.fd)
        with _opened(self.results) as results, _opened(PARTS, results) as parts:
            if not right:
                os.unlink(self.part, dir_fd=parts)
            else:
                with _folder_of(self.results, self.file.path) as (folder, name):
                    fault.point("results.rename.before")
                    os.rename(self.part, name, src_dir_fd=parts, dst_dir_fd=folder)
                    fault.point("results.rename.after")
                    os.fsync(folder)
        self.receiver.settled(self.job, self.file, right, "" if right else "it changed while it was sent")


class _Discarded:
    """Where a file goes that can't be written here."""

    def __init__(self, receiver: "Receiver", job: Job, file: Listed, why: str) -> None:
        self.receiver, self.job, self.file, self.why = receiver, job, file, why

    def write(self, data: bytes) -> None:
        """Nowhere."""
        self.receiver.arrived(len(data))

    def finish(self, sha256: str) -> None:
        """It stays wanted."""
        self.receiver.settled(self.job, self.file, False, self.why)


class Receiver:
    """The results of one session: what of them is wanted, where they go, and what the ledger learns of it."""

    def __init__(self, ledger: Ledger, remote: str, report: SyncReport) -> None:
        self.ledger, self.remote, self.report = ledger, remote, report
        self.expected = 0  # bytes
        self.received = 0
        self._jobs: dict[Key, Job] = {}
        self._due: dict[Key, int] = {}
        self._here: list[tuple[Job, Listed]] = []

    # -- choosing --------------------------------------------------------------------------------------------------

    def choose(self, listing: Listing) -> list[int]:
        """The indices of the files to fetch, recorded as wanted. Older attempts and strangers' jobs: none."""
        job = self.ledger.job(listing.job)
        if job is None or job.remote != self.remote or job.attempt != listing.attempt or not job.ended:
            return []
        if job.results_state in (states.CLEANUP_ELIGIBLE, states.CLEANED) and not listing.fetched:
            return []  # what is still there says nothing of what came home
        if listing.gone:
            self.report.notes.append("results of %s can't be had: %s" % (wire.printable(job.name, 80), listing.gone))
            return []
        try:
            self._prepare(job)
        except OSError as error:
            self._complain(job, error)
            return []
        self._name_left_out(job, listing)
        chosen = self._missing(job, listing)
        self._record(job, listing, chosen)
        key = (job.id, job.attempt)
        self._jobs[key], self._due[key] = job, len(chosen)
        self.expected += sum(listing.files[index].size for index in chosen)
        if not chosen:
            self._finish(job)
        return chosen

    def _complain(self, job: Job, error: OSError) -> None:
        if error.errno in _FULL:
            raise errors.DiskFullHere(path=wire.path_text(job.results_path)) from error
        why = "it is a symlink or no folder" if error.errno in (errno.ELOOP, errno.ENOTDIR) else errors.describe(error)
        self.report.notes.append("results of %s stay on the cluster: %s: %s. Put that right, then: chasqui sync" % (
            wire.printable(job.name, 80), wire.path_text(job.results_path), why))

    def _prepare(self, job: Job) -> None:
        """An empty place for parts in the results folder; an earlier attempt's results are moved aside first."""
        results = job.results_path
        if job.attempt > 1 and not self._has_some(job, job.attempt):
            self._move_earlier(job)
        with _opened(os.path.dirname(results)) as above, _opened(os.path.basename(results), above, make=True) as folder:
            with _opened(PARTS, folder, make=True) as parts:
                for name in os.listdir(parts):
                    os.unlink(os.fsencode(name), dir_fd=parts)

    def _has_some(self, job: Job, attempt: int) -> bool:
        return any(file.state == "HERE" for file in self.ledger.result_files(job.id, attempt))

    def _move_earlier(self, job: Job) -> None:
        earlier = next((n for n in range(job.attempt - 1, 0, -1) if self._has_some(job, n)), 0)
        aside = b"%s.attempt-%d" % (job.results_path, earlier)
        if earlier and os.path.isdir(job.results_path) and not os.path.lexists(aside):
            os.rename(job.results_path, aside)

    def _missing(self, job: Job, listing: Listing) -> list[int]:
        """Indices of files that are neither recorded as here nor (after a crash) here all the same."""
        known = {f.path: f.sha256 for f in self.ledger.result_files(job.id, job.attempt) if f.state == "HERE"}
        chosen = []
        for index, file in enumerate(listing.files):
            if file.path.split(b"/")[0] == PARTS or file.size > self._limit(job, listing):
                self.report.notes.append("a result of %s was not taken: %s" % (
                    wire.printable(job.name, 80), wire.printable(wire.path_text(file.path))))
            elif known.get(file.path) == file.sha256:
                continue
            elif _hash_of(job.results_path, file) == file.sha256:
                self._here.append((job, file))
            else:
                chosen.append(index)
        return chosen

    @staticmethod
    def _limit(job: Job, listing: Listing) -> int:
        """The agent was told the same limit; one that does not keep to it must not fill this disk."""
        limit = job.options.get("max_file")
        return limit if isinstance(limit, int) and not listing.fetched else 1 << 62

    def _name_left_out(self, job: Job, listing: Listing) -> None:
        before = {f.path for f in self.ledger.result_files(job.id, job.attempt) if f.state == "LEFT"}
        for item in listing.left_out:
            if item["path"] not in before:
                self.report.left_out.append({"job": job.id, "path": wire.path_text(item["path"]),
                                             "size": item["size"], "why": item["why"]})

    def _record(self, job: Job, listing: Listing, chosen: list[int]) -> None:
        rows = [ResultFile(f.path, f.size, f.mode, f.mtime, f.sha256, f.kind, "WANTED") for f in listing.files]
        rows += [ResultFile(item["path"], item["size"], 0, 0.0, "", "output", "LEFT", item["why"])
                 for item in listing.left_out]
        if listing.fetched:
            asked = {row.path for row in rows}
            rows += [row for row in self.ledger.result_files(job.id, job.attempt) if row.path not in asked]
            if not listing.files:
                self.report.notes.append("%s has no such result" % wire.printable(job.name, 80))
        with self.ledger.transaction():
            self.ledger.record_results(job.id, job.attempt, rows)
            if chosen and job.results_state == states.NONE:
                self.ledger.set_results_state(job.id, states.PARTIAL)

    # -- arriving --------------------------------------------------------------------------------------------------

    def target(self, key: Key, file: Listed) -> Target:
        """Where a chosen file goes. Raises DiskFullHere."""
        job = self._jobs[key]
        try:
            return _Guarded(_Arriving(self, job, file))
        except OSError as error:
            self._complain(job, error)
            return _Discarded(self, job, file, errors.describe(error))

    def arrived(self, size: int) -> None:
        """Bytes have come in."""
        self.received += size

    def settled(self, job: Job, file: Listed, here: bool, why: str) -> None:
        """One file is done with: here, or not this time."""
        key = (job.id, job.attempt)
        if here:
            self._here.append((job, file))
            self.report.results_files += 1
            self.report.results_bytes += file.size
        else:
            self.report.notes.append("%s of %s: %s; the next sync asks again" % (
                wire.printable(wire.path_text(file.path)), wire.printable(job.name, 80), why))
        self._due[key] -= 1
        if not self._due[key]:
            self._finish(job)
        elif len(self._here) >= _BATCH:
            self.commit()

    def gone(self, key: Key, file: Listed, why: str) -> None:
        """A file that was listed can't be sent."""
        self.settled(self._jobs[key], file, False, why or "it is gone")

    def commit(self) -> None:
        """Record what has arrived."""
        with self.ledger.transaction():
            for job, file in self._here:
                self.ledger.set_result(job.id, job.attempt, file.path, "HERE")
        self._here = []

    def _finish(self, job: Job) -> None:
        """The last file of a job is in: verified, if none is missing."""
        with self.ledger.transaction():
            self.commit()
            missing = any(f.state == "WANTED" for f in self.ledger.result_files(job.id, job.attempt))
            now = self.ledger.job(job.id)
            if not missing and now and now.results_state in (states.NONE, states.PARTIAL):
                self.ledger.set_results_state(job.id, states.VERIFIED)
                self.report.results_jobs += 1
        self._sweep(job)

    @staticmethod
    def _sweep(job: Job) -> None:
        """Remove the empty place for parts, and the results folder where there are none."""
        try:
            with _opened(job.results_path) as results:
                os.rmdir(PARTS, dir_fd=results)
            os.rmdir(job.results_path)
        except OSError:
            return


class _Guarded:
    """A file arriving whose disk may fill up: its part is removed, and the session ends with a clear word."""

    def __init__(self, arriving: _Arriving) -> None:
        self.arriving = arriving

    def write(self, data: bytes) -> None:
        try:
            self.arriving.write(data)
        except OSError as error:
            self._give_up(error)

    def finish(self, sha256: str) -> None:
        try:
            self.arriving.finish(sha256)
        except OSError as error:
            if error.errno in _FULL:
                self._give_up(error)
            # A folder stands where the file should, or the results folder was swapped for a symlink meanwhile.
            self.arriving.receiver.settled(self.arriving.job, self.arriving.file, False, errors.describe(error))

    def _give_up(self, error: OSError) -> None:
        import shutil
        shutil.rmtree(os.path.join(self.arriving.results, PARTS), ignore_errors=True)
        where = wire.path_text(self.arriving.results)
        if error.errno in _FULL:
            raise errors.DiskFullHere(path=where) from error
        raise errors.HomeUnusable(errors.describe(error), path=where, hint="") from error


# -- the output of a job that still runs -------------------------------------------------------------------------------


def follow_logs(home: Home, remote: Remote, job: Job) -> int:
    """Print a job's output as it grows, until it ends or Ctrl-C. Raises AgentMissing, NotConnected, ConnectionLost."""
    import sys

    from . import deploy, launcher

    interactive = sys.stdin.isatty() and sys.stderr.isatty()
    transport = deploy.transport_to(home, remote, interactive)
    channel = transport.start(launcher.module(remote.root, "output", [job.id, str(job.attempt)]))
    channel.silence = 1e6  # a job may be silent for days; our end of its stdin tells the agent that we are still here
    try:
        for text in deploy.lines_of(channel, remote):
            sys.stdout.write(wire.printable(text, 10_000) + "\n")
            sys.stdout.flush()
    finally:
        status = channel.close(2.0)
    deploy.check_status(remote, status, channel.stderr_tail())
    if status:
        raise errors.BadInput("%s has no output yet." % job.name, hint="chasqui status")
    return 0
