"""Replays the captures of a live OpenPBS against the mock: exit status, stdout and stderr of every command, in order.

A capture is one scenario on one fresh cluster (two that depend on each other share theirs). The scenarios run side by
side, since most of their time is sleep; a test waits for its scenario and compares one command, or one section of a
long output. What the mock does not do as the real server did stands in UNSUPPORTED, by name and with the reason.
"""

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

import needs
from mock_pbs import captures
from mock_pbs.captures import Command, Result
from pbs.cluster import Cluster
from ssh.accounts import add_account, drop_stale, owned_processes, remove_account

AT_ONCE = 4  # scenarios: they sleep more than they work
RUN = "CHASQUI_TEST_RUN"  # see conftest.py
LONG = ["04-limits.txt", "09-exit-status.txt", "10-trap.txt", "16-hooks.txt"]  # begun first
SCALE = 0.2  # of the kill delay, the mom's polls, E with a bad -o: the recorded 10, 10 and 32 s
PATIENCE = 120.0  # for a state that must come; generous, since only a broken mock needs it

class Unsupported(NamedTuple):
    """What of a command is not compared; it is run all the same, for what it does to the cluster."""

    file: str
    beginning: str  # of the command
    section: str | None  # of its output; None: all
    lines: str  # a regular expression; empty: every line, and the exit status
    reason: str


UNSUPPORTED = [
    Unsupported(
        "03-depend-hold-array.txt", "qstat -t '39[]", "", r"^39\[\]", "recorded before the array turned from Q to B"
    ),
    Unsupported(
        "04-limits.txt", "qstat -t -u vaspuser", "", r"^4[01]\.", "recorded in the 0.3 s of E after a qdel; R here"
    ),
    Unsupported(
        "06-qstat.txt", "qselect -u vaspuser; ", "", r"^(82|8)$", "counts the finished jobs of all captures before it"
    ),
    Unsupported("06-qstat.txt", "qstat -Q; ", "", r"^pbshost .* Active", "counts the same, with qstat -B"),
    Unsupported("06-qstat.txt", "qstat -Q; ", "", r"resources_assigned", "qstat -Qf: sums of the resources in use"),
    Unsupported(
        "06-qstat.txt", "/usr/bin/time -f %es qstat -Bf", None, "", "qstat -Bf: the attributes of the server as JSON"
    ),
    Unsupported(
        "09-exit-status.txt", "bash site/ex.sh", "", r"^180\.", "recorded while one qdel went on after the others' end"
    ),
    Unsupported(
        "10-trap.txt", "bash site/trapdrive.sh", None, r"^Terminated$", "bash says so or not, as the TERMs come"
    ),
    Unsupported(
        "10-trap.txt",
        "bash site/trapdrive.sh",
        "fg-qsigTERM",
        r"^CLOCK (EXIT trap|which|qstat|user|nested)",
        "qsig -s TERM: how far a trap comes in the few ms before the KILL",
    ),
    Unsupported(
        "13-server-down.txt",
        "PBS_SERVER=10.99",
        "",
        r"^Communication failure|^Connection|^qstat: cannot",
        "an address that only the recorder's network had",
    ),
    Unsupported("14-reply-lost.txt", "bash site/lost.sh", None, "", "100 kills at random moments: no two runs alike"),
]

REPLAYED = 257  # outputs compared; whoever lowers it has to say so here


FILES = sorted(path.name for path in captures.FOLDER.glob("*.txt"))
RECORDED = {name: captures.read(name) for name in FILES}


def scenarios() -> list[list[str]]:
    """Files in the order in which they share a cluster: `@ continues` ties one to the file before it."""
    found: list[list[str]] = []
    for name, commands in RECORDED.items():
        before = [words for words in commands[0].directions if words.startswith("continues ")]
        if before:
            next(chain for chain in found if chain[-1] == before[0].split()[1]).append(name)
        else:
            found.append([name])
    return found


def unsupported(command: Command, section: str) -> tuple[bool, str]:
    """Whether this section is left out altogether, and a regular expression of the lines of it that are."""
    lines = []
    for entry in UNSUPPORTED:
        if entry.file == command.file and command.text.startswith(entry.beginning) and entry.section in (None, section):
            if not entry.lines:
                return True, ""
            lines.append(entry.lines)
    return False, "|".join(lines)


ALL = [(command, section) for name in FILES for command in RECORDED[name] for section in command.sections]
CASES = [(command, section) for command, section in ALL if not unsupported(command, section)[0]]


def case_name(case: tuple[Command, str]) -> str:
    command, section = case
    short = re.sub(r"[^ -~]|[\[\]]", ".", command.text)[:40]
    return f"{command.file[:2]}.{command.number} {section or short}"


class Account:
    """One scenario's user. Names are as long as the recorded ones: columns and broken lines stay where they were."""

    def __init__(self) -> None:
        letters = "".join(chr(ord("a") + byte % 26) for byte in os.urandom(6))
        self.user = "cq" + letters  # vaspuser
        self.home = Path("/tmp/cqh" + letters)  # /home/vaspuser
        self.bin = Path("/tmp/cqb" + letters[:4])  # /opt/pbs/bin
        self.work = self.home / "t"

    def enter(self) -> None:
        add_account(self.user, self.home, "/bin/bash", self.home)
        entry = pwd.getpwnam(self.user)
        self.uid, self.gid = entry.pw_uid, entry.pw_gid
        self.work.mkdir()
        # What /etc/profile.d/pbs.sh did there: a job's login shell finds the commands.
        (self.home / ".profile").write_text(f"export PATH=$PATH:{self.bin}\n")

    def leave(self) -> None:
        for pid in owned_processes(self.user):  # a background qsub, or what a lost node went on running
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        remove_account(self.user)
        shutil.rmtree(self.home, ignore_errors=True)
        self.bin.unlink(missing_ok=True)

    def own_everything(self) -> None:
        subprocess.run(["chown", "-R", f"{self.uid}:{self.gid}", str(self.work)], check=True)

    def variables(self) -> dict[str, str]:
        path = f"{self.bin}:/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games:{self.bin}"
        who = {"HOME": str(self.home), "LOGNAME": self.user, "USER": self.user, "MAIL": f"/var/mail/{self.user}"}
        return {**who, "SHELL": "/bin/bash", "PATH": path}


class Scenario:
    """The stage for one chain of captures: an account, its folder ~/t with the scripts, a cluster; and what it said."""

    def __init__(self, files: list[str], folder: Path) -> None:
        self.commands = [command for name in files for command in RECORDED[name]]
        self.account, self.folder = Account(), folder  # the folder keeps the output of the command that runs
        self.results: dict[tuple[str, int], Result] = {}

    def play(self) -> dict[tuple[str, int], Result]:
        with contextlib.ExitStack() as stack:
            stack.callback(self.account.leave)
            self.account.enter()
            self.cluster = stack.enter_context(Cluster(scale=SCALE))
            self.cluster.set_server("acl_roots", None)  # root may own no job there
            self.cluster.set_server("mock_started", 2.5 / SCALE)  # substate 41 is looked at, and not for long
            python_for_users(self.cluster.exec / "bin")
            self.furnish()
            for command in self.commands:
                self.results[command.file, command.number] = self.perform(command)
        return self.results

    def perform(self, command: Command) -> Result:
        trouble = "\n".join(filter(None, map(self.direct, command.directions)))
        status, out, err = self.run(command.text, as_root=command.who == "root")
        return Result(status, self.as_recorded(out), self.as_recorded(err), trouble)

    def furnish(self) -> None:
        """The scripts that the scenario names, in ~/t; the recorded `ls -la` shows no others."""
        self.account.bin.symlink_to(self.cluster.exec / "bin")
        told = "\n".join("\n".join([*command.directions, command.text]) for command in self.commands)
        for name, content in captures.SCRIPTS.items():
            if name in told or "site/" in told:
                (self.account.work / name).write_bytes(content.encode())
        if "qsub adir" in told:
            (self.account.work / "adir").mkdir()
        if "site/" in told or "/usr/bin/time" in told:
            shutil.copytree(captures.FOLDER / "site", self.account.work / "site")
            hook = self.account.work / "site" / "hooks" / "submits.py"
            places = {"@BIN@": str(self.account.bin), "@CONF@": self.cluster.environment["PBS_CONF_FILE"]}
            hook.write_text(re.sub("@[A-Z]+@", lambda match: places[match[0]], hook.read_text()))
        self.account.own_everything()

    # one command

    def run(self, text: str, as_root: bool = False) -> tuple[int, str, str]:
        """As `su - user -c` would, in ~/t. Files, not pipes: a background qsub may hold what it inherits."""
        names = {"user": self.account.uid, "group": self.account.gid, "extra_groups": []} if not as_root else {}
        out, err = (open(self.folder / name, "wb+") for name in ("stdout", "stderr"))
        with out, err:
            child = subprocess.Popen(
                ["/bin/bash", "-c", self.adapted(text), "-bash"],  # $0 is what a login shell calls itself in errors
                cwd=self.account.work,
                env=self.variables(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                umask=0o022,
                start_new_session=True,
                **names,
            )
            status = self.ended(child)
            return status, *(_text(stream) for stream in (out, err))

    def variables(self) -> dict[str, str]:
        """A bare login's: no LANG, which qsub would hand on. And the mark by which our tests find their processes."""
        kept = {"PBS_CONF_FILE": self.cluster.environment["PBS_CONF_FILE"], RUN: os.environ[RUN]}
        return {**kept, **self.account.variables()}

    def ended(self, child: "subprocess.Popen[bytes]") -> int:
        try:
            return child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            return child.wait()

    def adapted(self, text: str) -> str:
        """Our names for the recorded ones; a GNU time, since none may be here; less patience with a hung server."""
        text = text.replace(captures.HOME, str(self.account.home)).replace(captures.USER, self.account.user)
        text = text.replace("/usr/bin/time", "sh site/time.sh").replace("site/", f"{self.account.work}/site/")
        return re.sub(r"timeout [246]0 ", "timeout 3 ", text)

    def as_recorded(self, text: str) -> str:
        """Our names for the account and the folders replaced by the recorded ones."""
        account, spool = self.account, self.cluster.pbs_home()
        for ours, theirs in (
            (str(spool / "tmp"), "/var/tmp"),
            (str(spool), captures.SPOOL),
            (str(account.bin), captures.BIN),
            (str(account.home), captures.HOME),
            (account.user, captures.USER),
        ):
            text = text.replace(ours, theirs)
        return text

    # stage directions: each returns "" or what did not come about

    def direct(self, direction: str) -> str:
        word, _, rest = direction.partition(" ")
        return getattr(self, "do_" + word.replace("-", "_"))(rest) or ""

    def do_continues(self, _: str) -> None:
        """Says which capture comes before; see scenarios()."""

    def do_next_id(self, number: str) -> None:
        """The server goes on counting from here, as it had come to there through what is not replayed."""
        self.cluster.stop_server()
        (self.cluster.pbs_home() / "server_priv" / "next").write_text(number)
        self.cluster.start_server()

    def do_run(self, text: str) -> str:
        status, _, err = self.run(text)
        return f"{text}: exit {status}: {err}" if status else ""

    def do_root(self, text: str) -> str:
        status, _, err = self.run(text, as_root=True)
        return f"{text}: exit {status}: {err}" if status else ""

    def do_lasts(self, words: str) -> None:
        """From here on that script sleeps so long: the next commands look at its jobs while they run, or when over."""
        seconds, name = words.split()
        script = self.account.work / name
        script.write_text(re.sub(r"sleep [\d.]+\n", f"sleep {seconds}\n", script.read_text()))

    def do_wait(self, words: str) -> str:
        state, *numbers = words.split()
        deadline, missing = time.monotonic() + PATIENCE, list(numbers)
        while missing and time.monotonic() < deadline:
            states = self.states()
            missing = [number for number in numbers if states.get(number, "F") != state]
            time.sleep(0.1 if missing else 0)
        return f"waited for {state} of {missing}: {self.states()}" if missing else ""

    def states(self) -> dict[str, str]:
        return {job["id"].partition(".")[0]: job["state"] for job in self.cluster.table()}

    def do_server(self, what: str) -> None:
        cluster = self.cluster
        does = {"stop": cluster.stop_server, "start": cluster.start_server}
        {**does, "freeze": cluster.hang_server, "thaw": cluster.resume_server}[what]()

    def do_mom(self, what: str) -> None:
        {"kill": self.cluster.kill_mom, "start": self.cluster.start_mom}[what]()

    def do_epilogue(self, words: str) -> None:
        """A new mom_priv/epilogue, of that owner and mode."""
        name, owner, mode = words.split()
        path = self.cluster.pbs_home() / "mom_priv" / "epilogue"
        path.unlink(missing_ok=True)
        shutil.copy(captures.FOLDER / "site" / name, path)
        os.chown(path, self.account.uid if owner == "user" else 0, 0)
        path.chmod(int(mode, 8))


def python_for_users(launchers: Path) -> None:
    """Commands, and `python3` of the captures, are one that every account can run: root's may be out of reach."""
    mine = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    candidates = [mine, *(Path(found) for found in [shutil.which("python3", path="/usr/bin:/usr/local/bin")] if found)]
    for python in candidates:
        if all(folder.stat().st_mode & 0o001 for folder in python.parents):
            for launcher in launchers.iterdir():
                launcher.write_text(launcher.read_text().replace(str(mine), str(python)))
            (launchers / "python3").symlink_to(python)
            return
    needs.missing("a Python 3 that other accounts can read")


def _text(stream) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", "surrogateescape")


@pytest.fixture(scope="module")
def replayed(request, tmp_path_factory) -> "Iterator[dict[str, Future]]":
    """file -> the results of its scenario, for the files that this run of pytest asks for."""
    needs.root()
    needs.linux()
    drop_stale()
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    asked = {one["case"][0].file for one in params if "case" in one}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        playing = {}
        for chain in sorted(scenarios(), key=lambda chain: LONG.index(chain[0]) if chain[0] in LONG else len(LONG)):
            if asked.intersection(chain):
                future = pool.submit(Scenario(chain, tmp_path_factory.mktemp("pbs")).play)
                playing.update(dict.fromkeys(chain, future))
        yield playing
        for future in playing.values():
            future.cancel()


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_the_mock_answers_as_the_recorded_server_did(case, replayed):
    command, section = case
    result = replayed[command.file].result(600)[command.file, command.number]
    different = captures.difference(command, section, result, unsupported(command, section)[1])
    if different:
        pytest.fail(f"[{command.who}] $ {command.text}\n{different}", pytrace=False)


@pytest.mark.parametrize("case", [case for case in ALL if case not in CASES], ids=case_name)
def test_nothing_is_called_unsupported_that_agrees(case, replayed):
    command, section = case
    result = replayed[command.file].result(600)[command.file, command.number]
    assert captures.difference(command, section, result), "take it off UNSUPPORTED"


def test_what_is_not_replayed_is_listed_by_name_and_occurs(capsys):
    lines = []
    for name, beginning, section, pattern, reason in UNSUPPORTED:
        assert reason
        found = [
            command
            for command in RECORDED[name]
            if command.text.startswith(beginning) and (section is None or section in command.sections)
        ]
        assert found, f"{name} has no command {beginning!r} with a section {section!r}"
        if pattern:
            text = "\n".join(captures.canonical(command.out + command.err) for command in found)
            assert re.search(f"(?m){pattern}", text), f"{name}: no line {pattern!r} in {beginning!r}"
        part = "".join([f", section {section}" if section else "", f", lines {pattern}" if pattern else ""])
        lines.append(f"{name}: {beginning}{part}: {reason}")
    with capsys.disabled():
        print(f"\nreplayed: {len(CASES)} of {len(ALL)} recorded outputs. Not as recorded, or not at all:")
        print("\n".join("  " + line for line in lines))


def test_the_replay_has_not_shrunk():
    assert len(CASES) >= REPLAYED


def test_a_difference_is_seen_wherever_it_is():
    """The comparison itself: each stream, the status, a missing last newline, a missing section, a wrong number."""
    command = Command("x", 1, "vaspuser", "qstat", 0, "a\n== one 1.pbshost\nb\n", "e\n")
    same = Result(0, "a\n== one 1.pbshost\nb\n", "e\n")
    assert not any(captures.difference(command, section, same) for section in command.sections)
    for section, other in (
        ("", Result(1, same.out, same.err)),
        ("", Result(0, same.out, "")),
        ("", Result(0, same.out, same.err, "trouble")),
        ("one", Result(0, "a\n== one 1.pbshost\nb", same.err)),
        ("one", Result(0, "a\n", same.err)),
    ):
        assert captures.difference(command, section, other)


def test_the_normaliser_keeps_what_matters():
    """Every recorded output still tells states, ids, exit statuses and wording apart after it."""
    for text in ("    job_state = R\n", "    Exit_status = 271\n", "37[].pbshost\n", "    substate = 91\n", "rc=38\n"):
        assert captures.canonical(text) == text
    row = "30.pbshost        dep              vaspuser          %s %s workq           \n"
    looks = {captures.canonical(row % pair) for pair in (("00:00:00", "R"), ("       0", "R"), ("       0", "Q"))}
    assert len(looks) == 2, "a running job's time is left out, its state is not"
