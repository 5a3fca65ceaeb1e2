"""The layer below the frames: what shrinks goes packed, as hard as the line is slow; the reader never knows.

A `Packer` takes whole frames and writes them as they are, or as pieces of a zlib stream in PACKED frames (wire.py); an
`Unpacker` gives them back. Data that begins as random bytes would goes as it is: packing would gain nothing of it, and
spoils the code of what stands beside it (four files of a job: 0.55 of their size with it in the stream, 0.51 without).
"""

import time
import zlib

from . import wire

MYPY = False
if MYPY:
    from typing import Any, Callable, Optional, Tuple

_GATHERED = 128 << 10  # bytes of frames gathered before they are packed or written
_SMALL = 1 << 10  # less than this in a whole turn is not worth a zlib stream
_PAYS = 0.9  # packed bytes per byte, at most
_UNPACKED = 8 << 20  # bytes sent as they are before packing is tried again where it did not pay
_SAMPLE, _MOST_DISTINCT = 512, 180  # bytes, and values among them; of random ones it is 221, of text 100 at most

WINDOW = 1 << 20  # bytes after which it is looked at how the line does
_WAITS = 0.3  # the part of the time spent in writing from which on it is the line that is slow, not we
_BUFFERS = 4 << 20  # bytes that pipes, sockets and ssh may take before it shows how slow the line is
# Bytes a second that the line takes -> zlib's level: the highest one that costs half of the time at most. Measured on
# tables of numbers: 110, 60 and 22 MB/s, and 0.51, 0.49 and 0.45 of the size with level 1, 3 and 6.
_LEVELS = ((5e6, 6), (15e6, 3), (40e6, 1))


def looks_random(data: bytes) -> bool:
    """Whether this does not shrink, by a sample of it. (Very few bytes never look so.)"""
    return len(set(data[:_SAMPLE])) > _MOST_DISTINCT


def _is_random(frame: bytes) -> bool:
    return frame[:1] == wire.DATA and looks_random(frame[wire.HEAD.size:wire.HEAD.size + _SAMPLE])


class Gauge:
    """Which level suits the line: 0 is not to pack. Each window of what is sent is a measurement."""

    def __init__(self, clock: "Callable[[], float]" = time.monotonic) -> None:
        self.level = 1
        self._clock = clock
        self._free = 0  # bytes since the line last held us up
        self._begin()

    def _begin(self) -> None:
        self._started, self._taken, self._given, self._waited = self._clock(), 0, 0, 0.0

    def write(self, write: "Callable[[bytes], None]", data: bytes) -> None:
        """write(data), and how long it took."""
        before = self._clock()
        write(data)
        self._waited += self._clock() - before
        self._given += len(data)

    def take(self, count: int) -> None:
        """`count` bytes of frames have been dealt with."""
        self._taken += count
        if self._taken >= WINDOW:
            self._judge()
            self._begin()

    def _judge(self) -> None:
        elapsed = max(self._clock() - self._started, 1e-6)
        if self._waited < _WAITS * elapsed:
            self._free += self._given
            if self._free > _BUFFERS:
                self.level = {6: 3, 3: 1}.get(self.level, 0)
            return
        self._free = 0
        rate = self._given / elapsed
        self.level = next((level for most, level in _LEVELS if rate <= most), 0)


class Packer:
    """The sender's end of the layer: whole frames in, bytes for the pipe out."""

    def __init__(self, write: "Callable[[bytes], None]", packing: bool = True,
                 clock: "Callable[[], float]" = time.monotonic) -> None:
        """write(data) gets whole frames. packing: False where the line is faster than zlib (a pipe to a child)."""
        self.packing = packing
        self._write = write
        self._gauge = Gauge(clock)
        self._gathered = bytearray()
        self._random = False  # whether it is of the kind that does not shrink
        self._stream: "Any" = None
        self._level = 0  # of the stream
        self._open = False  # the stream holds what it has not put out yet
        self._pass = 0  # bytes that will still go as they are
        self._taken = self._given = 0  # bytes into and out of the stream since it was last found to pay

    def send(self, frame: bytes) -> None:
        """Take one frame. What `write` raises may come now or later."""
        if self.packing:
            random = _is_random(frame)
            if random != self._random:
                self.flush()
                self._random = random
        self._gathered += frame
        if len(self._gathered) >= _GATHERED:
            self._emit(False)

    def flush(self) -> None:
        """Afterwards every frame taken so far is with `write`, and the other side can read it."""
        if self._gathered or self._open:
            self._emit(True)

    def _emit(self, whole: bool) -> None:
        data, self._gathered = bytes(self._gathered), bytearray()
        if not self.packing:
            self._write(data)
            return
        if self._packs(len(data), whole):
            self._pack(data, whole)
        else:
            self._pass -= len(data)
            self._gauge.write(self._write, data)
        self._gauge.take(len(data))

    def _packs(self, size: int, whole: bool) -> bool:
        """Whether what is gathered goes into the stream: always, if there is something in there that it follows."""
        if self._open:
            return True
        return not (self._random or self._pass > 0 or self._gauge.level == 0 or (whole and size < _SMALL))

    def _pack(self, data: bytes, whole: bool) -> None:
        if self._stream is None:
            self._level = self._gauge.level
            self._stream = zlib.compressobj(self._level, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
        packed = self._stream.compress(data)
        self._taken += len(data)
        poor = self._taken >= WINDOW and self._given + len(packed) > _PAYS * self._taken
        ends = poor or self._gauge.level != self._level
        if ends:
            packed += self._stream.flush(zlib.Z_FINISH)
            self._stream = None
            self._pass = _UNPACKED if poor else 0
        elif whole:
            # A frame that goes as it is must not overtake those in the stream.
            packed += self._stream.flush(zlib.Z_SYNC_FLUSH)
        self._given += len(packed)
        self._open = not (ends or whole)
        if self._taken >= WINDOW:
            self._taken = self._given = 0
        if packed:
            pieces = [packed[at:at + wire.CHUNK] for at in range(0, len(packed), wire.CHUNK)]
            self._gauge.write(self._write, b"".join(wire.frame(wire.PACKED, piece) for piece in pieces))


class Unpacker:
    """The reader's end: frames as they were sent. Holds at most one frame and two pieces of the stream in memory."""

    def __init__(self, read: "Callable[[int], bytes]") -> None:
        """read(n) returns exactly n bytes, or fewer at end of file."""
        self._read = read
        self._stream = zlib.decompressobj()
        self._piece = b""  # of the stream, not yet expanded
        self._held = False
        self._expanded = bytearray()

    def frame(self) -> "Tuple[bytes, bytes]":
        """The next frame, NOTHING frames included; one for each piece of a stream that says nothing, too, so that
        who counts them is not held for ever. Raises what `read_frame` does, and WireError for a damaged stream."""
        while True:
            found = self._unpacked()
            if found:
                return found
            before = len(self._expanded)
            kind, payload = wire.read_frame(self._read)
            if kind == wire.NOTHING:
                return kind, payload
            if before and (kind != wire.PACKED or self._stream.eof):
                raise wire.WireError("a frame in the middle of a packed one")
            if kind != wire.PACKED:
                return kind, payload
            if self._stream.eof:
                self._stream = zlib.decompressobj()
            self._piece = payload
            if not self._expand(before + 1):
                return wire.NOTHING, b""

    def _unpacked(self) -> "Optional[Tuple[bytes, bytes]]":
        """The next frame that is here, None where more has to be read."""
        if not self._expand(wire.HEAD.size):
            return None
        head = bytes(self._expanded[:wire.HEAD.size])
        kind, length = wire.announced(head)
        if kind == wire.PACKED:
            raise wire.WireError("a packed frame inside a packed one")
        end = wire.HEAD.size + length + wire.CRC.size
        if not self._expand(end):
            return None
        payload = wire.checked(head, bytes(self._expanded[wire.HEAD.size:end]))
        del self._expanded[:end]
        return kind, payload

    def _expand(self, count: int) -> bool:
        """Whether `count` bytes are expanded. Never expands further than what a block of the stream brings."""
        while len(self._expanded) < count and (self._piece or self._held):
            try:
                out = self._stream.decompress(self._piece, _GATHERED)
            except zlib.error:
                raise wire.WireError("a packed stream that can't be expanded") from None
            if self._stream.unused_data:
                raise wire.WireError("more of a packed stream than there is")
            self._expanded += out
            self._piece = self._stream.unconsumed_tail
            self._held = len(out) == _GATHERED  # more may be waiting inside although all input is taken
        return len(self._expanded) >= count
