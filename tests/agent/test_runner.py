"""The runner: whatever the user's script does, it runs at most once and its end is told."""

import os
import re
import shutil
import subprocess
import time

import pytest

from agent.agentroot import until
from chasqui_agent import marks, runner
from needs import program

SHELLS = [path for path in ("/bin/bash", "/bin/dash", "/bin/sh") if os.path.exists(path)]


class Work:
    """A work folder with a runner, run directly, without a scheduler."""

    def __init__(self, tmp_path, script, rerun=False, command=None, record=False, python="/bin/false"):
        self.dir = str(tmp_path / "it's @job@ \u00e9" / "w")
        self.meta = os.path.join(self.dir, ".chasqui")
        self.root = str(tmp_path / "root")
        self.path_first, self.more = "", {}
        os.makedirs(os.path.join(self.root, "wake"))
        os.makedirs(self.meta)
        self.script = os.path.join(self.meta, "script")
        with open(self.script, "w") as stream:
            stream.write(script)
        values = {
            "dir": self.dir,
            "root": self.root,
            "job": "j1",
            "attempt": "1",
            "token": "abcdefgh",
            "name": "hers",
            "python": python,
            "agent": "none",
            "path": "/usr/bin:/bin",
        }
        text = runner.build(script.encode("utf-8"), values, (command or ["/bin/sh"]) + [self.script], rerun, record)
        self.path = os.path.join(self.meta, "runner.abcdefgh")
        with open(self.path, "wb") as stream:
            stream.write(text)

    def start(self, shell="/bin/bash", pbs_id="7.host"):
        environment = {
            "PATH": self.path_first + "/usr/bin:/bin",
            "HOME": self.root,
            "PBS_JOBID": pbs_id,
            "LC_ALL": "C.UTF-8",
        }
        environment.update(self.more)
        return subprocess.Popen(
            [shell, self.path],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, shell="/bin/bash", pbs_id="7.host"):
        process = self.start(shell, pbs_id)
        self.out, self.err = process.communicate(timeout=60)
        return process.returncode

    def marks(self):
        return marks.read(self.meta, "abcdefgh")

    def ran(self):
        path = os.path.join(self.dir, "ran")
        return open(path).read() if os.path.exists(path) else ""

    def events(self):
        return sorted(name.split(".")[1] for name in os.listdir(os.path.join(self.root, "wake")) if name[0] != ".")


@pytest.fixture
def work(tmp_path):
    return lambda script, **more: Work(tmp_path, script, **more)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "script, code",
    [
        ("echo x >> ran", 0),
        ("echo x >> ran; exit 3", 3),
        ("echo x >> ran; set -e; false; exit 0", 1),
        ("echo x >> ran; exec true", 0),
        ("echo x >> ran; trap 'exit 5' EXIT; exit 1", 5),
        ("echo x >> ran; kill -9 $$", 137),
        ("echo x >> ran; nosuchcommand", 127),
        ("echo x >> ran; kill -TERM $$", 143),
        ('cd /; echo x >> "$PBS_O_WORKDIR/ran"', 0),
        ("echo x >> ran; cat", 0),
    ],
)
def test_every_way_to_end(work, shell, script, code):
    job = work(script)
    assert job.run(shell) == code
    assert job.ran() == "x\n"
    found = job.marks()
    assert found.claim == "7.host" and found.runs == 1 and found.flag["exit"] == str(code) and not found.term
    assert job.events() == ["tail"]


@pytest.mark.parametrize("shell", SHELLS)
def test_her_own_variables_are_what_she_set(work, shell):
    """`#PBS -v n=1000,dir=/data`: sh keeps a variable exported that it assigns to."""
    job = work("env >env")
    with open(job.path) as stream:
        own = set(re.findall(r"(?m)(?:^|[\s;({&|'\"])([a-z][a-z_]*)=", stream.read()))
    assert "cq_id" in own and all(name.startswith("cq_") for name in own - {"disable", "exit"}), own
    job.more = dict.fromkeys(["id", "k", "dir", "root", "host", "n", "limit", "term", "code", "job"], "hers")
    assert job.run(shell) == 0
    with open(os.path.join(job.dir, "env")) as stream:
        found = {line for line in stream.read().split() if line.endswith("=hers")}
    assert found == {name + "=hers" for name in job.more} | {"PBS_JOBNAME=hers"}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("takes", ["", "; mkdir .chasqui", "; kill -TERM $PPID"])
def test_what_took_its_marks_away_does_not_start_again(work, shell, takes):
    job = work("echo x >> ran; rm -rf .chasqui %s" % takes)
    kept = [os.path.join(job.root, name) for name in ("runner", "script")]  # as the scheduler keeps the one
    for path, copy in zip((job.path, job.script), kept):
        os.rename(path, copy)
    job.path = kept[0]
    os.symlink(kept[1], job.script)
    job.run(shell)
    os.symlink(kept[1], job.script)
    assert job.run(shell) == 97 and job.ran() == "x\n"
    found = job.marks()
    assert (found.claim, found.runs, found.flag["id"]) == ("7.host", 1, "7.host")
    os.unlink(os.path.join(job.meta, "claim.abcdefgh"))
    os.unlink(os.path.join(job.meta, "run.abcdefgh.1"))
    assert marks.close(job.meta, "abcdefgh", 1) == "7.host", "its flag says so, too"


@pytest.mark.parametrize("shell", SHELLS)
def test_a_hook_finds_out_which_relay_to_wake_while_the_job_runs(work, shell):
    records = '"$HOME/.chasqui-agent/jobs'
    script = "cat %s/$PBS_JOBID\" >seen; ls -ld %s\" %s/$PBS_JOBID\" >modes" % (records, records, records)
    job = work(script, record=True)
    assert job.run(shell) == 0
    with open(os.path.join(job.dir, "seen")) as seen:
        assert seen.read() == "%s\n/bin/false\nnone\n" % job.root
    with open(os.path.join(job.dir, "modes")) as modes:
        assert sorted(line[:10] for line in modes) == ["-rw-------", "drwx------"]
    assert os.listdir(os.path.join(job.root, ".chasqui-agent", "jobs")) == []  # the tail has waked, no hook has to


def test_no_record_is_no_reason_not_to_run(work):
    job = work("echo x >> ran", record=True)
    with open(os.path.join(job.root, ".chasqui-agent"), "w"):
        pass  # a file where the folder should be, as on a home that is full or broken
    assert job.run() == 0
    assert job.ran() == "x\n"
    assert job.err == b""


def test_what_says_where_the_server_is_reaches_the_wake(work, monkeypatch):
    monkeypatch.setenv("PBS_CONF_FILE", "/etc/the other/pbs.conf")
    monkeypatch.setenv("PBS_DEFAULT", "")
    job = work("echo x >> ran")
    with open(job.path) as stream:
        assert "PBS_CONF_FILE='/etc/the other/pbs.conf'" in stream.read()
    assert job.run() == 0


def test_kill_0_does_not_reach_the_runner(work):
    job = work("echo x >> ran; trap 'kill 0' EXIT; exit 0", command=["/bin/bash"])
    job.run("/bin/bash")
    assert job.marks().flag is not None and job.events() == ["tail"]


@pytest.mark.parametrize(
    "interpreter, script",
    [
        ("tcsh", "#!/usr/bin/tcsh -f\necho x >> ran\nexit 2\n"),
        ("python3", "import sys\nopen('ran','a').write('x\\n')\nsys.exit(2)\n"),
        ("zsh", "echo x >> ran; exit 2"),
        ("fish", "echo x >> ran; exit 2"),
    ],
)
def test_other_languages(work, interpreter, script):
    job = work(script, command=[program(interpreter)])
    assert job.run() == 2 and job.ran() == "x\n" and job.marks().flag["exit"] == "2"


def test_the_environment_is_hers(work):
    job = work("echo $PBS_JOBNAME $PBS_JOBID >> ran; pwd >> ran")
    assert job.run() == 0
    assert job.ran() == "hers 7.host\n%s\n" % job.dir


@pytest.mark.parametrize("shell", SHELLS)
def test_a_second_job_with_the_token_runs_nothing(work, shell):
    job = work("echo x >> ran")
    assert job.run(shell) == 0 and job.run(shell, "8.host") == runner.EXIT_REFUSED
    assert job.ran() == "x\n" and job.events() == ["duplicate", "tail"]
    assert not [name for name in os.listdir(job.meta) if name.endswith(".new")]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_closed_token_runs_nothing(work, shell):
    job = work("echo x >> ran")
    assert marks.close(job.meta, "abcdefgh", 4) == ""
    assert job.run(shell) == runner.EXIT_REFUSED and job.ran() == "" and job.marks().flag is None
    assert marks.close(job.meta, "abcdefgh", 5) == ""


def test_closing_after_the_start_names_who_started(work):
    job = work("true")
    job.run()
    assert marks.close(job.meta, "abcdefgh", 4) == "7.host"


@pytest.mark.parametrize("rerun, runs", [(False, "x\n"), (True, "x\nx\n")])
def test_a_rerun_of_the_same_id(work, rerun, runs):
    job = work("echo x >> ran", rerun=rerun)
    assert job.run() == 0
    assert job.run() == (0 if rerun else runner.EXIT_REFUSED)
    assert job.ran() == runs
    assert job.marks().flag["k"] == ("2" if rerun else "1")
    assert ("rerun" in job.events()) == (not rerun)


def test_a_rerun_that_is_refused_does_not_silence_the_start_that_lives_on(work):
    """As after the loss of a node: PBS starts the id elsewhere while the old processes go on."""
    job = work("echo x >> ran; while [ ! -e go ]; do sleep 0.05; done; exit 3")
    first = job.start()
    until(lambda: job.ran() == "x\n", "the payload began")
    assert job.run() == runner.EXIT_REFUSED
    open(os.path.join(job.dir, "go"), "w").close()
    first.communicate(timeout=60)
    assert job.ran() == "x\n" and job.marks().flag["exit"] == "3"


def test_what_an_earlier_start_left_says_nothing_of_the_later_one(work):
    job = work("echo x >> ran; [ -e second ] || exit 4", rerun=True)
    assert job.run() == 4
    open(os.path.join(job.meta, "term.abcdefgh.1"), "w").close()
    assert job.marks().term and job.marks().flag["exit"] == "4"
    os.symlink("7.host", os.path.join(job.meta, "run.abcdefgh.2"))
    assert not job.marks().term and job.marks().flag is None
    os.unlink(os.path.join(job.meta, "run.abcdefgh.2"))
    open(os.path.join(job.dir, "second"), "w").close()
    assert job.run() == 0
    assert not job.marks().term and job.marks().flag["exit"] == "0"


def test_no_folder_no_payload(work):
    job = work("echo x >> ran")
    shutil.copy(job.path, job.root + "/r")
    shutil.rmtree(job.dir)
    job.path = job.root + "/r"
    assert job.run() == runner.EXIT_REFUSED and not os.path.exists(job.dir)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "payload, code",
    [
        ("trap 'sleep 0.3; echo t >> ran; exit 4' TERM; echo x >> ran; while :; do sleep 0.05; done", "4"),
        ("trap '' TERM; echo x >> ran; sleep 1; echo t >> ran; exit 6", "6"),
    ],
)
def test_term_waits_for_the_payload_and_marks_its_flag_provisional(work, shell, payload, code):
    """As PBS does it, TERM goes to every process of the session; the payload takes its time."""
    job = work(payload)
    process = job.start(shell)
    until(lambda: job.ran() == "x\n", "the payload began")
    subprocess.call(["pkill", "-TERM", "-s", str(process.pid)])
    process.communicate(timeout=60)
    assert job.ran() == "x\nt\n"
    found = job.marks()
    assert found.term and found.flag["term"] == "1" and found.flag["exit"] == code
    assert "term" in job.events()


def test_a_stopped_payload_is_waited_for(work):
    job = work("echo x >> ran; kill -STOP $$; echo y >> ran; exit 2")
    process = job.start("/bin/bash")
    until(lambda: job.ran() == "x\n", "the payload began")
    until(lambda: b"T" in subprocess.check_output(["ps", "-o", "stat=", "-s", str(process.pid)]), "it stopped")
    assert job.marks().flag is None
    subprocess.call(["pkill", "-CONT", "-s", str(process.pid)])
    process.communicate(timeout=60)
    assert job.ran() == "x\ny\n" and job.marks().flag["exit"] == "2"


def test_a_flag_that_is_not_whole_is_none(tmp_path):
    path = tmp_path / "flag"
    for text in ("", " " * 4096, "exit=0\nid=1"):
        path.write_text(text)
        assert marks.read_flag(str(path)) is None
    path.write_text("exit=0\nid=1\nwhole\n" + " " * 4000)
    assert marks.read_flag(str(path)) == {"exit": "0", "id": "1"}
    assert marks.read_flag(str(tmp_path / "none")) is None


def test_no_room_for_the_mark_of_a_start_means_no_start(work):
    """As on a disk that is full at that very moment: nothing ran, and the claim is given up so that it can run
    later."""
    job = work("echo x >> ran")
    os.mkdir(job.root + "/bin")
    with open(job.root + "/bin/ln", "w") as stream:
        stream.write('#!/bin/sh\ncase "$*" in *run.*) exit 1 ;; esac\nexec /bin/ln "$@"\n')
    os.chmod(job.root + "/bin/ln", 0o700)
    job.path_first = job.root + "/bin:"
    assert job.run() == runner.EXIT_REFUSED and job.ran() == ""
    found = job.marks()
    assert found.claim == "" and found.runs == 0 and job.events() == ["norun"]
    assert marks.close(job.meta, "abcdefgh", 1) == ""


# -- arrays: elements of one token on many hosts -----------------------------------------------------------------------


def element(index):
    return "7[%d].host" % index


@pytest.mark.parametrize("shell", SHELLS)
def test_each_element_of_an_array_runs_once_under_one_claim(work, shell):
    job = work("echo $PBS_JOBID >> ran; case $PBS_JOBID in *3*) exit 3 ;; esac")
    assert [job.run(shell, element(index)) for index in (1, 2, 3)] == [0, 0, 3]
    assert sorted(job.ran().split()) == [element(1), element(2), element(3)]
    found = job.marks()
    assert found.claim == "7[].host" and found.runs == 1 and found.flag is None
    assert found.elements == {index: marks.Element(1, 1, False) for index in (1, 2, 3)}
    flags = [marks.read_flag(marks.flag_path(job.meta, "abcdefgh.%d" % index, 1)) for index in (1, 2, 3)]
    assert [flag["exit"] for flag in flags] == ["0", "0", "3"] and flags[1]["id"] == element(2)
    assert job.events() == ["tail"] * 3


@pytest.mark.parametrize("shell", SHELLS)
def test_an_element_of_another_array_runs_nothing(work, shell):
    job = work("echo x >> ran")
    assert job.run(shell, element(1)) == 0
    assert job.run(shell, "8[2].host") == job.run(shell, "7.host") == runner.EXIT_REFUSED
    assert job.ran() == "x\n" and job.events() == ["duplicate", "duplicate", "tail"]


@pytest.mark.parametrize("shell", SHELLS)
def test_no_element_starts_under_a_closed_token(work, shell):
    job = work("echo x >> ran")
    assert marks.close(job.meta, "abcdefgh", 4) == ""
    assert [job.run(shell, element(index)) for index in (1, 2)] == [runner.EXIT_REFUSED] * 2
    assert job.ran() == "" and marks.close(job.meta, "abcdefgh", 5) == ""


def test_closing_after_one_element_began_names_the_array(work):
    job = work("true")
    job.run(pbs_id=element(2))
    assert marks.close(job.meta, "abcdefgh", 4) == "7[].host"
    os.unlink(job.meta + "/claim.abcdefgh")  # what no runner of an array does
    assert marks.close(job.meta, "abcdefgh", 4) == "7[].host"


@pytest.mark.parametrize("rerun, runs", [(False, "x\n"), (True, "x\nx\n")])
def test_a_rerun_of_an_element(work, rerun, runs):
    job = work("echo x >> ran", rerun=rerun)
    assert job.run(pbs_id=element(4)) == 0
    assert job.run(pbs_id=element(4)) == (0 if rerun else runner.EXIT_REFUSED)
    starts = 2 if rerun else 1
    assert job.ran() == runs and job.marks().elements[4] == marks.Element(starts, starts, False)
    assert job.run(pbs_id=element(5)) == 0


def test_an_element_that_cannot_begin_leaves_the_array_its_claim(work):
    job = work("echo x >> ran")
    os.mkdir(job.root + "/bin")
    with open(job.root + "/bin/ln", "w") as stream:
        stream.write('#!/bin/sh\ncase "$*" in *run.*.1.1) exit 1 ;; esac\nexec /bin/ln "$@"\n')
    os.chmod(job.root + "/bin/ln", 0o700)
    job.path_first = job.root + "/bin:"
    assert job.run(pbs_id=element(1)) == runner.EXIT_REFUSED and job.events() == ["norun"]
    assert job.marks().claim == "7[].host"
    assert job.run(pbs_id=element(2)) == 0 and job.ran() == "x\n"


def test_elements_at_once_with_one_process_number_lose_no_word(work):
    """As on many hosts at once."""
    job = work("echo x >> ran; sleep 0.3")
    with open(job.path) as stream:
        text = stream.read()
    with open(job.path, "w") as stream:
        stream.write(text.replace("$$", "4711"))
    running = [job.start(pbs_id=element(index)) for index in range(8)]
    assert [process.wait(60) for process in running] == [0] * 8
    for process in running:
        process.communicate()
    assert job.ran() == "x\n" * 8 and job.events() == ["tail"] * 8
    assert set(job.marks().elements.values()) == {marks.Element(1, 1, False)} and len(job.marks().elements) == 8


# -- the head ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def woken(tmp_path):
    """A work folder whose wakes take a second longer than its payload, and note what for they were."""
    agent = tmp_path / "agent"
    notes = str(tmp_path / "wakes")
    agent.write_text("#!/bin/sh\nshift 7\nsleep 1\necho $1 >> '%s'\n" % notes)
    agent.chmod(0o755)

    def made(due=None):
        job = Work(tmp_path, "echo x >> ran", python=str(agent))
        if due is not None:
            with open(os.path.join(job.root, "wake", "debt"), "w") as stream:
                stream.write(due)
        return job

    made.wakes = lambda: open(notes).read().split()
    return made


@pytest.mark.parametrize("shell", SHELLS)
def test_a_debt_that_is_due_is_looked_at_by_the_head_of_a_job(woken, shell):
    """The runner of a short job waits for its head: it would be killed with the job, halfway through a submission."""
    job = woken("%d\n" % (time.time() - 1))
    assert job.run(shell) == 0
    assert job.ran() == "x\n" and sorted(woken.wakes()) == ["head", "tail"]
    assert job.err == b""


@pytest.mark.parametrize("due", [None, "", "no number\n", "%d\n" % (2 * time.time())])
def test_without_a_debt_that_is_due_no_head_pumps(woken, due):
    job = woken(due)
    assert job.run() == 0
    assert job.ran() == "x\n" and woken.wakes() == ["tail"] and job.err == b""
