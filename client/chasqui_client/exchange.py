"""What a sync is asked to do and what it answers; `sync.run` stands between the two."""

from collections.abc import Mapping
from typing import Any

from .fields import dataclass, field


@dataclass(frozen=True)
class SyncOptions:
    """How to sync. interactive: a login may be opened, its prompts going to the user's terminal."""

    dry_run: bool = False
    upload: bool = True  # hand over new jobs; cancel, hold and release are carried over in any case
    download: bool = True
    deploy: bool = True
    take_caps: bool = False  # replace caps that another ledger set
    interactive: bool = False
    progress: bool = False  # a progress line on standard error
    wait: float = 10.0  # seconds to wait for another sync of this ledger
    fetch: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # job -> patterns of results to get; (): all


@dataclass
class SyncReport:
    """What one sync did. Numbers are of this sync alone, but for `counts`: all the remote's jobs by state."""

    remote: str = ""
    timestamp: str = ""
    dry_run: bool = False
    deployed: str = ""  # where the agent was installed, if it was
    uploaded: int = 0
    uploaded_files: int = 0
    uploaded_bytes: int = 0
    submitted: int = 0
    completed: int = 0
    failed: int = 0
    lost: int = 0
    rejected: int = 0
    cancelled: int = 0
    blocked: int = 0
    results_jobs: int = 0
    results_files: int = 0
    results_bytes: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    stalled_since: str = ""
    outlook: str = ""  # what to expect of the relay where a job's end alone does not move it on
    would_upload: list[dict[str, Any]] = field(default_factory=list)  # dry run: id, name, folder, files, bytes
    changed_inputs: list[dict[str, Any]] = field(default_factory=list)  # job, name, path, why
    left_out: list[dict[str, Any]] = field(default_factory=list)  # results: job, path, size, why; the first 1,000
    left_out_files: int = 0  # all of them
    incomplete: list[dict[str, Any]] = field(default_factory=list)  # completed jobs: job, name, missing (patterns)
    unwelcome: list[str] = field(default_factory=list)  # of the notes those on results that can't be written here
    refused: list[dict[str, Any]] = field(default_factory=list)  # jobs the agent did not take: job, why
    disk_full: str = ""  # which limit stopped the pump there: nothing is lost, and nothing goes on before there is room
    uploads_stopped: str = ""  # why nothing more was handed over, though the rest was done
    notes: list[str] = field(default_factory=list)  # anything else the user should read, one line each

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return dict(vars(self))

    @property
    def jobs_failed(self) -> int:
        """Jobs that ended badly in this sync."""
        return self.failed + self.lost + self.rejected
