"""No client, no pip: an account with tcsh and Python 3.6, one file or one folder put there with scp, and one pump."""

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from chasqui_client import build
from ssh.lab import Lab, LabUser

TOP = Path(__file__).resolve().parents[2]
# What people have lying about; each leaves a line about where it ran, and two fail in their own ways.
SCRIPTS = {
    "first.sh": "#!/bin/bash\n#PBS -N first\n#PBS -l walltime=00:10:00\ncd $PBS_O_WORKDIR\n"
    "echo first $PWD >>~/ran\npwd >here\n",
    "second.pbs": "#!/bin/tcsh\n#PBS -l select=1:ncpus=1\nset it = second\necho $it $cwd >>~/ran\npwd >here\n",
    "third one.py": "#!{python}\nimport os\nopen(os.path.expanduser('~/ran'), 'a').write('third %s\\n' % os.getcwd())\n"
    "open('here', 'w').write(os.getcwd() + '\\n')\n",
    "fourth.sh": "#!/bin/sh\nset -e\ntrap 'pwd >here' EXIT\necho fourth $PWD >>~/ran\nfalse\necho never\n",
    "fifth.job": "#!/bin/sh\necho fifth $PWD >>~/ran\npwd >here\nexit 3\n",
}
ENDS = {"first": "DONE", "second": "DONE", "third_one": "DONE", "fourth": "FAIL", "fifth": "FAIL"}


@dataclass
class Cluster:
    """The account as somebody sees it who has ssh and scp alone; every call logs in anew."""

    lab: Lab
    user: LabUser
    environment: dict[str, str]
    python: Path

    @property
    def root(self) -> Path:
        return self.user.home / "chasqui"

    def runs(self, line: str) -> str:
        """A line of the login shell's; what it printed."""
        return self._do(self.lab.ssh(self.user, self.user.host_alias, line))

    def scp(self, *words: str) -> None:
        """Copy there; the last word is the place, below the home."""
        target = f"{self.user.host_alias}:{words[-1]}"
        self._do(["scp", "-q", "-F", str(self.user.ssh_config), *words[:-1], target])

    def _do(self, argv: list[str]) -> str:
        done = subprocess.run(argv, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        assert done.returncode == 0, (argv, done.stdout, done.stderr)
        assert b"Traceback" not in done.stderr, done.stderr
        return done.stdout.decode()

    def agent(self, what: str, verb: str) -> str:
        """`python3.6 -I -S WHAT VERB`, as the README says it."""
        return self.runs(f"{shlex.quote(str(self.python))} -I -S {what} {verb}")

    def ran(self) -> dict[str, str]:
        """Which payloads ran, and where; each at most once."""
        path = self.user.home / "ran"
        lines = [line.split(" ", 1) for line in path.read_text().splitlines()] if path.exists() else []
        assert len(lines) == len(dict(lines)), lines
        return dict(lines)

    def completed(self) -> dict[str, str]:
        """Job to DONE or FAIL."""
        found = {}
        for flag in (self.root / "completed").glob("*.flag"):
            found[flag.name.split(".")[0]] = flag.read_text().split()[0]
        return found

    def waits_for(self, jobs: int) -> None:
        """Nothing is typed meanwhile: the relay goes on alone."""
        end = time.monotonic() + 60
        while len(self.completed()) < jobs:
            assert time.monotonic() < end, (self.completed(), self.ran(), self.log())
            time.sleep(0.1)

    def log(self) -> list[dict[str, object]]:
        """The journal."""
        lines = b"".join(path.read_bytes() for path in sorted((self.root / "log").glob("*.seg"))).splitlines()
        return [json.loads(line.split(b" ", 2)[2]) for line in lines]


@pytest.fixture
def cluster(lab: Lab, python36_for_users: Path) -> Iterator[Cluster]:
    user = lab.user("tcsh")
    assert Path(user.shell).name == "tcsh"
    python36_for_users.parents[1].chmod(0o755)
    yield Cluster(lab, user, lab.env(user), python36_for_users)
    for name in ("chasqui", "chasqui_agent", "chasqui-agent.pyz", "ran"):
        path = user.home / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _scripts(folder: Path, python: Path, age: float) -> list[str]:
    """The five, last changed `age` seconds ago."""
    folder.mkdir()
    for name, text in SCRIPTS.items():
        path = folder / name
        path.write_text(text.format(python=python) if "{python}" in text else text)
        os.utime(path, (time.time() - age,) * 2)
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("kind", ["one file", "a folder"])
def test_five_scripts_and_one_pump(cluster: Cluster, tmp_path: Path, kind: str) -> None:
    if kind == "one file":
        (tmp_path / "chasqui-agent.pyz").write_bytes(build.build_pyz())
        agent = "chasqui-agent.pyz"
        cluster.scp(str(tmp_path / agent), agent)
        cluster.runs("mkdir -p chasqui/waiting")
    else:
        agent = "chasqui_agent"
        cluster.scp("-r", str(_clean_copy(tmp_path)), ".")
        assert cluster.agent(agent, "pump") == "nothing to do\n"
    assert json.loads(cluster.agent(agent, "version"))["python"].startswith("3.6.")

    cluster.scp("-p", *_scripts(tmp_path / "scripts", cluster.python, age=60), "chasqui/waiting/")
    half = tmp_path / "half.sh"
    half.write_text("#!/bin/sh\necho half $PWD >>~/ran\npwd >here\n")
    os.utime(half, (time.time() + 60,) * 2)  # still being written, however long this machine takes to log in
    cluster.scp("-p", str(half), "chasqui/waiting/")
    said = cluster.agent(agent, "pump")
    assert "accepted 5, submitted 5" in said and "1 scripts are younger than 5 s" in said, said

    cluster.waits_for(5)
    assert cluster.completed() == ENDS
    assert [path.name for path in (cluster.root / "waiting").iterdir() if path.is_file()] == ["half.sh"]
    _each_in_its_own_folder(cluster, ["first", "second", "third", "fourth", "fifth"])
    settings = json.loads((cluster.root / "config.json").read_text())
    assert not {"max_running", "max_queued"} & set(settings), "the caps are the defaults"
    assert "30 running, 40 queued" in cluster.agent(agent, "status")

    os.utime(cluster.root / "waiting" / "half.sh", (time.time() - 6,) * 2)  # six seconds after its last byte
    cluster.agent(agent, "pump")
    cluster.waits_for(6)
    assert cluster.completed() == {**ENDS, "half": "DONE"}
    _each_in_its_own_folder(cluster, ["first", "second", "third", "fourth", "fifth", "half"])
    assert (cluster.root.stat().st_mode & 0o022) == 0
    cluster.agent(agent, "remove --purge")
    assert not cluster.root.exists()


def _clean_copy(tmp_path: Path) -> Path:
    target = tmp_path / "chasqui_agent"
    shutil.copytree(TOP / "agent" / "chasqui_agent", target, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def _each_in_its_own_folder(cluster: Cluster, names: list[str]) -> None:
    ran = cluster.ran()
    assert sorted(ran) == sorted(names)
    work = os.path.realpath(cluster.root / "work")
    assert len(set(ran.values())) == len(names) and {os.path.dirname(place) for place in ran.values()} == {work}
    for place in ran.values():
        assert Path(place, "here").read_text() == place + "\n"
    submitted = [str(record["job"]) for record in cluster.log() if record["ev"] == "submitted"]
    assert len(submitted) == len(set(submitted)) == len(names)
    assert all(re.match(r"[a-z_]+$", job) for job in submitted)
