"""The public functions: what the command line calls, and what a Python program calls instead of it.

    from chasqui_client import sync, SyncConfig
    sync(remote_host="hpc")                        # {"uploaded": 3, "submitted": 3, "completed": 0, "failed": 0, ..}

Nothing here prints, prompts or exits; failures are the exceptions of `errors`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chasqui_agent import wire

from . import errors, select, states
from .config import ANY, Caps, Config, Home, Remote, check_host, check_root
from .exchange import SyncOptions, SyncReport
from .fields import dataclass, replace
from .ledger import Job, Ledger
from .rows import arrays_of, progress
from .select import Selection

if TYPE_CHECKING:
    from .jobs import Added, Asked

DEFAULT_LEDGER = "~/.chasqui/jobs.db"


@dataclass(frozen=True)
class SyncConfig:
    """How `sync` treats a remote, where config.toml is not to decide.

    remote_host: a remote's name in config.toml, or a host. chasqui_remote_dir: the relay's folder there.
    """

    remote_host: str | None = None
    chasqui_remote_dir: str = "~/chasqui"
    max_queued: int = 40
    max_running: int = 30
    auto_deploy_agent: bool = True
    download_results: bool = False


def sync(local_db_path: str | os.PathLike[str] = DEFAULT_LEDGER, remote_host: str | None = None, dry_run: bool = False,
         config: SyncConfig | None = None) -> dict[str, Any]:
    """One sync: hand over what is new, bring home what happened.

    local_db_path: the ledger; config.toml is looked for beside it. The default means $CHASQUI_HOME where that is set.
    remote_host: a remote of config.toml or a host; default: config's, else the default one. dry_run contacts nothing.
    Returns uploaded, submitted, completed, failed (ints, this sync) and timestamp (ISO 8601, UTC).
    Never prompts: without a live connection it raises (see `chasqui login`). Other failures: `errors`.
    """
    home = home_of(local_db_path)
    remote = remote_for(home.config(), remote_host or (config.remote_host if config else None))
    if config:
        root, caps = check_root(config.chasqui_remote_dir), Caps(config.max_queued, config.max_running)
        remote = replace(remote, root=root, caps=caps)
    options = SyncOptions(dry_run=dry_run, download=bool(config and config.download_results),
                          deploy=config is None or config.auto_deploy_agent)
    report = run_sync(home, remote, options)
    return {name: getattr(report, name) for name in ("uploaded", "submitted", "completed", "failed", "timestamp")}


def run_sync(home: Home, remote: Remote, options: SyncOptions) -> SyncReport:
    """A sync with everything said; what the command uses."""
    from .sync import run
    return run(home, remote, options)


def home_of(ledger: str | os.PathLike[str]) -> Home:
    """The client's folder that a ledger belongs to."""
    if os.fspath(ledger) == DEFAULT_LEDGER:
        return Home()
    path = Path(os.path.abspath(os.path.expanduser(ledger)))
    return Home(path.parent, path)


def remote_for(config: Config, wanted: str | None) -> Remote:
    """A configured remote by name or by host, the default one for None, else one made for the host `wanted`."""
    if not wanted or wanted in config.remotes:
        return config.remote(wanted)
    for remote in config.remotes.values():
        if remote.host == wanted:
            return remote
    return Remote(wanted, check_host(wanted))


def open_ledger(home: Home) -> Ledger:
    """The ledger of `home`, made where there is none yet."""
    home.create()
    return Ledger(home.ledger_path)


# -- jobs --------------------------------------------------------------------------------------------------------------


def add(home: Home, folders: Sequence[bytes], asked: "Asked | None" = None, remote: Remote | str | None = None,
        again: bool = False) -> "Added":
    """Add a job for each folder, or none. Raises MissingFolders (a FileNotFoundError) or BadFolders, naming each."""
    from . import jobs
    config = home.config()
    target = remote if isinstance(remote, Remote) else remote_for(config, remote)
    with open_ledger(home) as ledger:
        return jobs.add(home, ledger, config, target, folders, asked or jobs.Asked(), again)


def find(home: Home, selection: Selection, nothing_is_all: bool = True) -> list[Job]:
    """The jobs of a selection, in the order they were added. Raises UnknownRemote."""
    with open_ledger(home) as ledger:
        return _find(home, ledger, selection, nothing_is_all)


def _find(home: Home, ledger: Ledger, selection: Selection, nothing_is_all: bool = False) -> list[Job]:
    remote = selection.remote
    if remote not in ("", ANY) and not ledger.rows("SELECT 1 FROM jobs WHERE remote = ? LIMIT 1", remote):
        home.config().remote(remote)
    return select.find(ledger, selection, nothing_is_all)


def status(home: Home, remote: str | None = None, ask: bool = False) -> list[dict[str, Any]]:
    """For each remote: its jobs by state, results still to come, when the last sync was, what the agent said then.

    ask: what it says now too, where a connection is open: "now" is the agent's `status --json`, None where none is,
    "silent" why it gave no answer, "" where it did.
    """
    config = home.config()
    with open_ledger(home) as ledger:
        named = [str(row[0]) for row in ledger.rows("SELECT DISTINCT remote FROM jobs")]
        everything = list(dict.fromkeys([*config.remotes, *named]))
        if remote and remote not in everything:
            config.remote(remote)
        found = [_remote_status(ledger, name) for name in ([remote] if remote else everything)]
    for one in found:
        one["now"], one["silent"] = _ask(home, config, one["remote"]) if ask else (None, "")
    return found


def _ask(home: Home, config: Config, name: str) -> tuple[dict[str, Any] | None, str]:
    from . import deploy
    if name not in config.remotes:
        return None, ""
    try:
        return deploy.relay_now(home, config.remotes[name]), ""
    except errors.ChasquiError as error:
        return None, str(error)


def _remote_status(ledger: Ledger, remote: str) -> dict[str, Any]:
    known = ledger.remote_state(remote)
    due, incomplete = ledger.results_due(remote)
    return {"remote": remote, "counts": ledger.counts(remote), "synced": known.synced, "agent": known.report,
            "waiting_for_others": ledger.waiting_for_others(remote),
            "to_upload": len(ledger.to_upload(remote)), "operations": len(ledger.pending_ops(remote)),
            "results_wanted": due, "results_incomplete": incomplete}


def show(home: Home, word: str, remote: str = "") -> dict[str, Any]:
    """Everything about one job: itself, what it waits for, attempts, events, inputs, results."""
    with open_ledger(home) as ledger:
        job = select.one(ledger, word, remote)
        inputs = [{"path": wire.path_text(f.path), "size": f.size, "sha256": f.sha256}
                  for f in ledger.files(job.id, job.attempt)]
        results = [{"path": wire.path_text(f.path), "size": f.size, "state": f.state, "why": f.why, "kind": f.kind}
                   for f in ledger.result_files(job.id, job.attempt)]
        waits = ledger.parents([job.id]).get(job.id, [])
        after = [{"id": one.id, "name": one.name, "state": one.state} for one in waits]
        known = as_dict(job)
        known["elements"] = known["elements"] or progress(job, arrays_of(ledger.remote_state(job.remote).report))
        return {**known, "after": after, "if": waits[0].condition if waits else "",
                "attempts": ledger.attempts(job.id), "events": ledger.events(job.id),
                "inputs": inputs, "result_files": results}


def retry(home: Home, selection: Selection, resources: "Mapping[str, str] | None" = None) -> list[Job]:
    """A new attempt of each selected job, with its inputs as they are now, and of those that are BLOCKED because of
    these alone; all or none.

    resources: what the scripts of the selected are to ask for instead: walltime, mem and the like, queue.
    """
    from . import jobs
    with open_ledger(home) as ledger:
        return jobs.retry(home, ledger, home.config(), _find(home, ledger, selection), resources)


def cancel(home: Home, selection: Selection) -> tuple[list[Job], list[Job]]:
    """Cancel the selected jobs that have not ended; returns (done here at once, to be sent by the next sync)."""
    return _request(home, selection, "cancel")


def hold(home: Home, selection: Selection) -> tuple[list[Job], list[Job]]:
    """Keep the selected jobs out of the queue until `release`; returns as `cancel` does."""
    return _request(home, selection, "hold")


def release(home: Home, selection: Selection) -> tuple[list[Job], list[Job]]:
    """Let held jobs go on; returns as `cancel` does."""
    return _request(home, selection, "release")


def _request(home: Home, selection: Selection, op: str) -> tuple[list[Job], list[Job]]:
    done: list[Job] = []
    later: list[Job] = []
    with open_ledger(home) as ledger:
        found = _find(home, ledger, selection)
        if not selection.words:
            # "--state", "--name" and "--all" mean those of them that it makes sense for; a job named must be able to.
            found = [job for job in found if ledger.allows(job, op)]
        with ledger.transaction():
            for job in found:
                (done if ledger.request(job, op, os.urandom(8).hex()) else later).append(job)
    return done, later


def as_dict(job: Job) -> dict[str, Any]:
    """A job as JSON knows it; paths as text, bytes that are not UTF-8 as %XX."""
    values = dict(vars(job), elements=json.loads(job.elements or "null"))
    for key in ("folder", "script"):
        values[key] = wire.path_text(values[key])
    values["results"] = wire.path_text(job.results_path)
    for key in ("results_dir", "offered", "acked"):
        del values[key]
    return values


def ended_badly(found: Sequence[Job]) -> list[Job]:
    """Those that a user wants to look at."""
    return [job for job in found if job.state in (states.FAILED, states.LOST, states.REJECTED)]
