"""Whatever is wrong, a user without privileges reads one line and the next command, and nothing is lost or half done.

Three tables say what is wrong, what is typed, and what is read then: on her own computer (nothing is contacted), on the
way to the cluster (nobody is logged in), and on the cluster (what was refused goes through once the trouble is gone).
"""

import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ssh.lab import Lab
from trouble.person import Person
from trouble.troubles import (
    Bring,
    closed,
    code_of,
    config,
    damaged_ledger,
    disk,
    empty_folder,
    folder,
    no_config,
    no_python,
    no_ssh_server,
    nothing,
    python_35,
    python_became_35,
    reached,
    root_at,
    unreadable,
    until,
    unwritable,
    wrong_key,
)


class Row(NamedTuple):
    """trouble: what is wrong, brought by `bring` while she types `types` (several commands are separated by " | ").

    For each of them: the exit code, one line that holds `says`, one hint that holds `hint` (both are patterns).
    """

    trouble: str
    bring: Bring
    types: str
    code: int
    says: str
    hint: str


def _named(row: Row) -> str:
    return f"{row.trouble}: {row.types}"


def _types(her: Person, row: Row) -> None:
    for words in row.types.split(" | "):
        her.types(*shlex.split(words)).is_one_line(row.code, row.says, row.hint)


# -- on her own computer -----------------------------------------------------------------------------------------------

CORRECT, AGAIN = "correct that file", "put it right, then type it again"
HERE = [
    Row("a host beginning with -", nothing, "init x --host '-oProxyCommand=touch${IFS}pwned'", 2, "-oProxy",
        "an alias of your ssh config"),
    Row("a host beginning with -", nothing, "init x --host jane@-oProxyCommand=id", 2, 'begins with "-"', "an alias"),
    Row("a host beginning with -", config('[remotes.a]\nhost = "-oX=y"\n'), "sync", 2, 'begins with "-"', CORRECT),
    Row("an option as host", nothing, "init x --host", 2, "expected one argument", "chasqui init -h"),
    Row("an unknown remote", nothing, "sync --remote gone", 2, "no remote named gone .known: here", "init gone --host"),
    Row("no config.toml", no_config, "sync", 2, "no configuration yet", "chasqui init NAME --host"),
    Row("a broken config.toml", config("[remotes.here\nhost=\n"), "sync", 2, "not valid TOML.*line 1", CORRECT),
    Row("a broken config.toml", config("x = 1\n"), "status", 2, "line 1: x: unknown key", CORRECT),
    Row("a broken config.toml", config(b"\xff\xfe"), "add good", 2, "config.toml: not UTF-8", CORRECT),
    Row("a broken config.toml", config("[remotes.here\n"), "init b --host b", 2, "not valid TOML", CORRECT),
    Row("config.toml not readable", closed("home/config.toml"), "sync", 2, "toml: permission denied", CORRECT),
    Row("no such job folder", nothing, "add gone", 2, "gone: no such folder", AGAIN),
    Row("an empty job folder", empty_folder, "add empty", 2, "empty: no job script: none of job.sh", AGAIN),
    Row("a file for a job folder", nothing, "add ran", 2, "ran: not a folder", AGAIN),
    Row("a closed job folder", closed("shut"), "add shut", 2, "shut: permission denied", AGAIN),
    Row("one good folder, one bad", nothing, "add good gone", 2, "gone: no such folder", AGAIN),
    Row("two scripts", folder(lambda p: (p / "a.pbs").touch()), "add odd", 2, "several job scripts: a.pbs, job", AGAIN),
    Row("an empty script", folder(lambda p: (p / "job.sh").write_text("")), "add odd", 2, "has 0 bytes", AGAIN),
    Row("a file not readable", folder(unreadable), "add odd", 2, "odd: secret: permission denied", AGAIN),
    Row("a dangling symlink", folder(lambda p: (p / "POTCAR").symlink_to("/no/lib")), "add odd", 2,
        "POTCAR is a dangling symlink .to /no/lib", AGAIN),
    Row("a symlink to a folder", folder(lambda p: (p / "lib").symlink_to("/usr/lib")), "add odd", 2,
        "lib is a symlink to a folder: --follow", AGAIN),
    Row("a symlink to above", folder(lambda p: (p / "lib").symlink_to(".")), "add odd --follow", 2,
        "lib is a symlink to a folder it is in", AGAIN),
    Row("a fifo", folder(lambda p: os.mkfifo(p / "pipe")), "add odd", 2, "pipe is not a regular file; --excl", AGAIN),
    Row("an unknown job", nothing, "show nowhere", 2, "No job has this id, name or folder: nowhere", "chasqui list"),
    Row("a damaged ledger", damaged_ledger, "sync", 1, "jobs.db cannot be used: file is not", "put a copy of it back"),
]  # fmt: skip


@pytest.fixture(scope="module")
def settled(people: Callable[[], Person]) -> Iterator[Person]:
    """A user with one job, which runs as if nothing had happened once all of the table is through."""
    her = people()
    her.folder("good")
    her.add(her.folder("first"))
    yield her
    her.finishes()


@pytest.mark.parametrize("row", HERE, ids=_named)
def test_on_her_own_computer(settled: Person, row: Row) -> None:
    before = settled.states()
    with row.bring(settled):
        _types(settled, row)
    assert settled.states() == before == {"first": ("QUEUED_LOCAL", "NONE")}
    assert not settled.root.exists() and not list(settled.path.glob("pwned*"))


def test_a_folder_that_went_after_add(person: Person) -> None:
    stays, goes = person.folder("stays"), person.folder("goes")
    person.add(stays, goes)
    aside = goes.rename(person.path / "aside")
    said = person.types("sync")
    assert said.code == 0 and not said.err
    assert re.search(r"^changed since add: job.sh +\(goes, job.sh is gone: not uploaded\)$", said.out, re.M), said
    assert re.search(r"^next: put back what is missing, then: chasqui sync", said.out, re.M), said
    assert person.states()["goes"] == ("QUEUED_LOCAL", "NONE")
    aside.rename(goes)
    person.finishes()


def _a_file(results: Path) -> None:
    results.write_text("mine")


def _a_symlink(results: Path) -> None:
    results.symlink_to(results.parents[1] / "elsewhere")


def _read_only(results: Path) -> None:
    results.mkdir(mode=0o555)


@pytest.mark.parametrize("make", [_a_file, _a_symlink, _read_only], ids=["a file", "a symlink", "read only"])
def test_a_results_folder_that_takes_nothing(person: Person, make: Callable[[Path], None]) -> None:
    """Nothing there is touched, nothing goes elsewhere, and the results come when there is a place for them."""
    (person.path / "elsewhere").mkdir()
    path = person.folder("first", "echo result >out")
    person.add(path)
    make(path / "results")
    person.give()
    until(lambda: "stay on the cluster" in person.types("sync").out)
    said = person.types("sync")
    assert (said.code, said.err) == (0, ""), said
    line = r"^results of first stay on the cluster: .*/first/results: .*then: chasqui sync$"
    assert re.search(line, said.out, re.M), said
    assert person.states() == {"first": ("COMPLETED", "NONE")} and not list((person.path / "elsewhere").iterdir())
    if make is _read_only:
        (path / "results").rmdir()
    else:
        (path / "results").rename(person.path / "aside")
    person.finishes()
    assert (path / "results" / "out").read_text() == "result\n"


# -- on the way there --------------------------------------------------------------------------------------------------

NO_NAME, CLOSED = reached(HostName="host.invalid"), reached(Port="{port}")
UNKNOWN_KEY = reached(UserKnownHostsFile="/dev/null")
DOCTOR, LOGIN, COMPARE = "chasqui doctor --remote there", "chasqui login there$", "compare the key.*ssh lab-plain"
ON_THE_WAY = [
    Row("a name that does not resolve", NO_NAME, "login", 5, "reached: Could not resolve hostname", DOCTOR),
    Row("a name that does not resolve", NO_NAME, "doctor", 5, "name: host.invalid does not resolve", "correct host in"),
    Row("a port nobody listens on", CLOSED, "login", 5, "cannot be reached: Connection refused$", DOCTOR),
    Row("a port nobody listens on", CLOSED, "doctor", 5, "does not answer: connection refused$", "another port:"),
    Row("a port with no sshd behind it", no_ssh_server, "login", 5, "cannot be reached", DOCTOR),
    Row("a port with no sshd behind it", no_ssh_server, "doctor", 5, "is no ssh server", "correct the port in"),
    Row("a wrong host key", wrong_key, "login", 4, "does not trust.*IDENTIFICATION HAS CHANGED", COMPARE),
    Row("a wrong host key", wrong_key, "doctor", 4, "host's key: REMOTE HOST", COMPARE),
    Row("an unknown host key", UNKNOWN_KEY, "login", 4, "does not trust the host's key: No .* host key", COMPARE),
    Row("a wrong code", code_of("bash"), "login", 4, "the login failed", DOCTOR),
    Row("no live connection", nothing, "sync", 4, "there: no live connection", LOGIN),
    Row("no live connection", nothing, "agent status", 4, "there: no live connection", LOGIN),
    Row("no live connection", nothing, "doctor", 4, "there: no live connection", LOGIN),
]  # fmt: skip


@pytest.fixture(scope="module")
def outside(people: Callable[[], Person]) -> Iterator[Person]:
    """A user who is not logged in; when all of the table is through she logs in, and her job runs."""
    her = people()
    her.configure(her.there(her.lab.user("plain")))
    her.add(her.folder("first"))
    yield her
    assert her.types("login").code == 0
    her.finishes("there")
    assert her.types("logout").code == 0


@pytest.mark.parametrize("row", ON_THE_WAY, ids=_named)
def test_on_the_way(lab: Lab, outside: Person, row: Row) -> None:
    before = lab.counts()
    with row.bring(outside):
        _types(outside, row)
    assert outside.states() == {"first": ("QUEUED_LOCAL", "NONE")}
    assert (lab.counts() - before).authentications == 0
    assert not [path for path in Path(outside.environment["XDG_RUNTIME_DIR"]).rglob("*") if path.is_socket()]


# -- on the cluster ----------------------------------------------------------------------------------------------------

DOCTOR_HERE = "chasqui doctor --remote here"
SET_PYTHON, NEW_ROOT, MAKE_ROOM = 'set python = "', "set another root", "make room there, then: chasqui sync"
THERE = [
    Row("no python there", no_python, "sync | doctor", 6, "no Python 3.6 or newer was found there.$", SET_PYTHON),
    Row("python 3.5 there", python_35, "sync | doctor", 6, "no Python 3.6.*too old: 3.5 .*/python3.5", SET_PYTHON),
    Row("python became 3.5 there", python_became_35, "sync | agent status | agent pump | sync --no-deploy", 6,
        "no Python 3.6 or newer was found there; .*(too old: 3.5|Python 3.5 is too old)", SET_PYTHON),
    Row("root not writable there", root_at("{path}/shut/root"), "sync | doctor | agent deploy", 6,
        "the folder .*/shut/root cannot be used there: .*Permission denied", NEW_ROOT),
    Row("a file for a root", root_at("{path}/ran/root"), "sync", 6, "cannot be used there.*Not a dir", NEW_ROOT),
    Row("staging not writable there", unwritable("staging"), "sync", 6, "Permission denied.*staging", DOCTOR_HERE),
    Row("disk full there, no agent yet", disk(500), "sync", 6, "no space left", MAKE_ROOM),
    Row("disk full there, mid-upload", disk(300, deploy=True), "sync", 6, "no space left", MAKE_ROOM),
    Row("disk full there to the last byte", disk(300, deploy=True, full=True), "sync | doctor", 6, "no space left",
        MAKE_ROOM),
]  # fmt: skip


@pytest.mark.parametrize("row", THERE, ids=_named)
def test_on_the_cluster(person: Person, row: Row) -> None:
    person.add(person.folder("first", data=os.urandom(2 << 20)))
    with row.bring(person):
        _types(person, row)
        assert person.states() == {"first": ("QUEUED_LOCAL", "NONE")}
        assert person.spool() == {} and person.ran() == []
        person.is_whole()
    person.finishes()
