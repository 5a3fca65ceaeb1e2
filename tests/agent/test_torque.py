"""The `torque` scheduler by what its manuals say of names, states, ends, refusals; and PBS scripts for Slurm's qsub."""

import os
import subprocess

import pytest

from agent.agentroot import Root
from agent.test_openpbs import Settings, Site
from chasqui_agent import schedulers, submit
from chasqui_agent.schedulers import choose, qstat_text, slurm_torque, torque
from chasqui_agent.schedulers.base import DELETED, Request
from chasqui_agent.schedulers.refusals import classify

FAILED = "Batch job submission failed"
FULL = """\
Job Id: 7.server.site.org
    Job_Name = relax.abcdefgh
    Job_Owner = ada@login.site.org
    job_state = %s
    queue = batch
    Hold_Types = n
    Resource_List.nodes = 1:ppn=4
    Variable_List = PBS_O_QUEUE=batch,PBS_O_WORKDIR=/home/ada/w,CHASQUI_TOKEN=abcdefgh
    submit_args = -N relax.abcdefgh runner.abcdefgh
%s"""


@pytest.fixture
def site(tmp_path):
    found = Site(tmp_path)
    found.scheduler = choose(None, Settings("torque", found.bin))
    return found


def end_of(text):
    status = "    exit_status = %s\n" % text if text else ""
    job = qstat_text.parse(FULL % ("C", status))["7.server.site.org"]
    ended = torque.Torque.ending(None, job, "abcdefgh")
    return ended.exit, ended.why


@pytest.mark.parametrize(
    "text, exit_status, why",
    [
        ("0", 0, ""),
        ("3", 3, ""),
        ("271", 271, DELETED),
        ("143", 271, DELETED),  # the runner told of its payload's end, and ended the same way
        ("265", 265, "killed (265)"),
        ("-11", -11, "walltime"),
        ("-10", -10, "memory"),
        ("-4", -4, "node lost"),
        ("-3", -3, "ended by Torque (-3)"),
        ("", None, "deleted in Torque before it started"),
    ],
)
def test_how_a_completed_job_ended(text, exit_status, why):
    assert end_of(text) == (exit_status, why)


def test_a_round_tells_the_live_from_the_completed(site):
    live, over, gone = ("%d.server.site.org" % number for number in (6, 7, 8))
    site.on("qselect -u %s -s EHQRTW" % site.user, live + "\n")
    site.on("qselect -u %s -s H" % site.user)
    told = FULL % ("C", "    exit_status = 3\n")
    unknown = "qstat: Unknown Job Id Error %s\n" % gone
    site.on("qstat -f -1 *", told, unknown, 153)
    found = site.scheduler.query([live, over, gone])
    assert list(found.live) == [live] and found.live[live].state == "Q"
    assert found.ended[over][:4] == (over, 3, "", "abcdefgh")
    assert found.gone(gone) and gone not in found.ended


def test_somebody_elses_array_counts_by_its_elements(site):
    site.on("qselect -u %s -s EHQRTW" % site.user, "6.s\n9[].s\n9[1].s\n9[2].s\n")
    site.on("qselect -u %s -s RE" % site.user, "9[1].s\n")
    site.on("qselect -u %s -s H" % site.user)
    live = site.scheduler.query(["6.s"]).live
    assert [(live[job].queued, live[job].running) for job in ("6.s", "9[1].s", "9[2].s")] == [(1, 0), (0, 1), (1, 0)]
    assert len(live) <= 4  # and perhaps the array itself: rather one too many


def test_only_the_name_finds_a_submission_whose_answer_was_lost(site):
    sought = schedulers.base.Sought("abcdefgh", "relax.abcdefgh", "/home/ada/w")
    site.on("qselect -u %s -s EHQRTW" % site.user, "7.server.site.org\n")
    for states in ("RE", "H"):
        site.on("qselect -u %s -s %s" % (site.user, states))
    site.on("qselect -N relax.abcdefgh", "7.server.site.org\n")
    assert site.scheduler.query([], [sought]).live["7.server.site.org"].token == "abcdefgh"


@pytest.mark.parametrize(
    "code, text, kind",
    [
        (226, "qsub: submit error (Maximum number of jobs already in queue for user MSG=x)\n", "limit"),
        (198, "qsub: submit error (Maximum number of jobs already in queue MSG=x)\n", "limit"),
        (170, "qsub: submit error (Unknown queue MSG=requested queue not found)\n", "permanent"),
        (111, "qsub: cannot connect to server torque (errno=111) Connection refused\n", "temporary"),
        (189, "qsub: submit error (Unauthorized Request  MSG=x)\n", "other"),
        (185, "qsub: submit error (Batch protocol error)\n", "unknown"),  # the server may have the job
        (10, "qsub: submit error (Premature end of message)\n", "unknown"),
        (237, "qsub: submit error (Time out)\n", "unknown"),
        (187, "qsub: submit error (No free connections)\n", "temporary"),  # in OpenPBS an unknown resource
        (166, "qsub: something else\n", "unknown"),
        (None, "", "unknown"),
        (-9, "", "unknown"),
    ],
)
def test_refusals(site, code, text, kind):
    """By the words: its codes are not those of OpenPBS [Torque's pbs_error_db.h]."""
    assert site.scheduler.refusal(code, text, {}).kind == kind


def test_a_host_that_may_not_submit():
    text = "qsub: submit error (Bad UID for job execution MSG=ruserok failed validating ada/ada from node07)\n"
    assert classify(175, text).here


@pytest.mark.parametrize("name, expected", [("01_relax", "j01_re.abcdefgh"), ("relax", "relax.abcdefgh")])
def test_a_name_begins_with_a_letter(site, name, expected):
    limit = site.scheduler.name_limit
    found = submit.queue_name(site.scheduler.name_in_queue(name), "abcdefgh", limit)
    assert found == expected and len(found) <= 15


def test_its_f_and_j_mean_something_else(site):
    request = Request(
        script="/w/runner", folder="/w", name="n.abcdefgh", token="abcdefgh", variables=[("A", "b")], output="/w/o",
        error="/w/e", join=False, hold=True, rerun=False, directives={}, start=None,
    )  # fmt: skip
    words = site.scheduler.arguments(request)
    assert words[0] == "qsub" and "-f" not in words and "-h" in words and words[-1] == "/w/runner"


@pytest.mark.parametrize(
    "said, expected",
    [("Version: 6.1.2\nCommit: 661e09\n", "6.1.2"), ("version: 4.2.10\n", "4.2.10"), ("pbs_version = 23.06.06\n", "")],
)
def test_it_is_known_by_its_version(site, said, expected):
    site.on("qsub --version", "", said)
    assert torque.torque_version(site.scheduler.commands, 10.0) == expected
    assert site.scheduler.version() == expected


# -- the user's own epilogue -------------------------------------------------------------------------------------------


@pytest.fixture
def scheduler(tmp_path):
    root = Root(tmp_path / "root", scheduler="torque")
    return choose(root.spool, schedulers_settings(root))


def schedulers_settings(root):
    from chasqui_agent import settings

    return settings.load(root.spool)


def test_every_job_names_the_epilogue_unless_she_brings_one(scheduler, tmp_path):
    path = os.path.join(scheduler._spool.root, "epilogue")
    assert ("#PBS -l epilogue=%s\n" % path) in scheduler.head(b"#!/bin/sh\n#PBS -l nodes=1:ppn=4\ntrue\n")
    assert os.stat(path).st_mode & 0o777 == 0o700
    assert path not in scheduler.head(b"#!/bin/sh\n#PBS -l nodes=1,epilogue=/home/ada/mine\ntrue\n")


@pytest.mark.parametrize("code, wakes", [("0", False), ("3", False), ("127", False), ("271", True), ("-11", True)])
def test_it_wakes_where_no_tail_did(scheduler, tmp_path, code, wakes):
    """The wake itself is a process that comes 2 s later: here a program in place of setsid writes down what it is."""
    scheduler.head(b"true\n")
    told = tmp_path / "told"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "setsid").write_text('#!/bin/sh\nprintf "%%s\\n" "$@" >%s.new\nmv %s.new %s\n' % ((told,) * 3))
    (tmp_path / "bin" / "setsid").chmod(0o755)
    words = ["7.server", "ada", "ada", "relax", "12", "", "", "batch", "", code]
    environment = {"PATH": "%s:/usr/bin:/bin" % (tmp_path / "bin"), "HOME": "/"}
    path = os.path.join(scheduler._spool.root, "epilogue")
    # It leaves its process behind and does not wait: what is left has our pipe, whose end is that process's.
    process = subprocess.Popen([path] + words, env=environment, stdout=subprocess.PIPE)
    process.communicate(timeout=60)
    assert process.returncode == 0
    if wakes:
        from agent.agentroot import until

        until(told.exists, "it is begun")
        assert "--reason\nepilogue\n" in told.read_text() and "CHASQUI_LEFT_BY=7.server" in told.read_text()
    assert told.exists() == wakes


def request_of(scheduler, path, script=b"#!/bin/sh\ntrue\n"):
    runner = path / "runner"
    runner.write_bytes(scheduler.head(script).encode("ascii") + b"true\n")
    return Request(
        script=str(runner), folder=str(path), name="n.abcdefgh", token="abcdefgh", variables=[], output="/w/o",
        error="/w/e", join=True, hold=False, rerun=False, directives={}, start=None, dialect="PBS",
    )  # fmt: skip


@pytest.fixture
def at_site(site, tmp_path):
    """A scheduler with a root, whose qsub looks into the runner, and does what `answers` says of one with an epilogue,
    and of one without."""
    root = Root(tmp_path / "root", scheduler="torque")
    from chasqui_agent import settings

    settings.change(root.spool, pbs_bin=site.bin)
    site.scheduler = choose(root.spool, settings.load(root.spool))
    site.rules = {"with": "exit 0", "without": "echo 7.server"}

    def program():
        text = "#!/bin/sh\nfor last; do :; done\nif grep -q '^#PBS -l .*epilogue=' \"$last\"; then\n"
        text += "echo with >>%s\n%s\nelse\necho without >>%s\n%s\nfi\n"
        site.program("qsub", text % (site.calls, site.rules["with"], site.calls, site.rules["without"]))

    site.calls = str(tmp_path / "asked")
    site.answers = lambda **rules: (site.rules.update(rules), program())
    site.asked = lambda: open(site.calls).read().split()
    return site


SAYS = "echo 'qsub: %s' >&2; exit %d"
UNKNOWN = SAYS % ("submit error (Unknown resource type  MSG=x)", 187)


@pytest.mark.parametrize(
    "words",
    [
        UNKNOWN,
        SAYS % ("submit error (Illegal attribute or resource value Resource_List.epilogue)", 166),
        SAYS % ("submit error (Unauthorized Request  MSG=epilogue scripts are not for users)", 189),
        SAYS % ("your job has been rejected: a user epilogue is not allowed here", 1),  # by a filter of the site
    ],
)
def test_an_epilogue_that_is_refused_is_left_out_and_named_no_more(at_site, tmp_path, words):
    at_site.answers(**{"with": words})
    request = request_of(at_site.scheduler, tmp_path)
    before = open(request.script).read()
    answer = at_site.scheduler.submit(request, 60.0)
    assert (answer.kind, answer.id) == ("accepted", "7.server") and at_site.asked() == ["with", "without"]
    assert open(request.script).read() == "".join(line for line in before.splitlines(True) if "epilogue" not in line)
    assert os.stat(request.script).st_mode & 0o777 == 0o700
    again = request_of(at_site.scheduler, tmp_path)
    assert at_site.scheduler.submit(again, 60.0).kind == "accepted" and at_site.asked()[2:] == ["without"]
    os.unlink(at_site.scheduler._epilogue + torque.REFUSED)  # as an admin's word that it is allowed now
    assert "epilogue=" in at_site.scheduler.head(b"true\n")


@pytest.mark.parametrize(
    "words, kind",
    [
        (SAYS % ("submit error (Unknown queue MSG=x)", 170), "permanent"),
        (SAYS % ("submit error (Batch protocol error)", 185), "unknown"),
        (SAYS % ("what is this, /home/ada/epilogue/w", 1), "unknown"),
        # A filter's remark explains no error that nobody knows: the server may have the job.
        ("echo 'note: your epilogue runs as you' >&2; " + SAYS % ("no idea what happened", 1), "unknown"),
        ("echo 'some of what you set is not allowed' >&2; " + SAYS % ("no answer; epilogue: looked at", 1), "unknown"),
        (SAYS % ("cannot connect to server x (errno=111) Connection refused", 111), "temporary"),
        (SAYS % ("submit error (Bad UID for job execution MSG=ruserok failed validating ada)", 175), "other"),
    ],
)
def test_what_is_refused_for_something_else_is_asked_once(at_site, tmp_path, words, kind):
    at_site.answers(**{"with": words})
    assert at_site.scheduler.submit(request_of(at_site.scheduler, tmp_path), 60.0).kind == kind
    assert at_site.asked() == ["with"] and not os.path.exists(at_site.scheduler._epilogue + torque.REFUSED)


def test_a_resource_of_hers_that_nobody_knows_is_no_word_on_the_epilogue(at_site, tmp_path):
    at_site.answers(**{"with": UNKNOWN, "without": UNKNOWN})
    answer = at_site.scheduler.submit(request_of(at_site.scheduler, tmp_path), 60.0)
    assert answer.kind == "permanent" and at_site.asked() == ["with", "without"]
    assert "epilogue=" in at_site.scheduler.head(b"true\n")


def test_hers_stays_whatever_the_site_says_of_it(at_site, tmp_path):
    at_site.answers(**{"with": UNKNOWN})
    request = request_of(at_site.scheduler, tmp_path, b"#!/bin/sh\n#PBS -l epilogue=/home/ada/mine\ntrue\n")
    assert at_site.scheduler.submit(request, 60.0).kind == "permanent"
    assert at_site.asked() == ["with"] and "epilogue=/home/ada/mine" in open(request.script).read()


def test_without_the_time_for_a_second_call_it_waits(at_site, tmp_path):
    """Killed halfway, its outcome would be unknown."""
    at_site.answers(**{"with": UNKNOWN})
    answer = at_site.scheduler.submit(request_of(at_site.scheduler, tmp_path), torque.LEAST_SECONDS - 0.1)
    assert answer.kind == "temporary" and at_site.asked() == ["with"]


# -- Slurm's imitation of qsub -----------------------------------------------------------------------------------------


def test_slurms_qsub_gets_every_word_in_quotes():
    request = Request(
        script="/w 1/runner", folder="/w 1", name="n.abcdefgh", token="abcdefgh", variables=[], output="/w 1/$o%",
        error="/w 1/e", join=False, hold=True, rerun=False, directives={}, start=None,
    )  # fmt: skip
    words = slurm_torque.arguments(request)
    assert words[0] == "qsub" and "'/w 1/$o%%'" in words and words[-1] == "'/w 1/runner'" and "-h" in words


@pytest.mark.parametrize(
    "text, kind",
    [
        ("sbatch: error: invalid partition specified: nowhere\n sbatch: error: %s: x" % FAILED, "permanent"),
        ("sbatch: error: %s: Unable to contact slurm controller (connect failure)" % FAILED, "temporary"),
        ("sbatch: error: %s: Job violates accounting/QOS policy (job submit limit)" % FAILED, "limit"),
        ("who knows", "unknown"),
    ],
)
def test_what_sbatch_said_counts_and_not_the_command_around_it(site, tmp_path, text, kind):
    """The command may have any word in it: here it is the folder's name, which would be a refusal for good."""
    site.scheduler = choose(None, Settings("slurm-torque", site.bin))
    out = "There was an error running the Slurm sbatch command.\nThe command was:\n'%s'\nand the output was:\n'%s\n'\n"
    site.on("qsub *", out % ("/usr/bin/sbatch -o /home/ada/invalid/authentication/x", text), "", 1)
    request = Request(
        script="/w/runner", folder=str(tmp_path), name="n.abcdefgh", token="abcdefgh", variables=[], output="/w/o",
        error="/w/e", join=True, hold=False, rerun=False, directives={}, start=None, dialect="PBS",
    )  # fmt: skip
    answer = site.scheduler.submit(request, 20.0)
    assert answer.kind == kind and "/home/ada" not in answer.text
