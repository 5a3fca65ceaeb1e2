"""One hook in its own process: a `pbs` module with what the hook may ask, then the hook's source."""

import json
import os
import sys
import types

EVENTS = ("execjob_end", "execjob_epilogue", "execjob_preterm", "execjob_begin", "execjob_prologue", "execjob_launch")

LEVELS = ("LOG_ERROR", "LOG_WARNING", "LOG_DEBUG", "EVENT_ERROR", "EVENT_DEBUG", "EVENT_DEBUG3")


class pbs_env(dict):
    """Variable_List: a dictionary that prints as A=1,B=2."""

    def __str__(self):
        return ",".join("%s=%s" % item for item in self.items())


class Job:
    def __init__(self, facts):
        for name, value in facts.items():
            setattr(self, name, value)
        self.Variable_List = pbs_env(facts["Variable_List"])

    def in_ms_mom(self):
        return True


class Event:
    def __init__(self, told, types_of):
        self.type = types_of[told["event"]]
        self.hook_name = told["hook"]
        self.job = Job(told["job"])
        self.requestor = "pbs_mom"
        self.user = "pbsadmin"

    def accept(self):
        raise SystemExit(0)

    def reject(self, message="", code=255):
        print(message)
        raise SystemExit(0)


def stub(told):
    module = types.ModuleType("pbs")
    types_of = {name: 1 << number for number, name in enumerate(EVENTS)}
    for name, value in types_of.items():
        setattr(module, name.upper(), value)
    for level, name in enumerate(LEVELS):
        setattr(module, name, level)
    the_event = Event(told, types_of)
    module.event = lambda: the_event
    module.logmsg = lambda level, text: print(text, flush=True)
    module.logjobmsg = lambda number, text: print("%s;%s" % (number, text), flush=True)
    module.get_local_nodename = lambda: os.uname().nodename.split(".")[0]
    return module


def main():
    told = json.load(sys.stdin)
    sys.modules["pbs"] = stub(told)
    exec(compile(told["source"], "<hook %s>" % told["hook"], "exec"), {"__name__": "__main__"})


main()
