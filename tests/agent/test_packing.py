"""The layer below the frames: whatever is sent comes back, whole and in order; damage and bombs are noticed."""

import os
import random
import zlib

import pytest

from chasqui_agent import packing, wire

KINDS = (wire.MESSAGE, wire.DATA)


class Line:
    """What a Packer has written, to be read back; counts what is asked for."""

    def __init__(self, data=b""):
        self.data, self.at = bytearray(data), 0

    def write(self, data):
        self.data += data

    def read(self, count):
        taken = bytes(self.data[self.at:self.at + count])
        self.at += len(taken)
        return taken


def some_frames(rnd):
    """Frames of every size, some that pack well and some that do not, in runs of a kind."""
    frames = []
    for _ in range(rnd.randrange(1, 12)):
        noisy, most = rnd.random() < 0.5, rnd.choice((10, 1000, 20000, wire.CHUNK))
        for _ in range(rnd.randrange(1, 12)):
            size = rnd.randrange(most + 1)
            payload = os.urandom(size) if noisy else (b"%d " % rnd.randrange(1000) * size)[:size]
            frames.append((rnd.choice(KINDS), payload))
    return frames


def packed(frames, rnd=None, wanted=True):
    """The bytes of a line over which `frames` were sent, flushed now and then."""
    line = Line()
    packer = packing.Packer(line.write, wanted)
    for kind, payload in frames:
        packer.send(wire.frame(kind, payload))
        if rnd and rnd.random() < 0.1:
            packer.flush()
    packer.flush()
    return bytes(line.data)


def unpacked(data, count=None):
    unpacker = packing.Unpacker(Line(data).read)
    found = []
    while count is None or len(found) < count:
        kind, payload = unpacker.frame()
        if kind != wire.NOTHING:
            found.append((kind, payload))
    return found


@pytest.mark.parametrize("wanted", [True, False])
def test_frames_come_back(size, wanted):
    rnd = random.Random(4)
    for _ in range(size.examples // 2):
        frames = some_frames(rnd)
        assert unpacked(packed(frames, rnd, wanted), len(frames)) == frames


def test_what_is_flushed_can_be_read_at_once():
    line = Line()
    packer, unpacker = packing.Packer(line.write), packing.Unpacker(line.read)
    for number in range(300):
        payload = b"x" * number * 50
        packer.send(wire.frame(wire.DATA, payload))
        packer.flush()
        assert unpacker.frame() == (wire.DATA, payload)
        assert line.at == len(line.data)


def test_a_short_turn_goes_as_it_is():
    assert packed([(wire.MESSAGE, b'{"m":"end"}')]) == wire.frame(wire.MESSAGE, b'{"m":"end"}')


def test_every_cut_is_noticed(size):
    frames = [(wire.MESSAGE, b"m%d" % n * 40) for n in range(60)] + [(wire.DATA, b"")]
    data = packed(frames)
    assert data[:1] == wire.PACKED
    step = 1 if size.long else 3
    for length in range(0, len(data), step):
        with pytest.raises(wire.Closed):
            unpacked(data[:length], len(frames))


def test_every_flipped_bit_is_noticed(size):
    frames = [(wire.DATA, b"words %d " % n * 10) for n in range(40)]
    data = packed(frames)
    for position in range(0, len(data) * 8, 1 if size.long else 7):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(wire.WireError):
            unpacked(bytes(damaged), len(frames))


def test_damage_below_the_frames_own_checksum_is_noticed():
    """A sender that lies: the piece's checksum is right, what it expands to is not."""
    inner = bytearray(wire.frame(wire.DATA, b"abc"))
    inner[6] ^= 1
    with pytest.raises(wire.WireError, match="checksum"):
        unpacked(pieces(bytes(inner)))


def pieces(plain):
    data = zlib.compress(plain, 9)
    return b"".join(wire.frame(wire.PACKED, data[at:at + wire.CHUNK]) for at in range(0, len(data), wire.CHUNK))


@pytest.mark.parametrize(
    "plain, why",
    [
        (b"J\xff\xff\xff\xff", "more than"),
        (b"B\x00\x04\x00\x01", "more than"),
        (wire.frame(wire.PACKED, b"x"), "inside"),
        (b"Q\0\0\0\0", "unknown"),
    ],
)
def test_what_is_no_frame_inside_is_refused(plain, why):
    with pytest.raises(wire.WireError, match=why):
        unpacked(pieces(plain + bytes(1000)))


def test_a_bomb_expands_no_further_than_a_frame_may():
    """1 GB of zeros behind the head of a frame that may be as long as that is not."""
    stream = zlib.compressobj(9)
    bomb = stream.compress(b"J\x7f\xff\xff\xff" + bytes(1 << 24))
    for _ in range(60):
        bomb += stream.compress(bytes(1 << 24))
    bomb += stream.flush()
    unpacker = packing.Unpacker(Line(b"".join(wire.frame(wire.PACKED, bomb[at:at + wire.CHUNK])
                                           for at in range(0, len(bomb), wire.CHUNK))).read)
    with pytest.raises(wire.WireError, match="more than"):
        unpacker.frame()
    assert len(unpacker._expanded) < 1 << 20


def test_many_frames_in_a_small_piece_cost_the_memory_of_one():
    line = Line(pieces(wire.frame(wire.DATA, bytes(wire.CHUNK)) * 200))
    assert len(line.data) < wire.CHUNK
    unpacker = packing.Unpacker(line.read)
    for _ in range(200):
        assert unpacker.frame() == (wire.DATA, bytes(wire.CHUNK))
        assert len(unpacker._expanded) < 2 * wire.CHUNK


def test_a_stream_that_says_nothing_holds_nobody_up():
    empty = wire.frame(wire.PACKED, b"\0\0\0\xff\xff")
    unpacker = packing.Unpacker(Line(wire.frame(wire.PACKED, b"\x78\x01") + empty * 5).read)
    for _ in range(6):
        assert unpacker.frame() == (wire.NOTHING, b"")


def test_a_stream_that_ends_is_followed_by_another():
    line = Line(pieces(wire.frame(wire.DATA, b"abc")) + wire.frame(wire.PACKED, b"") + pieces(wire.message("end")))
    assert unpacked(line.data, 2) == [(wire.DATA, b"abc"), (wire.MESSAGE, b'{"m":"end"}')]


@pytest.mark.parametrize("after", [b"more", zlib.compress(wire.frame(wire.DATA, b"abc"))])
def test_nothing_comes_after_the_end_of_a_stream_in_its_last_piece(after):
    with pytest.raises(wire.WireError, match="than there is"):
        unpacked(wire.frame(wire.PACKED, zlib.compress(wire.frame(wire.DATA, b"abc")) + after))


def test_a_stream_does_not_end_in_the_middle_of_a_frame():
    whole = wire.frame(wire.DATA, b"abc")
    with pytest.raises(wire.WireError, match="in the middle"):
        unpacked(pieces(whole[:7]) + pieces(whole[7:]))


# -- how the line does -------------------------------------------------------------------------------------------------


class SlowLine(Line):
    """A line that takes `rate` bytes a second once `buffers` are full. Time is its own, and packing takes some."""

    def __init__(self, rate, buffers=1 << 20):
        super().__init__()
        self.now = self.bytes = 0
        self.becomes(rate, buffers)

    def becomes(self, rate, buffers=1 << 20):
        self.rate, self.buffers, self.since, self.before = rate, buffers, self.now, self.bytes

    def clock(self):
        return self.now

    def write(self, data):
        self.bytes += len(data)
        self.now = max(self.now, self.since + (self.bytes - self.before - self.buffers) / self.rate)
        super().write(data)

    def send(self, packer, payload):
        self.now += len(payload) / 110e6
        packer.send(wire.frame(wire.DATA, payload))


TABLE = b"".join(b"%17.10e " % (number * 0.7310585 % 1) for number in range(3000))


@pytest.mark.parametrize("rate, level", [(1e9, 0), (60e6, 0), (25e6, 1), (12e6, 3), (2e6, 6)])
def test_how_hard_it_packs_is_what_the_line_asks_for(rate, level):
    line = SlowLine(rate)
    packer = packing.Packer(line.write, clock=line.clock)
    for _ in range(400):
        line.send(packer, TABLE)
    packer.flush()
    assert packer._gauge.level == level
    assert line.bytes < 400 * len(TABLE) * (1.01 if level == 0 else 0.62)


def test_a_line_that_becomes_slow_is_packed_for_again():
    line = SlowLine(1e9)
    packer, levels = packing.Packer(line.write, clock=line.clock), []
    for rate in (1e9, 8e6, 1e9):
        line.becomes(rate)
        for _ in range(400):
            line.send(packer, TABLE)
        levels.append(packer._gauge.level)
    packer.flush()
    assert levels == [0, 3, 0]
    assert unpacked(bytes(line.data), 1200) == [(wire.DATA, TABLE)] * 1200


def test_it_packs_where_that_pays_and_not_where_it_does_not():
    text = [(wire.DATA, b"%d some words of an input file\n" % n * 500) for n in range(200)]
    few = bytes(byte % 190 for byte in range(256))  # does not look random, and hardly shrinks
    noise = [(wire.DATA, os.urandom(wire.CHUNK).translate(few)) for _ in range(40)]
    assert over(text) < 0.2 * sum(len(data) for _, data in text)
    assert over(noise) < 1.001 * sum(len(data) for _, data in noise)
    # After noise it tries again, 8 MB later at the latest, and finds that it pays.
    assert sum(len(data) for _, data in text * 8) > 25e6
    assert over(noise + text * 8) < over(noise) + (10 << 20) + 0.2 * 25e6


def over(frames):
    """Bytes that cross a slow line."""
    line = SlowLine(1e6, 0)
    packer = packing.Packer(line.write, clock=line.clock)
    for kind, payload in frames:
        packer.send(wire.frame(kind, payload))
    packer.flush()
    return line.bytes


def test_random_bytes_stay_out_of_the_stream():
    """They would spoil the code of the text around them."""
    frames = [(wire.DATA, os.urandom(12000) if number % 2 else TABLE[:30000]) for number in range(40)]
    bare = sum(len(data) for _, data in frames[1::2])
    together = zlib.compressobj(1)
    spoilt = sum(len(together.compress(data)) for _, data in frames) + len(together.flush())
    data = packed(frames)
    assert len(data) < bare + 0.95 * (spoilt - bare)
    assert unpacked(data, len(frames)) == frames


def test_no_frame_comes_in_the_middle_of_a_packed_one_but_a_sign_of_life():
    stream = zlib.compressobj(1)
    inner = wire.frame(wire.DATA, os.urandom(1000))
    first = stream.compress(inner[:500]) + stream.flush(zlib.Z_SYNC_FLUSH)
    second = stream.compress(inner[500:]) + stream.flush(zlib.Z_SYNC_FLUSH)
    around = wire.frame(wire.PACKED, first), wire.frame(wire.PACKED, second)
    unpacker = packing.Unpacker(Line(around[0] + wire.frame(wire.NOTHING) + around[1]).read)
    assert unpacker.frame() == (wire.NOTHING, b"")
    assert wire.frame(*unpacker.frame()) == inner
    with pytest.raises(wire.WireError, match="in the middle"):
        unpacked(around[0] + wire.message("end") + around[1])
