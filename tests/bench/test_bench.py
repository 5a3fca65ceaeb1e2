"""What a sync with nothing to do costs must not grow with the jobs that have ended; the times are `make bench`'s."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import clock, ground
from bench.ground import Desk
from chasqui_agent import wire
from ssh.lab import Lab

PYTHON = "/usr/bin/python3"  # the cluster's: one that every account can run
# Counts what Python asks of the file system, and what crosses the wire, in the client that runs ARGV.
CLIENT = """
import collections, json, os, sys
counted = collections.Counter()
sys.addaudithook(lambda event, args: counted.update([event] if event.split(".")[0] in ("open", "os") else []))
from chasqui_client import cli, transport
class CountingOs:
    def __getattr__(self, name):
        return getattr(os, name)
    def read(self, fd, size):
        data = os.read(fd, size)
        counted["bytes read"] += len(data)
        return data
    def write(self, fd, data):
        done = os.write(fd, data)
        counted["bytes written"] += done
        return done
transport.os = CountingOs()
code = cli.main(["sync", "--json"])
print(json.dumps(counted))
sys.exit(code)
"""
# The same for the agent of a root, with the session on stdin and its answer on stdout; the counts go to stderr.
AGENT = """
import collections, json, os, sys
counted = collections.Counter()
sys.addaudithook(lambda event, args: counted.update([event] if event.split(".")[0] in ("open", "os") else []))
errors = os.dup(2)
sys.path.insert(0, sys.argv[2])
from chasqui_agent import cli
code = cli.main(["--root", sys.argv[1], "serve", "--nonce", "0" * 32])
with open("/proc/self/io") as io:
    counted["bytes read"] = int(io.readline().split()[1])
os.write(errors, json.dumps(counted).encode())
sys.exit(code)
"""


@pytest.fixture(scope="module")
def desk(lab: Lab) -> Iterator[Desk]:
    with ground.installed_client() as python:
        made = Desk(lab, lab.user("bash"), python, PYTHON)
        made.chasqui("login", "bench")
        made.chasqui("agent", "deploy")
        yield made
        made.chasqui("agent", "remove", "--purge")
        made.chasqui("logout", "bench")


def client_counts(desk: Desk) -> dict[str, int]:
    done = subprocess.run([desk.python, "-c", CLIENT], env=desk.environment, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def agent_counts(desk: Desk, cursor: int) -> dict[str, int]:
    hello = wire.message(
        "hello", proto=wire.PROTOCOL, client="0.1.0", ledger="0" * 32,
        root_uuid=(desk.root / "uuid").read_text().strip(), cursor=cursor, config=None,
        take_caps=False, results=[], fetch=[], want_results=True,
    )
    done = subprocess.run(
        [PYTHON, "-I", "-c", AGENT, str(desk.root), str(desk.root / "agent" / "current")], timeout=60, cwd="/",
        input=hello + wire.message("end"), capture_output=True, user=desk.user.name, group=desk.user.name,
        extra_groups=[],
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stderr), "bytes sent": len(done.stdout)}


def assert_alike(few: dict[str, int], many: dict[str, int]) -> None:
    """A digit more in a cursor or a count is all that may differ."""
    for name in few.keys() | many.keys():
        one, other = few.get(name, 0), many.get(name, 0)
        assert abs(one - other) <= max(2, one // 20), (name, one, other)


def test_a_sync_with_nothing_to_do_costs_the_same_after_500_jobs_as_after_50(desk: Desk, tmp_path: Path) -> None:
    counted = []
    total = 0
    for more in (50, 450):
        ground.catch_up(desk, ground.finished_jobs(desk, tmp_path / str(more), more), total := total + more)
        desk.chasqui("sync")
        before = desk.lab.counts()
        client = client_counts(desk)
        assert (desk.lab.counts() - before).execs == 1
        assert (desk.lab.counts() - before).authentications == 0
        cursor = sum(path.stat().st_size for path in (desk.root / "log").glob("*.seg"))
        counted.append((client, agent_counts(desk, cursor)))
    assert_alike(counted[0][0], counted[1][0])
    assert_alike(counted[0][1], counted[1][1])
    print("client:", counted[1][0], "\nagent: ", counted[1][1])

    taken = clock.interleaved(7, {
        "sync": lambda: clock.seconds(desk.command("sync"), desk.environment),
        "here": lambda: clock.seconds(desk.command("--version"), desk.environment),
        "there": lambda: clock.seconds(desk.agent("version"), desk.environment),
    })
    ratio = taken["sync"] / (taken["here"] + taken["there"])
    print(f"a sync with nothing to do takes {ratio:.2f} times `ssh .. agent version` and `chasqui --version`")
    assert ratio <= 3, taken
