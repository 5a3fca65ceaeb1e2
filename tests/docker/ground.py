"""A laptop of its own for one of the cluster's users, what its sshd counted, and the sampler on the login host."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from cluster import TOP, Cluster

SAMPLER = Path(__file__).with_name("sampler.py").read_text()
ASKPASS = """\
#!/bin/sh
printf '%s\\n' "$1" >>{home}/prompts
case "$1" in
    *OATH*) exec {code} {user} ;;
esac
exit 1
"""
PYTHON36 = "/opt/python3.6/bin/python3.6"


class Counts(NamedTuple):
    """What sshd's log says happened so far, over all users."""

    authentications: int
    sessions: int


class Laptop:
    """A client with a home of its own, talking as `user`, who answers ssh's question with the next code."""

    def __init__(self, cluster: Cluster, home: Path, user: str, caps: str = "", settings: str = "",
                 root: str = "chasqui", scheduler: str = "openpbs") -> None:  # fmt: skip
        self.cluster, self.home, self.user, self.root = cluster, home, user, os.path.join("/home", user, root)
        home.mkdir(mode=0o700)
        (home / "config.toml").write_text(
            f'[remotes.hpc]\nhost = "cluster-{user}"\nssh_config = "{cluster.folder}/ssh_config"\n'
            f'root = "{self.root}"\nscheduler = "{scheduler}"\npython = "{PYTHON36 if cluster.python36 else "auto"}"\n'
            f"[remotes.hpc.caps]\n{caps}\n[remotes.hpc.settings]\n{settings}\n"
        )
        askpass = home / "askpass"
        askpass.write_text(ASKPASS.format(home=home, code=cluster.folder / "code", user=user))
        askpass.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SSH_", "CHASQUI_H", "XDG_"))}
        self.environment = {
            **kept, "HOME": str(home), "CHASQUI_HOME": str(home), "PYTHONPATH": f"{TOP / 'client'}:{TOP / 'agent'}",
            "SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force",
        }  # fmt: skip

    def __call__(self, *words: str) -> dict[str, Any]:
        """The data of one command's --json."""
        return dict(json.loads(self.says(words[0], "--json", *words[1:]).splitlines()[-1])["data"])

    def says(self, *words: str) -> str:
        """What one command prints."""
        done = self.tries(*words)
        assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout

    def tries(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """One command, which may fail."""
        return subprocess.run(
            [sys.executable, "-m", "chasqui_client", *words],
            env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    def counted(self, *words: str) -> tuple[dict[str, Any], Counts]:
        """The same, and what sshd saw of it."""
        before = self.counts()
        data = self(*words)
        return data, Counts(*(now - then for now, then in zip(self.counts(), before, strict=True)))

    def counts(self) -> Counts:
        return Counts(self.logged("Accepted keyboard-interactive"), self.logged("Starting session"))

    def logged(self, beginning: str) -> int:
        """How many lines of sshd's log begin so."""
        done = subprocess.run(["docker", "logs", self.cluster.container("login")], capture_output=True, text=True)
        return len(re.findall("^" + re.escape(beginning), done.stderr + done.stdout, re.M))

    def there(self, command: str) -> str:
        """What a shell command says, run as root on the login host in the root of the relay."""
        return self.cluster.execute("login", "sh", "-c", f"cd {self.root} && {command}")


class Sampler:
    """The sampler on the login host, and the looks that came back."""

    def __init__(self, laptop: Laptop, notes: str, locks: str = "") -> None:
        program = ["python3", "-u", "-c", SAMPLER, notes, laptop.root, locks]
        self.command = laptop.cluster.exec_command("login") + program
        self.looks: list[dict[str, Any]] = []

    def __enter__(self) -> "Sampler":
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.reader.join(30)
        assert self.process.wait(30) == 0, "the sampler failed"

    def read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.looks.append(json.loads(line))

    def last(self) -> dict[str, Any]:
        assert self.process.poll() is None, "the sampler ended early"
        return self.looks[-1]

    def most(self, series: str) -> int:
        return max(look.get(series, 0) for look in self.looks)


def until(condition: Any, what: str, patience: float, every: float = 0.5) -> Any:
    """The first true value of condition()."""
    end = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(every)
    return value
