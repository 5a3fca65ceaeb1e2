"""What a job finds at its start: variables, script, node file."""

import os
import secrets


def environment(run, shell):
    """The variables of a PBS job; PATH is the login shell's own business."""
    job, conf = run.job, run.mom.conf
    found = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    found.update(run.mom.environment)
    found.update(dict(job["variables"]))
    found.update(
        HOME=run.home, LOGNAME=job["user"], USER=job["user"], SHELL=shell, TMPDIR=run.tmpdir, ENVIRONMENT="BATCH",
        PBS_ENVIRONMENT="PBS_BATCH", PBS_JOBCOOKIE=secrets.token_hex(16).upper(), PBS_JOBDIR=run.home,
        PBS_JOBID=run.name, PBS_JOBNAME=job["name"], PBS_MOMPORT="15003", PBS_NODENUM="0", PBS_TASKNUM="1",
        PBS_NODEFILE=os.path.join(run.mom.home, "aux", run.name), PBS_QUEUE=job["queue"],
        NCPUS=str(job["resources"].get("ncpus", "1")), OMP_NUM_THREADS=str(job["resources"].get("ncpus", "1")),
    )  # fmt: skip
    if job["index"] is not None:
        found.update(PBS_ARRAY_INDEX=str(job["index"]), PBS_ARRAY_ID="%s.%s" % (job["parent"], conf.server))
    return found


def write_script(run):
    """An empty script is not written at all: the shell then finds no such file, as measured."""
    if not run.job["script"]:
        return
    path = run.path(".SC")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700)
    with os.fdopen(descriptor, "wb") as out:
        out.write(run.job["script"].encode("utf-8", "surrogateescape"))
    if os.getuid() == 0:
        os.chown(path, run.account.pw_uid, run.account.pw_gid)


def script_line(run):
    """What the login shell reads: the script's name. The script is its child, hence 128+n for a killed script."""
    return run.path(".SC").replace("[", "\\[").replace("]", "\\]").encode() + b"\n"


def write_nodefile(run):
    path = os.path.join(run.mom.home, "aux", run.name)
    with open(path, "w", encoding="utf-8") as out:
        out.write((run.mom.conf.host + "\n") * int(run.job["resources"].get("nodect", "1")))
