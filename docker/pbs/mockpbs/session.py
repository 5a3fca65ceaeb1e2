"""The processes of a session, from /proc: who they are, what they use, signals to all of them."""

import os
import signal as signals

PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")


def read_stat(pid):
    """The fields of /proc/PID/stat after the name, None for a process that is gone."""
    try:
        with open("/proc/%s/stat" % pid, encoding="latin-1") as stat:
            return stat.read().rpartition(")")[2].split()
    except OSError:
        return None


def members(session):
    """{pid: stat fields} of the living processes of a session; zombies are not alive."""
    found = {}
    for name in os.listdir("/proc"):
        fields = read_stat(name) if name.isdigit() else None
        if fields and int(fields[3]) == session and fields[0] not in "ZX":
            found[int(name)] = fields
    return found


def signal_all(session, number):
    """To every process at once, as PBS does; a process group would miss what `set -m` moved away."""
    pids = list(members(session))
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
    return pids


def kill_all(session):
    """KILL until none is left: one that was just forking may have been missed. Stopped first: a shell that sees its
    child killed before its own turn comes says so."""
    signal_all(session, signals.SIGSTOP)
    while signal_all(session, signals.SIGKILL):
        pass


def start_time(pid):
    """Tells a process from a later one with the same id."""
    fields = read_stat(pid)
    return fields[19] if fields else None


def usage(session):
    """(bytes resident, bytes virtual, cpu seconds) of a session now."""
    resident = virtual = ticks = 0
    for fields in members(session).values():
        virtual += int(fields[20])
        resident += int(fields[21]) * PAGE
        ticks += int(fields[11]) + int(fields[12])
    return resident, virtual, ticks // TICK
