"""The promises P1 to P5 of one root on a mock PBS, looked at from outside, at any moment, whatever has been done to it.

What is true only between two steps of a process (a file renamed from a folder not yet read into one already read) is
looked at again until it holds: nothing here waits for anything that has to happen.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from chasqui_agent import journal, marks
from chasqui_agent.spool import ON_THEIR_WAY, STATES, Spool, parse_name
from pbs.cluster import Cluster

PATIENCE = 60.0
SETTLED = ("completed", "rejected", "cancelled", "blocked")
ENDS = ("ended", "rejected", "cancelled", "blocked")
Attempt = tuple[str, int]


class Broken(AssertionError):
    """A promise is broken; the message begins with its name."""


def holds(true: object, promise: str, what: object) -> None:
    if not true:
        raise Broken("%s: %s" % (promise, what))


class Promises:
    """`check` raises Broken where one of them does not hold.

    ran          file to which each payload appends "start FOLDER ID" when it starts; its work folder's name
    caps         payloads that may run, jobs that may be queued
    interval     query_interval
    added        the attempts that were handed over; `known` has those, too, that the relay made by a retry policy
    rerunnable   those of them that PBS may run again, under the same id
    disturbed    those whose processes or node were killed, or whose server died: how they end is no promise
    waits_for    what some of them wait for: (attempts, ok, any or fail)
    freed        ids that the user released behind the relay's back
    excuses      [from, to] in seconds since 1970: no answer was to be had, or who got it was killed
    """

    def __init__(self, spool: Spool, cluster: Cluster, ran: Path, caps: tuple[int, int], interval: float) -> None:
        self.spool, self.cluster, self.ran, self.interval = spool, cluster, ran, interval
        self.max_running, self.max_queued = caps
        self.added: list[Attempt] = []
        self.rerunnable: set[Attempt] = set()
        self.disturbed: set[Attempt] = set()
        self.waits_for: dict[Attempt, tuple[list[Attempt], str]] = {}
        self.freed: set[str] = set()
        self.excuses: list[tuple[float, float]] = []
        self.never: set[Attempt] = set()  # ended without a start
        self.written: dict[str, bytes] = {}  # what was seen of each segment of the journal
        self.most_running = self.most_queued = self.rounds = 0

    def check(self) -> None:
        self.at_most_once()
        self.nobody_goes_first()
        self.journal_only_grows()
        self.nothing_lost()
        self.caps_hold()
        self.manners()

    # P1

    def starts(self) -> list[tuple[Attempt, str]]:
        """(attempt, id of the scheduler's job) of every start."""
        lines = [line.split() for line in self.ran.read_text().splitlines()] if self.ran.exists() else []
        names = [(folder.partition("."), job_id) for _, folder, job_id in lines]
        return [((job, int(attempt or 1)), job_id) for (job, _, attempt), job_id in names]

    def following(self) -> dict[Attempt, Attempt]:
        """The attempt that the relay made behind each one that it tried again."""
        told = [record for record in self.records() if record["ev"] == "retried"]
        return {(one["job"], one["attempt"]): (one["job"], one["next"]) for one in told}

    def known(self) -> list[Attempt]:
        return self.added + [made for made in self.following().values() if made not in self.added]

    def at_most_once(self) -> None:
        counted = Counter(attempt for attempt, _ in self.starts() if attempt not in self.rerunnable)
        counted.update(attempt for attempt, _ in set(self.starts()) if attempt in self.rerunnable)
        holds(max(counted.values(), default=0) <= 1, "P1", "started more than once: %s" % counted.most_common(1))
        late = (self.never - self.disturbed) & set(counted)
        holds(not late, "P1", "started after the end was told: %s" % late)

    def nobody_goes_first(self) -> None:
        """What waits for others has not started before they had ended as it was to be: by their flags at once, else by
        what was told."""
        for attempt in {attempt for attempt, _ in self.starts()} & set(self.waits_for):
            parents, condition = self._last(attempt)
            said = {parent: self._flags(parent) for parent in parents}
            unsaid = [parent for parent in parents if not _fulfils(condition, said[parent])]
            ends = self.ends() if unsaid else {}
            holds(all(_fulfils(condition, told_states(ends.get(parent, []))) for parent in unsaid), "P1",
                  "%s started for %s, which said %s" % (attempt, self.waits_for[attempt], said))  # fmt: skip

    def may_run(self, attempt: Attempt) -> bool:
        """Whether all that it waits for has ended as it was to be, by what was told of their ends."""
        parents, condition = self._last(attempt)
        ends = self.ends()
        return all(_fulfils(condition, told_states(ends[parent])) for parent in parents)

    def _last(self, attempt: Attempt) -> tuple[list[Attempt], str]:
        """What it waits for, as the last attempts there are: one that is tried again has not ended for good."""
        parents, condition = self.waits_for[attempt]
        following, last = self.following(), []
        for parent in parents:
            while parent in following:
                parent = following[parent]  # noqa: PLW2901
            last.append(parent)
        return last, condition

    def _flags(self, attempt: Attempt) -> list[str]:
        """DONE or FAIL as each flag of a submission of this attempt says it."""
        folder = Path(self.spool.meta_dir(*attempt))
        lines = [path.read_text().split("\n") for path in folder.glob("flag.*") if not path.name.endswith(".new")]
        return ["DONE" if "exit=0" in some else "FAIL" for some in lines]

    # P2

    def places(self) -> dict[Attempt, list[str]]:
        """Where each attempt stands. A name in completed/ and the like outranks one in ending/."""
        found: dict[Attempt, list[str]] = {}
        for path in self.spool.dropped():
            found.setdefault((Path(path).stem, 1), []).append("waiting")
        for new in (False, True):
            for shard in self.spool.shards(new):
                for entry in self.spool.shard_entries(shard):
                    found.setdefault((entry.job, entry.attempt), []).append("waiting")
        for entry in self.spool.dependents():
            found.setdefault((entry.job, entry.attempt), []).append("after")
        for state in STATES:
            for entry in self.spool.entries(state):
                found.setdefault((entry.job, entry.attempt), []).append(state)
        for states in found.values():
            if "ending" in states and len(states) == 2 and states[-1] in SETTLED:
                states.remove("ending")
        return found

    def ends(self) -> dict[Attempt, list[dict[str, Any]]]:
        """The records of each attempt's end; the same one written again after a crash is one."""
        found: dict[Attempt, list[dict[str, Any]]] = {}
        for record in self.records():
            if record["ev"] in ENDS:
                told = found.setdefault((record["job"], record["attempt"]), [])
                untimed = {key: value for key, value in record.items() if key != "t"}
                told.extend([untimed] if untimed not in told else [])
        return found

    def nothing_lost(self) -> None:
        self._in_the_end(self._misplaced, "P2")
        self._in_the_end(self._untold, "P2")
        ended = set(self.ends())  # before the starts: what has ended has left its start there
        self.never |= ended - {attempt for attempt, _ in self.starts()}

    def _misplaced(self) -> str:
        places = self.places()
        coming = {self.following().get((entry.job, entry.attempt)) for entry in self.spool.entries("ending")}
        known = self.known()
        wrong = {attempt: places.get(attempt, []) for attempt in known if len(places.get(attempt, ())) != 1}
        wrong = {attempt: states for attempt, states in wrong.items() if states or attempt not in coming}
        unknown = set(places) - set(known)
        return "not in exactly one place: %s; never added: %s" % (wrong, unknown) if wrong or unknown else ""

    def _untold(self) -> str:
        ending = {(entry.job, entry.attempt) for entry in self.spool.entries("ending")}
        settled = [attempt for attempt, states in self.places().items() if states[0] in SETTLED]
        ends = self.ends()
        wrong = {attempt: ends.get(attempt, []) for attempt in settled if attempt not in ending | set(ends)}
        wrong.update({attempt: told for attempt, told in ends.items() if len(told) > 1})
        return "not one end is told: %s" % wrong if wrong else ""

    @staticmethod
    def _in_the_end(wrong: Callable[[], str], promise: str) -> None:
        end = time.monotonic() + PATIENCE
        while found := wrong():
            holds(time.monotonic() < end, promise, found)
            time.sleep(0.05)

    # P3

    def caps_hold(self) -> None:
        rows = [row for row in self.cluster.table() if row["state"] not in "FX"]  # first: what is looked at later can
        started = {job_id: attempt for attempt, job_id in self.starts()}  # only make fewer of them
        jobs = [row for row in rows if row["name"].partition(".")[0] in {job for job, _ in self.added}]
        running = [row["id"] for row in jobs if row["state"] == "R" and row["run_count"] == 1 and row["id"] in started
                   and row["id"] not in self.freed and not self._flagged(row, started[row["id"]])]  # fmt: skip
        self.most_running = max(self.most_running, len(running))
        holds(len(running) <= self.max_running, "P3", "%d payloads run: %s" % (len(running), running))
        queued = [row["id"] for row in jobs if row["state"] in "QHW" and not row["run_count"] and not self._closed(row)]
        self.most_queued = max(self.most_queued, len(queued))
        holds(len(queued) <= self.max_queued, "P3", "%d jobs are queued: %s" % (len(queued), queued))

    def _flagged(self, row: dict[str, Any], attempt: Attempt) -> bool:
        return marks.read(self.spool.meta_dir(*attempt), token_of(row)).flag is not None

    def _closed(self, row: dict[str, Any]) -> bool:
        """Whether it was given up before it turned up: nobody could count it."""
        name, token = row["name"].rpartition(".")[0], token_of(row)
        folders = [self.spool.meta_dir(*attempt) for attempt in self.known() if attempt[0] == name]
        return any(marks.is_closed(marks.read(folder, token).claim) for folder in folders)

    def manners(self) -> None:
        """The first call of a query round asks for all jobs of this user. Two rounds are an interval apart."""
        calls = [call for call in self.cluster.calls("qselect") if list(call[4]) == ["-u", self.cluster.user]]
        times = [call[0] for call in calls]
        self.rounds = max(self.rounds, len(times))
        for before, after in zip(times, times[1:], strict=False):
            excused = any(begin <= after and end >= before for begin, end in self.excuses)
            holds(excused or after - before >= self.interval, "P3",
                  "two query rounds %.3f s apart, at %.3f" % (after - before, before))  # fmt: skip

    # P4

    def wake_is_pending(self) -> None:
        """To be called where a pump has done its work undisturbed, and nothing was done to the cluster since."""
        self._in_the_end(self._nobody_wakes, "P4")

    def _nobody_wakes(self) -> str:
        waits = self.spool.has_waiting() or self.spool.any_on_their_way()
        names = {job + "." for job, _ in self.added} | {"beat."}
        live = [row for row in self.cluster.table() if row["state"] not in "FX"]
        wakes = [row for row in live if row["state"] != "H" and row["name"].startswith(tuple(names))]
        return "" if wakes or not waits else "something waits, and nothing will wake the relay: %s" % live

    # P5

    def records(self) -> Iterable[dict[str, Any]]:
        return [record for _, record in journal.records(self.spool.log)]

    def journal_only_grows(self) -> None:
        now = {path: Path(path).read_bytes() for _, _, path in journal.segments(self.spool.log)}
        for path, before in self.written.items():
            holds(now.get(path, b"").startswith(before), "P5", "%s was rewritten" % path)
        self.written = now
        damaged = [record for record in self.records() if record["ev"] == "damaged"]
        holds(not damaged, "P5", damaged)


def told_states(told: list[dict[str, Any]]) -> list[str]:
    """DONE, FAIL or LOST, or the event of an end that has no state, of each record of an end."""
    return [record.get("state", record["ev"]) for record in told]


def _fulfils(condition: str, states: list[str]) -> bool:
    return any(condition == "any" or (state == "DONE") == (condition == "ok") for state in states)


def token_of(row: dict[str, Any]) -> str:
    """The token in the name of a job of the server's table."""
    return str(row["name"]).rpartition(".")[2]


def on_their_way(spool: Spool) -> set[Attempt]:
    """Attempts the scheduler may have."""
    found = [parse_name(name) for state in ON_THEIR_WAY for name in os.listdir(os.path.join(spool.root, state))]
    return {(name[0], name[1]) for name in found if name}
