"""What users and operators ask of a job: delete, hold, release, alter, rerun, signal."""

from . import errors, lifecycle
from .errors import Refused
from .resources import check_values, complete

ALTERABLE_RUNNING = ("name", "priority", "account")


class Verbs:
    """One method a request; each gets the job's number, the caller and the request. Call under the table's lock."""

    def __init__(self, table, fates, nodes):
        self.table, self.fates, self.nodes = table, fates, nodes

    def is_manager(self, caller):
        return caller["user"] in self.table.settings.server["managers"]

    def own(self, job, caller):
        if caller["user"] != job.user and not self.is_manager(caller):
            raise Refused(errors.UNAUTHORIZED)

    # qdel

    def delete(self, number, caller, request):
        if request.get("history"):
            return self.erase(number, caller, request)
        job = self.table.known(number)
        self.own(job, caller)
        if job.state == "X":
            raise Refused(errors.BAD_STATE)
        return self.delete_job(job, caller, bool(request.get("force")))

    def erase(self, number, caller, request):
        """qdel -x: the job and its history."""
        job = self.table.find(number)
        self.own(job, caller)
        if job.state == "F":
            return self.table.forget(job)
        return self.delete_job(job, caller, bool(request.get("force")))

    def delete_job(self, job, caller, force):
        who = "%s@%s" % (caller["user"], caller["host"])
        for element in job.elements:
            if element.state in "RE":
                self.delete_running(element, who, force, quiet=True)
        if job.state == "R" or job.state == "E":
            self.delete_running(job, who, force)
        elif job.array and job.deleted_by:
            self.table.mark(job)  # deleted before, and still waiting for its running elements
        else:
            self.fates.delete_waiting(job, who)

    def delete_running(self, job, who, force, quiet=False):
        if job.state == "E":
            if force:
                self.fates.ended(job, None)
            elif not quiet:
                raise Refused(errors.BAD_STATE)
            return
        try:
            self.kill(job, 9 if force else 15, "force" if force else "delete")
        except Refused:
            if not force:
                raise
            self.fates.killed_unasked(job, 265)
            return
        job.deleted_by = who
        self.table.mark(job)

    def kill(self, job, signal, why):
        message = {"verb": "kill", "id": job.number, "hop": job.run_count, "signal": signal, "why": why}
        self.nodes.send(job.node, message)

    # qhold, qrls

    def hold(self, number, caller, request):
        job = self.table.known(number)
        self.own(job, caller)
        self.may_hold(request["types"], caller)
        job.holds = lifecycle.merge(job.holds, request["types"])
        if job.state in "QHWB":
            self.fates.settle(job)
        self.table.mark(job)

    def release(self, number, caller, request):
        job = self.table.find(number)
        if job.state == "F" and not self.table.settings.server["job_history_enable"]:
            raise Refused(errors.UNKNOWN_JOB)
        self.own(job, caller)
        self.may_hold(request["types"], caller)
        if job.state == "F":
            return  # accepted without a word, as measured
        job.holds = "".join(letter for letter in job.holds if letter not in request["types"])
        if job.state == "H":
            self.fates.settle(job)
        self.table.mark(job)

    def may_hold(self, types, caller):
        if set(types) - {"u"} and not self.is_manager(caller):
            raise Refused(errors.UNAUTHORIZED)

    # qalter

    def alter(self, number, caller, request):
        job = self.table.known(number)
        self.own(job, caller)
        changes = request["changes"]
        if job.state not in "QHW" and set(changes) - set(ALTERABLE_RUNNING):
            raise Refused(errors.BAD_STATE)
        if "resources" in changes:
            pairs = changes.pop("resources")
            check_values(pairs)
            job.resources = complete(list(self.asked(job).items()) + pairs)
        if "variables" in changes:
            changes["variables"] = altered_variables(job, changes["variables"])
        if "holds" in changes:
            self.may_hold(changes["holds"], caller)
        for field, value in changes.items():
            setattr(job, field, value)
        if job.state in "QHW":
            self.fates.settle(job)
        self.table.mark(job)

    def asked(self, job):
        return {name: value for name, value in job.resources.items() if name not in ("nodect", "ncpus", "mem")}

    # qrerun, qsig

    def rerun(self, number, caller, request):
        job = self.table.known(number)
        if not self.is_manager(caller):
            raise Refused(errors.UNAUTHORIZED)
        if job.state != "R":
            raise Refused(errors.BAD_STATE)
        force = bool(request.get("force"))
        if not job.rerunable and not force:
            raise Refused(errors.NOT_RERUNNABLE)
        try:
            self.kill(job, 9 if force else 15, "rerun")
        except Refused:
            if not force:
                raise
            self.fates.requeue(job, -11)
            return
        job.rerun = "force" if force else "yes"
        self.table.mark(job)

    def signal(self, number, caller, request):
        job = self.table.known(number)
        self.own(job, caller)
        if job.state != "R":
            raise Refused(errors.BAD_STATE)
        self.kill(job, request["signal"], "signal")


def altered_variables(job, given):
    """qalter -v replaces the user's variables and leaves PBS's own."""
    names = {name for name, _ in given}
    own = [(name, value) for name, value in job.variables if name.startswith("PBS_O_") and name not in names]
    return own + [tuple(pair) for pair in given]
