"""The server's jobs: in memory, each with its file, which outlives the server."""

import json
import os
import re
import threading

from . import errors
from .errors import Refused
from .job import Job
from .settings import Settings

ID = re.compile(r"^(\d+)(\[(\d*)\])?$")


class Table:
    """Every job the server knows. Touch it only under `lock`; `changed` wakes the scheduler."""

    def __init__(self, home, server_name):
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.folder = os.path.join(home, "server_priv", "jobs")
        os.makedirs(self.folder, mode=0o750, exist_ok=True)
        self.settings = Settings(os.path.join(home, "server_priv", "settings.json"))
        self.server_name = Job.server_name = server_name
        self.jobs = {}
        self.dirty = {}
        self.next_path = os.path.join(home, "server_priv", "next")
        self.next = 1
        self.running_path = os.path.join(home, "server_priv", "running")
        self.load()
        write(self.running_path, "")

    # files: one JSON object a job, jobs/<id>; `next` holds the next sequence number

    def load(self):
        for name in os.listdir(self.folder):
            if name.endswith(".new"):
                continue
            with open(os.path.join(self.folder, name), encoding="utf-8") as saved:
                job = Job(**json.load(saved))
            self.jobs[job.number] = job
        self.jobs = dict(sorted(self.jobs.items(), key=lambda item: order(item[1])))
        for job in self.jobs.values():
            if job.array:
                job.elements = [other for other in self.jobs.values() if other.parent == job.number]
        if os.path.exists(self.next_path):
            with open(self.next_path, encoding="ascii") as saved:
                self.next = int(saved.read())
        if os.path.exists(self.running_path):
            # Not shut down: PBS writes down only every thousandth number, and goes on there (10528, then 11000).
            self.next = -(-self.next // 1000) * 1000

    def shut_down(self):
        """What a restart finds when the server was ended in order."""
        with self.lock:
            self.save()
            os.unlink(self.running_path)

    def save(self):
        """Before any answer leaves: an id that was printed is never lost."""
        for number, job in self.dirty.items():
            path = os.path.join(self.folder, number)
            if job is None:
                if os.path.exists(path):
                    os.unlink(path)
                continue
            write(path, json.dumps(job.dump()))
        if self.dirty:
            self.changed.notify_all()
        self.dirty = {}

    def take_number(self):
        """The next sequence number; a refused submission uses one up too."""
        number, self.next = self.next, self.next + 1
        write(self.next_path, str(self.next))
        return number

    def add(self, job):
        self.jobs[job.number] = job
        self.mark(job)

    def mark(self, job):
        job.touch()
        self.dirty[job.number] = job

    def forget(self, job):
        for one in [job] + list(job.elements):
            self.jobs.pop(one.number, None)
            self.dirty[one.number] = None

    # looking up

    def find(self, number):
        """The job of 12, 12[] or 12[3]; raises Refused for one the server does not know."""
        job = self.jobs.get(number)
        if job is None:
            raise Refused(errors.UNKNOWN_JOB)
        return job

    def known(self, number):
        """find(), refusing what has finished: 15139, or unknown where no history is kept."""
        job = self.find(number)
        if job.state == "F":
            raise Refused(errors.FINISHED if self.settings.server["job_history_enable"] else errors.UNKNOWN_JOB)
        return job

    def singles(self):
        return [job for job in self.jobs.values() if not job.array]

    def all(self):
        return list(self.jobs.values())


def order(job):
    return (job.seq, -1 if job.index is None else job.index)


def write(path, text):
    with open(path + ".new", "w", encoding="utf-8") as out:
        out.write(text)
    os.rename(path + ".new", path)
