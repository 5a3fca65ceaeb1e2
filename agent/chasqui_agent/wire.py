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
    |       |         | Z: a piece of the zlib stream of its direction, which       |
    |       |         | expands to whole frames of the other types                  |
    | 4     | crc32   | of all the above, big endian, compared as bytes             |

A length over the type's bound is refused before anything of it is read, or expanded.

Packing is a layer below all else (packing.py). A zlib stream that ends in a piece is followed by a new one in the next.

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
    from typing import Any, Callable, Dict, Tuple

PROTOCOL = 2
MAX_MESSAGE = 16 << 20  # a job of 100,000 files still fits
CHUNK = 256 << 10
PIECE = 64 << 10  # larger inputs go in frames of this size, and are continued after a cut at a multiple of it
MAX_NOISE = 64 << 10  # what a login shell may print before the greeting
BUNDLE = 128 << 10  # inputs of up to a PIECE go together, up to this
SLICE_JOBS, SLICE_BYTES = 1000, 8 << 20  # jobs offered at once, and what their messages measure before the last one
MESSAGE, DATA, NOTHING, PACKED = b"J", b"B", b"N", b"Z"
_BOUND = {MESSAGE: MAX_MESSAGE, DATA: CHUNK, NOTHING: 0, PACKED: CHUNK}
HEAD = struct.Struct(">cI")
CRC = struct.Struct(">I")
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
    head = HEAD.pack(kind, len(payload))
    return head + payload + CRC.pack(zlib.crc32(payload, zlib.crc32(head)) & 0xFFFFFFFF)


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
    head = read(HEAD.size)
    if len(head) < HEAD.size:
        raise Closed("the other side closed the connection")
    kind, length = announced(head)
    body = read(length + CRC.size)
    if len(body) < length + CRC.size:
        raise Closed("the other side closed the connection in the middle of a frame")
    return kind, checked(head, body)


def announced(head: bytes) -> "Tuple[bytes, int]":
    """(kind, length of the payload) of a frame. Raises WireError for what can't be one."""
    kind, length = HEAD.unpack(head)
    if kind not in _BOUND:
        raise WireError("unknown frame type %r" % kind)
    if length > _BOUND[kind]:
        raise WireError("frame of %d bytes, more than the %d allowed" % (length, _BOUND[kind]))
    return kind, length


def checked(head: bytes, body: bytes) -> bytes:
    """The payload of a frame, whose checksum follows it in `body`."""
    payload, crc = body[:-CRC.size], body[-CRC.size:]
    if crc != CRC.pack(zlib.crc32(payload, zlib.crc32(head)) & 0xFFFFFFFF):
        raise WireError("frame damaged on the way (checksum differs)")
    return payload


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
    text = path.decode("utf-8", "surrogateescape")
    if text.isalnum() or (text.isprintable() and "%" not in text):
        return text
    out = []
    for char in text:
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
