"""The control port's messages: one JSON object a line, for tests and whoever looks in by hand."""

import json

from . import wire


class JsonLink(wire.Link):
    """A connection to the control port, of either side."""

    def pack(self, message):
        return json.dumps(message).encode("ascii") + b"\n"

    def end(self):
        return self.buffer.find(b"\n") + 1

    def unpack(self, data):
        return json.loads(data)


def connect(host, port):
    """A JsonLink to host:port. Raises wire.CannotConnect."""
    return JsonLink(wire.dial(host, port))
