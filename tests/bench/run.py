"""`make bench`: what a sync costs, beside what it cannot do without. As root, through a real sshd on a loopback port.

    run.py [--jobs 5000] [--rounds 21] [--batch 100]
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import clock, ground
from bench.ground import Desk
from ssh import lab as sshd

TARGET = 1.5
LIVE = ("submitting/*.sh", "submitted/*.sh", "waiting/*/*/*.sh")
# What submission costs there without any relay: start each job's script in its folder, in the background.
BARE_LOOP = (
    "cd {place} && for job in */; do (cd $job && exec setsid sh ./job.sh </dev/null >job.log 2>&1) & done; wait"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=5000, help="completed jobs in ledger and spool")
    parser.add_argument("--rounds", type=int, default=21, help="interleaved runs that the medians are of")
    parser.add_argument("--batch", type=int, default=100, help="jobs of one upload")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that sshd and its accounts go, too
    place = Path(tempfile.mkdtemp(prefix="cqbench-jobs-"))
    try:
        with ground.installed_client() as python, sshd.running() as lab, sshd.python36_copy() as python36:
            desk = Desk(lab, lab.user("bash"), python, str(python36), "max_queued = 200\nmax_running = 4")
            desk.chasqui("login", "bench")
            desk.chasqui("agent", "deploy")
            _no_op(desk, place, asked.jobs, asked.rounds)
            _batches(desk, place, asked.batch)
            desk.chasqui("logout", "bench")
    finally:
        shutil.rmtree(place)


# -- a sync with nothing to do -----------------------------------------------------------------------------------------


def _no_op(desk: Desk, place: Path, jobs: int, rounds: int) -> None:
    start = time.monotonic()
    made = ground.finished_jobs(desk, place / "finished", jobs)
    print(f"{jobs} completed jobs made in {time.monotonic() - start:.0f} s", flush=True)
    start = time.monotonic()
    ground.catch_up(desk, made, jobs)
    print(f"one sync brought their journal and {jobs} results home, verified, in {time.monotonic() - start:.0f} s\n")
    _no_op_beside(desk, rounds)
    if Path("/usr/bin/python3").exists():
        desk.use_python("/usr/bin/python3")
        _no_op_beside(desk, rounds)


def _no_op_beside(desk: Desk, rounds: int) -> None:
    """`ssh .. version` is ssh and the agent's version in one: the agent's share is its difference to `ssh .. true`."""
    before = desk.lab.counts()
    desk.chasqui("sync")
    execs = (desk.lab.counts() - before).execs
    commands = {
        "sync": desk.command("sync"),
        "true": desk.ssh("true"),
        "here": desk.command("--version"),
        "there": desk.agent("version"),
        "imports": [desk.python, "-c", "import sys; sys.argv = ['chasqui', 'sync']; " + IMPORTS],
    }
    taken = clock.interleaved(rounds, {
        name: (lambda argv=argv: clock.seconds(argv, desk.environment)) for name, argv in commands.items()
    })
    version = subprocess.run(desk.agent("version"), env=desk.environment, capture_output=True, text=True).stdout
    bound = taken["here"] + taken["there"]
    print(f"a sync with nothing to do; the agent there says {version.strip()}")
    for value, what in (
        (taken["true"], "ssh host true, through the same master"),
        (taken["here"], "chasqui --version, here"),
        (taken["there"] - taken["true"], "the agent's version there (ssh .. version, less ssh .. true)"),
        (bound, "these three"),
        (taken["sync"], f"chasqui sync, {execs} ssh exec"),
        (taken["imports"], "of it, if nothing ran beside it: the client's start and imports"),
    ):
        print(f"  {value * 1000:8.1f} ms  {what}")
    ratio = taken["sync"] / bound
    print(f"  {ratio:8.2f}     sync / these three (target {TARGET}): {'ok' if ratio <= TARGET else 'MISSED'}")
    print(f"               medians of {rounds} interleaved runs\n", flush=True)


IMPORTS = "import chasqui_client.cli, chasqui_client.cli_remote, chasqui_client.sync"


# -- upload and submission ---------------------------------------------------------------------------------------------


def _batches(desk: Desk, place: Path, batch: int, rounds: int = 3) -> None:
    """Every round with fresh folders; the relay has run the last batch before the next one comes."""
    number = iter(range(10**6))

    def fresh() -> Path:
        folder = place / f"batch{next(number)}"
        ground.make_folders(folder, batch, size=10_000, more=2)
        return folder

    taken = clock.interleaved(rounds, {
        "sync": lambda: _timed_sync(desk, fresh()),
        "tar": lambda: _timed_tar(desk, fresh()),
        "loop": lambda: clock.seconds(desk.ssh(BARE_LOOP.format(place="bare")), desk.environment),
    })
    bound = taken["tar"] + taken["loop"]
    print(f"{batch} jobs of 4 files, 30 kB: upload and submission, per job")
    for value, what in (
        (taken["tar"], "tar | ssh tar x"),
        (taken["loop"], "a bare loop there: sh starts each script in its folder with setsid, in the background"),
        (bound, "both"),
        (taken["sync"], "chasqui sync: hashed, fsynced, journalled, in the scheduler's table"),
    ):
        print(f"  {value / batch * 1000:8.2f} ms  {what}")
    print(f"  {taken['sync'] / bound:8.2f}     sync / both; medians of {rounds} interleaved runs", flush=True)


def _timed_sync(desk: Desk, place: Path) -> float:
    desk.chasqui("add", *sorted(str(folder) for folder in place.iterdir()))
    taken = clock.seconds(desk.command("sync"), desk.environment)
    end = time.monotonic() + 600
    while any(any(desk.root.glob(wild)) for wild in LIVE):
        if time.monotonic() > end:
            raise RuntimeError("the relay did not finish the batch")
        time.sleep(0.5)
    desk.chasqui("sync")
    return taken



def _timed_tar(desk: Desk, place: Path) -> float:
    line = ground.shown(["tar", "-C", str(place), "-c", "."]) + " | " + ground.shown(
        desk.ssh("rm -rf bare; mkdir bare; exec tar -C bare -x"))
    return clock.seconds(["sh", "-c", line], desk.environment)


if __name__ == "__main__":
    main()
