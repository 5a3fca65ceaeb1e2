"""What commands, server and moms send each other over a stream socket: whole messages of None, bool, int, float, str,
list, tuple and dict.

A command of PBS takes a few milliseconds, a bare Python 7; `import socket` costs 8 more, `import json` 9. Hence the C
part of the socket module alone, and marshal, which every interpreter has inside."""

import _socket
import errno
import marshal

from .errors import CANNOT_CONNECT, COMMUNICATION, UNKNOWN_HOST

EVERY_PYTHON_READS = 2  # marshal's version: 3 and 4 save space, and not every Python 3 knows what comes after them
LENGTH = 4  # bytes, big-endian, before each message


class Closed(Exception):
    """The other side went away; `partial` is whether it did so in the middle of a message."""

    def __init__(self, partial=False):
        self.partial = partial
        super().__init__("closed")


class CannotConnect(Exception):
    """No connection; `number` is the PBS error, `words` the line the library prints first."""

    def __init__(self, number, words):
        self.number, self.words = number, words
        super().__init__(number, words)


class Link:
    """A connection that carries whole messages."""

    def __init__(self, sock):
        self.sock = sock
        self.buffer = b""

    def send(self, message):
        try:
            self.sock.sendall(self.pack(message))
        except OSError as broken:
            raise Closed() from broken

    def receive(self):
        """The next message. Raises Closed, and ValueError for what is none."""
        while not self.end():
            try:
                chunk = self.sock.recv(65536)
            except OSError as broken:
                raise Closed(bool(self.buffer)) from broken
            if not chunk:
                raise Closed(bool(self.buffer))
            self.buffer += chunk
        end = self.end()
        data, self.buffer = self.buffer[:end], self.buffer[end:]
        return self.unpack(data)

    def ask(self, message):
        self.send(message)
        return self.receive()

    def close(self):
        # shutdown first: another thread may sit in recv() on the same socket, which a mere close would leave there.
        try:
            self.sock.shutdown(_socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()

    # the form of a message

    def pack(self, message):
        data = marshal.dumps(message, EVERY_PYTHON_READS)
        return len(data).to_bytes(LENGTH, "big") + data

    def end(self):
        """Where the first message of the buffer ends, 0 while it is not all there."""
        end = LENGTH + int.from_bytes(self.buffer[:LENGTH], "big")
        return end if end <= len(self.buffer) else 0

    def unpack(self, data):
        try:
            return marshal.loads(data[LENGTH:])
        except (EOFError, TypeError) as wrong:
            raise ValueError("no message") from wrong


def connect(host, port):
    """A Link to host:port. Raises CannotConnect as PBS words it; waits without limit for a server that hangs."""
    return Link(dial(host, port))


def dial(host, port):
    """A socket that is connected to host:port. Raises CannotConnect."""
    try:
        return first_that_answers(host, port)
    except _socket.gaierror as unknown:
        raise CannotConnect(UNKNOWN_HOST, "Unknown Host.") from unknown
    except OSError as failed:
        if failed.errno == errno.ECONNREFUSED:
            raise CannotConnect(CANNOT_CONNECT, "Connection refused") from failed
        raise CannotConnect(COMMUNICATION, "Communication failure.") from failed


def first_that_answers(host, port):
    """A socket to one of the host's addresses. Raises OSError, the last one's."""
    last = OSError("no address")
    # The name as bytes: for text, getaddrinfo imports encodings.idna, 3 ms.
    for family, kind, protocol, _, address in _socket.getaddrinfo(host.encode(), port, 0, _socket.SOCK_STREAM):
        sock = _socket.socket(family, kind, protocol)
        try:
            sock.connect(address)
            return sock
        except OSError as failed:
            sock.close()
            last = failed
    raise last
