"""The classic mom_priv/epilogue: root, ten arguments, a bare environment; its exit code changes nothing.
And Torque's of the user's own (-l epilogue=), as the user, with the same arguments."""

import grp
import os
import stat
import subprocess

from . import session


def run_epilogue(run, status):
    """Waits for it while the job is still R; not longer than the alarm."""
    path = os.path.join(run.mom.home, "mom_priv", "epilogue")
    if not os.path.exists(path):
        return
    if not trusted(path):
        complain(run, path, -1, "Permission Error")
        return
    run.mom.log("0080", "Job", run.name, "running epilogue")
    code = execute(run, path, status)
    if code == -4:
        run.mom.log("0080", "Job", run.name, "completed epilogue, exit=-4")
    if code:
        complain(run, path, code, "nonzero p/e exit status")


def run_user_epilogue(run, status):
    """Nobody else's, readable and executable, and writable by nobody else; skipped without a word to the job, as one
    that is not there."""
    path = run.job.get("epilogue")
    if not path or not os.path.isfile(path):
        return
    if trusted(path, run.account.pw_uid):
        from .torque import EXITS

        code = execute(run, path, EXITS.get(status, status), True)
        run.mom.log("0080", "Job", run.name, "the user's epilogue ended, exit=%d" % code)
    else:
        complain(run, path, -1, "Permission Error")


def trusted(path, uid=None):
    """Root's (here: the mom's) or this user's, executable, and writable by nobody else."""
    found = os.stat(path)
    owned = found.st_uid == (os.getuid() if uid is None else uid)
    needed = stat.S_IXUSR if uid is None else stat.S_IXUSR | stat.S_IRUSR
    return owned and found.st_mode & needed == needed and not found.st_mode & 0o022


def complain(run, path, code, words):
    run.mom.log("0001", "Job", run.name, "pro/epilogue failed, file: %s, exit: %d, %s" % (path, code, words))


def execute(run, path, status, as_user=False):
    environ = {"PATH": "/bin:/usr/bin", "PBS_JOBDIR": run.home}
    if as_user:
        environ = {"PATH": "/bin:/usr/bin", "HOME": run.home, "USER": run.account.pw_name}
    with open(run.output.stdout_path(), "ab") as out, run.mom.fork_lock:
        child = subprocess.Popen(
            [path] + arguments(run, status), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            cwd=run.home, env=environ, **(run.as_user() if as_user else {}))  # fmt: skip
    try:
        return child.wait(run.mom.delays["epilogue_alarm"])
    except subprocess.TimeoutExpired:
        session.kill_all(child.pid)
        child.wait()
        return -4


def arguments(run, status):
    """id user group name session reslist used queue account exit"""
    job = run.job
    group = grp.getgrgid(run.account.pw_gid).gr_name
    asked = {name: value for name, value in job["resources"].items() if name not in ("nodect", "select")}
    lists = [",".join("%s=%s" % item for item in sorted(values.items())) for values in (asked, run.used())]
    words = [run.name, job["user"], group, job["name"], str(run.shell.pid)] + lists
    return words + [job["queue"], job["account"] or "null", str(status)]
