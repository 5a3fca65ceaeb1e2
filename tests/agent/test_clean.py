"""The agent's verbs `verify` and `clean` as programs: what they take away, what they leave, and what they say."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest

from agent.agentroot import AGENT
from chasqui_agent import install
from chasqui_agent.spool import Spool

NONCE = "0123456789abcdef" * 2


def sha(content):
    return hashlib.sha256(content).hexdigest()


class Folder:
    """A root with one job that has ended, and a client that has what it made."""

    OUTPUTS = {"out": b"result", "d/e/deep": b"deep"}
    INPUTS = {"in.dat": b"input", "job.sh": b"#!/bin/sh\n"}

    def __init__(self, path):
        self.spool = Spool(str(path / "root"))
        install.install(self.spool)
        self.job = "one"
        self.make(self.job, 1)

    def make(self, job, attempt, **record):
        folder = self.spool.work_dir(job, attempt)
        for name, content in dict(self.OUTPUTS, **self.INPUTS).items():
            self.write(name, content, folder)
        values = dict({"ledger": "mine", "outputs": [], "exclude": [], "max_file": 1000}, **record)
        self.write(".chasqui/job.json", json.dumps(values).encode("ascii"), folder)
        self.write(".chasqui/final.json", b'{"stdout": ".chasqui/tok.out", "stderr": "said.err"}', folder)
        self.write(".chasqui/tok.out", b"words", folder)
        self.flag(b"DONE")

    def flag(self, word):
        with open(self.spool.entry_path("completed", self.job, 1, suffix="flag"), "wb") as stream:
            stream.write(word + b"\n1.vm\n")

    @property
    def folder(self):
        return self.spool.work_dir(self.job, 1)

    def write(self, name, content, folder=""):
        path = os.path.join(folder or self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(content)
        return path

    def left(self):
        """What stands in the work folder, .chasqui/ left out, symlinks and folders with it."""
        found = set()
        for top, folders, names in os.walk(self.folder):
            if top == self.folder:
                folders.remove(".chasqui")
            found.update(os.path.relpath(os.path.join(top, name), self.folder) for name in folders + names)
        return found

    def start(self, verb, **environment):
        command = [sys.executable, "-I", "-S", os.path.join(AGENT, "chasqui_agent"), "--root", self.spool.root, verb]
        return subprocess.Popen(
            command + ["--nonce", NONCE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=dict(os.environ, **environment),
        )

    def ask(self, verb, header, *questions, **environment):
        """The answers, greeting and end looked at and taken off."""
        said = [dict(header, ledger=header.get("ledger", "mine"))] + list(questions) + [{"answer": True}, {"end": True}]
        process = self.start(verb, **environment)
        out, err = process.communicate("".join(json.dumps(item) + "\n" for item in said).encode("ascii"), timeout=60)
        lines = [json.loads(line) for line in out.decode("ascii").splitlines()]
        assert lines[0] == {"lines": sha(NONCE.encode("ascii"))[:16]}
        assert lines[-2:] == [{"answered": len(questions)}, {"bye": True}], (lines, err)
        assert process.returncode == 0
        return [line for line in lines[1:-2] if line != {"nop": True}]

    def question(self, **different):
        listed = {
            key: [[name, len(content), sha(content)] for name, content in sorted(files.items())]
            for key, files in (("files", self.OUTPUTS), ("inputs", self.INPUTS))
        }
        return dict({"job": self.job, "attempt": 1, "left": []}, **dict(listed, **different))

    def clean(self, header=(), **different):
        answer, = self.ask("clean", dict({"dry_run": False}, **dict(header)), self.question(**different))
        return answer


@pytest.fixture
def job(tmp_path):
    return Folder(tmp_path)


def test_what_is_proved_goes_and_ours_stays(job):
    answer = job.clean()
    assert (answer["why"], answer["files"], answer["left"]) == ("", 4, 0)
    assert answer["bytes"] == sum(len(content) for content in list(job.OUTPUTS.values()) + list(job.INPUTS.values()))
    assert job.left() == set()
    assert {"job.json", "final.json", "tok.out", "cleaned"} <= set(os.listdir(os.path.join(job.folder, ".chasqui")))
    again = job.clean()
    assert (again["why"], again["files"]) == ("", 0), "twice is once"


def test_a_dry_run_says_the_same_and_takes_nothing(job):
    before = job.left()
    dry = job.clean({"dry_run": True})
    assert job.left() == before and not os.path.exists(os.path.join(job.folder, ".chasqui", "cleaned"))
    assert dry == job.clean()


def test_a_header_that_does_not_say_is_a_dry_run(job):
    before = job.left()
    job.ask("clean", {}, job.question())
    assert job.left() == before


def appeared(job):
    job.write("new", b"later")
    return "appeared", ["new"]


def changed(job):
    job.write("d/e/deep", b"DEEP")
    return "changed", ["d/e/deep"]


def longer(job):
    job.write("out", b"result and more")
    return "changed", ["out"]


def input_changed(job):
    job.write("in.dat", b"INPUT")
    return "changed", ["in.dat"]


def folder_is_a_symlink(job):
    os.rename(os.path.join(job.folder, "d"), os.path.join(job.spool.root, "elsewhere"))
    os.symlink(os.path.join(job.spool.root, "elsewhere"), os.path.join(job.folder, "d"))
    return "symlink", ["d/e/deep"]


def file_is_a_symlink(job):
    os.rename(os.path.join(job.folder, "out"), os.path.join(job.spool.root, "elsewhere"))
    os.symlink(os.path.join(job.spool.root, "elsewhere"), os.path.join(job.folder, "out"))
    return "symlink", ["out"]


def work_folder_is_a_symlink(job):
    os.rename(job.folder, os.path.join(job.spool.root, "elsewhere"))
    os.symlink(os.path.join(job.spool.root, "elsewhere"), job.folder)
    return "symlink", []


def folder_gone(job):
    os.rename(job.folder, os.path.join(job.spool.root, "elsewhere"))
    return "gone", []


def unsettled(job):
    os.unlink(job.spool.entry_path("completed", job.job, 1, suffix="flag"))
    return "unsettled", []


def lost(job):
    job.flag(b"LOST")
    return "lost", []


def newer(job):
    job.make(job.job, 2)
    return "newer", []


def newer_with_a_gap(job):
    job.make(job.job, 4)
    return "newer", []


def foreign(job):
    job.make(job.job, 1, ledger="another")
    return "foreign", []


def record_damaged(job):
    job.write(".chasqui/job.json", b"{")
    return "unreadable", ["its record is damaged"]


RULES = [appeared, changed, longer, input_changed, folder_is_a_symlink, file_is_a_symlink, work_folder_is_a_symlink,
         folder_gone, unsettled, lost, newer, newer_with_a_gap, foreign, record_damaged]


@pytest.mark.parametrize("rule", RULES)
def test_one_word_and_nothing_goes(job, rule):
    word, names = rule(job)
    where = job.spool.root
    before = {os.path.join(top, name) for top, _, files in os.walk(where, followlinks=True) for name in files}
    answer = job.clean()
    assert (answer["why"], answer["names"]) == (word, names)
    assert {os.path.join(top, name) for top, _, files in os.walk(where, followlinks=True) for name in files} == before


@pytest.mark.parametrize("flag, word", [(b"DONE", ""), (b"FAIL", ""), (b"LOST", "newer"), (b"", "newer")])
@pytest.mark.parametrize("later", [2, 4])
def test_an_attempt_that_is_superseded_goes_when_later_ones_are_at_rest(job, flag, word, later):
    job.make(job.job, later)
    if flag:
        with open(job.spool.entry_path("completed", job.job, later, suffix="flag"), "wb") as stream:
            stream.write(flag + b"\n1.vm\n")
    before = job.left()
    assert job.clean(superseded=1)["why"] == "newer" and job.left() == before, "only true is true"
    assert job.clean(superseded=True)["why"] == word
    assert (job.left() == before) == bool(word)


def retried(job, attempt, word=b"FAIL"):
    """The relay has ended an attempt, and makes the next one of it."""
    with open(job.spool.entry_path("completed", job.job, attempt, suffix="flag"), "wb") as stream:
        stream.write(word + b"\n1.vm\nattempt=%d\nnext=%d\nwhy=exit 7\n" % (attempt, attempt + 1))


@pytest.mark.parametrize("superseded", [False, True])
def test_an_attempt_that_the_relay_is_about_to_try_again_stays(job, superseded):
    """The next one's folder has no name yet; with `resume` it gets the files of this one."""
    retried(job, 1)
    before = job.left()
    assert job.clean(superseded=superseded)["why"] == "newer" and job.left() == before


def test_all_attempts_of_a_chain_stay_until_its_last_one_is_at_rest(job):
    """However long it is: a policy may have more retries than there are numbers that are looked for."""
    for attempt in range(1, 14):
        retried(job, attempt)
        if attempt > 1:
            os.makedirs(job.spool.meta_dir(job.job, attempt))
    before = job.left()
    assert job.clean(superseded=True)["why"] == "newer" and job.left() == before
    os.makedirs(job.spool.meta_dir(job.job, 14))
    assert job.clean(superseded=True)["why"] == "newer" and job.left() == before
    with open(job.spool.entry_path("completed", job.job, 14, suffix="flag"), "wb") as stream:
        stream.write(b"DONE\n1.vm\n")
    assert job.clean()["why"] == "newer" and job.left() == before
    assert job.clean(superseded=True)["why"] == "" and job.left() == set()


def test_what_cannot_be_opened_is_not_proved(job):
    os.unlink(os.path.join(job.folder, "out"))
    os.mkdir(os.path.join(job.folder, "out"))
    assert job.clean()["why"] == "symlink"  # or whatever else: no regular file stands there
    assert "d/e/deep" in job.left()


def test_what_never_came_home_stays_and_is_counted(job):
    job.write("WAVECAR", b"w" * 2000)
    job.write("named", b"n")
    job.write(".chasqui-not/x", b"x")
    answer = job.clean(left=["named", ".chasqui-not/x"])
    assert (answer["why"], answer["files"], answer["left"], answer["left_bytes"]) == ("", 4, 3, 2002)
    assert job.left() == {"WAVECAR", "named", ".chasqui-not", ".chasqui-not/x"}


def test_keep_patterns(job):
    answer = job.clean({"keep": ["*.dat", "deep"]})
    assert (answer["why"], answer["files"], answer["kept"]) == ("", 2, 2)
    assert job.left() == {"in.dat", "d", "d/e", "d/e/deep"}


def test_links_that_are_nobodys_results_stay(job):
    os.symlink("/etc", os.path.join(job.folder, "etc"))
    os.mkfifo(os.path.join(job.folder, "fifo"))
    assert job.clean()["why"] == ""
    assert job.left() == {"etc", "fifo"}
    assert os.path.isdir("/etc")


def test_a_hard_link_elsewhere_keeps_its_content(job):
    os.link(os.path.join(job.folder, "out"), os.path.join(job.spool.root, "other"))
    assert job.clean()["why"] == ""
    with open(os.path.join(job.spool.root, "other"), "rb") as stream:
        assert stream.read() == b"result"


def test_the_budget_lets_one_job_through_at_least(job):
    shutil.copytree(job.folder, job.spool.work_dir("two", 1))
    with open(job.spool.entry_path("completed", "two", 1, suffix="flag"), "wb") as stream:
        stream.write(b"DONE\n1.vm\n")
    header = {"dry_run": False, "budget": 0}
    first, second = job.ask("clean", header, job.question(), job.question(job="two"))
    assert (first["why"], second["why"]) == ("", "later")
    assert os.path.exists(os.path.join(job.spool.work_dir("two", 1), "out"))


@pytest.mark.parametrize("different", [
    {"files": [["../out", 6, sha(b"result")]]}, {"files": [["/etc/passwd", 6, sha(b"result")]]}, {"files": "out"},
    {"files": [["out", 6, "no hash"]]}, {"files": [[".chasqui/job.json", 6, sha(b"result")]]}, {"job": "../one"},
    {"attempt": "1"}, {"left": ["a/../../b"]}, {"left": 5}, {"inputs": None},
])
def test_questions_that_are_none_end_it(job, different):
    before = job.left()
    process = job.start("clean")
    said = [{"ledger": "mine", "dry_run": False}, job.question(**different), {"answer": True}, {"end": True}]
    out, _ = process.communicate("".join(json.dumps(item) + "\n" for item in said).encode("ascii"), timeout=60)
    last = json.loads(out.decode("ascii").splitlines()[-1])
    assert set(last) == {"error"} and process.returncode == 1
    assert job.left() == before


def test_a_client_that_leaves_before_asking_for_answers(job):
    before = job.left()
    process = job.start("clean")
    said = [{"ledger": "mine", "dry_run": False}, job.question()]
    process.communicate("".join(json.dumps(item) + "\n" for item in said).encode("ascii"), timeout=60)
    assert process.returncode == 1
    assert job.left() == before


def test_a_client_that_is_silent_is_left(job):
    process = job.start("clean", CHASQUI_IDLE="0.2")
    try:
        assert process.wait(60) == 1
    finally:
        process.stdin.close()
        process.stdout.close()
        process.stderr.close()


# -- verify ------------------------------------------------------------------------------------------------------------


def test_fresh_hashes(job):
    job.write("said.err", b"complaint")
    files = [["out", "output"], ["d/e/deep", "output"], ["one.o1", "log"], ["said.err", "log"], ["missing", "output"]]
    *answers, last = job.ask("verify", {}, {"job": "one", "attempt": 1, "files": files})
    assert last == {"job": "one", "attempt": 1, "files": 5}
    assert [answer.get("sha256") for answer in answers] == [
        sha(b"result"), sha(b"deep"), sha(b"words"), sha(b"complaint"), None]
    assert answers[4]["why"]


def test_elements_logs_are_found(job):
    job.write(".chasqui/final.json", json.dumps({"stdout": ".chasqui/tok.^array_index^.out"}).encode("ascii"))
    job.write(".chasqui/tok.3.out", b"third")
    answer, _ = job.ask("verify", {}, {"job": "one", "attempt": 1, "files": [["one.o37.3", "log"]]})
    assert answer["sha256"] == sha(b"third")


@pytest.mark.parametrize("rule, words", [(folder_gone, "No such file"), (foreign, "another ledger"),
                                         (record_damaged, "damaged"), (work_folder_is_a_symlink, "")])
def test_a_job_that_cannot_be_asked(job, rule, words):
    rule(job)
    answer, = job.ask("verify", {}, {"job": "one", "attempt": 1, "files": [["out", "output"]]})
    assert set(answer) == {"job", "attempt", "why"} and words in answer["why"] and answer["why"]


def test_links_are_not_followed(job):
    file_is_a_symlink(job)
    answer, _ = job.ask("verify", {}, {"job": "one", "attempt": 1, "files": [["out", "output"]]})
    assert "sha256" not in answer and answer["why"]


def test_signs_of_life_while_it_works(job):
    job.write("out", os.urandom(4 << 20))
    process = job.start("verify", CHASQUI_NOP="0")
    said = [{"ledger": "mine"}, {"job": "one", "attempt": 1, "files": [["out", "output"]]}, {"answer": True},
            {"end": True}]
    out, _ = process.communicate("".join(json.dumps(item) + "\n" for item in said).encode("ascii"), timeout=60)
    assert out.count(b'{"nop":true}') >= 16
