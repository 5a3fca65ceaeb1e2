"""Slurm: its answers as a real one gave them (tests/slurm/captures), and #SBATCH lines as users write them."""

import json
import os
from collections import namedtuple

import pytest

from chasqui_agent import directives, sbatch
from chasqui_agent.schedulers import base, slurm, slurm_refusals, slurm_text
from chasqui_agent.schedulers.base import Request, Sought

CAPTURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "slurm", "captures")


def capture(name):
    with open(os.path.join(CAPTURES, name + ".json"), encoding="ascii") as stream:
        return json.load(stream)


def by_name(rows):
    """The rows of each job, by the job's name."""
    found = {}
    for row in rows:
        found.setdefault(row.name.split(" |")[0], []).append(row)
    return found


# -- asking ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, state, queued, running",
    [
        ("running", "R", 0, 1),
        ("held", "H", 1, 0),
        ("held by admin", "Q", 1, 0),
        ("later", "Q", 1, 0),
        ("too long", "Q", 1, 0),
        ("large", "Q", 1, 0),
        ("never", "Q", 1, 0),
        ("stopped", "S", 0, 1),
        ("completing", "E", 0, 1),
        ("array begun", "B", 8, 2),
        ("array held", "H", 3, 0),
    ],
)
@pytest.mark.parametrize("question", ["rows", "ended"])
def test_live_jobs(question, name, state, queued, running):
    read = slurm_text.rows if question == "rows" else slurm_text.ended_rows
    found = by_name(read(capture("squeue")[question]))[name]
    job = slurm_text.live(found, "")
    assert (job.state, job.queued, job.running) == (state, queued, running)
    assert job.id.endswith("[]") == name.startswith("array") and not any(slurm_text.is_over(row) for row in found)


@pytest.mark.parametrize(
    "name, code, why",
    [
        ("ok", 0, ""),
        ("three", 3, ""),
        ("killed", 265, "killed (265)"),
        ("nowhere", 309, "Slurm could not begin it (JobLaunchFailure)"),
        ("array done", 0, ""),
        ("limit", 271, "walltime"),
        ("lost", 265, "node lost"),
        ("deleted", 271, base.DELETED),
        ("deleted early", 271, base.DELETED),
    ],
)
def test_ended_jobs(name, code, why):
    found = by_name(slurm_text.ended_rows(capture("squeue")["ended"]))[name]
    told = slurm_text.ended(found, "")
    assert all(slurm_text.is_over(row) for row in found)
    assert (told.exit, told.why, told.lost) == (code, why, False)
    assert name not in by_name(slurm_text.rows(capture("squeue")["rows"]))


def test_why_a_job_does_not_start():
    rows = slurm_text.rows(capture("squeue")["rows"])
    assert {row.name: slurm_text.note(row) for row in rows if slurm_text.note(row)} == {
        "too long": "PartitionTimeLimit",
        "never": "DependencyNeverSatisfied",
        "held by admin": "JobHeldAdmin",
    }


def row(state="F", task="", code="0", name="", command="", reason="None"):
    return slurm_text.Row("7[]" if task else "7", task, state, reason, name, code, command)


@pytest.mark.parametrize(
    "states, code, why",
    [
        (["CD", "CD"], 0, ""),
        (["CA", "CA"], 271, base.DELETED),
        (["CD", "CA"], 271, base.DELETED + " in part"),
        (["CD", "TO"], 265, "walltime"),
        (["OOM"], 265, "memory"),
        (["PR"], 265, "preempted"),
        (["DL"], 265, "deadline"),
        (["BF"], 265, "node lost"),
    ],
)
def test_what_became_of_a_job_or_array(states, code, why):
    told = slurm_text.ended([row(state, str(index)) for index, state in enumerate(states)], "")
    assert (told.exit, told.why, told.lost) == (code, why, False)


def test_a_job_that_went_to_another_cluster_is_lost():
    assert slurm_text.ended([row("RV")], "").lost


@pytest.mark.parametrize(
    "text, code", [("0", 0), ("768", 3), ("9", 265), ("3:0", 3), ("0:9", 265), ("", None), ("N/A", None), ("-1", None)]
)
def test_exit_status(text, code):
    assert slurm_text.exit_status(text) == code


def test_a_submission_is_known_by_its_name_or_its_runner():
    sought = {"abcdefgh": Sought("abcdefgh", "job.abcdefgh", "/w/job")}
    for name, command, found in (
        ("job.abcdefgh", "/w/job/.chasqui/runner.abcdefgh", "abcdefgh"),
        ("renamed", "/w/job/.chasqui/runner.abcdefgh", "abcdefgh"),
        ("beat.abcdefgh", "/root/heartbeat/script.3", "abcdefgh"),
        ("job", "/w/job/sub.sh", ""),
        ("job.zzzzzzzz", "/w/job/.chasqui/runner.zzzzzzzz", ""),
    ):
        assert slurm_text.token_of(row(name=name, command=command), sought) == found


@pytest.mark.parametrize("text", ["", "\n", "garbage\n", "slurm_load_jobs error: no\n", "\x1f" * 9 + "\n", "1\x1f2\n"])
def test_noise_is_no_job(text):
    assert slurm_text.rows(text) == []
    assert [found for found in slurm_text.ended_rows(text) if found.state in ("R", "PD", "F")] == []


# -- submitting --------------------------------------------------------------------------------------------------------

KINDS = {"INACTIVE": "temporary", "DRAIN": "temporary", "AllocNodes": "other", "hangs": "unknown", "down": "temporary"}


@pytest.mark.parametrize("told", capture("sbatch")["refused"], ids=lambda told: told["options"])
def test_refusals_that_were_seen(told):
    refusal = slurm_refusals.classify(told["code"], told["err"])
    assert refusal.kind == KINDS.get(told["options"], "permanent")
    assert refusal.here == (told["options"] == "AllocNodes") and refusal.learn is None


FAILED = "sbatch: error: Batch job submission failed: "
POLICY = FAILED + "Job violates accounting/QOS policy (job submit limit, user's size"


@pytest.mark.parametrize(
    "code, text, kind",
    [
        (1, "sbatch: error: QOSMaxSubmitJobPerUserLimit\n" + POLICY, "limit"),
        (1, "sbatch: error: AssocMaxSubmitJobLimit\n" + POLICY, "limit"),
        (1, "sbatch: error: AssocGrpSubmitJobsLimit\n" + POLICY, "limit"),
        (1, POLICY, "limit"),
        (1, "sbatch: error: QOSMaxWallDurationPerJobLimit\n" + POLICY, "permanent"),
        (1, "sbatch: error: QOSMaxNodePerJobLimit\n" + POLICY, "permanent"),
        (1, "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n", "temporary"),
        (None, "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n", "unknown"),
        (1, FAILED + "Unable to contact slurm controller (receive failure)", "unknown"),
        (1, FAILED + "Zero Bytes were transmitted or received", "unknown"),
        (1, FAILED + "Slurm backup controller in standby mode", "temporary"),
        (1, "sbatch: error: Munge encode failed: Failed to access \"/run/munge/munge.socket.2\"\n", "temporary"),
        (1, FAILED + "Protocol authentication error", "unknown"),
        (1, FAILED + "Invalid account or account/partition combination", "permanent"),
        (1, FAILED + "Requested time limit is invalid (missing or exceeds)", "permanent"),
        (1, FAILED + "User's group not permitted to use this partition", "permanent"),
        (1, FAILED + "Unspecified error", "other"),
        (1, "", "unknown"),
        (7, "Your allocation has expired. See https://example.org\n", "unknown"),
        (-9, "", "unknown"),
        (0, "", "unknown"),
    ],
)
def test_refusals(code, text, kind):
    assert slurm_refusals.classify(code, text).kind == kind


def request(**more):
    values = {"script": "/w/.chasqui/runner.t", "folder": "/w", "name": "job.t", "token": "t", "variables": []}
    values.update({"output": "/w/o", "error": "/w/e", "join": False, "hold": False, "rerun": False, "directives": {}})
    return Request(**dict(values, **more))


@pytest.mark.parametrize(
    "more, words",
    [
        ({}, "--no-requeue --output=/w/o --error=/w/e"),
        ({"hold": True, "rerun": True, "join": True}, "--requeue --output=/w/o --hold"),
        ({"start": 0.0}, "--no-requeue --output=/w/o --error=/w/e --begin=1970-01-01T00:00:00"),
        (
            {"output": "/w/100%/" + directives.EACH, "error": directives.OWN_ID + "^%N^", "directives": {"J": "1-2"}},
            "--no-requeue --output=/w/100%%/%a --error=%A%N",
        ),
    ],
)
def test_the_call(more, words, monkeypatch):
    monkeypatch.setattr("time.localtime", __import__("time").gmtime)
    assert slurm.arguments(request(**more)) == ["sbatch", "--parsable", "--job-name=job.t"] + words.split() + [
        "/w/.chasqui/runner.t"
    ]


# -- directives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, found",
    [
        ("--job-name=a", [("job-name", "a")]),
        ("--job-name a", [("job-name", "a")]),
        ("-J a", [("job-name", "a")]),
        ("-Ja -n4 # why", [("job-name", "a"), ("ntasks", "4")]),
        ("-J 'a b' --comment=\"it's\"", [("job-name", "a b"), ("comment", "it's")]),
        ("--exclusive --nodes 2", [("exclusive", ""), ("nodes", "2")]),
        ("--exclusive=user -O -N 2", [("exclusive", "user"), ("overcommit", ""), ("nodes", "2")]),
        ("-HO", [("hold", ""), ("overcommit", "")]),
        ("-sn 2", [("oversubscribe", "n"), ("", "2")]),
        ("hetjob", [("", "hetjob")]),
        ("--time", [("time", "")]),
        ("'open", [("", "'open")]),
        ("", []),
    ],
)
def test_options(line, found):
    assert sbatch.options(b"#!/bin/sh\n#SBATCH " + line.encode("ascii") + b"\n") == found


def test_reading_ends_at_the_first_command():
    script = b"#!/bin/sh\n# words\n\n#SBATCH -n 1\n ##SBATCH -n 2\n #SBATCH -n 3\n#SBATCHX\ntrue\n#SBATCH -n 4\n"
    assert sbatch.options(script) == [("ntasks", "1")]


@pytest.mark.parametrize(
    "script, whose",
    [
        (b"", ""),
        (b"#SBATCH -n 1\n", "SBATCH"),
        (b"#PBS -N a\n", "PBS"),
        (b"#SBATCH -n 1\n#PBS -N a\n", "PBS"),
        (b"true\n#SBATCH -n 1\n", ""),
        (b"#SBATCH\n", ""),
    ],
)
def test_whose_directives_count(script, whose):
    assert directives.dialect(script) == whose


@pytest.mark.parametrize(
    "lines, found",
    [
        (["-J a -p long -A grant --qos=high"], {"N": "a", "q": "long", "A": "grant", "P": "high", "j": "oe"}),
        (["--export=ALL,A=1,B", "--hold"], {"v": "A=1,B", "h": "", "j": "oe"}),
        (["--export NONE"], {"v": "", "j": "oe"}),
        (["-o out.%j -e err.%x -J a"], {"o": "out." + directives.OWN_ID, "e": "err.a", "N": "a"}),
        (["-o %A_%a.%N"], {"o": directives.OWN_ID + "_" + directives.EACH + ".^%N^", "j": "oe"}),
        (["-o 50%%", "-e \\\\%j"], {"o": "50%", "e": "%j"}),
        (["-o a:b", "-e /x:y/z"], {"o": "./a:b", "e": "/x:y/z"}),
        (["--array=0-9:3%2"], {"J": "0-9:3", "j": "oe"}),
        (["--array 5,7-8"], {"J": "5-5,7-8", "j": "oe"}),
        (["-t 90"], {"l": "walltime=5400", "j": "oe"}),
        (["-n 4 --mem=1G"], {"j": "oe"}),
    ],
)
def test_letters(lines, found):
    script = "#!/bin/sh\n" + "".join("#SBATCH %s\n" % line for line in lines)
    assert directives.asked(script.encode("ascii")) == found


@pytest.mark.parametrize(
    "text, seconds",
    [("30", 1800), ("1:30", 90), ("2:00:01", 7201), ("1-0", 86400), ("1-02:03", 93780), ("1-02:03:04", 93784)],
)
def test_times(text, seconds):
    assert directives.options(b"#SBATCH -t " + text.encode("ascii"))[0] == ("l", "walltime=%d" % seconds)


@pytest.mark.parametrize("text", ["INFINITE", "x", "1:2:3:4", ""])
def test_times_that_are_none(text):
    assert "l" not in directives.asked(b"#SBATCH --time=" + text.encode("ascii"))


@pytest.mark.parametrize(
    "asked, indices",
    [("1-1,3-3,5-7", [1, 3, 5, 6, 7]), ("0-4:2", [0, 2, 4]), ("1-2,x", []), ("0-9999999,1-2", []), ("", [])],
)
def test_elements(asked, indices):
    assert list(directives.elements({"J": asked})) == indices


def test_the_runners_first_lines():
    script = b"#!/bin/sh\n#SBATCH -J a -n 2 --wait --exclusive -o x\n#SBATCH --comment='a \"b\" # c' hetjob -p long\n"
    assert sbatch.head(script, "/bin/bash") == (
        '#!/bin/bash -l\n#SBATCH --ntasks=2\n#SBATCH --exclusive\n#SBATCH --comment="a \\"b\\" # c"\n'
        "#SBATCH hetjob\n#SBATCH --partition=long\n"
    )
    assert sbatch.options(sbatch.head(script, "/bin/bash").encode("ascii"))[2] == ("comment", 'a "b" # c')


def test_a_beat_asks_for_next_to_nothing():
    found = slurm.Slurm(None, namedtuple("Settings", "pbs_bin")("")).beat_head({"q": "long", "P": "high"})
    assert found == [
        "#!/bin/sh",
        "#SBATCH --qos=high",
        "#SBATCH --partition=long",
        "#SBATCH --ntasks=1",
        "#SBATCH --time=5",
    ]
