"""Jobs that have ended, on both sides, without having run: a ledger and a spool as a long campaign leaves them."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from chasqui_client.ledger import Job
from chasqui_client.transport import Channel, Local
from session.desk import CutChannel, CutLocal, Desk

CHUNK = 256 << 10
_JOB = ("INSERT INTO jobs(id, remote, name, folder, state, attempt, script, options, results_dir, acked, offered,"
        " added, changed) VALUES (?, 'here', ?, ?, ?, 1, x'', ?, 'results', 1, 1, '', '')")


class Campaign(Desk):
    """A desk with ended jobs; `make` adds some, `work` is a job's folder there, `got` reads what is here."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.deploy()

    def make(self, files: Mapping[str, "bytes | int"], count: int = 1, state: str = "COMPLETED",
             **options: object) -> list[Job]:
        """`count` ended jobs with these result files (name -> content, or a size of zeros); options as of `add`."""
        made = [j.id for j in self.jobs()]
        ids = ["j%015d" % (len(made) + n) for n in range(count)]
        with self.ledger() as ledger:
            own = ledger.id
            with ledger.transaction():
                for job in ids:
                    folder = self.path / "jobs" / job
                    folder.mkdir(parents=True)
                    ledger.db.execute(_JOB, (job, job, os.fsencode(folder), state, json.dumps(options)))
        for job in ids:
            self._there(job, own, files, state, options)
        return [job for job in self.jobs() if job.id in set(ids)]

    def _there(self, job: str, own: str, files: Mapping[str, "bytes | int"], state: str,
               options: Mapping[str, object]) -> None:
        meta = self.work(job) / ".chasqui"
        meta.mkdir(parents=True)
        record = {"job": job, "attempt": 1, "ledger": own, "name": job, "max_file": 10 ** 12, **options}
        (meta / "job.json").write_text(json.dumps(record))
        for name, content in files.items():
            place = self.work(job) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, int):
                with open(place, "wb") as stream:
                    stream.truncate(content)
            else:
                place.write_bytes(content)
        word = {"COMPLETED": "DONE", "FAILED": "FAIL"}.get(state, state)
        (self.root / "completed" / ("%s.1.flag" % job)).write_text(word + "\n")

    def work(self, job: "Job | str") -> Path:
        return self.root / "work" / (job if isinstance(job, str) else job.id)

    @staticmethod
    def here(job: Job) -> dict[str, bytes]:
        """Every file in the job's results folder, parts included."""
        top = Path(os.fsdecode(job.results_path))
        return {str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}


class Counting(CutChannel):
    """Counts the bytes of data frames that were read; before results are asked for, does what a test wants done."""

    brought = 0
    _due = 0
    on_want: "Callable[[], object] | None" = None

    def write(self, data: bytes) -> None:
        if self.on_want and b'"m":"want"' in data:
            self.on_want()
        super().write(data)

    def read(self, count: int) -> bytes:
        data = super().read(count)
        if count == 5 and data[:1] == b"B":
            self._due = int.from_bytes(data[1:], "big")
        elif self._due and len(data) == self._due + 4:
            self.brought += self._due
            self._due = 0
        return data


class CountingLocal(CutLocal):
    """A local transport that is cut, and says what came over it: bytes of results (and of the journal)."""

    on_want: "Callable[[], object] | None" = None

    def start(self, line: str) -> Channel:
        if " serve " not in line:
            return Local.start(self, line)
        from chasqui_client.child import Child
        self.channel = Counting(Child(self.argv(line)), self.sent, self.received)
        self.channel.on_want = self.on_want
        return self.channel

    @property
    def brought(self) -> int:
        return self.channel.brought if isinstance(self.channel, Counting) else 0
