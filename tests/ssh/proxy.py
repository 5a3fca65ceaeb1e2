"""A TCP line on loopback that does what networks do: delay, fall silent, break."""

import contextlib
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

PIECE = 64 << 10
BACKLOG = 1 << 20  # bytes held for a slow side before the fast one is no longer read


@dataclass(eq=False)
class _Way:
    """One direction of one connection: what came in, when, and has not gone out."""

    source: socket.socket
    sink: socket.socket
    up: bool
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    held: int = 0
    free: float = 0.0  # when the last piece has left
    ended: bool = False


class Proxy:
    """Forwards to 127.0.0.1:`target` from `port`. Methods work at once, on connections that stand and on new ones.

    delay            seconds that every byte takes, each way (half of a round trip)
    rate             bytes a second each way, 0 for no limit
    bytes_up/_down   forwarded so far, from and to the one who connected
    silence()        nothing passes any more, and nobody is told: what a lost network looks like
    resume()         ends the silence; what was held passes now
    cut()            closes every connection, as a reset; refuse=True: new ones too, until resume()
    when(n, action)  calls `action` once, when exactly n bytes went up (up=False: down) from now on: the next one waits
    flip()           one bit of the next byte up (up=False: down) is another one on the other side
    forget()         drops what `when` has been told and has not done
    """

    def __init__(self, target: int, delay: float = 0.0, rate: float = 0.0) -> None:
        self.target, self.delay, self.rate = target, delay, rate
        self.bytes_up = self.bytes_down = self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._silent = self._refuse = self._stopped = False
        self._cut_asked = False
        self._ways: list[_Way] = []
        self._triggers: list[tuple[bool, int, Callable[[], None]]] = []
        self._flips = {True: False, False: False}
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._thread.join(10)

    def silence(self) -> None:
        self._silent = True

    def resume(self) -> None:
        self._silent = self._refuse = False

    def cut(self, refuse: bool = False) -> None:
        self._refuse = refuse
        self._cut_asked = True
        end = time.monotonic() + 5
        on_own_thread = threading.current_thread() is self._thread  # called by a trigger: the loop does it next
        while self._cut_asked and not on_own_thread and time.monotonic() < end:
            time.sleep(0.002)

    def when(self, count: int, action: Callable[[], None], up: bool = True) -> None:
        self._triggers.append((up, count + (self.bytes_up if up else self.bytes_down), action))

    def flip(self, up: bool = True) -> None:
        self._flips[up] = True

    def forget(self) -> None:
        self._triggers = []
        self._flips = {True: False, False: False}

    # -- the loop; only the thread touches sockets

    def _run(self) -> None:
        while not self._stopped:
            if self._cut_asked:
                self._close_all()
                self._cut_asked = False
            self._wait()
            if not self._silent:
                for way in list(self._ways):
                    self._forward(way)
            self._fire()
        self._close_all()
        self._listener.close()

    def _wait(self) -> None:
        """Until something can be read, at most 5 ms while bytes are under way and 20 ms otherwise."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            for way in self._ways:
                if not way.ended and way.held < BACKLOG and not self._silent:
                    selector.register(way.source, selectors.EVENT_READ, way)
            busy = any(way.waiting for way in self._ways)
            for key, _ in selector.select(0.005 if busy or self._silent else 0.02):
                self._accept() if key.data is None else self._take(key.data)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self._refuse:
            _reset(client)
            return
        server = socket.create_connection(("127.0.0.1", self.target), 5)
        self.connections += 1
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ways += [_Way(client, server, True), _Way(server, client, False)]

    def _take(self, way: _Way) -> None:
        try:
            piece = way.source.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        way.ended = not piece
        way.held += len(piece)
        way.free = max(time.monotonic(), way.free) + (len(piece) / self.rate if self.rate else 0.0)
        way.waiting.append((way.free + self.delay, piece))

    def _forward(self, way: _Way) -> None:
        """Send what is due. An empty piece is the end of this direction."""
        while way.waiting and way.waiting[0][0] <= time.monotonic() and not (self._silent or self._cut_asked):
            due, piece = way.waiting.popleft()
            if not piece:
                with contextlib.suppress(OSError):
                    way.sink.shutdown(socket.SHUT_WR)
                self._drop_finished(way)
                return
            piece = self._flipped(way, piece)
            try:
                sent = way.sink.send(piece[: self._until_next(way.up)])
            except BlockingIOError:
                sent = 0
            except OSError:
                way.held -= len(piece)  # nobody reads it any more; the other direction notices
                continue
            self._count(way, sent)
            if sent < len(piece):
                way.waiting.appendleft((due, piece[sent:]))
            self._fire()
            if not sent:
                return

    def _flipped(self, way: _Way, piece: bytes) -> bytes:
        if not self._flips[way.up]:
            return piece
        self._flips[way.up] = False
        return bytes([piece[0] ^ 1]) + piece[1:]

    def _until_next(self, up: bool) -> int:
        """Bytes that may pass before something is to be done."""
        passed = self.bytes_up if up else self.bytes_down
        return min((max(1, count - passed) for way_up, count, _ in self._triggers if way_up == up), default=PIECE)

    def _count(self, way: _Way, sent: int) -> None:
        way.held -= sent
        if way.up:
            self.bytes_up += sent
        else:
            self.bytes_down += sent

    def _drop_finished(self, way: _Way) -> None:
        pair = [other for other in self._ways if {other.source, other.sink} == {way.source, way.sink}]
        if all(other.ended and not other.waiting for other in pair):
            self._ways = [other for other in self._ways if other not in pair]
            way.source.close()
            way.sink.close()

    def _fire(self) -> None:
        for trigger in list(self._triggers):
            up, count, action = trigger
            if (self.bytes_up if up else self.bytes_down) >= count and trigger in self._triggers:
                self._triggers.remove(trigger)
                action()

    def _close_all(self) -> None:
        for way in self._ways:
            _reset(way.source)
            _reset(way.sink)
        self._ways = []


def _reset(end: socket.socket) -> None:
    """Close with a reset, as a router does that forgot the connection."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    end.close()
