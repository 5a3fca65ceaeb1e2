"""The lab itself: if these fail, no other test over ssh means anything."""

import os
import pwd
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from ssh.accounts import NOTE, drop_stale
from ssh.lab import Counts, Lab, LabUser
from ssh.proxy import Proxy

SHELL_USERS = ["bash", "tcsh", "zsh", "fish", "noisy"]


@pytest.fixture
def control(lab: Lab, tmp_path: Path) -> str:
    """A ControlPath short enough for a socket."""
    folder = lab.path("clients") / f"c{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir(mode=0o700)
    return str(folder / "s")


def _login(lab: Lab, user: LabUser, control: str, codes: str = "right", config: Path | None = None) -> int:
    options = ["-o", "ControlMaster=yes", "-o", f"ControlPath={control}", "-o", "ControlPersist=60", "-T", "-fN"]
    command = lab.ssh(user, *options, user.host_alias, config=config)
    with open(f"{control}.log", "wb") as log:  # a pipe would stay open in the master
        done = subprocess.run(command, env=lab.env(user, codes), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    return done.returncode


def _through(lab: Lab, user: LabUser, control: str, command: str) -> subprocess.CompletedProcess[str]:
    options = ["-o", "ControlMaster=no", "-o", f"ControlPath={control}", "-o", "ProxyCommand=false"]
    argv = lab.ssh(user, *options, "-o", "BatchMode=yes", "-T", user.host_alias, command)
    return subprocess.run(argv, env=lab.env(user), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


def _logout(lab: Lab, user: LabUser, control: str) -> None:
    argv = lab.ssh(user, "-o", f"ControlPath={control}", "-O", "exit", user.host_alias)
    subprocess.run(argv, capture_output=True, timeout=20)


def test_ten_commands_through_a_master_are_one_authentication(lab: Lab, control: str) -> None:
    user, before = lab.user("bash"), lab.counts()
    assert _login(lab, user, control) == 0, lab.log()
    said = [_through(lab, user, control, f"echo {number}") for number in range(10)]
    _logout(lab, user, control)
    assert [one.stdout for one in said] == [f"{number}\n" for number in range(10)]
    assert lab.counts() - before == Counts(connections=1, authentications=1, execs=10, prompts=1)


@pytest.mark.parametrize("kind", SHELL_USERS)
def test_every_login_shell_runs_a_command(lab: Lab, control: str, kind: str) -> None:
    user = lab.user(kind)
    assert _login(lab, user, control) == 0, lab.log()
    done = _through(lab, user, control, "exec /bin/sh -c 'echo ok; echo $0; id -un'")
    shell = _through(lab, user, control, "echo $SHELL").stdout.split()[-1]
    _logout(lab, user, control)
    assert done.stdout.split()[-3:] == ["ok", "/bin/sh", user.name]
    assert Path(shell).name == Path(user.shell).name
    assert ("Welcome" in done.stdout and "module" in done.stderr) == (kind == "noisy")


def test_a_wrong_code_is_refused_and_a_right_one_is_taken_afterwards(lab: Lab, control: str) -> None:
    user, before = lab.user("zsh"), lab.counts()
    assert _login(lab, user, control, codes="wrong") == 255
    assert (lab.counts() - before).authentications == 0
    assert _login(lab, user, control) == 0, lab.log()
    _logout(lab, user, control)


def test_without_an_answer_nobody_gets_in(lab: Lab, control: str) -> None:
    before = lab.counts()
    assert _login(lab, lab.user("fish"), control, codes="none") == 255
    assert (lab.counts() - before).authentications == 0


@pytest.mark.parametrize("kind", ["plain", "single"])
def test_a_key_is_enough_for_some(lab: Lab, kind: str) -> None:
    user, before = lab.user(kind), lab.counts()
    argv = lab.ssh(user, "-o", "BatchMode=yes", user.host_alias, "echo $HOME")
    done = subprocess.run(argv, env=lab.env(user, "none"), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.stdout == f"{user.home}\n", done.stderr
    assert lab.counts() - before == Counts(connections=1, authentications=1, execs=1, prompts=0)


def test_one_session_at_a_time_where_the_site_says_so(lab: Lab, control: str) -> None:
    user = lab.user("single")
    assert _login(lab, user, control) == 0
    options = ["-o", "ControlMaster=no", "-o", f"ControlPath={control}", "-o", "ProxyCommand=false", user.host_alias]
    first = subprocess.Popen(
        lab.ssh(user, *options, "echo started; cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout and first.stdout.readline() == b"started\n"
    second = _through(lab, user, control, "true")
    first.communicate(b"", timeout=20)
    _logout(lab, user, control)
    assert second.returncode == 255 and "open refused by peer" in second.stderr


def test_another_host_key_is_noticed(lab: Lab, tmp_path: Path) -> None:
    wrong = tmp_path / "known_hosts"
    wrong.write_text(f"chasqui-lab {lab.path('keys/id.pub').read_text()}")
    user = lab.user("plain")
    argv = lab.ssh(user, "-o", "BatchMode=yes", user.host_alias, "true", config=lab.config(user, known_hosts=wrong))
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 255 and "IDENTIFICATION HAS CHANGED" in done.stderr


def test_an_unprivileged_client(lab: Lab, packages_for_users: Path) -> None:
    user, laptop = lab.user("bash"), lab.user("plain")
    argv = lab.ssh(user, user.host_alias, "id -un", config=lab.config_of_account(user, laptop))
    done = subprocess.run(
        argv,
        env=lab.env(user, account=laptop),
        user=laptop.name,
        group=laptop.name,
        extra_groups=[],
        cwd=laptop.home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{user.name}\n", done.stderr
    readable = ["cat", f"{packages_for_users}/agent/chasqui_agent/__init__.py"]
    assert (
        subprocess.run(readable, user=laptop.name, group=laptop.name, extra_groups=[], capture_output=True).returncode
        == 0
    )


def test_what_runs_for_an_account_is_seen(lab: Lab) -> None:
    user = lab.user("plain")
    argv = lab.ssh(user, "-o", "BatchMode=yes", user.host_alias, "sleep 300 </dev/null >/dev/null 2>&1 & echo $!")
    pid = int(subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout)
    assert lab.processes(user)[pid] == "sleep 300"
    os.kill(pid, signal.SIGKILL)


def test_a_python_of_the_cluster(lab: Lab, python36_for_users: Path) -> None:
    user = lab.user("tcsh")
    code = "import sys, json, hashlib, zlib, subprocess; print(sys.version_info[:2] == (3, 6), sys.flags.isolated)"
    argv = ["runuser", "-u", user.name, "--", "env", "-i", str(python36_for_users), "-I", "-S", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/")
    assert done.stdout == "True 1\n", done.stderr


def test_a_line_that_forwards_falls_silent_and_is_cut(lab: Lab, proxy: Proxy) -> None:
    user, before = lab.user("plain"), lab.counts()
    argv = lab.ssh(user, "-o", "BatchMode=yes", user.host_alias, "cat", config=lab.config(user, port=proxy.port))
    cat = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert cat.stdin and cat.stdout
    _say(cat, b"one\n")
    assert cat.stdout.readline() == b"one\n"
    proxy.silence()
    _say(cat, b"two\n")
    os.set_blocking(cat.stdout.fileno(), False)
    time.sleep(0.4)
    assert cat.stdout.read() is None, "silence"
    proxy.resume()
    os.set_blocking(cat.stdout.fileno(), True)
    assert cat.stdout.readline() == b"two\n"
    proxy.cut()
    assert cat.wait(20) == 255
    assert proxy.connections == (lab.counts() - before).connections == 1


def test_what_a_killed_run_left_is_taken_away_by_the_next(lab: Lab, tmp_path: Path) -> None:
    name, service = f"{lab.user('bash').name[:-4]}old", Path("/etc/pam.d/chasqui-lab-of-a-killed-run")
    ended = subprocess.Popen(["true"])
    ended.wait()
    note = f"{NOTE} {ended.pid} 1 {tmp_path}"
    subprocess.run(["useradd", "--no-create-home", "--comment", note, name], check=True, capture_output=True)
    service.write_text(f"auth required pam_oath.so usersfile={tmp_path}/gone\n")
    drop_stale()
    with pytest.raises(KeyError):
        pwd.getpwnam(name)
    assert not service.exists()
    assert pwd.getpwnam(lab.user("bash").name), "this run's own accounts stay"


def _say(process: "subprocess.Popen[bytes]", words: bytes) -> None:
    assert process.stdin
    process.stdin.write(words)
    process.stdin.flush()


def test_a_line_carries_every_byte_with_delay_and_tells_when(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Proxy(server.getsockname()[1], delay=0.1) as line:
        reached: list[int] = []
        line.when(1 << 20, lambda: reached.append(line.bytes_up))
        sender = socket.create_connection(("127.0.0.1", line.port))
        receiver, _ = server.accept()
        data = os.urandom(3 << 20)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            sender.sendall(data)
            os._exit(0)
        sender.close()
        received = b"".join(iter(lambda: receiver.recv(1 << 16), b""))
        os.waitpid(child, 0)
        receiver.close()
        assert received == data and time.monotonic() - started >= 0.1
        assert len(reached) == 1 and reached[0] >= 1 << 20
