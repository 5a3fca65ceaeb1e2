"""Results on this computer: which files of a slice of listings are wanted, and what the ledger learns of them.

Jobs are recorded many at a time, when all that was chosen of them has come or won't: one durability pass (`landing`),
then one transaction. A session that is cut records what has come; a client that is killed does not record the last of
it, and the next session asks for the hashes of what it finds.
"""

import errno
import os
from collections.abc import Iterator

from chasqui_agent import wire

from . import errors, states
from .config import Home, Remote
from .exchange import SyncReport
from .fields import replace
from .landing import PARTS, SMALL, Arriving, Folder, Landing
from .ledger import Job, Ledger, ResultFile
from .messages import Arrived, Key, Listed, Listing, Target

BATCH = 300  # jobs; when as many have come they are recorded, while more come
BIG = 4 << 20  # bytes; files beyond come when the small results of all jobs are here
_AGAIN = 500  # jobs asked to be listed again in one turn: the agent lists no more in one
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NAMED = 1000  # files left out, jobs incomplete, notes that a report names


class _Offered:
    """The results of one job of the slice, and what becomes of each."""

    def __init__(self, job: Job, listing: Listing, known: list[ResultFile]) -> None:
        self.job, self.listing = job, listing
        self.known = {file.path: file for file in known}
        # What is here stays known, also when it is no longer listed: a fetch got it, or it was removed there.
        self.rows = {file.path: file for file in known if listing.fetched or file.state == "HERE"}
        self.wanted: dict[int, int] = {}  # index -> bytes that need not come
        self.pending = 0  # files that were asked for and have not come
        self.told = False  # that its results can't be written here
        self.failed: dict[bytes, str] = {}  # path -> why; it may come right when it is listed again

    def row(self, file: Listed, state: str, sha256: str = "", why: str = "") -> None:
        """Note what is known of a file."""
        self.rows[file.path] = ResultFile(file.path, file.size, file.mode, file.mtime_ns, sha256, file.kind, state, why)

    def is_here(self, file: Listed) -> bool:
        """Whether the ledger has it as it is there now."""
        row = self.known.get(file.path)
        return row is not None and row.state == "HERE" and (row.size, row.mtime_ns) == (file.size, file.mtime_ns)

    @property
    def missing(self) -> tuple[str, ...]:
        """Only a job that completed should have what was expected of it."""
        if self.listing.fetched:
            return self.job.missing
        return self.listing.missing if self.job.state == states.COMPLETED else ()

    @property
    def whole(self) -> bool:
        """Whether nothing is left to come."""
        return not self.missing and not any(row.state == "WANTED" for row in self.rows.values())


class Receiver:
    """The results of one session."""

    def __init__(self, ledger: Ledger, remote: str, report: SyncReport) -> None:
        self.ledger, self.remote, self.report = ledger, remote, report
        self.expected = 0  # bytes asked for so far
        self._landing = Landing()
        self._next: dict[Key, _Offered] = {}  # the slice that was listed last
        self._chosen: dict[Key, _Offered] = {}  # the one that was asked for
        self._slice: dict[Key, _Offered] = {}  # the one whose files come
        self._here: list[_Offered] = []  # those of which all has come, not recorded yet
        self._later: list[Key] = []  # jobs with big files, to be listed again
        self._waited: set[Key] = set()  # those whose big files have waited once, and don't again
        self._again: dict[Key, _Offered | None] = {}  # jobs with files that did not come right; None: listed again
        self._target: _Target | None = None

    def close(self) -> None:
        """Record what has come, however the session ended."""
        if self._target:
            self._target.leave()
        self.over()
        for offered in filter(None, self._again.values()):
            self._give_up(offered)
        self.delivered()

    # -- choosing --------------------------------------------------------------------------------------------------

    def listed(self, listings: list[Listing]) -> None:
        """Find out what is wanted of a slice."""
        self._next = {offered.listing.key: offered for offered in self._offered(listings)}

    def choose(self, more: bool) -> Iterator[tuple[Key, list[tuple[int, int]]]]:
        """What to fetch of a slice: small files of all its jobs, then big ones, the smallest first.

        Big ones wait, once, until there are no more slices: their jobs are then listed again, as are, once, those with
        files that changed on their way.
        """
        self._chosen, self._next = self._next, {}
        for offered in self._chosen.values():
            offered.pending = len(offered.wanted)
        big: list[tuple[int, Key, int, int]] = []
        for key, offered in self._chosen.items():
            sizes = {index: offered.listing.files[index].size for index in offered.wanted}
            big += [(sizes[index], key, index, have) for index, have in offered.wanted.items() if sizes[index] > BIG]
            small = [(index, have) for index, have in offered.wanted.items() if sizes[index] <= BIG]
            self.expected += sum(sizes[index] - have for index, have in small)
            if small:
                yield key, small
        later = dict.fromkeys(key for _, key, _, _ in big if more and key not in self._waited)
        self._waited.update(later)
        self._later += later
        for size, key, index, have in sorted(big):
            if key in later:
                self._chosen[key].pending -= 1
            else:
                self.expected += size - have
                yield key, [(index, have)]
        if not more:
            yield from ((key, []) for key in self._listed_again())

    def _listed_again(self) -> list[Key]:
        asked = self._later[:_AGAIN]
        del self._later[:_AGAIN]
        failed = [key for key, offered in self._again.items()
                  if offered and key not in asked and key not in self._chosen][:_AGAIN - len(asked)]
        self._again.update(dict.fromkeys(failed))
        return asked + failed

    def _offered(self, listings: list[Listing]) -> Iterator[_Offered]:
        """The listings that concern us. Of older attempts and strangers' jobs nothing is wanted."""
        jobs = self.ledger.jobs_by_id(listing.job for listing in listings)
        known = self.ledger.results_of(jobs)
        for listing in listings:
            job = jobs.get(listing.job)
            if job is None or job.remote != self.remote or job.attempt != listing.attempt or not job.ended:
                continue
            if job.results_state in (states.CLEANUP_ELIGIBLE, states.CLEANED) and not listing.fetched:
                continue  # what is still there says nothing of what came home
            if listing.gone:
                self._note("results of %s can't be had: %s" % (wire.printable(job.name, 80), listing.gone))
                continue
            offered = _Offered(job, listing, known.get(listing.key, []))
            try:
                self._consider(offered)
            except OSError as error:
                self._complain(job, error)
                continue
            yield offered

    def _consider(self, offered: _Offered) -> None:
        """Find out what is wanted of a job. Raises OSError where its results can't be written."""
        job, listing = offered.job, offered.listing
        if job.attempt > 1 and not offered.rows:
            self._move_earlier(job)
        candidates = []
        lacking = self._lacking(offered)
        for index, file in enumerate(listing.files):
            if offered.is_here(file) and file.path not in lacking:
                continue
            # A fetch is asked for again by the user alone; and the job is as whole without it. What was here stays HERE
            # in the ledger: `verify` misses it until it has come, and `clean` deletes nothing there that is only there.
            state, why = ("LEFT", "asked for, not here yet") if listing.fetched else ("WANTED", "")
            if not (listing.fetched and offered.is_here(file)):
                offered.row(file, state, "", why)
            if self._allowed(offered, file):
                candidates.append(index)
        files = [listing.files[index] for index in candidates]
        have = self._landing.have(job.results_path, files, remove=not listing.fetched)
        offered.wanted = dict(zip(candidates, have, strict=True))
        self._leave_out(offered, lacking)
        if listing.fetched and not listing.files:
            self._note("%s has no such result" % wire.printable(job.name, 80))

    def _lacking(self, offered: _Offered) -> frozenset[bytes]:
        """What is gone here and comes again. Only who asks for it gets it: a sync must not undo what the user has
        tidied away. But it does not say either that results are all here where some have gone before the last came.
        """
        job, listing = offered.job, offered.listing
        if listing.fetched:
            return self._landing.lacking(job.results_path, [file.path for file in listing.files])
        if offered.missing or job.results_state not in (states.NONE, states.PARTIAL):
            return frozenset()
        known = [file.path for file in offered.known.values() if file.state == "HERE"]
        lacking = self._landing.lacking(job.results_path, known) if known else frozenset()
        for path in lacking.difference(file.path for file in listing.files):
            offered.rows[path] = replace(offered.known[path], state="GONE", why="deleted here, and not offered there")
        return lacking

    def _allowed(self, offered: _Offered, file: Listed) -> bool:
        """The agent was told the same limits; one that does not keep to them must not fill this disk."""
        most = offered.job.options.get("max_file")
        within = offered.listing.fetched or not isinstance(most, int) or file.size <= most
        if within and file.path.split(b"/")[0] not in (PARTS, SMALL):
            return True
        self._note("a result of %s was not taken: %s" % (
            wire.printable(offered.job.name, 80), wire.printable(wire.path_text(file.path))))
        return False

    def _leave_out(self, offered: _Offered, lacking: frozenset[bytes]) -> None:
        for item in offered.listing.left_out:
            path, before = item["path"], offered.known.get(item["path"])
            if before and before.state == "HERE" and before.size == item["size"] and path not in lacking:
                continue
            offered.rows[path] = ResultFile(path, item["size"], 0, 0, "", "output", "LEFT", item["why"])
            if before is None or before.state != "LEFT":
                self.report.left_out_files += 1
                if len(self.report.left_out) < _NAMED:
                    self.report.left_out.append({"job": offered.job.id, "path": wire.path_text(path),
                                                 "size": item["size"], "why": item["why"]})

    def _move_earlier(self, job: Job) -> None:
        """An earlier attempt's results make place for this one's."""
        earlier = next((n for n in range(job.attempt - 1, 0, -1) if self._has_some(job, n)), 0)
        aside = os.path.join(job.folder, os.fsencode(job.aside(earlier)))
        if earlier and os.path.isdir(job.results_path) and not os.path.lexists(aside):
            os.rename(job.results_path, aside)

    def _has_some(self, job: Job, attempt: int) -> bool:
        return any(file.state == "HERE" for file in self.ledger.result_files(job.id, attempt))

    def _complain(self, job: Job, error: OSError) -> None:
        if error.errno in _FULL:
            raise errors.DiskFullHere(path=wire.path_text(job.results_path)) from error
        why = "it is a symlink or no folder" if error.errno in (errno.ELOOP, errno.ENOTDIR) else errors.describe(error)
        text = "results of %s stay on the cluster: %s: %s" % (
            wire.printable(job.name, 80), wire.path_text(job.results_path), why)
        self._note(text)
        self.report.unwelcome += [text][:_NAMED - len(self.report.unwelcome)]

    def _note(self, text: str) -> None:
        if len(self.report.notes) < _NAMED:
            self.report.notes.append(text)

    def begin(self) -> None:
        """What was chosen last comes from here on."""
        self._slice.update(self._chosen)
        self._chosen = {}

    # -- arriving --------------------------------------------------------------------------------------------------

    def target(self, key: Key, file: Listed, start: int) -> Target:
        """Where a chosen file goes. Raises DiskFullHere."""
        self._target = _Target(self, self._slice[key], file)
        try:
            self._target.arriving = self._landing.begin(self._target.results, file, start)
        except OSError as error:
            self._unwelcome(self._slice[key], error)
        return self._target

    def whole(self, key: Key, files: list[Arrived]) -> None:
        """Small files of a job have come. Raises DiskFullHere."""
        offered = self._slice[key]
        try:
            folder = self._landing.folder(offered.job.results_path)
        except OSError as error:
            self._unwelcome(offered, error)
        else:
            self._whole(offered, folder, files)
        offered.pending -= len(files)
        if not offered.pending and not offered.failed:
            self._here.append(self._slice.pop(key))
            if len(self._here) >= BATCH:
                self.delivered()

    def _whole(self, offered: _Offered, folder: Folder, files: list[Arrived]) -> None:
        for arrived in files:
            try:
                right = self._landing.whole(folder, arrived)
            except OSError as error:
                self.refused(offered, arrived[0], error)
            else:
                self.compared(offered, arrived[0], arrived[3], right)

    def _unwelcome(self, offered: _Offered, error: OSError) -> None:
        if not offered.told:
            self._complain(offered.job, error)
        offered.told = True

    def gone(self, key: Key, file: Listed, why: str) -> None:
        """A file that was listed can't be sent."""
        self._slice[key].failed[file.path] = why or "it is gone"

    def compared(self, offered: _Offered, file: Listed, sha256: str, right: bool) -> None:
        """A file has come; where it is right, it is whole and under its name."""
        if not right:
            offered.failed[file.path] = "its hash is not the one it has there"
            return
        offered.row(file, "HERE", sha256)
        self.report.results_files += 1
        self.report.results_bytes += file.size

    def refused(self, offered: _Offered, file: Listed, error: OSError) -> None:
        """A file can't get its name. Raises DiskFullHere."""
        if error.errno in _FULL:
            raise _unwritable(offered.job.results_path, error) from error
        # A folder stands where the file should, or the results folder was swapped for a symlink meanwhile.
        self.not_now(offered, file.path, errors.describe(error))

    def not_now(self, offered: _Offered, path: bytes, why: str) -> None:
        """A file did not come right, and will not in this session."""
        self._note("%s of %s: %s; the next sync asks again" % (
            wire.printable(wire.path_text(path)), wire.printable(offered.job.name, 80), why))

    # -- recording -------------------------------------------------------------------------------------------------

    def over(self) -> None:
        """All that was begun has come, or won't: what did not come right is asked for once more, or told."""
        finished, self._slice, self._target = self._slice, {}, None
        self._here += finished.values()
        for key, offered in finished.items():
            if offered.failed and self._again.get(key, offered) and len(self._again) < _NAMED:
                self._again[key] = offered
            elif offered.failed:
                self._give_up(offered)

    def _give_up(self, offered: _Offered) -> None:
        for path, why in offered.failed.items():
            self.not_now(offered, path, why)

    def delivered(self) -> None:
        """Make durable what has come, then record it. Raises DiskFullHere, HomeUnusable, LedgerBusy."""
        finished = self._here
        try:
            self._landing.durable()
        except OSError as error:
            raise _unwritable(finished[0].job.results_path, error) from error
        self._here = []
        self._record([offered for offered in finished if self._is_news(offered)])
        for offered in finished:
            self._incomplete(offered)

    @staticmethod
    def _is_news(offered: _Offered) -> bool:
        state = _state_after(offered, offered.job)
        return offered.rows != offered.known or (state, offered.missing) != (
            offered.job.results_state, offered.job.missing)

    def _record(self, news: list[_Offered]) -> None:
        if not news:
            return
        with self.ledger.transaction():
            jobs = self.ledger.jobs_by_id(offered.job.id for offered in news)
            for offered in news:
                job = jobs.get(offered.job.id)
                if job is None or job.attempt != offered.job.attempt:  # it was tried again meanwhile
                    continue
                if offered.rows != offered.known:
                    self.ledger.record_results(job.id, job.attempt, offered.rows.values())
                if offered.missing != job.missing:
                    self.ledger.set_missing(job.id, offered.missing)
                state = _state_after(offered, job)
                self.report.results_jobs += state == states.VERIFIED != job.results_state
                self.ledger.set_results_state(job.id, state, offered.rows.values())

    def _incomplete(self, offered: _Offered) -> None:
        if offered.missing and not offered.listing.fetched and len(self.report.incomplete) < _NAMED:
            item = {"job": offered.job.id, "name": offered.job.name, "missing": list(offered.missing)}
            if item not in self.report.incomplete[-1:]:
                self.report.incomplete.append(item)


def _state_after(offered: _Offered, job: Job) -> str:
    """The state of a job's results with what has come. A fetch is extra: it neither completes nor spoils them."""
    if job.results_state not in (states.NONE, states.PARTIAL, states.VERIFIED):
        return job.results_state
    if offered.listing.fetched:
        return states.PARTIAL if job.results_state == states.NONE else job.results_state
    return states.VERIFIED if offered.whole else states.PARTIAL


def _unwritable(results: bytes, error: OSError) -> errors.ChasquiError:
    where = wire.path_text(results)
    if error.errno in _FULL:
        return errors.DiskFullHere(path=where)
    return errors.HomeUnusable(errors.describe(error), path=where, hint="")


class _Target:
    """A file arriving. What this disk says against it ends the session or, where it is the file's own trouble, doesn't.

    Without `arriving` it can't be written here, which was told: the data go nowhere, and it stays wanted.
    """

    def __init__(self, receiver: Receiver, offered: _Offered, file: Listed) -> None:
        self.receiver, self.offered, self.file = receiver, offered, file
        self.results = offered.job.results_path
        self.arriving: Arriving | None = None

    def write(self, data: bytes) -> None:
        if self.arriving is None:
            return
        try:
            self.arriving.write(data)
        except OSError as error:
            self._give_up(error)

    def finish(self, sha256: str, why: str) -> None:
        arriving, self.arriving = self.arriving, None
        if arriving is None:
            return
        if why:
            arriving.drop()
            self.offered.failed[self.file.path] = why
            return
        try:
            right = arriving.finish(sha256)
        except OSError as error:
            self.receiver.refused(self.offered, self.file, error)
        else:
            self.receiver.compared(self.offered, self.file, sha256, right)

    def _give_up(self, error: OSError) -> None:
        arriving, self.arriving = self.arriving, None
        if arriving:
            arriving.drop()
        raise _unwritable(self.results, error) from error

    def leave(self) -> None:
        """The session broke while it was on its way: its part stays."""
        if self.arriving:
            self.arriving.leave()
            self.arriving = None


# -- the output of a job that still runs -------------------------------------------------------------------------------


def follow_logs(home: Home, remote: Remote, job: Job) -> int:
    """Print a job's output as it grows, until it ends or Ctrl-C. Raises AgentMissing, NotConnected, ConnectionLost."""
    import sys

    from . import deploy, launcher

    interactive = sys.stdin.isatty() and sys.stderr.isatty()
    transport = deploy.transport_to(home, remote, interactive)
    channel = deploy.start(transport, remote, launcher.module(remote.root, "output", [job.id, str(job.attempt)]))
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
