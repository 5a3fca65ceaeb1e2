"""Getting the agent onto a remote: which Python, upload of one file, verification there, the switch by one rename.

    <root>/agent/<sha256[:12]>.pyz   <root>/agent/python (the interpreter's path)   <root>/agent/current -> the .pyz

An agent is replaced only by one with a higher serial. Against a higher one than ours we work if it speaks our protocol.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import chasqui_agent
from chasqui_agent import wire

from . import errors, launcher, ssh
from .config import Home, Remote
from .fields import dataclass
from .transport import Channel, Local, Transport

_MAX_OUTPUT = 16 << 20
_RELAY_SILENCE = 30.0  # seconds for a question beside others; a scheduler that hangs takes longer
_VERSIONS = "python3 " + " ".join("python3.%d" % minor for minor in range(14, 5, -1))
_PLACES = ("/usr/bin/python3 /usr/libexec/platform-python /usr/local/bin/python3"
           " /opt/rh/rh-python36/root/usr/bin/python3")

# The first Python that is new enough, old ones with their version; then whether the root can be used, what is in it.
_PROBE = """\
umask 077
for candidate in {candidates}; do
  path=$(command -v "$candidate" 2>/dev/null) || continue
  case $path in /*) ;; *) continue ;; esac
  version=$("$path" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null) || continue
  case $version in
    3.[6-9]|3.[1-9][0-9]) echo "@version=$version"; echo "@python=$path"; break ;;
    *) echo "@old=$version $path" ;;
  esac
done
said=$({{ mkdir -p "$1/agent" && chmod 700 "$1" "$1/agent" && : >"$1/agent/.probe" && rm "$1/agent/.probe"; }} 2>&1) \\
  || {{ echo "@root=${{said:-it cannot be written to}}"; exit 0; }}
cd "$1/agent" && echo "@at=$(pwd -P)"
[ -L current ] && echo "@current=$(readlink current 2>/dev/null)"
df -Pk . 2>/dev/null | tail -n 1 | {{ read -r _ _ _ free _ && echo "@free=$free"; }}
df -Pi . 2>/dev/null | tail -n 1 | {{ read -r _ _ _ free _ && echo "@inodes=$free"; }}
echo "@end="
"""

# Stdin: the agent's bytes, nothing else. Python itself checks the hash, and renames: not every `mv` replaces a symlink.
_RECEIVE = " ".join((
    "umask 077; cd {root}/agent || exit 1; cat >{part} || {{ rm -f {part}; exit 95; }};",
    'h=$({python} -I -S -c "import hashlib,sys;',
    'print(hashlib.sha256(open(sys.argv[1],sys.argv[2]).read()).hexdigest())"',
    "{part} rb) || {{ rm -f {part}; exit 94; }};",
    '[ "$h" = {sha} ] || {{ rm -f {part}; exit 93; }};',
    "mv -f {part} {name}.pyz && echo {python} >{part}.py && mv -f {part}.py python &&",
    "{python} -I -S {name}.pyz --root .. install{options} && ln -s {name}.pyz {part}.ln &&",
    '{python} -I -S -c "import os,sys; os.rename(sys.argv[1], sys.argv[2])" {part}.ln current'))


@dataclass(frozen=True)
class Probe:
    """What the remote told about itself."""

    python: str
    version: str  # of Python
    folder: str  # of the agent, absolute
    current: str  # the deployed file's name, "" where there is none
    free: int | None  # bytes
    inodes: int | None  # files that can still be made


def transport_to(home: Home, remote: Remote, interactive: bool = False, sure: bool = False) -> Transport:
    """The way to a remote. Without a master: opens one where somebody can answer prompts, else raises NotConnected.

    Its socket is believed, and the first use tells; sure: the master itself is asked, by a process more.
    """
    if remote.is_local:
        return Local()
    if not (ssh.check(home, remote) if sure else ssh.has_socket(home, remote)):
        if not interactive:
            raise errors.NotConnected(remote=remote.name)
        sys.stderr.write("%s: no live connection, logging in.\n" % remote.name)
        ssh.login(home, remote)
    return ssh.Ssh(home, remote)


# -- running things there ----------------------------------------------------------------------------------------------


@contextmanager
def _explained(remote: Remote, transport: Transport | None = None) -> Iterator[None]:
    """Silence and broken pipes of a one-shot command, in our words."""
    try:
        yield
    except wire.WireError as error:
        lost = errors.ConnectionLost(str(error), remote=remote.name)
        raise (ssh.with_login(transport, lost) if transport else lost) from error


def start(transport: Transport, remote: Remote, line: str) -> Channel:
    """Begin one line there, at the pace that the remote's configuration allows now and then."""
    channel = transport.start(line)
    if remote.bandwidth:
        from . import pace
        channel.pace = pace.of_command(remote.bandwidth, transport.ahead)
    return channel


def run_line(transport: Transport, remote: Remote, line: str, stdin: bytes = b"",
             silence: float = 0.0) -> tuple[int | None, bytes, str]:
    """Run one line there: (exit status, stdout, stderr). Raises ConnectionLost, after `silence` seconds without a byte
    (0: the transport's). A refused session is tried for 75 s."""
    since, attempt = time.monotonic(), 0
    while True:
        status, output, said = _run_once(transport, remote, line, stdin, silence)
        if status != 255 or ssh.REFUSED_SESSION not in said or not ssh.wait_for_session(attempt, since):
            break
        attempt += 1
    if status == 255 and not said:
        raise ssh.with_login(transport, ssh.failure(remote, said))
    return status, output, said


def _run_once(transport: Transport, remote: Remote, line: str, stdin: bytes,
              silence: float) -> tuple[int | None, bytes, str]:
    channel = start(transport, remote, line)
    channel.silence = silence or channel.silence
    try:
        with _explained(remote, transport):
            try:
                channel.write(stdin)
            except wire.Closed:
                pass  # its exit status and words say more
            channel.close_input()
            output = channel.read_all(_MAX_OUTPUT)
    finally:
        status = channel.close()
    return status, output, channel.stderr_tail()


def run_agent(transport: Transport, remote: Remote, arguments: Sequence[str]) -> tuple[int | None, bytes, str]:
    """Run a verb of the deployed agent: (exit status, stdout, stderr).

    Raises AgentMissing, NoPython, NotConnected, ConnectionLost.
    """
    status, output, said = run_line(transport, remote, launcher.agent(remote.root, arguments))
    check_status(remote, status, said)
    return status, output, said


def check_status(remote: Remote, status: int | None, said: str) -> None:
    """Raises what the exit statuses of launcher and ssh mean: AgentMissing, NoPython, NotConnected and its like."""
    if status == launcher.MISSING:
        raise errors.AgentMissing(remote=remote.name, root=remote.root)
    if status == launcher.TOO_OLD:
        raise too_old(remote, said)
    if status == 255:
        raise ssh.failure(remote, said)


def too_old(remote: Remote, said: str) -> errors.NoPython:
    """The Python that the agent was installed with is an old one by now; `said` are the agent's words."""
    return errors.NoPython("; " + ssh.last_line(said).removeprefix("chasqui-agent: "), remote=remote.name)


def relay_now(home: Home, remote: Remote) -> dict[str, Any] | None:
    """What the relay there says of itself (the agent's `status --json`), as `ask_agent` does."""
    return ask_agent(home, remote, ["status", "--json"])


def ask_agent(home: Home, remote: Remote, words: Sequence[str]) -> dict[str, Any] | None:
    """What a verb of the agent answers, one JSON object; None where no connection is open or no agent there. One exec,
    never a login. Raises AgentRefused, ConnectionLost and its like, within 30 s of silence."""
    try:
        transport = transport_to(home, remote, sure=True)
        status, output, said = run_line(transport, remote, launcher.agent(remote.root, words), silence=_RELAY_SILENCE)
        check_status(remote, status, said)
    except (errors.NotConnected, errors.AgentMissing):
        return None
    try:
        found = json.loads(output.decode("utf-8", "replace"))
    except ValueError:
        found = None
    if status or not isinstance(found, dict):
        raise errors.AgentRefused(ssh.last_line(said) or "no words for it", remote=remote.name)
    return found


def agent_command(home: Home, remote: Remote, words: Sequence[str], line: Callable[[str], None],
                  interactive: bool = False) -> int:
    """Run a verb of the agent and pass its output on line by line as it comes; returns the exit status."""
    transport = transport_to(home, remote, interactive, sure=True)
    channel = start(transport, remote, launcher.agent(remote.root, words))
    # A followed log is silent for as long as nothing happens.
    channel.silence = 1e6 if "-f" in words else 600.0
    try:
        channel.close_input()
        for text in lines_of(channel, remote):
            line(wire.printable(text, 4000))
    finally:
        status = channel.close(0.2 if "-f" in words else 5.0)
    said = channel.stderr_tail()
    check_status(remote, status, said)
    for text in said.splitlines():
        line(text)
    return 1 if status is None else status


def lines_of(channel: Channel, remote: Remote) -> Iterator[str]:
    """The lines of output as they come. Raises ConnectionLost."""
    rest = b""
    with _explained(remote):
        while data := channel.read_some():
            *whole, rest = (rest + data).split(b"\n")
            if len(rest) > 1 << 20:
                raise wire.WireError("a line of more than a million bytes")
            for one in whole:
                yield one.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")


# -- deploying ---------------------------------------------------------------------------------------------------------


def probe(transport: Transport, remote: Remote) -> Probe:
    """Look for a Python and at the root, making its agent folder. Raises NoPython, RootUnusable, ConnectionLost."""
    script = _PROBE.format(candidates=_candidates(remote)).encode("ascii")
    status, output, said = run_line(transport, remote, launcher.shell(remote.root), script)
    check_status(remote, status, said)
    found: dict[str, str] = {}
    old = []
    for text in output.decode("utf-8", "replace").splitlines():
        key, equals, value = text.partition("=")
        if key == "@old":
            old.append(wire.printable(value, 200))
        elif equals and key.startswith("@"):
            found[key[1:]] = value
    if "root" in found:
        raise _root_unusable(remote, found["root"])
    if "end" not in found:
        raise errors.NoGreeting(ssh.last_line(said) or "nothing", remote=remote.name, host=remote.host)
    if "python" not in found:
        raise errors.NoPython("; too old: " + ", ".join(old) if old else "", remote=remote.name)
    free, inodes = (int(found[key]) if found.get(key, "").isdigit() else None for key in ("free", "inodes"))
    return Probe(found["python"], found.get("version", ""), found.get("at", ""), found.get("current", ""),
                 None if free is None else free * 1024, inodes)


def _candidates(remote: Remote) -> str:
    if remote.python != "auto":
        return "'%s'" % remote.python.replace("'", "'\\''")
    own = "'%s' " % sys.executable.replace("'", "'\\''") if remote.is_local else ""
    return own + _VERSIONS + " " + _PLACES


def _root_unusable(remote: Remote, said: str) -> errors.ChasquiError:
    if "space" in said.lower() or "quota" in said.lower():
        return errors.RemoteDiskFull(remote=remote.name, root=remote.root)
    return errors.RootUnusable(ssh.last_line(said), remote=remote.name, root=remote.root)


def deploy(home: Home, remote: Remote, interactive: bool = False) -> str:
    """Install our agent unless one of at least our serial is there; returns its folder on the remote."""
    transport = transport_to(home, remote, interactive, sure=True)
    ensure(transport, remote)
    return remote.root


def ensure(transport: Transport, remote: Remote) -> bool:
    """Bring the remote's agent to at least our serial; True where something was installed.

    Whatever fails, what was there before still works: `current` moves last, by one rename.
    Raises NoPython, RootUnusable, RemoteDiskFull, AgentRefused, NotConnected, ConnectionLost.
    """
    there = _deployed(transport, remote)
    if there and there["serial"] >= chasqui_agent.SERIAL:
        return False
    from . import build
    pyz = build.build_pyz()
    found = probe(transport, remote)
    _upload(transport, remote, found, pyz)
    return True


def _deployed(transport: Transport, remote: Remote) -> dict[str, Any]:
    """What the agent that is there says of itself; {} where there is none that works."""
    try:
        status, output, _ = run_agent(transport, remote, ["version"])
        known = json.loads(output.decode("utf-8", "replace").strip().splitlines()[-1])
    except (errors.AgentMissing, errors.NoPython, ValueError, IndexError):
        return {}
    return known if status == 0 and isinstance(known, dict) and isinstance(known.get("serial"), int) else {}


def _upload(transport: Transport, remote: Remote, found: Probe, pyz: bytes) -> None:
    if found.free is not None and found.free < len(pyz) + (1 << 20):
        raise errors.RemoteDiskFull(remote=remote.name, root=remote.root)
    from . import build
    sha = build.digest(pyz)
    options = _scheduler(remote)
    options += " --work-root " + remote.work_root if remote.work_root else ""
    line = launcher.wrapped(_RECEIVE.format(
        root=remote.root, part=".up-" + os.urandom(4).hex(), python=_quoted(found.python), sha=sha, name=sha[:12],
        options=options))
    status, _, said = run_line(transport, remote, line, pyz)
    if status is None or status == 255:  # None: ssh did not end by itself, and nobody knows what was done
        raise ssh.failure(remote, said)
    if status:
        raise _upload_failure(remote, status, said)


def _scheduler(remote: Remote) -> str:
    """What `install` is told: the scheduler asked for; with "auto" that of a root which has none yet."""
    if remote.scheduler != "auto":
        return " --scheduler " + remote.scheduler
    # Who says where qsub is has a PBS; on one's own computer nobody expects one.
    return " --default openpbs" if remote.pbs_bin else " --default shell" if remote.is_local else ""


def _quoted(python: str) -> str:
    """A path from the probe as a word inside a single-quoted line. Raises where no quoting is possible there."""
    if any(char in python for char in "'\"\\!$`\n"):
        raise errors.NoPython("; this one has a path that no shell can be given: " + wire.printable(python), remote="")
    return '"%s"' % python


def _upload_failure(remote: Remote, status: int | None, said: str) -> errors.ChasquiError:
    full = "space" in said.lower() or "quota" in said.lower()
    if full:
        return errors.RemoteDiskFull(remote=remote.name, root=remote.root)
    if "not supported yet" in said:
        return errors.UnsupportedScheduler(ssh.last_line(said).removeprefix("chasqui-agent: "), remote=remote.name)
    if status == 93:
        return errors.ConnectionLost("the agent arrived damaged", remote=remote.name)
    return errors.RootUnusable(ssh.last_line(said) or "installing ended with status %s" % status,
                               remote=remote.name, root=remote.root)
