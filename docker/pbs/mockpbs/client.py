"""What every command shares: who calls, the connection to the server, one request and its answer."""

import os
import pwd
import sys

from . import conf as configuration
from . import errors, wire

VERSION_LINE = "pbs_version = 23.06.06\n"


class Lost(Exception):
    """The connection died after the request was sent: the server may have carried it out."""

    def __init__(self, words):
        self.words = words
        super().__init__(words)


class Client:
    """One command's connection to a server."""

    def __init__(self, command, conf=None, server=None):
        self.command = command
        self.conf = conf or configuration.load()
        self.server = server or self.conf.server
        self.link = None

    def connect(self):
        self.link = wire.connect(*self.conf.address(self.server))
        hello = dict(identity(self.conf), verb="hello", command=self.command, args=sys.argv[2:])
        return self.request(hello)

    def request(self, message):
        """The server's answer. Raises errors.Refused, or Lost where nobody knows whether it was done."""
        try:
            answer = self.link.ask(message)
        except wire.Closed as closed:
            # Both wordings were seen when the server was killed in a burst of submissions.
            raise Lost("Premature end of message" if closed.partial else "End of File") from closed
        if "error" in answer:
            raise errors.Refused(answer["error"], answer["text"])
        return answer

    def close(self):
        if self.link:
            self.link.close()


def identity(conf):
    uid = os.getuid()
    return {"uid": uid, "gid": os.getgid(), "user": pwd.getpwuid(uid).pw_name, "host": conf.host}


def complain(command, text):
    sys.stdout.flush()
    sys.stderr.write("%s: %s\n" % (command, text))


def say_unreachable(command, server, failed):
    sys.stdout.flush()
    sys.stderr.write(failed.words + "\n")
    complain(command, "cannot connect to server %s (errno=%d)" % (server, failed.number))
