"""What an admin can install: it wakes the owner's relay, as the owner; and whoever else ends a job notices nothing.

The mom is this test: it starts the hook in a Python with a stub `pbs`, and the epilogue with its ten arguments. runuser
is a program that records its words and steps down; the tests at the end use the real one, and a real account.
"""

import json
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import needs
from agent.agentroot import until
from pbs.cluster import Cluster
from ssh.accounts import add_account, drop_stale, owned_processes, remove_account

HOOKS = Path(__file__).resolve().parents[2] / "agent" / "hooks"
JOB = "123[4].pbshost"
PATIENCE = 60.0

# The part of PBS's module that the hook may use. What is done to it is written down as it happens.
STUB_PBS = """
import json, os
LOG_WARNING = 4
_given = json.load(open(os.environ["MOCK_JOB"]))
def _note(word):
    with open(os.environ["MOCK_LOG"], "a") as stream:
        stream.write(word + "\\n")
def logmsg(level, text):
    _note("log " + text)
class _Job(object):
    def __init__(self):
        for name in _given:
            value = _given[name]
            setattr(self, name, value if isinstance(value, dict) or value is None else str(value))
    def in_ms_mom(self):
        return self.first_node == "yes"
class _Event(object):
    job = _Job()
    def accept(self):
        _note("accept")
def event():
    return _Event()
"""
DRIVER = """
import collections, os, sys, types
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
if os.environ.get("MOCK_HOME"):
    pwd = sys.modules["pwd"] = types.ModuleType("pwd")
    entry = collections.namedtuple("entry", "pw_uid pw_dir")
    uid = int(os.environ["MOCK_UID"])
    pwd.getpwnam = lambda name: entry(0 if name == "toor" else uid, os.environ["MOCK_HOME"])
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), {"__name__": "hook"})
"""
# runuser and su: their words as JSON, one line a call; then the owner's words, as the owner.
STUB_SWITCH = """#!{python} -IS
import json, os, sys
with open({calls!r}, "a") as stream:
    stream.write(json.dumps([os.path.basename(sys.argv[0]), os.getpid(), os.getsid(0)] + sys.argv[1:]) + "\\n")
if os.path.exists({hang!r}):
    os.execv("/bin/sleep", ["sleep", "600"])
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({gid})
    os.setuid({uid})
words = sys.argv[1:]
if words[0] == "-u":
    words = words[words.index("--") + 1 :]
else:
    words = ["/bin/sh", "-c", words[3]] + words[6:]
os.execv(words[0], words)
"""
STUB_GETENT = """#!/bin/sh
PATH=/usr/bin:/bin
[ "$2" = toor ] && uid=0 || uid={uid}
printf '%s:x:%s:{gid}::%s:/sbin/nologin\\n' "$2" "$uid" {home}
"""
# What the record names as Python: whoever runs it, with what, in which environment. Whole, or not there.
STUB_PYTHON = """#!/bin/sh
{{ id -u; pwd; for word in "$@"; do printf 'word %s\\n' "$word"; done; env; }} >{ran}.$$.new
mv {ran}.$$.new {ran}.$$
"""


def _pythons() -> list[str]:
    """Pythons a mom may have built in: ours, 3.6, and a 2.7 where there is one."""
    old = sorted(Path("~/.pyenv/versions").expanduser().glob("2.7*/bin/python2.7"))
    return list(dict.fromkeys(filter(None, [sys.executable, needs.python36(), *map(str, old[:1])])))


HOOK_PYTHONS = {f"hook-{Path(path).resolve().name}": path for path in _pythons()}
WAYS = [*HOOK_PYTHONS, "epilogue"]


class Mom:
    """A node on which jobs end: an owner with a home and a root, and the programs that root runs.

    user  the owner's name; uid, gid what it really becomes; home, root (the relay's) are the owner's
    squashed  root is denied what the modes of a folder deny, as on NFS with root_squash
    """

    def __init__(self, folder: Path, user: str, home: Path, real: bool = False) -> None:
        self.folder, self.user, self.home, self.real = folder, user, home, real
        self.squashed = False
        entry = pwd.getpwnam(user) if real else None
        self.uid = entry.pw_uid if entry else os.geteuid() or 65534
        self.gid = entry.pw_gid if entry else os.getegid() or 65534
        self.stubs, self.calls, self.ran = folder / "stubs", folder / "calls", home / "ran"
        self.hang, self.log = folder / "hang", folder / "log"
        self.root = home / "chasqui"
        self.python, self.agent = home / "python", home / "agent's.pyz"
        self._make()

    def _make(self) -> None:
        self.stubs.mkdir()
        for path in (self.root / "waiting", self.root / "agent", self.home / ".chasqui-agent" / "jobs"):
            path.mkdir(parents=True)
        self.program(self.python, STUB_PYTHON.format(ran=shlex.quote(str(self.ran))))
        self.agent.write_text("the agent")
        if not self.real:
            values = {"python": sys.executable, "calls": str(self.calls), "uid": self.uid, "gid": self.gid}
            for name in ("runuser", "su"):
                self.program(self.stubs / name, STUB_SWITCH.format(hang=str(self.hang), **values))
            text = STUB_GETENT.format(gid=self.gid, uid=self.uid, home=self.home)
            self.program(self.stubs / "getent", text)
        self.places(f"{self.stubs}:/usr/sbin:/usr/bin:/sbin:/bin")
        self.give(self.home)

    def program(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def places(self, places: str, limit: int = 60) -> None:
        """Copies of hook and epilogue that look for root's programs in `places`, allow `limit` seconds, and do not let
        a hundred tests wait 2 s for PBS to say F."""
        for name in ("execjob_end.py", "epilogue"):
            text = (HOOKS / name).read_text()
            changed = text.replace("/usr/sbin:/usr/bin:/sbin:/bin", places, 1)
            changed = changed.replace("LIMIT = 60", f"LIMIT = {limit}").replace("-k 10 60", f"-k 10 {limit}")
            changed = changed.replace("\nsleep 2\n", "\nsleep 0.3\n")
            assert places in changed and "sleep 0.3" in changed and changed.count(str(limit)) >= text.count("60")
            self.program(self.folder / name, changed)

    def without_runuser(self) -> None:
        """A system as old as to have su alone."""
        if not self.real:
            (self.stubs / "runuser").unlink()
        for name in ("sh", "cut", "timeout", "setsid", *(["getent", "su"] if self.real else [])):
            (self.stubs / name).symlink_to(needs.program(name))
        self.places(str(self.stubs))

    def give(self, path: Path) -> None:
        """`path` and what is in it become the owner's."""
        if os.geteuid() == 0:
            for each in (path, *path.rglob("*")):
                os.chown(each, self.uid, self.gid, follow_symlinks=False)

    @property
    def record(self) -> Path:
        return self.record_of(JOB)

    def record_of(self, job: str) -> Path:
        return self.home / ".chasqui-agent" / "jobs" / job

    def write_record(self, text: str | None = None, job: str = JOB) -> None:
        lines = text if text is not None else f"{self.root}\n{self.python}\n{self.agent}\n"
        self.record_of(job).write_text(lines)
        self.record_of(job).chmod(0o600)
        self.give(self.record_of(job))

    def ends(self, way: str, user: str | None = None, job: str = JOB, **attributes: object) -> list[str]:
        """A job ends on this node; what the hook did to PBS. Returns when the hook, or the epilogue, has."""
        user = self.user if user is None else user
        self.log.write_text("")
        if way == "epilogue":
            assert not attributes, "an epilogue knows nothing of them"
            rest = ["group", "a name", "77", "ncpus=1", "mem=0kb", "workq", "null", "0"]
            self._run([str(self.folder / "epilogue"), job, user, *rest])
            return []
        given: dict[str, object] = {"id": job, "euser": user, "first_node": "yes"}
        given["Variable_List"] = {"PBS_O_HOME": str(self.home), "CHASQUI_ROOT": str(self.root)}
        (self.folder / "job.json").write_text(json.dumps({**given, **attributes}))
        (self.folder / "pbs.py").write_text(STUB_PBS)
        (self.folder / "driver.py").write_text(DRIVER)
        self._run([HOOK_PYTHONS[way], "-S", str(self.folder / "driver.py"), str(self.folder / "execjob_end.py")])
        return self.log.read_text().splitlines()

    def _run(self, words: list[str]) -> None:
        environment = {"PATH": "/bin:/usr/bin", "PBS_JOBDIR": str(self.home), "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"MOCK_JOB": str(self.folder / "job.json"), "MOCK_LOG": str(self.log)}
        if not self.real:
            environment |= {"MOCK_HOME": str(self.home), "MOCK_UID": str(self.uid)}
        if self.squashed:
            words = [*SQUASHED, *words]
        # Waits for the end of its output: a detached child that held it would be waited for as well.
        done = subprocess.run(words, env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=PATIENCE)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

    def called(self) -> list[list]:
        """The calls of runuser and su so far: name, pid, session, words."""
        return [json.loads(line) for line in self.calls.read_text().splitlines()] if self.calls.exists() else []

    def wakes(self) -> list[Path]:
        return [path for path in self.home.glob("ran.*") if path.suffix != ".new"]

    def only_wakes(self, way: str, job: str = "999.pbshost") -> None:
        """One more job ends, ours; and it alone is woken: whatever ended before it was left alone."""
        if self.record.is_dir():
            self.record.rmdir()
        self.write_record(job=job)
        self.ends(way, job=job)
        wait_for(self.wakes)
        assert f"PBS_JOBID={job}" in self.wakes()[0].read_text().splitlines()
        assert len(self.wakes()) == 1


SQUASHED = ["/usr/bin/setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def wait_for(what: Callable[[], object]) -> object:
    end = time.monotonic() + PATIENCE
    while not what() and time.monotonic() < end:
        time.sleep(0.05)
    assert what()
    return what()


def wait_until_alone(user: str) -> None:
    """Until nothing that was begun in the owner's name runs any more."""
    end = time.monotonic() + PATIENCE
    while (left := owned_processes(user)) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == {}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that another account may walk into, as it may not into tmp_path."""
    path = Path(tempfile.mkdtemp(prefix="chasqui-hooks-"))
    path.chmod(0o755)
    yield path
    until(lambda: (shutil.rmtree(path, ignore_errors=True), not path.exists())[-1], "no hook writes in there any more")


@pytest.fixture
def mom(folder: Path) -> Iterator[Mom]:
    needs.linux()
    (folder / "home").mkdir()
    made = Mom(folder, "someone", folder / "home")
    yield made
    for call in made.called():
        if alive(call[1]):
            os.kill(call[1], signal.SIGKILL)


@pytest.fixture
def real_mom(folder: Path) -> Iterator[Mom]:
    """With runuser, su and an account as they are; its home is closed to everybody else, and to root."""
    needs.linux()
    needs.root()
    drop_stale()
    name = f"chasqui-hook{os.getpid()}"
    add_account(name, folder / "home", "/bin/sh", folder)
    made = Mom(folder, name, folder / "home", real=True)
    (folder / "home").chmod(0o700)
    made.squashed = True
    yield made
    wait_until_alone(name)
    remove_account(name)


# -- ours --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_owner_wakes_the_relay(mom: Mom, way: str) -> None:
    mom.write_record()
    said = mom.ends(way)
    assert said == (["accept"] if way != "epilogue" else [])
    lines = wait_for(mom.wakes)[0].read_text().splitlines()
    _assert_wake(mom, lines, str(mom.root), str(mom.python), str(mom.agent))
    assert not mom.record.exists()
    assert [call[0] for call in mom.called()] == ["runuser"]
    assert mom.called()[0][3:8] == ["-u", mom.user, "--", "/bin/sh", "-c"]


def _assert_wake(mom: Mom, lines: list[str], root: str, python: str, agent: str, job: str = JOB,
                 **server: str) -> None:  # fmt: skip
    words = ["-I", "-S", agent, "--root", root, "wake", "--reason", "hook", "--budget", "15"]
    assert lines[0] == str(mom.uid)
    assert lines[1] == "/"
    assert [line[5:] for line in lines if line.startswith("word ")] == words
    environment = dict(line.split("=", 1) for line in lines[2:] if "=" in line and not line.startswith("word "))
    path = environment.pop("PATH").split(":")
    assert path[:2] == ["/usr/bin", "/bin"] and all(folder.endswith("/bin") for folder in path)
    for name in ("PWD", "_", "SHLVL", "OLDPWD"):  # the stub's own shell
        environment.pop(name, None)
    assert environment == {
        "HOME": str(mom.home), "USER": mom.user, "LOGNAME": mom.user, "LC_ALL": "C", "PBS_JOBID": job,
        **server
    }  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_old_systems_have_su_alone(mom: Mom, way: str) -> None:
    mom.without_runuser()
    mom.write_record()
    mom.ends(way)
    _assert_wake(mom, wait_for(mom.wakes)[0].read_text().splitlines(), str(mom.root), str(mom.python), str(mom.agent))
    assert mom.called()[0][0] == "su"
    assert mom.called()[0][3:6] == ["-s", "/bin/sh", "-c"]


@pytest.mark.parametrize("way", HOOK_PYTHONS)
@pytest.mark.parametrize("text", [False, True], ids=["a dictionary", "the attribute's text"])
def test_without_a_record_the_hook_knows_the_root(mom: Mom, way: str, text: bool) -> None:
    """A job killed before its runner had written anything is ours by its variable."""
    agent = mom.root / "agent"
    (agent / "python").write_text(f"{mom.python}\n")
    (agent / "current").symlink_to(mom.agent)
    mom.give(agent)
    variables: object = {"CHASQUI_ROOT": str(mom.root)}
    if text:
        variables = rf"PBS_O_HOME=/a\,CHASQUI_ROOT=/b,CHASQUI_ROOT={mom.root},PBS_O_QUEUE=workq"
    mom.ends(way, Variable_List=variables)
    lines = wait_for(mom.wakes)[0].read_text().splitlines()
    _assert_wake(mom, lines, str(mom.root), str(mom.python), str(agent / "current"))


@pytest.mark.parametrize("way", WAYS)
def test_a_record_is_text_and_never_a_command(mom: Mom, way: str) -> None:
    root = mom.home / "it's $(touch made) `touch made` \"é\" *"
    root.mkdir()
    mom.give(root)
    mom.write_record(f"{root}\n{mom.python}\n{mom.agent}\n")
    attributes = {} if way == "epilogue" else {"Variable_List": {"CHASQUI_ROOT": str(mom.root)}}
    mom.ends(way, **attributes)
    _assert_wake(mom, wait_for(mom.wakes)[0].read_text().splitlines(), str(root), str(mom.python), str(mom.agent))
    assert not (mom.home / "made").exists()


@pytest.mark.parametrize("way", WAYS)
def test_a_record_says_where_the_server_is_and_nothing_else(mom: Mom, way: str) -> None:
    """Four names; a value that could begin another line, a relative path and every other name stay outside."""
    good = {"PBS_CONF_FILE": "/etc/the other/pbs.conf", "PBS_SERVER": "a b$(touch made)", "PBS_DEFAULT": "é"}
    bad = ["PBS_EXEC=relative", "LD_PRELOAD=/tmp/x.so", "PATH=/tmp", "PBS_SERVER_X=1", "PBS_EXEC=/a\tb", "PBS_EXEC", ""]
    lines = [str(mom.root), str(mom.python), str(mom.agent), *bad, *map("=".join, good.items()), *bad]
    mom.write_record("\n".join(lines) + "\n")
    mom.ends(way)
    told = wait_for(mom.wakes)[0].read_text().splitlines()
    _assert_wake(mom, told, str(mom.root), str(mom.python), str(mom.agent), **good)
    assert not (mom.home / "made").exists()


# -- not ours ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", HOOK_PYTHONS)
@pytest.mark.parametrize("attributes", [{"Variable_List": {"A": "/b"}}, {"Variable_List": ""}, {"first_node": "no"}])
def test_the_hook_leaves_other_jobs_and_other_nodes_alone(mom: Mom, way: str, attributes: dict) -> None:
    mom.write_record()
    assert mom.ends(way, **attributes) == ["accept"]
    mom.only_wakes(way)
    assert len(mom.called()) == 1
    assert mom.record.exists()


@pytest.mark.parametrize("way", WAYS)
def test_a_user_without_chasqui_notices_nothing(mom: Mom, way: str) -> None:
    shutil.rmtree(mom.home / ".chasqui-agent")
    before = sorted(mom.home.rglob("*"))
    attributes = {} if way == "epilogue" else {"Variable_List": {"CHASQUI_ROOT": str(mom.home / "none")}}
    mom.ends(way, **attributes)
    call = wait_for(mom.called)[0]
    wait_for(lambda: not alive(call[1]))
    assert sorted(mom.home.rglob("*")) == before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("user", ["root", "toor"])
def test_root_is_never_woken(mom: Mom, way: str, user: str) -> None:
    """Neither by its name nor by its uid under another one."""
    mom.write_record()
    mom.ends(way, user=user)
    mom.only_wakes(way)
    assert [call[4] for call in mom.called()] == [mom.user]


@pytest.mark.parametrize("way", WAYS)
def test_the_owners_half_does_nothing_as_root(mom: Mom, way: str) -> None:
    """The last bar: what runs as the owner looks at its own uid first."""
    needs.root()
    mom.program(mom.stubs / "runuser", (mom.stubs / "runuser").read_text().replace(f"os.setuid({mom.uid})", "pass"))
    mom.write_record()
    os.chown(mom.record, 0, 0)  # else its owner alone would stop it
    mom.ends(way)
    call = wait_for(mom.called)[0]
    wait_for(lambda: not alive(call[1]))
    assert mom.record.exists() and not mom.wakes()


HOSTILE_USERS = ["", "-u", "some one", "a\nb", "someone\n", "$(touch made)", "a'b", 'a"b', "../root", "/x", "a;b", "0"]
HOSTILE_JOBS = ["", "-1", "x.host", "1/../../x", "1.a\nb", "1.host\n", "$(touch made)", "1.$(touch made)", "1'", "1 2"]


@pytest.mark.parametrize("way", WAYS)
def test_hostile_names_and_ids_go_no_further(mom: Mom, way: str) -> None:
    for user in [*HOSTILE_USERS, "a" * 65]:
        _assert_refused(way, mom.ends(way, user=user))
    for job in [*HOSTILE_JOBS, "1" * 256]:
        _assert_refused(way, mom.ends(way, job=job))
    mom.only_wakes(way)
    assert len(mom.called()) == 1
    assert not list(mom.folder.rglob("made"))


def _assert_refused(way: str, said: list[str]) -> None:
    if way != "epilogue":
        assert said[-1] == "accept"
        assert [line for line in said if line.startswith("log chasqui: no wake: ")]


@pytest.mark.parametrize("way", HOOK_PYTHONS)
@pytest.mark.parametrize("root", ["relative", "/a\nb", "/" + "a" * 5000])
def test_hostile_roots_go_no_further(mom: Mom, way: str, root: str) -> None:
    _assert_refused(way, mom.ends(way, Variable_List={"CHASQUI_ROOT": root}))
    mom.only_wakes(way)
    assert len(mom.called()) == 1


HOSTILE_RECORDS = {
    "empty": "",
    "one line": "{root}\n",
    "relative root": "chasqui\n{python}\n{agent}\n",
    "relative python": "{root}\npython\n{agent}\n",
    "relative agent": "{root}\n{python}\n../agent\n",
    "newline in the root": "{root}\n/x\n{python}\n{agent}\n",
    "commands": "$(touch {home}/made)\n`touch {home}/made`\n; touch {home}/made\n",
    "quotes": "'{root}'\n\"{python}\"\n'{agent}'\n",
    "option": "-c\n{python}\n{agent}\n",
    "nothing there": "{root}/none\n{python}\n{agent}\n",
}


@pytest.mark.parametrize("way", [WAYS[0], "epilogue"])
@pytest.mark.parametrize("kind", HOSTILE_RECORDS)
def test_records_that_say_nothing_usable(mom: Mom, way: str, kind: str) -> None:
    values = {"root": mom.root, "python": mom.python, "agent": mom.agent, "home": mom.home}
    mom.write_record(HOSTILE_RECORDS[kind].format(**values))
    mom.ends(way)
    wait_for(lambda: not mom.record.exists())
    mom.only_wakes(way)
    assert not (mom.home / "made").exists()


@pytest.mark.parametrize("way", [WAYS[0], "epilogue"])
@pytest.mark.parametrize("kind", ["symlink to shadow", "symlink to a good one", "folder", "pipe", "for all to write"])
def test_records_that_are_no_files_of_the_owners(mom: Mom, way: str, kind: str) -> None:
    mom.write_record(job="elsewhere")
    if kind.startswith("symlink"):
        mom.record.symlink_to("/etc/shadow" if "shadow" in kind else mom.record_of("elsewhere"))
    elif kind == "folder":
        mom.record.mkdir()
    elif kind == "pipe":
        os.mkfifo(mom.record)
        mom.give(mom.record)
    else:
        mom.write_record()
        mom.record.chmod(0o666)
    mom.ends(way)
    call = wait_for(mom.called)[0]
    wait_for(lambda: not alive(call[1]))
    assert mom.record.is_symlink() or mom.record.exists()
    mom.only_wakes(way)


@pytest.mark.parametrize("way", [WAYS[0], "epilogue"])
def test_a_record_of_somebody_else_is_not_followed(mom: Mom, way: str) -> None:
    needs.root()
    mom.write_record()
    os.chown(mom.record, 1, 1)
    mom.record.chmod(0o644)
    mom.ends(way)
    call = wait_for(mom.called)[0]
    wait_for(lambda: not alive(call[1]))
    mom.only_wakes(way)
    assert mom.record.exists()


# -- never delaying, never failing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_runuser_that_hangs_holds_up_nothing(mom: Mom, way: str) -> None:
    """`ends` came back, its output closed, and the child still lives: in a session of its own."""
    mom.hang.touch()
    mom.write_record()
    mom.ends(way)
    call = wait_for(lambda: [call for call in mom.called() if call[0] == "runuser"])[0]
    wait_for(lambda: Path(f"/proc/{call[1]}/comm").read_text() == "sleep\n")
    assert call[2] != os.getsid(0)
    targets = {os.readlink(path) for path in Path(f"/proc/{call[1]}/fd").iterdir()}
    assert targets == {os.devnull}


def test_a_user_directory_that_hangs_holds_up_nothing(mom: Mom) -> None:
    mom.program(mom.stubs / "getent", f"#!/bin/sh\necho $$ >{mom.folder}/pid\nexec sleep 600\n")
    mom.ends("epilogue")
    pid = int(wait_for(lambda: (mom.folder / "pid").exists() and (mom.folder / "pid").read_text()))
    assert alive(pid)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid))
    assert not mom.called()


@pytest.mark.parametrize("way", WAYS)
def test_what_hangs_is_ended_by_the_time_limit(mom: Mom, way: str) -> None:
    mom.places(f"{mom.stubs}:/usr/sbin:/usr/bin:/sbin:/bin", limit=1)
    mom.hang.touch()
    mom.write_record()
    mom.ends(way)
    call = wait_for(mom.called)[0]
    wait_for(lambda: not alive(call[1]))


@pytest.mark.parametrize("way", HOOK_PYTHONS)
@pytest.mark.parametrize("attributes", [{"Variable_List": None}, {"euser": None}, {"first_node": None}, {"id": None}])
def test_whatever_a_job_lacks_the_event_is_accepted(mom: Mom, way: str, attributes: dict) -> None:
    assert mom.ends(way, **attributes)[-1] == "accept"


@pytest.mark.parametrize("way", HOOK_PYTHONS)
def test_a_hook_that_fails_says_so_and_accepts(mom: Mom, way: str) -> None:
    mom.places(str(mom.folder / "none"))
    said = mom.ends(way)
    assert said == [f"log chasqui: no wake: neither runuser nor su in {mom.folder / 'none'}", "accept"]


def test_a_hook_that_throws_anything_accepts(mom: Mom) -> None:
    for line in ("root = variable", "user, job_id = str", "detach(become_owner"):
        text = (HOOKS / "execjob_end.py").read_text()
        assert line in text
        (mom.folder / "execjob_end.py").write_text(text.replace(line, f"raise KeyError('x'); {line}", 1))
        assert mom.ends(WAYS[0]) == ["log chasqui: no wake: 'x'", "accept"]


TOO_FEW = [[], [""], ["1.host"], ["1.host", ""], ["detached"], ["detached", "1.h", "no-one-"]]


@pytest.mark.parametrize("arguments", TOO_FEW)
def test_an_epilogue_with_too_few_arguments_exits_0(mom: Mom, arguments: list[str]) -> None:
    (mom.stubs / "getent").unlink()
    mom._run([str(mom.folder / "epilogue"), *arguments])
    assert not mom.called()


@pytest.mark.parametrize("shell", ["dash", "bash", "sh"])
def test_every_sh_runs_the_epilogue(mom: Mom, shell: str) -> None:
    path = mom.stubs / "sh"
    path.symlink_to(needs.program(shell))
    text = (mom.folder / "epilogue").read_text().replace("/bin/sh", str(path))
    (mom.folder / "epilogue").write_text(text)
    mom.write_record()
    mom.ends("epilogue")
    _assert_wake(mom, wait_for(mom.wakes)[0].read_text().splitlines(), str(mom.root), str(mom.python), str(mom.agent))


# -- the texts ---------------------------------------------------------------------------------------------------------


def _as_owner() -> tuple[str, str]:
    hook = re.search(r"\nAS_OWNER = r'''\n(.*?)\n'''\n", (HOOKS / "execjob_end.py").read_text(), re.S)
    epilogue = re.search(r"\nas_owner='\n(.*?)\n'\n", (HOOKS / "epilogue").read_text(), re.S)
    assert hook and epilogue
    return hook[1].strip(), epilogue[1].strip()


def test_both_run_the_same_as_the_owner() -> None:
    hook, epilogue = _as_owner()
    assert hook == epilogue
    assert "'" not in hook


def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "owner.sh").write_text(_as_owner()[0] + "\n")
    for options in (["-s", "sh", str(tmp_path / "owner.sh")], [str(HOOKS / "epilogue")]):
        done = subprocess.run([needs.program("shellcheck"), *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def _commands() -> list[list[str]]:
    lines = (HOOKS / "README.md").read_text().splitlines()
    return [shlex.split(line) for line in lines if line.startswith("    ")]


def test_the_installed_epilogue_is_one_the_mom_runs(tmp_path: Path) -> None:
    """Root's, executable, and not writable for others: else she skips it with a line in her log."""
    needs.root()
    commands = [words for words in _commands() if words[0] == "install"]
    assert len(commands) == 2
    for words in commands:
        target = tmp_path / Path(words[-1]).name
        subprocess.run([*words[:-1], str(target)], cwd=HOOKS, check=True)
        found = target.stat()
        assert (found.st_uid, found.st_mode & 0o722) == (0, 0o700)


# -- the real runuser, a real account ----------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["runuser", "su"])
@pytest.mark.parametrize("way", WAYS)
def test_root_needs_nothing_of_a_home_that_is_closed_to_it(real_mom: Mom, way: str, switch: str) -> None:
    """Root could not even look: its rights over other people's modes are gone, as on NFS with root_squash."""
    listed = subprocess.run([*SQUASHED, "ls", str(real_mom.record)], capture_output=True)
    assert listed.returncode != 0 and b"denied" in listed.stderr
    if switch == "su":
        real_mom.without_runuser()
    real_mom.write_record()
    real_mom.ends(way)
    path = wait_for(real_mom.wakes)[0]
    lines = path.read_text().splitlines()
    _assert_wake(real_mom, lines, str(real_mom.root), str(real_mom.python), str(real_mom.agent))
    assert path.stat().st_uid == real_mom.uid
    assert not real_mom.record.exists()
    assert not [path for path in real_mom.home.rglob("*") if path.lstat().st_uid == 0]


def test_the_agent_itself_is_woken(real_mom: Mom) -> None:
    """With a real agent in a real root: its journal tells of the pump, and every file in it is the owner's."""
    package, python = real_mom.home / "packages", "/usr/bin/python3"
    shutil.copytree(HOOKS.parent / "chasqui_agent", package / "chasqui_agent")
    shutil.rmtree(real_mom.root)
    real_mom.give(package)
    agent = [python, "-I", "-S", str(package / "chasqui_agent"), "--root", str(real_mom.root)]
    subprocess.run(["runuser", "-u", real_mom.user, "--", *agent, "install"], check=True, capture_output=True)
    for number, way in enumerate(WAYS, 1):
        real_mom.write_record(f"{real_mom.root}\n{python}\n{package / 'chasqui_agent'}\n")
        (real_mom.root / "wake" / f"kick.{number}").touch()
        real_mom.give(real_mom.root / "wake")
        real_mom.ends(way)
        wait_for(lambda number=number: not (real_mom.root / "wake" / f"kick.{number}").exists())
    wait_until_alone(real_mom.user)
    assert {path.lstat().st_uid for path in real_mom.root.rglob("*")} == {real_mom.uid}


@pytest.fixture
def cluster(folder: Path, real_mom: Mom) -> Iterator[Cluster]:
    with Cluster(folder / "pbs", scale=0.1, daemon_seconds=0) as made:
        yield made


@pytest.mark.parametrize("way", ["hook", "epilogue"])
def test_installed_as_the_readme_says_it_works_until_it_is_removed(real_mom: Mom, cluster: Cluster, way: str) -> None:
    """A job not ours, one that is, and one after the removal; all three end well, and one was woken."""
    target, hook = cluster.home / "mom_priv" / "epilogue", [words for words in _commands() if words[0] == "qmgr"]
    if way == "hook":
        _administer(cluster, hook[:5])
        assert "enabled = true" in _administer(cluster, [hook[4]]) and len(hook) == 7
    else:
        words = next(words for words in _commands() if words[0] == "install")
        _administer(cluster, [[*words[:-1], str(target)]])
    assert not _job(real_mom, cluster, ours=False).exists()
    record = _job(real_mom, cluster)
    lines = wait_for(real_mom.wakes)[0].read_text().splitlines()
    named = str(real_mom.root), str(real_mom.python), str(real_mom.agent)
    _assert_wake(real_mom, lines, *named, job=record.name)
    assert not record.exists()
    if way == "hook":
        _administer(cluster, hook[6:])
    else:
        target.unlink()
    assert _job(real_mom, cluster).exists()
    wait_until_alone(real_mom.user)
    assert len(real_mom.wakes()) == 1


def _administer(cluster: Cluster, commands: list[list[str]]) -> str:
    """What root says where the README tells it to, and hears."""
    done = [cluster.run(*words, cwd=HOOKS) for words in commands]
    assert [(each.returncode, each.stderr) for each in done] == [(0, "")] * len(done)
    return done[-1].stdout


def _job(mom: Mom, cluster: Cluster, ours: bool = True) -> Path:
    """A job of the owner's comes to its end; the record it left, if it is ours, or where that would be."""
    lines = " ".join(shlex.quote(str(path)) for path in (mom.root, mom.python, mom.agent))
    record = '"$HOME/.chasqui-agent/jobs/$PBS_JOBID"'
    script = f"umask 077; printf '%s\\n' {lines} >{record}\n" if ours else "true\n"
    options = ["-v", f"CHASQUI_ROOT={mom.root}"] if ours else []
    done = cluster.run("qsub", *options, user=mom.user, input=script, cwd=mom.home)
    assert done.returncode == 0, done.stderr
    number = done.stdout.strip()
    cluster.wait_for(number)
    assert cluster.attributes(number)["Exit_status"] == "0"
    return mom.record_of(number)


# -- a relay whose jobs wake nobody ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["hook", "epilogue"])
def test_forty_jobs_by_what_the_admin_installed_alone(real_mom: Mom, cluster: Cluster, way: str) -> None:
    """One pump by hand; then every next job is begun by a hook's wake, in its owner's name."""
    relay = Relay(real_mom, cluster)
    if way == "hook":
        _administer(cluster, [words for words in _commands() if words[0] == "qmgr"][:5])
    else:
        words = next(words for words in _commands() if words[0] == "install")
        _administer(cluster, [[*words[:-1], str(cluster.home / "mom_priv" / "epilogue")]])
    names = [f"job{number:02d}" for number in range(40)]
    relay.drop(names)
    relay.agent("pump")
    relay.gate.touch()  # no job has ended before: that pump is over, and cannot see to the others
    cluster.until(lambda: relay.ended() >= 40, "forty payloads, by hooks alone", 240)
    assert [relay.lines(name) for name in names] == [["start", "end"]] * 40
    wait_until_alone(real_mom.user)
    relay.agent("pump")
    log = [json.loads(line) for line in relay.agent("log").splitlines()]
    submitted = [(record["reason"], record["submitted"]) for record in log if record.get("submitted")]
    assert submitted[0] == ("by hand", 8) and {reason for reason, _ in submitted[1:]} <= {"hook", "late"}
    assert submitted[1][0] == "hook"
    assert [record["ev"] for record in log if record["ev"] in ("refused", "rejected", "lost")] == []
    assert sum(record["ev"] == "ended" for record in log) == 40
    assert not list((real_mom.home / ".chasqui-agent" / "jobs").iterdir())


WAIT = "until [ -e {} ]; do sleep 0.1; done"


class Relay:
    """The account's own relay, by the real agent, with `wake_via = "hook"` and no heartbeat."""

    def __init__(self, mom: Mom, cluster: Cluster) -> None:
        self.mom, self.cluster, self.notes = mom, cluster, mom.home / "notes"
        self.gate = mom.home / "gate"
        package = mom.home / "packages"
        shutil.copytree(HOOKS.parent / "chasqui_agent", package / "chasqui_agent")
        shutil.rmtree(mom.root)
        self.notes.mkdir()
        mom.give(package)
        mom.give(self.notes)
        self.command = ["/usr/bin/python3", "-I", "-S", str(package / "chasqui_agent"), "--root", str(mom.root)]
        self.agent("install", "--scheduler", "openpbs")
        chosen = {"scheduler": "openpbs", "wake_via": "hook", "heartbeat": 0, "settle": 0, "query_interval": 1}
        (mom.root / "config.json").write_text(json.dumps({**chosen, "max_running": 6, "max_queued": 8}))
        mom.give(mom.root / "config.json")

    def agent(self, *words: str) -> str:
        done = self.cluster.run(*self.command, *words, user=self.mom.user, cwd=self.mom.home)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def drop(self, names: list[str]) -> None:
        for name in names:
            path = self.mom.root / "waiting" / f"{name}.sh"
            path.write_text(f"#!/bin/sh\nexec >>{self.notes / name}\necho start\n{WAIT.format(self.gate)}\necho end\n")
            self.mom.give(path)

    def lines(self, name: str) -> list[str]:
        return (self.notes / name).read_text().split()

    def ended(self) -> int:
        return sum("end" in path.read_text() for path in self.notes.iterdir())
