"""A job, an array or an element of one: its fields, and how they look as PBS attributes."""

import time

from .resources import size

WAITING_STATES = "QHWT"
ENDED = "FX"


class Job:
    """Plain fields, all JSON. An array's elements are Jobs of their own with `parent` set."""

    server_name = "pbshost"  # the table sets the real one
    elements = ()  # of an array: its Jobs, in order

    FIELDS = {
        "seq": 0, "index": None, "parent": None, "array": None, "name": "", "user": "", "owner_host": "", "queue": "",
        "state": "Q", "substate": 10, "holds": "", "resources": {}, "variables": [], "script": "", "shell": "",
        "output": "", "error": "", "join": "n", "keep": "n", "mail": "a", "priority": 0, "rerunable": True,
        "umask": None, "account": "", "project": "_pbs_project_default", "arguments": "", "depend": [],
        "execution_time": None,
        "ctime": 0, "mtime": 0, "qtime": 0, "etime": None, "stime": None, "obittime": None, "history": None,
        "node": None, "slot": None, "session": None, "run_count": 0, "exit_status": None, "used": None, "comment": "",
        "deleted_by": "", "rerun": "", "jobdir": "", "stageout": None, "began": False, "remove": "", "mail_users": "",
        "group_list": "", "linger": 0, "epilogue": "",
    }  # fmt: skip

    def __init__(self, **values):
        for field, default in self.FIELDS.items():
            value = values.get(field, default)
            setattr(self, field, value.copy() if isinstance(value, (list, dict)) else value)

    def dump(self):
        return {field: getattr(self, field) for field in self.FIELDS}

    @property
    def number(self):
        """The id without the server's name: 12, 12[], 12[3]."""
        if self.array:
            return "%d[]" % self.seq
        return "%d" % self.seq if self.index is None else "%d[%d]" % (self.seq, self.index)

    @property
    def live(self):
        return self.state not in ENDED

    @property
    def cpus(self):
        return int(self.resources.get("ncpus", 1))

    @property
    def memory_limit(self):
        """Bytes it asked for, 0 for none."""
        return size(self.resources["mem"]) if "mem" in self.resources else 0

    def touch(self):
        self.mtime = time.time()


def stamp(seconds):
    return time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(seconds))


def variable_list(variables):
    return ",".join("%s=%s" % (name, value.replace("\\", "\\\\").replace(",", "\\,")) for name, value in variables)


def attributes(job, server):
    """[(name, value)] in the order of `qstat -f`; resources are dotted; what PBS leaves out is left out."""
    element = job.index is not None
    rows = [("Job_Name", job.name), ("Job_Owner", "%s@%s" % (job.user, job.owner_host))]
    rows += [("resources_used." + key, value) for key, value in sorted((job.used or {}).items())]
    rows += [("job_state", job.state), ("queue", job.queue), ("server", server)]
    rows += [("Account_Name", job.account or None), ("Checkpoint", None if element else "u")]
    rows += [("ctime", stamp(job.ctime))]
    rows += [("depend", depend_text(job, server)), ("Error_Path", job.error)]
    rows += [("exec_host", exec_host(job)), ("exec_vnode", exec_vnode(job))]
    rows += [("Execution_Time", job.execution_time and stamp(job.execution_time))]
    rows += [("group_list", job.group_list or None), ("Hold_Types", None if element else job.holds or "n")]
    rows += [("Join_Path", job.join), ("Keep_Files", job.keep), ("Mail_Points", job.mail)]
    rows += [("Mail_Users", job.mail_users or None)]
    rows += [("mtime", stamp(job.mtime)), ("Output_Path", job.output), ("Priority", job.priority)]
    rows += [("qtime", stamp(job.qtime)), ("Rerunable", str(bool(job.rerunable)))]
    rows += [("Resource_List." + key, value) for key, value in sorted(job.resources.items())]
    rows += [("stime", job.stime and stamp(job.stime)), ("obittime", job.obittime and stamp(job.obittime))]
    rows += [("session_id", job.session), ("jobdir", job.jobdir or None)]
    rows += [("substate", job.substate), ("Variable_List", variable_list(job.variables))]
    return [(name, str(value)) for name, value in rows + tail_attributes(job, element) if value is not None]


def tail_attributes(job, element):
    rows = [("comment", job.comment or None), ("etime", job.etime and stamp(job.etime))]
    rows += [("umask", job.umask), ("run_count", job.run_count or None), ("Stageout_status", job.stageout)]
    rows += [("Exit_status", job.exit_status)]
    rows += [("Shell_Path_List", job.shell or None)]
    rows += [("Submit_arguments", None if element else job.arguments)]
    if job.array:
        rows += array_attributes(job)
    if element:
        rows += [("array_id", "%s.%s" % (job.parent, job.server_name)), ("array_index", job.index)]
    history = int(job.history) if job.history else None
    return rows + [("history_timestamp", history), ("project", job.project), ("Submit_Host", job.owner_host)]


def array_attributes(job):
    counts = {"Q": 0, "R": 0, "E": 0, "X": 0}
    for element in job.elements:
        counts[element_letter(element)] += 1
    if job.state == "F":
        counts = dict.fromkeys(counts, 0)
    remaining = [element.index for element in job.elements if element.state == "Q"]
    total = "Queued:%(Q)d Running:%(R)d Exiting:%(E)d Expired:%(X)d" % counts
    rows = [("array", "True"), ("array_state_count", total), ("array_indices_submitted", job.array["range"])]
    rows += [("array_indices_remaining", index_range(remaining, job.array["step"]))]
    return rows + [("max_run_subjobs", job.array.get("max_run"))]


def element_letter(element):
    return element.state if element.state in "QRE" else "X"


def index_range(indices, step):
    """1,2,3,7 as 1-3,7; "-" for none, as in array_indices_remaining."""
    spans = []
    for index in indices:
        if spans and index == spans[-1][1] + step:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ",".join(span_text(first, last, step) for first, last in spans) or "-"


def span_text(first, last, step):
    if first == last:
        return str(first)
    return "%d-%d" % (first, last) + (":%d" % step if step > 1 else "")


def exec_host(job):
    if not job.node:
        return None
    slot = "%s/%d" % (job.node, job.slot)
    return slot + ("*%d" % job.cpus if job.cpus > 1 else "")


def exec_vnode(job):
    if not job.node:
        return None
    memory = ":mem=%dkb" % (job.memory_limit // 1024) if job.memory_limit else ""
    return "(%s:ncpus=%d%s)" % (job.node, job.cpus, memory)


def depend_text(job, server):
    """afterany:1.pbshost@pbshost:2.pbshost@pbshost,beforeany:..."""
    kinds = {}
    for kind, number in job.depend:
        kinds.setdefault(kind, []).append("%s.%s@%s" % (number, server, server))
    return ",".join(":".join([kind] + ids) for kind, ids in kinds.items()) or None
