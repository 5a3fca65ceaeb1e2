"""Which ends a retry policy means, and what the next attempt then asks for."""

import pytest

from chasqui_agent import policy, resources, sbatch


def ended(why, code, state="FAIL"):
    return {"state": state, "why": why, "exit": code}


FATES = {
    "exit": ended("exit 7", 7),
    "killed payload": ended("exit 137", 137),
    "killed job": ended("killed (271)", 271),
    "walltime": ended("walltime", -29),
    "memory": ended("memory", -27),
    "node": ended("node lost", -20),
    "lost": ended("gone from the scheduler without a trace", None, "LOST"),
    "terminated": ended("terminated", None),
    "ncpus": ended("ncpus", -24),
}


@pytest.mark.parametrize("word, fates", [
    ("7", ["exit"]), ("1-9", ["exit"]), ("1-255", ["exit", "killed payload"]), ("8", []),
    ("SIGKILL", ["killed payload"]), ("SIGTERM", ["killed job"]), ("walltime", ["walltime"]), ("memory", ["memory"]),
    ("node", ["node"]), ("lost", ["lost"]),
])
def test_what_a_condition_means(word, fates):
    assert policy.is_condition(word)
    assert [name for name in FATES if policy.matched([word], FATES[name])] == fates


def test_all_that_may_be_told_of_an_end_by_default():
    found = [name for name in FATES if policy.matched(list(policy.DEFAULT_ON), FATES[name])]
    assert found == ["exit", "killed payload", "walltime", "memory", "node"]


@pytest.mark.parametrize("word", ["0", "256", "9-1", "1-", "", "sigkill", "SIGNOT", "SIG_DFL", "DONE", 7, None, "1-9 "])
def test_what_is_no_condition(word):
    assert not policy.is_condition(word)


GOOD = {"retries": 2, "on": ["1"], "set": {"walltime": "x1.5", "queue": "long", "ncpus": "8"},
        "max": {"walltime": "48:00:00", "mem": "256gb"}, "resume": True}


@pytest.mark.parametrize("change, about", [
    ({"retries": 0}, "retries"), ({"retries": True}, "retries"), ({"retries": 10 ** 6}, "retries"),
    ({"on": []}, "retry_on"),
    ({"on": ["never"]}, "retry_on"), ({"on": "1"}, "retry_on"), ({"set": []}, "retry_set"), ({"resume": 1}, "resume"),
    ({"set": {"walltime": "x0.5"}}, "walltime"), ({"set": {"walltime": "x1"}}, "walltime"),
    ({"set": {"walltime": "much"}}, "walltime"), ({"set": {"queue": "a b"}}, "queue"),
    ({"set": {"mem": "8 gb"}}, "mem"),
    ({"set": {"Mem": "8gb"}}, "Mem"), ({"set": {"mem": 8}}, "mem"), ({"max": {"mem": "x2"}}, "mem"),
    ({"max": {"mem": "all"}}, "mem"), ({"max": {"queue": "long"}}, "queue"), ({"more": 1}, "none"),
    ({"set": {"mem": "1\n#PBS -q x"}}, "mem"), ({"set": {"walltime": "1\n"}}, "walltime"),
])
def test_what_is_wrong_with_a_policy_is_said(change, about):
    assert policy.wrong(GOOD) == ""
    assert about in policy.wrong(dict(GOOD, **change))


SELECT = b"""#!/bin/bash
#PBS -N name
#PBS -l select=1:ncpus=4:mem=8gb+2:mem=2gb,walltime=12:00:00  -q short
echo work
#PBS -l walltime=1
"""


def test_values_are_replaced_where_they_stand():
    script = resources.change(SELECT, "walltime", lambda old: "36:00:00")
    script = resources.change(script, "mem", lambda old: "64gb")
    script = resources.change(script, "queue", lambda old: "long")
    assert script.split(b"\n")[2] == b"#PBS -l select=1:ncpus=4:mem=64gb+2:mem=64gb,walltime=36:00:00 -q long"
    assert script.split(b"\n")[3:] == SELECT.split(b"\n")[3:] and script.split(b"\n")[:2] == SELECT.split(b"\n")[:2]


@pytest.mark.parametrize("script, key, value, after", [
    (b"#!/bin/sh\ntrue\n", "walltime", "1:00", b"#!/bin/sh\n#PBS -l walltime=1:00\ntrue\n"),
    (b"true\n", "queue", "long", b"#PBS -q long\ntrue\n"),
    (b"#PBS -l select=2:ncpus=4+1\ntrue\n", "mem", "8gb", b"#PBS -l select=2:ncpus=4:mem=8gb+1:mem=8gb\ntrue\n"),
    (b"#PBS -l nodes=1:ppn=4\ntrue\n", "mem", "8gb", b"#PBS -l mem=8gb\n#PBS -l nodes=1:ppn=4\ntrue\n"),
    (b"#PBS -l 'walltime=1'\r\ntrue\r\n", "walltime", "2", b"#PBS -l walltime=2\r\ntrue\r\n"),
    (b"#PBS -lwalltime=1 -V\ntrue\n", "walltime", "2", b"#PBS -l walltime=2 -V\ntrue\n"),
    (b"#PBS -N 'broken\ntrue\n", "mem", "8gb", b"#PBS -l mem=8gb\n#PBS -N 'broken\ntrue\n"),
    (b"#PBS -l pmem=1gb\ntrue\n", "mem", "8gb", b"#PBS -l mem=8gb\n#PBS -l pmem=1gb\ntrue\n"),
    (b"", "queue", "long", b"#PBS -q long\n"),
])
def test_what_a_script_did_not_ask_for_is_added(script, key, value, after):
    assert resources.change(script, key, lambda old: value) == after
    assert resources.asked(after, key)


@pytest.mark.parametrize("key, old, times, most, new", [
    ("walltime", "12:00:00", 1.5, "", "18:00:00"), ("walltime", "90", 2, "", "00:03:00"),
    ("walltime", "40:00:00", 1.5, "48:00:00", "48:00:00"), ("walltime", "48:00:00", 1.5, "48:00:00", "48:00:00"),
    ("walltime", "96:00:00", 1.5, "48:00:00", "96:00:00"), ("walltime", "1:30", 1.1, "", "00:01:39"),
    ("mem", "8gb", 2, "256gb", "16gb"), ("mem", "1gb", 1.5, "", "2gb"), ("mem", "200gb", 2, "256gb", "256gb"),
    ("mem", "524288mb", 2, "600gb", "600gb"), ("ncpus", "4", 2, "", "8"), ("mem", "lots", 2, "", "lots"),
    ("walltime", "", 2, "", ""),
])
def test_what_a_value_grows_to(key, old, times, most, new):
    assert resources.grown(key, old, times, most) == new


SBATCH = b"""#!/bin/bash
#SBATCH --job-name=name -t 12:00:00
#SBATCH --mem 8G  # of each node
#SBATCH --partition=short -n4 --comment='a b'
srun work
#SBATCH --time=1
"""


def changed(script, **wanted):
    for key, value in sorted(wanted.items()):
        script = resources.change(script, key, lambda old, value=value: value, "SBATCH")
    return script


def test_slurm_values_are_replaced_where_they_stand():
    assert changed(SBATCH, walltime="36:00:00", mem="64gb", queue="long").split(b"\n") == [
        b"#!/bin/bash", b"#SBATCH --job-name=name --time=36:00:00", b"#SBATCH --mem=64G",
        b"#SBATCH --partition=long --ntasks=4 --comment=\"a b\"", b"srun work", b"#SBATCH --time=1", b""]
    assert changed(SBATCH, walltime="12:00:00", mem="8gb", queue="short") == SBATCH, "nothing to change"
    assert sbatch.options(changed(SBATCH, mem="64gb"))[-2:] == [("ntasks", "4"), ("comment", "a b")]


@pytest.mark.parametrize("line, key, asked, times, after", [
    ("--time=90", "walltime", "01:30:00", 2, "--time=03:00:00"),
    ("-t1-12", "walltime", "36:00:00", 1.5, "--time=54:00:00"),
    ("--time=10:30", "walltime", "00:10:30", 2, "--time=00:21:00"),
    ("--time=UNLIMITED", "walltime", "UNLIMITED", 2, "--time=UNLIMITED"),
    ("--mem=4000", "mem", "4000mb", 2, "--mem=8000M"), ("--mem=1500K", "mem", "1500kb", 1.5, "--mem=2250K"),
    ("--mem=0", "mem", "all", 2, "--mem=0"), ("--mem-per-cpu=2G", "mem", "2gb", 2, "--mem-per-cpu=4G"),
    ("--mem-per-gpu=2GB", "mem", "2gb", 2, "--mem-per-gpu=4G"), ("--mem=3T", "mem", "3tb", 2, "--mem=6T"),
    ("-p a,b", "queue", "a,b", 0, "-p a,b"),
])
def test_what_slurm_is_asked_for_in_the_words_of_pbs(line, key, asked, times, after):
    script = ("#!/bin/sh\n#SBATCH %s\ntrue\n" % line).encode("ascii")
    assert resources.asked(script, key, "SBATCH") == [asked]
    grown = resources.change(script, key, lambda old: resources.grown(key, old, times, "") if times else old, "SBATCH")
    assert grown.split(b"\n")[1] == b"#SBATCH " + after.encode("ascii")


@pytest.mark.parametrize("key, value, line", [
    ("walltime", "1:00", b"--time=00:01:00"), ("mem", "8gb", b"--mem=8G"), ("mem", "2pb", b"--mem=2048T"),
    ("mem", "1025b", b"--mem=2K"), ("queue", "long", b"--partition=long")])
def test_what_slurm_was_not_asked_for_is_added(key, value, line):
    for script in (b"#!/bin/sh\ntrue\n", b"#!/bin/sh\n#SBATCH -n4\ntrue\n"):
        after = changed(script, **{key: value})
        assert after == script.replace(b"#!/bin/sh\n", b"#!/bin/sh\n#SBATCH " + line + b"\n", 1)
        assert resources.asked(after, key, "SBATCH")
    assert changed(b"true\n", ncpus="8") == b"true\n", "it has no option for that"


@pytest.mark.parametrize("key, value, about", [
    ("walltime", "x2", ""), ("walltime", "36:00:00", ""), ("mem", "x2", ""), ("queue", "7", ""),
    ("walltime", "90", "36:00"), ("mem", "4000", "64gb"), ("ncpus", "8", "walltime, mem and queue"),
    ("cput", "x2", "walltime, mem and queue"),
    ("mem", "8gb", "memory per CPU or GPU")])
def test_what_a_script_for_slurm_can_not_be_changed_to(key, value, about):
    script = b"#SBATCH --mem-per-cpu=2G --time=60\n"
    found = resources.unfit(script, key, value, "SBATCH")
    assert bool(found) == bool(about) and about in found
    assert resources.unfit(script, key, value) == "", "PBS has its own words"
    if about:
        rule = {"retries": 3, "set": {key: value}}
        assert policy.next_try(rule, "7", 0, script, "SBATCH") == policy.Try(None, (), found)


def test_a_cap_of_memory_per_cpu():
    rule = {"retries": 3, "set": {"mem": "x2", "walltime": "x2"}, "max": {"mem": "3gb"}}
    assert resources.unfit(b"#SBATCH --mem-per-cpu=2G\n", "mem", "3gb", "SBATCH", cap=True) == ""
    tried = policy.next_try(rule, "memory", 0, b"#SBATCH --mem-per-cpu=2G\n", "SBATCH")
    assert tried == policy.Try(b"#SBATCH --mem-per-cpu=3G\n", ("mem raised to 3gb",), "")
    assert policy.next_try(rule, "memory", 1, tried.script, "SBATCH").why == "mem is at its most, 3gb"


def test_only_what_helps_is_raised():
    rule = {"retries": 3, "set": {"walltime": "x1.5", "mem": "x2", "queue": "long"}, "max": {}}
    queue, walltime, mem = "queue set to long", "walltime raised to 18:00:00", "mem raised to 16gb+4gb"
    assert policy.next_try(rule, "walltime", 0, SELECT).changes == (queue, walltime)
    assert policy.next_try(rule, "memory", 1, SELECT).changes == (mem, queue)
    assert policy.next_try(rule, "node", 2, SELECT).changes == (queue,)
    assert policy.next_try(rule, "7", 0, SELECT).changes == (mem, queue, walltime)
    assert policy.next_try(rule, "7", 3, SELECT) == policy.Try(None, (), "the last of 3 retries")


def test_nobody_tries_in_vain():
    rule = {"retries": 3, "set": {"walltime": "x1.5"}, "max": {"walltime": "12:00:00"}}
    assert policy.next_try(rule, "walltime", 0, SELECT).why == "walltime is at its most, 12:00:00"
    assert policy.next_try(rule, "walltime", 0, b"true\n").why == "no walltime to raise"
    assert policy.next_try(dict(rule, resume=True), "walltime", 0, SELECT).script == SELECT
    assert policy.next_try({"retries": 1}, "walltime", 0, SELECT).script == SELECT
