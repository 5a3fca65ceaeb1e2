"""What the benchmark stands on: a client with a live master, and a ledger and a spool that agree about finished jobs.

The jobs are real folders, added by the client; their life on the cluster is written with the agent's own modules, as if
the relay had run them. One real sync then reads the journal and brings every result home, which is verified.
"""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from chasqui_agent import files, journal, marks, offers
from chasqui_agent.spool import Spool, new_token
from chasqui_client import api, launcher, ssh
from chasqui_client.config import Home, Remote
from chasqui_client.ledger import Job, Ledger
from ssh.lab import Lab, LabUser, give

TOP = Path(__file__).resolve().parents[2]
SCRIPT = b"#!/bin/sh\ncat in.dat >out\n"


class Desk:
    """A client of its own for one of the lab's accounts, run by the Python of `installed_client`."""

    def __init__(self, lab: Lab, user: LabUser, client_python: str, cluster_python: str, caps: str = "",
                 root: str = "bench", ssh_config: Path | None = None) -> None:
        """caps: lines of the remote's [caps]; cluster_python: what runs the agent; root: its folder in the home."""
        self.lab, self.user, self.python = lab, user, client_python
        self.environment = {key: text for key, text in lab.env(user).items() if not key.startswith("PYTHON")}
        self.home = Home(self.environment["CHASQUI_HOME"])
        self.home.create()
        self.home.config_path.write_text(
            f'[jobs]\nmax_file = {1 << 50}\n[remotes.bench]\nhost = "{user.host_alias}"\n'
            f'ssh_config = "{ssh_config or user.ssh_config}"\nroot = "~/{root}"\n'
            f'python = "{cluster_python}"\n[remotes.bench.caps]\n{caps}\n'
        )
        self.root = user.home / root

    def remote_caps(self, lines: str) -> None:
        """Other lines of [caps] from now on."""
        text = self.home.config_path.read_text()
        head, mark, _ = text.partition("[remotes.bench.caps]\n")
        self.home.config_path.write_text(f"{head}{mark}{lines}\n")

    @property
    def remote(self) -> Remote:
        return self.home.config().remote("bench")

    def command(self, *words: str) -> list[str]:
        """The argv of the client."""
        return [self.python, "-m", "chasqui_client", *words]

    def chasqui(self, *words: str) -> dict:
        """Run the client; its answer."""
        done = subprocess.run(
            self.command(words[0], "--json", *words[1:]),
            env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800,
        )
        if done.returncode != 0:
            raise RuntimeError(f"chasqui {' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return dict(json.loads(done.stdout.splitlines()[-1])["data"])

    def ssh(self, line: str) -> list[str]:
        """The argv that runs `line` through the client's own master, with the options its sessions have."""
        return ssh.work_argv(self.remote, self.control_path, line)

    @property
    def control_path(self) -> str:
        return str(Path(self.environment["XDG_RUNTIME_DIR"]) / "chasqui" / os.path.basename(
            ssh.control_path(self.remote, self.home)))

    def agent(self, *words: str) -> list[str]:
        """The argv that runs a verb of the deployed agent."""
        return self.ssh(launcher.agent(self.remote.root, words))

    def use_python(self, path: str) -> None:
        """Have the agent run by another Python from now on, its modules compiled for that one."""
        (self.root / "agent" / "python").write_text(path + "\n")
        subprocess.run(self.agent("install"), env=self.environment, check=True, capture_output=True)


@contextlib.contextmanager
def installed_client() -> Iterator[str]:
    """A Python with the client installed in it and nothing else, compiled as an installation is; its path.

    What other site packages do at every start, and compiling sources at every start, is not ours to measure.
    """
    with tempfile.TemporaryDirectory(prefix="cqbench-") as folder:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        place = next(Path(folder).glob("lib/python*/site-packages"))
        for package in (TOP / "client" / "chasqui_client", TOP / "agent" / "chasqui_agent"):
            shutil.copytree(package, place / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run([f"{folder}/bin/python", "-m", "compileall", "-q", str(place)], check=True)
        yield f"{folder}/bin/python"


def make_folders(place: Path, count: int, size: int = 64, more: int = 0) -> list[Path]:
    """`count` job folders: a script, `size` bytes of input, and `more` further files of that size."""
    made = []
    for number in range(count):
        folder = place / f"{number:05d}"
        folder.mkdir(parents=True)
        (folder / "job.sh").write_bytes(SCRIPT)
        for name in ("in.dat", *(f"more{i}.dat" for i in range(more))):
            (folder / name).write_bytes((b"%s %d\n" % (name.encode(), number) * size)[:size])
        made.append(folder)
    return made


def finished_jobs(desk: Desk, place: Path, count: int) -> list[Job]:
    """`count` jobs that have run, known to ledger and spool; their results are still on the cluster."""
    return finish(desk, make_folders(place, count), lambda folder: {"out": (folder / "in.dat").read_bytes()})


def finish(desk: Desk, folders: list[Path], results: Callable[[Path], dict[str, bytes]]) -> list[Job]:
    """Jobs of these folders that have run; `results` says what the job of a folder left, by file name."""
    added = api.add(desk.home, [os.fsencode(folder) for folder in folders], remote=desk.remote)
    spool, records = Spool(str(desk.root)), []
    with Ledger(desk.home.ledger_path) as ledger:
        jobs = [job for new in added.jobs if (job := ledger.job(new.id))]
        ledger.mark_offered(jobs)
        ledger.acknowledge("bench", [(job.id, job.attempt) for job in jobs])
        for number, job in enumerate(jobs):
            records += _run_on_the_cluster(spool, job, ledger, number, results(Path(os.fsdecode(job.folder))))
    _write_journal(spool, records)
    give(desk.root, desk.user.name)
    return jobs


def _run_on_the_cluster(
    spool: Spool, job: Job, ledger: Ledger, number: int, results: dict[str, bytes]
) -> list[dict]:
    """The work folder and the completed flag of one job; what the relay would have journalled."""
    meta, token, pbs = spool.meta_dir(job.id, 1), new_token(), f"{number}.shell"
    os.makedirs(meta, 0o700)
    uploaded = []
    for file in ledger.files(job.id, 1):
        content = file.content if file.content is not None else Path(os.fsdecode(file.source)).read_bytes()
        path = os.path.join(spool.work_dir(job.id, 1), os.fsdecode(file.path))
        files.write_file(path, content, file.mode, durable=False)
        uploaded.append({"path": os.fsdecode(file.path), "size": file.size, "mode": file.mode, "sha256": file.sha256,
                         "mtime_ns": os.stat(path).st_mtime_ns})
    for name, content in results.items():
        files.write_file(os.path.join(spool.work_dir(job.id, 1), name), content, durable=False)
    end = {"ev": "ended", "job": job.id, "attempt": 1, "pbs": pbs, "state": "DONE", "exit": 0, "why": "", "when": 1}
    record = {"job": job.id, "attempt": 1, "name": job.name, "script": "job.sh", "ledger": ledger.id,
              "manifest": offers.manifest_digest(uploaded), "max_file": 1 << 50}
    for name, value in (
        ("job.json", record), ("manifest.json", {"files": uploaded}),
        ("final.json", {"token": token, "pbs": pbs, "record": end, "stdout": "", "stderr": ""}),
    ):
        files.write_json(os.path.join(meta, name), value, durable=False)
    marks.write_id(meta, token, pbs, False)
    flag = f"DONE\n{pbs}\nexit=0\nattempt=1\n".encode("ascii")
    files.write_file(spool.entry_path("completed", job.id, 1, suffix="flag"), flag, durable=False)
    return [
        {"ev": "accepted", "job": job.id, "attempt": 1, "name": job.name},
        {"ev": "intent", "job": job.id, "attempt": 1, "token": token},
        {"ev": "submitted", "job": job.id, "attempt": 1, "token": token, "pbs": pbs},
        {"ev": "started", "job": job.id, "attempt": 1, "pbs": pbs, "when": 1},
        end,
    ]


def _write_journal(spool: Spool, records: list[dict]) -> None:
    """In pieces, so that it has the segments a journal of this size has."""
    for start in range(0, len(records), 5000):
        writer = journal.Writer(spool.log, 0)
        writer.append(*records[start : start + 5000])
        writer.close()


def catch_up(desk: Desk, jobs: list[Job], total: int) -> None:
    """One real sync; afterwards all `total` jobs are COMPLETED here and each result of `jobs` is what its job wrote."""
    report = desk.chasqui("sync")
    if report["counts"] != {"COMPLETED": total} or report["results_files"] != len(jobs):
        raise RuntimeError(f"the sync that was to catch up says {report}")
    for job in jobs:
        folder = Path(os.fsdecode(job.folder))
        result = (folder / "results" / "out").read_bytes()
        if hashlib.sha256(result).digest() != hashlib.sha256((folder / "in.dat").read_bytes()).digest():
            raise RuntimeError(f"a wrong result in {folder}")


def shown(argv: list[str]) -> str:
    """A command as one line, for a reader."""
    return " ".join(shlex.quote(word) for word in argv)
