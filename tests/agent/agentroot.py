"""A root of one's own, the agent as a program, and scripts that note when they ran."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

AGENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "agent")
sys.path.insert(0, AGENT)

from chasqui_agent import install, settings  # noqa: E402
from chasqui_agent.spool import Spool, rank_of, shard_name  # noqa: E402

PATIENCE = 60.0  # seconds; only ever waited in full by a test that is about to fail


def until(condition, what, patience=PATIENCE):
    """Wait until `condition()` is true; its value."""
    end = time.time() + patience
    while time.time() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    pytest.fail("never happened: " + what)


class Root:
    """One root: its spool, the agent's verbs as processes, and the payloads' own record of what ran."""

    before = None  # called in each of these processes before it becomes the agent

    def __init__(self, path, **chosen):
        self.path = str(path)
        self.spool = Spool(self.path)
        install.install(self.spool)
        settings.change(self.spool, **dict({"settle": 0}, **chosen))
        self.ran = self.path + ".ran"
        os.mkdir(self.ran)

    def agent(self, *argv, **more):
        """Run one verb; (exit code, stdout, stderr)."""
        environment = dict(os.environ, **more)
        command = [sys.executable, "-I", "-S", os.path.join(AGENT, "chasqui_agent"), "--root", self.path] + list(argv)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
            preexec_fn=self.before,
        )
        out, err = process.communicate(timeout=300)
        return process.returncode, out.decode("utf-8"), err.decode("utf-8")

    def pump(self):
        """Pump in the foreground; the report."""
        code, out, err = self.agent("pump", "--json")
        assert err == "", err
        report = json.loads(out)
        assert code == (1 if report["note"] else 0)
        return report

    def drop(self, name, text="", seconds=0.0, directives=""):
        """Put a script into waiting/ by hand. It notes its start and end under its name; `text` goes in between."""
        body = "#!/bin/sh\n%s\nnote() { echo \"$1 $(date +%%s.%%N) $PWD\" >> '%s/%s'; }\nnote start\n" % (
            directives,
            self.ran,
            name,
        )
        body += "sleep %s\n%s\nnote end\n" % (seconds, text) if seconds else "%s\nnote end\n" % text
        self.drop_text(name + ".sh", body)

    def drop_text(self, name, text):
        with open(os.path.join(self.spool.waiting, name), "w") as stream:
            stream.write(text)

    def starts(self, name):
        """How often the payload of `name` started."""
        try:
            with open(os.path.join(self.ran, name)) as stream:
                return sum(1 for line in stream if line.startswith("start"))
        except IOError:
            return 0

    def log(self):
        """The journal's records."""
        code, out, _ = self.agent("log")
        assert code == 0
        return [json.loads(line) for line in out.splitlines()]

    def events(self, job, *names):
        """The journal's events of one job, of the kinds `names` or all."""
        return [r for r in self.log() if r.get("job") == job and (not names or r["ev"] in names)]

    def flag(self, job, attempt=1):
        """The lines of completed/<job>.flag, [] while there is none."""
        try:
            with open(self.spool.entry_path("completed", job, attempt, suffix="flag")) as stream:
                return stream.read().split("\n")
        except IOError:
            return []

    def table(self):
        """The shell scheduler's jobs."""
        try:
            with open(os.path.join(self.path, "shell", "table.json")) as stream:
                return json.load(stream)["jobs"]
        except IOError:
            return {}

    def finished(self):
        return sum(1 for name in os.listdir(self.spool.completed) if name[0] != ".")

    def wait_finished(self, count):
        """Wait until `count` attempts are completed."""
        until(lambda: self.finished() >= count, "%d completed" % count)

    def idle(self):
        return all(job["state"] == "F" for job in self.table().values())

    def wait_idle(self):
        """Wait until nothing runs any more."""
        until(self.idle, "an empty slot table")


def publish(spool, batch, texts, priority=0):
    """As a session does it: a work folder for each job, then one shard with their scripts."""
    building = os.path.join(spool.staging, batch)
    os.mkdir(building)
    for position, (job, text) in enumerate(texts):
        os.makedirs(spool.meta_dir(job, 1))
        with open(os.path.join(building, shard_name(position, job, 1)), "w", encoding="utf-8") as stream:
            stream.write(text)
    spool.publish(building, rank_of(priority), "20260101T000000-%s-0000" % batch)


def end_jobs(root):
    """Have nothing wait any more, delete what still runs, and wait for it: each end moves on what is left to wait."""
    from chasqui_agent.schedulers.shell import Shell

    scheduler = Shell(root.spool, settings.load(root.spool))
    waiting = [root.spool.waiting, root.spool.after, root.spool.held]

    def over():
        for folder in waiting:
            shutil.rmtree(folder, ignore_errors=True)
        for job_id, job in root.table().items():
            if job["state"] != "F":
                scheduler.delete(job_id)
        return root.idle()

    until(over, "an end of all jobs")
