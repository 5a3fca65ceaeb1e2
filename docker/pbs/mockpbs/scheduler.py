"""Starts what may start: in order of submission, skipping what does not fit, and says in the comment why not."""

import time

from . import limits
from .errors import Refused


class Scheduler:
    """One pass is `cycle`; call under the table's lock."""

    def __init__(self, table, lifecycle, nodes):
        self.table, self.lifecycle, self.nodes = table, lifecycle, nodes
        self.unused = {}  # node -> cpus, of the pass under way

    def cycle(self):
        self.nodes.requeue_from_lost()
        for job in self.table.all():
            if job.state == "W" and not job.parent and job.execution_time <= time.time():
                self.lifecycle.settle(job)
        self.unused = self.count_unused()
        for job in self.candidates():
            obstacle = self.obstacle(job)
            node = None if obstacle else self.place(job)
            if node:
                self.start(job, node)
            elif (obstacle or self.shortage(job)) != job.comment:
                job.comment = obstacle or self.shortage(job)
                self.table.mark(job)
        self.table.save()

    def candidates(self):
        """Queued single jobs, and elements of arrays that are neither held nor waiting."""
        found = []
        for job in self.table.singles():
            parent = self.table.jobs.get(job.parent) if job.parent else None
            if job.state == "Q" and (parent is None or parent.state in "QB"):
                found.append(job)
        return sorted(found, key=lambda job: (-int(job.priority), job.seq, job.index or 0))

    def obstacle(self, job):
        if not self.table.settings.queue(job.queue)["started"]:
            return "Not Running: Queue not started."
        parent = self.table.jobs.get(job.parent) if job.parent else None
        if parent and parent.array.get("max_run"):
            running = [element for element in parent.elements if element.state in "RE"]
            if len(running) >= parent.array["max_run"]:
                return "Not Running: Number of concurrent running subjobs limit reached"
        return limits.run_obstacle(self.table.settings, self.table.jobs.values(), job)

    def place(self, job):
        fitting = [node for node in self.nodes.nodes.values() if self.fits(job, node)]
        return max(fitting, key=lambda node: self.unused[node.name], default=None)

    def fits(self, job, node):
        # An old run that a restart of the server left behind goes on: its host does not take the job twice at once.
        ghost = any(number == job.number for number, _ in node.running)
        return node.free and not ghost and self.unused[node.name] >= job.cpus

    def count_unused(self):
        """{node: cpus}; an ending job keeps its own until F."""
        left = {node.name: node.ncpus for node in self.nodes.nodes.values()}
        for job in self.table.singles():
            if job.state in "RE" and job.node in left:
                left[job.node] -= job.cpus
        return left

    def shortage(self, job):
        total = sum(node.ncpus for node in self.nodes.nodes.values())
        up = [node for node in self.nodes.nodes.values() if node.free]
        if total and job.cpus > total:
            numbers = (job.cpus, total, total)
            return "Can Never Run: Insufficient amount of resource: ncpus (R: %d A: %d T: %d)" % numbers
        if not up:
            return "Not Running: Not enough free nodes available"
        numbers = (job.cpus, sum(self.unused[node.name] for node in up), total)
        return "Not Running: Insufficient amount of resource: ncpus (R: %d A: %d T: %d)" % numbers

    def start(self, job, node):
        used = {other.slot for other in self.table.singles() if other.node == node.name and other.state in "RE"}
        slot = next(number for number in range(len(used) + 1) if number not in used)
        self.lifecycle.start(job, node.name, slot)
        self.unused[node.name] -= job.cpus
        self.table.save()  # first: a server killed between the two must know that the job may run
        node.running.add((job.number, job.run_count))
        try:
            self.nodes.send(node.name, {"verb": "run", "id": job.number, "hop": job.run_count, "job": job.dump()})
        except Refused:
            node.running.discard((job.number, job.run_count))
            self.unused[node.name] += job.cpus
            self.lifecycle.requeue(job)
