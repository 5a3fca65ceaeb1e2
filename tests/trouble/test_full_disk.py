"""The disk is full where nobody expects it: when jobs end there, when results come here, when the ledger is written."""

import re

from trouble.person import Person, grow, small_disk
from trouble.troubles import fill, until


def test_disk_full_there_when_jobs_end(person: Person) -> None:
    """The flag, the journal and the next submission all want to be written: they wait, and nothing runs twice."""
    with small_disk(person.root, "8m", person.account.name):
        gate = person.path / "gate"
        wait = f"while [ ! -e {gate} ]; do sleep 0.1; done"
        person.configure(person.here() + "[remotes.here.caps]\nmax_running = 2\nmax_queued = 2\n")
        person.add(*(person.folder(f"j{n}", wait) for n in range(4)))
        assert person.types("sync").code == 0
        until(lambda: len(person.ran()) == 2)
        fill(person.root / "filler")
        gate.touch()
        until(lambda: len(list(person.root.glob("work/*/.chasqui/flag.*.1"))) == 2)
        said = person.types("sync")
        assert "Traceback" not in said.out + said.err and said.code in (0, 6), said
        assert re.search("no space", (said.out + said.err).lower()), said
        (person.root / "filler").unlink()
        person.finishes()


def test_disk_full_here_when_results_come(person: Person) -> None:
    out = person.folder("out", "echo a >a; head -c 3000000 /dev/urandom >big; echo z >z")
    with small_disk(out / "results", "1m", person.account.name):
        person.add(out)
        said = person.types("sync", "--watch", "0.2")
        assert "uploaded 1 job" in said.out
        said.is_one_line(1, "No space left here in .*/out/results; what had arrived whole is kept", "make room")
        person.is_whole()
        assert not (out / "results" / "big").exists() and not (out / "results" / "z").exists()
        assert (out / "results" / "a").read_text() == "a\n"
        assert person.states() == {"out": ("COMPLETED", "PARTIAL")}
        grow(out / "results", "10m")
        person.finishes()
        assert (out / "results" / "big").stat().st_size == 3000000
        assert (out / "results" / "z").read_text() == "z\n"


def test_disk_full_here_for_the_ledger(person: Person) -> None:
    with small_disk(person.path / "small", "300k", person.account.name):
        config_text = person.config.read_text()
        person.home = person.path / "small"
        person.environment = person.environment | {"CHASQUI_HOME": str(person.home)}
        person.configure(config_text)
        person.folder("second")
        person.add(person.folder("first"))
        before = person.states()
        fill(person.home / "filler")
        person.types("add", "second").is_one_line(1, "No space left for the ledger", "make room")
        person.types("sync").is_one_line(1, "No space left for the ledger", "make room")
        person.types("init", "b", "--host", "b").is_one_line(1, "config.toml cannot be used: no space", "make room")
        assert person.states() == before and person.config.read_text() == config_text
        assert person.types("list").out.count("QUEUED_LOCAL") == 1
        (person.home / "filler").unlink()
        person.add(person.path / "second")
        person.finishes()
