"""The disk is full where nobody expects it: when jobs end there, when results come here, when the ledger is written."""

import os
import re
import subprocess

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


def test_disk_full_there_for_an_upload_brings_results_home_all_the_same(person: Person) -> None:
    """One command: what is there comes home, what does not fit stays here, and the file system is named."""
    with small_disk(person.root, "8m", person.account.name):
        person.add(person.folder("early", "echo out >out"))
        assert person.types("sync").code == 0
        until(lambda: bool(list(person.root.glob("work/*/.chasqui/flag.*.1"))))
        big = {"in.dat": os.urandom(9_000_000)}
        person.add(person.folder("big", **big), person.folder("late", **{"in.dat": os.urandom(10_000_000)}))
        said = person.types("sync")
        said.is_one_line(6, rf"no space left there: {person.root} .tmpfs.: .* left; .*, for want of room: 2 jobs",
                         "make room there, then: chasqui sync .*chasqui clean --dry-run")
        assert "completed 1" in said.out and "results of 1 job verified" in said.out, said
        assert person.states()["early"] == ("COMPLETED", "VERIFIED")
        assert {person.states()[name][0] for name in ("big", "late")} == {"QUEUED_LOCAL"}
        assert (person.path / "early/results/out").read_text() == "out\n"
        person.is_whole()
        grow(person.root, "100m")
        person.finishes()
        assert sorted(person.ran()) == ["big", "early", "late"]


def test_results_come_home_from_a_disk_without_a_byte_left(person: Person) -> None:
    with small_disk(person.root, "8m", person.account.name):
        person.add(person.folder("early", "echo out >out"))
        assert person.types("sync").code == 0
        until(lambda: person.types("sync", "--no-results").code == 0 and person.states()["early"][0] == "COMPLETED")
        fill(person.root / "filler")
        person.add(person.folder("late", **{"in.dat": os.urandom(10_000)}))
        said = person.types("sync")
        said.is_one_line(6, r"no space left there: .* 0 bytes left", "make room there")
        assert person.states() == {"early": ("COMPLETED", "VERIFIED"), "late": ("QUEUED_LOCAL", "NONE")}
        (person.root / "filler").unlink()
        person.finishes()


def test_inodes_used_up_there_for_an_upload(person: Person) -> None:
    with small_disk(person.root, "30m", person.account.name):
        person.add(person.folder("early", "echo out >out"))
        assert person.types("sync").code == 0
        until(lambda: bool(list(person.root.glob("work/*/.chasqui/flag.*.1"))))
        subprocess.run(["mount", "-o", "remount,nr_inodes=150", person.root], check=True)
        person.add(person.folder("many", **{f"f{n}": b"%d" % n for n in range(200)}))
        said = person.types("sync")
        said.is_one_line(6, r"no space left there: inodes of .*: \d+ left; .*: 1 job", "make room there")
        assert person.states() == {"early": ("COMPLETED", "VERIFIED"), "many": ("QUEUED_LOCAL", "NONE")}
        subprocess.run(["mount", "-o", "remount,nr_inodes=10000", person.root], check=True)
        person.finishes()


def test_watch_goes_on_while_anything_runs_though_a_job_does_not_fit_there(person: Person) -> None:
    with small_disk(person.root, "8m", person.account.name):
        gate = person.path / "gate"
        person.add(person.folder("slow", f"while [ ! -e {gate} ]; do sleep 0.1; done; echo out >out"))
        assert person.types("sync").code == 0
        person.add(person.folder("big", **{"in.dat": os.urandom(9_000_000)}))
        watch = person.starts("sync", "--watch", "0.3")
        until(lambda: person.states()["slow"][0] == "RUNNING")
        gate.touch()
        said = person.answer(watch)
        said.is_one_line(6, "no space left there: .*: 1 job", "make room there")
        assert person.states() == {"slow": ("COMPLETED", "VERIFIED"), "big": ("QUEUED_LOCAL", "NONE")}
        grow(person.root, "100m")
        person.finishes()


def test_disk_full_here_when_results_come(person: Person) -> None:
    out = person.folder("out", "echo a >a; head -c 3000000 /dev/urandom >big; echo z >z")
    with small_disk(out / "results", "1m", person.account.name):
        person.add(out)
        said = person.types("sync", "--watch", "0.2")
        assert "uploaded 1 job" in said.out
        said.is_one_line(1, "No space left here in .*/out/results; what had arrived whole is kept", "make room")
        person.is_whole()
        assert not (out / "results" / "big").exists()
        assert [(out / "results" / name).read_text() for name in "az"] == ["a\n", "z\n"]
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
