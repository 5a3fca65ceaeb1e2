"""Results come home once, from where a cut left them, whole or not at all; and those that the user asked for."""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import needs
from agent.agentroot import until
from chasqui_agent import journal
from chasqui_client import api, cli, deploy, download, errors, landing, results, states
from chasqui_client.select import Selection
from session.desk import Desk
from session.ended import CHUNK, Campaign, CountingLocal

TOP = Path(__file__).resolve().parents[2]
LARGE = os.urandom(3 * CHUNK + 1000)
FILES = {"large": LARGE, "small": b"small\n", "sub/even": os.urandom(2 * CHUNK), "empty": b""}
SIZE = sum(len(content) for content in FILES.values())


@pytest.fixture
def campaign(memory_path):
    return Campaign(memory_path)


def sync(campaign, on_want=None, **cut):
    """One sync over a line that counts and may be cut: (line, report or None where it broke)."""
    line = CountingLocal(**cut)
    line.on_want = on_want
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy, "transport_to", lambda *_: line)
        try:
            return line, campaign.sync()
        except (errors.ConnectionLost, errors.NoGreeting):
            return line, None


def forget(campaign, job):
    with campaign.ledger() as ledger, ledger.transaction():
        ledger.db.execute("UPDATE jobs SET results_state = 'NONE' WHERE id = ?", (job.id,))
        ledger.db.execute("DELETE FROM results_files WHERE job = ?", (job.id,))


def whole(campaign, job):
    assert campaign.completed(job)
    assert campaign.here(job) == FILES
    assert not (Path(os.fsdecode(job.results_path)) / ".chasqui").exists()
    with campaign.ledger() as ledger:
        rows = ledger.result_files(job.id, 1)
    assert {row.state for row in rows} == {"HERE"} and len(rows) == len(FILES)


def nothing_half_done(campaign, job):
    for name, content in campaign.here(job).items():
        assert name.startswith(".chasqui") or FILES[name] == content, name


def test_a_line_cut_at_every_frame_costs_at_most_a_chunk(campaign):
    job, = campaign.make(FILES)
    for number in range(60):
        line, report = sync(campaign, received=number)
        assert (report is None) == line.was_cut
        nothing_half_done(campaign, job)
        again, _ = sync(campaign)
        assert SIZE <= line.brought + again.brought <= SIZE + CHUNK, number
        whole(campaign, job)
        if not line.was_cut:
            break
        forget(campaign, job)
        shutil.rmtree(job.results_path)
    assert 15 < number < 59


def test_small_files_cut_at_every_frame_cost_at_most_a_chunk(campaign):
    """They come in bundles: what was sent of one that is cut is sent again."""
    files = {"%02d" % number: os.urandom(30_000) for number in range(40)}
    amount = 40 * 30_000
    job, = campaign.make(files)
    for number in range(40):
        line, report = sync(campaign, received=number)
        assert (report is None) == line.was_cut
        assert all(files[name] == content for name, content in campaign.here(job).items())
        again, _ = sync(campaign)
        assert amount <= line.brought + again.brought <= amount + CHUNK, number
        assert campaign.completed(job) and campaign.here(job) == files
        if not line.was_cut:
            break
        forget(campaign, job)
        shutil.rmtree(job.results_path)
    assert 10 < number < 39


def test_news_of_a_session_that_is_cut_are_kept_and_count_once(tmp_path, monkeypatch):
    """The journal is applied while results come: what of it has come by then is applied all the same."""
    desk = Desk(tmp_path)
    wait = "while [ ! -e %s/go ]; do sleep 0.05; done; echo out >out" % tmp_path
    jobs = desk.add(*(desk.folder("job%d" % number, wait) for number in range(3)))
    try:
        assert desk.sync().results_jobs == 0
    finally:
        (tmp_path / "go").touch()
    until(lambda: len(list((desk.root / "completed").iterdir())) == 3, "jobs that have ended")
    with monkeypatch.context() as patch:
        patch.setenv("CHASQUI_FAULT", "serve.wanted")
        with pytest.raises(errors.ConnectionLost):
            desk.sync()
    assert {desk.job(job).state for job in jobs} == {states.COMPLETED}
    report = desk.sync()
    assert (report.completed, report.results_jobs) == (0, 3)
    with desk.ledger() as ledger:
        for job in jobs:
            assert [event["event"] for event in ledger.events(job.id)].count("ended") == 1


def test_a_long_journal_is_applied_between_results(campaign, monkeypatch):
    """Piece by piece, and the cursor moves behind it with the last one."""
    monkeypatch.setattr(sys.modules["chasqui_client.sync"], "_STEP", 7)  # the package has a function of that name
    jobs = campaign.make({"out": os.urandom(50_000)}, count=300)
    with campaign.ledger() as ledger, ledger.transaction():
        ledger.db.execute("UPDATE jobs SET state = 'RUNNING'")
    writer = journal.Writer(str(campaign.root / "log"), 0)
    writer.append(*({"ev": "ended", "job": job.id, "attempt": 1, "state": "DONE", "exit": 0} for job in jobs))
    writer.close()
    report = campaign.sync()
    assert (report.completed, report.results_jobs) == (300, 300)
    assert campaign.sync().as_dict()["completed"] == 0
    with campaign.ledger() as ledger:
        assert all([event["event"] for event in ledger.events(job.id)].count("ended") == 1 for job in jobs)
        assert ledger.remote_state("here").cursor == journal.end(str(campaign.root / "log"))


def killed(campaign, point, monkeypatch, number=1, client=False):
    """A sync with one side killed at a fault point; the bytes that came."""
    once = campaign.path / ("once%d" % len(list(campaign.path.glob("once*"))))
    fault = {"CHASQUI_FAULT": "%s:%d" % (point, number), "CHASQUI_FAULT_ONCE": str(once)}
    if client:
        environment = {**os.environ, **fault, "CHASQUI_HOME": str(campaign.home.path),
                       "PYTHONPATH": f"{TOP / 'client'}:{TOP / 'agent'}"}
        done = subprocess.run([sys.executable, "-m", "chasqui_client", "sync"], env=environment, capture_output=True,
                              stdin=subprocess.DEVNULL, timeout=120)
        assert done.returncode == -9, done.stderr
        return 0
    with monkeypatch.context() as patch:
        for name, value in fault.items():
            patch.setenv(name, value)
        line, report = sync(campaign)
    assert report is None and once.exists()
    return line.brought


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6])
def test_an_agent_killed_after_any_chunk(campaign, monkeypatch, number):
    job, = campaign.make(FILES)
    brought = killed(campaign, "deliver.chunk", monkeypatch, number)
    nothing_half_done(campaign, job)
    line, _ = sync(campaign)
    assert SIZE <= brought + line.brought <= SIZE + CHUNK
    whole(campaign, job)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6])
def test_a_client_killed_after_any_chunk_has_what_it_wrote(campaign, monkeypatch, number):
    job, = campaign.make(FILES)
    killed(campaign, "landing.chunk", monkeypatch, number, client=True)
    nothing_half_done(campaign, job)
    kept = sum(len(content) // CHUNK * CHUNK if name.startswith(".chasqui") else len(content)
               for name, content in campaign.here(job).items())
    line, _ = sync(campaign)
    assert line.brought == SIZE - kept
    whole(campaign, job)


def test_what_is_here_but_not_recorded_is_only_compared(campaign, monkeypatch):
    job, = campaign.make(FILES)
    killed(campaign, "landing.durable.after", monkeypatch, client=True)
    line, report = sync(campaign)
    assert line.brought == 0 and report.results_files == len(FILES)
    whole(campaign, job)


def test_what_is_here_but_rotten_comes_again_in_the_same_session(campaign, monkeypatch):
    job, = campaign.make(FILES)
    killed(campaign, "landing.durable.after", monkeypatch, client=True)
    place = Path(os.fsdecode(job.results_path)) / "sub/even"
    status = place.stat()
    place.write_bytes(b"?" + FILES["sub/even"][1:])
    os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))
    line, report = sync(campaign)
    assert line.brought == 2 * CHUNK and not report.notes
    whole(campaign, job)


def part_of(job):
    part, = (Path(os.fsdecode(job.results_path)) / ".chasqui").iterdir()
    return part


def test_a_rotten_part_is_not_believed(campaign, monkeypatch):
    job, = campaign.make({"large": LARGE})
    killed(campaign, "landing.chunk", monkeypatch, 2, client=True)
    with open(part_of(job), "r+b") as stream:
        stream.write(b"?")
    line, report = sync(campaign)
    assert line.brought == len(LARGE) - 2 * CHUNK + len(LARGE) and not report.notes
    assert campaign.here(job) == {"large": LARGE}
    assert campaign.completed(job)


def test_a_part_of_what_the_file_was_is_not_continued(campaign, monkeypatch):
    job, = campaign.make({"large": LARGE})
    killed(campaign, "landing.chunk", monkeypatch, 2, client=True)
    assert part_of(job).stat().st_size == 2 * CHUNK
    other = LARGE[::-1]
    (campaign.work(job) / "large").write_bytes(other)
    line, _ = sync(campaign)
    assert line.brought == len(LARGE)
    assert campaign.here(job) == {"large": other}


def test_rubbish_among_the_parts_goes(campaign):
    job, = campaign.make(FILES)
    folder = Path(os.fsdecode(job.results_path)) / ".chasqui"
    folder.mkdir(parents=True)
    (folder / "0123.part").write_bytes(b"old")
    (folder / "link.part").symlink_to(campaign.home.path)
    (folder.parent / ".chasqui.part").write_bytes(b"of a killed client")
    sync(campaign)
    whole(campaign, job)


@pytest.mark.parametrize("swapped", ["results", "results/.chasqui", "results/sub"])
def test_a_folder_swapped_for_a_symlink(campaign, swapped):
    """Before the sync; and what stands behind the link is left alone."""
    job, = campaign.make(FILES)
    elsewhere = campaign.path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.part").write_bytes(b"mine")
    link = Path(os.fsdecode(job.folder)) / swapped
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(elsewhere)
    _, report = sync(campaign)
    assert report.notes
    assert [path.name for path in elsewhere.iterdir()] == ["x.part"]
    link.unlink()
    sync(campaign)
    whole(campaign, job)


def test_a_folder_swapped_while_files_arrive(tmp_path):
    """The folder that was opened is written to, wherever it is now; never what stands in its place."""
    from chasqui_client.messages import Listed
    (tmp_path / "job").mkdir()
    results_path, elsewhere = tmp_path / "job" / "results", tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = landing.Landing()
    for name in (b"one", b"large"):
        arriving = place.begin(os.fsencode(results_path), Listed(name, len(LARGE), 0o644, 5 * 10 ** 18, "output"), 0)
        arriving.write(LARGE)
        if name == b"one":
            os.rename(results_path, tmp_path / "job" / "moved")
            results_path.symlink_to(elsewhere)
        assert arriving.finish(hashlib.sha256(LARGE).hexdigest())
    with pytest.raises(OSError):
        place.durable()
    assert list(elsewhere.iterdir()) == []
    assert (tmp_path / "job" / "moved" / "one").read_bytes() == LARGE


def append(place):
    with open(place, "ab") as stream:
        stream.write(b"more\n")


def test_a_file_that_never_rests_is_reported_and_asked_for_next_time(campaign):
    """It grows each time it was listed, before it is read."""
    job, = campaign.make({"grows": b"x", "rests": b"y"})
    place = campaign.work(job) / "grows"
    _, report = sync(campaign, on_want=lambda: append(place))
    note, = report.notes
    assert "grows" in note and "it changed since it was listed; the next sync asks again" in note
    assert campaign.job(job).results_state == states.PARTIAL and campaign.here(job) == {"rests": b"y"}
    sync(campaign)
    assert campaign.completed(job) and campaign.here(job)["grows"] == place.read_bytes()


@pytest.mark.parametrize("change", [append, lambda place: place.write_bytes(LARGE[1:]), os.unlink,
                                    lambda place: (place.unlink(), place.symlink_to("/etc/passwd"))],
                         ids=["grown", "rewritten", "gone", "a symlink"])
def test_a_file_that_changed_once_comes_in_the_same_session(campaign, change):
    job, = campaign.make({"changes": LARGE, "rests": b"y"})
    place = campaign.work(job) / "changes"
    changes = [change]
    _, report = sync(campaign, on_want=lambda: changes and changes.pop()(place))
    assert report.notes == [] and not changes
    assert campaign.completed(job)
    left = {"changes": place.read_bytes()} if place.is_file() and not place.is_symlink() else {}
    assert campaign.here(job) == {"rests": b"y", **left}


def test_a_slow_disk_here_does_not_look_like_silence(campaign, monkeypatch):
    job, = campaign.make(FILES)
    real = landing.Landing.durable
    monkeypatch.setattr(landing.Landing, "durable", lambda self: time.sleep(3) or real(self))
    monkeypatch.setattr(download, "_ALIVE", 0.1)
    monkeypatch.setenv("CHASQUI_IDLE", "1.5")
    sync(campaign)
    whole(campaign, job)


def test_a_slow_disk_that_is_looked_at_does_not_look_like_silence(campaign, monkeypatch):
    """Which files are wanted is found out on our turn, in which we send nothing."""
    jobs = campaign.make({"out": b"out"}, count=8)
    real = landing.Landing.have
    monkeypatch.setattr(landing.Landing, "have", lambda *given, **named: time.sleep(0.5) or real(*given, **named))
    monkeypatch.setattr(download, "_ALIVE", 0.1)
    monkeypatch.setenv("CHASQUI_IDLE", "1.5")
    sync(campaign)
    assert all(campaign.completed(job) for job in jobs)


def test_a_slow_disk_here_does_not_look_as_if_nobody_read(campaign, monkeypatch):
    """While a slice is made durable the agent sends the next one, and soon nothing more of it goes into the pipe."""
    campaign.make({"out": b"out"}, count=1000)
    job, = campaign.make({"large": 4 * LARGE})
    real = landing.Landing.durable
    monkeypatch.setattr(landing.Landing, "durable", lambda self: time.sleep(2) or real(self))
    monkeypatch.setattr(download, "_ALIVE", 0.1)
    monkeypatch.setenv("CHASQUI_STALL", "1")
    _, report = sync(campaign)
    assert report is not None and report.results_jobs == 1001
    assert campaign.completed(job) and campaign.here(job) == {"large": 4 * LARGE}


# -- slices, order, memory ---------------------------------------------------------------------------------------------


def test_big_files_of_any_slice_come_last(campaign, monkeypatch):
    order = []
    real = results.Receiver.whole
    monkeypatch.setattr(results, "BIG", 1000)
    monkeypatch.setattr(results.Receiver, "whole", lambda self, key, files: order.extend(
        file.path for file, *_ in files) or real(self, key, files))
    first, = campaign.make({"big": 5000, "bigger": 9000, "small": b"s"})
    campaign.make({"small": b"s"}, count=1100)
    last, = campaign.make({"big": 4000, "small": b"s"})
    report = campaign.sync()
    assert order == [b"small"] * 1102 + [b"big", b"big", b"bigger"]
    assert report.results_jobs == 1102 and not report.notes
    assert campaign.here(first).keys() == {"big", "bigger", "small"} and campaign.here(last)["big"] == bytes(4000)
    assert campaign.sync().results_files == 0


MEASURED = """
import os, sys, threading, time
from chasqui_client import cli
def peak(pid):
    with open("/proc/%s/status" % pid) as stream:
        return int(next(line for line in stream if line.startswith("VmHWM")).split()[1])
theirs, over = [0], threading.Event()
def watch():
    while not over.is_set():
        for task in os.listdir("/proc/self/task"):
            try:
                with open("/proc/self/task/%s/children" % task) as stream:
                    theirs.extend(peak(pid) for pid in stream.read().split())
            except (OSError, StopIteration):
                pass
        theirs[:] = [max(theirs)]
        time.sleep(0.02)
thread = threading.Thread(target=watch)
thread.start()
code = cli.main(["sync"])
over.set()
thread.join()
print(code, peak("self"), theirs[0])
"""


def measured(campaign):
    """A sync in a process of its own: peak memory of client and agent, kB."""
    environment = {**os.environ, "CHASQUI_HOME": str(campaign.home.path),
                   "PYTHONPATH": f"{TOP / 'client'}:{TOP / 'agent'}"}
    done = subprocess.run([sys.executable, "-c", MEASURED], env=environment, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=3600)
    assert done.returncode == 0, done.stderr
    code, client, agent = map(int, done.stdout.splitlines()[-1].split())
    assert code == 0 and agent > 0
    return client, agent


def test_memory_does_not_grow_with_jobs(campaign, size):
    count = 20_000 if size.long else 2_000
    campaign.make({"out%d" % n: b"content %d\n" % n for n in range(4)}, count=count)
    client, agent = measured(campaign)
    assert campaign.completed(campaign.jobs()[-1])
    assert max(client, agent) < 100_000, (client, agent)
    campaign.make({"small": b"s"})
    least = measured(campaign)
    assert client < least[0] + 30_000 and agent < least[1] + 30_000, (client, agent, least)


def test_memory_does_not_grow_with_a_file(campaign, size):
    job, = campaign.make({"small": b"s"})
    least = measured(campaign)
    big, = campaign.make({"big": (4 << 30) + 1 if size.long else (200 << 20) + 1})
    client, agent = measured(campaign)
    assert campaign.completed(job) and campaign.completed(big)
    assert client < least[0] + 10_000 and agent < least[1] + 10_000, (client, agent, least)


# -- what is chosen ----------------------------------------------------------------------------------------------------


TREE = {"OUTCAR": b"o", "run/a/OUTCAR": b"1", "run/b.log": b"2", "run/a/deep/c.log": b"3", "tmp/x": b"4",
        "WAVECAR": 900}


@pytest.mark.parametrize("outputs, exclude, brought", [
    ([], [], set(TREE)),
    (["OUTCAR"], [], {"OUTCAR", "run/a/OUTCAR"}),
    (["./OUTCAR"], [], {"OUTCAR"}),
    (["run/*.log"], [], {"run/b.log"}),
    (["run/**/*.log"], [], {"run/b.log", "run/a/deep/c.log"}),
    (["run/**"], ["deep"], {"run/a/OUTCAR", "run/b.log"}),
    (["**/a/**"], [], {"run/a/OUTCAR", "run/a/deep/c.log"}),
    ([], ["tmp", "WAVE*", "run/**/c.*"], {"OUTCAR", "run/a/OUTCAR", "run/b.log"}),
    (["**"], ["run/a"], {"OUTCAR", "run/b.log", "tmp/x", "WAVECAR"}),
])
def test_patterns_mean_what_users_think(campaign, outputs, exclude, brought):
    job, = campaign.make(TREE, outputs=outputs, exclude=exclude)
    campaign.sync()
    assert set(campaign.here(job)) == brought
    assert campaign.completed(job)


def test_limits_leave_the_biggest_and_fetch_gets_them(campaign):
    job, = campaign.make({"a": 400, "b": 500, "c": 600, "d": 5000}, max_file=1000, max_job=1000, exclude=["x*"])
    (campaign.work(job) / "x1").write_bytes(b"excluded")
    report = campaign.sync()
    assert set(campaign.here(job)) == {"a", "b"}
    assert {(item["path"], item["why"]) for item in report.left_out} == {
        ("c", "more than 1000 bytes of results"), ("d", "larger than 1000 bytes")}
    assert campaign.completed(job)
    campaign.sync(fetch={job.id: ("c", "[x]*")})
    assert set(campaign.here(job)) == {"a", "b", "c", "x1"}
    campaign.sync(fetch={job.id: ("nothing*",)})
    campaign.sync(fetch={job.id: ()})
    assert set(campaign.here(job)) == {"a", "b", "c", "d", "x1"}
    assert campaign.completed(job)
    assert {row["state"] for row in api.show(campaign.home, job.id)["result_files"]} == {"HERE"}


ODD = [b"WAVECAR", b"sub/WAVECAR", b"a[1]", b"a1", b"a*", b"ab", b"a?", b"a[", b"a]", b"[!a]", b"[*]", b"[[]", b"**",
       b"sub/**/x", b"-x", b"-d/-y", b"--all", b"two words", b" ", b"it's", b"\"$HOME\"", b"`id`", b"$(id)", b"\\",
       b"a\\*", b"!!", b"#x", b"~", b"{a,b}", b"100%", b"%41", b"A", b"a\nb", b"a\n", b"a\x1b[2J", b"sub/\r!%s'\\",
       b"\xff\xfe", b"\xc3", "\u00e9[\u00e9]".encode(), "\u00a0\u2028".encode(), b"....", b"..a"]


@pytest.mark.parametrize("shell, locale, names", [("dash", "C", ODD), ("bash", "C.UTF-8", ODD[2::5])],
                         ids=["dash", "bash"])
def test_the_line_that_is_shown_fetches_that_file_alone(campaign, monkeypatch, capsys, shell, locale, names):
    """Pasted as it stands, whatever the file is called; every one of them is there."""
    shell = needs.program(shell)
    job, = campaign.make({os.fsdecode(name): b"content of " + name for name in ODD}, max_file=3)
    program = campaign.path / "bin" / "chasqui"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nPYTHONPATH=%s exec %s -m chasqui_client \"$@\"\n" % (
        ":".join(str(TOP / part) for part in ("client", "agent")), sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "%s:%s" % (program.parent, os.environ["PATH"]))
    monkeypatch.setenv("CHASQUI_HOME", str(campaign.home.path))
    monkeypatch.setenv("LC_ALL", locale)
    assert cli.main(["sync"]) == 0
    assert cli.main(["results", job.id]) == 0
    shown = capsys.readouterr().out
    lines = re.findall(r"^          left there: .*; (chasqui results fetch .*)$", shown, re.M)
    assert len(lines) == len(ODD) and re.search(r"--glob \./WAVECAR$", shown, re.M)
    assert "; %s gets it" % lines[0] in shown, "a sync says the same"
    brought = {}
    for name, line in [(name, line) for name, line in zip(sorted(ODD), lines, strict=True) if name in names]:
        done = subprocess.run([shell, "-c", line], capture_output=True)
        assert done.returncode == 0, (line, done)
        brought[os.fsdecode(name)] = b"content of " + name
        assert campaign.here(job) == brought, line


def test_a_fetch_that_is_cut_goes_on_when_it_is_typed_again(campaign, monkeypatch):
    job, = campaign.make({"large": LARGE, "a": b"a"}, max_file=1000)
    campaign.sync()
    monkeypatch.setenv("CHASQUI_FAULT", "deliver.chunk:3")
    monkeypatch.setenv("CHASQUI_FAULT_ONCE", str(campaign.path / "once"))
    with pytest.raises(errors.ConnectionLost):
        campaign.sync(fetch={job.id: ("large",)})
    assert campaign.job(job).results_state == states.VERIFIED
    assert part_of(job).stat().st_size >= 2 * CHUNK
    campaign.sync(fetch={job.id: ("large",)})
    assert campaign.here(job) == {"large": LARGE, "a": b"a"}


# -- what was here and is gone -----------------------------------------------------------------------------------------


@pytest.fixture
def types(campaign, monkeypatch, capsys):
    """Type a command: its exit code and what it printed."""
    monkeypatch.setenv("CHASQUI_HOME", str(campaign.home.path))
    return lambda *words: (cli.main(list(words)), "".join(capsys.readouterr()))


@pytest.mark.parametrize("all_of_them", [False, True], ids=["by their lines", "--all"])
@pytest.mark.parametrize("deleted", ["small", "sub/even", "sub", "."])
@pytest.mark.parametrize("missing", [(), ("never",)], ids=["verified", "incomplete"])
def test_a_deleted_result_stays_away_until_it_is_asked_for(campaign, types, deleted, all_of_them, missing):
    job, = campaign.make(FILES, expect=missing)
    campaign.sync()
    state = campaign.job(job).results_state
    assert state == (states.PARTIAL if missing else states.VERIFIED) and campaign.here(job) == FILES
    place = Path(os.fsdecode(job.results_path)) / deleted
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    left = campaign.here(job)
    line, report = sync(campaign)
    assert (line.brought, report.results_files, campaign.here(job)) == (0, 0, left), "nobody asked for it"
    code, said = types("verify")
    shown = re.findall(r"missing in \S+: (\S+); chasqui (results fetch %s --glob (\./\S+))$" % job.id[:8], said, re.M)
    assert code == 1 and {path for path, _, _ in shown} == set(FILES) - set(left)
    assert [path for path, _, _ in shown] == [pattern[2:] for _, _, pattern in shown]
    for words in [("results fetch %s --all" % job.id[:8])] if all_of_them else [words for _, words, _ in shown]:
        assert types(*words.split())[0] == 0
    assert campaign.here(job) == FILES and campaign.job(job).results_state == state
    assert "missing in" not in types("verify")[1]


@pytest.mark.parametrize("deleted", ["small", "sub/even", "sub", "."])
def test_what_went_before_the_last_result_came_comes_again_with_it(campaign, deleted):
    """Before a job's results are said to be here, all of them are looked for; nothing that is here comes twice."""
    job, = campaign.make(FILES, expect=["last"])
    campaign.sync()
    assert campaign.job(job).results_state == states.PARTIAL
    place = Path(os.fsdecode(job.results_path)) / deleted
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    lost = set(FILES) - set(campaign.here(job))
    (campaign.work(job) / "last").write_bytes(b"last")
    line, report = sync(campaign)
    assert line.brought == len(b"last") + sum(len(FILES[name]) for name in lost)
    assert campaign.here(job) == {**FILES, "last": b"last"}
    assert campaign.completed(job) and (report.results_files, report.results_jobs) == (len(lost) + 1, 1)


def test_what_went_after_a_cut_comes_again(campaign):
    job, = campaign.make(FILES)
    for number in range(60):
        _, report = sync(campaign, received=number)
        if campaign.here(job).get("small"):
            break
    assert report is None and campaign.job(job).results_state == states.PARTIAL
    (Path(os.fsdecode(job.results_path)) / "small").unlink()
    sync(campaign)
    whole(campaign, job)


def test_what_is_gone_on_both_sides_is_not_said_to_be_here(campaign, types):
    job, = campaign.make({**FILES, "big": 3000, "both": b"both"}, expect=["last"], exclude=["big"])
    campaign.sync()
    assert types("results", "fetch", job.id, "--glob", "big")[0] == 0
    results = Path(os.fsdecode(job.results_path))
    for gone in (results / "both", campaign.work(job) / "both", results / "big"):
        gone.unlink()
    (campaign.work(job) / "last").write_bytes(b"last")
    campaign.sync()
    assert campaign.completed(job)
    with campaign.ledger() as ledger:
        found = {row.path: row.state for row in ledger.result_files(job.id, 1)}
    assert found.pop(b"both") == "GONE" and found.pop(b"big") == "GONE" and set(found.values()) == {"HERE"}
    assert types("verify")[0] == 0 and types("show", job.id)[0] == 0


def test_what_was_fetched_beyond_a_limit_and_deleted_is_left_there(campaign, types):
    job, = campaign.make({**FILES, "big": 3 << 20}, expect=["last"], max_file=2 << 20)
    campaign.sync()
    assert types("results", "fetch", job.id, "--glob", "big")[0] == 0
    (Path(os.fsdecode(job.results_path)) / "big").unlink()
    (campaign.work(job) / "last").write_bytes(b"last")
    campaign.sync()
    assert campaign.completed(job)
    with campaign.ledger() as ledger:
        found = {row.path: row.state for row in ledger.result_files(job.id, 1)}
    assert found.pop(b"big") == "LEFT" and set(found.values()) == {"HERE"}
    assert types("verify")[0] == 0


def test_what_the_user_has_changed_is_not_written_over(campaign, types):
    job, = campaign.make(FILES)
    campaign.sync()
    mine = Path(os.fsdecode(job.results_path)) / "small"
    mine.write_text("mine now\n")
    assert types("results", "fetch", job.id, "--all")[0] == 0 and mine.read_text() == "mine now\n"
    said = types("verify")[1]
    line, = re.findall(r"changed in \S+: small; move it aside, then: chasqui (results fetch .*)$", said, re.M)
    mine.rename(mine.with_name("aside"))
    assert types(*line.split())[0] == 0 and mine.read_bytes() == FILES["small"]
    assert types("verify")[0] == 0


def test_a_fetch_of_a_deleted_result_that_is_cut_leaves_it_missing(campaign, types, monkeypatch):
    job, = campaign.make(FILES)
    campaign.sync()
    (Path(os.fsdecode(job.results_path)) / "large").unlink()
    monkeypatch.setenv("CHASQUI_FAULT", "deliver.chunk:3")
    monkeypatch.setenv("CHASQUI_FAULT_ONCE", str(campaign.path / "once"))
    assert types("results", "fetch", job.id, "--glob", "large")[0] == 5
    assert part_of(job).stat().st_size >= CHUNK
    code, said = types("verify")
    assert code == 1 and "large; chasqui results fetch" in said, "not forgotten"
    assert types("results", "fetch", job.id, "--glob", "large")[0] == 0
    whole(campaign, job)


def test_all_brings_again_what_the_patterns_name_though_it_is_an_input(tmp_path, monkeypatch, capsys):
    desk = Desk(tmp_path).deploy()
    job, = desk.add(desk.folder("job", "echo o >out", INCAR=b"an input"), outputs=["INCAR", "out"])
    desk.finish()
    results = tmp_path / "jobs/job/results"
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    assert {"INCAR", "out"} < set(before) and "job.sh" not in before
    shutil.rmtree(results)
    desk.sync(fetch={job.id: ()})
    assert {path.name: path.read_bytes() for path in results.iterdir()} == before


def test_logs_that_were_deleted_say_what_brings_them(tmp_path, monkeypatch, capsys):
    desk = Desk(tmp_path).deploy()
    desk.add(desk.folder("job", "echo said"))
    desk.finish()
    monkeypatch.setenv("CHASQUI_HOME", str(desk.home.path))
    shutil.rmtree(tmp_path / "jobs/job/results")
    assert cli.main(["logs", "job"]) == 2
    line, = re.findall(r"  hint: chasqui (results fetch .*)\n", capsys.readouterr().err)
    assert cli.main(line.split()) == 0 and len(list((tmp_path / "jobs/job/results").iterdir())) == 1


def test_expected_results_are_asked_for_until_they_are_there(campaign):
    job, = campaign.make({"OUTCAR": b"o", "x.log": b"l"}, outputs=["*.log"], expect=["OUTCAR", "vasprun.xml", "run/**"])
    failed, = campaign.make({"x.log": b"l"}, state="FAILED", expect=["OUTCAR"])
    for _ in range(2):
        report = campaign.sync()
        assert report.incomplete == [{"job": job.id, "name": job.name, "missing": ["vasprun.xml", "run/**"]}]
        found = campaign.job(job)
        assert (found.state, found.results_state) == (states.COMPLETED, states.PARTIAL)
        assert found.missing == ("vasprun.xml", "run/**")
        assert set(campaign.here(job)) == {"OUTCAR", "x.log"}
    assert campaign.job(failed).results_state == states.VERIFIED and not campaign.job(failed).missing
    (campaign.work(job) / "vasprun.xml").write_bytes(b"v")
    assert campaign.sync().incomplete[0]["missing"] == ["run/**"]
    (campaign.work(job) / "run").mkdir()
    (campaign.work(job) / "run/x").write_bytes(b"r")
    assert campaign.sync().incomplete == []
    assert campaign.completed(job).missing == ()
    assert set(campaign.here(job)) == {"OUTCAR", "x.log", "vasprun.xml", "run/x"}


def lose(desk):
    """Kill everything of the relay and its job, as a node that dies does."""
    done = subprocess.run(["pgrep", "-f", str(desk.root)], capture_output=True, text=True)
    for pid in map(int, done.stdout.split()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["FAILED", "CANCELLED", "LOST"])
def test_jobs_that_ended_badly_bring_their_files_and_logs(tmp_path, kind):
    desk = Desk(tmp_path).impatient()
    wait = "" if kind == "FAILED" else "while [ ! -e %s/go ]; do sleep 0.05; done" % tmp_path
    job, = desk.add(desk.folder("bad", "echo partial >out; echo said; echo warned >&2; %s\nexit 3" % wait))
    desk.sync()
    work = desk.root / "work" / job.id
    until(lambda: (work / "out").exists(), "a job that has begun")
    try:
        if kind == "CANCELLED":
            api.cancel(desk.home, Selection((job.id,)))
        elif kind == "LOST":
            lose(desk)
        end = time.monotonic() + 60
        while not desk.job(job).ended or desk.job(job).results_state != states.VERIFIED:
            assert time.monotonic() < end, desk.job(job)
            desk.sync()
            time.sleep(0.1)
    finally:
        (tmp_path / "go").touch()
    assert desk.job(job).state == kind
    found = {name.rstrip("0123456789"): content for name, content in Campaign.here(job).items()}
    assert found["out"] == b"partial\n" and found["bad.o"] == b"said\n" and b"warned\n" in found["bad.e"]


def test_a_results_folder_that_is_closed_twice_closes_nobody_elses_files(tmp_path):
    """As where Ctrl-C comes while it is being closed."""
    folder = landing.Folder(os.fsencode(tmp_path / "results"))
    folder.parts()
    folder.close()
    others = [os.open(tmp_path, os.O_RDONLY) for _ in range(5)]
    folder.close()
    for fd in others:
        os.close(fd)  # EBADF where it was closed
