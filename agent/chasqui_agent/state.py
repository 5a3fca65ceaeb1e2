"""state.json: what the pump remembers from one time to the next. Read and written under the lock alone."""

import os

from . import files

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Optional, Set

    from .schedulers.base import Snapshot, Sought
    from .spool import Spool

KEEP = 2000
LATE = "kick.late"  # in wake/: a request that stays while a submission that was given up may still turn up
MAX_LATE, LATE_SECONDS = 5, 3600.0  # submissions given up that are still looked for, and how long


class State:
    """The remembered facts of one root; losing them costs time, never a job; so it is not fsynced."""

    def __init__(self, spool: "Spool") -> None:
        self._path = os.path.join(spool.root, "state.json")
        self._snapshot_path = os.path.join(spool.root, "snapshot.json")
        self._scratch = spool.wake
        try:
            stored = files.read_json(self._path, {})
        except ValueError:
            stored = {}
        self.value: "Dict[str, Any]" = stored if isinstance(stored, dict) else {}
        self.doubt: "Dict[str, List[float]]" = self.value.setdefault("doubt", {})  # token -> [first good round, rounds]
        self.started: "List[str]" = self.value.setdefault("started", [])  # starts of live tokens, journalled
        self.operations: "List[str]" = self.value.setdefault("operations", [])  # ids applied, newest last
        self.delete: "List[str]" = self.value.setdefault("delete", [])  # scheduler ids to be deleted when it answers
        self.closed: "List[str]" = self.value.setdefault("closed", [])  # tokens closed, newest last
        self._before = files.dump_json(self.value)

    def save(self) -> None:
        """Write what changed."""
        del self.operations[:-KEEP]
        del self.closed[:-KEEP]
        if files.dump_json(self.value) != self._before:
            files.write_json(self._path, self.value, durable=False)
            self._before = files.dump_json(self.value)

    def keep_closed(self, sought: "Sought", now: float, job: str, attempt: int) -> None:
        """Remember what a submission that was given up can be recognised by: the request may be accepted late."""
        late = self.value.get("closed_lately", []) + [list(sought) + [job, attempt, now]]
        self.value["closed_lately"] = late[-MAX_LATE:]

    def forget_closed(self, seen: "Set[str]", now: float) -> None:
        """Of those remembered by `keep_closed`, look no more for tokens seen, and for what is late by too much."""
        late = self.value.get("closed_lately", [])
        self.value["closed_lately"] = [one for one in late if one[0] not in seen and now - one[-1] < LATE_SECONDS]

    def given_up(self, token: str) -> "Optional[Dict[str, Any]]":
        """The job and attempt of a submission remembered by `keep_closed`; None for any other token."""
        found = [one for one in self.value.get("closed_lately", []) if one[0] == token and len(one) == 6]
        return {"job": found[0][3], "attempt": found[0][4]} if found else None

    def closed_lately(self) -> "List[Sought]":
        """Those remembered by `keep_closed`."""
        from .schedulers.base import Sought

        return [Sought(*one[:3]) for one in self.value.get("closed_lately", [])]

    def last_rejected(self) -> str:
        """The words of the last refusal for good, "" where a script has been accepted since."""
        return str(self.value.get("rejected", ""))

    def cached_snapshot(self, interval: float) -> "Optional[Snapshot]":
        """The last query round, if it is younger than `interval` seconds by the file server's clock."""
        from .schedulers.base import Snapshot

        age = files.file_age(self._snapshot_path, self._scratch)
        if age is None or not -1.0 <= age < interval:
            return None
        try:
            return Snapshot.from_json(files.read_json(self._snapshot_path))
        except (ValueError, KeyError, TypeError):
            return None

    def keep_snapshot(self, snapshot: "Snapshot") -> None:
        """Remember a query round, so that none is made again before its time."""
        files.write_json(self._snapshot_path, snapshot.to_json(), durable=False)
