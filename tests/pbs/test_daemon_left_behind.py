"""An ssh session that wakes the relay ends at once, although a background qsub lives on for a minute."""

import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.agentroot import AGENT, until
from pbs.cluster import Cluster, processes_naming
from pbs.test_relay import PbsRoot

LIFE = 60.0  # seconds of the background qsub, as measured
# A site's own qsub: many have one, and it may know better than to pass -f on.
WRAPPER = """#!/bin/sh
for word; do shift; [ "$word" = -f ] || set -- "$@" "$word"; done
exec {qsub} "$@"
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.1, daemon_seconds=LIFE) as made:
        yield made


def daemons(cluster: Cluster) -> list[int]:
    """The background qsubs that live: they hold their own socket."""
    return [pid for pid in processes_naming("%s/" % cluster.exec) if _is_qsub(pid)]


def _is_qsub(pid: int) -> bool:
    try:
        return b"qsub" in Path("/proc/%d/cmdline" % pid).read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize("verb", ["wake", "pump"])
def test_it_comes_back_while_the_background_qsub_lives(tmp_path: Path, cluster: Cluster, verb: str) -> None:
    """sshd waits for the end of both pipes; here a third one, inherited from a careless parent, has to end as well."""
    root = PbsRoot(tmp_path / "root", cluster, heartbeat=0)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "qsub").write_text(WRAPPER.format(qsub=cluster.exec / "bin" / "qsub"))
    (bin_ / "qsub").chmod(stat.S_IRWXU)
    root.drop("long", seconds=300)
    environment = dict(cluster.environment, PATH="%s:%s" % (bin_, cluster.environment["PATH"]))
    third, inherited = os.pipe()
    began = time.monotonic()
    words = [root.python, "-I", "-S", os.path.join(AGENT, "chasqui_agent"), "--root", root.path, verb]
    with subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, pass_fds=[inherited]) as process:
        os.close(inherited)
        out, err = process.communicate(timeout=10 * LIFE)
        assert os.read(third, 1) == b""
    os.close(third)
    took = time.monotonic() - began
    assert (process.returncode, err) == (0, b"") and (out == b"") == (verb == "wake")
    assert len(daemons(cluster)) == 1, "no background qsub: this test shows nothing"
    assert took < LIFE / 2
    until(lambda: root.starts("long"), "it was submitted")
