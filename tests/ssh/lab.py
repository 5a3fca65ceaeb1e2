"""A real sshd on a loopback port, with a key and a one-time code, and accounts with the login shells people have.

The session fixture `lab` (in fixtures.py) makes all of it as root and takes it away in the end; `proxy` is a TCP line
that can be cut. Nothing here needs pytest: `running()` is the same for a program.

    user = lab.user("tcsh")                     bash tcsh zsh fish noisy: key and one-time code (HOTP through PAM)
                                                plain: the key alone; single: the key alone, and MaxSessions 1
    user.ssh_config, user.host_alias            for `ssh -F CONFIG ALIAS`; user.home and user.name on the other side
    lab.config(user, port=proxy.port)           an ssh_config for the same account by another port or host key
    lab.env(user)             environment of a client with its own HOME and CHASQUI_HOME that answers the prompt
    lab.env(user, codes="none"|"wrong")    a client that cannot answer, or answers wrongly
    before = lab.counts(); ...; lab.counts() - before      what sshd's log and the askpass log say happened

sshd's configuration and its pitfalls were measured: the PAM service is named after the daemon's file up to OpenSSH 9.7
(so it runs as a copy with a name of its own) and by PAMServiceName from 9.8 on; HOTP, because pam_oath takes a TOTP
once only and the next one comes 30 s later.
"""

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import needs
from ssh.accounts import add_account, drop_stale, owned_processes, remove_account

TOP = Path(__file__).resolve().parents[2]
SHELLS = {
    "bash": "bash",
    "tcsh": "tcsh",
    "zsh": "zsh",
    "fish": "fish",
    "noisy": "bash",
    "plain": "bash",
    "single": "bash",
}
PAM_MODULES = ("lib/*/security/pam_oath.so", "lib*/security/pam_oath.so", "usr/lib*/security/pam_oath.so")
KEY_ONLY = ("plain", "single")
# bash reads .bashrc also for `ssh host command`; this is what sites and conda put there.
NOISY_RC = "echo 'Welcome to the cluster! Quota: 93 %'\nprintf 'module: command not found\\n' >&2\n"

SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {lab}/host_key
PidFile {lab}/sshd.pid
LogLevel VERBOSE
UsePAM yes
{pam_service}
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication yes
AuthenticationMethods publickey,keyboard-interactive:pam
MaxAuthTries 3
MaxStartups 1000:1:1000
MaxSessions 10
AllowUsers {names}
PrintMotd no
UseDNS no
Subsystem sftp internal-sftp
Match User {plain},{single}
    AuthenticationMethods publickey
Match User {single}
    MaxSessions 1
"""

SSH_CONFIG = """\
Host {alias}
    HostName 127.0.0.1
    Port {port}
    User {name}
    IdentityFile {keys}/id
    IdentitiesOnly yes
    HostKeyAlias chasqui-lab
    UserKnownHostsFile {known_hosts}
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
"""

# Every prompt is logged, also one that is no request for a code: a test that counts must see it.
ASKPASS = """\
#!/bin/sh
printf '%s %s\\n' "$CHASQUI_LAB_USER" "$1" >>{lab}/askpass.log
case "$CHASQUI_LAB_CODES $1" in
    *OATH*) ;;
    *) exit 1 ;;
esac
[ "$CHASQUI_LAB_CODES" != none ] || exit 1
[ "$CHASQUI_LAB_CODES" != wrong ] || {{ echo 000000; exit 0; }}
counter={lab}/counters/$CHASQUI_LAB_USER
count=$(cat "$counter")
echo $((count + 1)) >"$counter"
exec {oathtool} --hotp -c "$count" {secret}
"""


@dataclass(frozen=True)
class LabUser:
    """One account on the lab's sshd, and how a client reaches it."""

    kind: str
    name: str
    home: Path
    shell: str
    host_alias: str
    ssh_config: Path


@dataclass(frozen=True)
class Counts:
    """From sshd's log: TCP connections, completed authentications, commands started; from askpass: prompts."""

    connections: int = 0
    authentications: int = 0
    execs: int = 0
    prompts: int = 0

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(*(mine - theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


class Lab:
    """The running sshd with its accounts. `folder` is readable for all, so nothing in it is worth protecting."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.service = f"chasqui-lab-{secrets.token_hex(3)}"
        self.port = _free_port()
        self.users: dict[str, LabUser] = {}
        self.keep = False  # whether stop() leaves the folder to be looked at
        self._secret = secrets.token_hex(20)
        self._clients = 0
        self._sshd: subprocess.Popen[bytes] | None = None
        self._pam = Path("/etc/pam.d") / self.service

    # -- setting up and taking away

    def start(self) -> None:
        """Accounts, keys, PAM and the daemon. Whatever fails, stop() takes away what was made."""
        self.folder.chmod(0o755)
        for name, mode in (
            ("keys", 0o755),
            ("counters", 0o777),
            ("homes", 0o755),
            ("clients", 0o1777),
            ("oath", 0o700),
        ):
            self.path(name).mkdir()
            self.path(name).chmod(mode)
        _keygen(self.path("host_key"))
        _keygen(self.path("keys") / "id")
        self.known_hosts = self._write("known_hosts", f"chasqui-lab {_public(self.path('host_key'))}\n")
        for kind, shell in SHELLS.items():
            self._add_user(kind, needs.program(shell))
        self._write_askpass()
        self._write_oath()
        self._start_sshd()

    def stop(self) -> list[str]:
        """Ends the daemon and removes accounts and PAM service; returns what still ran for an account, killed now."""
        if self._sshd is not None:
            _end_daemon(self._sshd)
        left = [words for user in self.users.values() for words in _wait_for_quiet(user.name)]
        for user in self.users.values():
            remove_account(user.name)
        self._pam.unlink(missing_ok=True)
        return left

    def path(self, name: str) -> Path:
        """A file or folder of the lab."""
        return self.folder / name

    def _write(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.path(name)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return path

    def _add_user(self, kind: str, shell: str) -> None:
        name = f"cq{self.service[-6:]}{kind}"
        home = self.path("homes") / kind
        add_account(name, home, shell, self.folder)
        user = LabUser(kind, name, home, shell, f"lab-{kind}", self.path(f"{kind}.conf"))
        self.users[kind] = user
        (home / ".ssh").mkdir(mode=0o700)
        (home / ".ssh" / "authorized_keys").write_text(_public(self.path("keys") / "id") + "\n")
        # Without a file of its own zsh asks a new user, on a terminal, how he would like it to be.
        (home / ".zshrc").write_text("")
        (home / ".bashrc").write_text(NOISY_RC if kind == "noisy" else "")
        give(home, name)
        self.config(user, path=user.ssh_config)

    def _write_askpass(self) -> None:
        program = needs.program("oathtool")
        text = ASKPASS.format(lab=self.folder, secret=self._secret, oathtool=program)
        self._write("askpass", text, 0o755)
        self._write("askpass.log", "", 0o666)
        for user in self.users.values():
            self._write(f"counters/{user.name}", "0\n", 0o666)

    def _write_oath(self) -> None:
        with_codes = [user for user in self.users.values() if user.kind not in KEY_ONLY]
        lines = [f"HOTP/E/6\t{user.name}\t-\t{self._secret}\n" for user in with_codes]
        oath = self._write("oath/users", "".join(lines), 0o600)
        self._pam.write_text(
            f"auth required pam_oath.so usersfile={oath} window=20 digits=6\n"
            "account required pam_permit.so\nsession required pam_permit.so\n"
        )

    def _start_sshd(self) -> None:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        daemon = self.path(self.service)
        shutil.copy(needs.program("sshd"), daemon)
        config = self._sshd_config(daemon)
        command = [str(daemon), "-D", "-f", str(config), "-E", str(self.path("sshd.log"))]
        self._sshd = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        end = time.monotonic() + 20
        while "Server listening" not in self.log():  # asking the port would count as a connection
            if self._sshd.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the lab's sshd did not start: {self.log()}")
            time.sleep(0.05)

    def _sshd_config(self, daemon: Path) -> Path:
        """The configuration, with PAMServiceName where this sshd knows it."""
        names = {kind: user.name for kind, user in self.users.items()}
        by_option = f"PAMServiceName {self.service}"
        for pam_service in (f"{by_option}\nPerSourcePenalties no", by_option, ""):
            text = SSHD_CONFIG.format(
                port=self.port, lab=self.folder, pam_service=pam_service, names=" ".join(names.values()), **_only(names)
            )
            config = self._write("sshd.conf", text)
            tested = subprocess.run([daemon, "-t", "-f", config], capture_output=True, text=True)
            if tested.returncode == 0:
                return config
        raise RuntimeError(f"sshd refuses the lab's configuration: {tested.stderr}")

    # -- for tests

    def user(self, kind: str) -> LabUser:
        """The account of this kind; see SHELLS."""
        return self.users[kind]

    def config(
        self, user: LabUser, port: int | None = None, known_hosts: Path | None = None, path: Path | None = None
    ) -> Path:
        """An ssh_config for `user` with one difference: another port (the proxy's), other known host keys."""
        chosen = path or self.path(f"{user.kind}-{secrets.token_hex(3)}.conf")
        text = SSH_CONFIG.format(
            alias=user.host_alias,
            port=port or self.port,
            name=user.name,
            keys=self.path("keys"),
            known_hosts=known_hosts or self.known_hosts,
        )
        chosen.write_text(text)
        return chosen

    def env(self, user: LabUser, codes: str = "right", account: LabUser | None = None) -> dict[str, str]:
        """The environment of a fresh client that talks to `user`: empty HOME, CHASQUI_HOME, XDG_RUNTIME_DIR, askpass.

        `codes`: "right" answers the prompt, "wrong" answers 000000, "none" cannot answer.
        `account` runs the client as that account in place of root: the folders are its own (start it with
        `subprocess.run(..., user=account.name, group=account.name, extra_groups=[])`, and use `config_of_account`).
        """
        self._clients += 1
        home = self.path("clients") / str(self._clients)
        for folder in (home, home / "run", home / ".chasqui"):
            folder.mkdir(mode=0o700)
        if account:
            give(home, account.name)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SSH_", "CHASQUI_", "XDG_"))}
        kept.pop("DISPLAY", None)
        kept["CHASQUI_TEST_RUN"] = os.environ.get("CHASQUI_TEST_RUN", "")
        return kept | {
            "HOME": str(home),
            "CHASQUI_HOME": str(home / ".chasqui"),
            "XDG_RUNTIME_DIR": str(home / "run"),
            "SSH_ASKPASS": str(self.path("askpass")),
            "SSH_ASKPASS_REQUIRE": "force",
            "CHASQUI_LAB_USER": user.name,
            "CHASQUI_LAB_CODES": codes,
        }

    def config_of_account(self, user: LabUser, account: LabUser) -> Path:
        """An ssh_config that `account` may use: ssh wants the key to belong to who calls it."""
        keys = Path(tempfile.mkdtemp(dir=self.path("clients")))
        shutil.copy(self.path("keys") / "id", keys)
        give(keys, account.name)
        config = self.config(user)
        config.write_text(config.read_text().replace(f"IdentityFile {self.path('keys')}", f"IdentityFile {keys}"))
        return config

    def counts(self) -> Counts:
        """What happened so far, over all accounts. Take the difference of two."""
        log = self.log()
        prompts = self.path("askpass.log").read_text(errors="replace").count("\n")
        lines = (r"^Connection from", r"^Accepted (?:keyboard-interactive|publickey)", r"^Starting session")
        connections, accepted, sessions = (len(re.findall(pattern, log, re.M)) for pattern in lines)
        return Counts(connections, accepted, sessions, prompts)

    def log(self) -> str:
        """All that sshd logged."""
        path = self.path("sshd.log")
        return path.read_text(errors="replace").replace("\r", "") if path.exists() else ""

    def processes(self, user: LabUser) -> dict[int, str]:
        """What runs for this account, sshd's own session processes left out: pid to command line."""
        return {pid: words for pid, words in owned_processes(user.name).items() if not words.startswith("sshd")}

    def ssh(self, user: LabUser, *words: str, config: Path | None = None) -> list[str]:
        """The argv of a plain ssh to `user`, for what a test does without the client."""
        return ["ssh", "-F", str(config or user.ssh_config), *words]


def give(path: Path, name: str) -> None:
    """Make `path` and all below it belong to the account `name`."""
    entry = pwd.getpwnam(name)
    for found in (path, *path.rglob("*")):
        os.chown(found, entry.pw_uid, entry.pw_gid, follow_symlinks=False)


def _only(names: dict[str, str]) -> dict[str, str]:
    return {kind: names[kind] for kind in KEY_ONLY}


def _keygen(path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _public(key: Path) -> str:
    return key.with_suffix(".pub").read_text().strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_daemon(daemon: "subprocess.Popen[bytes]") -> None:
    """The daemon and its connections: the sessions of a killed sshd would go on."""
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
    connections = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    daemon.terminate()
    for pid in connections:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    daemon.wait(20)


def _wait_for_quiet(name: str) -> list[str]:
    """Give what is ending a moment; what still runs then was left behind."""
    end = time.monotonic() + 15
    while owned_processes(name) and time.monotonic() < end:
        time.sleep(0.1)
    left = owned_processes(name)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [f"{name}: {words}" for words in left.values()]


@contextlib.contextmanager
def running(place: str = "/tmp") -> Iterator[Lab]:
    """A lab for the block, in a folder of `place` that is removed afterwards. Ends, by `needs`, where the machine lacks
    something."""
    needs.linux()
    needs.root()
    for tool in ("sshd", "ssh", "ssh-keygen", "oathtool", "useradd", *sorted(set(SHELLS.values()))):
        needs.program(tool)
    if not any(found for place in PAM_MODULES for found in Path("/").glob(place)):
        needs.missing("pam_oath.so (libpam-oath)")
    drop_stale()
    made = Lab(Path(tempfile.mkdtemp(prefix="cqlab-", dir=place)))
    left: list[str] = []
    failed = True
    try:
        made.start()
        yield made
        failed = made.keep
    finally:
        left = made.stop()
        if failed or left:
            print(f"\nthe lab's files are kept: {made.folder}")
        else:
            shutil.rmtree(made.folder)
    assert not left, f"left behind on the cluster's side, and killed now: {left}"


@contextlib.contextmanager
def python36_copy() -> Iterator[Path]:
    """A Python 3.6 that the accounts can run: ~/.pyenv stands below a home that is closed to them, so it is copied."""
    sources = [Path(place) for place in sorted(Path("~/.pyenv/versions").expanduser().glob("3.6*"))]
    if not sources:
        needs.missing("Python 3.6 in ~/.pyenv/versions")
    target = Path(tempfile.mkdtemp(prefix="cqpy36-", dir="/tmp"))
    try:
        yield relocated_python(sources[0], target, "3.6")
    finally:
        shutil.rmtree(target)


def relocated_python(source: Path, target: Path, version: str) -> Path:
    """The interpreter of a copy of `source` in `target`, which finds its library beside itself."""
    target.chmod(0o755)
    left_out = shutil.ignore_patterns("test", "site-packages", "config-*", "idlelib", "ensurepip")
    shutil.copytree(source / "lib" / f"python{version}", target / "lib" / f"python{version}", ignore=left_out)
    for library in (source / "lib").glob(f"libpython{version}*.so*"):
        shutil.copy(library, target / "lib")
    interpreter = target / "bin" / f"python{version}"
    interpreter.parent.mkdir()
    built_in, moved = f"{source}/lib".encode(), b"$ORIGIN/../lib"
    program = (source / "bin" / f"python{version}").read_bytes()
    # The path of libpython is fixed in the program; the loader knows $ORIGIN, and a shorter text fits in its place.
    if len(moved) <= len(built_in):
        program = program.replace(built_in + b"\0", moved + b"\0" * (len(built_in) - len(moved) + 1))
    interpreter.write_bytes(program)
    interpreter.chmod(0o755)
    return interpreter
