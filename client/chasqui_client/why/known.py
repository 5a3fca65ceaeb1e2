"""What is known of one job, from the ledger, its folder and, where a connection is open, the relay on the cluster."""

import time
from collections.abc import Mapping
from typing import Any

from chasqui_agent import wire

from .. import deploy, errors, inputs, states
from ..config import Config, Home, Remote
from ..fields import dataclass, field
from ..ledger import Job, Ledger, Parent, ResultFile
from ..rows import arrays_of, progress

MAX_CHANGES = 20


@dataclass(frozen=True)
class Known:
    """Everything the words are made of. Times are the ledger's, UTC; ages are told against the clock by the reader."""

    job: Job
    configured: bool = True  # its remote stands in config.toml
    sync: str = "chasqui sync"  # what to type for a sync with its remote
    synced: str = ""  # when a sync with its remote last succeeded, "" for never
    report: Mapping[str, Any] = field(default_factory=dict)  # what the agent said then
    operations: tuple[str, ...] = ()  # cancel, hold, release that were asked for and not sent yet
    changes: tuple[tuple[str, str], ...] = ()  # inputs that are not what they were: path, what happened
    parents: tuple[Parent, ...] = ()  # what it waits for, while it does
    blocker: Parent | None = None  # the job whose retry could have it run, if it is, or will be, blocked
    ahead: int = 0  # jobs of the remote that wait there before it, as of the last sync
    live: int = 0  # jobs of the remote in the scheduler, as of the last sync
    caps: tuple[int, int] = (0, 0)  # max_running, max_queued
    paused: str = ""  # until when no file is transferred, "" for now
    starts: int = 0  # how often the scheduler started it again
    again: str = ""  # of an attempt that the relay made: which it is, after what end, and what it asks for now
    retries: int = 0  # how often the relay may try it again yet, by its policy
    left: tuple[ResultFile, ...] = ()  # results that were left there
    logs: tuple[ResultFile, ...] = ()  # its output that is here
    progress: Mapping[str, int] | None = None  # of a job array in the scheduler, as of the last sync
    there: Mapping[str, Any] | None = None  # the relay's own facts, asked now; chasqui_agent.why says which
    silent: str = ""  # why it could not be asked though it would have helped


def gather(home: Home, ledger: Ledger, job: Job, config: Config, ask: bool = True) -> Known:
    """What is known of `job`. ask: the relay too, with one exec, where that can add anything and a connection is open.

    Never logs in, and a relay that does not answer is no error: `silent` says so.
    """
    remote = config.remotes.get(job.remote)
    state = ledger.remote_state(job.remote)
    so_far = progress(job, arrays_of(state.report))
    known = Known(job, remote is not None, config.sync_line([job.remote]), state.synced, state.report or {},
                  _operations(ledger, job))
    values: dict[str, Any] = dict(vars(known), **_place(ledger, job), starts=_starts(ledger, job), progress=so_far,
                                  parents=_parents(ledger, job), blocker=_blocker(ledger, job.id),
                                  **_retries(ledger, job))
    if remote:
        values.update(caps=(remote.caps.max_running, remote.caps.max_queued), paused=_paused(remote))
    if job.state == states.QUEUED_LOCAL and job.offered < job.attempt:
        changes = inputs.changed(ledger.files(job.id, job.attempt))[:MAX_CHANGES]
        values["changes"] = tuple((path.decode("utf-8", "replace"), why) for path, why in changes)
    if job.ended:
        found = ledger.result_files(job.id, job.attempt)
        values["left"] = tuple(file for file in found if file.state == "LEFT")
        values["logs"] = tuple(file for file in found if file.kind == "log" and file.state == "HERE")
    elif ask and remote and job.offered == job.attempt:
        values["there"], values["silent"] = _asked(home, remote, job)
    return Known(**values)


def _operations(ledger: Ledger, job: Job) -> tuple[str, ...]:
    rows = ledger.rows("SELECT op FROM ops WHERE job = ? AND attempt = ? AND done = '' ORDER BY rowid",
                       job.id, job.attempt)
    return tuple(str(row[0]) for row in rows)


def _parents(ledger: Ledger, job: Job) -> tuple[Parent, ...]:
    """Nothing once the relay has said that all of them ended as they had to: a parent may have been tried again."""
    if job.ended or ledger.rows("SELECT 1 FROM events WHERE job = ? AND attempt = ? AND event = 'ready'",
                                job.id, ledger.uploaded_attempt(job.id, job.attempt)):
        return ()
    return tuple(ledger.parents([job.id]).get(job.id, ()))


def _blocker(ledger: Ledger, job: str) -> Parent | None:
    """Up from job to parent, over those that are blocked themselves; None where nothing stands in its way any more."""
    found = None
    while found is None or found.state == states.BLOCKED:
        parents = ledger.parents([found.id if found else job]).values()
        ahead = next((parent for some in parents for parent in some if parent.in_the_way), None)
        if ahead is None:
            break
        found = ahead
    return found


def _place(ledger: Ledger, job: Job) -> dict[str, int]:
    ahead = ledger.rows("SELECT COUNT(*) FROM jobs WHERE remote = ?1 AND state = 'UPLOADED' AND (priority > ?2 OR"
                        " (priority = ?2 AND rowid < (SELECT rowid FROM jobs WHERE id = ?3)))",
                        job.remote, job.priority, job.id)[0][0]
    counts = ledger.counts(job.remote, open_only=True)
    return {"ahead": int(ahead), "live": counts.get(states.SUBMITTED, 0) + counts.get(states.RUNNING, 0)}


def _starts(ledger: Ledger, job: Job) -> int:
    return int(ledger.rows("SELECT COUNT(*) FROM events WHERE job = ? AND attempt = ? AND event = 'requeued'",
                           job.id, job.attempt)[0][0])


def _retries(ledger: Ledger, job: Job) -> dict[str, Any]:
    policy, uploaded = job.options.get("retry"), ledger.uploaded_attempt(job.id, job.attempt)
    if not policy:
        return {}
    told = ledger.rows("SELECT why FROM events WHERE job = ? AND attempt = ? AND event = 'retried' AND new <> ''"
                       " ORDER BY id DESC LIMIT 1", job.id, job.attempt - 1) if job.attempt > uploaded else []
    return {"again": wire.printable(told[0]["why"]) if told else "",
            "retries": max(0, uploaded + int(policy.get("retries", 0)) - job.attempt)}


def _paused(remote: Remote) -> str:
    if not remote.bandwidth:
        return ""
    from .. import pace
    return pace.until(remote.bandwidth) if remote.bandwidth.at(time.time()) == pace.PAUSE else ""


def _asked(home: Home, remote: Remote, job: Job) -> tuple[dict[str, Any] | None, str]:
    try:
        found = deploy.ask_agent(home, remote, ["why", job.id, str(job.attempt), "--json"])
    except errors.AgentRefused as error:
        older = "no verb" in str(error)
        return None, "the agent there is older than this question; the next sync replaces it" if older else str(error)
    except errors.ChasquiError as error:
        return None, str(error)
    return (found, "") if found else (None, "no connection is open")
