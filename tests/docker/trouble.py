"""Trouble for the Docker cluster: hosts, PBS server, sshd and disk fail in an order and for times that a seed decides.

Each trouble takes its time beside the others, as they would: a disk may be full while a host starts again.
"""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

from cluster import NODES, Missing, run

from docker.ground import Laptop, Sampler, until

PATIENCE = 120.0
BALLAST = "/scratch/ballast"
KILL_SERVER = """\
server=$(cat /var/spool/pbs/server_priv/server.lock)
kill -%s $server
while kill -0 $server 2>/dev/null; do sleep 0.1; done
"""
FILL = """\
import sys, time
end = time.monotonic() + float(sys.argv[2])
with open(sys.argv[1], "ab", 0) as ballast:
    while time.monotonic() < end:  # again and again: whatever is deleted makes room
        try:
            ballast.write(bytes(1 << 20))
        except OSError:
            time.sleep(0.02)
"""
SSH_FAILS = (4, 5)  # what the client says of a connection that is gone
DISK_FULL = 6


class Window(NamedTuple):
    """When something was not as it should be."""

    kind: str
    begin: float
    end: float


class Trouble:
    """rng: decides all but when a payload has started; pause: [from, to] seconds from one trouble to the next;
    every: of so many qsub one loses its reply; shots: payload -> seconds after its start when it is to be killed.

    windows: what was done, and when; visits: how the syncs ended that were disturbed.
    """

    KINDS = ("node1", "node2", "server killed", "server down", "sshd", "disk")

    def __init__(self, laptop: Laptop, rng: random.Random, pause: tuple[float, float], every: int,
                 shots: dict[str, float]) -> None:  # fmt: skip
        self.laptop, self.rng, self.pause, self.every, self.shots = laptop, rng, pause, every, shots
        # Asked for once: a host that is down has no container by compose's account.
        self.ids = {host: laptop.cluster.container(host) for host in ("login", *NODES)}
        self.windows: list[Window] = []
        self.visits: list[str] = []
        self.due: list[tuple[float, str]] = []  # when to kill a job, and its number in PBS
        self.turns = {kind: threading.Lock() for kind in self.KINDS}  # a host that is down can't be killed again
        self.looked = 0

    def make(self, sampler: Sampler, rounds: int, over: Callable[[], bool]) -> None:
        """Rounds in which each kind of trouble comes once: one whole, and more up to so many, until it is over. Then
        all is well again."""
        self.lose_replies()
        try:
            with ThreadPoolExecutor() as beside:
                made: list[Future[None]] = []
                for kind, pause, seconds in self.schedule(rounds):
                    if self.wait(pause, sampler, over) and len(made) >= len(self.KINDS):
                        break
                    made.append(beside.submit(self.one, kind, seconds))
                self.wait(PATIENCE, sampler, lambda: all(one.done() for one in made))
            for one in made:
                one.result()
        finally:
            self.heal()

    def schedule(self, rounds: int) -> Iterator[tuple[str, float, float]]:
        """(kind, seconds before it, a number from 0 to 1 that says how long)."""
        for _ in range(rounds):
            for kind in self.rng.sample(self.KINDS, len(self.KINDS)):
                yield kind, self.rng.uniform(*self.pause), self.rng.random()

    def wait(self, seconds: float, sampler: Sampler, over: Callable[[], bool]) -> bool:
        """Shoots meanwhile; whether it is over, sooner or in the end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not over():
            self.shoot(sampler)
            time.sleep(0.05)
        return over()

    @contextmanager
    def window(self, kind: str) -> Iterator[None]:
        begin = time.time()
        yield
        self.windows.append(Window(kind, begin, time.time()))

    def count(self, kind: str) -> int:
        return sum(window.kind == kind for window in self.windows)

    # -- the troubles --------------------------------------------------------------------------------------------------

    def one(self, kind: str, share: float) -> None:
        with self.turns[kind], self.window(kind):
            {"server killed": self.kill_server, "server down": self.server_down, "sshd": self.kill_sshd,
             "disk": self.fill_disk}.get(kind, lambda share: self.restart(kind, share))(share)  # fmt: skip

    def restart(self, node: str, share: float) -> None:
        """A compute host loses power, and is back some seconds later."""
        run(["docker", "kill", self.ids[node]])
        time.sleep(4 * share)
        run(["docker", "start", self.ids[node]])

    def kill_server(self, share: float) -> None:
        """In order or not. The next one starts by itself, and is a healthy one."""
        self.on_login("sh", "-c", KILL_SERVER % ("TERM" if share < 0.5 else "KILL"))
        self.lose_replies()

    def server_down(self, share: float) -> None:
        self.ask({"verb": "fault", "name": "down", "values": {"seconds": 1 + 4 * share}})
        time.sleep(1 + 4 * share)

    def kill_sshd(self, share: float) -> None:
        """In the middle of a login or a sync, listener, connections and all."""
        with ThreadPoolExecutor() as beside:
            visit = beside.submit(self.visit)
            time.sleep(3 * share)
            self.on_login("pkill", "-KILL", "-x", "sshd")
            self.visits.append(visit.result())

    def visit(self) -> str:
        for words in (("login", "hpc"), ("sync",)):
            done = self.laptop.tries(*words)
            if done.returncode:
                assert done.returncode in (*SSH_FAILS, DISK_FULL), (words, done.returncode, done.stderr)
                return f"{words[0]} {done.returncode}"
        return "done"

    def fill_disk(self, share: float) -> None:
        self.on_login("python3", "-c", FILL, BALLAST, str(2 + 4 * share))
        self.on_login("rm", BALLAST)

    # -- all the time --------------------------------------------------------------------------------------------------

    def lose_replies(self) -> None:
        self.ask({"verb": "fault", "name": "lose_reply", "values": {"every": self.every}})

    def shoot(self, sampler: Sampler) -> None:
        """SIGKILL to all of a job, be it in its payload or in its tail by then."""
        for look in sampler.looks[self.looked :]:
            self.looked += 1
            self.due += [(time.monotonic() + self.shots[number], job_id.partition(".")[0])
                         for _, number, _, job_id in look["started"] if number in self.shots]  # fmt: skip
        for shot in [shot for shot in self.due if shot[0] <= time.monotonic()]:
            self.due.remove(shot)
            self.ask({"verb": "mom", "fault": "kill_job", "values": {"id": shot[1]}})

    # -- the cluster ---------------------------------------------------------------------------------------------------

    def on_login(self, *command: str) -> str:
        return run(["docker", "exec", "-i", self.ids["login"], *command])

    def ask(self, request: dict[str, Any]) -> Any:
        """Of the PBS server, as soon as there is one."""

        def answer() -> str:
            try:
                return self.on_login("ask-pbs", json.dumps(request))
            except Missing:
                return ""

        return json.loads(until(answer, "the PBS server answers", PATIENCE, 0.1))

    def heal(self) -> None:
        """Every host and service is there."""
        run(["docker", "start", *self.ids.values()])
        self.on_login("rm", "-f", BALLAST)
        self.ask({"verb": "clear"})
        until(self.laptop.cluster.answers, "the cluster is as it was", PATIENCE)
