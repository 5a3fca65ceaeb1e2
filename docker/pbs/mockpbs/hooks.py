"""Runs the site's hooks on the mom, each in a python of its own: one that throws or hangs costs a job only time."""

import json
import os
import subprocess
import sys

from . import session


def enabled(hooks, event):
    """[(name, hook)] of an event, in the order the site gave."""
    chosen = [(name, hook) for name, hook in hooks.items() if hook["enabled"] and event in hook["event"].split(",")]
    return sorted(chosen, key=lambda item: item[1]["order"])


def run_hooks(run, event, status):
    for name, hook in enabled(run.mom.hooks, event):
        run_hook(run, event, status, name, hook)


def run_hook(run, event, status, name, hook):
    told = {"event": event, "hook": name, "source": hook["source"], "job": job_facts(run, status)}
    folder = os.path.join(run.mom.home, "mom_priv", "hooks", "tmp")
    runner = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hookrunner.py")
    log_path = os.path.join(run.mom.home, "mom_logs", "hooks")
    with open(log_path, "ab") as log, run.mom.fork_lock:
        child = subprocess.Popen([sys.executable, "-I", runner], stdin=subprocess.PIPE, stdout=log, stderr=log,
                                 cwd=folder, env={"PATH": "/bin:/usr/bin"}, start_new_session=True)  # fmt: skip
    try:
        child.communicate(json.dumps(told).encode(), timeout=hook["alarm"])
    except subprocess.TimeoutExpired:
        session.kill_all(child.pid)
        child.communicate()
        run.mom.log("0001", "Hook", name, "alarm call while running %s hook '%s'" % (event, name))
        return
    if child.returncode:
        words = "%s hook '%s' encountered an exception, request rejected" % (event, name)
        run.mom.log("0008", "Job", run.name, words)


def job_facts(run, status):
    job = run.job
    return {
        "id": run.name, "euser": job["user"], "egroup": str(run.account.pw_gid), "Exit_status": status,
        "Job_Owner": "%s@%s" % (job["user"], job["owner_host"]), "Job_Name": job["name"], "queue": job["queue"],
        "Variable_List": job["variables"], "Resource_List": job["resources"], "session_id": run.shell.pid,
        "run_count": run.hop, "project": job["project"], "Account_Name": job["account"] or None, "jobdir": run.home,
    }  # fmt: skip
