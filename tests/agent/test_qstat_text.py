"""`qstat -f` as an OpenPBS 23.06 printed it, and as nobody should."""

import os
import random

import pytest

from chasqui_agent.schedulers import qstat_text

PATHS = "/opt/pbs/bin:/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games:/opt/pbs/bin"

WRAPPED = """\
Job Id: 6.pbshost
    Job_Name = tagged
    Job_Owner = vaspuser@pbshost
    resources_used.cpupercent = 0
    resources_used.walltime = 00:00:01
    job_state = F
    queue = workq
    server = pbshost
    Checkpoint = u
    ctime = Sun Nov 22 14:48:32 2026
    Error_Path = pbshost:/home/vaspuser/t/tagged.e6
    exec_host = pbshost/5
    exec_vnode = (pbshost:ncpus=1)
    Hold_Types = n
    Join_Path = n
    Resource_List.ncpus = 1
    Resource_List.select = 1:ncpus=1
    substate = 92
    Variable_List = PBS_O_HOME=/home/vaspuser,PBS_O_LOGNAME=vaspuser,
\tPBS_O_PATH=/opt/pbs/bin:/usr/local/bin:/usr/bin:/bin:/usr/local/games:
\t/usr/games:/opt/pbs/bin,PBS_O_MAIL=/var/mail/vaspuser,
\tPBS_O_SHELL=/bin/bash,PBS_O_WORKDIR=/home/vaspuser/t,
\tPBS_O_SYSTEM=Linux,CHASQUI_JOB=abc,B=x y,PBS_O_QUEUE=workq,
\tPBS_O_HOST=pbshost
    comment = Job run at Sun Nov 22 at 14:48 on (pbshost:ncpus=1) and finished
    etime = Sun Nov 22 14:48:32 2026
    run_count = 1
    Stageout_status = 1
    Exit_status = 0
    Submit_arguments = -N tagged -v CHASQUI_JOB=abc,B=x y ok.sh
    history_timestamp = 1795358914
    project = _pbs_project_default
    Submit_Host = pbshost

"""
ARRAY = """\
Job Id: 10464[].pbshost
    Job_Name = xarr
    job_state = B
    queue = workq
    Hold_Types = n
    array = True
    array_state_count = Queued:0 Running:2 Exiting:0 Expired:1\x20
    array_indices_submitted = 1-3
    array_indices_remaining = -
    Exit_status = 0

"""
HELD = (
    """\
Job Id: 341.pbshost
    Job_Name = depjob2
    job_state = H
    depend = afterok:340.pbshost@pbshost
    Hold_Types = s
    substate = 22
    Variable_List = PBS_O_HOME=/home/vaspuser,PBS_O_LOGNAME=vaspuser,PBS_O_PATH=%s,PBS_O_WORKDIR=/home/vaspuser/t
    Submit_arguments = -N depjob2 -W depend=afterok:340.pbshost ok.sh
"""
    % PATHS
)


def test_an_ended_job_wrapped_at_79_columns():
    job = qstat_text.parse(WRAPPED)["6.pbshost"]
    assert (job.name, job.state, job.substate, job.exit) == ("tagged", "F", 92, 0)
    assert (job.holds, job.queue, job.host, job.counts) == ("n", "workq", "pbshost/5", {})
    assert job.comment == "Job run at Sun Nov 22 at 14:48 on (pbshost:ncpus=1) and finished"
    assert job.arguments == "-N tagged -v CHASQUI_JOB=abc,B=x y ok.sh"
    assert job.variables["PBS_O_PATH"] == PATHS
    assert job.variables["PBS_O_WORKDIR"] == "/home/vaspuser/t"
    assert (job.variables["CHASQUI_JOB"], job.variables["B"]) == ("abc", "x y")
    assert job.variables["PBS_O_HOST"] == "pbshost"


def test_several_jobs():
    found = qstat_text.parse(WRAPPED + ARRAY + HELD)
    assert list(found) == ["6.pbshost", "10464[].pbshost", "341.pbshost"]
    assert found["10464[].pbshost"].counts == {"Queued": 0, "Running": 2, "Exiting": 0, "Expired": 1}
    held = found["341.pbshost"]
    assert (held.state, held.holds, held.exit, held.comment) == ("H", "s", None, "")
    assert held.variables["PBS_O_PATH"] == PATHS


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A=007,B=1", {"A": "007", "B": "1"}),
        ("A=,PBS_O_QUEUE=workq", {"A": "", "PBS_O_QUEUE": "workq"}),
        (r"A=a\,b,C=d", {"A": "a,b", "C": "d"}),
        (r"PBS_O_WORKDIR=/home/u/dir sp\,ace,B=1", {"PBS_O_WORKDIR": "/home/u/dir sp,ace", "B": "1"}),
        ("A=a=b", {"A": "a=b"}),
        ("A=x y", {"A": "x y"}),
        ("A={x:1}", {"A": "{x:1}"}),
        (r"A=\"q\",B=it\'s", {"A": '"q"', "B": "it's"}),
        ("A=not,escaped,B=1", {"A": "not,escaped", "B": "1"}),  # as versions print it that escape nothing
        ("A=1,A=2", {"A": "1"}),
        ("BASH_FUNC_m%%=() {  eval 1\n},B=1", {"BASH_FUNC_m%%": "() {  eval 1\n}", "B": "1"}),
        ("A=end\\", {"A": "end\\"}),
        ("", {}),
        (",,,", {}),
        ("no equals sign", {}),
    ],
)
def test_variables(text, expected):
    assert qstat_text.variables(text) == expected


def test_a_line_break_in_a_variable_hides_nothing():
    text = WRAPPED.replace("B=x y", "B=x\ny\n    job_state = R\n    Exit_status = x")
    job = qstat_text.parse(text)["6.pbshost"]
    assert job.state == "F"
    assert job.variables["B"].startswith("x\ny")
    assert job.variables["PBS_O_LOGNAME"] == "vaspuser"


def test_no_answer_no_jobs():
    assert qstat_text.parse("") == {}
    assert qstat_text.parse("qstat: Unknown Job Id 6.pbshost\n") == {}
    assert qstat_text.parse("Job Id: \n    job_state = R\n") == {}


def test_an_answer_that_stops_after_any_line_is_read_as_far_as_it_goes():
    lines = (WRAPPED + HELD).splitlines(True)
    whole = qstat_text.parse("".join(lines))
    for count in range(len(lines)):
        found = qstat_text.parse("".join(lines[:count]))
        assert list(found) == list(whole)[: len(found)]
        for job in found.values():
            known = whole[job.id]
            assert job.name in ("", known.name)
            assert job.state in ("", known.state)
            assert job.exit in (None, known.exit)
            assert set(job.variables) <= set(known.variables)


def test_noise_is_no_error():
    chance = random.Random(20260801)
    text = WRAPPED + ARRAY + HELD
    for _ in range(300):
        start = chance.randrange(len(text))
        noise = os.urandom(chance.randrange(1, 60)).decode("utf-8", "replace")
        damaged = text[:start] + noise + text[start + chance.randrange(40) :]
        assert len(qstat_text.parse(damaged)) <= 4
    assert qstat_text.parse("Job Id: 1.x\n" * 5000).keys() == {"1.x"}
    big = qstat_text.parse("Job Id: 1.x\n    Variable_List = " + "A=b," * 100000 + "\n    Exit_status = " + "9" * 100)
    assert (big["1.x"].exit, big["1.x"].variables) == (None, {"A": "b"})
