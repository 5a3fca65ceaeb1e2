"""The system's ssh: one authenticated master connection per remote, and commands that can only use that one.

Why each option stands here was measured (OpenSSH 9.2). The most important: work is run with ProxyCommand=false. With a
live master ssh ignores it; without one ssh can't reach the network at all, so that a command never logs in by accident,
never spends a one-time code and never gets an account locked.
"""

import fcntl
import hashlib
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chasqui_agent import wire

from . import errors
from .child import Child
from .config import Home, Remote, check_host
from .transport import Channel, Transport

# sun_path holds 108 bytes on Linux, 104 elsewhere; ssh makes the socket under a name 17 longer first.
MAX_CONTROL_PATH = 104 - 17 - 1
CHECK_TIMEOUT = 10.0
LOGOUT_TIMEOUT = 10.0
PERSIST = "8h"


# -- the control socket ------------------------------------------------------------------------------------------------


def control_path(remote: Remote, home: Home) -> str:
    """Our own path, not ssh's %C: that moves with ssh's version and with ProxyJump.

    Raises SocketPathTooLong, HomeUnusable (a folder that is not ours alone: whoever can use the socket is logged in).
    """
    identity = "\0".join([remote.host, os.path.expanduser(remote.ssh_config), *remote.ssh_options])
    name = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:10]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folders = [os.path.join(runtime, "chasqui")] if os.path.isabs(runtime) and os.path.isdir(runtime) else []
    folders += [os.path.join(home.path, "ssh"), os.path.expanduser("~/.cache/chasqui")]
    for folder in folders:
        if _short(os.path.join(folder, name)):
            return os.path.join(_private_folder(folder), name)
    raise errors.SocketPathTooLong(path=os.path.join(folders[-1], name), limit=MAX_CONTROL_PATH)


def _short(path: str) -> bool:
    return len(os.fsencode(path)) <= MAX_CONTROL_PATH


def _private_folder(path: str) -> str:
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise errors.HomeUnusable("it is not a folder of yours", path=path, hint="remove it")
        os.chmod(path, 0o700)
    except OSError as error:
        raise errors.HomeUnusable(errors.describe(error), path=path) from error
    return path


@contextmanager
def _login_lock(path: str) -> Iterator[None]:
    """One login at a time: two would spend two codes, and the second unlink the first one's socket."""
    fd = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


# -- argv --------------------------------------------------------------------------------------------------------------


def _options(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("-o", pair)]


def _destination(remote: Remote, *defaults: str) -> list[str]:
    """The user's own options behind ours (ssh takes the first it sees), `defaults` behind those, then the host."""
    own = ["-F", os.path.expanduser(remote.ssh_config)] if remote.ssh_config else []
    return [*own, *_options(*remote.ssh_options, *defaults), "--", check_host(remote.host)]


def login_argv(remote: Remote, path: str) -> list[str]:
    """What starts the master; prompts go to the terminal."""
    return ["ssh", *_options(
        "ControlMaster=yes", "ControlPath=" + path, "ControlPersist=" + PERSIST, "Compression=no", "ForwardAgent=no",
        "ForwardX11=no", "ClearAllForwardings=yes", "PermitLocalCommand=no", "RemoteCommand=none"), "-T", "-fN",
        *_destination(remote, "ServerAliveInterval=15", "ServerAliveCountMax=4", "ConnectTimeout=20")]


def work_argv(remote: Remote, path: str, line: str) -> list[str]:
    """What runs `line` through the master, and never in another way."""
    return ["ssh", *_options(
        "ControlMaster=no", "ControlPath=" + path, "BatchMode=yes", "ProxyCommand=false", "RemoteCommand=none",
        "ClearAllForwardings=yes"), "-T", "-a", "-x", "-e", "none", *_destination(remote), line]


def _control_argv(remote: Remote, path: str, command: str) -> list[str]:
    return ["ssh", *_options("ControlPath=" + path, "BatchMode=yes", "ProxyCommand=false"), "-O", command,
            *_destination(remote)]


def _run_quietly(argv: list[str], timeout: float) -> tuple[int, str]:
    """(exit status, output) of a short ssh command that asks nothing; 255 where it does not end."""
    import subprocess  # here, because a sync through a live master has no use for it
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=timeout, check=False)
    except FileNotFoundError:
        raise errors.NoSsh() from None
    except subprocess.TimeoutExpired:
        return 255, ""
    return done.returncode, done.stdout.decode("utf-8", "replace")


# -- the master --------------------------------------------------------------------------------------------------------


def check(home: Home, remote: Remote) -> bool:
    """Whether a master runs. Asks the local process only: the network behind it may be down."""
    path = control_path(remote, home)
    return os.path.exists(path) and _run_quietly(_control_argv(remote, path, "check"), CHECK_TIMEOUT)[0] == 0


def has_socket(home: Home, remote: Remote) -> bool:
    """Whether a master seems to run: what `check` says, unless it was killed."""
    return os.path.exists(control_path(remote, home))


def login(home: Home, remote: Remote) -> bool:
    """Open the master, the prompts on the user's terminal; False where one was open already.

    Raises LoginFailed, HostUnreachable, HostKeyRefused; then no master runs, and no socket is left.
    """
    if remote.is_local:
        return False
    path = control_path(remote, home)
    with _login_lock(path):
        if check(home, remote):
            return False
        # With a stale socket ssh would log in, spend a code, and put a connection nobody can use into the background.
        Path(path).unlink(missing_ok=True)
        said = _start_master(remote, path)
        if not check(home, remote):
            if said is None:
                raise errors.LoginFailed("the password or code was refused, or ssh gave up: see above",
                                         hint="chasqui login %s" % remote.name, remote=remote.name)
            raise failure(remote, said or "ssh ended without opening a connection")
    return True


def _start_master(remote: Remote, path: str) -> str | None:
    """Run ssh until it has gone into the background; what it said, None where that is on the terminal.

    Never a pipe for its stderr: the master keeps it open as long as it lives.
    """
    import subprocess
    try:
        if sys.stderr is not None and sys.stderr.isatty():
            subprocess.run(login_argv(remote, path), check=False)
            return None
        with open(path + ".log", "w+b") as log:
            subprocess.run(login_argv(remote, path), stdout=log, stderr=log, check=False)
            log.seek(0)
            return log.read(16 << 10).decode("utf-8", "replace")
    except FileNotFoundError:
        raise errors.NoSsh() from None


def logout(home: Home, remote: Remote) -> bool:
    """Close the master; False where none ran."""
    if remote.is_local:
        return False
    path = control_path(remote, home)
    ran = os.path.exists(path) and _run_quietly(_control_argv(remote, path, "exit"), LOGOUT_TIMEOUT)[0] == 0
    for name in (path, path + ".log"):
        Path(name).unlink(missing_ok=True)
    return ran


# -- work --------------------------------------------------------------------------------------------------------------


class Ssh:
    """The transport through a remote's master."""

    compress = True
    ahead = (2 << 20) + (64 << 10)  # ssh's window, which it has the server fill whether we read or not, and a pipe

    def __init__(self, home: Home, remote: Remote) -> None:
        self.home, self.remote = home, remote
        self.path = control_path(remote, home)

    @property
    def alive(self) -> bool:
        """Whether the master still runs; says nothing of the network behind it."""
        return check(self.home, self.remote)

    def start(self, line: str) -> Channel:
        """Begin `line` through the master. Raises NotConnected where there is no socket; nothing was contacted then."""
        if not os.path.exists(self.path):
            raise errors.NotConnected(remote=self.remote.name)
        try:
            return Channel(Child(self.argv(line)))
        except FileNotFoundError:
            raise errors.NoSsh() from None

    def argv(self, line: str) -> list[str]:
        """What `start` runs."""
        return work_argv(self.remote, self.path, line)


def try_host_key(remote: Remote) -> str:
    """What ssh says when it may reach the host, must know its key, and has no way to log in."""
    argv = ["ssh", *_options("BatchMode=yes", "StrictHostKeyChecking=yes", "PreferredAuthentications=none",
                             "ControlMaster=no", "ControlPath=none", "ConnectTimeout=20", "RemoteCommand=none"),
            "-T", *_destination(remote), "true"]
    return _run_quietly(argv, 40.0)[1]


def settings(remote: Remote) -> dict[str, str]:
    """What ssh itself makes of the host (`ssh -G`): hostname, port, user, proxyjump, proxycommand.. in lower case."""
    status, text = _run_quietly(["ssh", "-G", *_destination(remote)], CHECK_TIMEOUT)
    if status:
        raise failure(remote, text)
    return dict(line.partition(" ")[::2] for line in text.splitlines())


# -- failures ----------------------------------------------------------------------------------------------------------

# Compiled when something failed: that costs more than the rest of this module.
_NO_MASTER = (r"Control socket connect\(.*(No such file|Connection refused)|UNKNOWN port 65535|"
                        r"mux_client_hello_exchange|master hello|read from master failed")
REFUSED_SESSION = "Session open refused by peer"
_KEY = r"(Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED|No .* host key is known)"
_NETWORK = (r"(Could not resolve hostname[^\r\n]*|Connection refused|Connection timed out|No route to host|"
                      r"Network is unreachable|Operation timed out|Timeout, server [^\r\n]*|"
                      r"(?:banner exchange|kex_exchange_identification): [^\r\n]*)")
_DENIED = r"(Permission denied[^\r\n]*|Too many authentication failures|Authentication failed[^\r\n]*)"


def failure(remote: Remote, said: str) -> errors.ChasquiError:
    """What ssh's own words mean, for a command that failed before the agent's greeting was seen."""
    fields = {"remote": remote.name, "host": remote.host}
    if not said.strip():  # what a master that was killed leaves behind: 255, and not a word
        return errors.ConnectionLost("ssh ended without a word", **fields)
    if re.search(_NO_MASTER, said):
        return errors.NotConnected(**fields)
    if REFUSED_SESSION in said:
        return errors.SessionRefused(**fields)
    if found := re.search(_KEY, said):
        return errors.HostKeyRefused(wire.printable(found[1]), **fields)
    if found := re.search(_NETWORK, said):
        return errors.HostUnreachable(wire.printable(found[1]), **fields)
    if found := re.search(_DENIED, said):
        return errors.LoginFailed(wire.printable(found[1]), **fields)
    return errors.LoginFailed(last_line(said), **fields)


def with_login(transport: Transport, failure: errors.ChasquiError) -> errors.ChasquiError:
    """The same failure; MasterDied where the master is gone with the session, and a new login has to come first."""
    if isinstance(failure, errors.ConnectionLost) and isinstance(transport, Ssh) and not transport.alive:
        return errors.MasterDied(**failure.fields)
    return failure


def last_line(said: str) -> str:
    """The last line that is not empty, safe for a terminal."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return wire.printable(lines[-1], 300) if lines else ""


def wait_for_session(attempt: int, since: float) -> bool:
    """Whether to try again after the server refused a session; sleeps first. A killed client's lives up to 60 s."""
    if time.monotonic() - since > 75:
        return False
    time.sleep(min(5.0, 0.5 * 2 ** attempt))
    return True
