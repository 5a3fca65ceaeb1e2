"""The spool: one folder a state, one file an attempt; a change of state is one rename.

    waiting/<name>.sh                                dropped in by hand; taken in once it is 5 s old
    waiting/<prio>/<shard>/<seq>.<job>.<attempt>.sh  ready, in order; prio 000 (first) to 999, at most 1,000 a shard
    waiting/<prio>/<shard>.new/...                   published whole by one rename, not yet journalled as accepted
    waiting/1000/<shard>[.new]/...                   published by a session, to be taken in to after/ (dependents.py)
    after/<parent>.<attempt>/<job>.<attempt>.sh      waits for another job's attempt to end
    held/<job>.<attempt>.sh
    submitting/<job>.<attempt>.<token>.sh            the call to the scheduler may be in flight
    submitted/<job>.<attempt>.<token>.sh             the scheduler's id stands in .chasqui/<token>.id
    ending/<job>.<attempt>.<token>.<generation>.sh   has ended, as the .json beside it says (ending.py)
    completed/<job>.<attempt>.flag                   DONE|FAIL|LOST, then key=value lines
    rejected/<job>.<attempt>.sh and .err             refused for good, in the scheduler's words
    cancelled/<job>.<attempt>.sh
    blocked/<job>.<attempt>.sh                       did not run, for how a job ended that it waited for
    work/<job>[.<attempt>]/                          where the job runs; attempt 1 has no suffix
    work/.retries/                                   work folders of next attempts, being built (retries.py)
    work/<job>[.<attempt>]/.chasqui/                 ours: job.json, script, runner, claims, marks, flags, output
    staging/<session>/<job>.<attempt>/               an upload in progress

A name in completed/, rejected/, cancelled/ or blocked/ outranks one in ending/ (which is removed a moment later), so an
attempt always has exactly one state.
"""

import os
import re
from collections import namedtuple

from . import files, spoiled

MYPY = False
if MYPY:
    from typing import Any, Dict, Iterator, List, Optional, Tuple

ON_THEIR_WAY = ("submitting", "submitted", "ending")
STATES = ("held",) + ON_THEIR_WAY + ("completed", "rejected", "cancelled", "blocked")
FOLDERS = STATES + ("after", "agent", "staging", "waiting", "work", "log", "lock", "wake")
SHARD_SIZE = 1000
MIDDLE_PRIORITY = 500
RETRIES = ".retries"
AFTER = 1000  # the rank of scripts that wait for other jobs: behind all others, and nobody submits from there
JOB = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")
TOKEN = re.compile(r"[a-z][a-z2-7]{7}\Z")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"

Entry = namedtuple("Entry", "path job attempt token")  # token is "" outside submitting/, submitted/ and ending/


class SpoolError(Exception):
    """The root cannot be used; the message says why and what to do."""


def random_name(length: int) -> str:
    """`length` random characters of base32, a letter first, so that nothing takes it for a number."""
    raw = os.urandom(length)
    return _ALPHABET[raw[0] % 26] + "".join(_ALPHABET[byte % 32] for byte in raw[1:])


def new_job_id() -> str:
    """A job id: 16 characters, 80 bits."""
    return random_name(16)


def new_token() -> str:
    """A submission token: 8 characters, short enough to stand in a job name of 15."""
    return random_name(8)


def parse_name(name: str) -> "Optional[Tuple[str, int, str]]":
    """(job, attempt, token) of a file in held/ .. cancelled/, token "" where there is none; None for another file."""
    parts = name.split(".")
    if len(parts) not in (3, 4, 5) or not JOB.match(parts[0]) or not parts[1].isdigit():
        return None
    token = parts[2] if len(parts) > 3 else ""
    if (token and not TOKEN.match(token)) or (len(parts) == 5 and not parts[3].isdigit()):
        return None
    return parts[0], int(parts[1]), token


def rank_of(priority: int) -> int:
    """Where a priority's scripts stand in waiting/."""
    return min(999, max(0, MIDDLE_PRIORITY - priority))


def shard_name(position: int, job: str, attempt: int) -> str:
    """The name of a script in a shard of waiting/; position 0 to SHARD_SIZE - 1."""
    return "%03d.%s.%d.sh" % (position, job, attempt)


class Spool:
    """The folders of one root."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        for name in FOLDERS:
            setattr(self, name, os.path.join(self.root, name))
        self.bundles = os.path.join(self.root, "bundles")  # made when needed

    if MYPY:
        held = submitting = submitted = ending = completed = rejected = cancelled = blocked = ""
        after = agent = staging = waiting = work = log = lock = wake = ""

    def create(self, work_root: str = "") -> None:
        """Make every folder (0700). Raises SpoolError where others can write to the root, OSError where it can't be
        made.

        work_root: where work/ is put on another file system (scratch); work/ becomes a symlink to it, once.
        """
        os.makedirs(self.root, 0o700, exist_ok=True)
        self.check()
        if work_root and not os.path.lexists(self.work):
            os.makedirs(work_root, 0o700, exist_ok=True)
            os.symlink(work_root, self.work)
        for name in FOLDERS:
            os.makedirs(os.path.join(self.root, name), 0o700, exist_ok=True)

    def check(self) -> None:
        """Raise SpoolError where others can write to the root, or own it."""
        status = os.stat(self.root)
        if status.st_mode & 0o022:
            raise SpoolError("%s can be written to by others; type: chmod go-w %s" % (self.root, self.root))
        if status.st_uid != os.geteuid():
            raise SpoolError("%s belongs to another user" % self.root)

    # -- where things are ------------------------------------------------------------------------------------------

    def work_dir(self, job: str, attempt: int) -> str:
        """The folder attempt `attempt` of `job` runs in."""
        return os.path.join(self.work, job if attempt == 1 else "%s.%d" % (job, attempt))

    def meta_dir(self, job: str, attempt: int) -> str:
        """Our own folder inside the work folder."""
        return os.path.join(self.work_dir(job, attempt), ".chasqui")

    def entry_path(self, state: str, job: str, attempt: int, token: str = "", suffix: str = "sh") -> str:
        """The path an attempt has while in `state` (any but waiting)."""
        middle = "%d.%s" % (attempt, token) if token else "%d" % attempt
        return os.path.join(self.root, state, "%s.%s.%s" % (job, middle, suffix))

    def job_record(self, job: str, attempt: int) -> "Dict[str, Any]":
        """What was said about the job when it was handed over (job.json); {} where that is gone, or damaged: jobs can
        write to it."""
        try:
            return self.own_record(job, attempt)
        except ValueError:
            return {}

    def own_record(self, job: str, attempt: int) -> "Dict[str, Any]":
        """As `job_record`. Raises ValueError where it is damaged."""
        return spoiled.read_json(self.meta_dir(job, attempt), "job.json")

    # -- reading states --------------------------------------------------------------------------------------------

    def entries(self, state: str) -> "List[Entry]":
        """Everything in held/, submitting/, submitted/ .. (not waiting), sorted by name."""
        folder = os.path.join(self.root, state)
        found = []
        for name in files.names(folder):
            parsed = parse_name(name)
            if parsed and name.endswith((".sh", ".flag")):
                found.append(Entry(os.path.join(folder, name), *parsed))
        return found

    def priorities(self) -> "List[str]":
        """The priority folders of waiting/, first to be served first."""
        return [name for name in files.names(self.waiting) if len(name) == 3 and name.isdigit()]

    def shards(self, new: bool = False) -> "Iterator[str]":
        """Paths of the waiting shards in order; with `new`, only those not yet journalled as accepted, else only the
        others."""
        for priority in self.priorities():
            folder = os.path.join(self.waiting, priority)
            for name in files.names(folder):
                if name.endswith(".new") == new:
                    yield os.path.join(folder, name)

    def shard_entries(self, shard: str) -> "List[Entry]":
        """The scripts of one shard, in order."""
        found = []
        for name in files.names(shard):
            parsed = parse_name(name.partition(".")[2])
            if parsed:
                found.append(Entry(os.path.join(shard, name), *parsed))
        return found

    def waiting_entries(self) -> "Iterator[Entry]":
        """The accepted scripts in the order they will be submitted; opens shards only as far as it is read."""
        for shard in self.shards():
            for entry in self.shard_entries(shard):
                yield entry

    def find_waiting(self) -> "Dict[Tuple[str, int], Entry]":
        """Every waiting attempt, new shards too. Reads all names: for operations by hand and for sessions, not for
        pumps."""
        found = {}
        for new in (False, True):
            for shard in self.shards(new):
                for entry in self.shard_entries(shard):
                    found[entry.job, entry.attempt] = entry
        return found

    def count_waiting(self) -> int:
        """How many scripts wait, those dropped in by hand included."""
        shards = sum(len(files.names(shard)) for new in (False, True) for shard in self.shards(new))
        return shards + len(self.dropped())

    def has_waiting(self) -> bool:
        """Whether anything waits, without counting; not what waits for other jobs, once that is taken in."""
        for new in (False, True):
            for shard in self.shards(new):
                if files.names(shard):
                    return True
        return bool(self.dropped() or self.dependent_shards())

    def dropped(self) -> "List[str]":
        """Paths of the scripts put into waiting/ by hand."""
        found = []
        for name in files.names(self.waiting):
            path = os.path.join(self.waiting, name)
            if (
                not name.startswith(".")
                and not name.endswith("~")
                and os.path.isfile(path)
                and not os.path.islink(path)
            ):
                found.append(path)
        return found

    def any_on_their_way(self) -> bool:
        """Whether any attempt has left waiting/ and has not come to rest."""
        return any(self.entries(state) for state in ON_THEIR_WAY)

    def settled_state(self, job: str, attempt: int) -> str:
        """ "completed", "rejected", "cancelled" or "blocked", or "" while the attempt is still on its way."""
        for state, suffix in (("completed", "flag"), ("rejected", "sh"), ("cancelled", "sh"), ("blocked", "sh")):
            if os.path.lexists(self.entry_path(state, job, attempt, suffix=suffix)):
                return state
        return ""

    def next_attempt(self, job: str, attempt: int) -> int:
        """The attempt that the relay made, or is about to make, of the end of this one by the job's retry policy; 0
        where there is none."""
        try:
            with open(self.entry_path("completed", job, attempt, suffix="flag"), "rb") as stream:
                lines = stream.read(65536).split(b"\n")
        except FileNotFoundError:
            return 0
        return attempt + 1 if b"next=%d" % (attempt + 1) in lines else 0

    def final_attempt(self, job: str, attempt: int) -> int:
        """The last of the attempts that the relay made of this one; itself where it made none. Only the end of that one
        is the job's end: it has none yet while this one is "" in `settled_state`."""
        while True:
            following = self.next_attempt(job, attempt)
            if not following:
                return attempt
            attempt = following

    def may_be_retried(self, job: str, attempt: int) -> bool:
        """Whether an attempt's job was handed over with a retry policy."""
        return bool(self.job_record(job, attempt).get("retry"))

    def known(self, job: str, attempt: int) -> str:
        """The state of an attempt, "" for one this spool never published. Scans folders: not for pumps."""
        settled = self.settled_state(job, attempt)
        if settled:
            return settled
        # Twice, because an attempt can be renamed from a folder not yet read into one already read.
        for _ in range(2):
            if (job, attempt) in self.find_waiting():
                return "waiting"
            if self.find_dependent(job, attempt):
                return "after"
            for state in ("held",) + ON_THEIR_WAY:
                if any(e.job == job and e.attempt == attempt for e in self.entries(state)):
                    return state
        return self.settled_state(job, attempt)

    # -- what waits for other jobs ---------------------------------------------------------------------------------

    def after_dir(self, job: str, attempt: int) -> str:
        """Where the scripts stand that wait for this attempt."""
        return os.path.join(self.after, "%s.%d" % (job, attempt))

    def has_dependents(self) -> bool:
        """Whether anything stands in after/; reads no more than its first names."""
        try:
            with os.scandir(self.after) as names:
                return any(True for _ in names)
        except FileNotFoundError:
            return False

    def dependent_shards(self) -> "List[str]":
        """Paths of what sessions published of jobs that wait for others, and no pump has taken in."""
        folder = os.path.join(self.waiting, "%d" % AFTER)
        return [os.path.join(folder, name) for name in files.names(folder)]

    def find_dependent(self, job: str, attempt: int) -> "Optional[Entry]":
        """The script of an attempt that waits for others; None where it does not. Looks at its parents alone, in their
        order, as a script moves on from one to the next."""
        after = self.job_record(job, attempt).get("after") or ()  # what can't be found by its parents is nowhere
        for shard in self.dependent_shards() if after else ():
            for entry in self.shard_entries(shard):
                if (entry.job, entry.attempt) == (job, attempt):
                    return entry
        for parent in after:
            path = os.path.join(self.after_dir(parent[0], parent[1]), "%s.%d.sh" % (job, attempt))
            if os.path.lexists(path):
                return Entry(path, job, attempt, "")
        return None

    def dependents(self) -> "Iterator[Entry]":
        """Everything that waits for other jobs. Reads all names: not for pumps."""
        for shard in self.dependent_shards():
            for entry in self.shard_entries(shard):
                yield entry
        for folder in files.names(self.after):
            for entry in self.entries(os.path.join("after", folder)):
                yield entry

    # -- publishing ------------------------------------------------------------------------------------------------

    def publish(self, building: str, rank: int, shard: str) -> None:
        """Put a folder of scripts, each durable under its `shard_name`, into waiting/ by one rename, without the lock.

        rank: the priority's place, 0 to 999, or AFTER. shard: a name that sorts where the batch belongs and that nobody
        else uses; it gets ".new". Afterwards every job of the batch is in waiting, durably; after an error all or none
        is.
        """
        files.fsync_folder(building)
        folder = os.path.join(self.waiting, "%03d" % rank)
        os.makedirs(folder, 0o700, exist_ok=True)
        files.move(building, os.path.join(folder, shard + ".new"))

    def requeue_path(self, entry: Entry, rank: int) -> str:
        """Where a script goes that comes back from submitting/: in front of everything of its priority."""
        shard = os.path.join(self.waiting, "%03d" % rank, "00000000-again")
        os.makedirs(shard, 0o700, exist_ok=True)
        return os.path.join(shard, "000.%s.%d.sh" % (entry.job, entry.attempt))
