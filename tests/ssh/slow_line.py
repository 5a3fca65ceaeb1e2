"""A long line as a ProxyCommand: delay and rate each way, and how many bytes crossed. Not every kernel has `sch_netem`.

    ProxyCommand python3 slow_line.py --port %p --rtt 0.03 --rate 12.5e6 --count FILE

rtt     seconds of a round trip, half of it each way; 0 adds none
rate    bytes a second each way, 0 for no limit. A piece leaves when the one before it has left, and arrives half a
        round trip later: what is under way does not keep the next piece from leaving, so delay never limits the rate
count   a file that holds two 64-bit numbers, bytes that reached the far side and bytes that came back; `counted` reads

A network's buffer is finite: beyond what is under way, BUFFER bytes wait here, and then the sender does.
"""

import argparse
import mmap
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from pathlib import Path

HOST = "127.0.0.1"
PIECE = 16 << 10  # 1.3 ms at 100 Mbit/s: the grain of the rate
BUFFER = 128 << 10
LONG = 3600.0
TOTALS = struct.Struct("=QQ")


def counted(path: Path) -> tuple[int, int]:
    """(bytes up, bytes down) so far, over every connection that used this file."""
    return TOTALS.unpack(path.read_bytes()[: TOTALS.size])


def new_count(path: Path) -> Path:
    """The file that connections add to, at zero."""
    path.write_bytes(bytes(TOTALS.size))
    return path


class Way:
    """One direction: what was read, when it is due on the other side, and what has not been written."""

    def __init__(self, source: int, sink: int, delay: float, rate: float) -> None:
        self.source, self.sink, self.delay, self.rate = source, sink, delay, rate
        self.limit = BUFFER + int(rate * delay)
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.held = self.done = 0
        self.free = 0.0  # when the last piece has left
        self.ended = False

    def takes(self) -> bool:
        return not self.ended and self.held < self.limit

    def take(self) -> None:
        """Read a piece and say when it arrives. An empty piece is the end, which is delayed like all else."""
        piece = _read(self.source)
        now = time.monotonic()
        self.free = max(now, self.free) + (len(piece) / self.rate if self.rate else 0.0)
        self.waiting.append((self.free + self.delay, piece))
        self.held += len(piece)
        self.ended = not piece

    def due(self) -> float:
        """Seconds until the next piece is to be written; a long time where there is none."""
        return max(0.0, self.waiting[0][0] - time.monotonic()) if self.waiting else LONG

    def forward(self) -> bool:
        """Write what is due; false at the end of this direction, also where nobody reads it any more."""
        while self.waiting and self.waiting[0][0] <= time.monotonic():
            due, piece = self.waiting.popleft()
            if not piece:
                return False
            try:
                sent = os.write(self.sink, piece)
            except BlockingIOError:
                sent = 0
            except OSError:
                return False
            self.held -= sent
            self.done += sent
            if sent < len(piece):
                self.waiting.appendleft((due, piece[sent:]))
                return True
        return True


def _read(source: int) -> bytes:
    try:
        return os.read(source, PIECE)
    except OSError:
        return b""


def _add(counts: "mmap.mmap | None", up: int, down: int) -> None:
    if counts is not None and (up or down):
        before = TOTALS.unpack(counts[: TOTALS.size])
        counts[: TOTALS.size] = TOTALS.pack(before[0] + up, before[1] + down)


def carry(server: socket.socket, delay: float, rate: float, counts: "mmap.mmap | None") -> None:
    """Until one side ends: for ssh either end is the end of the connection."""
    for fd in (0, 1, server.fileno()):
        os.set_blocking(fd, False)
    up, down = ways = (Way(0, server.fileno(), delay, rate), Way(server.fileno(), 1, delay, rate))
    going = True
    while going:
        due = {way: way.due() for way in ways}  # asked once: what falls due between two looks would be waited for
        blocked = [way.sink for way in ways if not due[way]]
        asked = [way for way in ways if way.takes()]
        wait = min(seconds or LONG for seconds in due.values())
        ready = select.select([way.source for way in asked], blocked, [], wait)[0]
        for way in asked:
            if way.source in ready:
                way.take()
        before = up.done, down.done
        going = sum(way.forward() for way in ways) == 2
        _add(counts, up.done - before[0], down.done - before[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rtt", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--count", type=Path)
    asked = parser.parse_args()
    server = socket.socket()
    # Left to itself the kernel takes megabytes ahead of the limit, and a question would wait behind them.
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 << 10)
    server.connect((HOST, asked.port))
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if asked.count is None:
        carry(server, asked.rtt / 2, asked.rate, None)
        return
    with open(asked.count, "r+b") as stream, mmap.mmap(stream.fileno(), TOTALS.size) as counts:
        carry(server, asked.rtt / 2, asked.rate, counts)


if __name__ == "__main__":
    sys.exit(main())
