"""What client and agent say to each other: the greeting, frames, messages and paths.

Greeting, agent to client, once:   NUL "chasqui " HEX16 " " PROTOCOL LF
    HEX16 is the start of sha256(nonce); the nonce came with the command line, so neither a banner nor a shell that
    echoes its command can fake it. Whatever stands before it was printed by the login shell.

Frame, both directions, afterwards:

    | bytes | field   | value                                                       |
    |-------|---------|-------------------------------------------------------------|
    | 1     | type    | "J" message, "B" data, "N" nothing (still here, working),   |
    |       |         | "Z" packed                                                  |
    | 4     | length  | of the payload, unsigned, big endian                        |
    | n     | payload | J: compact JSON object, UTF-8, key "m" names it; B: bytes;  |
    |       |         | Z: a piece of the one zlib stream of its direction, which   |
    |       |         | expands to whole frames of the other types                  |
    | 4     | crc32   | of all the above, big endian, compared as bytes             |

A length over the type's bound is refused before anything of it is read, or expanded.

Packing is a layer below all else: a `Packer` takes whole frames and decides by what it measures whether they go packed
or as they are; an `Unpacker` gives them back, and its user never knows.

Paths are bytes. In messages they stand as text: UTF-8 as it is, and "%XX" for "%", for control characters and for every
byte that is not part of valid UTF-8.
"""

import hashlib
import json
import os
import struct
import zlib

MYPY = False
if MYPY:
    from typing import Any, Callable, Dict, Optional, Tuple

PROTOCOL = 2
MAX_MESSAGE = 16 << 20  # a job of 100,000 files still fits
CHUNK = 256 << 10
PIECE = 64 << 10  # larger inputs go in frames of this size, and are continued after a cut at a multiple of it
MAX_NOISE = 64 << 10  # what a login shell may print before the greeting
SLICE_JOBS, SLICE_BYTES = 1000, 8 << 20  # jobs offered at once, and what their messages measure before the last one
MESSAGE, DATA, NOTHING, PACKED = b"J", b"B", b"N", b"Z"
_BOUND = {MESSAGE: MAX_MESSAGE, DATA: CHUNK, NOTHING: 0, PACKED: CHUNK}
_PIECE = 128 << 10  # frames gathered before they are packed or written
_SMALL = 1 << 10  # less than this in a whole turn is not worth a zlib stream
_MEASURED = 1 << 20  # bytes after which packing has to have paid
_PAYS = 0.9  # packed bytes per byte, at most
_UNPACKED = 8 << 20  # bytes sent as they are before packing is tried again
_HEAD = struct.Struct(">cI")
_CRC = struct.Struct(">I")
_ENCODER = json.JSONEncoder(separators=(",", ":"), sort_keys=True)


class WireError(Exception):
    """The other side sent something that is not the protocol, or stopped in the middle of it."""


class Closed(WireError):
    """The other side is gone: end of file where a frame was due."""


class Silence(WireError):
    """Nothing arrived for longer than the other side may be quiet."""


def greeting(nonce: str) -> bytes:
    """The bytes that open the agent's side of a session that was started with `nonce`."""
    proof = hashlib.sha256(nonce.encode("ascii")).hexdigest()[:16]
    return b"\0chasqui %s %d\n" % (proof.encode("ascii"), PROTOCOL)


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """One frame, ready to be written."""
    head = _HEAD.pack(kind, len(payload))
    return head + payload + _CRC.pack(zlib.crc32(payload, zlib.crc32(head)) & 0xFFFFFFFF)


def message(*names: str, **fields: "Any") -> bytes:
    """message(name, ...): a J frame, the JSON object `fields` with `"m": name`. (A field may itself be called
    "name".)"""
    fields["m"] = names[0]
    return frame(MESSAGE, _ENCODER.encode(fields).encode("ascii"))


def read_frame(read: "Callable[[int], bytes]") -> "Tuple[bytes, bytes]":
    """The next frame as (kind, payload), NOTHING and PACKED frames included.

    read(n) returns exactly n bytes, or fewer at end of file.
    Raises Closed at end of file, WireError for an unknown kind, a length over the bound, a wrong CRC.
    """
    head = read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise Closed("the other side closed the connection")
    kind, length = _announced(head)
    body = read(length + _CRC.size)
    if len(body) < length + _CRC.size:
        raise Closed("the other side closed the connection in the middle of a frame")
    return kind, _checked(head, body)


def _announced(head: bytes) -> "Tuple[bytes, int]":
    """(kind, length of the payload) of a frame. Raises WireError for what can't be one."""
    kind, length = _HEAD.unpack(head)
    if kind not in _BOUND:
        raise WireError("unknown frame type %r" % kind)
    if length > _BOUND[kind]:
        raise WireError("frame of %d bytes, more than the %d allowed" % (length, _BOUND[kind]))
    return kind, length


def _checked(head: bytes, body: bytes) -> bytes:
    """The payload of a frame, whose checksum follows it in `body`."""
    payload, crc = body[:-_CRC.size], body[-_CRC.size:]
    if crc != _CRC.pack(zlib.crc32(payload, zlib.crc32(head)) & 0xFFFFFFFF):
        raise WireError("frame damaged on the way (checksum differs)")
    return payload


class Packer:
    """The sender's end of the layer: whole frames in, bytes for the pipe out.

    Packing goes on where the last MB of frames shrank by a tenth; else 8 MB pass as they are, and it is tried again.
    """

    def __init__(self, write: "Callable[[bytes], None]", packing: bool = True) -> None:
        """write(data) gets whole frames. packing: False where the line is faster than zlib (a pipe to a child)."""
        self.packing = packing
        self._write = write
        self._gathered = bytearray()
        self._stream: "Any" = None
        self._open = False  # the stream holds what it has not put out yet
        self._taken = self._given = 0  # bytes since the measuring began
        self._pass = 0  # bytes that will still go as they are

    def send(self, frame: bytes) -> None:
        """Take one frame. What `write` raises may come now or later."""
        self._gathered += frame
        if len(self._gathered) >= _PIECE:
            self._emit(False)

    def flush(self) -> None:
        """Afterwards every frame taken so far is with `write`, and the other side can read it."""
        if self._gathered or self._open:
            self._emit(True)

    def _emit(self, whole: bool) -> None:
        data, self._gathered = bytes(self._gathered), bytearray()
        if not self.packing or self._pass > 0 or (whole and not self._open and len(data) < _SMALL):
            self._pass -= len(data)
            self._write(data)
            return
        self._stream = self._stream or zlib.compressobj(1)
        packed = self._stream.compress(data)
        self._taken += len(data)
        self._given += len(packed)
        poor = self._taken >= _MEASURED and self._given > _PAYS * self._taken
        if self._taken >= _MEASURED:
            self._taken = self._given = 0
        self._open = not (whole or poor)
        if not self._open:
            # A frame that goes as it is must not overtake those in the stream.
            packed += self._stream.flush(zlib.Z_SYNC_FLUSH)
        self._pass = _UNPACKED if poor else 0
        if packed:
            self._write(b"".join(frame(PACKED, packed[at:at + CHUNK]) for at in range(0, len(packed), CHUNK)))


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
            kind, payload = read_frame(self._read)
            if kind == NOTHING:
                return kind, payload
            if kind != PACKED and before:
                raise WireError("a frame in the middle of a packed one")
            if kind != PACKED:
                return kind, payload
            if self._stream.eof:
                raise WireError("more of a packed stream than there is")
            self._piece = payload
            if not self._expand(before + 1):
                return NOTHING, b""

    def _unpacked(self) -> "Optional[Tuple[bytes, bytes]]":
        """The next frame that is here, None where more has to be read."""
        if not self._expand(_HEAD.size):
            return None
        head = bytes(self._expanded[:_HEAD.size])
        kind, length = _announced(head)
        if kind == PACKED:
            raise WireError("a packed frame inside a packed one")
        end = _HEAD.size + length + _CRC.size
        if not self._expand(end):
            return None
        payload = _checked(head, bytes(self._expanded[_HEAD.size:end]))
        del self._expanded[:end]
        return kind, payload

    def _expand(self, count: int) -> bool:
        """Whether `count` bytes are expanded. Never expands further than what a block of the stream brings."""
        while len(self._expanded) < count and (self._piece or self._held):
            try:
                out = self._stream.decompress(self._piece, _PIECE)
            except zlib.error:
                raise WireError("a packed stream that can't be expanded") from None
            if self._stream.unused_data:
                raise WireError("more of a packed stream than there is")
            self._expanded += out
            self._piece = self._stream.unconsumed_tail
            self._held = len(out) == _PIECE  # more may be waiting inside although all input is taken
        return len(self._expanded) >= count


def parse_message(payload: bytes) -> "Dict[str, Any]":
    """The JSON object of a J frame. Raises WireError for anything else than an object with a text "m"."""
    try:
        fields = json.loads(payload.decode("utf-8"))
    except (ValueError, RecursionError):
        raise WireError("a message that is not JSON") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("m"), str):
        raise WireError("a message without a name")
    return fields


def path_text(path: bytes) -> str:
    """A path as it stands in messages and journal records; `path_bytes` turns it back."""
    out = []
    for char in path.decode("utf-8", "surrogateescape"):
        code = ord(char)
        if 0xDC80 <= code <= 0xDCFF:
            out.append("%%%02X" % (code - 0xDC00))
        elif char == "%" or code < 0x20 or 0x7F <= code < 0xA0:
            out.append("".join("%%%02X" % byte for byte in char.encode("utf-8")))
        else:
            out.append(char)
    return "".join(out)


def path_bytes(text: str) -> bytes:
    """The path that `path_text` wrote as `text`. Raises WireError where "%" is not followed by two hex digits."""
    first, *rest = text.split("%")
    try:
        out = [first.encode("utf-8")]
        for part in rest:
            if len(part) < 2 or part[:2].strip("0123456789ABCDEFabcdef"):
                raise ValueError(part)
            out.append(bytes([int(part[:2], 16)]) + part[2:].encode("utf-8"))
    except ValueError:
        raise WireError("a path that is not percent-encoded as it should be") from None
    return b"".join(out)


def confined(text: "Any") -> bytes:
    """The relative path `text` as bytes, proved to stay inside the folder it is joined to.

    Raises WireError for anything that is not text, absolute, too long, holds NUL, or has an empty, "." or ".."
    component. Symlinks are the caller's business: it must open without following any.
    """
    if not isinstance(text, str):
        raise WireError("a path that is not text")
    path = path_bytes(text)
    parts = path.split(b"/")
    if len(path) > 4000 or b"\0" in path or any(p in (b"", b".", b"..") or len(p) > 255 for p in parts):
        raise WireError("a path that leaves its folder or cannot exist: %s" % printable(text))
    return path


def printable(text: str, limit: int = 500) -> str:
    """`text` from outside made safe for a terminal: control characters shown as \\xNN, cut after `limit` characters."""
    safe = "".join(c if c.isprintable() else "\\x%02x" % ord(c) for c in text[:limit])
    return safe + (" ..." if len(text) > limit else "")


def write_all(fd: int, data: bytes) -> None:
    """Write every byte of `data`; raises OSError (EPIPE where the reader is gone)."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
