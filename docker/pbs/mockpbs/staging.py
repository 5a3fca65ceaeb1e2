"""A job's output files: spooled while it runs, delivered as the user while it is in E, or left undelivered."""

import os
import shutil
import subprocess
import time


class Output:
    """stdout and stderr of one run; `run` is the execution.Run."""

    def __init__(self, run):
        self.run = run
        self.handles = []

    def spool(self, suffix):
        return os.path.join(self.run.mom.home, "spool", self.run.name + suffix)

    def spooled(self):
        return [self.spool(".OU"), self.spool(".ER")]

    @property
    def streams(self):
        """[(suffix, where it goes)]; joined streams have one file."""
        job = self.run.job
        out = self.kept("o") or self.place(job["output"])
        err = self.kept("e") or self.place(job["error"])
        both = [(".OU", out), (".ER", err)]
        return {"oe": both[:1], "eo": both[1:]}.get(job["join"], both)

    def kept(self, letter):
        """-k oe: the file stays in the home directory of the host that ran the job."""
        job = self.run.job
        suffix = "" if job["index"] is None else ".%d" % job["index"]
        name = "%s.%s%d%s" % (job["name"], letter, job["seq"], suffix)
        return os.path.join(self.run.home, name) if letter in job["keep"] else None

    def place(self, destination):
        """The path of host:path."""
        return destination.partition(":")[2]

    def open(self):
        """(stdout, stderr) for the shell."""
        handles = {}
        for suffix, _ in self.streams:
            mask = int(self.run.job["umask"] or "077", 8)
            descriptor = os.open(self.spool(suffix), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.fchmod(descriptor, 0o666 & ~mask)
            if os.getuid() == 0:
                os.fchown(descriptor, self.run.account.pw_uid, self.run.account.pw_gid)
            handles[suffix] = descriptor
        self.handles = list(handles.values())
        out = handles.get(".OU", handles.get(".ER"))
        return out, handles.get(".ER", out)

    def close(self):
        for descriptor in self.handles:
            os.close(descriptor)
        self.handles = []

    def complain(self, text):
        """The mom's own words, at the end of stderr."""
        with open(self.spool(self.streams[-1][0]), "a", encoding="utf-8") as err:
            err.write(text)

    def stdout_path(self):
        return self.spool(self.streams[0][0])

    def deliver(self):
        """Whether all arrived. What can't be written is tried until the patience is over, then kept in undelivered."""
        give_up = None
        left = [(suffix, place) for suffix, place in self.streams if not self.removed(suffix)]
        while left:
            left = [stream for stream in left if not self.copy(*stream)]
            if not left:
                return True
            give_up = give_up or time.monotonic() + self.run.mom.delays["stage_retry"]
            if time.monotonic() >= give_up:
                self.keep(left)
                return False
            time.sleep(min(1.0, max(0.05, give_up - time.monotonic())))
        return True

    def removed(self, suffix):
        return {".OU": "o", ".ER": "e"}[suffix] in self.run.job["remove"]

    def copy(self, suffix, place):
        if os.path.isdir(place):
            place = os.path.join(place, self.run.name + suffix)
        with self.run.mom.fork_lock:
            copier = subprocess.Popen(["/bin/cp", "--", self.spool(suffix), place], stdin=subprocess.DEVNULL, cwd="/",
                                      stderr=subprocess.DEVNULL, umask=0, **self.run.as_user())  # fmt: skip
        return copier.wait() == 0

    def keep(self, streams):
        for suffix, _ in streams:
            shutil.move(self.spool(suffix), os.path.join(self.run.mom.home, "undelivered", self.run.name + suffix))
