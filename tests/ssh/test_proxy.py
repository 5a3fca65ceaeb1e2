"""The line that can be cut does it after exactly the byte it was told, and changes nothing but the bit it was told."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ssh.proxy import Proxy

UP_AND_DOWN = pytest.mark.parametrize("up", [True, False], ids=["up", "down"])


class Ends:
    """Both ends of a line through a proxy: what one side sends the other one reads."""

    def __init__(self, proxy: Proxy, listener: socket.socket) -> None:
        self.near = socket.create_connection(("127.0.0.1", proxy.port))
        self.far, _ = listener.accept()
        for end in (self.near, self.far):
            end.settimeout(20)

    def sent(self, data: bytes, up: bool, expected: int | None = None) -> bytes:
        """What arrives of `data` until the line ends, or `expected` bytes are there."""
        source, sink = (self.near, self.far) if up else (self.far, self.near)
        writer = threading.Thread(target=_send, args=(source, data))
        writer.start()
        got = b""
        with contextlib.suppress(ConnectionError):
            while len(got) != expected and (piece := sink.recv(1 << 16)):
                got += piece
        writer.join(20)
        return got


def _send(end: socket.socket, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        end.sendall(data)


@contextlib.contextmanager
def ends(proxy: Proxy, listener: socket.socket) -> Iterator[Ends]:
    made = Ends(proxy, listener)
    try:
        yield made
    finally:
        made.near.close()
        made.far.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@UP_AND_DOWN
@pytest.mark.parametrize("place", [1, 1000, 65536, 200_001])
def test_silence_begins_after_exactly_so_many_bytes(listener: socket.socket, up: bool, place: int) -> None:
    with Proxy(listener.getsockname()[1]) as proxy, ends(proxy, listener) as line:
        data = os.urandom(300_000)
        proxy.when(place, proxy.silence, up=up)
        assert line.sent(data, up, expected=place) == data[:place]
        time.sleep(0.1)
        assert (proxy.bytes_up, proxy.bytes_down) == ((place, 0) if up else (0, place))


@UP_AND_DOWN
def test_nothing_passes_a_cut(listener: socket.socket, up: bool) -> None:
    with Proxy(listener.getsockname()[1]) as proxy:
        for place in (1, 70_000):
            with ends(proxy, listener) as line:
                data = os.urandom(300_000)
                before = proxy.bytes_up if up else proxy.bytes_down
                proxy.when(place, proxy.cut, up=up)
                got = line.sent(data, up)
                # A reset may overtake what the kernel had not handed out yet.
                assert data.startswith(got) and len(got) <= place
                assert (proxy.bytes_up if up else proxy.bytes_down) - before == place


@UP_AND_DOWN
def test_one_bit_of_one_byte_is_flipped(listener: socket.socket, up: bool) -> None:
    with Proxy(listener.getsockname()[1]) as proxy, ends(proxy, listener) as line:
        data = os.urandom(300_000)
        proxy.when(123_456, lambda: proxy.flip(up), up=up)
        got = line.sent(data, up, expected=len(data))
        changed = [place for place in range(len(data)) if got[place] != data[place]]
        assert changed == [123_456]
        assert bin(got[123_456] ^ data[123_456]).count("1") == 1


def test_what_is_forgotten_is_not_done(listener: socket.socket) -> None:
    with Proxy(listener.getsockname()[1]) as proxy, ends(proxy, listener) as line:
        proxy.when(10, proxy.cut)
        proxy.forget()
        assert line.sent(b"x" * 100, True, expected=100) == b"x" * 100


@UP_AND_DOWN
def test_the_rate(listener: socket.socket, up: bool) -> None:
    with Proxy(listener.getsockname()[1], rate=4e6) as proxy, ends(proxy, listener) as line:
        start = time.monotonic()
        line.sent(bytes(4_000_000), up, expected=4_000_000)
        assert time.monotonic() - start > 0.9
