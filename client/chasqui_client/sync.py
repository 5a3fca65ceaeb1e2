"""One sync: hand over what is new, carry over what was asked for, read the journal, bring results home. One ssh exec.

Everything the agent confirms is recorded when it is said, so a cut at any moment loses nothing: acknowledged jobs stay
acknowledged, records of the journal go in together with the cursor behind them, and the rest is offered again.
"""

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import chasqui_agent
from chasqui_agent import wire

from . import __version__, deploy, errors, headstart, launcher, ssh, states
from .config import Home, Remote
from .converse import converse
from .exchange import SyncOptions, SyncReport
from .fields import replace
from .holder import sync_lock, sync_lock_path
from .ledger import InputFile, Job, Ledger, Parent, now
from .messages import Arrived, Changed, Handler, JobOffer, Key, Listed, Listing, Offer, Target
from .progress import Progress

if TYPE_CHECKING:
    from . import inputs
    from .pace import Bandwidth
    from .results import Receiver

MAX_JOBS = 20_000  # offered in one session; more go with the next
READ = 100  # jobs read from the ledger at once
FIRST, FRESH = 50, 200  # jobs that were never offered, in one slice: most go unasked, and the first ones go soon
_STEP = 1000  # journal records that are applied between two bundles of results
MAX_RESULTS = 100_000  # jobs whose results are asked for in one session; the agent takes no more
_COUNTED = {states.SUBMITTED: "submitted", states.COMPLETED: "completed", states.FAILED: "failed", states.LOST: "lost",
            states.REJECTED: "rejected", states.CANCELLED: "cancelled", states.BLOCKED: "blocked"}


class _OlderAgent(Exception):
    """The agent there has a lower serial than ours."""


def run(home: Home, remote: Remote, options: SyncOptions) -> SyncReport:
    """Sync `remote` once. Raises the failures of `errors`; what the agent had confirmed by then is recorded.

    RemoteDiskFull with a `report`: not all jobs could be handed over, everything else was done.

    A dry run reads the ledger and the job folders, and contacts nothing.
    """
    home.create()
    report = SyncReport(remote=remote.name, timestamp=now(), dry_run=options.dry_run)
    with Ledger(home.ledger_path) as ledger:
        if options.dry_run:
            _plan(ledger, remote, report)
            return report
        with sync_lock(home, remote.name, options.wait):
            _sync(home, ledger, remote, options, report)
            if remote.cleanup == "verified":
                _clean_up(home, ledger, remote, report)
    return report


def _plan(ledger: Ledger, remote: Remote, report: SyncReport) -> None:
    """What a sync would do, from the ledger and the folders alone."""
    from . import inputs
    for job in filter(None, map(ledger.job, ledger.to_upload(remote.name))):
        files = ledger.files(job.id, job.attempt)
        _name_changes(job, inputs.changed(files), report)
        report.would_upload.append({"id": job.id, "name": job.name, "folder": wire.path_text(job.folder),
                                    "files": len(files), "bytes": sum(f.size for f in files)})
    waiting = len(ledger.pending_ops(remote.name))
    if waiting:
        report.notes.append("would carry over %d cancel, hold or release requests" % waiting)
    report.counts = ledger.counts(remote.name)


def _sync(home: Home, ledger: Ledger, remote: Remote, options: SyncOptions, report: SyncReport) -> None:
    transport = deploy.transport_to(home, remote, options.interactive)
    progress = Progress(options.progress)
    if remote.bandwidth:
        options = _unless_paused(remote.bandwidth, options, report)
    full: errors.RemoteDiskFull | None = None
    for _ in range(4):
        exchange = Exchange(ledger, remote, options, report, progress)
        try:
            converse(transport, remote, exchange.offer(), exchange)
            break
        except errors.NotConnected:  # the socket of a master that was killed
            if not options.interactive:
                raise
            transport = deploy.transport_to(home, remote, options.interactive, sure=True)
        except (errors.AgentMissing, errors.NoPython, _OlderAgent):
            if not options.deploy:  # then nobody says _OlderAgent
                raise
            deploy.ensure(transport, remote)
            report.deployed = remote.root
        except errors.RemoteDiskFull as error:
            if not options.upload or not exchange.has_offered:
                raise
            # Nothing more goes there, but journal and results come home in a session that brings nothing.
            full, options = error, replace(options, upload=False)
            report.uploads_stopped = str(error)
        finally:
            progress.end()
            exchange.close()
    else:
        raise errors.AgentMissing(remote=remote.name, root=remote.root)
    if isinstance(transport, ssh.Ssh):
        again = transport.argv(launcher.session(remote.root, headstart.NONCE))
        headstart.leave(str(sync_lock_path(home, remote.name)), transport.path, again)
    report.counts = ledger.counts(remote.name)
    if full:
        full.report = report
        raise full


def _unless_paused(bandwidth: "Bandwidth", options: SyncOptions, report: SyncReport) -> SyncOptions:
    """The same options; while a window pauses transfers, those of a sync that carries no content of files."""
    from . import pace
    if bandwidth.at(time.time()) != pace.PAUSE:
        return options
    report.notes.append("no transfers until %s (windows in config.toml): only news and requests are exchanged"
                        % pace.until(bandwidth))
    return replace(options, upload=False, download=False)


def _clean_up(home: Home, ledger: Ledger, remote: Remote, report: SyncReport) -> None:
    """Its failure is a note: what the sync was for is done."""
    from .cleanup import clean
    try:
        done = clean.after_sync(home, ledger, remote)
    except errors.ChasquiError as error:
        report.notes.append("nothing was cleaned: %s" % error)
        return
    report.notes.extend(done.notes() if done else ())


# -- what the ledger offers and learns ---------------------------------------------------------------------------------


class Exchange(Handler):
    """Between the ledger and one session."""

    def __init__(self, ledger: Ledger, remote: Remote, options: SyncOptions, report: SyncReport,
                 progress: Progress) -> None:
        self.ledger, self.remote, self.options, self.report, self.progress = ledger, remote, options, report, progress
        self._receiver: Receiver | None = None
        self.report_of_agent: dict[str, Any] = {}
        self._offered: dict[Key, tuple[str, int, int]] = {}  # name, files, bytes
        self._hashes: inputs.Hashes = {}
        self._alive: Callable[[], None] = lambda: None
        self._piece: list[dict[str, Any]] = []  # of the journal, not applied yet
        self._cursor = -1  # behind it
        self._listed: list[Listing] | None = None  # a slice that nobody has looked at
        self._arrived = 0  # bytes of results since we last did something else
        self._offering = 0, 0, False  # bytes of all contents, of the slice's (each once), whether more slices follow
        self._lacking, self._expected = 0, -1  # bytes that were asked for, and that are going to be

    # -- turn 1 ----------------------------------------------------------------------------------------------------

    def offer(self) -> Offer:
        """All that this sync says first. From here on only the cluster can cancel or hold the jobs in it."""
        known = self.ledger.remote_state(self.remote.name)
        hello = {"client": __version__, "ledger": self.ledger.id, "root_uuid": known.uuid, "cursor": known.cursor,
                 "config": self._config(), "take_caps": self.options.take_caps, "want_results": self.options.download,
                 "results": self._results_wanted(), "fetch": self._fetch()}
        operations = [{"id": op.id, "op": op.op, "job": op.job, "attempt": op.attempt}
                      for op in self.ledger.pending_ops(self.remote.name)]
        return Offer(hello, self._slices(self._jobs_to_offer()), operations)

    def _jobs_to_offer(self) -> list[str]:
        if not self.options.upload:
            return []
        found = self.ledger.to_upload(self.remote.name)
        if len(found) > MAX_JOBS:
            self.report.notes.append("%d jobs are left for the next sync" % (len(found) - MAX_JOBS))
        return found[:MAX_JOBS]

    @property
    def has_offered(self) -> bool:
        """Whether any job was."""
        return bool(self._offered)

    def _slices(self, ids: list[str]) -> Iterator[tuple[list[JobOffer], bool]]:
        """What there is to hand over, in pieces: 20,000 jobs with their files are more than memory is for."""
        start, read, fresh = 0, dict[str, Job](), FIRST
        parents = dict[str, list[Parent]]()
        while start < len(ids):
            jobs: list[Job] = []
            offers: list[JobOffer] = []
            size = 0
            most = wire.SLICE_JOBS
            while start < len(ids) and len(jobs) < most and size < wire.SLICE_BYTES:
                if start % READ == 0:
                    read = self.ledger.jobs_by_id(ids[start:start + READ])
                    parents = self.ledger.parents(read)
                self._alive()
                job = read.get(ids[start])
                start += 1
                offer = self._job_offer(job, parents.get(job.id, [])) if job else None
                if job and offer:
                    jobs.append(job)
                    offers.append(offer)
                    size += offer.message_size
                    most = min(most, fresh) if offers[0].fresh else most
            marked = self.ledger.mark_offered(jobs)
            if len(marked) < len(jobs):
                offers = [offer for offer in offers if offer.job in marked]
                if not offers and start < len(ids):
                    continue  # only the last slice may be empty
            self._size_up(offers, start < len(ids))
            fresh = FRESH
            yield offers, start < len(ids)
            del job, offer, offers

    def _size_up(self, offers: list[JobOffer], more: bool) -> None:
        """For the progress line: what is in all slices, by one query over all files where there are several."""
        if self.progress.shown:
            size = sum({file.sha256: file.size for offer in offers for file in offer.files}.values())
            several = more and not self._offering[0]
            total = self.ledger.bytes_to_upload(self.remote.name, MAX_JOBS) if several else self._offering[0]
            self._offering = total, size, more

    def _config(self) -> Mapping[str, Any]:
        values = {"max_total": 0, **self.remote.agent_config()}
        return {**values, "revision": self.ledger.config_revision(self.remote.name, values)}

    def _results_wanted(self) -> list[list[Any]]:
        if not self.options.download:
            return []
        return [list(pair) for pair in self.ledger.results_wanted(self.remote.name)[:MAX_RESULTS]]

    def _fetch(self) -> list[list[Any]]:
        wanted = []
        for job_id, patterns in self.options.fetch.items():
            job = self.ledger.job(job_id)
            if job and job.remote == self.remote.name and job.ended:
                wanted.append([job.id, job.attempt, list(patterns)])
        return wanted

    def _job_offer(self, job: Job, parents: list[Parent]) -> JobOffer | None:
        files = self.ledger.files(job.id, job.attempt)
        # Once offered the cluster may have it, and a manifest must not change any more.
        if job.offered < job.attempt:
            current = self._current(job, files)
            if current is None:
                return None
            files = current
        options = job.options
        fields = {"name": job.name, "priority": job.priority, "script": wire.path_text(job.script),
                  "outputs": options.get("outputs", []), "exclude": options.get("exclude", []),
                  "expect": options.get("expect", []), "max_file": options.get("max_file", 0),
                  "max_job": options.get("max_job", 0), "rerun": bool(options.get("rerun")),
                  "previous": job.attempt - 1}
        if options.get("bundle") is False:
            fields["bundle"] = False
        if options.get("retry"):
            fields["retry"] = options["retry"]
        if parents:
            fields["after"] = [[parent.id, parent.attempt, parent.state if parent.ended else ""] for parent in parents]
            fields["if"] = parents[0].condition
        offer = JobOffer(job.id, job.attempt, files, fields, fresh=job.attempt == 1 and not job.offered)
        self._offered[offer.key] = job.name, len(files), sum(f.size for f in files)
        return offer

    def _current(self, job: Job, files: list[InputFile]) -> list[InputFile] | None:
        """The inputs as they are on the disk now, those that changed since `add` named; None where one is gone."""
        from . import inputs
        touched = {path for path, _ in inputs.changed(files)}
        if not touched:
            return files
        fresh, differing, missing = [], [], False
        for file in files:
            if file.path not in touched:
                fresh.append(file)
                continue
            try:
                found = replace(inputs.read_input(file.source, file.path, self._hashes, self._alive),
                                mode=file.mode)
            except errors.BadJob as error:
                differing.append((file.path, "%s: not uploaded" % error))
                missing = True
                continue
            if found.sha256 != file.sha256:
                differing.append((file.path, "changed since add, uploaded as it is now"))
            fresh.append(found)
        _name_changes(job, differing, self.report)
        if missing:
            return None
        self.ledger.replace_inputs(job.id, job.attempt, fresh)
        return fresh

    def open(self, offer: JobOffer, file: InputFile) -> BinaryIO:
        if file.content is not None:
            return io.BytesIO(file.content)
        stream = open(file.source, "rb", buffering=0)
        if os.fstat(stream.fileno()).st_size != file.size:
            stream.close()
            raise Changed("it changed since it was offered")
        return stream

    # -- what the agent says ---------------------------------------------------------------------------------------

    def begun(self, alive: Callable[[], None]) -> None:
        self._alive = alive

    def noise(self, text: str) -> None:
        self.note("the login shell printed: %s" % text)

    def welcome(self, fields: dict[str, Any]) -> None:
        serial, uuid = fields.get("serial"), fields.get("root_uuid")
        if not isinstance(serial, int) or not isinstance(uuid, str) or not 0 < len(uuid) <= 64 or not uuid.isalnum():
            raise wire.WireError("a welcome without serial or root")
        if fields.get("proto") != chasqui_agent.PROTOCOL:
            raise errors.VersionsApart(remote=self.remote.name, theirs=serial, ours=chasqui_agent.SERIAL,
                                       hint="upgrade the older side")
        if serial < chasqui_agent.SERIAL and self.options.deploy:
            raise _OlderAgent
        can = fields.get("capabilities")
        can = can if isinstance(can, list) else []
        # It would run them at once; or not again.
        lacking = ("--after" if "after" not in can and self._offers_dependents() else
                   "--retries" if "retry" not in can and self._offers_retries() else "")
        if lacking:
            raise errors.VersionsApart(remote=self.remote.name, theirs=serial, ours=chasqui_agent.SERIAL,
                                       hint="chasqui agent deploy    (it knows nothing of %s)" % lacking)
        if uuid != self.ledger.remote_state(self.remote.name).uuid:  # each commit is several fsyncs
            self.ledger.set_remote(self.remote.name, uuid=uuid)
        for note in fields.get("notes") or []:
            self.note(wire.printable(str(note)))

    def known(self, key: Key) -> None:
        self.acked([key])

    def acked(self, keys: list[Key]) -> None:
        attempts = dict(keys)
        for job_id in self.ledger.acknowledge(self.remote.name, keys):
            _, files, size = self._offered[job_id, attempts[job_id]]
            self.report.uploaded += 1
            self.report.uploaded_files += files
            self.report.uploaded_bytes += size

    def _offers_dependents(self) -> bool:
        ids = self.ledger.to_upload(self.remote.name)[:MAX_JOBS] if self.options.upload else []
        return bool(ids and self.ledger.parents(ids[-1:]))  # they are the last

    def _offers_retries(self) -> bool:
        ids = self.ledger.to_upload(self.remote.name)[:MAX_JOBS] if self.options.upload else []
        return any(job.options.get("retry") for at in range(0, len(ids), 500)
                   for job in self.ledger.jobs_by_id(ids[at:at + 500]).values())

    def refused(self, key: Key, why: str) -> None:
        from chasqui_agent import dependents, space
        if why.startswith(dependents.NOT_HERE):
            parent = self.ledger.job(why[len(dependents.NOT_HERE):])
            why = dependents.NOT_HERE + parent.name if parent else why
        if why.startswith((space.NO_ROOM, dependents.NOT_HERE)):
            # Nothing of it was sent: it may be changed or cancelled here again, and is offered next time.
            self.ledger.withdraw(key[0])
        self.report.refused.append({"job": key[0], "name": self._offered[key][0], "why": why})

    def skipped(self, key: Key, why: str) -> None:
        self.ledger.withdraw(key[0])
        path, _, rest = why.partition(": ")
        self.report.changed_inputs.append({"job": key[0], "name": self._offered[key][0], "path": path,
                                           "why": rest + ": not uploaded"})

    def uploading(self, jobs: int, size: int) -> None:
        total, offered, more = self._offering
        self._lacking += size
        if self._expected < 0:
            self.progress.begin("uploading", size)
            # What the first slice does not lack was there before. Of later ones that may be what slices before brought.
            self._expected = total - max(0, offered - size)
        self.progress.total = max(self._lacking, self._expected) if more else self._lacking

    def sent(self, size: int, files: int) -> None:
        self.progress.advance(size, files)

    def done(self, operation: str, note: str) -> None:
        self.ledger.finish_op(operation)
        for row in self.ledger.rows("SELECT jobs.id, name FROM jobs JOIN ops ON job = jobs.id WHERE ops.id = ?",
                                    operation) if note else ():
            note = note.replace(row["id"], wire.printable(row["name"], 80))
        if note:
            self.report.notes.append(note)

    def note(self, text: str) -> None:
        if text not in self.report.notes:
            self.report.notes.append(text)

    def pumped(self, report: dict[str, Any]) -> None:
        self.report_of_agent["pump"] = report
        for key in ("error", "note"):
            if report.get(key):
                self.report.notes.append("the pump says: %s" % report[key])
        if report.get("refused"):
            self.report.notes.append("refused, in the scheduler's words: %s" % report["refused"])
        self.report.disk_full = str(report.get("full") or "")
        self.report.stalled_since = str(report.get("stalled_since") or "")

    def status(self, report: dict[str, Any]) -> None:
        self.report_of_agent["status"] = report
        if report.get("contact"):
            from chasqui_agent import outlook
            self.report.outlook = outlook.words(report)

    def records(self, found: list[dict[str, Any]], cursor: int) -> None:
        """A piece of the journal. The last one waits: results that it announces may be asked for first."""
        self._settle()
        self._piece, self._cursor = found, cursor

    def _settle(self, most: int = 1 << 30) -> None:
        """Apply so many records of the piece at hand; in one transaction with the last ones the cursor moves on."""
        if self._cursor < 0:
            return
        most = _together(self._piece, most)
        some, self._piece = self._piece[:most], self._piece[most:]
        with self.ledger.transaction():
            at = 0
            while at < len(some):  # memory: all jobs of what is applied at once are read
                end = _together(some, at + _STEP)
                self._apply(some[at:end])
                at = end
            if not self._piece:
                self.ledger.set_remote(self.remote.name, cursor=self._cursor)
        if not self._piece:
            self._cursor = -1

    def _apply(self, found: list[dict[str, Any]]) -> None:
        for state in self.ledger.apply_records(self.remote.name, found):
            counter = _COUNTED.get(state)  # what was tried again by the relay has moved to UPLOADED, not FAILED
            if counter:
                setattr(self.report, counter, getattr(self.report, counter) + 1)

    # -- results ---------------------------------------------------------------------------------------------------

    @property
    def results(self) -> "Receiver":
        """Imported and made when results are listed: most syncs bring none."""
        if self._receiver is None:
            from .results import Receiver
            self._receiver = Receiver(self.ledger, self.remote.name, self.report)
            self.progress.begin("results", 0)
        return self._receiver

    def listed(self, listings: list[Listing]) -> None:
        self._listed = listings

    def _look(self) -> None:
        """Find out what is wanted of the slice that was listed last."""
        listings, self._listed = self._listed or [], None
        if self._piece:
            # What the journal says of these jobs alone, and once more with the rest: a record counts once.
            jobs = {listing.job for listing in listings}
            self._apply([record for record in self._piece if record.get("job") in jobs])
        self.results.listed(listings)

    @property
    def ready(self) -> bool:
        return self._listed is None

    def unasked(self) -> None:
        self._settle()

    def begin(self) -> None:
        self.results.begin()

    def over(self) -> None:
        self.results.over()

    def choose(self, more: bool) -> Iterator[tuple[Key, list[tuple[int, int]]]]:
        if self._listed is not None:
            self._look()
        yield from self.results.choose(more)
        self.progress.total = self.results.expected

    def whole(self, key: Key, files: list[Arrived]) -> None:
        self.progress.advance(sum(file.size - start for file, start, _, _ in files), len(files))
        self.results.whole(key, files)
        self._arrived += sum(file.size for file, _, _, _ in files)
        if self._arrived >= wire.CHUNK:
            self._arrived = 0
            self._step()

    def _step(self) -> None:
        """Some of what is to be done while files come. Never much at once: a line whose buffers are full stands."""
        if self._cursor >= 0:
            self._settle(_STEP)
        elif self._listed is not None:
            self._look()

    def target(self, key: Key, file: Listed, start: int) -> Target:
        self.progress.advance(file.size - start, 1)
        return self.results.target(key, file, start)

    def gone(self, key: Key, file: Listed, why: str) -> None:
        self.results.gone(key, file, why)

    def delivered(self) -> None:
        self.results.delivered()

    def finished(self) -> None:
        """Record that all was said, while the agent's process and ssh's are still ending."""
        self._settle()
        self.report_of_agent.update(self._kept_here())
        self.ledger.set_remote(self.remote.name, synced=self.report.timestamp, report=self.report_of_agent)

    def _kept_here(self) -> dict[str, Any]:
        """Why jobs were not handed over, for who asks later: of each of the first thousand, and of the rest."""
        left = [(item["job"], item["why"]) for item in self.report.refused]
        left += [(item["job"], "%s: %s" % (item["path"], item["why"])) for item in self.report.changed_inputs
                 if item["why"].endswith("not uploaded")]
        found = {"kept": dict(left[:_STEP]), "stopped": self.report.uploads_stopped}
        return {key: value for key, value in found.items() if value}

    def close(self) -> None:
        """Record the news and results that arrived, however the session ended."""
        self._settle()
        if self._receiver:
            self._receiver.close()


def _together(found: list[dict[str, Any]], count: int) -> int:
    """So many records, or more: an end that the relay's retry follows is never applied without the word of that."""
    while 0 < count < len(found) and found[count - 1].get("ev") == "ended" and found[count - 1].get("next"):
        count += 1
    return count


def _name_changes(job: Job, changes: list[tuple[bytes, str]], report: SyncReport) -> None:
    for path, why in changes:
        item = {"job": job.id, "name": job.name, "path": wire.path_text(path), "why": why}
        if item not in report.changed_inputs:  # the same again in the round after a deploy
            report.changed_inputs.append(item)
