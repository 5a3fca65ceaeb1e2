"""pbs_server: accepts commands and moms, hands requests to the parts, keeps the scheduler going."""

import os
import signal
import socket
import threading
import time

from . import conf as configuration
from . import jsonwire, wire
from .control import Control
from .errors import Refused
from .faults import Faults
from .lifecycle import Lifecycle
from .nodes import Nodes
from .query import Query
from .queueing import Queueing
from .scheduler import Scheduler
from .table import Table
from .verbs import Verbs

JOB_VERBS = ("delete", "hold", "release", "alter", "rerun", "signal")


class Server:
    """One running server."""

    def __init__(self, conf):
        self.conf = conf
        self.faults = Faults()
        self.table = Table(conf.home, conf.server)
        self.fates = Lifecycle(self.table)
        self.nodes = Nodes(self.table, self.fates)
        self.queueing = Queueing(self.table, self.fates, self.faults)
        self.verbs = Verbs(self.table, self.fates, self.nodes)
        self.query = Query(self.table)
        self.scheduler = Scheduler(self.table, self.fates, self.nodes)
        self.calls = []  # (time, command, user, host, arguments)
        self.listener = None

    def run(self):
        self.recover()
        control = listen("127.0.0.1", self.conf.control_port)
        serve(control, Control(self).session, jsonwire.JsonLink)
        threading.Thread(target=self.schedule, daemon=True).start()
        self.listen_unless_down()

    def recover(self):
        """A restart reruns what is in substate 41, whether rerunable or not: it can't know that it started."""
        with self.table.lock:
            for job in self.table.singles():
                if job.state == "R" and job.substate == 41:
                    self.nodes.kept.add((job.number, job.run_count))
                    self.fates.requeue(job)
            self.table.save()

    def listen_unless_down(self):
        while True:
            self.faults.wait_while("down")
            self.listener = listen(self.conf.values["PBS_BIND"], self.conf.port)
            links = serve(self.listener, self.session, wire.Link)
            while self.faults.get("down") is None:
                with self.faults.lock:
                    self.faults.lock.wait(0.2)
            close(self.listener)
            for link in list(links):
                link.close()

    def schedule(self):
        while True:
            self.faults.wait_while("hung")
            away = self.faults.get("down") is not None
            self.faults.wait_while("down")
            with self.table.lock:
                if away:
                    self.nodes.wait_anew()
                self.scheduler.cycle()
                if self.conf.dialect == "torque":
                    self.forget_completed()
                self.table.changed.wait(0.25)

    def forget_completed(self):
        old = time.time() - self.table.settings.server["keep_completed"]
        for job in self.table.all():
            if job.state == "F" and not job.parent and job.history < old:
                self.table.forget(job)
        self.table.save()

    # one connection

    def session(self, link):
        try:
            hello = link.receive()
            self.faults.wait_while("hung")
            if hello["verb"] == "mom":
                return self.mom_session(link, hello)
            self.note(hello)
            link.send({"version": "23.06.06"})
            while True:
                request = link.receive()
                if not self.answer(link, request, hello):
                    return None
        except (wire.Closed, ValueError):
            return None

    def note(self, hello):
        self.calls.append((time.time(), hello["command"], hello["user"], hello["host"], hello.get("args", [])))

    def answer(self, link, request, caller):
        """False when the connection is to be dropped without an answer."""
        if request["verb"] == "note":
            self.note(request)
            caller.update(command=request["command"])
        self.faults.wait_while("hung")
        if request["verb"] == "submit":
            late = self.faults.before_submission()
            if late is not None:
                if late.get("drop"):
                    threading.Thread(target=self.submit_later, args=(late, request, caller), daemon=True).start()
                    return False
                self.faults.wait_for_accept(late)
        answer = self.carry_out(request, caller)
        if request["verb"] == "submit" and "id" in answer and self.faults.reply_is_lost():
            return False
        link.send(answer)
        return True

    def submit_later(self, late, request, caller):
        self.faults.wait_for_accept(late)
        self.carry_out(request, caller)

    def carry_out(self, request, caller):
        with self.table.lock:
            try:
                return self.dispatch(request, caller) or {}
            except Refused as no:
                return {"error": no.number, "text": no.text}
            except ValueError as wrong:
                return {"error": 15014, "text": "Illegal attribute or resource value %s" % wrong}
            finally:
                self.table.save()

    def dispatch(self, request, caller):
        verb = request["verb"]
        if verb == "submit":
            return self.queueing.submit(request, caller)
        if verb in JOB_VERBS:
            return getattr(self.verbs, verb)(request["id"], caller, request)
        if verb in ("status", "select"):
            if self.faults.answer_is_empty(caller["command"]):
                return {"jobs": [], "ids": []}
            return getattr(self.query, verb)(request)
        return self.query.server() if verb == "server" else {}

    # moms

    def mom_session(self, link, hello):
        with self.table.lock:
            node = self.nodes.arrive(hello, link)
            self.table.save()
        try:
            while True:
                event = link.receive()
                self.faults.wait_while("hung")
                with self.table.lock:
                    if event.get("event"):
                        self.nodes.event(node, event)
                        self.table.save()
                    link.send({"verb": "ack", "number": event["number"]})
        except wire.Closed:
            with self.table.lock:
                self.nodes.leave(node, link)


def listen(address, port):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    sock.listen(256)
    return sock


def serve(listener, session, kind):
    """Accepts in the background, one thread and one link of this kind a connection, until the listener is closed;
    returns the live links."""
    links = set()

    def one(link):
        try:
            session(link)
        finally:
            links.discard(link)
            link.close()

    def accept():
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = kind(sock)
            links.add(link)
            threading.Thread(target=one, args=(link,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return links


def close(listener):
    # A close alone leaves the thread in accept() listening for one more connection.
    try:
        listener.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    listener.close()


def main(command, args):
    os.umask(0o022)
    server = Server(configuration.load())
    if server.conf.dialect == "torque":
        from . import torque

        torque.serve()

    def quick(*_):
        server.table.shut_down()
        os._exit(0)

    signal.signal(signal.SIGTERM, quick)
    with open(os.path.join(server.conf.home, "server_priv", "server.lock"), "w", encoding="ascii") as pid:
        pid.write("%d\n" % os.getpid())
    server.run()
    return 0
