"""Server and queue attributes: their defaults, `set` and `unset`, the file that keeps them."""

import json
import os
import re

from .errors import MIXED_LIMITS, UNKNOWN_QUEUE, Refused

# Those with mock_ are this mock's own; seconds, each multiplied by mock_delay_scale where they are the long waits of a
# real server, so that a test can shorten them all at once.
SERVER = {
    "job_history_enable": True,
    "node_fail_requeue": 310.0,
    "max_array_size": 10000,
    "default_queue": "workq",
    "keep_completed": 300.0,  # Torque: seconds until what has completed is forgotten
    "acl_roots": False,  # True: root may own jobs (a real server refuses with 15023 otherwise)
    "managers": ["root"],
    "mock_hide_limits": False,  # qstat -Bf and -Qf leave out the limits, as where an admin has a hook refuse instead
    "mock_refuse_epilogue": False,  # Torque: -l epilogue= is an unknown resource, as where an admin took it out
    "mock_delay_scale": 1.0,
    "mock_kill_delay": 10.0,  # TERM to KILL; after a qdel up to twice that (9 to 20 s measured)
    "mock_qdel_linger": 19.0,  # R after a qdel though no process is left: 0.2 s to this
    "mock_stage_retry": 32.0,  # E with an output path that can't be written
    "mock_mom_poll": 10.0,  # walltime and memory are looked at this often
    "mock_started": 2.5,  # substate 41 before 42
    "mock_exit": 0.25,  # E of a normal end; not scaled
    "mock_epilogue_alarm": 30.0,
}
QUEUE = {"enabled": True, "started": True}
OLD_STYLE = ("max_user_run", "max_running", "max_group_run")
NEW_STYLE = ("max_queued", "max_queued_res", "queued_jobs_threshold", "max_run")


class Settings:
    """`server` and `queues[name]`: plain dictionaries, saved at every change."""

    def __init__(self, path):
        self.path = path
        self.server = dict(SERVER)
        self.queues = {"workq": dict(QUEUE)}
        self.hooks = {}  # name -> enabled, event, alarm, order, source
        if os.path.exists(path):
            with open(path, encoding="utf-8") as saved:
                values = json.load(saved)
            self.server.update(values["server"])
            self.queues, self.hooks = values["queues"], values["hooks"]

    def save(self):
        with open(self.path + ".new", "w", encoding="utf-8") as out:
            json.dump({"server": self.server, "queues": self.queues, "hooks": self.hooks}, out)
        os.rename(self.path + ".new", self.path)

    def delay(self, name):
        """Seconds of a long wait, after scaling."""
        return self.server["mock_" + name] * self.server["mock_delay_scale"]

    def delays(self):
        """What a mom must know to keep the same times."""
        names = ("kill_delay", "qdel_linger", "stage_retry", "mom_poll", "epilogue_alarm", "started")
        return dict({name: self.delay(name) for name in names}, exit=self.server["mock_exit"])

    def limits_of(self, holder):
        """[(attribute, text)] of the limits on numbers of jobs, as qstat -f shows them; what is set stays text."""
        if self.server["mock_hide_limits"]:
            return []
        names = [name for name in holder if name.split(".")[0] in OLD_STYLE + NEW_STYLE + ("max_queuable",)]
        return [(name, str(holder[name]) if isinstance(holder[name], str) else "%d" % holder[name]) for name in names]

    def queue(self, name):
        if name not in self.queues:
            raise Refused(UNKNOWN_QUEUE)
        return self.queues[name]

    def create_queue(self, name):
        self.queues[name] = {"enabled": False, "started": False}
        self.save()

    def delete_queue(self, name):
        self.queue(name)
        del self.queues[name]
        self.save()

    def change(self, kind, name, attribute, value):
        """Set one attribute, or unset it with value None."""
        holder = self.server if kind == "server" else self.queue(name)
        if value is None:
            default = SERVER if kind == "server" else {}
            holder.pop(attribute, None)
            if attribute in default:
                holder[attribute] = default[attribute]
        else:
            self.check_style(attribute)
            holder[attribute] = typed(value)
        self.save()

    def check_style(self, attribute):
        style, other = (OLD_STYLE, NEW_STYLE) if attribute in OLD_STYLE else (NEW_STYLE, OLD_STYLE)
        if attribute.split(".")[0] not in style:
            return
        for holder in [self.server] + list(self.queues.values()):
            if any(name.split(".")[0] in other for name in holder):
                raise Refused(MIXED_LIMITS, "Cannot mix old and new style queue/run limit enforcement types")


def typed(value):
    """Text of qmgr as the value it means; limits stay text."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    return float(value) if re.match(r"^-?\d+(\.\d+)?$", value) else value


def limits(text):
    """{(kind, name): number} of [u:PBS_GENERIC=3],[u:ana=1]."""
    found = {}
    for item in re.findall(r"\[([^\]]*)\]", str(text)):
        for kind, name, number in re.findall(r"([ugpo]):([^=,\s]+)\s*=\s*(\d+)", item):
            found[kind, name] = int(number)
    return found
