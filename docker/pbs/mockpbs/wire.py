"""One JSON object a line over a stream socket, between commands, server and moms."""

import errno
import json
import socket

from .errors import CANNOT_CONNECT, COMMUNICATION, UNKNOWN_HOST


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
            self.sock.sendall(json.dumps(message).encode("ascii") + b"\n")
        except OSError as broken:
            raise Closed() from broken

    def receive(self):
        while b"\n" not in self.buffer:
            try:
                chunk = self.sock.recv(65536)
            except OSError as broken:
                raise Closed(bool(self.buffer)) from broken
            if not chunk:
                raise Closed(bool(self.buffer))
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def ask(self, message):
        self.send(message)
        return self.receive()

    def close(self):
        # shutdown first: another thread may sit in recv() on the same socket, which a mere close would leave there.
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()


def connect(host, port):
    """A Link to host:port. Raises CannotConnect as PBS words it; waits without limit for a server that hangs."""
    try:
        return Link(socket.create_connection((host, port)))
    except socket.gaierror as unknown:
        raise CannotConnect(UNKNOWN_HOST, "Unknown Host.") from unknown
    except OSError as failed:
        if failed.errno == errno.ECONNREFUSED:
            raise CannotConnect(CANNOT_CONNECT, "Connection refused") from failed
        raise CannotConnect(COMMUNICATION, "Communication failure.") from failed
