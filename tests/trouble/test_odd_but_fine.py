"""What is odd and has to work all the same: any file name, empty and big files, login shells and what they print."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ssh.lab import Lab, give
from trouble.person import Person

NAMES = [
    b"a b", b" lead", b"trail ", b"quote'\"", b"new\nline", b"-rf", b"--help", b"tab\t", b"back\\slash", b"$HOME",
    b"`id`", b"$(id)", b"*", b"?", b"#x", b"~", b"!", b"&;|<>", b"per%cent", b"%2F", "ñandú".encode(), "日本".encode(),
    b"raw\xff\xfe", b"\xf1and\xfa", b"\x1b[31mred", b".hidden", b"sub/-x y/\xffz", b"n" * 255,
]  # fmt: skip
COPY = """#!/bin/sh
mkdir out
find . -type f ! -path './out/*' ! -path './.chasqui/*' ! -name '*job*' -exec sh -c \\
    'for f; do mkdir -p "out/${f%/*}"; cp -- "$f" "out/$f"; done' x {} +
"""


@pytest.mark.parametrize("kind", ["tcsh", "noisy"])
def test_awkward_names_by_ssh_and_strange_shells(lab: Lab, person: Person, kind: str) -> None:
    """Files, folders and scripts of any name go there and come back byte by byte, whatever shell they meet."""
    user = lab.user(kind)
    person.configure(person.there(user))
    assert person.types("login", CHASQUI_LAB_USER=user.name).code == 0
    here = os.fsencode(person.path)
    folders = [os.path.join(here, name) for name in (b"plain", b"-a '\n\xff", b"job \xc3\xb1 $HOME")]
    for path, script in zip(folders, (b"job.sh", b"-a 'job'\n\xff.pbs", b"$(job) \xc3\xb1.qsub"), strict=True):
        _awkward(path, script)
    give(person.path, person.account.name)
    # A name from the command line may look like an option, from a list it may hold a line break.
    (person.path / "list").write_bytes(b"\0".join(folders[1:]) + b"\0")
    assert person.types("add", "--from", "list", "--", "plain").code == 0
    said = person.types("sync")
    assert (said.code, said.err) == (0, ""), said
    assert ("the login shell printed: Welcome to the cluster!" in said.out) == (kind == "noisy")
    assert "\x1b" not in said.out and "uploaded 3 jobs" in said.out
    done = person.types("sync", "--watch", "0.3")
    assert done.code == 0 and set(person.states().values()) == {("COMPLETED", "VERIFIED")}, (done, person.states())
    for path in folders:
        back = {name: _read(os.path.join(path, b"results/out", name)) for name in NAMES}
        assert back == {name: name for name in NAMES}
    listed = person.types("list")
    assert "\x1b" not in listed.out and len(listed.out.splitlines()) == 4
    assert person.types("logout").code == 0


def _awkward(path: bytes, named: bytes) -> None:
    os.mkdir(path)
    for name in NAMES:
        os.makedirs(os.path.dirname(os.path.join(path, name)), exist_ok=True)
        with open(os.path.join(path, name), "wb") as stream:
            stream.write(name)
    with open(os.path.join(path, named), "w") as script:
        script.write(COPY)


def _read(path: bytes) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


FLOOD = "head -c 200000 /dev/zero | tr '\\0' y"


@pytest.mark.parametrize("rc", ["exit 0", "exec cat", FLOOD], ids=["exit", "exec", "flood"])
def test_an_rc_file_that_lets_nothing_through(lab: Lab, person: Person, rc: str) -> None:
    user = lab.user("noisy")
    person.configure(person.there(user))
    person.add(person.folder("first"))
    assert person.types("login", CHASQUI_LAB_USER=user.name).code == 0
    file = user.home / ".bashrc"
    before = file.read_text()
    file.write_text(before + rc + "\n")
    try:
        for words in ("sync", "doctor"):
            said = person.types(words, CHASQUI_SILENCE="2")
            said.is_one_line(6, "the agent did not answer; the other side said: ", "ssh lab-noisy echo ok")
    finally:
        file.write_text(before)
    assert person.states() == {"first": ("QUEUED_LOCAL", "NONE")}
    person.finishes("there")
    assert person.types("logout").code == 0


def _peak_memory(process: "subprocess.Popen[bytes]") -> int:
    """The most memory, in bytes, that a process held until its end; its output must fit into a pipe.

    Read while it runs: what wait4 tells counts the moment between fork and exec too, when it is a copy of pytest.
    """
    peak = 0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        peak = next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), peak)
        time.sleep(0.02)
    return peak


def test_an_empty_and_a_big_file(person: Person, size: Any) -> None:
    """Both come back as they went, and nobody holds the big one in memory."""
    path = person.folder("sizes", "cp empty empty.back; cp --sparse=always big big.back; wc -c <big", empty=b"")
    with open(path / "big", "wb") as stream:
        stream.truncate(size.big_file - 1)
        stream.seek(size.big_file - 1)
        stream.write(b"!")
    (path / "job.toml").write_text(f"max_file = {size.big_file}\n")
    give(path, person.account.name)
    person.add(path)
    process = person.starts("sync", "--watch", "0.3", "--json")  # without progress lines, however long it takes
    assert process.stdout and process.stderr
    peak = _peak_memory(process)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b""), (out, err)
    print(f"{size.big_file >> 20} MB there and back, at most {peak >> 20} MB in memory")
    assert 0 < peak < 60 << 20
    assert (path / "results" / "empty.back").read_bytes() == b""
    with open(path / "big", "rb") as went, open(path / "results" / "big.back", "rb") as came:
        while block := went.read(1 << 20):
            assert came.read(1 << 20) == block
        assert not came.read(1)
    person.finishes()
