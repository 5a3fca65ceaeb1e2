"""Runs on the login host: every 50 ms a look at the PBS server's own table, through its control port, and at the
payloads' notes on the shared home. One JSON line a look, until stdin is closed.

    t        when
    running  payloads between their two notes
    waiting  jobs in Q, H or W
    ending   jobs in R or E; PBS counts them until F
    live     all of these
    flags    of those in R or E, how many have written their flag: their payload is over
    over     payloads that noted their end, since the first look

Arguments: the file of notes, the folder of the work folders.
"""

import json
import os
import select
import sys
import time

sys.path.insert(0, "/opt/pbs")
from mockpbs import conf, jsonwire  # noqa: E402

EVERY = 0.05


class Notes:
    """The lines that payloads add to one file: `start N when`, `end N when`."""

    def __init__(self, path):
        self.path, self.offset = path, 0
        self.count = {b"start": 0, b"end": 0}

    def read(self):
        """(payloads running, payloads over). One read tells of one instant: none is counted too many."""
        try:
            with open(self.path, "rb") as stream:
                stream.seek(self.offset)
                text = stream.read()
        except FileNotFoundError:
            text = b""
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            self.count[line.split()[0]] += 1
        return self.count[b"start"] - self.count[b"end"], self.count[b"end"]


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


def look(server, notes, flags):
    jobs = [job for job in server.ask({"verb": "table"})["ok"] if job["state"] != "F"]
    running, over = notes.read()
    ending = [job for job in jobs if job["state"] in "RE"]
    return {
        "t": time.time(),
        "running": running,
        "waiting": sum(job["state"] in "QHW" for job in jobs),
        "ending": len(ending),
        "live": len(jobs),
        "flags": sum(flags.written(job) for job in ending),
        "over": over,
    }


def main(notes, work):
    server = jsonwire.connect("127.0.0.1", conf.load().control_port)
    notes, flags = Notes(notes), Flags(work)
    while not select.select([sys.stdin], [], [], EVERY)[0]:
        print(json.dumps(look(server, notes, flags)), flush=True)


main(*sys.argv[1:])
