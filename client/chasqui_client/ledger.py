"""The ledger: what this computer knows of its jobs, one SQLite file (synchronous=FULL, format in `schema`).

Every change of state goes through the tables of `states` and leaves a row in `events` in the same transaction. What a
no-op sync asks (jobs to upload, results wanted, operations not sent) is answered from indexes without finished jobs.

The default rollback journal, not WAL: home folders are on NFS, where WAL's shared memory does not work.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chasqui_agent import fault

from . import errors, schema, states
from .rows import InputFile as InputFile
from .rows import Job as Job
from .rows import Operation as Operation
from .rows import Parent as Parent
from .rows import RemoteState as RemoteState
from .rows import ResultFile as ResultFile
from .rows import now as now
from .states import CANCELLED, HELD, QUEUED_LOCAL

Record = Mapping[str, Any]

fault.register(
    {
        "ledger.commit.before": "a transaction's changes are made, not yet committed",
        "ledger.commit.after": "a transaction is committed, nothing after it done",
    }
)


class Ledger:
    """An open ledger. Use as a context manager. Raises LedgerBusy, LedgerFull, LedgerNewer, LedgerDamaged."""

    def __init__(self, path: Path | str, timeout: float = 10.0) -> None:
        """path: the file, made where it does not exist. timeout: seconds to wait for another chasqui's transaction."""
        self.path = Path(path)
        with self._explained():
            self._open(timeout)
            self.id = schema.prepare(self.db)
        self.run = os.urandom(6).hex()  # what is proved twice must be proved by two runs

    def _open(self, timeout: float) -> None:
        previous = os.umask(0o077)
        try:
            # check_same_thread off: a progress thread may read; SQLite itself is built serialized.
            self.db = sqlite3.connect(self.path, timeout=timeout, isolation_level=None, check_same_thread=False)
        finally:
            os.umask(previous)
        self.db.row_factory = sqlite3.Row
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute("PRAGMA foreign_keys=OFF")

    def close(self) -> None:
        self.db.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            if "locked" in text or "busy" in text:
                from . import holder
                raise errors.LedgerBusy(path=self.path, holder=holder.of_file(self.path)) from error
            if "full" in text or (isinstance(error, sqlite3.OperationalError) and _disk_full(self.path)):
                raise errors.LedgerFull(path=self.path) from error
            raise errors.LedgerDamaged(text, path=self.path) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block's changes or none, durable when it ends. Nests: inner ones belong to the outermost.

        Never hold one while the network is used: others could not write meanwhile.
        """
        if self.db.in_transaction:
            yield
            return
        with self._explained():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
                fault.point("ledger.commit.before")
                self.db.execute("COMMIT")
                fault.point("ledger.commit.after")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """The rows of a query."""
        with self._explained():
            return self.db.execute(sql, values).fetchall()

    def _change(self, sql: str, *values: Any) -> int:
        with self.transaction():
            return self.db.execute(sql, values).rowcount

    # -- remotes -------------------------------------------------------------------------------------------------------

    def remote_state(self, remote: str) -> RemoteState:
        for row in self.rows("SELECT * FROM remotes WHERE name = ?", remote):
            return RemoteState(row["uuid"], row["cursor"], row["revision"], row["synced"], json.loads(row["report"]))
        return RemoteState()

    def set_remote(self, remote: str, **values: Any) -> None:
        """Set any of uuid, cursor, synced and report (JSON-able). Another uuid resets the cursor."""
        unknown = set(values) - {"uuid", "cursor", "synced", "report"}
        if unknown:
            raise TypeError("unknown columns %s" % unknown)
        with self.transaction():
            self.db.execute("INSERT OR IGNORE INTO remotes(name) VALUES (?)", (remote,))
            if "uuid" in values and "cursor" not in values:
                self.db.execute("UPDATE remotes SET cursor = 0 WHERE name = ? AND uuid <> ?", (remote, values["uuid"]))
            for column, value in values.items():
                stored = json.dumps(value) if column == "report" else value
                self.db.execute("UPDATE remotes SET %s = ? WHERE name = ?" % column, (stored, remote))

    def config_revision(self, remote: str, values: Mapping[str, Any]) -> int:
        """A number that goes up by one each time `values` (caps and settings) are not what they were."""
        wanted = json.dumps(values, sort_keys=True)
        with self.transaction():
            self.db.execute("INSERT OR IGNORE INTO remotes(name) VALUES (?)", (remote,))
            self.db.execute("UPDATE remotes SET revision = revision + 1, config = ? WHERE name = ? AND config <> ?",
                            (wanted, remote, wanted))
        return self.remote_state(remote).revision

    # -- reading jobs --------------------------------------------------------------------------------------------------

    def jobs(self, where: str = "1", *values: Any) -> list[Job]:
        """Jobs in the order they were added. `where` is SQL of ours, never the user's text: that goes into `values`."""
        options: dict[str, dict[str, Any]] = {"{}": {}}  # mostly the same for a batch: its jobs share one
        return [_job(row, options)
                for row in self.rows("SELECT * FROM jobs WHERE %s ORDER BY rowid" % where, *values)]

    def job(self, job: str) -> Job | None:
        found = self.jobs("id = ?", job)
        return found[0] if found else None

    def jobs_by_id(self, ids: Iterable[str]) -> dict[str, Job]:
        """The jobs with these ids (at most a thousand: it is one query); others are left out."""
        wanted = list(ids)
        return {job.id: job for job in self.jobs("id IN (%s)" % ", ".join("?" * len(wanted)), *wanted)}

    def folder_jobs(self, folder: bytes) -> list[Job]:
        """The jobs of a folder (real path), on whichever remote."""
        return self.jobs("folder = ?", folder)

    def to_upload(self, remote: str) -> list[str]:
        """Ids of the jobs whose newest attempt the cluster has not acknowledged, highest priority first, else in the
        order added; behind them those that wait for others, in the order added, parents first. There may be very many:
        whoever wants more than ids reads them one by one.

        A job with a cancel or hold on its way is left out: what the user took back is not sent.
        """
        return [row[0] for row in self.rows("SELECT id " + self._TO_UPLOAD, remote)]

    _TO_UPLOAD = ("FROM jobs WHERE remote = ? AND state = 'QUEUED_LOCAL' AND acked < attempt AND NOT EXISTS"
                  " (SELECT 1 FROM ops WHERE ops.job = jobs.id AND ops.attempt = jobs.attempt AND ops.done = ''"
                  " AND op IN ('cancel', 'hold')) ORDER BY CASE WHEN EXISTS (SELECT 1 FROM parents WHERE job = jobs.id)"
                  " THEN 1000 ELSE -priority END, rowid")

    def parents(self, jobs: Iterable[str]) -> dict[str, list[Parent]]:
        """What each of these jobs waits for, in its order; those that wait for nothing are left out."""
        ids, found = list(jobs), dict[str, list[Parent]]()
        for at in range(0, len(ids), 500):
            some = ids[at:at + 500]
            marks = ", ".join("?" * len(some))
            for row in self.rows("SELECT job, jobs.id, name, state, attempt, condition FROM parents JOIN jobs"
                                 " ON jobs.id = parent WHERE job IN (%s) ORDER BY job, place" % marks, *some):
                found.setdefault(row[0], []).append(Parent(*row[1:]))
        return found

    def children(self, jobs: Iterable[str]) -> list[Job]:
        """The jobs that wait, or waited, for any of these, each once."""
        ids, found = list(jobs), dict[str, Job]()
        for at in range(0, len(ids), 500):
            some = ids[at:at + 500]
            where = "id IN (SELECT job FROM parents WHERE parent IN (%s))" % ", ".join("?" * len(some))
            found.update((job.id, job) for job in self.jobs(where, *some))
        return list(found.values())

    def waiting_for_others(self, remote: str) -> int:
        """How many jobs, here or there, wait for one that has not ended."""
        marks = ", ".join("'%s'" % state for state in states.OPEN)
        found = self.rows("SELECT COUNT(*) FROM jobs WHERE remote = ? AND state IN ('QUEUED_LOCAL', 'UPLOADED') AND"
                          " EXISTS (SELECT 1 FROM parents JOIN jobs AS p ON p.id = parent"
                          " WHERE job = jobs.id AND p.state IN (%s))" % marks, remote)
        return int(found[0][0])

    def bytes_to_upload(self, remote: str, most: int) -> int:
        """Of the first `most` of those jobs, the bytes of all contents, each counted once."""
        row = self.rows("SELECT SUM(size) FROM (SELECT DISTINCT sha256, size FROM files WHERE (job, attempt) IN"
                        " (SELECT id, attempt %s LIMIT ?))" % self._TO_UPLOAD, remote, most)[0]
        return row[0] or 0

    _RESULTS_WANTED = ("FROM jobs WHERE remote = ? AND results_state IN ('NONE', 'PARTIAL') AND acked = attempt AND"
                       " state IN ('COMPLETED', 'FAILED', 'LOST', 'CANCELLED')")

    def results_wanted(self, remote: str) -> list[tuple[str, int]]:
        """(job, attempt) of ended jobs of the cluster whose results are not all here."""
        found = self.rows("SELECT id, attempt %s ORDER BY rowid" % self._RESULTS_WANTED, remote)
        return [(row[0], row[1]) for row in found]

    def results_due(self, remote: str) -> tuple[int, int]:
        """How many of those wait for a sync alone, and how many have been asked for and miss expected results."""
        row = self.rows("SELECT SUM(missing = '[]'), SUM(missing <> '[]') %s" % self._RESULTS_WANTED, remote)[0]
        return row[0] or 0, row[1] or 0

    def counts(self, remote: str, open_only: bool = False) -> dict[str, int]:
        """Number of jobs a state, states without jobs left out. open_only: cheap however many have ended."""
        chosen = states.OPEN if open_only else states.STATES
        rows = self.rows("SELECT state, COUNT(*) FROM jobs WHERE remote = ? AND state IN (%s) GROUP BY state"
                         % ", ".join("'%s'" % state for state in chosen), remote)
        found = {str(row[0]): int(row[1]) for row in rows}
        return {state: found[state] for state in chosen if state in found}

    def files(self, job: str, attempt: int) -> list[InputFile]:
        """The inputs of an attempt, sorted by path: of one that the relay made, those of the one it was made of."""
        columns = "path, size, mode, sha256, mtime_ns, source, content"
        rows = self.rows("SELECT %s FROM files WHERE job = ? AND attempt = ? ORDER BY path" % columns, job,
                         self.uploaded_attempt(job, attempt))
        return [InputFile(*row) for row in rows]

    def uploaded_attempt(self, job: str, attempt: int) -> int:
        """The attempt whose inputs this one has: itself, unless the relay made it; 0 where there is none."""
        row = self.rows("SELECT MAX(attempt) FROM files WHERE job = ? AND attempt <= ?", job, attempt)[0]
        return row[0] or 0

    def attempts(self, job: str) -> list[dict[str, Any]]:
        """Every attempt, oldest first: attempt, state, exit, signal, why, pbs, added, started, ended, elements."""
        rows = self.rows("SELECT * FROM attempts WHERE job = ? ORDER BY attempt", job)
        return [dict(row, elements=json.loads(row["elements"] or "null")) for row in rows]

    def events(self, job: str) -> list[dict[str, Any]]:
        """What happened to a job, oldest first: at, attempt, event, old, new, why."""
        rows = self.rows("SELECT at, attempt, event, old, new, why FROM events WHERE job = ? ORDER BY id", job)
        return [dict(row) for row in rows]

    # -- changing jobs -------------------------------------------------------------------------------------------------

    def add_job(self, job: Job, inputs: Iterable[InputFile]) -> None:
        """Record a new job, PREPARED and then QUEUED_LOCAL."""
        columns = ("id", "remote", "name", "folder", "priority", "script", "results_dir")
        with self.transaction():
            self.db.execute(
                "INSERT INTO jobs(%s, options, state, attempt, added, changed) VALUES (?,?,?,?,?,?,?,?,'',1,?,?)"
                % ", ".join(columns), (*(getattr(job, c) for c in columns), json.dumps(job.options), now(), now()))
            self._new_attempt(job.id, 1, inputs)
            self.move(job.id, states.PREPARED, "added")
            self.move(job.id, QUEUED_LOCAL, "added")

    def add_parents(self, job: str, parents: Iterable[str], condition: str) -> None:
        """Record what a new job waits for: jobs that were added before it. condition: how each has to end."""
        with self.transaction():
            self.db.executemany("INSERT INTO parents VALUES (?, ?, ?, ?)",
                                [(job, parent, place, condition) for place, parent in enumerate(parents)])

    def add_attempt(self, job: Job, inputs: Iterable[InputFile], why: str = "retry") -> int:
        """A new attempt of an ended job, as `job` now describes it (script, options); returns its number."""
        attempt = job.attempt + 1
        with self.transaction():
            self.set_missing(job.id, ())
            self.move(job.id, QUEUED_LOCAL, why, attempt=attempt)
            self.set_results_state(job.id, states.NONE)
            self.db.execute("UPDATE jobs SET attempt = ?, exit = NULL, signal = NULL, why = '', pbs = '', script = ?,"
                            " options = ?, elements = '' WHERE id = ?",
                            (attempt, job.script, json.dumps(job.options), job.id))
            self._new_attempt(job.id, attempt, inputs)
        return attempt

    def follow_attempt(self, job: Job) -> None:
        """The relay has made the next attempt of a job itself, from the same inputs; inside a transaction."""
        self.set_missing(job.id, ())
        self.set_results_state(job.id, states.NONE)
        self.db.execute("UPDATE jobs SET attempt = ? WHERE id = ?", (job.attempt + 1, job.id))
        self.db.execute("INSERT INTO attempts(job, attempt, state, added) VALUES (?, ?, ?, ?)",
                        (job.id, job.attempt + 1, states.UPLOADED, now()))

    def _new_attempt(self, job: str, attempt: int, inputs: Iterable[InputFile]) -> None:
        self.db.execute("INSERT INTO attempts(job, attempt, state, added) VALUES (?, ?, ?, ?)",
                        (job, attempt, QUEUED_LOCAL, now()))
        self._insert_files(job, attempt, inputs)

    def _insert_files(self, job: str, attempt: int, inputs: Iterable[InputFile]) -> None:
        self.db.executemany(
            "INSERT INTO files(job, attempt, path, size, mode, sha256, mtime_ns, source, content)"
            " VALUES (?,?,?,?,?,?,?,?,?)",
            [(job, attempt, f.path, f.size, f.mode, f.sha256, f.mtime_ns, f.source, f.content) for f in inputs])

    def move(self, job: str, new: str, why: str = "", *, at: str = "", event: str = "", record: str = "",
             attempt: int | None = None) -> None:
        """Move a job to state `new` and say so in `events`. Raises ForbiddenMove where the table has no such move.

        at, event, record: time, name and digest of the journal record behind it. attempt: where not the newest.
        """
        with self.transaction():
            row = self.db.execute("SELECT state, attempt FROM jobs WHERE id = ?", (job,)).fetchone()
            if row is None or new not in states.JOB_MOVES[row["state"]]:
                raise errors.ForbiddenMove(job=job, old=row and row["state"], new=new)
            number = attempt or row["attempt"]
            self.db.execute("UPDATE jobs SET state = ?, changed = ? WHERE id = ?", (new, at or now(), job))
            self.db.execute("UPDATE attempts SET state = ? WHERE job = ? AND attempt = ?", (new, job, number))
            self._event(job, number, at, event or new.lower(), row["state"], new, why, record)

    def _event(self, job: str, attempt: int, at: str, event: str, old: str, new: str, why: str, record: str) -> None:
        self.db.execute("INSERT INTO events(job, attempt, at, event, old, new, why, record) VALUES (?,?,?,?,?,?,?,?)",
                        (job, attempt, at or now(), event, old, new, why, record or None))

    def mark_offered(self, jobs: Sequence[Job]) -> set[str]:
        """Record it before the first of these jobs is sent: from now on only the cluster can cancel or hold them.

        Returns the ids of those that are still to be sent: not what was held, cancelled or given to another remote
        since `jobs` were read.
        """
        with self.transaction():
            before = self.db.total_changes
            self.db.executemany("UPDATE jobs SET offered = attempt " + self._STILL_OURS,
                                [(job.id, job.attempt, job.remote) for job in jobs])
            if self.db.total_changes - before == len(jobs):
                return {job.id for job in jobs}
            return {job.id for job in jobs
                    if self.rows("SELECT 1 FROM jobs " + self._STILL_OURS, job.id, job.attempt, job.remote)}

    _STILL_OURS = "WHERE id = ? AND attempt = ? AND remote = ? AND state = 'QUEUED_LOCAL'"

    def withdraw(self, job: str) -> None:
        """The agent has said that it does not have this job, and was not sent it: it is ours alone again."""
        self._change("UPDATE jobs SET offered = acked WHERE id = ? AND acked < attempt", job)

    def replace_inputs(self, job: str, attempt: int, inputs: Iterable[InputFile]) -> None:
        """The inputs of an attempt that was never offered, as they are now."""
        with self.transaction():
            self.db.execute("DELETE FROM files WHERE job = ? AND attempt = ?", (job, attempt))
            self._insert_files(job, attempt, inputs)

    def acknowledge(self, remote: str, pairs: Iterable[tuple[str, int]]) -> list[str]:
        """The agent has these (job, attempt) whole and durable; returns the ids it was news for."""
        left, news = list(dict.fromkeys(pairs)), []
        with self.transaction():
            for at in range(0, len(left), 400):
                news += self._acknowledge(remote, left[at:at + 400])
        return news

    def _acknowledge(self, remote: str, pairs: list[tuple[str, int]]) -> list[str]:
        known = {row["id"]: row for row in self.rows(
            "SELECT id, state FROM jobs WHERE remote = ? AND acked < attempt AND (id, attempt) IN (VALUES %s)"
            % ", ".join(["(?, ?)"] * len(pairs)), remote, *(value for pair in pairs for value in pair))}
        fresh = [(attempt, job) for job, attempt in pairs if job in known]
        self.db.executemany("UPDATE jobs SET acked = ?1, offered = ?1 WHERE id = ?2", fresh)
        self._move_all([(job, attempt) for attempt, job in fresh if known[job]["state"] == QUEUED_LOCAL],
                       QUEUED_LOCAL, states.UPLOADED, "acknowledged")
        return [job for _, job in fresh]

    def _move_all(self, pairs: list[tuple[str, int]], old: str, new: str, why: str) -> None:
        """What `move` does, for many jobs in the same state, by (id, attempt)."""
        at = now()
        self.db.executemany("UPDATE jobs SET state = ?, changed = ? WHERE id = ?", [(new, at, job) for job, _ in pairs])
        self.db.executemany("UPDATE attempts SET state = ? WHERE job = ? AND attempt = ?",
                            [(new, job, attempt) for job, attempt in pairs])
        self.db.executemany("INSERT INTO events(job, attempt, at, event, old, new, why) VALUES (?,?,?,?,?,?,?)",
                            [(job, attempt, at, new.lower(), old, new, why) for job, attempt in pairs])

    def apply_record(self, remote: str, record: Record) -> str:
        """`apply_records` of one."""
        return self.apply_records(remote, [record])[0]

    def apply_records(self, remote: str, records: Sequence[Record]) -> list[str]:
        """Apply journal records in their order, each once however often it comes; of each the job's new state, "" where
        it did not move. All of them or none.

        Records of jobs that are not ours, or that say nothing of a job, are passed over. Records of an older attempt
        are kept as events and never touch the job's state.
        """
        from .history import Piece
        with self.transaction():
            piece = Piece(self, remote, records)
            moved = [piece.apply(record) for record in records]
            piece.write()
        return moved

    # -- operations ----------------------------------------------------------------------------------------------------

    def allows(self, job: Job, op: str) -> bool:
        """Whether a cancel, hold or release means anything for a job now. A hold on its way can be released too."""
        if op == "hold":
            return job.state in (QUEUED_LOCAL, states.UPLOADED, states.SUBMITTED)
        if op == "release":
            return job.state == HELD or bool(self.rows("SELECT 1 FROM ops WHERE job = ? AND attempt = ? AND done = ''"
                                                       " AND op = 'hold'", job.id, job.attempt))
        return not job.ended

    def request(self, job: Job, op: str, op_id: str) -> bool:
        """Record a cancel, hold or release for the next sync, or do it here where the cluster can't know the job yet.

        Returns True where it is already done. A job in a state the operation makes no sense in: WrongState.
        """
        with self.transaction():
            job = self.job(job.id) or job  # a sync may have begun to offer it since it was read
            if not self.allows(job, op):
                raise errors.WrongState("%s (%s) is %s: nothing to %s" % (job.name, job.id, job.state, op))
            if job.offered < job.attempt:
                self.move(job.id, {"cancel": CANCELLED, "hold": HELD, "release": QUEUED_LOCAL}[op], op + " here")
                return True
            self.db.execute("DELETE FROM ops WHERE job = ? AND attempt = ? AND done = '' AND op = ?",
                            (job.id, job.attempt, op))
            self.db.execute("INSERT INTO ops(id, remote, op, job, attempt, requested) VALUES (?,?,?,?,?,?)",
                            (op_id, job.remote, op, job.id, job.attempt, now()))
        return False

    def pending_ops(self, remote: str) -> list[Operation]:
        """Operations the cluster has not confirmed, in the order they were asked for."""
        rows = self.rows("SELECT id, op, job, attempt FROM ops WHERE remote = ? AND done = '' ORDER BY rowid", remote)
        return [Operation(*row) for row in rows]

    def finish_op(self, op_id: str) -> None:
        """The agent has done this operation; where it never had the job, the operation takes effect here."""
        with self.transaction():
            for row in self.rows("SELECT op, job, attempt FROM ops WHERE id = ? AND done = ''", op_id):
                self.db.execute("UPDATE ops SET done = ? WHERE id = ?", (now(), op_id))
                job = self.job(row["job"])
                if job is None or job.acked >= job.attempt or job.attempt != row["attempt"]:
                    continue
                moves = {("cancel", QUEUED_LOCAL): CANCELLED, ("cancel", HELD): CANCELLED, ("hold", QUEUED_LOCAL): HELD,
                         ("release", HELD): QUEUED_LOCAL}
                if (row["op"], job.state) in moves:
                    self.move(job.id, moves[row["op"], job.state], row["op"])

    # -- results -------------------------------------------------------------------------------------------------------

    def set_results_state(self, job: str, new: str, found: Iterable[ResultFile] | None = None) -> None:
        """Move a job's results to `new` (no-op where they are there). Raises ForbiddenMove.

        found: what `record_results` was told of the newest attempt, if that is known.
        """
        with self.transaction():
            row = self.db.execute("SELECT results_state, attempt FROM jobs WHERE id = ?", (job,)).fetchone()
            old = row["results_state"]
            if new == old:
                return
            if new not in states.RESULTS_MOVES[old]:
                raise errors.ForbiddenMove(job=job, old="results " + old, new=new)
            self.db.execute("UPDATE jobs SET results_state = ? WHERE id = ?", (new, job))
            self._event(job, row["attempt"], "", "results", "results " + old, "results " + new, "", "")
            if new == states.VERIFIED and old in (states.NONE, states.PARTIAL):
                from .cleanup import book
                proof = book.proof_of(self.run, self.result_files(job, row["attempt"]) if found is None else found)
                book.proved(self, job, row["attempt"], "sync", proof)

    def record_results(self, job: str, attempt: int, found: Iterable[ResultFile]) -> None:
        """What is known of an attempt's results, replacing what was known before."""
        with self.transaction():
            self.db.execute("DELETE FROM results_files WHERE job = ? AND attempt = ?", (job, attempt))
            self.db.executemany("INSERT INTO results_files(job, attempt, %s) VALUES (?,?,?,?,?,?,?,?,?,?)" % _RESULT,
                                ((job, attempt, *vars(f).values()) for f in found))

    def set_missing(self, job: str, patterns: Iterable[str]) -> None:
        """The expected results that a completed job does not have."""
        self._change("UPDATE jobs SET missing = ? WHERE id = ?", json.dumps(list(patterns)), job)

    def set_result(self, job: str, attempt: int, path: bytes, state: str, why: str = "") -> None:
        """WANTED, HERE, LEFT or GONE for one offered file."""
        self._change("UPDATE results_files SET state = ?, why = ? WHERE job = ? AND attempt = ? AND path = ?",
                     state, why, job, attempt, path)

    def result_files(self, job: str, attempt: int) -> list[ResultFile]:
        """The files offered for an attempt, sorted by path."""
        rows = self.rows("SELECT %s FROM results_files WHERE job = ? AND attempt = ? ORDER BY path" % _RESULT,
                         job, attempt)
        return [ResultFile(*row) for row in rows]

    def results_of(self, jobs: Iterable[str]) -> dict[tuple[str, int], list[ResultFile]]:
        """The files offered for the newest attempts of these jobs (at most a thousand: it is one query)."""
        ids = list(jobs)
        found: dict[tuple[str, int], list[ResultFile]] = {}
        for row in self.rows("SELECT job, attempt, %s FROM results_files WHERE job IN (%s) AND attempt ="
                             " (SELECT attempt FROM jobs WHERE id = job)" % (_RESULT, ", ".join("?" * len(ids))), *ids):
            found.setdefault((row[0], row[1]), []).append(ResultFile(*row[2:]))
        return found


_RESULT = "path, size, mode, mtime_ns, sha256, kind, state, why"


def _job(row: sqlite3.Row, options: dict[str, dict[str, Any]]) -> Job:
    values = {column: row[column] for column in Job.__annotations__}
    stored = row["options"]
    if stored not in options:
        options[stored] = json.loads(stored)
    values["options"] = options[stored]
    values["missing"] = tuple(json.loads(row["missing"])) if row["missing"] != "[]" else ()
    return Job(*values.values())


def _disk_full(path: Path) -> bool:
    """SQLite says "disk I/O error" or "unable to open" for some full disks; ask the file system itself."""
    try:
        status = os.statvfs(path.parent)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < 64 << 10
