"""A process on the other side and the pipes to it: reads that give up on silence, writes that can't hang, one close.

A killed ssh client leaves its pipes open in the master for as long as the remote process lives, so nothing here waits
for end of file after a kill: pipes are selected on, and dropped.
"""

import os
import select
import time
from typing import TYPE_CHECKING, Protocol

from chasqui_agent import wire

from .child import Child

if TYPE_CHECKING:
    from .pace import Pace

SILENCE = 75.0  # seconds without a byte after which the other side counts as gone (the agent sends one every 15)
_TAIL = 16 << 10  # of stderr that is kept
_EARLY = 1 << 20  # what the other side may send while we write, before we stop taking it
_BLOCK = 256 << 10


class Pipe(Protocol):
    """What a session needs of a transport."""

    def read(self, count: int) -> bytes: ...
    def read_some(self) -> bytes: ...
    def write(self, data: bytes) -> None: ...
    def sign_of_life(self) -> None: ...
    @property
    def early(self) -> bool: ...


class Channel:
    """A child process with its three pipes."""

    def __init__(self, process: Child, silence: float | None = None) -> None:
        """silence: seconds; CHASQUI_SILENCE overrides the default in tests."""
        self.silence = float(os.environ.get("CHASQUI_SILENCE", SILENCE)) if silence is None else silence
        self.process = process
        self._in, self._out, self._err = process.stdin, process.stdout, process.stderr
        for fd in (self._in, self._out, self._err):
            os.set_blocking(fd, False)
        self._buffer = bytearray()
        self._errors = bytearray()
        self.pace: Pace | None = None  # as fast as it goes

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes, fewer at end of file. Raises wire.Silence."""
        while len(self._buffer) < count and self._fill():
            pass
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def read_some(self) -> bytes:
        """Whatever has arrived, at least one byte; b"" at end of file. Raises wire.Silence."""
        if not self._buffer:
            self._fill()
        taken = bytes(self._buffer)
        self._buffer.clear()
        return taken

    def read_all(self, limit: int) -> bytes:
        """Everything up to end of file. Raises wire.Silence, WireError beyond `limit` bytes."""
        while self._fill():
            if len(self._buffer) > limit:
                raise wire.WireError("more than %d bytes of output" % limit)
        return self.read(len(self._buffer))

    @property
    def early(self) -> bool:
        """Whether the other side has said something that was not read yet."""
        return bool(self._buffer)

    def _fill(self) -> bool:
        """Wait for output and keep it; False at end of file.

        At a pace we wait before we read: what stands unread in pipes and windows slows the other side down. That wait
        is ours, and no silence.
        """
        most = self.pace.wait() if self.pace else _BLOCK
        deadline = time.monotonic() + self.silence
        while self._out >= 0:
            waiting = [fd for fd in (self._out, self._err) if fd >= 0]
            ready = select.select(waiting, [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ready:
                raise wire.Silence("nothing was heard for %d seconds" % self.silence)
            if self._err in ready:
                self._take_errors()
            if self._out in ready and self._take_output(most):
                return True
        return False

    def _take_output(self, most: int = _BLOCK) -> bool:
        try:
            data = os.read(self._out, most)
        except BlockingIOError:
            return False
        if not data:
            self._out = -1
        if self.pace:
            self.pace.received(len(data))
        self._buffer += data
        return bool(data)

    def _take_errors(self) -> None:
        try:
            data = os.read(self._err, _BLOCK)
        except BlockingIOError:
            return
        if not data:
            self._err = -1
        self._errors += data
        del self._errors[:-_TAIL]

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write all of `data`, taking in meanwhile what is said. Raises Closed where nobody reads, Silence."""
        view = memoryview(data)
        deadline = time.monotonic() + self.silence
        while view:
            most = self.pace.wait() if self.pace else _BLOCK
            full = len(self._buffer) >= _EARLY
            reading = [fd for fd in (self._err, self._out) if fd >= 0 and not (full and fd == self._out)]
            ready, writable, _ = select.select(reading, [self._in], [], max(0.0, deadline - time.monotonic()))
            if not ready and not writable:
                raise wire.Silence("nothing was taken for %d seconds" % self.silence)
            if self._err in ready:
                self._take_errors()
            if self._out in ready:
                self._take_output(most)
            if writable:
                view = view[self._write_some(view[:most]):]
                deadline = time.monotonic() + self.silence

    def sign_of_life(self) -> None:
        """One NOTHING frame, if there is room for it. For another thread, while this one reads: never between parts of
        a frame. Raises nothing: a broken pipe is found by who reads."""
        try:
            os.write(self._in, wire.frame(wire.NOTHING))  # 9 bytes are less than PIPE_BUF: whole or not at all
        except OSError:
            return

    def _write_some(self, view: memoryview) -> int:
        try:
            count = os.write(self._in, view)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise wire.Closed("the other side stopped listening (%s)" % (error.strerror or error)) from error
        if self.pace:
            self.pace.sent(count)
        return count

    # -- the end ---------------------------------------------------------------------------------------------------

    def close_input(self) -> None:
        """Tell the other side that nothing more comes."""
        self.process.close_input()

    def close(self, patience: float = 5.0) -> int | None:
        """Close our ends and see the process off, killing it after `patience` seconds; its status, None if killed."""
        self.close_input()
        status = self._wait(patience)
        if status is None:
            self.process.kill()
            self.process.wait()
        while self._err >= 0 and select.select([self._err], [], [], 0)[0]:
            self._take_errors()
        self.process.close()
        self._out = self._err = -1
        return status

    def _wait(self, patience: float) -> int | None:
        deadline = time.monotonic() + patience
        pause = 0.001
        while (status := self.process.poll()) is None and time.monotonic() < deadline:
            waiting = [fd for fd in (self._out, self._err) if fd >= 0]
            if not waiting or not select.select(waiting, [], [], pause)[0]:
                if not waiting:
                    time.sleep(pause)
                pause = min(0.05, pause * 2)
                continue
            if self._err in waiting:
                self._take_errors()
            if self._out >= 0:
                self._take_output()
                self._buffer.clear()
        return status

    def stderr_tail(self) -> str:
        """The last lines the process wrote to stderr, safe for a terminal."""
        lines = self._errors.decode("utf-8", "replace").splitlines()
        return "\n".join(wire.printable(line) for line in lines if line.strip())


class Transport(Protocol):
    """A way to have a line of shell run on the remote's machine."""

    def start(self, line: str) -> Channel: ...
    def argv(self, line: str) -> list[str]: ...
    @property
    def compress(self) -> bool: ...
    @property
    def ahead(self) -> int: ...


class Local:
    """This computer: the line is run by a child process, exactly as sshd would have the login shell run it."""

    compress = False
    ahead = 64 << 10  # bytes that fit between the agent and us: a pipe

    def start(self, line: str) -> Channel:
        """Begin `line`."""
        return Channel(Child(self.argv(line)))

    def argv(self, line: str) -> list[str]:
        """What `start` runs."""
        return ["/bin/sh", "-c", line]
