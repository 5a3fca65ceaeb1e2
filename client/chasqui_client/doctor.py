"""The ladder: from the host's name to a job that runs; stops at the first rung that fails, with what to type next."""

import json
import socket
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from chasqui_agent import spool, wire

from . import __version__, deploy, errors, inputs, launcher, ssh
from .config import Home, Remote
from .converse import converse
from .ledger import InputFile, Ledger
from .messages import Handler, JobOffer, Key, Listing, Offer
from .transport import Transport

Say = Callable[[str], None]

_SCRIPT = b"#!/bin/sh\necho the relay works >doctor.txt\n"
_PATIENCE = 60.0  # seconds for the tiny job; a queue may well take longer
_LEAST_SPACE, _LEAST_INODES = 50 << 20, 1000
_CLEAN = "chasqui-clean-shell"
_CONNECT = 10.0


class Failed(errors.ChasquiError):
    """{remote}: {rung}: {message}"""

    exit_code = 6


class OutOfReach(errors.Unreachable):
    """{remote}: {rung}: {message}"""


def run(home: Home, remote: Remote, say: Say, interactive: bool = False, job: bool = True) -> list[dict[str, str]]:
    """Climb; returns a dict (rung, said) for each rung. job: up to a tiny job in the relay's own root. Raises the first
    failure, which says what to type next."""
    return _Ladder(home, remote, say, interactive).climb(job)


class _Ladder:
    def __init__(self, home: Home, remote: Remote, say: Say, interactive: bool) -> None:
        self.home, self.remote, self.say, self.interactive = home, remote, say, interactive
        self.rungs: list[dict[str, str]] = []
        self.lines: list[str] = []  # of the rung at hand, told below it
        self.connected = remote.is_local

    def climb(self, job: bool) -> list[dict[str, str]]:
        if not self.remote.is_local:
            self._reach()
        self.transport: Transport = deploy.transport_to(self.home, self.remote, sure=True)
        for name, rung in (("shell", self._shell), ("python", self._python), ("root", self._root),
                           ("agent", self._agent), ("scheduler", self._scheduler), ("caps", self._caps),
                           *([("job", self._job)] if job else [])):
            self._rung(name, rung)
            for line in self.lines:
                self.say("      " + line)
            self.lines = []
        return self.rungs

    def _rung(self, name: str, rung: Callable[[], str]) -> None:
        try:
            said = rung()
        except errors.ChasquiError as error:
            self.say("FAIL  %s: %s" % (name, error))
            raise
        self.rungs.append({"rung": name, "said": said})
        self.say("ok    %s: %s" % (name, said))

    def _fail(self, rung: str, message: str, hint: str) -> Failed:
        return Failed(message, remote=self.remote.name, rung=rung, hint=hint)

    def _out_of_reach(self, rung: str, message: str, hint: str) -> OutOfReach:
        return OutOfReach(message, remote=self.remote.name, rung=rung, hint=hint)

    # -- up to the master ------------------------------------------------------------------------------------------

    def _reach(self) -> None:
        """The rungs below the login; where a connection is open they are proved already."""
        if ssh.check(self.home, self.remote):
            self._rung("master", lambda: "a connection is open")
            return
        self._rung("ssh", self._settings)
        if not self.proxied:
            self._rung("name", self._name)
            self._rung("port", self._port)
        self._rung("host key", self._host_key)
        self._rung("login", self._login)
        self._rung("master", self._master)

    def _settings(self) -> str:
        """What ssh makes of the host: aliases and ports of ~/.ssh/config count."""
        found = ssh.settings(self.remote)
        self.host, self.port = found.get("hostname", ""), int(found.get("port", "22"))
        through = found.get("proxyjump") or found.get("proxycommand") or "none"
        self.proxied = through != "none"
        if self.proxied:
            return "goes through %s; name and port can't be tried from here" % wire.printable(through, 100)
        return "means %s port %d" % (wire.printable(self.host, 200), self.port)

    def _name(self) -> str:
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise self._out_of_reach("name", "%s does not resolve: %s" % (self.host, errors.describe(error)),
                                     "correct host in %s; or connect to the site's VPN"
                                     % self.home.config_path) from error
        return str(found[0][4][0])

    def _port(self) -> str:
        try:
            with socket.create_connection((self.host, self.port), _CONNECT) as line:
                line.settimeout(_CONNECT)
                banner = line.recv(255)
        except OSError as error:
            raise self._out_of_reach(
                "port", "port %d of %s does not answer: %s" % (self.port, self.host, errors.describe(error)),
                'is the VPN up? another port: ssh_options = ["Port=2222"] in %s' % self.home.config_path) from error
        if not banner.startswith(b"SSH-"):
            raise self._out_of_reach("port", "port %d of %s is no ssh server" % (self.port, self.host),
                                     "correct the port in %s" % self.home.config_path)
        return wire.printable(banner.decode("utf-8", "replace").strip(), 100)

    def _host_key(self) -> str:
        """Ask ssh itself, offering no way to log in: known_hosts has too many forms to read it ourselves."""
        said = ssh.try_host_key(self.remote)
        problem = ssh.failure(self.remote, said)
        if isinstance(problem, (errors.HostKeyRefused, errors.HostUnreachable)):
            if isinstance(problem, errors.HostKeyRefused) and "CHANGED" not in said:
                problem.hint = "compare the key with what the site publishes, then: ssh %s" % self.remote.host
            raise problem
        return "known"

    def _login(self) -> str:
        if not self.interactive:
            raise errors.NotConnected(remote=self.remote.name)
        ssh.login(self.home, self.remote)
        return "accepted"

    def _master(self) -> str:
        if not ssh.check(self.home, self.remote):
            raise errors.NotConnected(remote=self.remote.name)
        return "stays open for %s, or until chasqui logout %s" % (ssh.PERSIST, self.remote.name)

    # -- on the other side -----------------------------------------------------------------------------------------

    def _shell(self) -> str:
        line = launcher.wrapped("echo " + _CLEAN)
        status, output, said = deploy.run_line(self.transport, self.remote, line)
        deploy.check_status(self.remote, status, said)
        before, found, _ = output.decode("utf-8", "replace").partition(_CLEAN)
        # Beyond that much a session stops looking for the agent's greeting.
        if not found or len(before) > wire.MAX_NOISE:
            raise errors.NoGreeting(ssh.last_line(before) or ssh.last_line(said) or "nothing", remote=self.remote.name,
                                    host=self.remote.host)
        if before.strip():
            return "runs commands, and prints text of its own: %s (harmless here)" % ssh.last_line(before)
        return "clean"

    def _python(self) -> str:
        self.probe = deploy.probe(self.transport, self.remote)
        return "%s, version %s" % (self.probe.python, self.probe.version)

    def _root(self) -> str:
        free, inodes = self.probe.free, self.probe.inodes
        if free is not None and free < _LEAST_SPACE:
            raise errors.RemoteDiskFull(remote=self.remote.name, root=self.remote.root)
        if inodes is not None and 0 < inodes < _LEAST_INODES:
            raise self._fail("root", "only %d more files can be made in %s" % (inodes, self.remote.root),
                             "remove files there, or set another root in %s" % self.home.config_path)
        said = "%s can be written to" % self.remote.root
        if free is not None:
            said += ", %d MB free" % (free >> 20)
        return said + (", %d inodes" % inodes if inodes else "")

    def _agent(self) -> str:
        return "installed" if deploy.ensure(self.transport, self.remote) else "there already"

    def _scheduler(self) -> str:
        status, output, said = deploy.run_agent(self.transport, self.remote, ["doctor"])
        lines = [wire.printable(line.strip(), 300) for line in output.decode("utf-8", "replace").splitlines()]
        if status:
            failed = next((line for line in lines if line.startswith("FAIL")), ssh.last_line(said) or "no answer")
            raise self._fail("scheduler", failed.removeprefix("FAIL").strip(),
                             "chasqui agent status --remote %s" % self.remote.name)
        return "; ".join(line.removeprefix("ok").strip() for line in lines if line.startswith("ok")) or "found"

    def _caps(self) -> str:
        """The site's limits and the caps; where the caps are higher, the lines to put in their place."""
        from . import propose
        status, output, _ = deploy.run_agent(self.transport, self.remote, ["caps", "--json"])
        try:
            found = json.loads(output.strip().split(b"\n")[-1]) if not status else None
        except (ValueError, RecursionError):
            found = None
        published, learnt = propose.rows(found)
        for told, known in (("published", published), ("learnt", learnt)):
            self.lines += ["%s: %s" % (told, propose.words(row)) for row in known]
        caps = propose.proposal(self.remote.caps, [*published, *learnt])
        self.lines += ["configured: " + ", ".join(propose.toml(self.remote.name, self.remote.caps)[1:])]
        if caps == self.remote.caps:
            return "%d limits of the site are known, and the caps keep to them" % len(published + learnt)
        self.lines += ["put this in place of the caps in %s:" % self.home.config_path]
        self.lines += propose.toml(self.remote.name, caps)
        return "the site allows less than the caps: it refuses nothing, the relay keeps to the lower of both"

    def _job(self) -> str:
        """Hand over a job that is in no ledger, and look for its result."""
        trial = _Trial(self.home, self.remote)
        trial.talk(self.transport, first=True)
        end = time.monotonic() + _PATIENCE
        while not trial.ended and time.monotonic() < end:
            time.sleep(min(2.0, max(0.1, end - time.monotonic())))
            trial.talk(self.transport)
        if not trial.ended:
            return "handed over and still in the queue after %d s, which may be normal there" % _PATIENCE
        deploy.run_line(self.transport, self.remote, launcher.shell(self.remote.root, [trial.job]),
                        b'rm -rf "$1/work/$2"\n')
        if not trial.worked:
            raise self._fail("job", "the tiny job ended without its result", "chasqui agent log --remote %s"
                             % self.remote.name)
        return "ran to its end and left its result"


class _Trial(Handler):
    """The tiny job's sessions."""

    def __init__(self, home: Home, remote: Remote) -> None:
        self.remote = remote
        self.job = "doctor-" + spool.new_job_id()
        self.ended = self.worked = False
        self.cursor, self.uuid = 0, ""
        if home.ledger_path.exists():
            with Ledger(home.ledger_path) as ledger:
                known = ledger.remote_state(remote.name)
            self.cursor, self.uuid = known.cursor, known.uuid

    def talk(self, transport: Transport, first: bool = False) -> None:
        hello = {"client": __version__, "ledger": self.job, "root_uuid": self.uuid, "cursor": self.cursor,
                 "config": None, "take_caps": False, "want_results": True, "results": [[self.job, 1]], "fetch": []}
        script = inputs.generated(b"doctor.sh", _SCRIPT)
        fields = {"name": "chasqui-doctor", "priority": 500, "script": "doctor.sh", "max_file": 1000}
        offer = Offer(hello, [([JobOffer(self.job, 1, [script], fields)], False)] if first else [])
        converse(transport, self.remote, offer, self)

    def welcome(self, fields: dict[str, Any]) -> None:
        self.uuid = str(fields.get("root_uuid"))

    def records(self, found: list[dict[str, Any]], cursor: int) -> None:
        self.cursor = cursor

    def open(self, offer: JobOffer, file: InputFile) -> BinaryIO:
        import io
        return io.BytesIO(file.content or b"")

    def refused(self, key: Key, why: str) -> None:
        raise errors.AgentRefused("the tiny job was not taken: " + why, remote=self.remote.name)

    def listed(self, listings: list[Listing]) -> None:
        for listing in listings:
            if listing.job == self.job:
                self.ended = True
                self.worked = any(file.path == b"doctor.txt" for file in listing.files)
