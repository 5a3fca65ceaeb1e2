"""Hooks and the classic epilogue on the mock's mom: when they run, what they get, and that they harm no job."""

import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from pbs.cluster import Cluster

NOTES = """
import os, pbs
event = pbs.event()
job = event.job
kind = {pbs.EXECJOB_END: "end", pbs.EXECJOB_EPILOGUE: "epilogue", pbs.EXECJOB_PRETERM: "preterm"}[event.type]
with open("@LOG@", "a") as log:
    log.write("%s %s %s %d %s %s %s %s\\n" % (kind, job.id, job.euser, os.getuid(), job.Exit_status,
              job.Variable_List["A"], os.environ["PATH"], os.getcwd()))
if job.Variable_List["A"] == "hold":
    import time
    open("@LOG@.busy", "w").close()
    while not os.path.exists("@LOG@.go"):
        time.sleep(0.02)
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.02, daemon_seconds=0) as made:
        yield made


def install(cluster: Cluster, source: str, event: str = "execjob_end", name: str = "ep", **attributes: object) -> Path:
    """A hook as the admin would bring it; its log file."""
    log = cluster.folder / "hook.log"
    path = cluster.folder / (name + ".py")
    path.write_text(textwrap.dedent(source).replace("@LOG@", str(log)))
    commands = [f"create hook {name}", f'set hook {name} event="{event}"']
    commands += [f"set hook {name} {key}={value}" for key, value in attributes.items()]
    for command in [*commands, f"import hook {name} application/x-python default {path}"]:
        done = cluster.qmgr(command)
        assert (done.returncode, done.stderr) == (0, "")
    return log


def test_each_event_with_what_the_hook_may_know(cluster):
    log = install(cluster, NOTES, "execjob_epilogue,execjob_end,execjob_preterm")
    number = cluster.submit("exit 3\n", "-v", "A=x")
    cluster.wait_for(number)
    tail = "%d 3 x /bin:/usr/bin %s" % (os.getuid(), cluster.home / "mom_priv" / "hooks" / "tmp")
    assert log.read_text().splitlines() == [f"{kind} {number} {cluster.user} {tail}" for kind in ("epilogue", "end")]
    log.unlink()
    running = cluster.submit("sleep 600\n", "-v", "A=y")
    cluster.wait_for(running, "R")
    cluster.run("qdel", running)
    cluster.wait_for(running)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [(line[0], line[4]) for line in lines] == [("preterm", "None"), ("epilogue", "271"), ("end", "271")]
    log.unlink()
    held = cluster.submit("true\n", "-h", "-v", "A=z")
    cluster.run("qdel", held)
    cluster.wait_for(held)
    assert not log.exists()  # nothing fires for what never ran


@pytest.mark.parametrize(("event", "state"), [("execjob_epilogue", "R"), ("execjob_end", "E")])
def test_the_state_while_a_hook_runs(cluster, event, state):
    log = install(cluster, NOTES, event)
    number = cluster.submit("true\n", "-v", "A=hold")
    cluster.until(Path(f"{log}.busy").exists, "the hook runs")
    assert cluster.job(number)["state"] == state
    assert number in cluster.run("qselect").stdout
    Path(f"{log}.go").touch()
    assert cluster.wait_for(number)["exit_status"] == 0


def test_a_hook_that_throws_or_hangs_harms_nothing(cluster):
    install(cluster, "raise RuntimeError('by design')\n", name="throws", order=1)
    install(cluster, "import time\ntime.sleep(600)\n", name="hangs", order=2, alarm=1)
    log = install(cluster, NOTES, name="ep", order=3)
    number = cluster.submit("exit 7\n", "-v", "A=x")
    assert cluster.wait_for(number)["exit_status"] == 7
    assert log.read_text().startswith("end " + number)
    said = (cluster.home / "mom_logs" / "log").read_text()
    assert "execjob_end hook 'throws' encountered an exception, request rejected" in said
    assert "alarm call while running execjob_end hook 'hangs'" in said


def test_hooks_of_a_mom_that_comes_later(cluster):
    log = install(cluster, NOTES)
    cluster.restart_mom()
    cluster.wait_for(cluster.submit("true\n", "-v", "A=x"))
    assert log.read_text().startswith("end ")


# the classic epilogue

EPILOGUE = """#!/bin/sh
exec >>@LOG@
for word; do echo "arg $word"; done
env | LC_ALL=C sort
pwd
ps -o sid= -p $$ | tr -d ' ' | sed "s/^$$\\$/leads its session/"
"""


def write_epilogue(cluster: Cluster, text: str, mode: int = 0o700) -> Path:
    log = cluster.folder / "epilogue.log"
    path = cluster.home / "mom_priv" / "epilogue"
    path.write_text(text.replace("@LOG@", str(log)))
    path.chmod(mode)
    return log


def test_the_epilogues_ten_arguments_environment_and_folder(cluster):
    log = write_epilogue(cluster, EPILOGUE)
    number = cluster.submit("exit 3\n", "-N", "classic", "-l", "select=1:ncpus=2", "-l", "walltime=60")
    cluster.wait_for(number)
    lines = log.read_text().splitlines()
    arguments = [line.removeprefix("arg ") for line in lines if line.startswith("arg ")]
    assert len(arguments) == 10
    assert [arguments[at] for at in (0, 1, 3, 7, 8, 9)] == [number, cluster.user, "classic", "workq", "null", "3"]
    assert arguments[5] == "ncpus=2,place=pack,walltime=00:01:00"
    assert arguments[6].startswith("cpupercent=0,cput=")
    home = str(cluster.user_home)
    given = {line for line in lines if "=" in line and not line.startswith("arg ")}
    assert given - {"SHLVL=0", "SHLVL=1", "OLDPWD=/", "_=/usr/bin/env"} == {
        "PATH=/bin:/usr/bin", "PBS_JOBDIR=" + home, "PWD=" + home}  # fmt: skip
    assert lines[-2:] == [home, "leads its session"]


def test_the_epilogue_runs_in_r_prints_into_the_jobs_output_and_its_exit_code_is_nothing(cluster):
    log = write_epilogue(cluster, "#!/bin/sh\necho hello\n>@LOG@\nuntil [ -e @LOG@.go ]; do sleep 0.02; done\nexit 2\n")
    number = cluster.submit("echo job\n", "-N", "out", "-j", "oe")
    cluster.until(log.exists, "the epilogue runs")
    assert cluster.job(number)["state"] == "R"
    Path(f"{log}.go").touch()
    assert cluster.wait_for(number)["exit_status"] == 0
    assert (cluster.user_home / ("out.o" + number.partition(".")[0])).read_text() == "job\nhello\n"
    assert "exit: 2, nonzero p/e exit status" in (cluster.home / "mom_logs" / "log").read_text()


def test_an_epilogue_that_hangs_is_ended(cluster):
    write_epilogue(cluster, "#!/bin/sh\nsleep 600\n")
    assert cluster.wait_for(cluster.submit("true\n"))["exit_status"] == 0
    assert "completed epilogue, exit=-4" in (cluster.home / "mom_logs" / "log").read_text()


@pytest.mark.parametrize("mode", [0o600, 0o770, 0o707])
def test_an_epilogue_that_others_may_write_or_nobody_run_is_skipped(cluster, mode):
    log = write_epilogue(cluster, EPILOGUE, mode)
    assert cluster.wait_for(cluster.submit("true\n"))["exit_status"] == 0
    assert not log.exists()
    assert "Permission Error" in (cluster.home / "mom_logs" / "log").read_text()


def test_no_epilogue_while_an_execjob_epilogue_hook_is_enabled(cluster):
    log = write_epilogue(cluster, EPILOGUE)
    install(cluster, NOTES, "execjob_epilogue")
    cluster.wait_for(cluster.submit("true\n", "-v", "A=x"))
    assert not log.exists()
    assert cluster.qmgr("set hook ep enabled=false").returncode == 0
    cluster.wait_for(cluster.submit("true\n", "-v", "A=x"))
    assert log.exists()
