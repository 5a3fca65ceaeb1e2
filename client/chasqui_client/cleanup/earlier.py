"""Earlier attempts of a job, as clean sees them: each has results, proofs and a work folder of its own."""

from .. import states
from ..fields import replace
from ..ledger import Job, Ledger
from ..rows import now

_CLEANED = "cleaned"  # the event; the job's results state is that of its newest attempt


def attempts(ledger: Ledger, job: Job) -> list[Job]:
    """Those that the scheduler had and that were not cleaned, each as the job was then, its results where they are now.

    None while the newest attempt's own results are not all here: it may be tried again, and its inputs are looked for
    in the attempt before.
    """
    if job.attempt == 1 or job.results_state not in (states.VERIFIED, states.CLEANUP_ELIGIBLE, states.CLEANED):
        return []
    rows = ledger.rows(
        "SELECT attempt, state, EXISTS (SELECT 1 FROM proofs WHERE job = ?1 AND proofs.attempt = attempts.attempt) AS"
        " proved FROM attempts WHERE job = ?1 AND attempt < ?2 AND (pbs <> '' OR proved) AND NOT EXISTS"
        " (SELECT 1 FROM events WHERE job = ?1 AND events.attempt = attempts.attempt AND event = ?3) ORDER BY attempt",
        job.id, job.attempt, _CLEANED)
    return [replace(job, attempt=row["attempt"], state=row["state"], results_dir=job.aside(row["attempt"]),
                    results_state=states.VERIFIED if row["proved"] else states.NONE) for row in rows]


def cleaned(ledger: Ledger, attempt: Job) -> None:
    """Record that all of an attempt's folder that may go is gone."""
    with ledger.transaction():
        ledger.db.execute("INSERT INTO events(job, attempt, at, event, why) VALUES (?, ?, ?, ?, ?)",
                          (attempt.id, attempt.attempt, now(), _CLEANED, "its folder on %s" % attempt.remote))
