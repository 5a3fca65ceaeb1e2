"""The relay over a real Slurm: one pump by hand, then the jobs' own ends move everything on; each payload once."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import needs
from agent.agentroot import until
from chasqui_agent import settings
from pbs.test_relay import PbsRoot, Sampler
from slurm.cluster import Cluster


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with Cluster() as made:
        yield made


@pytest.fixture
def cluster(slurm: Cluster) -> Iterator[Cluster]:
    """The same for all, left empty by each."""
    yield slurm
    for wrapper in slurm.bin.iterdir():
        wrapper.unlink()
    slurm.run("scancel", "--user=%d" % os.getuid())
    slurm.until(lambda: not slurm.table(), "no job is left")


class SlurmRoot(PbsRoot):
    """A root whose jobs go to a Slurm."""

    def __init__(self, path: Path, cluster: Cluster, *words: str, **chosen: object) -> None:
        super().__init__(path, cluster, *words, **chosen)  # type: ignore[arg-type]
        settings.change(self.spool, scheduler="slurm")

    def drop(self, name: str, text: str = "", seconds: float = 0.0, directives: str = "#SBATCH --ntasks=1") -> None:
        super().drop(name, text, seconds, directives)

    def ended(self, name: str) -> dict:
        """The record of how a job ended or was cancelled, pumping until there is one."""
        def told() -> list[dict]:
            return [record for record in self.log() if record["ev"] in ("ended", "cancelled")
                    and self.job_of(record["job"]).startswith(name)]

        until(lambda: told() or (time.sleep(1.1), self.pump(), told())[-1], name + " has ended", 60)
        return told()[0]

    def job_of(self, job: str) -> str:
        return str(self.spool.job_record(job, 1).get("name", "")) or job


@pytest.mark.parametrize("version", ["3.6", "this one"])
def test_the_relay_runs_everything_once_under_the_caps(
        tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str], version: str) -> None:
    python = needs.python36() or needs.missing("Python 3.6") if version == "3.6" else ""
    root = SlurmRoot(tmp_path / "root", cluster, *filter(None, [python]), max_queued=8, max_running=4)
    names = ["job%02d" % number for number in range(24)]
    for number, name in enumerate(names):
        root.drop(name, seconds=0.2 + number % 5 * 0.1, directives="#SBATCH -n1 -J her.own")
    with Sampler(root) as sampler:
        assert root.pump()["submitted"]
        until(lambda: all(root.starts(name) for name in names), "every payload started, by the tails alone", 120)
        root.finish(24)
    assert sampler.samples > 20
    assert [root.starts(name) for name in names] == [1] * 24
    assert root.outcomes()["ended"] == 24
    assert sampler.payloads <= 4 and sampler.waiting <= 8
    with capsys.disabled():
        print("\nrelay over Slurm: %d samples, at most %d payloads of 4, %d waiting of 8, %d live" %
              (sampler.samples, sampler.payloads, sampler.waiting, sampler.live))
