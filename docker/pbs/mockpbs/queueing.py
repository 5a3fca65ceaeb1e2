"""Takes a submission: checks in the order of the server, gives it a number, makes the job or the array."""

import time

from . import errors, limits
from .depend import parse_depend
from .errors import Refused
from .job import Job
from .resources import check_values, complete


class Queueing:
    """The queue request."""

    def __init__(self, table, fates, faults):
        self.table, self.fates, self.faults = table, fates, faults

    def submit(self, request, caller):
        """{"id"} of the new job. Raises Refused; a number is used up all the same unless a value was illegal."""
        settings = self.table.settings
        check_values(request["resources"])
        seq = self.table.take_number()
        self.faults.refuse_host(caller["host"])
        if caller["uid"] == 0 and not settings.server["acl_roots"]:
            raise Refused(errors.BAD_UID)
        if request.get("epilogue") and settings.server["mock_refuse_epilogue"]:
            raise Refused(errors.UNKNOWN_RESOURCE, "Unknown resource type")
        job = self.build(seq, request, caller)
        if not settings.queue(job.queue)["enabled"]:
            raise Refused(errors.QUEUE_DISABLED)
        indices = array_indices(job.array, settings.server["max_array_size"])
        limits.check_submission(settings, self.table.jobs.values(), job, len(indices) or 1)
        self.table.add(job)
        self.add_elements(job, indices)
        self.fates.settle_new(job)
        return {"id": "%s.%s" % (job.number, self.table.server_name)}

    def build(self, seq, request, caller):
        settings = self.table.settings
        now = time.time()
        queue = request.get("queue") or settings.server["default_queue"]
        settings.queue(queue)
        job = Job(seq=seq, user=caller["user"], owner_host=caller["host"], queue=queue, ctime=now, mtime=now, qtime=now)
        job.resources = complete(request["resources"])
        for field in ("name", "script", "shell", "join", "keep", "mail", "priority", "rerunable", "umask", "account",
                      "project", "arguments", "execution_time", "array", "holds", "remove", "mail_users", "group_list",
                      "epilogue"):
            if request.get(field) is not None:
                setattr(job, field, request[field])
        job.depend = parse_depend(request.get("depend") or "")
        job.variables = [tuple(pair) for pair in request["variables"]]
        job.variables += [("PBS_O_QUEUE", queue), ("PBS_O_HOST", caller["host"])]
        suffix = "%d" % seq + (".^array_index^" if job.array else "")
        place = "%s:%s/%s" % (caller["host"], dict(job.variables)["PBS_O_WORKDIR"], job.name)
        job.output = request.get("output") or "%s.o%s" % (place, suffix)
        job.error = request.get("error") or "%s.e%s" % (place, suffix)
        return job

    def add_elements(self, job, indices):
        elements = []
        for index in indices:
            values = dict(job.dump(), array=None, index=index, parent=job.number, holds="", depend=[], state="Q",
                          substate=10, execution_time=None)
            element = Job(**values)
            element.output = job.output.replace("^array_index^", str(index))
            element.error = job.error.replace("^array_index^", str(index))
            elements.append(element)
            self.table.add(element)
        job.elements = elements


def array_indices(array, most):
    if not array:
        return []
    indices = list(range(array["first"], array["last"] + 1, array["step"]))
    if len(indices) > most:
        raise Refused(errors.ARRAY_TOO_BIG)
    return indices
