"""Answering a client's questions about results over stdin and stdout, in lines of JSON: for `verify` and `clean`.

    agent    {"lines": PROOF}                         PROOF: the first 16 digits of the SHA-256 of the nonce
    client   {"ledger": ..., ...}                     what holds for all questions
    client   a question a line, as many as it likes, then {"answer": true}
    agent    its answers, a line each, then {"answered": how many questions}
    client   questions again, or {"end": true}
    agent    {"bye": true}

Strict turns, as in a session: neither side can block on a full pipe, and one slice of questions is in memory at a
time. While the agent works it says {"nop": true} every 15 s. Whatever is wrong it says as {"error": why}, and ends.
"""

import hashlib
import json
import os
import select
import sys
import time

from . import wire
from .channel import IDLE, NOP_EVERY, STALL

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, Iterator, List

    Question = Dict[str, Any]
    Answer = Callable[[Question], None]

MAX_LINE = 4 * wire.MAX_MESSAGE  # a job of 100,000 inputs and 40,000 results fits
MAX_SLICE = 2 * MAX_LINE  # bytes of questions before they must be answered
_BLOCK = 256 << 10


def converse(nonce: str, begin: "Callable[[Question, Lines], Answer]") -> int:
    """Hold one conversation; the exit status: 0 after bye, 1 where it broke.

    begin(header, lines) returns what answers one question, by lines.say. What was answered before a break stays done.
    """
    if len(nonce) != 32 or nonce.strip("0123456789abcdef"):
        sys.stderr.write("chasqui-agent: this verb is started by a client\n")
        return 2
    lines = Lines(0, 1)
    try:
        lines.say(lines=hashlib.sha256(nonce.encode("ascii")).hexdigest()[:16])
        answer = begin(lines.question(), lines)
        for questions in lines.slices():
            for question in questions:
                answer(question)
            lines.say(answered=len(questions))
        lines.say(bye=True)
        return 0
    except wire.Closed as error:
        sys.stderr.write("chasqui-agent: ended early: %s\n" % error)
    except Exception as error:  # the client shall hear of it, in one line
        _complain(lines, error)
    return 1


def _complain(lines: "Lines", error: Exception) -> None:
    from .cli import explain
    try:
        lines.say(error=explain(error))
    except wire.Closed:
        sys.stderr.write("chasqui-agent: %s\n" % explain(error))


class Lines:
    """Lines of JSON from and to the client."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        self.idle = float(os.environ.get("CHASQUI_IDLE", IDLE))
        self.stall = float(os.environ.get("CHASQUI_STALL", STALL))
        self.every = float(os.environ.get("CHASQUI_NOP", NOP_EVERY))
        self._buffer = b""
        self._said = time.monotonic()
        os.set_blocking(sink, False)

    # -- reading ---------------------------------------------------------------------------------------------------

    def _line(self) -> bytes:
        pieces = []  # type: List[bytes]
        size = 0
        while b"\n" not in self._buffer:
            pieces.append(self._buffer)
            size += len(self._buffer)
            if size > MAX_LINE:
                raise wire.WireError("a question of more than %d bytes" % MAX_LINE)
            self._buffer = self._more()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return b"".join(pieces) + line

    def _more(self) -> bytes:
        if not select.select([self.source], [], [], self.idle)[0]:
            raise wire.Closed("the client has said nothing for %d seconds" % self.idle)
        data = os.read(self.source, _BLOCK)
        if not data:
            raise wire.Closed("the client is gone")
        return data

    def question(self) -> "Question":
        """The next line. Raises WireError for anything else than a JSON object, Closed where none comes."""
        return _parsed(self._line())

    def slices(self) -> "Iterator[List[Question]]":
        """The questions, slice by slice, until the client says that it has no more."""
        while True:
            found, size = [], 0
            while True:
                line = self._line()
                item = _parsed(line)
                if item.get("end"):
                    return
                if item.get("answer"):
                    break
                size += len(line)
                if size > MAX_SLICE:
                    raise wire.WireError("more than %d bytes of questions at once" % MAX_SLICE)
                found.append(item)
            yield found

    # -- writing ---------------------------------------------------------------------------------------------------

    def say(self, **fields: "Any") -> None:
        """Send one line. Raises Closed where the client is gone, or takes nothing for too long."""
        view = memoryview(json.dumps(fields, separators=(",", ":"), sort_keys=True).encode("ascii") + b"\n")
        while view:
            try:
                view = view[os.write(self.sink, view):]
            except BlockingIOError:
                if not select.select([], [self.sink], [], self.stall)[1]:
                    raise wire.Closed("the client takes no data") from None
            except OSError as error:
                raise wire.Closed("the client is gone (%s)" % error.strerror) from None
        self._said = time.monotonic()

    def tick(self) -> None:
        """To be called often while working: a sign of life where none was given for 15 s."""
        if time.monotonic() - self._said >= self.every:
            self.say(nop=True)


def _parsed(line: bytes) -> "Question":
    try:
        item = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise wire.WireError("a line that is not JSON") from None
    if not isinstance(item, dict):
        raise wire.WireError("a line that is no JSON object")
    return item
