"""Proofs, keep rules and refusals in the ledger (tables proofs, keeps, clearances)."""

import calendar
import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable

from chasqui_agent import wire

from ..ledger import Job, Ledger, ResultFile
from .rules import Facts, Proof


def moment() -> tuple[float, str, float]:
    """Now, by every clock there is: (seconds since 1970, which boot, seconds since then)."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while a laptop sleeps
    return time.time(), _boot(), time.clock_gettime(clock)


@functools.cache
def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def new_run() -> str:
    """A name for a run that proves: two proofs count as two only from two runs."""
    return os.urandom(6).hex()


def digest(files: Iterable[ResultFile]) -> str:
    """The name of what was proved: equal exactly if paths, sizes and hashes of the files that are here are."""
    rows = sorted([wire.path_text(f.path), f.size, f.sha256] for f in files if f.state == "HERE")
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode("ascii")).hexdigest()


def proved(ledger: Ledger, job: str, attempt: int, how: str, proof: Proof) -> None:
    """Record that a run found an attempt's results whole. how: sync, local or deep."""
    with ledger.transaction():
        ledger.db.execute("INSERT INTO proofs(job, attempt, run, at, boot, up, manifest, how) VALUES (?,?,?,?,?,?,?,?)",
                          (job, attempt, proof.run, proof.at, proof.boot, proof.up, proof.manifest, how))


def proof_of(run: str, files: Iterable[ResultFile]) -> Proof:
    """The proof, as of this moment, that those of `files` that are here are whole; not yet recorded."""
    return Proof(run, *moment(), digest(files))


def disproved(ledger: Ledger, job: Job) -> None:
    """An attempt's results were found damaged: what was proved before says nothing of what is left."""
    with ledger.transaction():
        ledger.db.execute("DELETE FROM proofs WHERE job = ? AND attempt = ?", (job.id, job.attempt))


def facts(ledger: Ledger, job: Job, manifest: str) -> Facts:
    """What the rules go by; manifest: the digest of what is here now."""
    rows = ledger.rows("SELECT run, at, boot, up, manifest FROM proofs WHERE job = ? AND attempt = ? ORDER BY rowid",
                       job.id, job.attempt)
    made = ledger.rows("SELECT added FROM attempts WHERE job = ? AND attempt = ?", job.id, job.attempt)
    added = _seconds(made[0]["added"]) if made else 0
    return Facts(job.state, job.results_state, is_kept(ledger, job.id), manifest, added, [Proof(*row) for row in rows])


def _seconds(stamp: str) -> float:
    """A time of the ledger since 1970. Older ledgers have some to the millisecond, in the cluster's words; one that
    can't be read lies behind everything."""
    try:
        return calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return math.inf


# -- keep --------------------------------------------------------------------------------------------------------------


def keep(ledger: Ledger, jobs: Iterable[Job], revoke: bool = False) -> list[Job]:
    """Keep these jobs' work folders as they are, or no longer; returns those it is news for."""
    changed = []
    sql = "DELETE FROM keeps WHERE job = ?" if revoke else "INSERT OR IGNORE INTO keeps(job) VALUES (?)"
    with ledger.transaction():
        for job in jobs:
            if ledger.db.execute(sql, (job.id,)).rowcount:
                changed.append(job)
    return changed


def is_kept(ledger: Ledger, job: str) -> bool:
    """Whether `chasqui keep` holds for a job."""
    return bool(ledger.rows("SELECT 1 FROM keeps WHERE job = ?", job))


# -- what a clean-up by itself looks at --------------------------------------------------------------------------------


def refused(ledger: Ledger, job: Job, why: str) -> None:
    """Remember that a clean was refused: one that nobody typed does not ask the same again before min_age is over."""
    with ledger.transaction():
        ledger.db.execute("INSERT OR REPLACE INTO clearances(job, attempt, at, why) VALUES (?,?,?,?)",
                          (job.id, job.attempt, moment()[0], why))


def due(ledger: Ledger, remote: str, min_age: float) -> list[Job]:
    """Jobs that a clean-up at the end of a sync may find eligible: proved min_age ago, not kept, not refused since."""
    then = moment()[0] - min_age
    return ledger.jobs(
        "remote = ? AND results_state IN ('VERIFIED', 'CLEANUP_ELIGIBLE')"
        " AND EXISTS (SELECT 1 FROM proofs WHERE proofs.job = jobs.id AND proofs.attempt = jobs.attempt AND at <= ?)"
        " AND NOT EXISTS (SELECT 1 FROM keeps WHERE keeps.job = jobs.id)"
        " AND NOT EXISTS (SELECT 1 FROM clearances WHERE clearances.job = jobs.id AND"
        " clearances.attempt = jobs.attempt AND at > ?)", remote, then, then)
