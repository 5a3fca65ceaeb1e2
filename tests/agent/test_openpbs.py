"""The `openpbs` scheduler against commands that say what an OpenPBS 23.06 said, hang, lie, or leave things behind."""

import os
import shlex
import signal
import sys
import time
from collections import namedtuple

import pytest

from agent.agentroot import until
from chasqui_agent.runner import shell_path
from chasqui_agent.schedulers import choose, openpbs, pbs_commands
from chasqui_agent.schedulers.base import (
    DELETED,
    EVERYWHERE,
    Ended,
    Live,
    NotNow,
    Request,
    Snapshot,
    Sought,
    Unreachable,
)

Settings = namedtuple("Settings", "scheduler pbs_bin")
DOWN = "Connection refused\nqselect: cannot connect to server pbshost (errno=15010)\n"
NO_HISTORY = "qselect: PBS is not configured to maintain job history\n"


class Site:
    """A folder of PBS commands that answer as they are told, and write down how they were called."""

    def __init__(self, path):
        self.bin = str(path / "pbs" / "bin")
        self.work = str(path / "work")
        os.makedirs(self.bin)
        os.makedirs(self.work)
        self._log = str(path / "calls")
        self._rules = []
        self.scheduler = choose(None, Settings("openpbs", self.bin))
        self.user = openpbs._user()
        for name in ("qsub", "qselect", "qstat", "qdel", "qrls", "qalter"):
            self._write(name)

    def on(self, pattern, out="", err="", code=0, do=""):
        """What to answer a call whose words match `pattern` (a shell pattern); the latest rule counts. do: shell text
        that runs first."""
        lines = ["printf %%s %s" % shlex.quote(out), "printf %%s %s >&2" % shlex.quote(err), "exit %d" % code]
        quoted = "*".join(shlex.quote(part) if part else "" for part in pattern.split("*"))
        self._rules.insert(0, "%s)\n%s\n;;\n" % (quoted, "\n".join([do] + lines)))
        for name in os.listdir(self.bin):
            self._write(name)

    def _write(self, name):
        text = "#!/bin/sh\n{ printf '%s\\037' " + name + ' "$@"; echo; } >>' + shlex.quote(self._log) + "\n"
        text += 'case "' + name + ' $*" in\n' + "".join(self._rules) + "esac\n"
        self.program(name, text + 'echo "not expected: $*" >&2\nexit 99\n')

    def program(self, name, text):
        path = os.path.join(self.bin, name)
        with open(path + ".new", "w") as stream:
            stream.write(text)
        os.chmod(path + ".new", 0o755)
        os.rename(path + ".new", path)

    def jobs(self, every="", running="", held="", elements_running="", elements_queued=""):
        """Answers for the qselects of a round: ids, with spaces between."""
        asked = {
            "": every,
            " -s RESUB": running,
            " -s H": held,
            " -T -s RESUB": elements_running,
            " -T -s QHW": elements_queued,
        }
        for words, ids in asked.items():
            self.on("qselect -u %s%s" % (self.user, words), "".join(word + "\n" for word in ids.split()))

    def calls(self):
        """The calls so far, each a list of words."""
        if not os.path.exists(self._log):
            return []
        with open(self._log) as stream:
            return [call.split("\037") for call in stream.read().split("\037\n")[:-1]]

    def verbs(self):
        return [call[0] for call in self.calls()]


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def record(job_id, state, **more):
    """The text of `qstat -f -w` for one job."""
    values = dict({"Job_Name": "n", "job_state": state, "Hold_Types": "n", "substate": 42}, **more)
    return "Job Id: %s\n" % job_id + "".join("    %s = %s\n" % item for item in values.items()) + "\n"


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        with open("/proc/%d/stat" % pid) as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True


def read_pid(path):
    return int(until(lambda: os.path.exists(path) and open(path).read().strip(), "a pid in %s" % path))


# -- the round -------------------------------------------------------------------------------------------------------


def test_nothing_there_is_one_call(site):
    site.jobs()
    snapshot = site.scheduler.query([], [])
    assert (snapshot.live, snapshot.ended, snapshot.calls) == ({}, {}, 1)
    assert site.calls() == [["qselect", "-u", site.user]]


def test_three_calls_tell_running_held_and_queued(site):
    site.jobs("1.pbshost 2.pbshost 3.pbshost 4.pbshost", running="1.pbshost 2.pbshost", held="3.pbshost")
    snapshot = site.scheduler.query(["1.pbshost", "3.pbshost"], [], ["3.pbshost"])
    assert {job.id: (job.state, job.queued, job.running) for job in snapshot.live.values()} == {
        "1.pbshost": ("R", 0, 1),
        "2.pbshost": ("R", 0, 1),
        "3.pbshost": ("H", 1, 0),
        "4.pbshost": ("Q", 1, 0),
    }
    assert snapshot.calls == 3
    assert site.verbs() == ["qselect"] * 3
    assert snapshot.knows("1.pbshost")
    assert not snapshot.knows("9.pbshost")


def test_one_call_where_all_are_ours_and_their_marks_tell_the_rest(site):
    site.jobs("1.pbshost 2.pbshost 3.pbshost")
    ours = ["1.pbshost", "2.pbshost", "3.pbshost"]
    snapshot = site.scheduler.query(ours, [], ["2.pbshost"], ours)
    assert list(snapshot.live.values()) == [Live(job_id, "", "", 1, 0) for job_id in ours]
    assert snapshot.calls == 1


def test_a_second_call_where_holds_of_ours_are_in_doubt(site):
    site.jobs("1.pbshost 2.pbshost 3.pbshost", held="2.pbshost")
    snapshot = site.scheduler.query(["1.pbshost", "2.pbshost", "3.pbshost"], [], ["2.pbshost"], ["1.pbshost"])
    assert [(job.id, job.state) for job in snapshot.live.values()] == [
        ("1.pbshost", ""),
        ("2.pbshost", "H"),
        ("3.pbshost", "Q"),
    ]
    assert snapshot.calls == 2


def test_a_second_call_where_some_are_not_ours(site):
    site.jobs("1.pbshost 7.pbshost 8.pbshost 9.pbshost", running="1.pbshost 8.pbshost", held="9.pbshost")
    live = site.scheduler.query(["1.pbshost"], [], [], ["1.pbshost"]).live
    assert [(job.id, job.queued, job.running) for job in live.values()] == [
        ("1.pbshost", 0, 1),
        ("7.pbshost", 1, 0),
        ("8.pbshost", 0, 1),
        ("9.pbshost", 1, 0),
    ]
    assert len(site.calls()) == 2


def test_a_job_that_moves_during_the_round_counts_once_and_is_not_missed(site):
    # 1: Q when all were listed, R since; 2: came after the list; 3: R at the list, back in Q; 4: ended in between.
    site.jobs("1.pbshost 3.pbshost 4.pbshost", running="1.pbshost 2.pbshost", held="1.pbshost")
    live = site.scheduler.query([], []).live
    assert {job_id: job.state for job_id, job in live.items()} == {
        "1.pbshost": "R",
        "2.pbshost": "R",
        "3.pbshost": "Q",
        "4.pbshost": "Q",
    }


def test_arrays_count_by_element(site):
    site.jobs(
        "5.pbshost 37[].pbshost 86[].pbshost",
        held="86[].pbshost",
        elements_running="37[1].pbshost 37[2].pbshost 5.pbshost",
        elements_queued="37[3].pbshost 86[1].pbshost 86[2].pbshost 86[3].pbshost",
    )
    live = site.scheduler.query([], []).live
    assert live == {
        "5.pbshost": Live("5.pbshost", "R"),
        "37[].pbshost": Live("37[].pbshost", "B", "", 1, 2),
        "86[].pbshost": Live("86[].pbshost", "H", "", 3, 0),
    }


@pytest.mark.parametrize(
    "code, err",
    [(162, DOWN), (160, "Unknown Host.\n"), (255, ""), (1, "qselect: strange\n"), (183, "End of File\n")],
)
@pytest.mark.parametrize("which", ["", " -s RESUB", " -s H"])
def test_an_answer_with_a_bad_exit_code_is_no_answer(site, code, err, which):
    site.jobs("1.pbshost 2.pbshost 3.pbshost", running="1.pbshost")
    site.on("qselect -u %s%s" % (site.user, which), "1.pbshost\n", err, code)
    with pytest.raises(Unreachable):
        site.scheduler.query(["1.pbshost", "2.pbshost"], [])


def test_the_server_s_words_are_kept(site):
    site.on("qselect *", "", DOWN, 162)
    with pytest.raises(Unreachable, match="Connection refused; qselect: cannot connect to server pbshost"):
        site.scheduler.query([], [])


def test_a_server_that_hangs_is_unreachable(site):
    site.on("qselect *", do="sleep 600")
    site.scheduler.query_seconds = 0.3
    with pytest.raises(Unreachable, match="did not answer"):
        site.scheduler.query([], [])


def test_banners_of_a_wrapper_are_no_ids(site):
    site.on("qselect -u %s" % site.user, "Welcome to the cluster!\n\n1.pbshost\nnot an id\n")
    site.on("qselect -u %s -s RESUB" % site.user, "Welcome to the cluster!\n1.pbshost\n")
    assert list(site.scheduler.query([], []).live) == ["1.pbshost"]


def test_a_truncated_answer_is_not_believed(site, monkeypatch):
    monkeypatch.setattr(pbs_commands, "MOST_OUTPUT", 25)
    site.jobs("1.pbshost 2.pbshost 3.pbshost 4.pbshost")
    with pytest.raises(Unreachable, match="too long"):
        site.scheduler.query([], [])


# -- in doubt --------------------------------------------------------------------------------------------------------


def test_one_qstat_tells_of_all_that_are_missing(site):
    site.jobs("7.pbshost", running="7.pbshost")
    ended = record("1.pbshost", "F", Exit_status=3, substate=93) + record("2.pbshost", "R")
    site.on("qstat -x -f -w *", ended, "qstat: Unknown Job Id 3.pbshost\n", 153)
    snapshot = site.scheduler.query(["1.pbshost", "2.pbshost", "3.pbshost", "7.pbshost"], [])
    assert snapshot.ended == {"1.pbshost": Ended("1.pbshost", 3, "", "", False)}
    assert snapshot.live["2.pbshost"] == Live("2.pbshost", "R")
    assert snapshot.knows("3.pbshost")
    assert snapshot.calls == 3
    assert site.calls()[-1] == ["qstat", "-x", "-f", "-w", "1.pbshost", "2.pbshost", "3.pbshost"]


def test_without_history_the_live_ones_are_asked_again(site):
    site.jobs()
    words = "".join("qstat: PBS is not configured to maintain job history %s.pbshost\n" % i for i in (6, 7))
    site.on("qstat -x *", "", words)
    site.on("qstat -f -w *", record("7.pbshost", "Q"), "qstat: Unknown Job Id 6.pbshost\n", 153)
    snapshot = site.scheduler.query(["6.pbshost", "7.pbshost"], [])
    assert list(snapshot.live) == ["7.pbshost"]
    assert snapshot.ended == {}
    assert snapshot.knows("6.pbshost")


def test_what_qstat_says_nothing_of_was_not_asked(site):
    site.jobs("5.pbshost")
    site.on("qstat -x *")  # exit 0 and an empty answer
    snapshot = site.scheduler.query(["5.pbshost", "6.pbshost"], [])
    assert snapshot.knows("5.pbshost") and not snapshot.knows("6.pbshost")


def test_a_server_that_says_nothing_at_all_was_not_asked_either(site):
    site.jobs()
    site.on("qstat -x *")
    with pytest.raises(Unreachable, match="says nothing of the 1 jobs"):
        site.scheduler.query(["6.pbshost"], [])


@pytest.mark.parametrize("code", [255, 162, 1, 183])
def test_a_qstat_that_fails_ends_the_round(site, code):
    site.jobs()
    site.on("qstat *", record("6.pbshost", "F", Exit_status=0), DOWN, code)
    with pytest.raises(Unreachable):
        site.scheduler.query(["6.pbshost"], [])


def test_at_most_twenty_at_once_and_each_in_its_turn(site):
    site.jobs()
    ids = ["%d.pbshost" % number for number in range(1, 51)]
    site.on("qstat -x *", "", "".join("qstat: Unknown Job Id %s\n" % i for i in ids), 153)
    seen = set()

    def another():
        snapshot = site.scheduler.query(ids, [])
        known = [i for i in ids if snapshot.knows(i)]
        assert len(known) == 20
        assert sorted(site.calls()[-1][4:]) == sorted(known)
        seen.update(known)
        return len(seen) == 50

    until(another, "every id's turn")


ENDED = [
    # substate, Exit_status, comment as the history has them; what they mean: exit, why
    (92, 0, "Job run at x and finished", (0, "")),
    (93, 137, "Job run at x and failed", (137, "")),
    (91, 271, "Job run at x and terminated by u@pbshost", (271, DELETED)),
    (91, 265, "Job run at x and terminated by u@pbshost", (265, DELETED)),
    (93, 265, "Job run at x and failed", (265, "killed (265)")),
    (93, 271, "Job run at x and failed", (271, "killed (271)")),
    (None, -29, "Job run at x and exceeded resource walltime", (-29, "walltime")),
    (None, -27, "Job run at x and exceeded resource mem", (-27, "memory")),
    (91, -4, "Job run at x and terminated", (-4, "node lost")),
    (None, -20, "Not Running: Not enough free nodes and terminated", (-20, "node lost")),
    (None, -77, "Job run at x and exceeded resource gpus", (-77, "gpus")),
    (93, -1, "", (-1, "ended by PBS (-1)")),
    (91, None, "", (None, openpbs.DELETED_EARLY)),
    (92, None, "", (None, openpbs.DEPENDENCY)),
    (92, "what", "", (None, openpbs.DEPENDENCY)),
]


@pytest.mark.parametrize("substate, status, comment, expected", ENDED)
def test_ends(site, substate, status, comment, expected):
    site.jobs()
    values = {"substate": substate, "Variable_List": "CHASQUI_TOKEN=abcdefgh,B=1", "comment": comment}
    if status is not None:
        values["Exit_status"] = status
    site.on("qstat -x *", record("6.pbshost", "F", **values))
    ended = site.scheduler.query(["6.pbshost"], []).ended["6.pbshost"]
    assert ended == Ended("6.pbshost", expected[0], expected[1], "abcdefgh", False)


def test_an_exit_status_of_a_job_that_waits_again_is_not_its_end(site):
    site.jobs()
    site.on("qstat -x *", record("6.pbshost", "Q", Exit_status=-20, substate=10))
    snapshot = site.scheduler.query(["6.pbshost"], [])
    assert snapshot.ended == {}
    assert snapshot.live == {"6.pbshost": Live("6.pbshost", "Q")}


def test_a_job_moved_to_another_server_is_lost(site):
    site.jobs()
    site.on("qstat -x *", record("6.pbshost", "M"))
    assert site.scheduler.query(["6.pbshost"], []).ended["6.pbshost"].lost


def test_a_hold_that_is_not_ours_is_told_apart(site):
    site.jobs("1.pbshost 2.pbshost 3.pbshost", held="1.pbshost 2.pbshost 3.pbshost")
    text = record("2.pbshost", "H", Hold_Types="s") + record("3.pbshost", "H", Hold_Types="us")
    site.on("qstat -x -f -w 2.pbshost 3.pbshost", text)
    snapshot = site.scheduler.query(["1.pbshost", "2.pbshost", "3.pbshost"], [], ["1.pbshost"])
    assert {job_id: job.state for job_id, job in snapshot.live.items()} == {
        "1.pbshost": "H",
        "2.pbshost": "Q",
        "3.pbshost": "H",
    }
    assert snapshot.notes == {"2.pbshost": "held by PBS (Hold_Types s)"}


def test_a_held_array_in_doubt_keeps_its_count(site):
    site.jobs("86[].pbshost", held="86[].pbshost", elements_queued="86[1].pbshost 86[2].pbshost")
    array = record("86[].pbshost", "H", Hold_Types="u", array_state_count="Queued:2 Running:0 Exiting:0 Expired:0 ")
    site.on("qstat *", array)
    assert site.scheduler.query(["86[].pbshost"], []).live == {"86[].pbshost": Live("86[].pbshost", "H", "", 2, 0)}


def test_why_a_job_waits_for_ever(site):
    never = "Can Never Run: Insufficient amount of resource: ncpus (R: 999 A: 8 T: 8)"
    text = record("20.pbshost", "Q", comment=never) + record("21.pbshost", "Q", comment="Not Running: server limit")
    site.on("qstat *", text + record("341.pbshost", "H", Hold_Types="s"))
    assert site.scheduler.waiting_reasons(["20.pbshost", "21.pbshost", "341.pbshost"]) == {
        "20.pbshost": never,
        "341.pbshost": "held by PBS (Hold_Types s)",
    }
    assert site.scheduler.waiting_reasons([]) == {}


# -- submissions without an id ---------------------------------------------------------------------------------------

LOST = Sought("abcdefgh", "relax.abcdefgh", "/home/u/chasqui/work/j1")


def test_found_live_by_its_name(site):
    site.jobs("224.pbshost 7.pbshost", held="224.pbshost")
    site.on("qselect -x -N relax.abcdefgh", "224.pbshost\n")
    snapshot = site.scheduler.query([], [LOST])
    assert snapshot.live["224.pbshost"] == Live("224.pbshost", "H", "abcdefgh")
    assert snapshot.live["7.pbshost"].token == ""
    assert snapshot.knows("abcdefgh")
    assert "qstat" not in site.verbs()


def test_found_ended_by_its_name(site):
    site.jobs()
    site.on("qselect -x -N relax.abcdefgh", "224.pbshost\n")
    site.on("qstat -x *", record("224.pbshost", "F", Exit_status=0, Variable_List="CHASQUI_TOKEN=abcdefgh"))
    assert site.scheduler.query([], [LOST]).ended["224.pbshost"] == Ended("224.pbshost", 0, "", "abcdefgh", False)


def test_found_by_its_name_without_history(site):
    site.jobs("224.pbshost")
    site.on("qselect -x *", "", NO_HISTORY)
    site.on("qselect -N relax.abcdefgh", "224.pbshost\n")
    site.on("qselect -N other.bcdefghi", "")
    site.on("qstat *", record("224.pbshost", "Q"))
    snapshot = site.scheduler.query([], [LOST, Sought("bcdefghi", "other.bcdefghi", "/w")])
    assert snapshot.live["224.pbshost"].token == "abcdefgh"
    assert [call[:2] for call in site.calls()].count(["qselect", "-x"]) == 1  # the second name does not ask again


@pytest.mark.parametrize(
    "variables, arguments, found",
    [
        ("PBS_O_WORKDIR=/x,CHASQUI_TOKEN=abcdefgh", "", True),
        ("CHASQUI_TOKEN=bcdefghi,PBS_O_WORKDIR=" + LOST.folder, "", False),  # an earlier submission
        ("PBS_O_WORKDIR=" + LOST.folder, "-f /w/.chasqui/runner.abcdefgh", True),
        ("PBS_O_WORKDIR=" + LOST.folder, "own.sh", False),  # by her own payload
        ("PBS_O_WORKDIR=/elsewhere", "", False),
    ],
)
def test_found_under_another_name(site, variables, arguments, found):
    site.jobs("9.pbshost 10.pbshost 2.pbshost", running="2.pbshost")
    site.on("qselect -x -N *")
    text = record("10.pbshost", "Q", Variable_List=variables, Submit_arguments=arguments)
    site.on("qstat -x -f -w 10.pbshost 9.pbshost", text + record("9.pbshost", "Q"))
    snapshot = site.scheduler.query(["2.pbshost"], [LOST])
    assert (snapshot.live["10.pbshost"].token == "abcdefgh") == found
    assert snapshot.live["9.pbshost"].token == ""
    assert snapshot.knows("abcdefgh")


def test_a_name_that_cannot_be_looked_for_ends_the_round(site):
    site.jobs()
    site.on("qselect -x -N *", "", DOWN, 162)
    with pytest.raises(Unreachable):
        site.scheduler.query([], [LOST])


def test_the_snapshot_survives_being_kept(site):
    site.jobs("1.pbshost 86[].pbshost", held="1.pbshost")
    site.on("qstat -x *", record("1.pbshost", "H", Hold_Types="s"), "qstat: Unknown Job Id 5.pbshost\n", 153)
    before = site.scheduler.query(["1.pbshost", "5.pbshost"], [])
    after = Snapshot.from_json(before.to_json())
    assert (after.live, after.ended, after.asked, after.calls, after.notes) == (
        before.live,
        before.ended,
        before.asked,
        before.calls,
        before.notes,
    )
    assert after.knows("5.pbshost")
    everything = Snapshot.from_json(Snapshot({}, {}).to_json())
    assert everything.knows("anything")


# -- submitting ------------------------------------------------------------------------------------------------------


def request(site, **more):
    values = {
        "script": os.path.join(site.work, "runner"),
        "folder": site.work,
        "name": "relax.abcdefgh",
        "token": "abcdefgh",
        "variables": [("CHASQUI_TOKEN", "abcdefgh")],
        "output": site.work + "/o",
        "error": site.work + "/e",
        "join": False,
        "hold": False,
        "rerun": False,
        "directives": {},
    }
    return Request(**dict(values, **more))


@pytest.mark.parametrize(
    "out", ["123.pbshost\n", "123[].pbshost\n", "123.pbs-1.site.org\n", "Charged to p1\n9.pbshost\n"]
)
def test_accepted(site, out):
    site.on("qsub *", out)
    answer = site.scheduler.submit(request(site), 20)
    assert (answer.kind, answer.id) == ("accepted", out.split("\n")[-2])


@pytest.mark.parametrize("out", ["", "123\n", "123[1].pbshost\n", "ok 123.pbshost\n", "1.pbshost\n2.pbshost\n"])
def test_accepted_without_an_id_is_an_unknown_outcome(site, out):
    site.on("qsub *", out)
    assert site.scheduler.submit(request(site), 20).kind == "unknown"


def test_an_id_with_an_exit_code_is_an_unknown_outcome(site):
    site.on("qsub *", "123.pbshost\n", "qsub: post-submit filter failed\n", 1)
    assert site.scheduler.submit(request(site), 20).kind == "unknown"


@pytest.mark.parametrize(
    "code, err, kind, learn",
    [
        (38, "qsub: would exceed complex's per-user limit\n", "limit", EVERYWHERE),
        (173, "qsub: Queue is not enabled\n", "temporary", None),
        (170, "qsub: Unknown queue\n", "permanent", None),
        (183, "Premature end of message\nqsub: End of File\n", "unknown", None),
        (175, "qsub: Bad UID for job execution\n", "other", None),
    ],
)
def test_refused(site, code, err, kind, learn):
    site.on("qsub *", "", err, code)
    answer = site.scheduler.submit(request(site), 20)
    assert (answer.kind, answer.learn) == (kind, learn)
    assert answer.text == "; ".join(err.strip().split("\n"))


def test_the_usage_text_is_left_out(site):
    site.on("qsub *", "", "qsub: illegal -N value\nusage: qsub [-a date_time]\n\t[-C x]\n       qsub --version\n", 2)
    assert site.scheduler.submit(request(site), 20).text == "qsub: illegal -N value"


def test_the_call(site):
    site.on("qsub *", "1.pbshost\n")
    site.scheduler.submit(request(site), 20)
    site.scheduler.submit(request(site, join=True, hold=True, rerun=True, error=site.work + "/o", start=0), 20)
    o, e, runner = [os.path.join(site.work, name) for name in ("o", "e", "runner")]
    plain, rich = site.calls()
    begin = ["qsub", "-f", "-N", "relax.abcdefgh", "-S", shell_path(), "-r"]
    variables = ["-v", "CHASQUI_TOKEN=abcdefgh", runner]
    assert plain == begin + ["n", "-o", o, "-e", e] + variables
    start = time.strftime("%Y%m%d%H%M.%S", time.localtime(0))
    assert rich == begin + ["y", "-j", "oe", "-o", o, "-h", "-a", start] + variables


def as_qsub_reads(text):
    """-v as qsub takes it apart: commas divide, quotes keep a comma and the other quote, and vanish."""
    values, quote, word = [], "", ""
    for position, char in enumerate(text + ","):
        if char == "," and not quote:
            values.append(word)
            word = ""
        elif char == quote or (char in "'\"" and not quote):
            quote = "" if quote else char
        elif char == "\\" and text[position + 1 : position + 2] == ",":
            pytest.fail("the backslash would be taken for the comma's: " + text)
        else:
            word += char
    assert not quote
    return [tuple(word.split("=", 1)) for word in values]


def test_variables_keep_their_values(site, monkeypatch):
    monkeypatch.setenv("FROM_OUTSIDE", "a,b")
    values = [
        ("PLAIN", "x y=z"),
        ("EMPTY", ""),
        ("COMMA", "a,b"),
        ("SINGLE", "it's"),
        ("DOUBLE", '{"x":1,"y":"\\\\"}'),
        ("BOTH", "'\"',\",'"),
        ("SLASH", "a\\,b\\"),
        ("LINES", "a\nb"),
        ("TOKEN", "abcdefgh"),
    ]
    site.on("qsub *", "1.pbshost\n")
    site.scheduler.submit(request(site, variables=[("FROM_OUTSIDE", None)] + values), 20)
    words = site.calls()[0]
    assert as_qsub_reads(words[words.index("-v") + 1]) == [("FROM_OUTSIDE", "a,b")] + values
    assert words.count("-v") == 1


def test_a_variable_that_is_not_set_is_refused_by_name(site):
    answer = site.scheduler.submit(request(site, variables=[("NOT_SET_ANYWHERE", None)]), 20)
    assert answer.kind == "permanent"
    assert "NOT_SET_ANYWHERE" in answer.text
    assert site.calls() == []


def test_past_its_time_the_outcome_is_unknown_and_the_group_is_killed(site, tmp_path):
    pid_file = str(tmp_path / "pid")
    site.on("qsub *", "1.pbshost\n", do="sleep 600 & echo $! >%s; wait" % shlex.quote(pid_file))
    answer = site.scheduler.submit(request(site), 2)
    assert answer.kind == "unknown"
    assert answer.text == "qsub did not answer in 2 seconds"
    pid = read_pid(pid_file)
    until(lambda: not alive(pid), "the end of what the killed qsub had begun")


def test_killed_by_somebody_is_an_unknown_outcome(site):
    site.on("qsub *", do="kill -9 $$")
    answer = site.scheduler.submit(request(site), 20)
    assert (answer.kind, answer.text) == ("unknown", "qsub was ended by signal 9")


def test_a_background_qsub_that_holds_the_output_is_not_waited_for(site, tmp_path):
    pid_file = str(tmp_path / "pid")
    site.on("qsub *", "9.pbshost\n", do="sleep 600 & echo $! >%s" % shlex.quote(pid_file))
    answer = site.scheduler.submit(request(site), 60)
    pid = read_pid(pid_file)
    try:
        assert (answer.kind, answer.id) == ("accepted", "9.pbshost")
        assert alive(pid), "it was waited for, or killed"
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_qsub_that_cannot_be_begun_is_no_submission(site):
    site.program("qsub", "#!/nonexistent/interpreter\n")
    assert site.scheduler.submit(request(site), 20).kind == "temporary"
    site.on("qsub *", "1.pbshost\n")
    assert site.scheduler.submit(request(site, folder=site.work + "/gone"), 20).kind == "temporary"
    assert site.calls() == []


# -- how a command is run --------------------------------------------------------------------------------------------

PROBE = """#!%s -I
import os, stat, sys
def is_open(number):
    try:
        return bool(os.fstat(number))
    except OSError:
        return False
null = os.stat(os.devnull)
print("fds", [n for n in range(3, 256) if is_open(n)])
print("stdin", os.fstat(0).st_rdev == null.st_rdev)
print("cwd", os.getcwd())
print("own session", os.getsid(0) == os.getpid())
for name in sorted(os.environ):
    print("env", name, os.environ[name])
"""


def probe(site, folder):
    site.program("qstat", PROBE % sys.executable)
    return pbs_commands.Commands(site.bin).run(["qstat"], 60, folder).out.split("\n")


def test_it_gets_none_of_our_descriptors_and_nothing_to_read(site, tmp_path):
    held = os.open(str(tmp_path / "lockfile"), os.O_CREAT | os.O_RDWR)
    os.set_inheritable(held, True)
    try:
        lines = probe(site, site.work)
    finally:
        os.close(held)
    assert "fds []" in lines
    assert "stdin True" in lines
    assert "own session True" in lines
    assert "cwd " + os.path.realpath(site.work) in lines


def test_its_environment(site, monkeypatch, tmp_path):
    for name in ("TMPDIR", "PYTHONPATH", "PBS_JOBID", "PBS_O_WORKDIR", "PBS_DPREFIX", "LC_MESSAGES"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("PBS_SERVER", "pbshost")
    link = str(tmp_path / "link")
    os.symlink(site.work, link)
    lines = probe(site, link)
    environ = dict(line.split(" ", 2)[1:] for line in lines if line.startswith("env "))
    assert not {"TMPDIR", "PYTHONPATH", "PBS_JOBID", "PBS_O_WORKDIR", "PBS_DPREFIX", "LC_MESSAGES"} & set(environ)
    assert (environ["PBS_SERVER"], environ["LC_ALL"], environ["PWD"]) == ("pbshost", "C", link)
    assert environ["PATH"] == os.environ["PATH"]


def test_much_output_on_both_sides_is_read_and_bounded(site, monkeypatch):
    site.on(
        "qstat *", do="i=0; while [ $i -lt 3000 ]; do printf '%080d\\n' 1; printf '%080d\\n' 2 >&2; i=$((i+1)); done"
    )
    result = pbs_commands.Commands(site.bin).run(["qstat", "x"], 60)
    assert (result.code, len(result.out), len(result.err), result.whole) == (0, 243000, 243000, True)
    monkeypatch.setattr(pbs_commands, "MOST_OUTPUT", 1000)
    result = pbs_commands.Commands(site.bin).run(["qstat", "x"], 60)
    assert (result.code, len(result.out), len(result.err), result.whole) == (0, 1000, 1000, False)


def test_output_without_end_ends_with_the_time(site, monkeypatch):
    monkeypatch.setattr(pbs_commands, "MOST_OUTPUT", 1000)
    site.on("qstat *", do="exec cat /dev/zero")
    assert pbs_commands.Commands(site.bin).run(["qstat", "x"], 1).code is None


def test_the_exit_code_and_text_of_a_command_that_writes_odd_bytes(site):
    site.on("qstat *", do="printf '\\377\\376\\n'", code=42)
    result = pbs_commands.Commands(site.bin).run(["qstat", "x"], 60)
    assert (result.code, result.out) == (42, "\ufffd\ufffd\n")


def test_other_work_is_done_while_a_submission_is_under_way(site):
    gate = site.work + "/gate"
    site.on("qsub *", do="until [ -e %s ]; do sleep 0.05; done; echo 7.server" % gate)
    answer = site.scheduler.submit(request(site), 60, lambda: open(gate, "w").close())
    assert (answer.kind, answer.id) == ("accepted", "7.server")


def test_other_work_that_outlasts_the_time_does_not_spoil_an_answer_that_is_there(site):
    done = site.work + "/done"
    site.on("qsub *", do="echo 7.server; touch %s" % done)
    meanwhile = lambda: until(lambda: os.path.exists(done), "qsub ran") and time.sleep(1)  # noqa: E731
    assert site.scheduler.submit(request(site), 0.5, meanwhile).kind == "accepted"


def test_a_command_does_not_outlive_other_work_that_is_interrupted(site):
    pid = site.work + "/pid"

    def interrupted():
        until(lambda: os.path.exists(pid), "the command runs")
        raise KeyboardInterrupt

    words = ["/bin/sh", "-c", "echo $$ > %s.new; mv %s.new %s; exec sleep 600" % (pid, pid, pid)]
    with pytest.raises(KeyboardInterrupt):
        pbs_commands.run(words, {"PATH": os.defpath}, "/", 60, interrupted)
    with open(pid) as stream, pytest.raises(ProcessLookupError):
        os.kill(int(stream.read()), 0)


def test_the_end_of_a_command_is_seen_at_once(monkeypatch):
    """Its pipes close a moment before it can be waited for. One that lives on without them is not waited for in a
    loop that never rests."""
    pauses = []

    def sleep(seconds, rest=time.sleep):
        pauses.append(seconds)
        rest(seconds)

    monkeypatch.setattr(pbs_commands.time, "sleep", sleep)
    words = ["/bin/sh", "-c", "exec >&- 2>&-; sleep 0.5; exit 7"]
    assert pbs_commands.run(words, {"PATH": os.defpath}, "/", 60).code == 7
    assert pauses[0] <= 0.001 and len(pauses) < 100


# -- finding PBS -----------------------------------------------------------------------------------------------------


def found(environ, configured=""):
    return [folder for folder, _ in pbs_commands.places(configured, environ)]


def test_places_in_order(tmp_path):
    conf = tmp_path / "pbs.conf"
    conf.write_text("# site\nPBS_SERVER=pbshost\nPBS_EXEC=/opt/special\nPBS_HOME=/var/spool/pbs\n")
    environ = {"PATH": "/usr/bin:/site/bin:.:", "PBS_CONF_FILE": str(conf)}
    assert found(environ)[:4] == ["/usr/bin", "/site/bin", "/opt/special/bin", "/opt/pbs/bin"]
    assert found(environ, "/configured") == ["/configured"]
    assert found({"PBS_CONF_FILE": str(tmp_path / "none")})[0] == "/opt/pbs/bin"


def test_found_by_the_conf_file_and_said_so(site, monkeypatch, tmp_path):
    conf = tmp_path / "pbs.conf"
    conf.write_text("PBS_EXEC='%s'\n" % os.path.dirname(site.bin))
    monkeypatch.setenv("PBS_CONF_FILE", str(conf))
    monkeypatch.setenv("PATH", "/nonexistent")
    assert pbs_commands.Commands().find("qselect") == (os.path.join(site.bin, "qselect"), str(conf))


def test_not_found_says_where_it_looked(tmp_path):
    scheduler = choose(None, Settings("openpbs", str(tmp_path)))
    with pytest.raises(Unreachable, match="no qselect in %s; set pbs_bin" % tmp_path):
        scheduler.query([], [])
    assert scheduler.name_limit == 15


# -- the rest --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 35, 153, 168])
def test_release_and_delete_need_nothing_of_what_is_gone_already(site, code):
    site.on("qrls 5.pbshost", "", "qrls: said something\n", code)
    site.on("qdel 5.pbshost", "", "qdel: said something\n", code)
    site.scheduler.release("5.pbshost")
    site.scheduler.delete("5.pbshost")
    assert site.calls() == [["qrls", "5.pbshost"], ["qdel", "5.pbshost"]]


@pytest.mark.parametrize("verb", ["release", "delete"])
@pytest.mark.parametrize(
    "code, kind", [(162, Unreachable), (255, Unreachable), (160, Unreachable), (222, NotNow), (159, NotNow)]
)
def test_release_and_delete_that_did_not_happen(site, verb, code, kind):
    site.on("q*", "", "Couldn't connect to cluster: pbshost\n", code)
    with pytest.raises(Unreachable) as failure:
        getattr(site.scheduler, verb)("5.pbshost")
    assert failure.type is kind


def test_a_delete_that_hangs(site):
    site.scheduler.query_seconds = 0.3
    site.on("qdel *", do="sleep 600")
    with pytest.raises(Unreachable) as failure:
        site.scheduler.delete("5.pbshost")
    assert failure.type is Unreachable


def test_the_start_of_a_waiting_job_is_moved(site):
    site.on("qalter *")
    assert site.scheduler.move_start("5.pbshost", 0) is True
    assert site.calls() == [["qalter", "-a", time.strftime("%Y%m%d%H%M.%S", time.localtime(0)), "5.pbshost"]]
    site.on("qalter *", "", "qalter: Unknown Job Id 5.pbshost\n", 153)
    assert site.scheduler.move_start("5.pbshost", 0) is False
    site.on("qalter *", "", DOWN, 162)
    with pytest.raises(Unreachable):
        site.scheduler.move_start("5.pbshost", 0)


@pytest.mark.parametrize(
    "said, limit",
    [
        ("pbs_version = 23.06.06\n", 230),
        ("pbs_version = 2021.1.3.20220217134230\n", 230),
        ("pbs_version = 13.1.0.160576\n", 230),
        ("pbs_version = PBSPro_12.2.404.152084\n", 15),
        ("Version: 6.1.2\nCommit: 0\n", 15),
        ("", 15),
    ],
)
def test_name_limit(site, said, limit):
    site.on("qsub --version", said)
    assert site.scheduler.name_limit == limit
    assert site.scheduler.name_limit == limit
    assert site.calls() == [["qsub", "--version"]]


SERVER = """\
Server             Max   Tot   Que   Run   Hld   Wat   Trn   Ext Status
---------------- ----- ----- ----- ----- ----- ----- ----- ----- -----------
pbshost              0    90     0     0     4     0     0     0 Active    \n"""


def test_describe(site):
    site.jobs("1.pbshost 2.pbshost")
    site.on("qsub --version", "pbs_version = 23.06.06\n")
    site.on("qstat -B", SERVER)
    site.on("qselect -x -N *")
    text = "openpbs: PBS 23.06.06, commands in %s (from pbs_bin), server %s answers, history %s, 2 live jobs of %s"
    assert site.scheduler.describe() == text % (site.bin, "pbshost", "on", site.user)
    site.on("qselect -x -N *", "", NO_HISTORY)
    site.on("qselect -N *")
    site.on("qstat -B", "", DOWN, 255)
    assert site.scheduler.describe() == text % (site.bin, "?", "off", site.user)
    site.on("qselect *", "", DOWN, 162)
    with pytest.raises(Unreachable, match="Connection refused"):
        site.scheduler.describe()
