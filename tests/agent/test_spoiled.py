"""No job's own files stop the relay or another job: folders it has shut, .chasqui/ taken away or made something else.

The tests may run as root, whom no mode of a folder stops; so the agents here, and what they begin, give up that right.
"""

import ctypes
import os
import struct
import subprocess
import sys

import pytest

from agent.agentroot import AGENT, Root, end_jobs, until
from agent.test_clean import NONCE, Folder
from agent.test_reconcile import Desk
from agent.test_retries import finish, hand_over, rule
from chasqui_agent import files, journal, spoiled
from chasqui_agent.schedulers.base import Ended, Live, Snapshot

LIBC = ctypes.CDLL(None, use_errno=True)
OVER_MODES = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH

# What a job does to its work folder, before it ends or goes on.
SHUT = {
    "protected": "chmod -R a-w .",
    "shut": "chmod 000 .",
    "all shut": "chmod 000 .chasqui/* .chasqui .",
}
GONE = {
    "removed": "rm -rf .chasqui",
    "a file": "rm -rf .chasqui; echo mine > .chasqui",
    "dangling": "rm -rf .chasqui; ln -s /nowhere/at/all .chasqui",
    "a loop": "rm -rf .chasqui; ln -s .chasqui .chasqui",
}
# Nor can the runner make it anew: the scheduler's word alone tells of the end.
NO_WAY = {
    "no folder": "cd /; rm -rf \"$PBS_O_WORKDIR\"",
    "no way": "rm -rf .chasqui; echo mine > .chasqui; chmod a-w .",
}
ALL = dict(SHUT, **dict(GONE, **NO_WAY))


def mortal():
    """Give up root's right to pass over modes, for good; where we are not root there is none."""
    header, data = struct.pack("Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    if os.geteuid() or LIBC.capget(header, data):
        return
    for right in OVER_MODES:
        LIBC.prctl(24, right, 0, 0, 0)
    values = list(struct.unpack("6I", data.raw))
    values[:3] = [value & ~sum(1 << right for right in OVER_MODES) for value in values[:3]]
    LIBC.capset(header, struct.pack("6I", *values))


class Mortals(Root):
    before = staticmethod(mortal)


@pytest.fixture
def root(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(0o500)
    code = "import os, sys; sys.exit(os.access(sys.argv[1], os.W_OK))"
    assert subprocess.call([sys.executable, "-c", code, str(closed)], preexec_fn=mortal) == 0
    made = Mortals(tmp_path / "root", scheduler="shell", query_interval=0, grace=0.3, max_running=1)
    yield made
    end_jobs(made)
    subprocess.call(["chmod", "-R", "u+rwx", made.spool.work])


def hand_over_both(root, text, *on):
    """One job that runs `text`, and may be tried again once; and another one behind it."""
    hand_over(root, "it", "#!/bin/sh\necho out > out\n%s\n" % text, rule(1, *on), {"in.txt": b"as sent\n"})
    root.drop("behind")


def settled(root, job, attempt=1):
    """Pump until an attempt has come to rest; where. Each of these pumps goes well."""

    def look():
        assert root.pump()["note"] == ""
        return root.spool.settled_state(job, attempt)

    return until(look, "the end of %s.%d" % (job, attempt))


def flags(root, job, attempt):
    """How many its runner has left: without one only a scheduler with a history knows the exit code."""
    return sum(name.startswith("flag.") and not name.endswith(".new")
               for name in spoiled.names(root.spool.meta_dir(job, attempt)))


def why(root, job):
    code, out, err = root.agent("why", job)
    assert (code, err) == (0, "")
    return out


# -- it ends by itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(SHUT))
def test_what_a_job_has_shut_is_opened_again(root, case):
    """It ends as it has ended, is tried again from its inputs, and those do not stay behind."""
    hand_over_both(root, SHUT[case] + "\nexit 7", "7")
    assert finish(root, "it", 2) == "FAIL" and settled(root, "behind") == "completed"
    assert root.starts("behind") == 1 and root.flag("behind")[0] == "DONE"
    told = root.events("it", "ended")
    assert [(r["attempt"], r["exit"], r["why"]) for r in told] == [
        (1, 7, "exit 7"), (2, 7, "exit 7; not tried again: the last of one retry")]
    assert [os.path.exists(os.path.join(root.spool.meta_dir("it", n), "inputs")) for n in (1, 2)] == [False, False]
    for attempt in (1, 2):
        assert files.read_json(os.path.join(root.spool.meta_dir("it", attempt), "final.json"))["stdout"]
        assert flags(root, "it", attempt) == 1
    assert "exit 7" in why(root, "it")


@pytest.mark.parametrize("case", sorted(dict(GONE, **NO_WAY)))
def test_what_a_job_has_taken_away_it_ends_without(root, case):
    hand_over_both(root, ALL[case] + "\nexit 7", "7")
    assert settled(root, "it") == settled(root, "behind") == "completed"
    assert root.starts("behind") == 1 and root.flag("behind")[0] == "DONE"
    told, = root.events("it", "ended")
    assert (told["state"], told["exit"], told["why"]) == ("FAIL", 7, "exit 7; " + spoiled.GONE)
    assert flags(root, "it", 1) == (case in GONE)
    assert not root.events("it", "closed", "retried") and len(root.events("it", "submitted")) == 1
    assert spoiled.GONE in why(root, "it")


# -- it is cancelled ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(set(ALL) - {"all shut", "a loop", "no folder"}))
def test_it_can_be_cancelled(root, case):
    done = os.path.join(root.ran, "spoilt")
    hand_over_both(root, "%s\ntouch '%s'\nsleep 600" % (ALL[case], done), "1-255")
    until(lambda: root.pump()["note"] == "" and os.path.exists(done), "the deed")
    assert "retry policy" in why(root, "it") or spoiled.GONE in why(root, "it")
    code, _, err = root.agent("cancel", "it")
    assert (code, err) == (0, "")
    assert settled(root, "it") == "cancelled" and settled(root, "behind") == "completed"
    assert root.starts("behind") == 1 and not root.events("it", "retried", "ended")
    root.wait_idle()


def test_it_can_not_be_held(root):
    done = os.path.join(root.ran, "spoilt")
    hand_over_both(root, "%s\ntouch '%s'\nsleep 600" % (GONE["removed"], done), "1-255")
    until(lambda: root.pump()["note"] == "" and os.path.exists(done), "the deed")
    root.agent("hold", "it")
    assert root.pump()["note"] == "" and root.spool.known("it", 1) == "submitted"
    root.agent("cancel", "it")
    assert settled(root, "it") == "cancelled"


# -- a server that knows more, or less ---------------------------------------------------------------------------------


@pytest.fixture
def desk(make_root, monkeypatch):
    made = Desk(make_root(), monkeypatch)
    made.claim()
    writer = journal.Writer(made.spool.log, 1)
    writer.append({"ev": "submitted", "job": "job", "attempt": 1, "token": "abcdefgh", "pbs": "7.server"})
    writer.close()
    os.makedirs(made.spool.meta_dir("other", 1))
    return made


def take_away(desk):
    for name in os.listdir(desk.meta):
        os.unlink(os.path.join(desk.meta, name))
    os.rmdir(desk.meta)


def test_it_is_not_over_while_the_scheduler_has_it_and_never_submitted_again(desk):
    take_away(desk)
    desk.scheduler.answer = Snapshot({"7.server": Live("7.server", "R", "abcdefgh")}, {})
    for _ in range(3):
        desk.pump(1000)
    assert desk.outcome() == []
    desk.scheduler.answer = Snapshot({}, {}, ["7.server"])
    desk.pump()
    assert desk.outcome() == []
    desk.pump(301)
    assert desk.outcome() == [("ended", "LOST", "gone from the scheduler without a trace; " + spoiled.GONE)]
    assert not desk.spool.has_waiting()


@pytest.mark.parametrize("code, expected", [
    (0, ("DONE", "")), (3, ("FAIL", "exit 3")), (97, ("LOST", "exit 97: perhaps it did not start"))])
def test_the_schedulers_word_is_taken(desk, code, expected):
    take_away(desk)
    desk.scheduler.answer = Snapshot({}, {"7.server": Ended("7.server", code, "", "abcdefgh", False)})
    desk.pump()
    desk.pump(301)
    why = "; ".join(text for text in (expected[1], spoiled.GONE) if text)
    assert desk.outcome() == [("ended", expected[0], why)]


def test_a_submission_without_a_trace_is_not_made_again(desk):
    """Whether it has started nobody can say; and one that turns up late is deleted."""
    os.rename(desk.spool.entry_path("submitted", "job", 1, "abcdefgh"),
              desk.spool.entry_path("submitting", "job", 1, "abcdefgh"))
    take_away(desk)
    desk.scheduler.answer = Snapshot({}, {})
    desk.pump()
    desk.pump(301)
    assert desk.outcome() == [("ended", "LOST", "the scheduler does not know it; " + spoiled.GONE)]
    desk.scheduler.answer = Snapshot({"7.server": Live("7.server", "Q", "abcdefgh")}, {})
    desk.pump(1)
    assert desk.scheduler.deleted == ("7.server",)


def test_a_submission_that_is_found_is_adopted_without_a_record(desk):
    os.rename(desk.spool.entry_path("submitted", "job", 1, "abcdefgh"),
              desk.spool.entry_path("submitting", "job", 1, "abcdefgh"))
    take_away(desk)
    desk.scheduler.answer = Snapshot({"7.server": Live("7.server", "R", "abcdefgh")}, {})
    desk.pump()
    assert desk.spool.known("job", 1) == "submitted"
    desk.scheduler.answer = Snapshot({}, {"7.server": Ended("7.server", 3, "", "abcdefgh", False)})
    desk.pump(1)
    desk.pump(301)
    assert desk.outcome()[1:] == [("ended", "FAIL", "exit 3; " + spoiled.GONE)]


def test_where_the_file_system_is_gone_no_job_is(desk):
    """work/ leads to a file system that is not mounted: an empty folder."""
    work, scratch = desk.spool.work, desk.spool.work + ".scratch"
    os.rename(work, scratch + ".away")
    os.symlink(scratch, work)
    os.mkdir(scratch)
    desk.scheduler.answer = Snapshot({}, {})
    with pytest.raises(OSError):
        desk.pump()
    os.rmdir(scratch)
    os.rename(scratch + ".away", scratch)
    assert desk.outcome() == [] and desk.spool.known("job", 1) == "submitted"


# -- what waits, and what is taken away afterwards ---------------------------------------------------------------------


def test_what_waits_without_its_folder_is_rejected_and_the_others_run(root):
    root.drop("first", seconds=1)
    hand_over(root, "it", "#!/bin/sh\nexit 7\n", rule(1, "7"), {"in.txt": b"x"})
    root.drop("behind")
    root.agent("hold", "it")
    root.pump()
    subprocess.check_call(["rm", "-rf", root.spool.work_dir("it", 1)])
    root.agent("release", "it")
    assert settled(root, "it") == "rejected" and settled(root, "behind") == "completed"
    told, = root.events("it", "rejected")
    assert told["text"].startswith("not submitted: ") and told["text"].endswith("No such file or directory")


def test_what_was_held_and_has_lost_its_record_does_not_run_too_early(root):
    root.drop("it")
    root.agent("hold", "it")
    root.pump()
    files.write_file(os.path.join(root.spool.meta_dir("it", 1), "job.json"), b"{")
    root.agent("release", "it")
    assert settled(root, "it") == "blocked" and root.starts("it") == 0


class Mine(Folder):
    def start(self, verb, **environment):
        command = [sys.executable, "-I", "-S", os.path.join(AGENT, "chasqui_agent"), "--root", self.spool.root, verb]
        return subprocess.Popen(
            command + ["--nonce", NONCE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=dict(os.environ, **environment), preexec_fn=mortal)


@pytest.mark.parametrize("how, expected", [
    ("chmod -R a-w .", ("unreadable", ["d/e/deep", "in.dat", "job.sh", "out"])),
    ("chmod 000 .", ("gone", [])),
    ("chmod a-w .chasqui .chasqui/*", ("", [])),
    ("rm -rf .chasqui", ("foreign", [])),
    ("rm -rf .chasqui; echo mine > .chasqui", ("unreadable", ["its record is damaged"])),
    ("rm -rf .chasqui; ln -s /nowhere .chasqui", ("foreign", [])),
])
def test_clean_works_or_says_what_is_left(tmp_path, how, expected):
    job = Mine(tmp_path)
    subprocess.check_call(how, shell=True, cwd=job.folder)
    answer = job.clean()
    subprocess.check_call(["chmod", "-R", "u+rwx", job.folder])
    assert (answer["why"], answer["names"]) == expected
    assert (answer["files"], "out" in os.listdir(job.folder)) == ((4, False) if expected[0] == "" else (0, True))
