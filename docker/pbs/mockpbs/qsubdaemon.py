"""The background qsub: keeps the first one's connection for a minute and submits for the later ones.

It inherits every descriptor but 0, 1 and 2 and keeps them: a lock held on one stays held (measured, 61 s)."""

import _socket
import os
import pwd
import select
import time

from . import wire
from .client import Lost
from .errors import Refused
from .qsuboptions import Failure


def socket_path(conf):
    return os.path.join(conf.tmpdir, ".pbs_qsub_%d_%s_%d" % (os.getuid(), conf.server, conf.port))


def ask(conf, request):
    """The answer through a daemon that is already there; None if there is none."""
    if os.environ.get("PBS_SERVER"):
        return None
    sock = _socket.socket(_socket.AF_UNIX)
    try:
        sock.connect(socket_path(conf))
    except OSError:
        sock.close()
        return None
    link = wire.Link(sock)
    try:
        answer = link.ask(request)
    except wire.Closed:
        # The daemon ended over it: whether the server has the job nobody knows.
        raise Failure(255, "Failed to recv data from background qsub") from None
    finally:
        link.close()
    return None if answer.get("stale") else answer


def leave_behind(client):
    """Forks the daemon off a qsub that has done its work. The parent goes on; the child never returns."""
    conf = client.conf
    if client.link is None or conf.daemon_seconds <= 0:
        return
    try:
        listener = _socket.socket(_socket.AF_UNIX)
        path = socket_path(conf)
        if os.path.exists(path):
            os.unlink(path)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(64)
    except OSError:
        return
    if os.fork():
        listener.close()
        return
    os.setsid()
    detach_stdio(client)
    try:
        serve(client, listener, path)
    finally:
        os._exit(0)


def detach_stdio(client):
    """Closes 1 and 2 and replaces 0; all else that was inherited stays open."""
    os.dup2(client.link.sock.fileno(), 0)
    os.close(1)
    os.close(2)


def serve(client, listener, path):
    import socket  # only here, where nobody waits: 8 ms

    listener = socket.socket(fileno=listener.detach())
    inode = os.stat(path).st_ino
    until = time.monotonic() + client.conf.daemon_seconds
    while True:
        readable, _, _ = select.select([listener, client.link.sock], [], [], max(0, until - time.monotonic()))
        if listener in readable:
            sock, _ = listener.accept()
            if not one_submission(client, wire.Link(sock)):
                break
            until = time.monotonic() + client.conf.daemon_seconds
        else:
            break  # nobody came for a minute, or the server went away
    try:
        if os.stat(path).st_ino == inode:
            os.unlink(path)
    except OSError:
        pass


def one_submission(client, link):
    """False when the daemon has to end. A client that was killed meanwhile changes nothing: its job is submitted."""
    try:
        request = link.receive()
    except wire.Closed:
        return True
    if server_gone(client):
        reply(link, {"stale": True})
        return False
    try:
        os.chdir(request["cwd"])  # removed: the daemon dies of it and its client gets 255
    except OSError:
        link.close()
        return False
    try:
        client.request({"verb": "note", "command": "qsub", "user": request_user(), "host": client.conf.host,
                        "args": request["arguments"].split()})  # fmt: skip
        reply(link, client.request(request))
    except Refused as no:
        reply(link, {"error": no.number, "text": no.text})
    except Lost as lost:
        reply(link, {"lost": lost.words})
        return False
    return True


def request_user():
    return pwd.getpwuid(os.getuid()).pw_name


def server_gone(client):
    readable, _, _ = select.select([client.link.sock], [], [], 0)
    return bool(readable)


def reply(link, answer):
    try:
        link.send(answer)
    except wire.Closed:
        pass
    link.close()
