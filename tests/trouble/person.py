"""A user without any privileges at a computer of her own, who types commands and reads what they answer.

The client runs as the lab's account `plain`, in folders of its own; `here` is a remote on the same computer, and every
account of the lab's sshd can be one over ssh. What the other side holds is looked at by root, behind everybody's back.
"""

import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import needs
from ssh.lab import Lab, LabUser, give

SETTINGS = "\n[remotes.{name}.settings]\nquery_interval = 0\n"
_FOLDERS = ("waiting", "held", "submitting", "submitted", "completed", "rejected", "cancelled")


@dataclass(frozen=True)
class Answer:
    """What a command said and its exit code."""

    code: int
    out: str
    err: str

    def is_one_line(self, code: int, says: str, hint: str) -> None:
        """One line that holds `says`, one hint that holds `hint` (both patterns), this exit code, nothing else."""
        lines = self.err.splitlines()
        assert "Traceback" not in self.err + self.out, self.err
        assert len(lines) == 2, f"not one line and a hint: {self}"
        assert lines[0].startswith("chasqui: ") and re.search(says, lines[0]), self
        assert lines[1].startswith("  hint: ") and re.search(hint, lines[1]), self
        assert self.code == code, self


class Person:
    """One test's user: folders, configuration, what she types, and what became of her jobs."""

    def __init__(
        self, lab: Lab, python: str, packages: Path, environment: dict[str, str], disks: ExitStack
    ) -> None:
        self.lab, self.python, self.disks = lab, python, disks
        self.account = lab.user("plain")
        self.path = Path(tempfile.mkdtemp(prefix="t", dir=lab.path("clients")))
        self.home, self.root = self.path / "home", self.path / "root"
        self.environment = environment | {
            "CHASQUI_HOME": str(self.home),
            "PYTHONPATH": f"{packages}/client:{packages}/agent",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.home.mkdir(mode=0o700)
        self.configure(self.here())
        (self.path / "ran").touch()
        self.give()
        self.path.chmod(0o755)  # other accounts' payloads say here that they ran
        (self.path / "ran").chmod(0o666)

    # -- what she has

    def give(self) -> None:
        """Whatever the test made as root is hers."""
        give(self.path, self.account.name)

    def here(self, **keys: object) -> str:
        """The configuration of the remote on this computer."""
        return self._remote("here", {"host": "local", "root": str(self.root), **keys})

    def there(self, user: LabUser, **keys: object) -> str:
        """The configuration of the remote `there`: the account `user` of the lab's sshd, a root of this test's own."""
        ssh_config = keys.pop("ssh_config", None) or self.ssh_config(user)
        root = f"~/{self.path.name}"
        return self._remote("there", {"host": user.host_alias, "root": root, "ssh_config": str(ssh_config), **keys})

    def ssh_config(self, user: LabUser) -> Path:
        """One for all tests: the master's socket is named after it."""
        path = self.lab.path("clients") / f"{user.kind}.conf"
        if not path.exists():
            path.write_text(self.lab.config_of_account(user, self.account).read_text())
        return path

    @staticmethod
    def _remote(name: str, keys: dict[str, object]) -> str:
        lines = [f'{key} = "{value}"' for key, value in keys.items()]
        return "\n".join([f"[remotes.{name}]", *lines]) + SETTINGS.format(name=name)

    def configure(self, text: str) -> None:
        """Her config.toml."""
        self.config.write_text(text)

    @property
    def config(self) -> Path:
        return self.home / "config.toml"

    def folder(self, name: str, script: str = "", **files: bytes) -> Path:
        """A job folder whose script notes that it ran, then does `script`."""
        folder = self.path / name
        folder.mkdir()
        (folder / "job.sh").write_text(f"#!/bin/sh\necho {shlex.quote(name)} >>{self.path}/ran\n{script}\n")
        for file, content in files.items():
            (folder / file).write_bytes(content)
        give(folder, self.account.name)
        return folder

    def add(self, *folders: Path) -> None:
        """Jobs of these folders, without trouble."""
        assert self.types("add", *map(str, folders)).code == 0

    # -- what she does

    def types(self, *words: str, **environment: str) -> Answer:
        """Run a command line as her, without a terminal."""
        return self.answer(self.starts(*words, **environment))

    @staticmethod
    def answer(process: "subprocess.Popen[bytes]") -> Answer:
        """What a command that was started says."""
        with process:
            out, err = process.communicate(timeout=120)
        return Answer(process.returncode, *(data.decode("utf-8", "replace") for data in (out, err)))

    def starts(self, *words: str, **environment: str) -> "subprocess.Popen[bytes]":
        """The same, not waited for."""
        name = self.account.name
        return subprocess.Popen(
            [self.python, "-m", "chasqui_client", *words], cwd=self.path, env=self.environment | environment,
            user=name, group=name, extra_groups=[], umask=0o022,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def finishes(self, remote: str = "here") -> None:
        """Nothing is in the way any more: sync until every job has completed, once, and its results are here."""
        answer = self.types("sync", "--remote", remote, "--watch", "0.3")
        assert answer.code == 0, answer
        states = self.states()
        assert set(states.values()) <= {("COMPLETED", "VERIFIED")}, (states, answer)
        assert self.ran() == sorted(states), "each payload ran exactly once"
        self.is_whole()

    # -- what became of it

    def states(self) -> dict[str, tuple[str, str]]:
        """The ledger's jobs: name to state and state of the results."""
        if not (self.home / "jobs.db").exists():
            return {}
        ledger = sqlite3.connect(f"file:{self.home}/jobs.db?mode=ro", uri=True)
        try:
            assert ledger.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            rows = ledger.execute("SELECT name, state, results_state FROM jobs")
            return {row[0]: (row[1], row[2]) for row in rows}
        finally:
            ledger.close()

    def ran(self) -> list[str]:
        """The names of the payloads that ran, once for each time."""
        return sorted((self.path / "ran").read_text().splitlines())

    def spool(self) -> dict[str, list[str]]:
        """What the remote here holds: state to file names; only states that something is in."""
        found = {name: [str(p.relative_to(self.root)) for p in (self.root / name).rglob("*") if p.is_file()]
                 for name in _FOLDERS}
        return {name: sorted(files) for name, files in found.items() if files}

    def is_whole(self) -> None:
        """Nothing half-written: no part of an upload or a result, nothing without a job behind it."""
        for pattern in ("root/staging/*", "root/work/.staging/*", "root/agent/.up-*", "*/results/.chasqui/*"):
            assert not list(self.path.glob(pattern)), pattern
        assert not [path for path in self.home.glob("*") if ".tmp" in path.name or path.name.endswith("-journal")]


@contextmanager
def small_disk(at: Path, size: str, owner: str) -> Iterator[None]:
    """A file system of `size` mounted on the folder `at`, which it makes; what it held is gone afterwards."""
    at.mkdir(exist_ok=True)
    options = f"size={size},mode=0700,uid={owner},gid={owner}"
    argv = ["mount", "-t", "tmpfs", "-o", options, "chasqui-test", at]
    mounted = subprocess.run(argv, capture_output=True, text=True)
    if mounted.returncode:
        needs.missing(f"the right to mount a tmpfs ({mounted.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)


def grow(at: Path, size: str) -> None:
    """Room on a small disk."""
    subprocess.run(["mount", "-o", f"remount,size={size}", at], check=True)


def python_for(account: LabUser) -> str:
    """A Python 3.11 or newer that the account can run; ours may stand below root's home."""
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    for place in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3", shutil.which("python3") or ""):
        try:
            options = {"user": account.name, "group": account.name, "extra_groups": []}
            done = subprocess.run([place, "-I", "-c", check], capture_output=True, cwd="/", **options)  # type: ignore[call-overload]
        except OSError:
            continue
        if done.returncode == 0:
            return place
    return needs.missing("a Python 3.11 that every account can run")
