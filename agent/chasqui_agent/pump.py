"""The pump: one round of reconcile, decide, submit, under the lock; and how many wakes become one pump.

Every wake first leaves a request in wake/, then tries the lock. Whoever has it looks for late requests after giving it
back, and goes again: so a wake that finds the lock taken can go home.
"""

import os
import time

from . import (
    dependents,
    ending,
    fault,
    files,
    fill,
    heartbeat,
    intake,
    launch,
    linger,
    live,
    marks,
    operations,
    published,
    reconcile,
    records,
    schedulers,
    settings,
    spoiled,
    submit,
    way,
)
from .behind import Behind
from .journal import JournalError, Writer
from .lock import Lock, Lost, ensure_ballast
from .quiet import empty_report, idle
from .schedulers.base import Unreachable
from .spool import MIDDLE_PRIORITY, random_name
from .state import LATE, State

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Optional, Set, Tuple

    from .schedulers.base import Snapshot
    from .spool import Entry, Spool

fault.register(
    {
        "pump.request.after": "the request left in wake/, the lock not yet tried",
        "pump.delete.before": "the scheduler is to be asked to delete a job",
        "pump.delete.after": "the scheduler was asked to delete a job, nothing recorded",
        "pump.drain.before": "the round done and journalled, its requests still in wake/",
    }
)

STALL_SECONDS = 60.0
WHY_SECONDS = 600.0  # between two questions why jobs do not start
HOLDS_EVERY = 10  # query intervals; in between, our own notes say which of our jobs are held
LATE_SECONDS = 5.0  # how long somebody who waits for an answer goes on serving other people's wakes


def request(spool: "Spool", reason: str) -> None:
    """Leave a request for a pump: whoever holds the lock will see it."""
    name = "kick.%s%s" % ("ssh." if reason == "ssh" else "", random_name(12))
    files.write_file(os.path.join(spool.wake, "." + name), reason.encode("utf-8", "replace")[:200], durable=False)
    os.rename(os.path.join(spool.wake, "." + name), os.path.join(spool.wake, name))
    fault.point("pump.request.after")


def pump(
    spool: "Spool", reason: str, budget: float = 120.0, attended: bool = True, patience: float = 0.0
) -> "Dict[str, Any]":
    """Pump until no request is left or `budget` seconds are gone; what was done, as one flat dictionary:

    accepted submitted released ended rejected retried queries rounds (counts), settling (scripts too young), operations
    (id -> note), refused (the scheduler's words), stalled_since, note, full (which limit of space or inodes stopped
    it), busy (somebody else pumps). Raises SpoolError
    for a root that can't be used. A full disk, a lost lock and a silent scheduler end the round with a note: nothing
    is half done. Wakes that keep coming in are left to a process of their own when the budget is gone, or, attended (so
    that somebody waits for the report), after a few seconds. patience: seconds a query may take where the caller has
    other things to do; a silent scheduler is then left to a process that stays a little longer. No call of the
    scheduler outlasts the budget.
    """
    deadline = time.monotonic() + budget
    late = time.monotonic() + LATE_SECONDS
    report = empty_report(reason)
    if idle(spool):
        return report
    request(spool, reason)
    while True:
        chosen = settings.load(spool)
        lock = Lock(spool.lock, chosen.lease)
        if not lock.acquire(min(5.0, max(0.0, deadline - time.monotonic()))):
            report["busy"] = not report["rounds"]
            if lock.expires:
                scheduler = schedulers.choose(spool, chosen)
                scheduler.deadline = deadline
                heartbeat.outlast(spool, chosen, scheduler, lock.expires)
            return report
        handled = _round_under_lock(spool, chosen, lock, report, deadline, patience)
        unfinished = report.pop("unfinished", False)
        if report.pop("debt", False) and reason != "linger":
            linger.leave(spool)
        late_ones = _late_requests(spool, handled)
        more = unfinished or late_ones
        if report["note"] == way.REFUSED:
            way.hand_on(spool, chosen, report, any(name.startswith("kick.ssh.") for name in late_ones))
        if report["note"] or not more:
            return report
        if time.monotonic() >= (late if attended and not unfinished else deadline - fill.LEAST_SECONDS):
            # Those who left the requests have gone home, relying on us.
            launch.detached(launch.command(spool.root) + ["wake", "--reason", "late"], os.devnull)
            return report


def _round_under_lock(
    spool: "Spool",
    chosen: "settings.Settings",
    lock: Lock,
    report: "Dict[str, Any]",
    deadline: float,
    patience: float,
) -> "List[str]":
    """One round, and the lock given back whatever happens; the names in wake/ it dealt with."""
    handled = _requests(spool)
    journal, full = None, False
    try:
        journal = Writer(spool.log, lock.generation, lock.took_over)
        Round(spool, chosen, lock, journal, report, deadline, patience).run(handled)
    except Lost as error:
        report["note"] = "lost the lock: %s" % error
    except JournalError as error:
        report["note"], full = str(error), files.no_space(error)
    except OSError as error:
        report["note"], full = "%s: %s" % (error.strerror, error.filename or spool.root), files.no_space(error)
    finally:
        if journal is not None:
            journal.close()
        lock.release()
    if full:
        from . import space

        report["full"] = space.tightest(spool.work, spool.root)
    report["rounds"] += 1
    return handled


def _requests(spool: "Spool") -> "List[str]":
    return [name for name in files.names(spool.wake) if name.startswith(("kick.", "ev."))]


def _late_requests(spool: "Spool", handled: "List[str]") -> "Set[str]":
    # Our own create makes an NFS client list the folder afresh.
    files.server_time(spool.wake)
    return set(_requests(spool)) - set(handled) - {LATE}


class Round:
    """One round of the lock's holder. Attributes are what its steps share."""

    def __init__(
        self,
        spool: "Spool",
        chosen: "settings.Settings",
        lock: Lock,
        journal: Writer,
        report: "Dict[str, Any]",
        deadline: float = float("inf"),
        patience: float = 0.0,
    ) -> None:
        self.spool = spool
        self.settings = chosen
        self.lock = lock
        self.journal = journal
        self.behind = Behind()
        self.copying = self.put_off = False  # for retries: done in this round, left for another one
        self.report = report
        self._before = dict(report)  # a pump may take several rounds; the journal tells of each
        self.scheduler = schedulers.choose(spool, chosen)
        self.scheduler.deadline, self._patience = deadline, patience
        self.state = State(spool)
        self.now = files.server_time(spool.wake)
        if lock.took_over:
            self.state.value["holds"] = 0  # whoever died may have been releasing

    def run(self, handled: "List[str]") -> None:
        """Reconcile, apply what was asked for, decide, act, record; then the requests may go."""
        ensure_ballast(self.spool.lock)
        events = self._events(handled)
        intake.published(self)
        dependents.published(self)
        intake.dropped(self)
        ending.resume(self)
        snapshot, fresh = self._snapshot()
        reconcile.submitting(self, snapshot, fresh)
        standing = self._settle(snapshot, fresh)
        if os.path.isdir(self.spool.bundles):
            from . import bundle

            bundle.sweep(self)
        done = operations.apply(self)
        if done:
            standing = self.standings()
        dependents.settle(self, standing)
        if snapshot is not None:
            # What is gone, and only its flag still waited for, takes no place and wakes nobody.
            standing = [job for job in standing if not snapshot.gone(job.id)]
        self._note_stall([j for j in standing if not j.held and (snapshot is None or j.id in snapshot.live)])
        try:
            if snapshot is not None:
                if fresh:
                    published.refresh(self)
                heartbeat.keep(self, snapshot, fresh)
                if fresh:
                    records.prune(self, snapshot)
                fill.fill(self, standing, snapshot, fresh)
                if not heartbeat.needed(self.spool):
                    heartbeat.keep(self, snapshot, fresh)  # the last one that waited was rejected, or is held
                # Last: one that can't be deleted must not keep others from being submitted.
                reconcile.closed_jobs(self, snapshot, fresh)
        except Unreachable as error:
            self.report["note"] = "the scheduler does not answer: %s" % error
        self._finish(handled, done, events, snapshot is not None)

    # -- steps -----------------------------------------------------------------------------------------------------

    def _events(self, handled: "List[str]") -> int:
        """Journal what runners left in wake/; how many there were."""
        count = 0
        for name in handled:
            parts = name.split(".")
            if parts[:2] == ["kick", "ssh"]:
                way.came_by_ssh(self)
            if parts[0] != "ev" or len(parts) < 6 or not parts[3].isdigit():
                continue
            kind, job, attempt, token = parts[1], parts[2], int(parts[3]), parts[4]
            if kind in ("tail", "term"):
                count += 1
                reconcile.late_flag(self, job, attempt, token)
                continue
            text = _read_text(os.path.join(self.spool.wake, name))
            if text is None:
                continue  # told already: a listing can be older than that
            count += 1
            record = {"ev": "duplicate", "job": job, "attempt": attempt, "token": token, "pbs": text, "why": kind}
            self.journal.append(record)
        return count

    def _snapshot(self) -> "Tuple[Optional[Snapshot], bool]":
        """The scheduler's view and whether it was asked now; None where it could not be asked: then nothing changes."""
        standing, in_flight = self.standings(), live.in_flight(self.spool)
        cached = self.state.cached_snapshot(self.settings.query_interval)
        # A job that was told to end: its flag is not its fate, only the scheduler knows that. Nor is a flag expected
        # of one that has spoilt our folder.
        doubt = bool(in_flight) or any(job.marks.term or job.marks.cancel or job.spoilt for job in standing)
        if cached is not None and (self.scheduler.asks_a_server or not doubt):
            return cached, False
        # Those whose flag says how they ended need only be seen to be gone; that it was the memory, it does not say.
        asked = [job for job in standing
                 if job.id and (job.flagged < job.size or job.marks.term or dependents.may_go_on(self.spool, job))]
        ids = [job.id for job in asked] + heartbeat.in_time(self.spool, self.now)
        sought = [submit.sought(self, entry) for entry in in_flight] + heartbeat.sought(self.spool)
        sought += self.state.closed_lately()
        look = not 0 <= self.now - self.state.value.get("holds", 0) < HOLDS_EVERY * self.settings.query_interval
        known = [job.id for job in standing if job.marks.runs or not look] + ids[len(asked) :]
        budget = self.scheduler.deadline
        try:
            if self._patience:
                self.scheduler.deadline = min(budget, time.monotonic() + self._patience)
            snapshot = self.scheduler.query(ids, sought, [job.id for job in asked if job.held], known)
        except Unreachable as error:
            self.report["note"] = "the scheduler does not answer: %s" % error
            if self._patience or self._alone():
                fill.owe(self, heartbeat.needed(self.spool))
            return None, False
        finally:
            self.scheduler.deadline = budget
        self.report["queries"] += 1
        self.state.value["holds"] = self.now if look else self.state.value["holds"]
        self.state.keep_snapshot(snapshot)
        self._ask_why(standing, snapshot)
        return snapshot, True

    def _alone(self) -> bool:
        """Whether no heartbeat is known to come, though there is to be one."""
        if not self.settings.heartbeat or way.contact_only(self.settings, self.state.value):
            return False
        return not heartbeat.certain(self.spool, self.now)

    def _ask_why(self, standing: "List[live.Standing]", snapshot: "Snapshot") -> None:
        """Now and then: why those do not start that have been queued longest. Not while jobs end, when every call
        counts."""
        stuck = [job.id for job in standing if not job.held and not job.marks.runs and job.id in snapshot.live]
        known = self.state.value.setdefault("reasons", {"asked": self.now, "why": {}})
        known["why"] = dict({i: why for i, why in known["why"].items() if i in stuck}, **snapshot.notes)
        if not stuck:
            known["asked"] = self.now
        elif self.now - known["asked"] >= WHY_SECONDS and not any(job.marks.flag for job in standing):
            known["asked"] = self.now
            try:
                known["why"].update(self.scheduler.waiting_reasons(stuck))
            except Unreachable:
                pass

    def _settle(self, snapshot: "Optional[Snapshot]", fresh: bool) -> "List[live.Standing]":
        """Settle what has ended; what is still alive."""
        alive = []
        for standing in self.standings():
            if not reconcile.submitted(self, standing, snapshot, fresh):
                alive.append(self._corrected(standing, snapshot) if fresh and snapshot else standing)
        tokens = {standing.entry.token for standing in alive}
        in_flight = {entry.token for entry in self.spool.entries("submitting")}
        self.state.started[:] = [start for start in self.state.started if start.split(".")[0] in tokens]
        for known in (self.state.doubt, self.state.value.get("ids", {})):  # type: Dict[str, Any]
            for token in set(known) - tokens - in_flight:
                del known[token]
        return alive

    def _corrected(self, standing: "live.Standing", snapshot: "Snapshot") -> "live.Standing":
        """The scheduler's word about our hold: a release may not have reached it, somebody may have used qrls."""
        self.state.doubt.pop(standing.entry.token, None) if standing.id in snapshot.live else None
        job = snapshot.live.get(standing.id)
        if job is None or not job.state or standing.marks.runs or (job.state == "H") == standing.held:
            return standing
        if standing.member:
            return standing  # the hold is its bundle's
        marks.write_id(standing.meta, standing.entry.token, standing.id, job.state == "H")
        return standing._replace(held=job.state == "H")

    def _note_stall(self, alive: "List[live.Standing]") -> None:
        """Say so where scripts wait, nothing of ours is alive, and the last pump is long past: the relay stood
        still."""
        last = self.state.value.get("pumped", self.now)
        idle = not alive and not self.spool.entries("submitting") and not heartbeat.beats(self.spool)
        if idle and self.now - last > max(STALL_SECONDS, 2 * self.settings.query_interval) and self._had_waiting():
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(last))
            self.report["stalled_since"] = since
            self.journal.append({"ev": "stalled", "since": since})

    def _had_waiting(self) -> bool:
        return bool(self.state.value.get("waiting")) and self.spool.has_waiting()

    def _finish(self, handled: "List[str]", done: "List[str]", events: int, answered: bool) -> None:
        """Record the round where it did something, remember it, and drop the requests it dealt with."""
        counted = ("accepted", "submitted", "released", "ended", "rejected", "retried")
        news = {key: self.report[key] - self._before[key] for key in counted if self.report[key] > self._before[key]}
        if news or events or done:
            self.journal.later(dict(news, ev="pumped", reason=self.report["reason"]))
        self.journal.append()
        if dependents.settle(self):
            self.report["unfinished"] = True  # what was rejected in this round had somebody wait for it
        # Never skipped: the stall detector lives by it.
        self.state.value["pumped"] = self.now
        self.state.value["waiting"] = self.spool.has_waiting()
        if self.scheduler.calls:
            self._count_calls()
        self.state.save()
        fault.point("pump.drain.before")
        if not answered:
            handled = [name for name in handled if not name.startswith("kick.")]  # for the next pump
        for path in [os.path.join(self.spool.wake, name) for name in handled if name != LATE] + done:
            files.remove(path)
        self._expect_late()

    def _expect_late(self) -> None:
        """Leave a request where a submission that was given up may still turn up: accepted late, with our hold on, it
        would stay in the queue for ever where nothing else brings a pump."""
        path = os.path.join(self.spool.wake, LATE)
        if self.state.closed_lately():
            files.write_file(path, b"", durable=False)
        elif files.remove(path):
            self.report["unfinished"] = True  # another round, should the heartbeat have been there for this alone

    # -- what the steps share --------------------------------------------------------------------------------------

    def standings(self) -> "List[live.Standing]":
        """As `live.standings`; an id that its job has taken away is the journal's, or of a bundle its members'."""
        found = [self._with_id(job) if job.spoilt else job for job in live.standings(self.spool)]
        ids = {job.entry.token: job.id for job in found if job.member and job.id}
        return [job if job.id or not live.is_bundle(job.entry) else job._replace(id=_id_of_one(job, ids))
                for job in found]

    def _with_id(self, job: "live.Standing") -> "live.Standing":
        job_id = self.id_of(job.entry)
        return job._replace(id=job_id, indices=live.indices(job.entry, job_id))

    def id_of(self, entry: "Entry") -> str:
        """The scheduler's id of a submission whose own record of it is gone; "" where nobody knows it. Raises OSError
        where it is not this job that has taken it away."""
        spoiled.check_work(self.spool.work)
        known = self.state.value.setdefault("ids", {})  # type: Dict[str, str]
        found = known.get(entry.token) or spoiled.id_in_journal(self.spool.log, entry.token)
        if found and entry.token not in known:
            known[entry.token] = found
            self.state.save()  # a journal may be long, and this pump's time too short for all of them
        return found

    def calls(self) -> int:
        """Calls of the scheduler in the last 60 seconds, or up to ten more, by all pumps."""
        lately = sum(count for _, count in self._lately(self.now))
        return int(self.scheduler.calls + max(lately, self._told(self.now)))

    def may_call(self) -> bool:
        """Whether the scheduler may be called for one more job now. Says so where it may not."""
        if self.calls() < fill.MAX_CALLS - fill.SPARE_CALLS:
            return True
        self.report["note"] = "%d calls of the scheduler in 60 seconds: the rest follows" % self.calls()
        return False

    def _lately(self, now: float) -> "List[List[int]]":
        """state.json "lately": [tens of seconds since 1970, calls], of those that are not over for a minute."""
        kept = self.state.value.get("lately", [])
        return [[slot, count] for slot, count in kept if now - 70 < 10 * slot <= now]

    def _told(self, now: float) -> int:
        """state.json "calls": [minutes since 1970, calls in this one]; agents from before know no other count."""
        minute, count = self.state.value.get("calls", [0, 0])
        return int(count) if minute == int(now // 60) else 0

    def _count_calls(self) -> None:
        """Remember this round's: as of now, when the last of them has just been made."""
        now = files.server_time(self.spool.wake)
        self.state.value["calls"] = [int(now // 60), self._told(now) + self.scheduler.calls]
        lately = self._lately(now)
        if not lately or lately[-1][0] != int(now // 10):
            lately.append([int(now // 10), 0])
        lately[-1][1] += self.scheduler.calls
        self.state.value["lately"] = lately

    def delete(self, job_id: str) -> None:
        """Have the scheduler delete a job. Raises Unreachable."""
        fault.point("pump.delete.before")
        self.scheduler.delete(job_id)
        fault.point("pump.delete.after")

    def close_token(self, meta: str, token: str) -> str:
        """Close a token: "" if nothing can start under it any more, else the id that did."""
        started = marks.close(meta, token, self.lock.generation)
        if not started and token not in self.state.closed:
            self.state.closed.append(token)
        return started

    def rank_of(self, entry: "Entry") -> int:
        """The priority folder an attempt belongs to."""
        priority = self.spool.job_record(entry.job, entry.attempt).get("priority", 0)
        return min(999, max(0, MIDDLE_PRIORITY - priority)) if isinstance(priority, int) else MIDDLE_PRIORITY


def _id_of_one(bundle: "live.Standing", ids: "Dict[str, str]") -> str:
    return next((ids[token] for _, _, token in live.members(bundle.entry.path) if token in ids), "")


def _read_text(path: str) -> "Optional[str]":
    try:
        with open(path, "rb") as stream:
            return stream.read(200).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return None
