"""One exec of an agent's verb that answers questions in lines of JSON, slice by slice (see chasqui_agent.lines)."""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

from chasqui_agent import wire

from .. import deploy, errors, launcher, ssh
from ..config import Home, Remote
from ..transport import Channel

SLICE_JOBS, SLICE_BYTES = 1000, 4 << 20
_FILE_BYTES = 150  # of a question, for each file in it, about
_MAX_NOISE = 1000  # lines a login shell may print before the agent is heard


class Errand:
    """A conversation; use as a context manager. Raises what `deploy.run_agent` does, and AgentRefused.

    An answer that is late, cut off, damaged or not the agent's raises; nothing missing is ever taken for a yes.
    """

    def __init__(self, home: Home, remote: Remote, verb: str, header: Mapping[str, Any],
                 interactive: bool = False) -> None:
        self.remote, self.verb = remote, verb
        self.transport = deploy.transport_to(home, remote, interactive, sure=True)
        self.channel: Channel | None = None
        try:
            self._begin()
            self._write(header)
        except BaseException:
            self._close()
            raise

    def _begin(self) -> None:
        since, attempt = time.monotonic(), 0
        while not self._greeted():
            status, said = self._close()
            if status != 255 or ssh.REFUSED_SESSION not in said or not ssh.wait_for_session(attempt, since):
                raise self._failure(status, said)
            attempt += 1

    def _greeted(self) -> bool:
        nonce = launcher.new_nonce()
        proof = hashlib.sha256(nonce.encode("ascii")).hexdigest()[:16]
        line = launcher.agent(self.remote.root, [self.verb, "--nonce", nonce])
        self.channel = deploy.start(self.transport, self.remote, line)
        self._lines = deploy.lines_of(self.channel, self.remote)
        heard = islice(self._lines, _MAX_NOISE)
        return any(_parsed(text).get("lines") == proof for text in heard)

    def _failure(self, status: int | None, said: str) -> errors.ChasquiError:
        try:
            deploy.check_status(self.remote, status, said)
        except errors.ChasquiError as error:
            return ssh.with_login(self.transport, error)
        older = "no verb" in said
        hint = "chasqui sync --remote %s    (brings the agent there up to date)" % self.remote.name if older else None
        return errors.AgentRefused(ssh.last_line(said) or "nothing", remote=self.remote.name, hint=hint)

    def ask(self, questions: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The answers to a slice of questions, as they come."""
        for question in questions:
            self._write(question)
        self._write({"answer": True})
        while "answered" not in (answer := self._next()):
            yield answer
        if answer["answered"] != len(questions):
            raise self._broken("it answered another number of questions")

    def _next(self) -> dict[str, Any]:
        while True:
            line = next(self._lines, None)
            if line is None:
                raise self._broken("it ended in the middle")
            answer = _parsed(line)
            if "error" in answer:
                raise errors.AgentRefused(wire.printable(str(answer["error"]), 500), remote=self.remote.name)
            if not answer:
                raise self._broken("it said something else than answers")
            if "nop" not in answer:
                return answer

    def _broken(self, why: str) -> errors.ChasquiError:
        return ssh.with_login(self.transport, errors.ConnectionLost(why, remote=self.remote.name))

    def _write(self, fields: Mapping[str, Any]) -> None:
        assert self.channel
        try:
            self.channel.write(json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n")
        except wire.WireError as error:
            raise self._broken(str(error)) from error

    def _close(self) -> tuple[int | None, str]:
        channel, self.channel = self.channel, None
        return (channel.close(), channel.stderr_tail()) if channel else (None, "")

    def __enter__(self) -> "Errand":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._write({"end": True})
                if not self._next().get("bye"):
                    raise self._broken("it did not end as it should")
        finally:
            self._close()


def _parsed(line: str) -> dict[str, Any]:
    """A line as an object; {} for one that is none."""
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return item if isinstance(item, dict) else {}


T = TypeVar("T")


def slices(asked: Iterable[tuple[T, dict[str, Any]]]) -> Iterator[list[tuple[T, dict[str, Any]]]]:
    """(what for, question) in slices that both sides can hold in memory."""
    found: list[tuple[T, dict[str, Any]]] = []
    size = 0
    for item in asked:
        length = sum(len(value) for value in item[1].values() if isinstance(value, list)) * _FILE_BYTES
        if found and (len(found) >= SLICE_JOBS or size + length > SLICE_BYTES):
            yield found
            found, size = [], 0
        found.append(item)
        size += length
    if found:
        yield found
