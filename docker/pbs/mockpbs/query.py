"""Answers qstat and qselect from the table; changes nothing."""

from . import errors
from .errors import Refused
from .job import attributes


class Query:
    """Call under the table's lock."""

    def __init__(self, table):
        self.table = table

    def status(self, request):
        """{"jobs": [{"id", "rows"}]} of one id, or of everything (id None). Raises Refused for the one id."""
        if request.get("id") is None:
            return {"jobs": [self.show(job) for job in self.visible(request)]}
        job = self.one(request["id"], request)
        family = [job] + list(job.elements if request.get("elements") else [])
        return {"jobs": [self.show(one) for one in family]}

    def one(self, number, request):
        history = self.table.settings.server["job_history_enable"]
        if request.get("history") and not history:
            if number not in self.table.jobs:
                raise Refused(errors.NO_HISTORY)
        elif not request.get("history"):
            return self.table.known(number)
        return self.table.find(number)

    def visible(self, request):
        jobs = self.table.all()
        if request.get("queue"):
            self.table.settings.queue(request["queue"])
            jobs = [job for job in jobs if job.queue == request["queue"]]
        if request.get("finished"):
            jobs = [job for job in jobs if job.state == "F"]
        elif not request.get("history"):
            jobs = [job for job in jobs if job.state != "F"]
        return [job for job in jobs if request.get("elements") or not job.parent]

    def show(self, job):
        rows = attributes(job, self.table.server_name)
        facts = {"state": job.state, "user": job.user, "name": job.name, "queue": job.queue, "session": job.session,
                 "comment": job.comment, "element": bool(job.parent), "array": bool(job.array)}
        return {"id": "%s.%s" % (job.number, self.table.server_name), "rows": rows, "facts": facts}

    def select(self, request):
        """{"ids"} of what qselect asks for. Without -T arrays are one entry; with it only their elements are."""
        chosen = []
        for job in self.table.all():
            if request.get("elements") and job.array or not request.get("elements") and job.parent:
                continue
            if self.matches(job, request):
                chosen.append("%s.%s" % (job.number, self.table.server_name))
        return {"ids": chosen}

    def matches(self, job, request):
        if job.state == "F" and not (request.get("history") or request.get("finished")):
            return False
        if request.get("finished") and job.state != "F":
            return False
        return self.matches_fields(job, request)

    def matches_fields(self, job, request):
        wanted = {"users": job.user, "names": job.name, "queues": job.queue, "states": job.state}
        for key, value in wanted.items():
            if request.get(key) and value not in request[key]:
                return False
        if request.get("arrays") and not job.array:
            return False
        if request.get("holds") is not None and set(job.holds or "n") != set(request["holds"] or "n"):
            return False
        if request.get("rerunable") is not None and job.rerunable != request["rerunable"]:
            return False
        return not request.get("account") or job.account == request["account"]

    def server(self):
        """What qstat -B and -Q count."""
        jobs = [job for job in self.table.all() if not job.parent]
        queues = {}
        for name, queue in self.table.settings.queues.items():
            queues[name] = dict(queue, counts=self.counts(job for job in jobs if job.queue == name))
            queues[name]["limits"] = self.table.settings.limits_of(queue)
        known = {name: value for name, value in self.table.settings.server.items() if not name.startswith("mock_")}
        limits = self.table.settings.limits_of(self.table.settings.server)
        return {"server": known, "limits": limits, "counts": self.counts(jobs), "queues": queues}

    def counts(self, jobs):
        found = dict.fromkeys("TQHWREBF", 0)
        for job in jobs:
            found[job.state] = found.get(job.state, 0) + 1
        return found

    def raw(self, live=False):
        """For samplers: every job and element (live: that has not finished) with what matters, read in one go."""
        fields = ("seq", "index", "parent", "name", "user", "queue", "project", "state", "substate", "holds", "node",
                  "session", "run_count", "exit_status", "ctime", "stime", "obittime", "deleted_by")
        found = []
        for job in self.table.all():
            if live and job.state == "F":
                continue
            entry = {field: getattr(job, field) for field in fields}
            entry.update(number=job.number, id="%s.%s" % (job.number, self.table.server_name), array=bool(job.array))
            entry["variables"] = [pair for pair in job.variables if not pair[0].startswith("PBS_O_")]
            entry["elements"] = sum(1 for element in job.elements if element.live)
            found.append(entry)
        return found
