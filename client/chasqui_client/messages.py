"""What a session carries, and the checks between what an agent says and that; its users implement `Handler`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeGuard

from chasqui_agent import wire

from .fields import dataclass, field

if TYPE_CHECKING:
    from .ledger import InputFile

Key = tuple[str, int]

MAX_LISTED = 40_000  # result files of one attempt
MAX_LEFT_OUT = 1_000
MAX_SIZE = 1 << 50
MAX_PROGRESS = 1_000  # job arrays in one report
_HEX = frozenset("0123456789abcdef")


class NotGreeted(Exception):
    """End of output, or too much of it, without the agent's greeting; args[0] is what was said instead."""


class AgentError(Exception):
    """The agent ended the session with an error of its own."""

    def __init__(self, code: str, why: str, hint: str) -> None:
        super().__init__(why)
        self.code, self.why, self.hint = code, why, hint


class Changed(Exception):
    """A file is not what it was when the job was offered."""


@dataclass(frozen=True)
class JobOffer:
    """A job to hand over; `fields` are the job message's besides job, attempt and files. fresh: nothing of it was ever
    offered to the cluster."""

    job: str
    attempt: int
    files: "list[InputFile]"
    fields: Mapping[str, Any]
    fresh: bool = False

    @property
    def key(self) -> Key:
        return self.job, self.attempt

    @property
    def message_size(self) -> int:
        """At least as many bytes as it takes to offer it."""
        return 3 * len(repr(self.fields)) + sum(200 + 3 * len(file.path) for file in self.files)


@dataclass
class Offer:
    """All that one session has to say. slices: jobs in lists that keep to wire's SLICE_JOBS and SLICE_BYTES, each with
    whether another follows; made one after the other, as the agent takes them."""

    hello: dict[str, Any]
    slices: Iterable[tuple[list[JobOffer], bool]] = ()
    operations: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Listed:
    """One result file as the agent describes it, checked."""

    path: bytes
    size: int
    mode: int
    mtime_ns: int
    kind: str


@dataclass(frozen=True)
class Listing:
    """The results of one ended attempt. gone: why there are none to be had, else "".

    missing: the job's expected patterns that no file there matches. fetched: the answer to a fetch.
    """

    job: str
    attempt: int
    files: list[Listed]
    left_out: list[dict[str, Any]]
    gone: str
    fetched: bool
    missing: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return self.job, self.attempt


Arrived = tuple[Listed, int, bytes, str]  # a small file, from where on its content came, that, the hash of the whole


class Target(Protocol):
    """Where one result file goes. `why`: what the agent found wrong with it while it read, else ""."""

    def write(self, data: bytes) -> None: ...
    def finish(self, sha256: str, why: str) -> None: ...


class Handler:
    """What happens in a session; a subclass does something about it. An exception from any of them ends the session."""

    def begun(self, alive: Callable[[], None]) -> None:
        """The agent has been heard. Whoever works for long on our turn calls `alive` now and then."""

    def noise(self, text: str) -> None: ...
    def welcome(self, fields: dict[str, Any]) -> None: ...
    def known(self, key: Key) -> None: ...
    def refused(self, key: Key, why: str) -> None: ...
    def skipped(self, key: Key, why: str) -> None: ...
    def uploading(self, jobs: int, size: int) -> None: ...
    def sent(self, size: int, files: int) -> None: ...
    def acked(self, keys: list[Key]) -> None: ...
    def done(self, operation: str, note: str) -> None: ...
    def note(self, text: str) -> None: ...
    def pumped(self, report: dict[str, Any]) -> None: ...
    def status(self, report: dict[str, Any]) -> None: ...
    def records(self, found: list[dict[str, Any]], cursor: int) -> None: ...
    def gone(self, key: Key, file: Listed, why: str) -> None: ...
    def waiting(self) -> None: ...
    def finished(self) -> None: ...

    def listed(self, listings: list[Listing]) -> None:
        """A slice of listings, which files of the one before it may follow: `choose` asks about it later."""

    def choose(self, more: bool) -> Iterable[tuple[Key, list[tuple[int, int]]]]:
        """What to fetch of the last slice, in order: (job's key, [(index, bytes of it that are here)]).

        An empty list asks for a fresh listing of that job. more: other slices follow this one. Files of the slice
        before it may still come if `ready`.
        """
        return ()

    @property
    def ready(self) -> bool:
        """Whether it is known already what is wanted of the last slice."""
        return True

    def unasked(self) -> None:
        """Files come that were not asked for, of jobs whose ends are news: they would come again, were we killed before
        the news are recorded."""

    def begin(self) -> None:
        """From here on what was chosen last comes."""

    def over(self) -> None:
        """All that was chosen and begun has come, or has been said to be gone."""

    def whole(self, key: Key, files: "list[Arrived]") -> None:
        """Small files of a job that were chosen have come; nobody has looked at their hashes yet."""

    def target(self, key: Key, file: Listed, start: int) -> Target:
        """Where a file that was chosen goes, from byte `start` on."""
        raise NotImplementedError

    def delivered(self) -> None:
        """What has come of the slice before the last may be recorded: the next one's files are on their way."""

    def open(self, offer: JobOffer, file: "InputFile") -> BinaryIO:
        """The content of an input. Raises OSError or Changed."""
        raise NotImplementedError


# -- checks ------------------------------------------------------------------------------------------------------------


def is_int(value: Any, most: int) -> TypeGuard[int]:
    """Whether `value` is a whole number from 0 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def is_sha(value: Any) -> bool:
    """Whether `value` is a SHA-256 as messages have it."""
    return isinstance(value, str) and len(value) == 64 and _HEX.issuperset(value)


def text(fields: Mapping[str, Any], key: str) -> str:
    """A text of the agent's, safe for a terminal."""
    value = fields.get(key)
    return wire.printable(value, 2000) if isinstance(value, str) else ""


def flat(fields: dict[str, Any]) -> dict[str, Any]:
    """Numbers and short texts of a report; anything else is left out."""
    kept: dict[str, Any] = {}
    for key, value in list(fields.items())[:100]:
        if key != "m" and isinstance(value, (bool, int, float)):
            kept[wire.printable(key, 40)] = value
        elif key != "m" and isinstance(value, str):
            kept[wire.printable(key, 40)] = wire.printable(value, 2000)
    return kept


def status(fields: dict[str, Any]) -> dict[str, Any]:
    """The agent's status; of "elements", job -> [attempt, elements that ended, run, wait], only what is such a row."""
    told = fields.get("elements")
    rows = list(told.items())[:MAX_PROGRESS] if isinstance(told, dict) else []
    kept = {wire.printable(job, 40): row for job, row in rows
            if isinstance(row, list) and len(row) == 4 and all(is_int(number, 1 << 31) for number in row)}
    found = flat(fields)
    found.pop("elements", None)
    return {**found, "elements": kept} if kept else found


def key(fields: dict[str, Any], among: Any) -> Key:
    """(job, attempt) of a message. Raises WireError where it is not one of `among`."""
    job, attempt = fields.get("job"), fields.get("attempt")
    if not isinstance(job, str) or not is_int(attempt, 100_000) or (job, attempt) not in among:
        raise wire.WireError("a job that was not offered")
    return job, attempt


def pairs(fields: dict[str, Any], among: Any) -> Iterator[Key]:
    """The (job, attempt) of a message's `jobs`, each looked for among what `among` holds when its turn comes."""
    listed = fields.get("jobs")
    if not isinstance(listed, list):
        raise wire.WireError("jobs that are no list")
    for pair in listed:
        if not isinstance(pair, list) or len(pair) != 2:
            raise wire.WireError("a job that was not offered")
        yield key({"job": pair[0], "attempt": pair[1]}, among)


def listing(job: str, attempt: int, fields: Mapping[str, Any]) -> Listing:
    """The rest of a results message, checked. Raises WireError."""
    files, left, missing = fields.get("files"), fields.get("left_out", []), fields.get("missing", [])
    if not isinstance(missing, list) or len(missing) > 1000 or not all(isinstance(text, str) for text in missing):
        raise wire.WireError("missing results that are no list of patterns")
    if not isinstance(files, list) or len(files) > MAX_LISTED or not isinstance(left, list) or len(left) > MAX_LEFT_OUT:
        raise wire.WireError("a list of results that is none, or too long")
    checked = [_listed(item) for item in files]
    _no_clashes({file.path for file in checked}, len(checked))
    return Listing(job, attempt, checked, [_left_out(item) for item in left], text(fields, "gone"),
                   fields.get("fetched") is True, tuple(wire.printable(text) for text in missing))


def _listed(item: Any) -> Listed:
    if not isinstance(item, dict) or not is_int(item.get("size"), MAX_SIZE):
        raise wire.WireError("a result without a proper size")
    mode, mtime, kind = item.get("mode"), item.get("mtime_ns"), item.get("kind")
    if not is_int(mode, 0o7777) or not is_int(mtime, 1 << 62) or kind not in ("output", "log"):
        raise wire.WireError("a result without a proper mode, time or kind")
    return Listed(wire.confined(item.get("path")), item["size"], mode, mtime, kind)


def _no_clashes(paths: set[bytes], amount: int) -> None:
    if len(paths) != amount:
        raise wire.WireError("a result is listed twice")
    for path in paths:
        if any(path[:i] in paths for i, byte in enumerate(path) if byte == 0x2F):
            raise wire.WireError("a result is a file and a folder at once")


def _left_out(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict) or not is_int(item.get("size"), MAX_SIZE):
        raise wire.WireError("a result left out without a proper size")
    return {"path": wire.confined(item.get("path")), "size": item["size"], "why": text(item, "why")}
