"""On the cluster, users of four login shells: a login with a one-time code, a sync, and results."""

from pathlib import Path

import pytest
from cluster import USERS, Cluster

from docker.ground import Laptop, until

JOBS = 3


@pytest.mark.parametrize("user", USERS)
def test_jobs_go_there_and_come_home(cluster: Cluster, tmp_path: Path, user: str) -> None:
    laptop = Laptop(cluster, tmp_path / "laptop", user, settings="query_interval = 1", root="small")
    for number in range(JOBS):
        (tmp_path / f"job{number}").mkdir()
        # Without "#!" her login shell runs it; these words mean the same in all four.
        (tmp_path / f"job{number}" / "job.sh").write_text(f"id -un > who\nhostname > where\necho {number} > out\n")
    laptop("add", *(str(tmp_path / f"job{number}") for number in range(JOBS)))
    _, login = laptop.counted("login", "hpc")
    done, first = laptop.counted("sync")
    until(lambda: laptop("sync")["counts"] == {"COMPLETED": JOBS}, "all completed", 120, every=2)
    _, idle = laptop.counted("sync")
    laptop("logout", "hpc")

    assert done["uploaded"] == JOBS
    assert (login.authentications, first.authentications) == (1, 0)
    assert idle == (0, 1), "a sync with nothing to do is one session"
    for number in range(JOBS):
        results = tmp_path / f"job{number}" / "results"
        assert (results / "out").read_text() == f"{number}\n"
        assert (results / "who").read_text() == f"{user}\n"
        assert (results / "where").read_text() in ("node1\n", "node2\n")
