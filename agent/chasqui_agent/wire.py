"""What client and agent say to each other: the greeting, frames, messages and paths.

Greeting, agent to client, once:   NUL "chasqui " HEX16 " " PROTOCOL LF
    HEX16 is the start of sha256(nonce); the nonce came with the command line, so neither a banner nor a shell that
    echoes its command can fake it. Whatever stands before it was printed by the login shell.

Frame, both directions, afterwards:

    | bytes | field   | value                                                       |
    |-------|---------|-------------------------------------------------------------|
    | 1     | type    | "J" message, "B" data, "N" nothing (still here, working)    |
    | 4     | length  | of the payload, unsigned, big endian                        |
    | n     | payload | J: compact JSON object, UTF-8, key "m" names it; B: bytes   |
    | 4     | crc32   | of all the above, big endian, compared as bytes             |

A length over the type's bound is refused before anything of it is read.

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

PROTOCOL = 1
MAX_MESSAGE = 16 << 20  # a job of 100,000 files still fits
CHUNK = 256 << 10
MAX_NOISE = 64 << 10  # what a login shell may print before the greeting
MESSAGE, DATA, NOTHING = b"J", b"B", b"N"
_BOUND = {MESSAGE: MAX_MESSAGE, DATA: CHUNK, NOTHING: 0}
_HEAD = struct.Struct(">cI")
_CRC = struct.Struct(">I")


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
    return frame(MESSAGE, json.dumps(fields, separators=(",", ":"), sort_keys=True).encode("ascii"))


def read_frame(read: "Callable[[int], bytes]") -> "Tuple[bytes, bytes]":
    """The next frame as (kind, payload), NOTHING frames included.

    read(n) returns exactly n bytes, or fewer at end of file.
    Raises Closed at end of file, WireError for an unknown kind, a length over the bound, a wrong CRC.
    """
    head = read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise Closed("the other side closed the connection")
    kind, length = _HEAD.unpack(head)
    if kind not in _BOUND:
        raise WireError("unknown frame type %r" % kind)
    if length > _BOUND[kind]:
        raise WireError("frame of %d bytes, more than the %d allowed" % (length, _BOUND[kind]))
    body = read(length + _CRC.size)
    if len(body) < length + _CRC.size:
        raise Closed("the other side closed the connection in the middle of a frame")
    payload, crc = body[:length], body[length:]
    if crc != _CRC.pack(zlib.crc32(payload, zlib.crc32(head)) & 0xFFFFFFFF):
        raise WireError("frame damaged on the way (checksum differs)")
    return kind, payload


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
