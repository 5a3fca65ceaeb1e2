"""A relay over PBS to which anything may happen, in any order, step by step; P1 to P5 are looked at after each.

The agent is the real one, run as a process on the cluster's Python; server, moms and commands are the mock's. What a
step is given are numbers and names that do not depend on what the processes have got to ("the third job", not "a job
that runs"), so that the same list is the same steps; one that has no object by then does nothing.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from agent.agentroot import AGENT
from chasqui_agent import (  # noqa: F401  their points
    cli,
    ending,
    fault,
    files,
    heartbeat,
    intake,
    operations,
    pump,
    retries,
    settings,
)  # fmt: skip
from chasqui_agent.dependents import CONDITIONS
from chasqui_agent.spool import AFTER, Spool, rank_of, shard_name
from chasqui_agent.state import State
from pbs.cluster import Cluster, Refusal
from pbs.promises import SETTLED, Attempt, Promises, holds, on_their_way

NODES = ("one", "two")
MAX_RUNNING, MAX_QUEUED, INTERVAL, GRACE = 3, 4, 0.3, 1.0
LIMITS = (None, None, 4, 6)  # of all jobs of this user; three are a job, the heartbeat and its next one
RELAY = ("dependents", "ending", "files", "fill", "heartbeat", "intake", "journal", "lock", "marks", "operations",
         "pump", "retries", "submit")  # fmt: skip
POINTS = sorted(name for name in fault.POINTS if name.split(".")[0] in RELAY)
KINDS = {"short": "exit 0", "fails": "exit 3", "while": "sleep 0.4", "again": "sleep 0.4", "gated": "wait_for_gate",
         "tries": "exit 3"}  # fmt: skip
POLICY = {"retries": 2, "on": ["1-255", "SIGKILL", "node", "lost"]}  # of those that try
TOLD = ("retried", "adopted", "closed", "duplicate", "released", "repaired")
PATIENCE = 90.0  # seconds in which nothing at all gets on
KILLED_WITHIN = 2.0  # seconds: PBS takes up to 1 from TERM to KILL here
SETTLES = 1.0  # seconds after some harm: a pump may go by what it was told before

points = st.sampled_from(POINTS)
kinds = st.sampled_from(sorted(KINDS))
passes = st.sampled_from([1, 1, 2, 3])
some = st.integers(0, 30)
families = st.lists(some, min_size=1, max_size=3, unique=True)
Step = tuple[str, dict[str, Any]]  # a method of AnyOrder and its arguments
ARGUMENTS: dict[str, st.SearchStrategy[dict[str, Any]]] = {}
WEIGHTED: list[str] = []


def step(weight: int, **arguments: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """Make a method of AnyOrder a step that is taken as often as its weight says."""

    def register(method: Any) -> Any:
        ARGUMENTS[method.__name__] = st.fixed_dictionaries(arguments)
        WEIGHTED.extend([method.__name__] * weight)
        return method

    return register


@st.composite
def steps(draw: st.DrawFn) -> Step:
    name = draw(st.sampled_from(WEIGHTED))
    return name, draw(ARGUMENTS[name])


# Put in front of the agent's first line: every process of the agent goes by a clock that is this many seconds ahead.
CLOCK = """\
import os as _os, time as _time
with open(_os.path.join(_os.path.dirname(_os.path.dirname(_os.path.abspath(__file__))), "clock")) as _file:
    _ahead = float(_file.read() or 0)
_right, _gmtime, _localtime = _time.time, _time.gmtime, _time.localtime
_time.time = lambda: _right() + _ahead
_time.gmtime = lambda seconds=None: _gmtime(_time.time() if seconds is None else seconds)
_time.localtime = lambda seconds=None: _localtime(_time.time() if seconds is None else seconds)
"""


class Ground:
    """What all machines of a test share: the agent with its clock, the Python it runs on, and what was done in all."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.python, self.clock = folder, python, folder / "clock"
        self.agent = folder / "chasqui_agent"
        shutil.copytree(Path(AGENT, "chasqui_agent"), self.agent, ignore=shutil.ignore_patterns("__pycache__"))
        main = self.agent / "__main__.py"
        main.write_text(CLOCK + main.read_text())
        self.done: Counter[str] = Counter()


class AnyOrder:
    """One cluster of two nodes, one root; a context manager. history: whether PBS remembers jobs that ended."""

    def __init__(self, ground: Ground, history: bool) -> None:
        self.ground, self.history = ground, history
        self.folder = Path(tempfile.mkdtemp(dir=self.ground.folder))
        self.jobs: list[str] = []
        self.kinds: dict[str, str] = {}
        self.touched: set[Attempt] = set()  # cancelled
        self.marks: list[Path] = []  # one for each kill that was asked for; it exists once somebody was killed
        self.away: set[str] = set()  # faults of the server
        self.since, self.said, self.kills = 0.0, "", 0
        self.harmed, self.limited = 0.0, False
        self.cluster = Cluster(self.folder / "pbs", NODES, ncpus=4, scale=0.05, history=history, daemon_seconds=1)

    def __enter__(self) -> "AnyOrder":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop()
        if kind is None:  # else they are what pytest keeps
            shutil.rmtree(self.folder, ignore_errors=True)

    def stop(self) -> None:
        self.cluster.stop()

    def start(self) -> None:
        self.set_clock(0)
        self.cluster.start()
        self.cluster.set_server("node_fail_requeue", 0.5)
        self.cluster.set_server("managers", [self.cluster.user])
        root = self.folder / "root"
        self.spool = Spool(str(root))
        self.agent("install", "--scheduler", "openpbs")
        settings.change(self.spool, max_running=MAX_RUNNING, max_queued=MAX_QUEUED, settle=0, query_interval=INTERVAL,
                        grace=GRACE, lease=10, heartbeat=0.03)  # fmt: skip
        caps = (MAX_RUNNING, MAX_QUEUED - 1)  # one place is the heartbeat's
        self.promises = Promises(self.spool, self.cluster, self.folder / "ran", caps, INTERVAL)

    # -- what the steps are made of ------------------------------------------------------------------------------------

    def agent(self, *words: str, point: str = "") -> int:
        """One verb of the agent; its exit code. It, and what it submits, is killed at the point: one process in all."""
        more = {}
        if point:
            self.marks.append(self.folder / ("killed.%d" % len(self.marks)))
            more = {"CHASQUI_FAULT": point, "CHASQUI_FAULT_ONCE": str(self.marks[-1])}
        command = [self.ground.python, "-I", "-S", str(self.ground.agent), "--root", str(self.folder / "root"), *words]
        done = self.cluster.run(*command, env=more, timeout=300)
        holds("Traceback" not in done.stderr, "the agent", done.stderr)
        self.said = done.stdout
        return done.returncode

    def set_clock(self, ahead: float) -> None:
        self.ground.clock.write_text(str(ahead))

    def the(self, number: int) -> str:
        """One of the jobs; "" while there is none."""
        return self.jobs[number % len(self.jobs)] if self.jobs else ""

    def text(self, job: str) -> str:
        gate = "wait_for_gate() { while [ ! -e '%s' ] && [ ! -e '%s' ]; do sleep 0.1; done; }" % (
            self.gate(job), self.gate("all"))  # fmt: skip
        start = "echo start $(basename \"$PWD\") $PBS_JOBID >>'%s'" % self.promises.ran
        return "#!/bin/sh\n%s\n%s\n%s\n" % (start, gate, KINDS[self.kinds[job]])

    def gate(self, job: str) -> Path:
        return self.folder / ("gate." + job)

    def hand_over(self, job: str, attempt: int, parents: list[Attempt] | None = None, condition: str = "ok") -> None:
        """As a session does it: a work folder, then a shard."""
        building = Path(self.spool.staging, "%s.%d" % (job, attempt))
        building.mkdir()
        meta = self.spool.meta_dir(job, attempt)
        os.makedirs(meta)
        record: dict[str, Any] = {"rerun": True} if self.kinds[job] == "again" else {}
        if parents:
            record.update({"after": [[*parent, ""] for parent in parents], "if": condition})
            self.promises.waits_for[job, attempt] = (parents, condition)
        if self.kinds[job] == "tries":
            record.update({"retry": POLICY, "ledger": "hers"})
            self.inputs(Path(meta), self.text(job).encode())
        files.write_json(os.path.join(meta, "job.json"), record)
        if record.get("rerun"):
            self.promises.rerunnable.add((job, attempt))
        (building / shard_name(0, job, attempt)).write_text(self.text(job))
        self.promises.added.append((job, attempt))
        rank = AFTER if parents else rank_of(0)
        self.spool.publish(str(building), rank, "20260101T000000-%s.%d-0000" % (job, attempt))

    def inputs(self, meta: Path, script: bytes) -> None:
        """The job's inputs, kept as they were uploaded: its script."""
        sha = hashlib.sha256(script).hexdigest()
        (meta / "inputs").mkdir()
        for path in (meta / "inputs" / sha, meta.parent / "job.sh"):
            path.write_bytes(script)
        row = {"path": "job.sh", "size": len(script), "mode": 0o600, "sha256": sha,
               "mtime_ns": (meta.parent / "job.sh").stat().st_mtime_ns}  # fmt: skip
        files.write_json(str(meta / "manifest.json"), {"files": [row]})

    def last(self, job: str) -> int:
        """The newest attempt of a job, whoever made it."""
        return max((attempt for name, attempt in self.promises.known() if name == job), default=0)

    def named(self, kind: str) -> str:
        """A new job's name."""
        self.jobs.append("j%02d" % len(self.jobs))
        self.kinds[self.jobs[-1]] = kind
        return self.jobs[-1]

    def live_id(self, job: str) -> str:
        """The scheduler's id of a job, "" where it has none that lives."""
        rows = [row for row in self.cluster.table() if row["name"].startswith(job + ".") and row["state"] != "F"]
        return rows[-1]["id"] if rows else ""

    @contextlib.contextmanager
    def harm(self, *jobs: str, seconds: float = 0.0) -> Iterator[None]:
        """What may be running before or after what is done may be killed by it, and a tail's pump with it: for so many
        seconds more, and as long as PBS takes to kill."""
        began, hit = time.time(), on_their_way(self.spool)
        with contextlib.suppress(Refusal):
            yield
        self.harmed = time.monotonic()
        self.promises.excuses.append((began, time.time() + seconds + KILLED_WITHIN))
        hit |= on_their_way(self.spool)
        self.promises.disturbed |= {attempt for attempt in hit if not jobs or attempt[0] in jobs}

    @contextlib.contextmanager
    def cancelling(self, job: str) -> Iterator[None]:
        """It may be cancelled, and a tail's pump killed with it."""
        began = time.time()
        yield
        self.touched |= {(job, attempt) for attempt in range(1, self.last(job) + 2)}
        self.promises.excuses.append((began, time.time() + KILLED_WITHIN))

    def trouble(self, name: str, **values: Any) -> None:
        self.cluster.fault(name, **values)
        if not self.away:
            self.since = time.time()
        self.away.add(name)

    def no_trouble(self) -> None:
        self.cluster.clear()
        self.calm()

    def calm(self) -> None:
        if self.away:
            self.promises.excuses.append((self.since, time.time()))
        self.away.clear()

    # -- the relay's own ways ------------------------------------------------------------------------------------------

    @step(4, kind=kinds, count=st.integers(1, 3), by_hand=st.booleans())
    def add(self, kind: str, count: int, by_hand: bool) -> None:
        for _ in range(count):
            job = self.named(kind)
            if by_hand and kind not in ("again", "tries"):  # nobody could say so
                path = Path(self.spool.waiting, job + ".sh")
                path.with_name("." + job).write_text(self.text(job))
                self.promises.added.append((job, 1))
                path.with_name("." + job).rename(path)
            else:
                self.hand_over(job, 1)

    @step(4, kind=kinds, numbers=families, condition=st.sampled_from(CONDITIONS))
    def add_after(self, kind: str, numbers: list[int], condition: str) -> None:
        """One that waits for others, or for one of their attempts that ended long ago."""
        parents = {(job, self.last(job)): None for job in map(self.the, numbers) if job}
        if parents:
            self.hand_over(self.named(kind), 1, list(parents), condition)

    @step(8)
    def pump(self) -> None:
        self.ground.done["pumps"] += 1
        code = self.agent("pump", "--json")
        # Under a limit the places may be taken by jobs that end without a word to this relay.
        calm = not self.away and not self.limited and time.monotonic() - self.harmed > SETTLES
        if code == 0 and calm and '"busy": false' in self.said:
            self.promises.wake_is_pending()

    @step(8, kind=kinds, point=points, nth=passes)
    def pump_is_killed(self, kind: str, point: str, nth: int) -> None:
        """One that has something to do; or who comes after it."""
        self.add(kind, 1, False)
        self.agent("wake", point="%s:%d" % (point, nth))

    @step(4, number=some)
    def one_may_end(self, number: int) -> None:
        self.gate(self.the(number) or "none").touch()

    @step(4, seconds=st.sampled_from([0.2, 0.5, 1.2]))
    def time_passes(self, seconds: float) -> None:
        time.sleep(seconds)

    @step(4, op=st.sampled_from(["cancel", "hold", "hold", "release"]), number=some, point=st.none() | points)
    def operate(self, op: str, number: int, point: str | None) -> None:
        job = self.the(number)
        if job:
            with self.cancelling(job) if op == "cancel" else contextlib.nullcontext():
                self.agent(op, job, point=point or "")

    @step(3, number=some)
    def retry(self, number: int) -> None:
        """She has been told of its end."""
        job = self.the(number)
        attempt = (job, self.last(job))
        places = self.promises.places().get(attempt, [""])
        if places[0] in SETTLED and attempt in self.promises.ends():
            self.ground.done["retries"] += 1
            self.hand_over(job, attempt[1] + 1)

    # -- what others do ------------------------------------------------------------------------------------------------

    @step(3, command=st.sampled_from(["qdel", "qhold", "qrls", "qrerun"]), number=some)
    def by_the_commands_of_pbs(self, command: str, number: int) -> None:
        job = self.the(number)
        job_id = self.live_id(job) if job else ""
        if not job_id:
            return
        if command == "qrls":
            self.promises.freed.add(job_id)
        around = {"qdel": self.cancelling, "qrerun": self.harm}.get(command, contextlib.nullcontext)
        with around(job):
            self.cluster.run(command, *(["-W", "force"] if command == "qrerun" else []), job_id)

    @step(1)
    def somebody_submits(self) -> None:
        """Another job of this user's."""
        self.cluster.run("qsub", input="sleep 0.5\n")

    @step(2, limit=st.sampled_from(LIMITS), published=st.booleans())
    def site_limits(self, limit: int | None, published: bool) -> None:
        """The relay is told, or learns it from a refusal."""
        with contextlib.suppress(Refusal):
            self.cluster.set_server("mock_hide_limits", not published)
            self.cluster.set_server("max_queued", limit and "[u:PBS_GENERIC=%d]" % limit)
            self.limited = bool(limit)

    @step(2, ahead=st.sampled_from([0, -900, 900, -40000, 40000]))
    def clock_jumps(self, ahead: float) -> None:
        self.set_clock(ahead)

    # -- what happens to the cluster -----------------------------------------------------------------------------------

    @step(2, name=st.sampled_from(["down", "empty_answer", "hung"]))
    def server_is_away(self, name: str) -> None:
        # A pump by hand would sit there as long as a query may take.
        self.trouble(name, **({"seconds": 1} if name == "hung" else {}))

    @step(3)
    def server_is_back(self) -> None:
        self.no_trouble()

    @step(3, every=st.integers(1, 3))
    def replies_are_lost(self, every: int) -> None:
        self.trouble("lose_reply", every=every)

    @step(2, seconds=st.sampled_from([0.3, 1.5, 3]), every=st.integers(1, 3), drop=st.booleans())
    def submissions_are_late(self, seconds: float, every: int, drop: bool) -> None:
        self.trouble("delay_accept", seconds=seconds if drop else 0.3, every=every, drop=drop)

    @step(1, in_order=st.booleans())
    def server_restarts(self, in_order: bool) -> None:
        """A new server is healthy."""
        began = time.time()
        with self.harm():
            (self.cluster.stop_server if in_order else self.cluster.kill_server)()
            self.cluster.start_server()
        self.promises.excuses.append((began, time.time()))
        self.calm()

    @step(2, number=some)
    def one_is_killed(self, number: int) -> None:
        job = self.the(number)
        job_id = self.live_id(job) if job else ""
        if job_id:
            with self.harm(job):
                self.cluster.kill_job(job_id)

    @step(1)
    def all_are_killed(self) -> None:
        with self.harm():
            self.cluster.kill_all_jobs()

    @step(2, node=st.sampled_from(NODES), seconds=st.sampled_from([0.3, 1.5]))
    def node_is_lost(self, node: str, seconds: float) -> None:
        with self.harm(seconds=seconds):
            self.cluster.vanish(seconds, node)

    @step(1, node=st.sampled_from(NODES))
    def mom_restarts(self, node: str) -> None:
        if not self.away & {"down", "hung"}:
            with self.harm():
                self.cluster.restart_mom(node)

    # -- what must be true ---------------------------------------------------------------------------------------------

    def take(self, steps: list[Step]) -> None:
        for name, arguments in steps:
            getattr(self, name)(**arguments)
            self.ground.done["steps"] += 1
            self.promises_hold()
        self.finish()

    def promises_hold(self) -> None:
        killed = [mark.stat().st_mtime for mark in self.marks if mark.exists()]
        kept = list(self.promises.excuses)
        self.promises.excuses += [(when, when) for when in killed] + ([(self.since, time.time())] if self.away else [])
        self.promises.check()
        self.promises.excuses = kept

    def finish(self) -> None:
        """All is well again; behind one pump by hand everything comes to its end, and did so once."""
        self.kills = sum(mark.exists() for mark in self.marks)
        self.heal()
        self.pump_gets_through()  # a hold that was asked for is done
        for entry in self.spool.entries("held"):
            self.agent("release", entry.job)
        self.lift_her_holds()
        time.sleep(max(0.0, self.harmed + SETTLES - time.monotonic()))
        self.pump_gets_through()
        self.relay_does_the_rest()
        self.promises_hold()
        for attempt in self.promises.known():
            self.ended_as_it_should(attempt)
        self.tell()

    def pump_gets_through(self) -> None:
        end = time.monotonic() + PATIENCE
        while self.agent("pump", "--json") or '"busy": true' in self.said:
            holds(time.monotonic() < end, "P4", "no pump gets through: " + self.said)
            time.sleep(INTERVAL)

    def tell(self) -> None:
        """What was seen, so that nobody takes an idle run for a proof."""
        done, records = self.ground.done, list(self.promises.records())
        done.update(clusters=1, jobs=len(self.jobs), attempts=len(self.promises.known()), rounds=self.promises.rounds,
                    kills=self.kills)  # fmt: skip
        done.update(record["ev"] for record in records if record["ev"] in TOLD)
        done.update(told[0].get("state", told[0]["ev"]) for told in self.promises.ends().values())
        for name, most in (("run", self.promises.most_running), ("wait", self.promises.most_queued)):
            done["most that " + name] = max(done["most that " + name], most)

    def heal(self) -> None:
        self.no_trouble()
        self.set_clock(0)
        self.gate("all").touch()
        for mark in self.marks:
            if not mark.exists():  # when it was made is when somebody was killed
                mark.touch()

    def lift_her_holds(self) -> None:
        """The relay releases no job that has begun: what is held then, after a rerun, she holds."""
        begun = [row["id"] for row in self.cluster.table() if row["state"] == "H" and row["run_count"]]
        self.promises.freed.update(begun)
        if begun:
            self.cluster.run("qrls", *begun)

    def relay_does_the_rest(self) -> None:
        left, end = -1, 0.0
        while found := self.unsettled():
            if len(found) != left:
                left, end = len(found), time.monotonic() + PATIENCE
            holds(time.monotonic() < end, "P4", "the relay stands still: %s of %s" % (found, self.cluster.table()))
            if self.no_heartbeat_fits():  # then the next contact tells how the last one ended
                self.agent("pump")
            time.sleep(0.1)

    def unsettled(self) -> list[Attempt]:
        known = self.promises.known()
        found = [attempt for attempt in known if not self.spool.settled_state(*attempt)]
        return found or [attempt for attempt in self.promises.known() if attempt not in known]

    def no_heartbeat_fits(self) -> bool:
        """A limit of one or two, learnt while other jobs of hers took places, leaves no room for one."""
        known = State(self.spool).value.get("site_limits", {})
        return any(number < 3 for number, _ in known.values())

    def ended_as_it_should(self, attempt: Attempt) -> None:
        told = self.promises.ends()[attempt][0]
        starts = sum(other == attempt for other, _ in self.promises.starts())
        if told["ev"] == "blocked":
            holds(not starts and not self.promises.may_run(attempt), "P2", "%s: %s" % (attempt, told))
            return
        words = "%s, %d starts: %s" % (attempt, starts, told)
        holds(starts or told.get("state") != "DONE", "P1", words)
        if attempt not in self.promises.disturbed | self.touched:
            state = ("FAIL", 3) if self.kinds[attempt[0]] in ("fails", "tries") else ("DONE", 0)
            holds(starts == 1 and (told.get("state"), told.get("exit")) == state, "P2", words)
