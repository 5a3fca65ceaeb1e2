"""The Docker cluster: `cluster.py up` starts it and says how to try it, `cluster.py down` removes it; the tests use
the parts. Standard library alone.

    engine     one that runs is used; as root, where none runs and dockerd is installed, it is started, and ended by us
    image      debian:bookworm-slim (base.sh makes it where it can't be pulled), then the Dockerfile
    folder     build/cluster: the key, ssh_config, a client's config.toml, what dockerd said
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOP = HERE.parent
IMAGE = "chasqui-cluster"
USERS = ("bash", "tcsh", "zsh", "fish")
NODES = ("node1", "node2")
START_SECONDS = 60.0

# Tried one after the other: sandboxes and containers may forget to let us change iptables, or stack file systems.
ENGINE_FLAGS = ([], ["--iptables=false"], ["--iptables=false", "--storage-driver=vfs"])

SSH_CONFIG = """\
Host cluster-{user}
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {folder}/key
    IdentitiesOnly yes
    HostKeyAlias chasqui-cluster
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes

"""
REMOTE = """\
[remotes.{user}]
host = "cluster-{user}"
ssh_config = "{folder}/ssh_config"
scheduler = "openpbs"
[remotes.{user}.caps]
max_queued = 8
max_running = 4

[remotes.{user}-slurm]
host = "cluster-{user}"
ssh_config = "{folder}/ssh_config"
scheduler = "slurm"
root = "/home/{user}/chasqui-slurm"
[remotes.{user}-slurm.caps]
max_queued = 8
max_running = 4

"""
WELCOME = """\
A PBS cluster: the login host on 127.0.0.1:{port}, compute hosts {nodes}. Its users are {users}, each with that shell.
ssh asks for a one-time code; the first command prints the next one of a user.

    {folder}/code bash
    export CHASQUI_HOME={folder}/home PYTHONPATH={top}/client:{top}/agent
    {python} -m chasqui_client login bash
    {python} -m chasqui_client add FOLDER... --remote bash
    {python} -m chasqui_client sync --remote bash

    ssh -F {folder}/ssh_config cluster-bash          # PBS is in /opt/pbs/bin; and --remote bash-slurm is Slurm
    {exec} ask-pbs '{{"verb": "table"}}'
    make cluster-down
"""


class Missing(Exception):
    """This machine can't run the cluster; says what it lacks."""


class Cluster:
    """One cluster and the folder its files are in. Afterwards `down` leaves nothing but the images."""

    def __init__(self, folder: Path, project: str, python36: Path | None = None, port: int = 0) -> None:
        self.folder, self.project, self.python36, self.port = folder, project, python36, port

    # -- for `up`, and one by one for pytest-docker

    def prepare(self) -> None:
        """Engine, image, key: all that has to be there before compose. Raises Missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.compose()
        self.start_engine()
        self.build()
        self.write_environment()

    def compose(self) -> list[str]:
        """The command for this cluster's services, with the plugin where docker has it. Raises Missing."""
        command = compose_command() + ["--env-file", str(self.folder / "env")]
        for path in self.files():
            command += ["-f", str(path)]
        return [*command, "-p", self.project]

    def files(self) -> list[Path]:
        return [HERE / "compose.yaml"] + ([HERE / "compose.python36.yaml"] if self.python36 else [])

    def build(self) -> None:
        run(["sh", str(HERE / "base.sh")])
        command = ["docker", "build", "--quiet", "--tag", IMAGE, str(HERE)]
        try:
            run(command)
        except Missing:  # some engines have no network for builds, but lend the host's
            run([*command, "--network=host"])

    def write_environment(self) -> None:
        key = self.folder / "key"
        if not key.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "cluster", "-f", str(key)])
        values = {"CLUSTER_KEY": key.with_suffix(".pub").read_text().strip(), "CLUSTER_PORT": self.port,
                  "CLUSTER_PYTHON36": self.python36 or ""}
        (self.folder / "env").write_text("".join("%s=%s\n" % item for item in values.items()))

    def wait(self) -> None:
        """Until sshd answers and the server knows both compute hosts; then the files that a client needs."""
        end = time.monotonic() + START_SECONDS
        while not self.answers():
            if time.monotonic() > end:
                raise Missing("the cluster does not come up:\n" + run([*self.compose(), "logs", "--tail=20"]))
            time.sleep(0.2)
        self.write_client_files()

    def answers(self) -> bool:
        with contextlib.suppress(Missing):
            nodes = self.execute("login", "ask-pbs", '{"verb": "nodes"}')
            sshd = self.execute("login", "sh", "-c", "kill -0 $(cat /run/sshd.pid)")
            return sshd == "" and all('"%s": {"up": true' % node in nodes for node in NODES)
        return False

    def write_client_files(self) -> None:
        """ssh_config, known_hosts, a client's home with config.toml, and `code`, which prints one-time codes."""
        port = run([*self.compose(), "port", "login", "2222"]).strip().rpartition(":")[2]
        self.port = int(port)
        host_key = self.execute("login", "cat", "/etc/ssh/ssh_host_ed25519_key.pub")
        self.write("known_hosts", "chasqui-cluster " + host_key)
        self.write("ssh_config", *(SSH_CONFIG.format(user=user, port=port, folder=self.folder) for user in USERS))
        (self.folder / "home").mkdir(mode=0o700, exist_ok=True)
        self.write("home/config.toml", *(REMOTE.format(user=user, folder=self.folder) for user in USERS))
        self.write("code", "#!/bin/sh\nexec %s one-time-code \"$1\"\n" % " ".join(self.exec_command("login")))
        (self.folder / "code").chmod(0o755)

    def write(self, name: str, *texts: str) -> None:
        (self.folder / name).write_text("".join(texts))

    # -- inside

    def container(self, service: str) -> str:
        return run([*self.compose(), "ps", "-q", service]).strip()

    def exec_command(self, service: str) -> list[str]:
        return ["docker", "exec", "-i", self.container(service)]

    def execute(self, service: str, *command: str) -> str:
        """What a command says on one of the hosts, as root. Raises Missing where it fails."""
        return run([*self.exec_command(service), *command])

    # -- up and down

    def up(self) -> None:
        self.prepare()
        run([*self.compose(), "up", "--detach"])
        self.wait()

    def down(self) -> None:
        """Containers, network, the shared /home, and the engine if we started it."""
        if not engine_trouble():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.write_environment()
            run([*self.compose(), "down", "--volumes", "--remove-orphans"])
        self.stop_engine()

    # -- the engine

    def start_engine(self) -> None:
        said = engine_trouble()
        if not said:
            return
        dockerd = shutil.which("dockerd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if os.geteuid() != 0 or not dockerd or os.environ.get("DOCKER_HOST"):
            raise Missing("no Docker engine answers, and starting one takes root and dockerd: " + said)
        for flags in ENGINE_FLAGS:
            if self.engine_runs([dockerd, *flags]):
                return
        raise Missing("no Docker engine starts here: see %s" % (self.folder / "dockerd.log"))

    def engine_runs(self, command: list[str]) -> bool:
        with open(self.folder / "dockerd.log", "ab") as log:
            engine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.write("dockerd.pid", "%d\n" % engine.pid)
        end = time.monotonic() + START_SECONDS
        while engine.poll() is None and time.monotonic() < end:
            if not engine_trouble():
                return True
            time.sleep(0.2)
        self.stop_engine()
        return False

    def stop_engine(self) -> None:
        """End the engine that we started, perhaps as another process: its pid stands in dockerd.pid."""
        pid_file = self.folder / "dockerd.pid"
        if not pid_file.exists():
            return
        pid = int(pid_file.read_text())
        end = time.monotonic() + START_SECONDS
        if is_dockerd(pid):
            os.kill(pid, signal.SIGTERM)
        while is_dockerd(pid) and time.monotonic() < end:
            time.sleep(0.1)
        with contextlib.suppress(ChildProcessError):  # another process's child, or none
            os.waitpid(pid, os.WNOHANG)
        pid_file.unlink()


def compose_command() -> list[str]:
    if shutil.which("docker"):
        if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
            return ["docker", "compose"]
        if shutil.which("docker-compose"):
            return ["docker-compose"]
    raise Missing("there is no docker with compose here: neither its plugin nor docker-compose")


def engine_trouble() -> str:
    """Why no engine answers us, "" where one does."""
    asked = ["docker", "version", "--format", "{{.Server.Version}}"]
    done = subprocess.run(asked, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["docker version failed"])[-1]


def is_dockerd(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "dockerd\n" and state_of(pid) != "Z"
    except OSError:
        return False


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def run(command: list[str]) -> str:
    """What it prints. Raises Missing, with its own words, where it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise Missing("%s:\n%s" % (" ".join(command), (done.stdout + done.stderr).strip()[-2000:]))
    return done.stdout


def main() -> int:
    name = os.environ.get("CLUSTER_NAME", "cluster")  # a second one beside the first
    cluster = Cluster(TOP / "build" / name, "chasqui-" + name, port=int(os.environ.get("CLUSTER_PORT", "0")))
    try:
        if sys.argv[1:] == ["up"]:
            cluster.up()
            words = {"folder": cluster.folder, "port": cluster.port, "top": TOP, "python": sys.executable}
            words["exec"] = " ".join(cluster.exec_command("login"))
            print(WELCOME.format(nodes=" and ".join(NODES), users=" ".join(USERS), **words), end="")
        elif sys.argv[1:] == ["down"]:
            cluster.down()
            shutil.rmtree(cluster.folder, ignore_errors=True)
        else:
            print("usage: cluster.py up | down", file=sys.stderr)
            return 2
    except Missing as missing:
        print("cluster: %s" % missing, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
