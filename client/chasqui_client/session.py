"""The client's side of one session: what is said in which turn, and what is believed of the answers.

Knows nothing of the ledger and prints nothing: it is given an `Offer` and tells a `Handler` what happens. The agent is
not trusted: every list, size, path and hash is checked, everything is bounded, what was not asked for is an error.
"""

import json
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import chasqui_agent
from chasqui_agent import fault, packing, wire

from . import messages
from .launcher import new_nonce as new_nonce
from .messages import AgentError, Handler, Key, NotGreeted, Offer
from .transport import Pipe
from .upload import Upload

fault.register(
    {
        "session.send.before": "frames are made, nothing of them sent",
        "session.send.after": "frames are sent, no answer read",
    }
)

if TYPE_CHECKING:
    from .download import Download

MAX_PIECE = 16 << 20  # journal text in one log message, bytes
MAX_LOG = 1 << 30  # in one session
SIGN_OF_LIFE = 10.0  # seconds between two of ours, while we work on our turn; the agent gives up after 60 without any
WORKING_FOR = 3600.0  # seconds the agent may say nothing but NOPs


class Session:
    """One conversation over a pipe."""

    def __init__(self, pipe: Pipe, nonce: str, handler: Handler, compress: bool = True) -> None:
        self.pipe, self.nonce, self.handler, self.compress = pipe, nonce, handler, compress
        self.greeted = False
        self._nops, self._last = 0, time.monotonic()
        self._shown = self._last
        self._packer = packing.Packer(self._write, compress)
        self._unpacker = packing.Unpacker(self._read)
        self._rest = b""
        self._cursor = 0
        self._ended: dict[str, Any] = {}  # how the last turn of the agent's was ended

    def run(self, offer: Offer) -> None:
        """All turns up to the agent's bye. Raises NotGreeted, AgentError, WireError, and what the handler raises."""
        try:
            self._greeting()
            self.handler.begun(self._alive)
            welcome, offered = self._hand_over(offer)
            self._news(offer, offered, welcome)
        except wire.Closed:
            self._last_words()
            raise

    def _last_words(self) -> None:
        """The agent is gone; an error it sent before that says more than a broken pipe."""
        try:
            while True:
                self._message()
        except wire.WireError:
            return

    # -- the greeting ----------------------------------------------------------------------------------------------

    def _greeting(self) -> None:
        """Find the greeting in what a login shell may have printed around it."""
        proof = wire.greeting(self.nonce)
        seen = b""
        while proof not in seen:
            if len(seen) > wire.MAX_NOISE:
                raise NotGreeted(_words(seen))
            try:
                more = self.pipe.read_some()
            except wire.Silence:
                if not seen:
                    raise
                more = b""
            if not more:
                raise NotGreeted(_words(seen))
            seen += more
        noise, _, rest = seen.partition(proof)
        self.greeted = True
        self._rest = rest
        if noise.strip():
            self.handler.noise(_words(noise))

    def _read(self, count: int) -> bytes:
        if self._rest:
            taken, self._rest = self._rest[:count], self._rest[count:]
            return taken if len(taken) == count else taken + self.pipe.read(count - len(taken))
        return self.pipe.read(count)

    # -- frames ----------------------------------------------------------------------------------------------------

    def _frame(self) -> tuple[bytes, bytes]:
        """The next frame that says something. Bounds how long, and how fast, the agent may say nothing."""
        while True:
            kind, payload = self._unpacker.frame()
            if kind != wire.NOTHING:
                self._nops, self._last = 0, time.monotonic()
                return kind, payload
            self._sign_of_life()

    def _sign_of_life(self) -> None:
        self._nops += 1
        quiet = time.monotonic() - self._last
        if self._nops > 1000 + quiet or quiet > WORKING_FOR:
            raise wire.WireError("nothing but signs of life")
        self.handler.waiting()

    def _message(self) -> dict[str, Any]:
        return self._parsed(*self._frame())

    def _parsed(self, kind: bytes, payload: bytes) -> dict[str, Any]:
        if kind != wire.MESSAGE:
            raise wire.WireError("data where a message was due")
        fields = wire.parse_message(payload)
        if fields["m"] == "error":
            raise AgentError(*(messages.text(fields, key) for key in ("code", "why", "hint")))
        return fields

    def _messages(self, allowed: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The messages of a turn up to its end. Raises WireError for one that does not belong there."""
        names = set(allowed)
        while (fields := self._message())["m"] != "end":
            if fields["m"] not in names:
                raise wire.WireError("a message out of turn: %s" % wire.printable(fields["m"], 40))
            yield fields
        self._ended = fields

    @property
    def more(self) -> bool:
        """Whether the agent's last turn said that a further slice follows."""
        return self._ended.get("more") is True

    def _data(self, size: int) -> Iterator[bytes]:
        """Exactly `size` bytes of data frames."""
        while size > 0:
            kind, payload = self._frame()
            if kind != wire.DATA or not payload or len(payload) > size:
                raise wire.WireError("other data than was announced")
            size -= len(payload)
            yield payload

    def _send(self, frame: bytes) -> None:
        """Send one frame on our turn. The agent speaks then only to say that it works, or to end the session."""
        self._packer.send(frame)
        while self.pipe.early:
            kind, payload = self._unpacker.frame()
            if kind == wire.NOTHING:
                self._sign_of_life()
            else:
                raise wire.WireError("a message out of turn: %s" % self._parsed(kind, payload)["m"][:40])

    def _alive(self) -> None:
        """A sign of life, if it is time for one: past the packer, which would keep it until there is more to send."""
        if time.monotonic() - self._shown > SIGN_OF_LIFE:
            self.pipe.sign_of_life()
            self._shown = time.monotonic()

    def _write(self, data: bytes) -> None:
        fault.point("session.send.before")
        self.pipe.write(data)
        fault.point("session.send.after")

    def _end(self, **fields: Any) -> None:
        """End our turn. From here on the agent may answer, so nothing is looked for that came early."""
        self._packer.send(wire.message("end", **fields))
        self._packer.flush()

    def _say_ahead(self, frames: list[bytes]) -> None:
        """Say a turn of ours before the agent's is over: it reads it then. It takes it in while it writes, as much as
        `download.AHEAD` and more, so neither side can block."""
        for frame in frames:
            self._packer.send(frame)
        self._end()

    # -- turns 1 to 3 ----------------------------------------------------------------------------------------------

    def _hand_over(self, offer: Offer) -> tuple[dict[str, Any] | None, set[Key]]:
        """Say what we have to say, and hand jobs over, a slice at a time; the welcome, if it was said by then, and the
        jobs that were offered."""
        upload = Upload(self._send, self._end, self._messages, self._alive, self.handler)
        hello = {"proto": chasqui_agent.PROTOCOL, "pack": self._packer.packing, "ahead": True, **offer.hello}
        self._send(wire.message("hello", **hello))
        for operation in offer.operations:
            self._send(wire.message("op", **operation))
        welcome, more = None, False
        for jobs, more in offer.slices:
            if not (jobs or more or welcome):
                break  # none of the jobs can go: to the agent that is a session without any, whose next turn is the 4th
            if upload.is_new(jobs):
                upload.hand_over_new(jobs, more)
            else:
                upload.offer(jobs, more)
                welcome = welcome or self._welcome()
                upload.hand_over(jobs)
                upload.has_room(self._ended)
            del jobs  # before the next ones are made
        if more or welcome is None:
            self._end(more=False)
        return welcome, upload.offered

    def _welcome(self) -> dict[str, Any]:
        fields = self._message()
        if fields["m"] != "welcome" or not messages.is_int(fields.get("cursor"), 1 << 62):
            raise wire.WireError("no proper welcome")
        self._cursor = int(fields["cursor"])
        self.handler.welcome(fields)
        return fields

    # -- turn 4, and what follows --------------------------------------------------------------------------------------

    _NEWS = ("acked", "refuse", "op_done", "note", "pump", "status", "log")
    _RESULTS = ("results", "listed", "bundle", "gone")

    def _news(self, offer: Offer, offered: set[Key], welcome: dict[str, Any] | None) -> None:
        if welcome is None:
            self._welcome()
        download: Download | None = None
        state = _Turn4(offered, {str(op["id"]) for op in offer.operations})
        for fields in self._messages(self._NEWS + self._RESULTS):
            if fields["m"] in self._RESULTS:
                download = download or self._download()
                download.news(fields)
            elif fields["m"] == "log":
                self._log(fields, state)
            else:
                self._one_news(fields, state)
        if download or self.more:
            (download or self._download()).run(self.more)
        self._bye()

    def _download(self) -> "Download":
        from .download import Download
        return Download(self, self.handler)

    def _one_news(self, fields: dict[str, Any], state: "_Turn4") -> None:
        name = fields["m"]
        state.count()
        if name == "acked":
            acked = []
            for pair in messages.pairs(fields, state.offered):
                acked.append(pair)
                state.offered.discard(pair)
            self.handler.acked(acked)  # one transaction for up to a thousand
        elif name == "refuse":
            self.handler.refused(messages.key(fields, state.offered), messages.text(fields, "why"))
        elif name == "op_done":
            if fields.get("id") not in state.operations:
                raise wire.WireError("an operation confirmed that was not asked for")
            state.operations.discard(fields["id"])
            self.handler.done(fields["id"], messages.text(fields, "note"))
        elif name == "note":
            self.handler.note(messages.text(fields, "text"))
        elif name == "pump":
            self.handler.pumped(messages.flat(fields))
        elif name == "status":
            self.handler.status(messages.status(fields))

    def _log(self, fields: dict[str, Any], state: "_Turn4") -> None:
        """One piece of the journal, applied at once: memory does not grow with what we have missed."""
        start, to, size = fields.get("from"), fields.get("to"), fields.get("size")
        follows = start == self._cursor and messages.is_int(to, 1 << 62) and to > self._cursor
        if not follows or not messages.is_int(to, 1 << 62) or not messages.is_int(size, MAX_PIECE):
            raise wire.WireError("a piece of the journal that does not follow the last one")
        state.log += size
        if state.log > MAX_LOG:
            raise wire.WireError("more than %d bytes of journal" % MAX_LOG)
        text = b"".join(self._data(size))
        self._cursor = to
        self.handler.records(list(_records(text)), self._cursor)

    def _bye(self) -> None:
        fields = self._message()
        if fields["m"] != "bye" or fields.get("status") != "ok":
            raise wire.WireError("no proper end: %s" % wire.printable(str(fields.get("why") or fields["m"]), 200))
        self.handler.finished()


class _Turn4:
    """What turn 4 may still say."""

    def __init__(self, offered: set[Key], operations: set[str]) -> None:
        self.offered, self.operations = offered, operations
        self.log = 0
        self._left = len(offered) + len(operations) + 200

    def count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise wire.WireError("more news than there can be")


def _records(text: bytes) -> Iterator[dict[str, Any]]:
    for line in text.split(b"\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise wire.WireError("a journal record that is not JSON") from None
        if not isinstance(record, dict):
            raise wire.WireError("a journal record that is no object")
        yield record


def _words(data: bytes) -> str:
    """What a login shell said, safe for a terminal, the last lines of it."""
    lines = [line.strip() for line in data.decode("utf-8", "replace").split("\n") if line.strip()]
    return " | ".join(wire.printable(line, 200) for line in lines[-5:])
