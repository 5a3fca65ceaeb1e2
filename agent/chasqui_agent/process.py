"""Which process, which host, which boot: enough to prove that somebody is dead, and never to guess it.

Linux tells through /proc. Where there is none (macOS; tests hide it with CHASQUI_PROC) `ps` is asked, and what neither
can tell counts as alive.
"""

import os
import signal

MYPY = False
if MYPY:
    from typing import List

PROC = os.environ.get("CHASQUI_PROC", "/proc")


def host() -> str:
    """This host's name as written into owners; short and long forms differ between nodes, so it is used as it is."""
    return os.uname()[1]


def _read(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            return stream.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""


def boot_id() -> str:
    """A text that changes with every boot of this host, "" where the system does not tell."""
    found = _read(os.path.join(PROC, "sys/kernel/random/boot_id"))
    return found or _ask("sysctl", "-n", "kern.bootsessionuuid")


def pid_namespace() -> str:
    """The pid namespace, "" where there is no such thing: two containers of one host may both have a pid 17."""
    try:
        return os.readlink(os.path.join(PROC, "self/ns/pid"))
    except OSError:
        return ""


def start_time(pid: int) -> str:
    """When `pid` started, in the system's own words, "" where there is no such process or nobody tells."""
    fields = _stat(pid)
    if fields:
        return "" if fields[0] == "Z" else "clock:" + fields[19]
    return "" if os.path.isdir(os.path.join(PROC, "self")) else _ask("ps", "-o", "lstart=", "-p", str(pid))


def _stat(pid: int) -> "List[str]":
    """The fields of /proc/PID/stat after the name, which may itself hold spaces and brackets."""
    return _read(os.path.join(PROC, str(pid), "stat")).rpartition(")")[2].split()


def alive(pid: int, started: str) -> bool:
    """Whether the process `pid` that started at `started` may still run. A zombie is dead."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's process: it exists
    now = start_time(pid)
    if not now:
        return not os.path.isdir(os.path.join(PROC, str(os.getpid())))
    same_source = now.startswith("clock:") == started.startswith("clock:")
    return now == started or not started or not same_source


def stopped(pid: int) -> bool:
    """Whether a process is stopped, as by SIGSTOP or a debugger; False where nobody tells."""
    return _stat(pid)[:1] in (["T"], ["t"])


def session_members(session: int, groups: "List[int]") -> "List[int]":
    """The live processes of a session; where the system does not tell, those of the process groups `groups`."""
    try:
        pids = [int(name) for name in os.listdir(PROC) if name.isdigit()]
    except OSError:
        return _members_by_ps([session] + groups)
    members = []
    for pid in pids:
        fields = _stat(pid)
        if len(fields) > 3 and int(fields[3]) == session and fields[0] not in "ZX":
            members.append(pid)
    return members


def _members_by_ps(groups: "List[int]") -> "List[int]":
    # `ps -o sess` prints an address on macOS, so process groups have to do.
    members = []
    for line in _ask("ps", "-A", "-o", "pid=,pgid=,stat=").splitlines():
        pid, group, state = (line.split(None, 2) + ["", "", ""])[:3]
        if group.isdigit() and int(group) in groups and not state.startswith("Z"):
            members.append(int(pid))
    return members


def signal_all(pids: "List[int]", number: int = signal.SIGTERM) -> None:
    """Send a signal to each of `pids`; those already gone are passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            pass


def _ask(*argv: str) -> str:
    import subprocess  # 9 ms to import: only where /proc is missing

    try:
        done = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return done.communicate(timeout=10)[0].decode("utf-8", "replace").strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
