"""A user's desk for tests of whole sessions: a home, a remote `local` with a root of its own, job folders, syncs."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from chasqui_client import api, deploy, states, upload
from chasqui_client.child import Child
from chasqui_client.config import Caps, Home, Remote, Settings
from chasqui_client.exchange import SyncOptions, SyncReport
from chasqui_client.jobs import Asked
from chasqui_client.ledger import Job, Ledger
from chasqui_client.select import Selection
from chasqui_client.sync import run
from chasqui_client.transport import Channel, Local

AGENT = Path(__file__).resolve().parents[2] / "agent"
CONFIG = '[remotes.here]\nhost = "local"\nroot = "%s"\n[remotes.here.settings]\nquery_interval = 1\n'


class Desk:
    """Everything one user has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = path / "chasqui"
        self.home = Home(path / "home").create()
        self.home.config_path.write_text(CONFIG % self.root)
        self.remote = Remote("here", "local", str(self.root), caps=Caps(), settings=Settings(query_interval=1))
        self.ran = path / "ran"

    def impatient(self) -> "Desk":
        """For agents that are killed while they submit: the outcome is decided after a second, not after minutes."""
        self.remote = replace(self.remote, settings=replace(self.remote.settings, grace=1))
        return self

    def deploy(self) -> "Desk":
        deploy.deploy(self.home, self.remote)
        return self

    def folder(self, name: str, script: str = "", **files: bytes) -> Path:
        """A job folder whose script notes that it ran, then does `script`."""
        folder = self.path / "jobs" / name
        folder.mkdir(parents=True)
        (folder / "job.sh").write_text("#!/bin/sh\necho %s >>%s\n%s\n" % (name, self.ran, script))
        for file, content in files.items():
            (folder / file).write_bytes(content)
        return folder

    def add(self, *folders: Path, **asked: object) -> list[Job]:
        api.add(self.home, [os.fsencode(folder) for folder in folders], Asked(**asked))  # type: ignore[arg-type]
        return [job for folder in folders for job in self.jobs() if job.folder == os.fsencode(os.path.realpath(folder))]

    def jobs(self) -> list[Job]:
        return api.find(self.home, Selection())

    def job(self, job: Job) -> Job:
        return next(found for found in self.jobs() if found.id == job.id)

    def ledger(self) -> Ledger:
        return api.open_ledger(self.home)

    def sync(self, **options: object) -> SyncReport:
        return run(self.home, self.remote, SyncOptions(**options))  # type: ignore[arg-type]

    def finish(self, seconds: float = 60.0) -> None:
        """Sync until every job has ended and its results are here."""
        end = time.monotonic() + seconds
        while True:
            self.sync()
            with self.ledger() as ledger:
                if all(job.ended for job in self.jobs()) and not ledger.results_wanted("here"):
                    return
            assert time.monotonic() < end, [(job.name, job.state, job.results_state) for job in self.jobs()]
            time.sleep(0.1)

    def lines(self) -> list[str]:
        """The names of the payloads that ran, once for each time."""
        return sorted(self.ran.read_text().split()) if self.ran.exists() else []

    def completed(self, job: Job) -> Job:
        found = self.job(job)
        assert (found.state, found.results_state) == (states.COMPLETED, states.VERIFIED), found
        return found


def unbundled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each small content and each commit go at once, not with others."""
    for name in ("add", "commit"):
        whole = getattr(upload.Bundle, name)

        def alone(self: upload.Bundle, *given: object, whole: Callable[..., None] = whole) -> None:
            whole(self, *given)
            self.flush()

        monkeypatch.setattr(upload.Bundle, name, alone)


class CutChannel(Channel):
    """A line that breaks at a message boundary: after so many frames in one direction the process is killed."""

    def __init__(self, process: Child, sent: int = -1, received: int = -1) -> None:
        super().__init__(process)
        self.left_to_send, self.left_to_read = sent, received
        self.was_cut = False

    def write(self, data: bytes) -> None:
        while data:
            size = 5 + int.from_bytes(data[1:5], "big") + 4
            if self.left_to_send == 0:
                self.was_cut = True
                self.process.kill()
                # What the agent had not read yet is gone with it; give it the time to be seen as closed.
                self.process.wait()
            self.left_to_send -= 1
            super().write(data[:size])
            data = data[size:]

    def read(self, count: int) -> bytes:
        if count == 5:
            if self.left_to_read == 0:
                self.was_cut = True
                self.process.kill()
                return b""
            self.left_to_read -= 1
        return super().read(count)


class CutLocal(Local):
    """A local transport whose sessions are cut; `was_cut` says whether that happened."""

    def __init__(self, sent: int = -1, received: int = -1) -> None:
        self.sent, self.received = sent, received
        self.channel: CutChannel | None = None

    def start(self, line: str) -> Channel:
        if " serve " not in line:
            return super().start(line)
        self.channel = CutChannel(Child(self.argv(line)), self.sent, self.received)
        return self.channel

    @property
    def was_cut(self) -> bool:
        return self.channel is not None and self.channel.was_cut
