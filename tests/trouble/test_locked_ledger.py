"""Two commands at once on one ledger: the second waits, and what waits too long says who holds it."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from trouble.person import Person

_HOLD = """
import sqlite3, sys
ledger = sqlite3.connect(sys.argv[1])
ledger.execute("BEGIN EXCLUSIVE")
print(1, flush=True)
input()
"""


def test_a_locked_ledger(people: Callable[[], Person]) -> None:
    """Every command waits a while, then says who holds it; meanwhile, at another desk, a sync goes on for long."""
    her, other = people(), people()
    for someone in (her, other):
        someone.folder("second")
        someone.add(someone.folder("first"))
    with _holding(her, _HOLD, str(her.home / "jobs.db")) as ledger, _syncing(other) as sync:
        typed = [her.starts(*words) for words in (("sync",), ("add", "second"), ("list",))]
        waited = other.types("sync")
        said = [her.answer(process) for process in typed]
    for answer in said:
        answer.is_one_line(7, f"jobs.db is in use by process {ledger.pid}", "wait until it ends, then type")
    waited.is_one_line(7, f"in use by a sync: process {sync.pid} on ", "wait until it ends, then type")
    for someone in (her, other):
        assert someone.states() == {"first": ("QUEUED_LOCAL", "NONE")}
        someone.finishes()


@contextmanager
def _holding(her: Person, code: str, *words: str) -> "Iterator[subprocess.Popen[bytes]]":
    """A process of hers that holds something until the block ends."""
    name = her.account.name
    process = subprocess.Popen(
        [her.python, "-c", code, *words], env=her.environment, cwd=her.path, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, user=name, group=name, extra_groups=[],
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == b"1\n"
    try:
        yield process
    finally:
        process.communicate(b"\n", timeout=20)


def _syncing(her: Person) -> "AbstractContextManager[subprocess.Popen[bytes]]":
    code = (
        "from chasqui_client import config, holder\n"
        "with holder.sync_lock(config.Home(), 'here'): print(1, flush=True); input()"
    )
    return _holding(her, code)


def test_sync_pressed_twice(person: Person) -> None:
    person.add(*(person.folder(f"j{n}") for n in range(5)))
    both = [person.answer(process) for process in [person.starts("sync"), person.starts("sync")]]
    assert [answer.code for answer in both] == [0, 0], both
    assert [answer.err for answer in both] == ["", ""]
    assert "".join(answer.out for answer in both).count("uploaded 5 jobs") == 1
    person.finishes()
