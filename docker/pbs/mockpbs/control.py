"""The control port: faults, attributes, the table for samplers, the count of calls. No fault reaches it."""

from . import errors, wire
from .errors import Refused
from .settings import typed

EVENTS = """queuejob postqueuejob modifyjob modifyvnode management resvsub modifyresv movejob jobobit runjob provision
periodic resv_confirm resv_begin resv_end execjob_begin execjob_prologue execjob_epilogue execjob_preterm execjob_end
exechost_periodic execjob_launch exechost_startup execjob_attach execjob_resize execjob_abort execjob_postsuspend
execjob_preresume""".split()


class Control:
    """One request, one answer, as often as the other side likes."""

    def __init__(self, server):
        self.server = server

    def session(self, link):
        while True:
            try:
                link.send(self.answer(link.receive()))
            except (wire.Closed, ValueError):
                return

    def answer(self, request):
        try:
            self.check_caller(request)
            return {"ok": getattr(self, "do_" + request["verb"])(request)}
        except Refused as no:
            return {"error": no.number, "text": no.text}
        except (ValueError, KeyError, AttributeError) as wrong:
            return {"error": 15014, "text": repr(wrong)}

    def check_caller(self, request):
        """qmgr says who asks; what tests ask directly is always allowed."""
        user = request.get("user")
        if user is None or user in self.server.table.settings.server["managers"]:
            return
        if request["verb"].endswith("_hook"):
            words = "%s@%s is unauthorized to access hooks data from server %s"
            raise Refused(errors.HOOK, words % (user, request["host"], self.server.conf.server))
        raise Refused(errors.UNAUTHORIZED)

    def do_table(self, request):
        """All jobs, with live: true those alone that have not finished."""
        with self.server.table.lock:
            return self.server.query.raw(request.get("live", False))

    def do_calls(self, request):
        return [call for call in list(self.server.calls) if call[0] >= request.get("since", 0)]

    def do_nodes(self, request):
        with self.server.table.lock:
            nodes = self.server.nodes.nodes
            return {name: {"up": node.free, "ncpus": node.ncpus, "running": sorted(node.running)}
                    for name, node in nodes.items()}  # fmt: skip

    def do_settings(self, request):
        settings = self.server.table.settings
        return {"server": settings.server, "queues": settings.queues}

    def do_set(self, request):
        """One attribute of server or queue; value None unsets it."""
        with self.server.table.lock:
            settings = self.server.table.settings
            if request["attribute"] == "job_history_enable" and not typed(request["value"]):
                self.drop_history()
            settings.change(request["kind"], request.get("name"), request["attribute"], request["value"])
            self.server.nodes.tell_settings()
            self.server.table.changed.notify_all()

    def drop_history(self):
        """Switching history off forgets what had finished."""
        for job in self.server.table.all():
            if job.state == "F" and not job.parent:
                self.server.table.forget(job)
        self.server.table.save()

    def do_create_queue(self, request):
        self.server.table.settings.create_queue(request["name"])

    def do_delete_queue(self, request):
        self.server.table.settings.delete_queue(request["name"])

    def do_fault(self, request):
        self.server.faults.set(request["name"], request.get("values", {}))

    def do_clear(self, request):
        self.server.faults.clear(request.get("name"))

    def do_mom(self, request):
        """Passes a fault on to the moms: kill_job, kill_all, vanish."""
        with self.server.table.lock:
            nodes = self.server.nodes
            up = [name for name, node in nodes.nodes.items() if node.free]
            names = [request["node"]] if request.get("node") else up
            for name in names:
                nodes.send(name, {"verb": "fault", "fault": request["fault"], "values": request.get("values", {})})
            return names

    # hooks, as qmgr manages them

    def do_create_hook(self, request):
        hook = {"enabled": True, "event": "", "alarm": 30.0, "order": 1, "source": ""}
        self.server.table.settings.hooks[request["name"]] = hook
        self.hooks_changed()

    def do_delete_hook(self, request):
        del self.server.table.settings.hooks[request["name"]]
        self.hooks_changed()

    def do_set_hook(self, request):
        hook = self.server.table.settings.hooks[request["name"]]
        if request["attribute"] not in ("enabled", "event", "alarm", "order"):
            raise ValueError(request["attribute"])
        if request["attribute"] == "event":
            check_events(request["value"])
        hook[request["attribute"]] = typed(request["value"])
        self.hooks_changed()

    def do_import_hook(self, request):
        hook = self.server.table.settings.hooks[request["name"]]
        again = bool(hook["source"])
        hook["source"] = request["source"]
        self.hooks_changed()
        return {"said": "hook '%s' contents overwritten\n" % request["name"]} if again else None

    def do_list_hook(self, request):
        hook = self.server.table.settings.hooks[request["name"]]
        rows = [("type", "site"), ("enabled", str(hook["enabled"]).lower()), ("event", hook["event"])]
        rows += [("user", "pbsadmin"), ("alarm", "%d" % hook["alarm"]), ("order", "%d" % hook["order"])]
        rows += [("debug", "false"), ("fail_action", "none")]
        return "Hook %s\n" % request["name"] + "".join("    %s = %s\n" % row for row in rows) + "\n"

    def hooks_changed(self):
        with self.server.table.lock:
            self.server.table.settings.save()
            self.server.nodes.tell_settings()


def check_events(text):
    for event in text.split(","):
        if event not in EVENTS:
            known = ",".join(EVENTS)
            words = 'invalid argument (%s) to event. Should be one or more of: %s or "" for no event' % (event, known)
            raise Refused(errors.HOOK, words)
