"""Runs on the login host: every 50 ms a look at the PBS server's own table, through its control port, and at what the
payloads leave on the shared home. One JSON line a look, until stdin is closed.

    t        when
    running  payloads between their two notes
    over     payloads that noted their end, since the first look
    started  the notes of starts since the last look, each as its words

    alive    payloads whose lock is held: they, or what they left running, are there
    scripts  that wait in the spool
    settled  jobs that have ended by the relay's own account

    and while a server is there:
    waiting  jobs in Q, H or W
    fresh    those of them that never ran: PBS may queue again what did
    held     those of them under a hold, no heartbeat
    free     jobs in Q or R, no heartbeat: they run, or may at any moment
    ending   jobs in R or E; PBS counts them until F
    live     all of these
    flags    of those in R or E, how many have written their flag: their payload is over
    calls    [when, command and arguments] of each call of a command since the last look

Arguments: the file of notes, the root, the folder of the payloads' locks ("" for none).
"""

import fcntl
import json
import os
import select
import sys
import time

sys.path.insert(0, "/opt/pbs")
from mockpbs import conf, jsonwire, wire  # noqa: E402

EVERY = 0.05


class Notes:
    """The lines that payloads add to one file: `start N when ...`, `end N when ...`."""

    def __init__(self, path):
        self.path, self.offset = path, 0
        self.count = {b"start": 0, b"end": 0}
        self.unended = {}  # N -> whether it may be alive

    def read(self):
        """The notes since the last time, as words. One read tells of one instant: none is counted too many."""
        try:
            with open(self.path, "rb") as stream:
                stream.seek(self.offset)
                text = stream.read()
        except FileNotFoundError:
            text = b""
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        notes = [line.split() for line in whole.splitlines()]
        for kind, number, *_ in notes:
            self.count[kind] += 1
            self.unended[number] = kind == b"start"
        return notes

    def alive(self, locks):
        """Payloads whose lock is held. A lock that was seen free is not taken again but by another start."""
        for number in [number for number, may_live in self.unended.items() if may_live] if locks else []:
            self.unended[number] = is_held(os.path.join(locks.encode(), number))
        return sum(self.unended.values())


def is_held(path):
    with open(path, "rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class Flags:
    """Which jobs have written their flag: flag.<token>.1 beside claim.<token>, which is there since the job began."""

    def __init__(self, work):
        self.work, self.folders = work, {}

    def written(self, job):
        token = dict(job["variables"]).get("CHASQUI_TOKEN", "")
        folder = self.folders.get(token) or self.find(token)
        return bool(folder) and os.path.exists("%s/flag.%s.1" % (folder, token))

    def find(self, token):
        for name in os.listdir(self.work):
            meta = "%s/%s/.chasqui" % (self.work, name)
            if os.path.lexists("%s/claim.%s" % (meta, token)):
                self.folders[token] = meta
                return meta
        return ""


class Server:
    """The server's control port, also after a restart."""

    def __init__(self):
        self.port, self.link, self.since = conf.load().control_port, None, time.time()

    def ask(self, request):
        """Its answer, None where no server is there."""
        try:
            self.link = self.link or jsonwire.connect("127.0.0.1", self.port)
            return self.link.ask(request)["ok"]
        except (wire.Closed, wire.CannotConnect):
            self.link = None
            return None

    def calls(self):
        """Calls of commands since the last time. A restarted server does not know the older ones."""
        calls = [call for call in self.ask({"verb": "calls", "since": self.since}) or [] if call[0] > self.since]
        self.since = max([call[0] for call in calls], default=self.since)
        return [[call[0], " ".join([call[1], *call[4]])[:100]] for call in calls]


def count_scripts(root):
    return sum(name.endswith(".sh") for _, _, names in os.walk(root + "/waiting") for name in names)


def count_settled(root):
    places = [root + "/" + place for place in ("completed", "rejected", "cancelled", "blocked")]
    return sum(name.endswith((".flag", ".sh")) for place in places for _, _, names in os.walk(place) for name in names)


def look(server, notes, flags, root, locks):
    jobs = server.ask({"verb": "table", "live": True})  # first: what is looked at later can only make fewer of them
    news = notes.read()
    seen = {
        "t": time.time(),
        "running": notes.count[b"start"] - notes.count[b"end"],
        "over": notes.count[b"end"],
        "started": [[word.decode() for word in words] for words in news if words[0] == b"start"],
        "alive": notes.alive(locks),
        "scripts": count_scripts(root),
        "settled": count_settled(root),
    }
    return seen if jobs is None else dict(seen, calls=server.calls(), **count(jobs, flags))


def count(jobs, flags):
    waiting = [job for job in jobs if job["state"] in "QHW"]
    ending = [job for job in jobs if job["state"] in "RE"]
    own = [job["state"] for job in jobs if not job["name"].startswith("beat.")]
    return {
        "waiting": len(waiting),
        "fresh": sum(not job["run_count"] for job in waiting),
        "held": own.count("H"),
        "free": own.count("Q") + own.count("R"),
        "ending": len(ending),
        "live": len(jobs),
        "flags": sum(flags.written(job) for job in ending),
    }


def main(notes, root, locks):
    server, notes, flags = Server(), Notes(notes), Flags(root + "/work")
    while not select.select([sys.stdin], [], [], EVERY)[0]:
        print(json.dumps(look(server, notes, flags, root, locks)), flush=True)


main(*sys.argv[1:])
