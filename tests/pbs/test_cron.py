"""A relay that nothing but cron wakes, on a host where cron knows of no PBS."""

import sys
import time
from pathlib import Path

from agent.agentroot import until
from agent.test_cron import entry, run_as_cron
from pbs.cluster import Cluster
from pbs.test_relay import PbsRoot


def test_cron_alone_moves_the_relay_on(tmp_path: Path) -> None:
    with Cluster(scale=0.05, daemon_seconds=2) as cluster:
        root = PbsRoot(tmp_path / "root", cluster, python=sys.executable, wake_via="sync", heartbeat=0, max_running=1,
                       max_queued=1, query_interval=0.5)
        for name in ("one", "two", "three"):
            root.drop(name)
        root.pump()
        _, command = entry(root.agent("cron")[1])

        def woken() -> bool:
            time.sleep(0.6)
            done = run_as_cron(command, str(tmp_path))
            assert (done.returncode, done.stdout) == (0, b"")
            return root.finished() == 3

        until(woken, "all three ended")
        by_cron = [record for record in root.log() if record["ev"] == "pumped" and record["reason"] == "cron"]
        assert sum(record.get("submitted", 0) for record in by_cron) >= 1
        assert [root.starts(name) for name in ("one", "two", "three")] == [1, 1, 1]
