"""What the ledger's rows are in Python."""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import states
from .fields import dataclass


def now() -> str:
    """The time as it stands in the ledger: UTC, to the second, sortable."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(frozen=True)
class Job:
    """One row of `jobs`; `attempt` is the newest one, state, exit, why, pbs.. are that attempt's."""

    id: str
    remote: str
    name: str
    folder: bytes
    state: str
    attempt: int
    priority: int
    script: bytes  # its path in the work folder
    options: dict[str, Any]
    results_dir: str
    results_state: str
    exit: int | None
    signal: int | None
    why: str
    pbs: str
    offered: int  # newest attempt the cluster may know of
    acked: int  # newest attempt the cluster has acknowledged
    added: str
    changed: str
    elements: str = ""  # JSON: how those of a job array ended, as chasqui_agent.elements has it
    missing: tuple[str, ...] = ()  # of its expected results, the patterns that nothing there matched (COMPLETED alone)

    @property
    def ended(self) -> bool:
        return self.state in states.ENDED

    @property
    def results_path(self) -> bytes:
        """Where its results land on this computer."""
        return os.path.join(self.folder, os.fsencode(self.results_dir))

    def aside(self, attempt: int) -> str:
        """What the folder of an earlier attempt's results is called since a later one's have come."""
        return "%s.attempt-%d" % (self.results_dir, attempt)


@dataclass(frozen=True)
class Parent:
    """A job that another one waits for. condition: how it has to end: ok, any, fail."""

    id: str
    name: str
    state: str
    attempt: int
    condition: str

    @property
    def ended(self) -> bool:
        return self.state in states.ENDED

    @property
    def in_the_way(self) -> bool:
        """It has ended, and not as it had to."""
        return self.ended and self.condition != "any" and (self.state == states.COMPLETED) != (self.condition == "ok")


@dataclass(frozen=True)
class InputFile:
    """One file of an attempt. Its content is read from `source`, or is `content` where it was generated."""

    path: bytes
    size: int
    mode: int
    sha256: str
    mtime_ns: int
    source: bytes = b""
    content: bytes | None = None


@dataclass(frozen=True)
class ResultFile:
    """One file the cluster offers. state: WANTED, HERE (verified), LEFT (left out: `why`) or GONE.

    sha256 is known of what is HERE alone. size and mtime_ns, both as they are there, tell whether it is still the same.
    """

    path: bytes
    size: int
    mode: int
    mtime_ns: int
    sha256: str
    kind: str
    state: str
    why: str = ""


@dataclass(frozen=True)
class Operation:
    """A cancel, hold or release that the next sync carries over; `id` makes it happen once."""

    id: str
    op: str
    job: str
    attempt: int


@dataclass(frozen=True)
class RemoteState:
    """What is known of a remote; all empty before the first sync."""

    uuid: str = ""
    cursor: int = 0
    revision: int = 0
    synced: str = ""  # when a sync last succeeded, UTC
    report: Mapping[str, Any] | None = None  # the agent's status and pump of that sync


def of_element(logs: Sequence[ResultFile], index: int) -> list[ResultFile]:
    """Of a job array's output files those of one element: the last number in their names is its index, unless
    her own -o says otherwise."""
    return [item for item in logs if re.findall(rb"[0-9]+", os.path.basename(item.path))[-1:] == [b"%d" % index]]


def elements_of(job: Job) -> tuple[int, int] | None:
    """The first and the last element of a job array that has ended, None where that is not known."""
    text = ",".join(row["indices"] for row in json.loads(job.elements or "{}").get("states", ()))
    found = [int(number) for number in re.findall(r"(?<![:0-9])[0-9]+", text)]
    return (min(found), max(found)) if found and "..." not in text else None


def arrays_of(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of what the agent said last: how far each job array was."""
    status = (report or {}).get("status")
    told = status.get("elements") if isinstance(status, dict) else None
    return told if isinstance(told, dict) else {}


def progress(job: Job, arrays: Mapping[str, Any]) -> dict[str, int] | None:
    """How many elements of a job array in the scheduler had ended, ran and waited then; None of any other job."""
    row = arrays.get(job.id)
    if row is None or row[0] != job.attempt or job.state not in (states.SUBMITTED, states.RUNNING):
        return None
    return dict(zip(("ended", "running", "waiting"), row[1:], strict=True))
