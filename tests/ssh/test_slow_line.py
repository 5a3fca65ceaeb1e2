"""The bench's long line has the delay and the rate it is asked for, both ways at once, and counts what crosses."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ssh import slow_line

LINE = Path(slow_line.__file__)
RTT, RATE = 0.03, 12.5e6
MB = 1 << 20


@contextlib.contextmanager
def served(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server for one connection; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: answer(listener.accept()[0]))
        thread.start()
        yield listener.getsockname()[1]
        thread.join(30)


@contextlib.contextmanager
def line(port: int, *more: str) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, str(LINE), "--port", str(port), *more]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        yield process
        if process.stdin and not process.stdin.closed:
            process.stdin.close()
        process.wait(20)


def echo(sock: socket.socket) -> None:
    with sock:
        while data := sock.recv(65536):
            sock.sendall(data)


def swallow(sock: socket.socket) -> None:
    """Says OK after each MB that arrived."""
    got = 0
    with sock:
        while data := sock.recv(1 << 18):
            for _ in range((got + len(data)) // MB - got // MB):
                sock.sendall(b"k")
            got += len(data)


def pour(sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError):
        while True:
            sock.sendall(bytes(65536))


def exactly(fd: int, count: int) -> bytes:
    got = b""
    while len(got) < count:
        piece = os.read(fd, min(1 << 18, count - len(got)))
        assert piece
        got += piece
    return got


def best(times: list[float]) -> float:
    """A machine that is busy adds to a time and never takes away from it."""
    return min(times)


def within_a_tenth(value: float, wanted: float) -> None:
    assert 0.9 * wanted <= value <= 1.1 * wanted, (value, wanted)


def test_the_round_trip() -> None:
    with served(echo) as port, line(port, "--rtt", str(RTT)) as process:
        taken = []
        for _ in range(20):
            start = time.monotonic()
            process.stdin.write(b"?")
            exactly(process.stdout.fileno(), 1)
            taken.append(time.monotonic() - start)
    print(f"round trip {best(taken) * 1000:.2f} ms at best")
    within_a_tenth(best(taken[1:]), RTT)


@pytest.mark.parametrize("rtt", [0.0, RTT, 10 * RTT])
def test_the_rate_up_whatever_the_delay(rtt: float) -> None:
    with served(swallow) as port, line(port, "--rtt", str(rtt), "--rate", str(RATE)) as process:
        out = process.stdout.fileno()
        writer = threading.Thread(target=write_all, args=(process.stdin.fileno(), 12 * MB))
        writer.start()
        exactly(out, 2)
        times = [time.monotonic()]
        for _ in range(10):
            exactly(out, 1)
            times.append(time.monotonic())
        writer.join(20)
    rate = 10 * MB / (times[-1] - times[0])
    print(f"{rate / 1e6:.2f} MB/s up at {rtt * 1000:.0f} ms")
    within_a_tenth(rate, RATE)


def write_all(fd: int, count: int) -> None:
    left = memoryview(bytes(count))
    while left:
        left = left[os.write(fd, left[: 1 << 16]) :]


@pytest.mark.parametrize("rtt", [0.0, RTT])
def test_the_rate_down_while_as_much_goes_up(rtt: float) -> None:
    def both(sock: socket.socket) -> None:
        reader = threading.Thread(target=drain, args=(sock,))
        reader.start()
        pour(sock)
        reader.join(20)

    with served(both) as port, line(port, "--rtt", str(rtt), "--rate", str(RATE)) as process:
        writer = threading.Thread(target=write_all, args=(process.stdin.fileno(), 8 * MB))
        writer.start()
        out = process.stdout.fileno()
        exactly(out, MB)
        start = time.monotonic()
        exactly(out, 8 * MB)
        rate = 8 * MB / (time.monotonic() - start)
        writer.join(20)
        process.stdout.close()
    print(f"{rate / 1e6:.2f} MB/s down")
    within_a_tenth(rate, RATE)


def drain(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(1 << 18):
            pass


def test_it_counts_and_changes_nothing(tmp_path: Path) -> None:
    counts = slow_line.new_count(tmp_path / "counts")
    sent = os.urandom(300_000)
    for number in (1, 2):
        with served(echo) as port, line(port, "--count", str(counts)) as process:
            writer = threading.Thread(target=process.stdin.write, args=(sent[:50_000],))
            writer.start()
            assert exactly(process.stdout.fileno(), 50_000) == sent[:50_000]
            writer.join(10)
        assert slow_line.counted(counts) == (50_000 * number, 50_000 * number)
