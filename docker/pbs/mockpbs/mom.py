"""pbs_mom: connects to the server, runs the jobs it is given, kills them when told, reports what became of them."""

import collections
import json
import os
import signal
import socket
import sys
import threading
import time

from . import conf as configuration
from . import session, wire
from .execution import Run
from .moment import log_line


class Mom:
    """One compute host."""

    def __init__(self, conf):
        self.conf = conf
        self.home = conf.home
        for folder in ("mom_priv/jobs", "mom_priv/hooks/tmp", "mom_logs", "spool", "undelivered", "aux"):
            os.makedirs(os.path.join(conf.home, folder), exist_ok=True)
        os.chmod(os.path.join(conf.home, "spool"), 0o1777)
        self.config = read_config(os.path.join(conf.home, "mom_priv", "config"))
        self.environment = configuration.read(os.path.join(conf.home, "pbs_environment"))
        self.lock = threading.RLock()
        # A script still open for writing in one thread while another forks: "Text file busy" for the job.
        self.fork_lock = threading.Lock()
        self.runs = {}
        self.events = collections.OrderedDict()  # number -> event, until the server has acknowledged it
        self.last_event = 0
        self.link = None
        self.delays = {}
        self.hooks = {}
        self.away_until = 0.0

    def log(self, code, kind, name, text):
        with open(os.path.join(self.home, "mom_logs", "log"), "a", encoding="utf-8") as log:
            log.write(log_line(code, "pbs_mom", kind, name, text))

    # the state file of a running job: mom_priv/jobs/<id>.JB

    def state_path(self, number):
        return os.path.join(self.home, "mom_priv", "jobs", number + ".JB")

    def kill_leftovers(self):
        """A plain restart KILLs what ran before, without a chance for a trap, and reports it."""
        folder = os.path.join(self.home, "mom_priv", "jobs")
        for name in sorted(os.listdir(folder)):
            if not name.endswith(".JB"):
                continue
            with open(os.path.join(folder, name), encoding="utf-8") as saved:
                state = json.load(saved)
            if state["session"] and session.start_time(state["session"]) in (state["started"], None):
                session.kill_all(state["session"])
            run = Run(self, state)
            run.clean()
            self.post({"event": "lost", "id": state["id"], "hop": state["hop"]})

    # talking to the server

    def post(self, event):
        """Queued until acknowledged: an obit outlives a server that is down."""
        with self.lock:
            self.last_event += 1
            event["number"] = self.last_event
            self.events[event["number"]] = event
            if self.link:
                try:
                    self.link.send(event)
                except wire.Closed:
                    pass  # sent again after the next connection

    def serve_forever(self):
        while True:
            if time.monotonic() >= self.away_until:
                try:
                    self.serve_once()
                except (wire.Closed, wire.CannotConnect):
                    pass
            with self.lock:
                self.link = None
            time.sleep(0.1)

    def serve_once(self):
        link = wire.connect(*self.conf.address())
        link.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.lock:
            known = set(self.runs) | {(event["id"], event["hop"]) for event in self.events.values()}
        link.send({"verb": "mom", "node": self.conf.host, "ncpus": int(self.config.get("ncpus", "8")),
                   "jobs": sorted(known), "user": "root", "uid": 0, "host": self.conf.host})  # fmt: skip
        welcome = link.receive()
        self.delays, self.hooks = welcome["delays"], welcome["hooks"]
        for number, hop in welcome["discard"]:
            self.discard(number, hop)
        with self.lock:
            self.link = link
            for event in list(self.events.values()):
                link.send(event)
        while time.monotonic() >= self.away_until:
            self.handle(link.receive())
        link.close()

    def discard(self, number, hop):
        """The server gave this run up while we were away: its processes go, and nobody is told."""
        run = self.runs.get((number, hop))
        if run:
            run.abandon()

    def handle(self, message):
        if message["verb"] == "ack":
            with self.lock:
                self.events.pop(message["number"], None)
            return
        getattr(self, "do_" + message["verb"])(message)

    def do_delays(self, message):
        self.delays = message["delays"]

    def do_hooks(self, message):
        self.hooks = message["hooks"]

    def do_run(self, message):
        state = {"id": message["id"], "hop": message["hop"], "job": message["job"], "session": None}
        try:
            run = Run(self, state)
        except KeyError:
            self.refuse(state)
            return
        with self.lock:
            self.runs[message["id"], message["hop"]] = run
        run.start()

    def refuse(self, state):
        """No such user here: the job fails with -1 before anything of it ran."""
        about = {"id": state["id"], "hop": state["hop"]}
        self.post(dict(about, event="obit", exit_status=-1, used=None, jobdir=""))
        self.post(dict(about, event="done", stageout=0))

    def do_kill(self, message):
        run = self.runs.get((message["id"], message["hop"]))
        if run:
            # In a thread of its own: a preterm hook may take its time, and the next order must not wait for it.
            threading.Thread(target=run.kill, args=(message["signal"], message["why"]), daemon=True).start()

    def do_fault(self, message):
        getattr(self, "fault_" + message["fault"])(message["values"])

    # faults

    def fault_kill_all(self, values):
        for run in list(self.runs.values()):
            run.murder()

    def fault_kill_job(self, values):
        for (number, _), run in list(self.runs.items()):
            if number == values["id"]:
                run.murder()

    def fault_vanish(self, values):
        """The host loses the network for some seconds; its jobs don't notice."""
        self.away_until = time.monotonic() + values["seconds"]
        with self.lock:
            if self.link:
                self.link.close()
                self.link = None


def read_config(path):
    """mom_priv/config: `$name value` lines."""
    found = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                words = line.split(None, 1)
                if words and words[0].startswith("$"):
                    found[words[0][1:]] = words[1].strip() if len(words) > 1 else ""
    return found


def main(command, args):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    os.umask(0o022)
    mom = Mom(configuration.load())
    with open(os.path.join(mom.home, "mom_priv", "mom.lock"), "w", encoding="ascii") as pid:
        pid.write("%d\n" % os.getpid())
    mom.kill_leftovers()
    mom.serve_forever()
    return sys.exit(0)
