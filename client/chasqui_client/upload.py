"""Handing jobs over, turns 1 to 3 slice by slice: what is offered, what the agent lacks of it, the contents themselves.

A slice of jobs that were never offered before, whose contents are small and each one file's alone, goes at one go: the
cluster can't have them, and its cache does not keep such contents. The agent says how much it has room for unasked.

Nothing here grows with the number of jobs but the sets of those that were offered, and of their contents.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from chasqui_agent import packing, wire

from . import messages
from .messages import Changed, Handler, JobOffer, Key

if TYPE_CHECKING:
    from .ledger import InputFile

_COMMITS = 100  # jobs at most in one message


class Upload:
    """The jobs of one session on their way."""

    def __init__(self, send: Callable[[bytes], None], end: Callable[..., None],
                 messages_of: Callable[[Iterable[str]], Iterator[dict[str, Any]]], alive: Callable[[], None],
                 handler: Handler) -> None:
        """send takes frames, end ends our turn, messages_of(names) gives the messages of the agent's, alive shows
        between two steps that we work."""
        self._send, self._end, self._messages, self._alive, self.handler = send, end, messages_of, alive, handler
        self.offered: set[Key] = set()
        self._there: set[bytes] = set()  # hashes of what was sent, or found there, in this session
        self._room = 0, 0  # bytes and files that may go unasked

    def has_room(self, fields: dict[str, Any]) -> None:
        """What the end of the agent's turn says of that."""
        room = fields.get("unasked")
        if isinstance(room, list) and len(room) == 2 and all(messages.is_int(most, 1 << 50) for most in room):
            self._room = room[0], room[1]

    def is_new(self, jobs: list[JobOffer]) -> bool:
        """Whether a slice can go without asking what of it is there."""
        if not all(job.fresh for job in jobs):
            return False
        size = sum(file.size for job in jobs for file in job.files)
        left = self._room[0] - size, self._room[1] - sum(len(job.files) for job in jobs)
        if min(left) < 0 or not self._each_small_and_once(jobs):
            return False
        self._room = left
        return True

    def _each_small_and_once(self, jobs: list[JobOffer]) -> bool:
        seen: set[str] = set()
        for file in self._lacking(jobs):
            if file.size > wire.PIECE or file.sha256 in seen:
                return False
            seen.add(file.sha256)
        return True

    def _lacking(self, jobs: list[JobOffer]) -> "Iterator[InputFile]":
        return (file for job in jobs for file in job.files if bytes.fromhex(file.sha256) not in self._there)

    def hand_over_new(self, jobs: list[JobOffer], more: bool) -> None:
        """A slice for which `is_new`, in one turn."""
        self._offer(jobs)
        self._send(wire.message("contents", more=more))
        self._contents(jobs, {file.sha256: 0 for file in self._lacking(jobs)})

    def offer(self, jobs: list[JobOffer], more: bool) -> None:
        """One slice of jobs, and the end of our turn."""
        self._offer(jobs)
        self._end(more=more)

    def _offer(self, jobs: list[JobOffer]) -> None:
        for job in jobs:
            if job.key in self.offered:
                raise ValueError("offered twice: %s" % job.job)
            self.offered.add(job.key)
            listed = [{"path": wire.path_text(f.path), "size": f.size, "mode": f.mode, "sha256": f.sha256}
                      for f in job.files]
            fields = {**job.fields, "m": "job", "job": job.job, "attempt": job.attempt, "files": listed}
            # Not by wire.message: a job has a field "name", which is that function's own argument.
            self._send(wire.frame(wire.MESSAGE, json.dumps(fields, separators=(",", ":")).encode("ascii")))

    def hand_over(self, jobs: list[JobOffer]) -> None:
        """Turns 2 and 3 for a slice: send what the agent lacks, each content once, and commit each job."""
        left = {job.key: job for job in jobs}
        sizes = {file.sha256: file.size for job in jobs for file in job.files}
        needed: dict[str, int] = {}  # content -> bytes of it that the agent has
        for fields in self._messages(("known", "conflict", "refuse", "need")):
            if fields["m"] == "need":
                needed.update(_needed(fields, sizes))
                continue
            key = messages.key(fields, left)
            del left[key]
            if fields["m"] == "known":
                self.handler.known(key)
            else:
                self.handler.refused(key, messages.text(fields, "why"))
        self._contents(list(left.values()), needed)

    def _contents(self, jobs: list[JobOffer], needed: dict[str, int]) -> None:
        """What is needed of these jobs, the commits, and the end of our turn."""
        sizes = {file.sha256: file.size for job in jobs for file in job.files}
        self.handler.uploading(len(jobs), sum(sizes[sha] - have for sha, have in needed.items() if sha in sizes))
        bundle = Bundle(self._send)
        for job in jobs:
            self._job(job, needed, bundle)
        bundle.flush()
        self._end()
        self._there.update(bytes.fromhex(sha) for sha in sizes if sha not in needed)

    def _job(self, job: JobOffer, needed: dict[str, int], bundle: "Bundle") -> None:
        for file in job.files:
            if file.sha256 not in needed:
                continue
            self._alive()
            try:
                self._content(job, file, needed[file.sha256], bundle)
            except (OSError, Changed) as error:
                why = "%s: %s" % (wire.path_text(file.path), getattr(error, "strerror", None) or error)
                self._send(wire.message("skip", job=job.job, attempt=job.attempt, why=why[:500]))
                self.handler.skipped(job.key, why)
                return
            del needed[file.sha256]
        bundle.commit(job.key)

    def _content(self, job: JobOffer, file: "InputFile", have: int, bundle: "Bundle") -> None:
        """Send one content from byte `have` on. Raises OSError or Changed where it is not what was offered: before
        anything was said of it if it is small, else after exactly the announced bytes."""
        with self.handler.open(job, file) as stream:
            if file.size <= wire.PIECE:
                data = stream.read(file.size + 1)
                if hashlib.sha256(data).hexdigest() != file.sha256:
                    raise Changed("it changed since it was offered")
                bundle.add(file.sha256, data)
            else:
                bundle.flush()
                self._large(file, stream, have)
        self.handler.sent(file.size if file.size <= wire.PIECE else 0, 1)

    def _large(self, file: "InputFile", stream: BinaryIO, have: int) -> None:
        digest = self._beginning(stream, have)
        self._send(wire.message("blob", sha=file.sha256, size=file.size, **{"from": have}))
        for chunk in _exactly(stream, file.size - have):
            digest.update(chunk)
            self._send(wire.frame(wire.DATA, chunk))
            self.handler.sent(len(chunk), 0)
        if digest.hexdigest() != file.sha256 or stream.read(1):
            raise Changed("it changed while it was sent")

    def _beginning(self, stream: BinaryIO, length: int) -> Any:
        """The hash of what is not sent again: the proof is always over the whole."""
        digest = hashlib.sha256()
        for chunk in _exactly(stream, length):
            digest.update(chunk)
            self._alive()
        return digest


class Bundle:
    """Small contents on their way, those that may shrink apart from those that don't, and the jobs they complete."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._contents: tuple[dict[str, bytes], dict[str, bytes]] = {}, {}
        self._size = 0
        self._jobs: list[Key] = []

    def add(self, sha: str, data: bytes) -> None:
        """One content, verified."""
        if self._size + len(data) > wire.BUNDLE:
            self.flush()
        self._contents[packing.looks_random(data)][sha] = data
        self._size += len(data)

    def commit(self, key: Key) -> None:
        """All contents of a job were added, or are there."""
        self._jobs.append(key)
        if len(self._jobs) >= _COMMITS:
            self.flush()

    def flush(self) -> None:
        """Send what was added, then the commits."""
        for contents in self._contents:
            if contents:
                self._send(wire.message("blobs", sha=list(contents), size=[len(data) for data in contents.values()]))
                self._send(wire.frame(wire.DATA, b"".join(contents.values())))
                contents.clear()
        if self._jobs:
            self._send(wire.message("commit", jobs=self._jobs))
            self._jobs = []
        self._size = 0


def _needed(fields: dict[str, Any], sizes: dict[str, int]) -> dict[str, int]:
    """A need message, checked: contents that were offered, and how much of each the agent has."""
    shas, have = fields.get("sha"), fields.get("have")
    if not isinstance(shas, list) or not isinstance(have, dict):
        raise wire.WireError("content needed that was not offered")
    found = {}
    for sha in shas:
        if not isinstance(sha, str) or sha not in sizes:
            raise wire.WireError("content needed that was not offered")
        held = have.get(sha, 0)
        if not messages.is_int(held, max(0, sizes[sha] - 1)) or held % wire.PIECE:
            raise wire.WireError("more of a content there than there is")
        found[sha] = held
    return found


def _exactly(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """`size` bytes in pieces: the stream, then zeros where the file has become shorter."""
    while size:
        chunk = stream.read(min(size, wire.PIECE)) or bytes(min(size, wire.PIECE))
        yield chunk
        size -= len(chunk)
