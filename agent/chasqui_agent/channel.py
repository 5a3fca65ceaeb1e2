"""The agent's end of the session's pipes: reading that gives up on silence, writing that can't hang for ever, NOPs."""

import errno
import os
import select
import signal
import sys
import time

from . import fault, packing, wire

MYPY = False
if MYPY:
    from typing import Any, Tuple

fault.register({
    "channel.send.before": "frames are made, nothing of them sent",
    "channel.send.after": "frames are sent",
})

IDLE = 60.0  # seconds the client may be silent on its turn; settable for tests through CHASQUI_IDLE
STALL = 300.0  # seconds the client may take no byte of ours and give no sign of life; CHASQUI_STALL in tests
WORKING_FOR = 3600.0  # seconds in which it may give nothing but those
NOP_EVERY = 15.0


class Channel:
    """Frames from and to the client over two descriptors."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        self.idle = float(os.environ.get("CHASQUI_IDLE", IDLE))
        self.stall = float(os.environ.get("CHASQUI_STALL", STALL))
        self.broken = False
        self.last_size = 0  # bytes of the message read last
        self._buffer = bytearray()
        self._ended = False  # the client's pipe was seen to end
        self._unpacker = packing.Unpacker(self._read)
        self.packer = packing.Packer(self._write_out, packing=False)  # until the client has said that it wants it
        os.set_blocking(sink, False)

    # -- reading ---------------------------------------------------------------------------------------------------

    def _read(self, count: int) -> bytes:
        while len(self._buffer) < count:
            if not select.select([self.source], [], [], self.idle)[0]:
                raise wire.Silence("the client has said nothing for %d seconds" % self.idle)
            data = os.read(self.source, wire.CHUNK)
            if not data:
                break
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def has_come(self) -> bool:
        """Whether there is anything to read now."""
        return bool(self._buffer or select.select([self.source], [], [], 0)[0])

    def frame(self) -> "Tuple[bytes, bytes]":
        """The next message or data frame. Raises Closed, Silence, WireError."""
        self.packer.flush()
        while True:
            kind, payload = self._unpacker.frame()
            if kind != wire.NOTHING:
                return kind, payload

    def message(self) -> "Any":
        """The next frame, which must be a message."""
        kind, payload = self.frame()
        if kind != wire.MESSAGE:
            raise wire.WireError("data where a message was due")
        self.last_size = len(payload)
        return wire.parse_message(payload)

    def data(self) -> bytes:
        """The next frame, which must be data."""
        kind, payload = self.frame()
        if kind != wire.DATA:
            raise wire.WireError("a message where data was due")
        return payload

    # -- writing ---------------------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """Send one frame, at the latest with the next `flush`, `frame` or `working`.

        Raises Closed where the client is gone or has taken nothing for STALL seconds.
        """
        if self.broken:
            raise wire.Closed("the client is gone")
        self.packer.send(frame)

    def say(self, name: str, **fields: "Any") -> None:
        """Send one message."""
        self.send(wire.message(name, **fields))

    def flush(self) -> None:
        """Send what is gathered. Raises Closed."""
        self.packer.flush()

    def _write_out(self, data: bytes) -> None:
        fault.point("channel.send.before")
        self._write(data)
        fault.point("channel.send.after")

    def _write(self, data: bytes) -> None:
        view, end = memoryview(data), time.monotonic() + WORKING_FOR
        while view:
            try:
                view = view[os.write(self.sink, view):]
                end = time.monotonic() + WORKING_FOR
            except BlockingIOError:
                if time.monotonic() > end or not self._room_or_sign():
                    self.broken = True
                    raise wire.Closed("the client takes no data") from None
            except OSError as error:
                self.broken = True
                raise wire.Closed("the client is gone (%s)" % error.strerror) from None

    def _room_or_sign(self) -> bool:
        """Wait until the client takes something, or says that it is there: its disk may need minutes for what it has.
        False where it did neither for STALL seconds."""
        listens = not self._ended and len(self._buffer) < wire.CHUNK  # on our turn it has nothing else to say
        heard, room, _ = select.select([self.source] if listens else [], [self.sink], [], self.stall)
        if heard:
            try:
                data = os.read(self.source, wire.CHUNK)
            except OSError:
                data = b""
            self._buffer += data
            self._ended = not data
        return bool(heard or room)

    def working(self) -> "Working":
        """`with channel.working():` a phase in which nothing is sent but a NOP every 15 seconds."""
        return Working(self)

    def nop(self, *_: "Any") -> None:
        """One NOTHING frame, if there is room for it. Never raises: the work in hand must go on without the pipe."""
        if self.broken:
            return
        try:
            # 9 bytes are less than PIPE_BUF: written whole or not at all.
            if os.write(self.sink, wire.frame(wire.NOTHING)) != len(wire.frame(wire.NOTHING)):
                self.broken = True
        except OSError as error:
            self.broken = error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK)


class Working:
    """NOPs from a timer signal: a thread would make fork in the pump unsafe."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def __enter__(self) -> None:
        self.channel.flush()
        signal.signal(signal.SIGALRM, self.channel.nop)
        # Restart interrupted calls in children's setup too: PEP 475 does it for ours.
        signal.siginterrupt(signal.SIGALRM, False)
        every = float(os.environ.get("CHASQUI_NOP", NOP_EVERY))
        signal.setitimer(signal.ITIMER_REAL, every, every)

    def __exit__(self, *_: "Any") -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def standard() -> Channel:
    """The channel on stdin and stdout, which from now on belong to the session alone.

    fds 0, 1 and 2 become /dev/null: whatever the pump starts must not inherit the pipes (sshd ends a session only when
    the last writer is gone), and a stray print must not get between the frames. Our own stderr moves elsewhere.
    """
    source, sink, errors = os.dup(0), os.dup(1), os.dup(2)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    sys.stderr = os.fdopen(errors, "w", 1, encoding="utf-8", errors="backslashreplace")
    return Channel(source, sink)


def session_name() -> str:
    """A name for a session's folder and shards that sorts by time: UTC and 8 random characters."""
    from .spool import random_name
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + "-" + random_name(8)
