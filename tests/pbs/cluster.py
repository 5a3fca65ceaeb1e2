"""A mock PBS on this machine: server and moms as processes on loopback, everything in one folder, ended by pid."""

import contextlib
import functools
import getpass
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[2] / "docker" / "pbs"
PATIENCE = 60.0  # seconds until a wait is called a failure


class Refusal(Exception):
    """The control port said no."""


class Cluster:
    """A running mock PBS; use it as a context manager.

    folder           where everything lives; a new one in the system's temporary folder if not given
    nodes            one mom each; the first name is also where `run` runs its commands
    ncpus            of each node
    scale            factor on the long waits of a real PBS (kill delay, E with a bad -o, mom polls); 1.0 is real
    history          job_history_enable
    daemon_seconds   life of the background qsub (real: 60); 0 for none
    root_jobs        root may own jobs (acl_roots); a real server refuses them with 175 unless told otherwise
    dialect          "torque": server and commands as those of a Torque (mockpbs/torque.py)

    environment      for commands: PATH with the commands first, PBS_CONF_FILE, HOME
    home             PBS_HOME of the first node; `pbs_home(node)` of the others
    user_home        HOME of jobs that run as this very user, so that nobody's real one is written to
    """

    def __init__(self, folder: Path | None = None, nodes: tuple[str, ...] = ("pbshost",), ncpus: int = 8,
                 scale: float = 1.0, history: bool = True, daemon_seconds: float = 60.0,
                 root_jobs: bool = True, dialect: str = "openpbs") -> None:  # fmt: skip
        self.folder = Path(folder) if folder else Path(tempfile.mkdtemp(prefix="mockpbs."))
        self.owned = folder is None
        self.nodes, self.ncpus, self.scale, self.history = nodes, ncpus, scale, history
        self.daemon_seconds, self.root_jobs, self.dialect = daemon_seconds, root_jobs, dialect
        self.port, self.control_port = free_ports(2)
        self.exec = self.folder / "exec"
        self.home = self.pbs_home()
        self.user_home = self.folder / "home"
        self.server: subprocess.Popen[bytes] | None = None
        self.moms: dict[str, subprocess.Popen[bytes]] = {}
        self.user = getpass.getuser() if os.getuid() else "root"

    def __enter__(self) -> "Cluster":
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    # files

    def install(self) -> None:
        """The commands, copied: a user who may not read this repository can still run them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        python = python_for_everyone()
        copy_source(self.exec / "mockpbs")
        (self.exec / "mockpbs" / "__pycache__").mkdir(exist_ok=True)
        for name, code in bytecode(python).items():
            (self.exec / "mockpbs" / "__pycache__" / name).write_bytes(code)
        (self.exec / "bin").mkdir(exist_ok=True)
        for launcher in (SOURCE / "bin").iterdir():
            copy = self.exec / "bin" / launcher.name
            copy.write_text(launcher.read_text().replace("/usr/bin/python3", python))
            copy.chmod(0o755)
        self.user_home.mkdir(exist_ok=True)
        profile = "export PATH=%s:$PATH\n" % (self.exec / "bin")
        for name in (".profile", ".bash_profile", ".zprofile"):
            (self.user_home / name).write_text(profile)
        for node in self.nodes:
            self.install_node(node)

    def install_node(self, node: str) -> None:
        home = self.pbs_home(node)
        for name in ("server_priv", "mom_priv", "mom_logs", "tmp"):
            (home / name).mkdir(parents=True, exist_ok=True)
        (home / "tmp").chmod(0o1777)
        self.conf(node).write_text("".join("%s=%s\n" % item for item in {
            "PBS_SERVER": "pbshost", "PBS_SERVER_HOST_NAME": "127.0.0.1", "PBS_SERVER_PORT": self.port,
            "PBS_CONTROL_PORT": self.control_port, "PBS_HOME": home, "PBS_EXEC": self.exec, "PBS_TMPDIR": home / "tmp",
            "PBS_LEAF_NAME": node, "PBS_QSUB_DAEMON_SECONDS": self.daemon_seconds,
            "PBS_DIALECT": self.dialect,
        }.items()))  # fmt: skip
        (home / "pbs_environment").write_text("PBS_CONF_FILE=%s\n" % self.conf(node))
        config = home / "mom_priv" / "config"
        if not config.exists():
            config.write_text("$ncpus %d\n$home %s\n$enforce mem\n" % (self.ncpus, self.user_home))

    def pbs_home(self, node: str = "") -> Path:
        return self.folder / (node or self.nodes[0])

    def conf(self, node: str = "") -> Path:
        return self.folder / ("%s.pbs.conf" % (node or self.nodes[0]))

    @property
    def environment(self) -> dict[str, str]:
        return self.environment_on(self.nodes[0])

    def environment_on(self, node: str) -> dict[str, str]:
        """That of a shell on one of the nodes."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PBS_") and name != "TMPDIR"}
        path = "%s:%s" % (self.exec / "bin", os.environ.get("PATH", "/usr/bin:/bin"))
        return dict(kept, PATH=path, PBS_CONF_FILE=str(self.conf(node)), HOME=str(self.user_home))

    # processes

    def start(self) -> "Cluster":
        self.install()
        self.start_server()
        self.set_server("mock_delay_scale", self.scale)
        self.set_server("job_history_enable", self.history)
        self.set_server("acl_roots", self.root_jobs)
        for node in self.nodes:
            self.start_mom(node)
        return self

    def spawn(self, program: str, node: str) -> subprocess.Popen[bytes]:
        with open(self.pbs_home(node) / (program + ".out"), "ab") as out:
            return subprocess.Popen(str(self.exec / "bin" / program), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                    cwd="/", env=self.environment_on(node), start_new_session=True)  # fmt: skip

    def start_server(self) -> None:
        self.server = self.spawn("pbs_server", self.nodes[0])
        self.until(lambda: port_open(self.port) and port_open(self.control_port), "the server listens")

    def stop_server(self) -> None:
        """qterm -t quick: the jobs stay as they are."""
        self.end(self.server, signal.SIGTERM)

    def kill_server(self) -> None:
        self.end(self.server, signal.SIGKILL)

    def server_pid(self) -> int:
        assert self.server is not None
        return self.server.pid

    def hang_server(self) -> None:
        """SIGSTOP: the ports are open, nobody answers, not even on the control port."""
        os.kill(self.server_pid(), signal.SIGSTOP)

    def resume_server(self) -> None:
        os.kill(self.server_pid(), signal.SIGCONT)

    def start_mom(self, node: str = "") -> None:
        """A plain start: jobs a former mom left running are killed without a trap, and requeued or ended with -4."""
        node = node or self.nodes[0]
        self.moms[node] = self.spawn("pbs_mom", node)
        self.until(lambda: self.ask("nodes").get(node, {}).get("up"), "the mom of %s is known" % node)

    def kill_mom(self, node: str = "") -> None:
        """kill -9: its jobs go on running."""
        self.end(self.moms[node or self.nodes[0]], signal.SIGKILL)

    def restart_mom(self, node: str = "") -> None:
        self.kill_mom(node)
        self.start_mom(node)

    def end(self, process: "subprocess.Popen[bytes] | None", number: int) -> None:
        if process is None or process.poll() is not None:
            return
        process.send_signal(number)
        if number != signal.SIGKILL:
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """Ends server, moms and whatever else names this folder: jobs, qsubs left behind, what they began."""
        for process in [self.server, *self.moms.values()]:
            self.end(process, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while self.end_strays() and time.monotonic() < deadline:
            time.sleep(0.02)
        if self.owned:
            shutil.rmtree(self.folder, ignore_errors=True)

    def end_strays(self) -> list[int]:
        strays = [pid for pid in processes_naming("%s/" % self.folder) if pid != os.getpid()]
        for pid in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return strays

    # commands

    def run(self, *command: str, cwd: Path | None = None, input: str | None = None, node: str = "", user: str = "",
            timeout: float = PATIENCE, env: dict[str, str] | None = None,
            ) -> "subprocess.CompletedProcess[str]":  # fmt: skip
        """One command as a user on a node would type it; a single word with blanks is given to bash."""
        words = ["bash", "-c", command[0]] if len(command) == 1 and " " in command[0] else list(command)
        environment = dict(self.environment_on(node or self.nodes[0]), **(env or {}))
        other: dict[str, Any] = {}
        if user:
            account = pwd.getpwnam(user)
            groups = os.getgrouplist(user, account.pw_gid)
            other = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}
            environment.update(LOGNAME=user, USER=user, HOME=account.pw_dir)
        return subprocess.run(words, cwd=cwd or self.user_home, env=environment, timeout=timeout, text=True,
                              input=input if input is not None else "", capture_output=True, **other)  # fmt: skip

    def submit(self, script: str, *options: str, cwd: Path | None = None) -> str:
        """The id of a job with this script, given on stdin."""
        done = self.run("qsub", *options, input=script, cwd=cwd)
        assert done.returncode == 0, (done.returncode, done.stderr)
        return done.stdout.strip()

    def qmgr(self, command: str) -> "subprocess.CompletedProcess[str]":
        return self.run("qmgr", "-c", command)

    # the control port

    def ask(self, verb: str, **values: Any) -> Any:
        """One request to the server's control port; no fault but SIGSTOP reaches it."""
        with socket.create_connection(("127.0.0.1", self.control_port), timeout=PATIENCE) as sock:
            sock.sendall(json.dumps(dict(values, verb=verb)).encode() + b"\n")
            with sock.makefile("rb") as answers:
                answer = json.loads(answers.readline())
        if "error" in answer:
            raise Refusal(answer["text"])
        return answer["ok"]

    def table(self) -> list[dict[str, Any]]:
        """Every job and array element the server has, for samplers."""
        return self.ask("table")

    def job(self, number: str) -> dict[str, Any] | None:
        """One job of the table by its id."""
        return next((job for job in self.table() if job["id"] == number), None)

    def attributes(self, number: str) -> dict[str, str]:
        """What `qstat -x -f -w` says of a job; empty if it says nothing."""
        lines = self.run("qstat", "-x", "-f", "-w", number).stdout.splitlines()
        pairs = (line.strip().partition(" = ") for line in lines if " = " in line)
        return {name: value for name, _, value in pairs}

    def calls(self, *commands: str, since: float = 0.0) -> list[list[Any]]:
        """[time, command, user, host, arguments] of each call the server saw, of these commands or of all."""
        return [call for call in self.ask("calls", since=since) if not commands or call[1] in commands]

    def set_server(self, attribute: str, value: Any) -> None:
        """value None unsets it. The mock_ attributes are listed in mockpbs/settings.py."""
        self.ask("set", kind="server", attribute=attribute, value=value)

    def set_queue(self, attribute: str, value: Any, queue: str = "workq") -> None:
        self.ask("set", kind="queue", name=queue, attribute=attribute, value=value)

    def fault(self, name: str, **values: Any) -> None:
        """Starts a fault, until `clear` or for `seconds` where it says so:

        down(seconds)              connections are refused
        hung(seconds)              connections are taken, nothing is answered or done
        lose_reply(every)          each nth accepted submission is not answered: the client gets 183
        delay_accept(seconds, every, drop)
                                   submissions wait; without `seconds` until the fault is cleared. They are carried out
                                   even if the client is gone; with drop=True it is sent away at once with 183
        slow_qsub(seconds)         every submission takes that long
        refuse_hosts(hosts, text, number)   no submission from these hosts
        empty_answer(commands)     qselect and qstat print nothing and exit 0
        """
        self.ask("fault", name=name, values=values)

    def clear(self, name: str | None = None) -> None:
        self.ask("clear", name=name)

    @contextlib.contextmanager
    def faulty(self, name: str, **values: Any) -> Iterator[None]:
        self.fault(name, **values)
        try:
            yield
        finally:
            self.clear(name)

    def kill_job(self, number: str) -> None:
        """SIGKILL for every process of the job: no tail runs. PBS is not told, it notices."""
        self.ask("mom", fault="kill_job", values={"id": number.partition(".")[0]})

    def kill_all_jobs(self) -> None:
        self.ask("mom", fault="kill_all")

    def vanish(self, seconds: float, node: str = "") -> None:
        """The node is away for some seconds while its jobs go on; with node_fail_requeue shorter they run twice."""
        self.ask("mom", fault="vanish", node=node or self.nodes[0], values={"seconds": seconds})

    # waiting

    def until(self, condition: Any, what: str, patience: float = PATIENCE) -> Any:
        """The first true value of condition()."""
        deadline = time.monotonic() + patience
        while True:
            with contextlib.suppress(OSError):
                found = condition()
                if found:
                    return found
            if self.server is not None and self.server.poll() is not None:
                raise AssertionError("the server ended: " + self.said("pbs_server"))
            assert time.monotonic() < deadline, "never: %s\n%s" % (what, self.said("pbs_mom"))
            time.sleep(0.02)

    def said(self, program: str) -> str:
        return "".join(path.read_text() for path in self.folder.glob("*/%s.out" % program))

    def wait_for(self, number: str, states: str = "F", patience: float = PATIENCE) -> dict[str, Any]:
        """The job's row of the table once its state is one of these."""

        def there() -> Any:
            job = self.job(number)
            return job if job is not None and job["state"] in states else None

        return self.until(there, "%s in state %s" % (number, states), patience)

    def wait_until_gone(self, number: str, patience: float = PATIENCE) -> None:
        self.until(lambda: self.job(number) is None, "%s forgotten" % number, patience)


def copy_source(folder: Path) -> None:
    shutil.copytree(SOURCE / "mockpbs", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


@functools.cache
def bytecode(python: str) -> dict[str, bytes]:
    """{file in __pycache__: content}, compiled once a process. A user who can't write there compiles at every call."""
    with tempfile.TemporaryDirectory(prefix="mockpbs.") as folder:
        copy_source(Path(folder))
        subprocess.run([python, "-IS", "-m", "compileall", "-q", folder], check=True)
        return {path.name: path.read_bytes() for path in Path(folder, "__pycache__").iterdir()}


@functools.cache
def python_for_everyone() -> str:
    """The system's Python where it is new enough: root's own may lie in a folder that no other user can enter."""
    system = "/usr/bin/python3"
    with contextlib.suppress(OSError):
        if subprocess.run([system, "-c", "import sys; sys.exit(sys.version_info < (3, 9))"]).returncode == 0:
            return system
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def free_ports(count: int) -> list[int]:
    socks = [socket.socket() for _ in range(count)]
    try:
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]
    finally:
        for sock in socks:
            sock.close()


def port_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def processes_naming(text: str) -> Iterator[int]:
    """Pids of living processes that have this in their environment or on their command line."""
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            told = [Path("/proc", name, what).read_bytes() for what in ("environ", "cmdline") if name.isdigit()]
            if any(text.encode() in data for data in told):
                yield int(name)
