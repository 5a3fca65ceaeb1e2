"""How a job changes state: queued, held, waiting, started, exiting, requeued, finished."""

import time

from . import depend
from .job import exec_vnode

TERMINATED, FINISHED, FAILED = 91, 92, 93
ENDINGS = {-29: "exceeded resource walltime", -27: "exceeded resource mem"}


class Lifecycle:
    """All transitions of one table; call under its lock."""

    def __init__(self, table):
        self.table = table

    # before it runs

    def settle_new(self, job):
        """The first state of a submission; one whose dependency can never be met gets an id and is deleted at once."""
        says, still = depend.fate(job, self.table.jobs)
        if says == "never":
            job.holds = merge(job.holds, "s")
            return self.finish(job, FINISHED)
        if says == "wait":
            job.holds = merge(job.holds, "s")
            for before in depend.announce(job, self.table.jobs):
                self.table.mark(before)
        else:
            job.depend = still
        return self.settle(job)

    def settle(self, job):
        """Q, H or W by holds and start time; an array that began stays B."""
        job.state, job.substate = self.resting(job)
        if job.state in "QB" and job.etime is None:
            job.etime = time.time()
            for element in job.elements:
                element.etime = job.etime
        self.table.mark(job)

    def resting(self, job):
        if job.holds:
            return "H", 22 if job.depend and "s" in job.holds else 20
        if job.execution_time and job.execution_time > time.time():
            return "W", 30
        return ("B", 70) if job.began else ("Q", 10)

    # running

    def start(self, job, node, slot):
        now = time.time()
        job.state, job.substate, job.node, job.slot, job.stime = "R", 41, node, slot, now
        job.run_count += 1
        job.session = job.used = job.obittime = None
        job.deleted_by = job.rerun = ""
        job.comment = "Job run at %s on %s" % (moment(now), exec_vnode(job))
        self.table.mark(job)
        self.begin_array(job, now)
        self.release_after(job)

    def begin_array(self, element, now):
        parent = self.table.jobs.get(element.parent)
        if parent is None or parent.began:
            return
        parent.began, parent.stime, parent.state, parent.substate = True, now, "B", 70
        parent.comment = "Job Array Began at " + moment(now)
        self.table.mark(parent)

    def exiting(self, job, exit_status, used):
        job.state, job.substate, job.obittime = "E", 51, time.time()
        job.exit_status, job.used = exit_status, used
        self.table.mark(job)

    def requeue(self, job, exit_status=None):
        """Back to Q under the same id; Exit_status stays to be seen, and means nothing."""
        job.state, job.substate, job.node, job.slot, job.session = "Q", 10, None, None, None
        job.used = job.obittime = None
        job.rerun = job.deleted_by = ""
        if exit_status is not None:
            job.exit_status = exit_status
        if job.holds:
            job.state, job.substate = "H", 20
        self.table.mark(job)

    # the end

    def ended(self, job, stageout):
        """After E: F, or X for an element whose array goes on."""
        if job.deleted_by:
            substate, words = TERMINATED, "terminated by " + job.deleted_by
        elif job.exit_status == 0:
            substate, words = FINISHED, "finished"
        else:
            substate, words = FAILED, ENDINGS.get(job.exit_status, "failed")
        job.stageout = stageout
        job.comment += " and " + words
        self.finish(job, substate)

    def killed_unasked(self, job, exit_status):
        """A job that may not be rerun, after a mom restart (-4) or a lost node (-20)."""
        job.exit_status = exit_status
        job.comment += " and terminated"
        self.finish(job, TERMINATED)

    def delete_waiting(self, job, who):
        """Deleted before it ran: no Exit_status."""
        if job.comment:
            job.comment += " and terminated"
        for element in job.elements:
            if element.state == "Q":
                element.state, element.substate = "X", TERMINATED
                self.table.mark(element)
        job.deleted_by = who
        self.finish(job, TERMINATED)

    def finish(self, job, substate):
        if job.parent:
            job.state, job.substate = "X", substate
            self.table.mark(job)
            return self.finish_array(self.table.jobs[job.parent])
        if job.array and any(element.live for element in job.elements):
            return None
        job.state, job.substate, job.history = "F", substate, time.time()
        for element in job.elements:
            element.state, element.history = "F", job.history
            self.table.mark(element)
        self.table.mark(job)
        self.settle_dependents(job)
        if not self.table.settings.server["job_history_enable"]:
            self.table.forget(job)
        return None

    def finish_array(self, parent):
        statuses = [element.exit_status for element in parent.elements if element.exit_status is not None]
        if statuses:
            parent.exit_status = 0 if not any(statuses) else 1
        self.table.mark(parent)
        if not any(element.live for element in parent.elements):
            self.finish(parent, TERMINATED if parent.deleted_by else FAILED if parent.exit_status else FINISHED)

    # dependents

    def settle_dependents(self, before):
        if before.exit_status is None:
            return  # deleted before it ran: what waits for it is never told
        for job in self.dependents(before):
            says, still = depend.fate(job, self.table.jobs)
            if says == "never":
                self.finish(job, FINISHED)
            elif says == "met":
                self.free(job, still)

    def release_after(self, started):
        for job in self.dependents(started):
            says, still = depend.fate(job, self.table.jobs)
            if says == "met":
                self.free(job, still)

    def dependents(self, before):
        waiting = [job for job in self.table.all() if job.state == "H" and "s" in job.holds]
        return [job for job in waiting if any(number == before.number for _, number in job.depend)]

    def free(self, job, still):
        job.depend = still
        job.holds = job.holds.replace("s", "")
        self.settle(job)


def moment(seconds):
    """The way comments tell the time."""
    return time.strftime("%a %b %d at %H:%M", time.localtime(seconds))


def merge(holds, more):
    return "".join(sorted(set(holds) | set(more), key="uos".index))
