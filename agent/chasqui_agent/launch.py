"""Starting processes: this agent again, detached supervisors, and runners. fork and exec, without subprocess (9 ms)."""

import os
import signal
import sys

MYPY = False
if MYPY:
    from typing import Dict, List


def own_path() -> str:
    """The .pyz (or the package folder) this agent runs from, resolved: a later deploy must not change what a job
    calls."""
    main = sys.modules["__main__"]
    if hasattr(main, "IS_CHASQUI_AGENT"):  # our __main__: its folder, or the archive it stands in
        return os.path.realpath(os.path.dirname(os.path.abspath(str(main.__file__))))
    return os.path.realpath(os.path.dirname(os.path.abspath(__file__)))


def python() -> str:
    """The interpreter that runs us, as an absolute path that is there on every node if it is here."""
    return sys.executable


def command(root: str) -> "List[str]":
    """The words that start this very agent for `root`; a verb follows."""
    return [python(), "-I", "-S", own_path(), "--root", root]


def child(argv: "List[str]", environment: "Dict[str, str]", folder: str, output: str, error: str) -> int:
    """Begin `argv` in `folder` with its output in two files (or one, if they are the same); the pid.

    The child is in our session and a process group of its own, with signals as a fresh process has them.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGPIPE, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(folder if os.path.isdir(folder) else "/")
        _redirect(output, error)
        os.execve(argv[0], argv, environment)
    finally:
        os._exit(127)


def _redirect(output: str, error: str) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    os.dup2(os.open(output or os.devnull, flags, 0o600), 1)
    os.dup2(1 if error == output else os.open(error or os.devnull, flags, 0o600), 2)


def detached(argv: "List[str]", errors: str) -> None:
    """Begin `argv` in a session of its own, as nobody's child, holding none of our descriptors.

    It must outlive us and must not hold the ssh session's pipes open. errors: file its stderr is appended to. Returns
    when it has left our session: what is still in a job's session when the job ends is killed.
    """
    left, leaving = os.pipe()
    pid = os.fork()
    if pid:
        os.close(leaving)
        os.waitpid(pid, 0)
        os.read(left, 1)
        os.close(left)
        return
    try:
        if os.fork():
            os._exit(0)
        os.setsid()  # last, so that our pid is the session's id: the shell scheduler finds a job's processes by it
        os.close(leaving)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
        os.chdir("/")
        os.execv(argv[0], argv)
    finally:
        os._exit(127)
