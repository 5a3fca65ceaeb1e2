"""Wakes chasqui's relay at the end of a job: an execjob_end hook (OpenPBS, PBS Pro). Install: README.md.

The mom runs it as root, in its own Python: 2.7 or 3, the standard library only. A job is ours if it names its root in
CHASQUI_ROOT. Root reads no file of the user and runs runuser, or su, and nothing else; the wake is the owner's.
The job is in E while this runs, and counts: the hook only starts a detached child and accepts, whatever happens.
"""

import os
import pwd
import re
import signal
import sys

import pbs

PLACES = "/usr/sbin:/usr/bin:/sbin:/bin"  # the mom's PATH has no sbin, where runuser stands
LIMIT = 60  # seconds for all that is done as the owner
SILENCED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGCHLD")

# What can be handed on: no option, no path, no line break. \Z, because $ would let one newline pass.
USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]{0,63}\Z")
ID = re.compile(r"[0-9][A-Za-z0-9._\[\]-]{0,254}\Z")
ROOT = re.compile(r"/[^\n\0]{0,4095}\Z")

# What the owner runs. Arguments: job id, owner, home, and the root that the job itself named.
# The epilogue holds the same text.
AS_OWNER = r'''
PATH=/usr/bin:/bin
umask 077
cd / || exit 0
uid=$(id -u)
[ "$uid" != 0 ] || exit 0
id=$1 user=$2 home=$3 root=$4
shift 4
record=$home/.chasqui-agent/jobs/$id
python=
agent=

# Ours, and not for others to write: what stands in it is about to be run.
mine() {
    [ -n "$(find -H "$1" -prune -user "$uid" ! -perm -020 ! -perm -002 2>/dev/null)" ]
}

# A record is taken before the wake, not after it: PBS may be starting the job again under this id, with a new record.
if [ -f "$record" ] && [ ! -L "$record" ] && mine "$record"; then
    {
        IFS= read -r root && IFS= read -r python && IFS= read -r agent
        # Where the server is, if the job was told; nothing else gets into the wake that way.
        while IFS= read -r line; do
            case $line in
                *[[:cntrl:]]*) ;;
                PBS_CONF_FILE=/* | PBS_EXEC=/* | PBS_DEFAULT=?* | PBS_SERVER=?*) set -- "$@" "$line" ;;
            esac
        done
    } <"$record"
    rm -f "$record"
elif [ -n "$root" ] && mine "$root" && [ -f "$root/agent/python" ]; then
    IFS= read -r python <"$root/agent/python"
    agent=$root/agent/current
fi
for path in "$root" "$python" "$agent"; do
    case $path in
        /*) [ -e "$path" ] || exit 0 ;;
        *) exit 0 ;;
    esac
done
pbs=$(sed -n "s/^PBS_EXEC=//p" /etc/pbs.conf 2>/dev/null | tail -n 1)

# Until PBS says F, 0.3 s after this as a rule, the job still takes a slot that the wake could fill.
sleep 2
exec nice env -i HOME="$home" USER="$user" LOGNAME="$user" PATH="$PATH${pbs:+:$pbs/bin}" LC_ALL=C PBS_JOBID="$id" "$@" \
    "$python" -I -S "$agent" --root "$root" wake --reason hook --budget 15
'''


def wake(job):
    """Start the owner's wake, if the job is ours and this is the node that speaks for it; returns at once."""
    if not job.in_ms_mom():
        return  # every node of a job runs its hooks; one wake is enough
    root = variable(job.Variable_List, "CHASQUI_ROOT")
    if not root:
        return
    user, job_id = str(job.euser), str(job.id)
    if not (USER.match(user) and ID.match(job_id) and ROOT.match(root)):
        raise ValueError("job %r of %r, root %r: not a name chasqui hands on" % (job_id, user, root))
    if not (program("runuser") or program("su")):
        raise OSError("neither runuser nor su in " + PLACES)
    if user != "root":
        detach(become_owner, user, job_id, root)


def variable(variables, name):
    """One of the job's variables, "" where it has none: PBS gives a dictionary, or the text of its attribute."""
    if hasattr(variables, "keys"):
        return str(variables[name]) if name in variables.keys() else ""
    for item in re.findall(r"(?:[^,\\]|\\.)+", str(variables or "")):  # a comma in a value has a backslash
        if item.startswith(name + "="):
            return re.sub(r"\\(.)", r"\1", item[len(name) + 1 :])
    return ""


def detach(run, *arguments):
    """Call `run` in a process that is nobody's child and in a session of its own before this returns."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            run(*arguments)
    finally:
        os._exit(0)


def become_owner(user, job_id, root):
    """The detached half; does not return where it can help it."""
    os.chdir("/")
    os.umask(0o077)
    close_descriptors()
    for name in SILENCED:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.alarm(LIMIT)  # the user directory may be a server that hangs
    entry = pwd.getpwnam(user)
    signal.alarm(0)
    if entry.pw_uid != 0:
        argv = command(user, [job_id, user, entry.pw_dir, root])
        os.execve(argv[0], argv, {"PATH": PLACES, "LC_ALL": "C"})


def close_descriptors():
    """Nothing of the mom's stays open: she may wait for the end of a pipe."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        numbers = range(1024)
    for number in numbers:
        try:
            os.close(number)
        except OSError:
            pass  # the one that listed the others
    for number in range(3):
        os.open(os.devnull, os.O_RDWR)
        if hasattr(os, "set_inheritable"):
            os.set_inheritable(number, True)  # Python 3 would close it at exec, and runuser have no output at all


def command(user, arguments):
    """The words that run AS_OWNER with `arguments` as `user`, under a time limit where the system has one."""
    runuser, timeout = program("runuser"), program("timeout")
    if runuser:
        argv = [runuser, "-u", user, "--", "/bin/sh", "-c", AS_OWNER, "sh"]
    else:
        argv = [program("su"), "-s", "/bin/sh", "-c", AS_OWNER, "--", user, "sh"]
    argv = ([timeout, "-k", "10", str(LIMIT)] if timeout else []) + argv + arguments
    # Under LC_ALL=C Python 3.6 would refuse a folder with an accent.
    return [word if isinstance(word, bytes) else word.encode("utf-8", "surrogateescape") for word in argv]


def program(name):
    """Where a system program stands, "" where there is none."""
    for folder in PLACES.split(":"):
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK):
            return path
    return ""


def main():
    try:
        wake(pbs.event().job)
    except Exception:
        pbs.logmsg(pbs.LOG_WARNING, "chasqui: no wake: %s" % sys.exc_info()[1])
    pbs.event().accept()


main()
