"""The server's side of the moms: who is there, what is sent to them, what their events do to jobs."""

import time

from . import errors, wire
from .errors import Refused


class Node:
    """A compute host; `link` is None while its mom is away, since `since`."""

    def __init__(self, name, ncpus):
        self.name, self.ncpus = name, ncpus
        self.link = None
        self.since = time.time()
        self.running = set()  # (number, run count) the mom has processes of

    @property
    def free(self):
        return self.link is not None


class Nodes:
    """All nodes ever seen; call under the table's lock."""

    def __init__(self, table, lifecycle):
        self.table, self.lifecycle = table, lifecycle
        self.nodes = {}
        self.kept = set()  # (number, run count) requeued by a server restart: the old processes may finish

    def arrive(self, hello, link):
        node = self.nodes.setdefault(hello["node"], Node(hello["node"], hello["ncpus"]))
        if node.link:
            node.link.close()
        node.link, node.ncpus = link, hello["ncpus"]
        node.running = {(number, hop) for number, hop in hello["jobs"]}
        discard = [[number, hop] for number, hop in node.running if not self.wanted(node, number, hop)]
        settings = self.table.settings
        link.send({"verb": "welcome", "delays": settings.delays(), "hooks": settings.hooks, "discard": discard})
        self.restart_lost(node)
        self.table.changed.notify_all()
        return node

    def wanted(self, node, number, hop):
        job = self.table.jobs.get(number)
        here = job is not None and job.node == node.name and job.run_count == hop and job.state in "RE"
        return here or (number, hop) in self.kept

    def restart_lost(self, node):
        """What the server thinks runs there and the mom has never heard of was in flight when one of them died. What
        was in E had told its end, and been cleared up."""
        for job in self.table.singles():
            gone = job.node == node.name and job.state in "RE" and (job.number, job.run_count) not in node.running
            if gone and job.state == "E":
                self.lifecycle.ended(job, stageout=1)
            elif gone:
                self.lifecycle.requeue(job)

    def leave(self, node, link):
        if node.link is link:
            node.link, node.since = None, time.time()
            self.table.changed.notify_all()

    def wait_anew(self):
        """A server that was away itself has missed none of them yet."""
        for node in self.nodes.values():
            node.since = time.time()

    def send(self, name, message):
        """To a job's mom. Raises Refused 15070 when it is away."""
        node = self.nodes.get(name)
        if node is None or node.link is None:
            raise Refused(errors.NO_MOM)
        try:
            node.link.send(message)
        except wire.Closed as closed:
            raise Refused(errors.NO_MOM) from closed

    def tell_settings(self):
        settings = self.table.settings
        for name, node in self.nodes.items():
            if node.link:
                self.send(name, {"verb": "delays", "delays": settings.delays()})
                self.send(name, {"verb": "hooks", "hooks": settings.hooks})

    def requeue_from_lost(self):
        """R to Q once a node has been down for node_fail_requeue, while its processes may still run."""
        patience = self.table.settings.server["node_fail_requeue"]
        for node in self.nodes.values():
            if node.link or time.time() - node.since < patience:
                continue
            for job in self.table.singles():
                if job.node == node.name and job.state == "R":
                    self.lose(job)

    def lose(self, job):
        if job.rerunable:
            self.lifecycle.requeue(job, -20)
            job.comment = "Not Running: Not enough free nodes available"
        else:
            self.lifecycle.killed_unasked(job, -20)

    # events of a mom

    def event(self, node, event):
        kind, number, hop = event["event"], event["id"], event["hop"]
        if kind in ("done", "lost", "discarded"):
            node.running.discard((number, hop))
            self.kept.discard((number, hop))
        job = self.table.jobs.get(number)
        if job is None or kind == "discarded" or job.run_count != hop or job.node != node.name:
            self.table.changed.notify_all()
            return  # "job not running, may have been requeued on node failure"
        getattr(self, "on_" + kind)(job, event)

    def on_session(self, job, event):
        if job.state == "R":
            job.substate, job.session = 42, event["session"]
            job.jobdir, job.used = event["jobdir"], event["used"]
            self.table.mark(job)

    def on_used(self, job, event):
        if job.state == "R":
            job.used = event["used"]
            self.table.mark(job)

    def on_obit(self, job, event):
        if job.state == "R" and not job.rerun:
            job.jobdir = event["jobdir"]
            self.lifecycle.exiting(job, event["exit_status"], event["used"])

    def on_done(self, job, event):
        if job.rerun:
            self.lifecycle.requeue(job, -11)
        elif job.state in "RE":
            self.lifecycle.ended(job, event["stageout"])

    def on_lost(self, job, event):
        """The mom came back without its jobs: it killed them, with no chance for a trap."""
        if job.state not in "RE":
            return
        if job.rerunable and not job.deleted_by:
            self.lifecycle.requeue(job, -4)
        else:
            self.lifecycle.killed_unasked(job, -4)
