"""Finding the PBS commands without a login shell, and running one of them: bounded in time and output, in a clean
environment, and never waiting for what it leaves behind.

The first qsub of a user leaves a background qsub that holds inherited descriptors for 60 s (a lock file stayed locked
for 61 s, an ssh session would stay open): the command gets none of ours, and the end that counts is the process's, not
that of its output. fork and exec by hand: `subprocess` costs 9 ms to import.
"""

import fcntl
import os
import select
import signal
import time
from collections import namedtuple

from .base import Unreachable

MYPY = False
if MYPY:
    from typing import Callable, Dict, List, Optional, Tuple

USUAL_PLACES = (
    "/opt/pbs/bin",
    "/opt/pbs/default/bin",
    "/opt/pbspro/bin",
    "/opt/pbspro/default/bin",
    "/usr/pbs/bin",
    "/usr/local/pbs/bin",
    "/opt/torque/bin",
    "/usr/local/torque/bin",
    "/usr/local/bin",
    "/usr/bin",
)
CONF_FILE = "/etc/pbs.conf"
MOST_OUTPUT = 16 << 20  # bytes; 100,000 ids are 1.5 MB, the full text of 20 jobs 100 kB
READS = 64  # of 64 kB
REAP_SECONDS = 5.0  # a killed process that hangs in the file system is left to init

# Where the server is and how to read its answers; all other PBS_* describe the job we may be called from.
_PBS_KEPT = ("PBS_CONF_FILE", "PBS_EXEC", "PBS_HOME", "PBS_SERVER", "PBS_DEFAULT", "PBS_PRIMARY", "PBS_SECONDARY")
# TMPDIR is removed when the job ends that we may be called from, and qsub then fails (`mkstemp`). PBS_DPREFIX would
# make qsub look for something other than #PBS.
_DROPPED = ("TMPDIR", "TMP", "TEMP", "LANGUAGE", "LANG", "OLDPWD")


class NotStarted(Unreachable):
    """The command could not be begun: nothing of it happened."""


# code: exit, -N where signal N ended it, None where we did after the timeout; out, err: text; whole: nothing cut off
Result = namedtuple("Result", "code out err whole")


class Commands:
    """The PBS commands of this host, and how often they were called."""

    def __init__(self, configured: str = "") -> None:
        """configured: the folder the commands are in, "" to look for it."""
        self._places = places(configured, os.environ)
        self.calls = 0

    def find(self, name: str) -> "Tuple[str, str]":
        """(path, where it was found) of a command. Raises NotStarted."""
        for folder, source in self._places:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return path, source
        looked = ", ".join(folder for folder, _ in self._places)
        raise NotStarted("no %s in %s; set pbs_bin to the folder it is in" % (name, looked))

    def run(
        self, argv: "List[str]", timeout: float, folder: str = "/", meanwhile: "Callable[[], None]" = lambda: None
    ) -> Result:
        """Run one command, named by argv[0], in `folder`; at most `timeout` seconds. Raises NotStarted."""
        path, _ = self.find(argv[0])
        self.calls += 1
        return run([path] + argv[1:], environment(os.environ, folder), folder, timeout, meanwhile)


def places(configured: str, base: "os._Environ[str]") -> "List[Tuple[str, str]]":
    """(folder, where from) to look for commands in. One that is configured is the only one."""
    if configured:
        return [(os.path.expanduser(configured), "pbs_bin")]
    found = [(folder, "PATH") for folder in base.get("PATH", "").split(os.pathsep) if folder.startswith("/")]
    conf = base.get("PBS_CONF_FILE") or CONF_FILE
    if base.get("PBS_EXEC"):
        found.append((os.path.join(base["PBS_EXEC"], "bin"), "PBS_EXEC"))
    if pbs_exec(conf):
        found.append((os.path.join(pbs_exec(conf), "bin"), conf))
    known = [folder for folder, _ in found]
    return found + [(folder, "usual place") for folder in USUAL_PLACES if folder not in known]


def pbs_exec(conf: str) -> str:
    """PBS_EXEC of a pbs.conf, "" where there is none."""
    try:
        with open(conf, "rb") as stream:
            lines = stream.read(1 << 20).decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return ""
    found = [line.partition("=")[2].strip().strip("'\"") for line in lines if line.strip().startswith("PBS_EXEC=")]
    return found[-1] if found else ""


def environment(base: "os._Environ[str]", folder: str) -> "Dict[str, str]":
    """What a command gets of our environment."""
    kept = {
        name: value
        for name, value in base.items()
        if name not in _DROPPED
        and not name.startswith(("PYTHON", "LC_"))
        and (not name.startswith("PBS_") or name in _PBS_KEPT)
    }
    # qsub makes PBS_O_WORKDIR of PWD where it names the folder we are in: the name as it is, not with links resolved.
    return dict(kept, LC_ALL="C", PWD=folder)


def run(
    argv: "List[str]",
    environ: "Dict[str, str]",
    folder: str,
    timeout: float,
    meanwhile: "Callable[[], None]" = lambda: None,
) -> Result:
    """Run `argv` in a session of its own, stdin from /dev/null, and `meanwhile` beside it. Past `timeout` seconds its
    whole process group is killed: what it asked of the server may have happened. Raises NotStarted."""
    pipes = [os.pipe() for _ in range(3)]  # out, err, and why it could not be begun
    try:
        pid = os.fork()
    except OSError as error:
        _close([end for pipe in pipes for end in pipe])
        raise NotStarted("%s: %s" % (argv[0], error.strerror)) from None
    if not pid:
        _become(argv, environ, folder, [pipe[1] for pipe in pipes])
    _close([pipe[1] for pipe in pipes])
    streams = [_Stream(pipe[0]) for pipe in pipes]
    try:
        code = _attend(pid, streams, time.monotonic() + timeout, meanwhile)
    finally:
        _close([stream.fd for stream in streams])
    out, err, failure = [stream.text() for stream in streams]
    if failure:
        raise NotStarted("%s: %s" % (argv[0], failure))
    return Result(code, out, err, all(stream.whole for stream in streams))


def _close(numbers: "List[int]") -> None:
    for number in numbers:
        os.close(number)


def _become(argv: "List[str]", environ: "Dict[str, str]", folder: str, ends: "List[int]") -> None:
    """The child's part: never returns."""
    try:
        os.setsid()  # Ctrl-C at our terminal must not end a qsub halfway
        for caught in (signal.SIGTERM, signal.SIGALRM, signal.SIGPIPE, signal.SIGHUP, signal.SIGINT):
            signal.signal(caught, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        keep = [os.open(os.devnull, os.O_RDONLY)] + ends
        for number in range(4):  # out of the way first: we may have been called with 0, 1 or 2 closed
            keep[number] = _above(keep[number])
        for number in range(3):
            os.dup2(keep[number], number)
        _close_above(2, keep[3])
        os.chdir(folder)
        os.execve(argv[0], argv, environ)
    except Exception as error:
        os.write(keep[3], str(getattr(error, "strerror", None) or error).encode("utf-8", "replace"))
    finally:
        os._exit(127)


def _above(number: int) -> int:
    return int(fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10))


def _close_above(last: int, spare: int) -> None:
    """Close every descriptor above `last` but `spare`: those we inherited ourselves are not all close-on-exec."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        numbers = list(range(1024))
    for number in numbers:
        if number > last and number != spare:
            try:
                os.close(number)
            except OSError:
                pass


class _Stream:
    """The reading end of a pipe, and what came through it so far."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.open = True
        self.whole = True
        self._kept = bytearray()

    def drain(self) -> None:
        """Take what is there now; more than a pipe holds, but an end to it, should somebody write without one."""
        for _ in range(READS):
            if not self.open:
                return
            try:
                piece = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return
            self.open = bool(piece)
            room = MOST_OUTPUT - len(self._kept)
            self.whole = self.whole and len(piece) <= room
            self._kept += piece[:room]

    def text(self) -> str:
        return self._kept.decode("utf-8", "replace")


def _attend(pid: int, streams: "List[_Stream]", deadline: float, meanwhile: "Callable[[], None]") -> "Optional[int]":
    """Read until the process is gone; its exit code, -N where signal N ended it, None where we had to. What a process
    it leaves behind may yet write is not waited for."""
    pause, ending = 0.001, False
    try:
        meanwhile()
        while True:
            # First the look at the process, then the pipes: what it wrote before it ended is then in them.
            gone, status = os.waitpid(pid, os.WNOHANG)
            for stream in streams:
                stream.drain()
            if gone:
                pid = 0
                return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            if time.monotonic() >= deadline:
                return None
            if not ending and not any(stream.open for stream in streams):
                pause, ending = 0.00005, True  # its pipes close a moment before it can be waited for
            pause = min(pause * 2, 0.02)
            _wait_for_more(streams, min(pause, max(0.0, deadline - time.monotonic())))
    finally:
        if pid:
            _kill(pid)


def _wait_for_more(streams: "List[_Stream]", seconds: float) -> None:
    still_open = [stream.fd for stream in streams if stream.open]
    if not still_open:
        time.sleep(seconds)
        return
    waiting = select.poll()
    for fd in still_open:
        waiting.register(fd, select.POLLIN)
    waiting.poll(int(seconds * 1000) + 1)


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # it may not have come to its own group yet
        try:
            kill(pid, signal.SIGKILL)
        except OSError:
            pass
    deadline = time.monotonic() + REAP_SECONDS
    while not os.waitpid(pid, os.WNOHANG)[0] and time.monotonic() < deadline:
        time.sleep(0.005)
