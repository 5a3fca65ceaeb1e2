"""A job's way through the mock's states: start, end, kill, limits, holds, start times, arrays."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pbs.cluster import Cluster

LONG = "sleep 600\n"
TRAPPED = 'trap "echo trap >>$HOME/$PBS_JOBID.trap; sleep 600" EXIT\necho up >$HOME/$PBS_JOBID.up\nsleep 600\n'


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(scale=0.02, daemon_seconds=0, ncpus=20) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_left(cluster):
    yield
    live = [job["number"] for job in cluster.table() if job["state"] not in "FX" and not job["parent"]]
    if live:
        cluster.run("qdel", "-W", "force", *live)
        for number in live:
            cluster.until(lambda: not cluster.run("qselect").stdout, "the end of " + number)


def started(cluster: Cluster, number: str) -> str:
    cluster.until((cluster.user_home / (number + ".up")).exists, number + " is up")
    return number


def alive(pid: str) -> bool:
    """Not gone, and not a zombie that nobody has collected."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def trap_of(cluster: Cluster, number: str) -> bool:
    return (cluster.user_home / (number + ".trap")).exists()


def test_a_job_runs_as_itself_and_ends_with_its_status(cluster):
    rows = {}
    for text in ("exit 0", "exit 3", "nosuchcommand", "kill -9 $$", "kill -TERM $$"):
        rows[cluster.submit(text + "\n")] = text
    ends = {rows[number]: cluster.wait_for(number) for number in rows}
    found = {text: (end["exit_status"], end["substate"]) for text, end in ends.items()}
    assert found == {
        "exit 0": (0, 92), "exit 3": (3, 93), "nosuchcommand": (127, 93), "kill -9 $$": (137, 93),
        "kill -TERM $$": (143, 93),
    }  # fmt: skip


def test_the_script_is_a_child_of_the_login_shell_which_leads_the_session(cluster):
    number = cluster.submit("ps -o ppid=,sid= -p $$ | tr -s ' ' >$HOME/session\n")
    cluster.wait_for(number)
    parent, session = (cluster.user_home / "session").read_text().split()
    assert parent == session


def test_qdel_gives_term_time_and_then_kill(cluster):
    number = started(cluster, cluster.submit(TRAPPED))
    assert cluster.run("qdel", number).returncode == 0
    assert cluster.run("qdel", number).returncode == 0  # again, while it ends
    assert cluster.wait_for(number)["exit_status"] == 271
    assert trap_of(cluster, number)
    attributes = cluster.attributes(number)
    assert attributes["substate"] == "91"
    assert attributes["comment"].endswith("and terminated by %s@pbshost" % cluster.user)
    assert cluster.run("qdel", number).returncode == 35


def test_qdel_force_and_a_kill_from_outside_leave_no_time(cluster):
    numbers = [started(cluster, cluster.submit(TRAPPED)) for _ in range(2)]
    assert cluster.run("qdel", "-W", "force", numbers[0]).returncode == 0
    cluster.kill_job(numbers[1])
    ends = [cluster.wait_for(number) for number in numbers]
    assert [(end["exit_status"], end["substate"]) for end in ends] == [(265, 91), (265, 93)]
    assert not any(trap_of(cluster, number) for number in numbers)


def test_all_jobs_killed_at_once(cluster):
    numbers = [started(cluster, cluster.submit(TRAPPED)) for _ in range(4)]
    cluster.kill_all_jobs()
    assert [cluster.wait_for(number)["exit_status"] for number in numbers] == [265] * 4
    assert not any(trap_of(cluster, number) for number in numbers)


def test_walltime_is_noticed_at_a_poll_and_said_on_stderr(cluster):
    number = started(cluster, cluster.submit(TRAPPED, "-l", "walltime=1", "-e", "walltime.err"))
    assert cluster.wait_for(number)["exit_status"] == -29
    assert trap_of(cluster, number)
    assert "=>> PBS: job killed: walltime" in (cluster.user_home / "walltime.err").read_text()
    assert cluster.attributes(number)["comment"].endswith("and exceeded resource walltime")


def test_memory_above_the_limit(cluster):
    script = "exec python3 -c 'import time; b = b\"x\" * (90 << 20); time.sleep(600)'\n"
    number = cluster.submit(script, "-l", "select=1:ncpus=1:mem=30mb", "-e", "mem.err")
    assert cluster.wait_for(number)["exit_status"] == -27
    assert "exceeded limit 30720kb" in (cluster.user_home / "mem.err").read_text()


def test_children_left_behind_die_unless_detached(cluster):
    script = (
        "sleep 601 & echo $! >$HOME/child\n"
        "setsid sh -c 'echo $$ >$HOME/detached; exec sleep 602' &\n"
        "until [ -s $HOME/detached ]; do sleep 0.02; done\n"
    )
    cluster.wait_for(cluster.submit(script))
    child, detached = ((cluster.user_home / name).read_text().strip() for name in ("child", "detached"))
    assert not alive(child)
    assert cluster.run("kill %s" % detached).returncode == 0


def test_a_bad_output_path_keeps_the_job_in_e(cluster):
    cluster.set_server("mock_stage_retry", 100.0)  # scaled: two seconds
    try:
        number = cluster.submit("echo lost\nexit 4\n", "-o", "/nonexistent/dir/out", "-e", "/dev/null")
        cluster.wait_for(number, "E")
        began = time.monotonic()
        assert cluster.run("qdel", number).returncode == 168
        assert cluster.wait_for(number)["exit_status"] == 4
        assert time.monotonic() - began > 1
        assert (cluster.home / "undelivered" / (number + ".OU")).read_text() == "lost\n"
    finally:
        cluster.set_server("mock_stage_retry", None)


def test_an_ending_job_counts_until_f(cluster):
    cluster.set_server("max_queued", "[u:PBS_GENERIC=1]")
    cluster.set_server("mock_exit", 1.0)
    try:
        number = cluster.submit("true\n")
        cluster.wait_for(number, "E")
        refused = cluster.run("qsub", input="true\n")
        assert (refused.returncode, refused.stderr) == (38, "qsub: would exceed complex's per-user limit\n")
        cluster.wait_for(number)
        cluster.submit("true\n")
    finally:
        cluster.set_server("max_queued", None)
        cluster.set_server("mock_exit", None)


def test_holds(cluster):
    number = cluster.submit("true\n", "-h")
    assert cluster.job(number)["state"] == "H"
    assert cluster.run("qhold", "-h", "u", number).returncode == 0
    assert cluster.run("qrls", number).returncode == 0  # one release undoes both
    cluster.wait_for(number)
    assert cluster.run("qrls", number).returncode == 0  # finished: said to be fine
    running = cluster.submit(LONG)
    cluster.wait_for(running, "R")
    assert cluster.run("qhold", running).returncode == 0
    assert (cluster.job(running)["state"], cluster.job(running)["holds"]) == ("R", "u")
    assert cluster.run("qrls", "999999").returncode == 153


def test_a_start_time_is_moved_and_a_past_one_starts_at_once(cluster):
    number = cluster.submit("true\n", "-a", "203001010000")
    assert cluster.job(number)["state"] == "W"
    held = cluster.submit("true\n", "-h", "-a", "202001010000")
    assert cluster.job(held)["state"] == "H"
    soon = cluster.run("date -d '+2 seconds' +%Y%m%d%H%M.%S").stdout.strip()
    assert cluster.run("qalter", "-a", soon, number).returncode == 0
    assert cluster.job(number)["state"] in "WQR"
    cluster.wait_for(number)
    past = cluster.submit("true\n", "-a", "202001010000")
    cluster.wait_for(past)


def test_qalter_renames(cluster):
    number = cluster.submit("true\n", "-h", "-N", "before")
    assert cluster.run("qalter", "-N", "after", number).returncode == 0
    assert cluster.run("qselect", "-N", "after").stdout.split() == [number]
    assert cluster.run("qselect", "-N", "before").stdout == ""


def test_arrays_are_queried_by_parent_or_by_element(cluster):
    script = "[ $PBS_ARRAY_INDEX = 1 ] || sleep 600\n"
    held = cluster.submit(script, "-h", "-J", "1-3", "-N", "arr", "-v", "A=1")
    assert held.endswith("[].pbshost")
    seq = held.partition("[")[0]

    def select(*options):
        return cluster.run("qselect", *options, "-N", "arr").stdout.split()

    elements = ["%s[%d].pbshost" % (seq, index) for index in (1, 2, 3)]
    assert (select(), select("-s", "H"), select("-T", "-s", "H")) == ([held], [held], [])
    assert select("-T", "-s", "Q") == elements
    assert cluster.run("qrls", held).returncode == 0
    cluster.until(lambda: cluster.job(elements[0])["state"] == "X", "the first element's end")
    cluster.until(lambda: select("-T", "-s", "R") == elements[1:], "the others run")
    assert (select("-s", "RE"), select("-s", "B"), select("-T")) == ([], [held], elements)
    counts = "Queued:0 Running:2 Exiting:0 Expired:1"
    assert cluster.attributes(held)["array_state_count"] == counts
    assert cluster.job(held)["elements"] == 2
    assert cluster.run("qdel", held).returncode == 0
    cluster.wait_for(held)


def test_arrays_count_by_element_until_each_ends(cluster):
    cluster.set_server("max_queued", "[u:PBS_GENERIC=3]")
    try:
        assert cluster.run("qsub", "-J", "1-4", input=LONG).returncode == 38
        array = cluster.submit("[ $PBS_ARRAY_INDEX = 1 ] || sleep 600\n", "-J", "1-3")
        cluster.until(lambda: cluster.job(array)["elements"] == 2, "one element's end")
        cluster.submit(LONG, "-h")
        assert cluster.run("qsub", "-h", input=LONG).returncode == 38
    finally:
        cluster.set_server("max_queued", None)


def test_dependencies(cluster):
    first = cluster.submit("exit 3\n", "-h")
    any_end = cluster.submit("true\n", "-W", "depend=afterany:" + first)
    good_end = cluster.submit("true\n", "-W", "depend=afterok:" + first)
    unknown = cluster.submit("true\n", "-W", "depend=afterany:999999")
    gone = cluster.wait_for(unknown)
    assert (gone["substate"], gone["exit_status"], gone["run_count"]) == (92, None, 0)
    cluster.run("qrls", first)
    assert cluster.wait_for(any_end)["exit_status"] == 0
    assert cluster.wait_for(good_end)["run_count"] == 0
    deleted = cluster.submit("true\n", "-h")
    forever = cluster.submit("true\n", "-W", "depend=afterany:" + deleted)
    cluster.run("qdel", deleted)
    cluster.wait_for(deleted)
    assert (cluster.job(forever)["state"], cluster.job(forever)["holds"]) == ("H", "s")


def test_without_history_a_finished_job_is_unknown(cluster):
    cluster.set_server("job_history_enable", False)
    try:
        number = cluster.submit("true\n")
        cluster.wait_until_gone(number)
        assert cluster.run("qstat", number).returncode == 153
        asked = cluster.run("qstat", "-x", "-f", "-F", "json", number)
        assert asked.returncode == 0 and "PBS is not configured to maintain job history" in asked.stderr
        assert '"Jobs"' not in asked.stdout
        after = cluster.submit("true\n", "-W", "depend=afterany:" + number)  # an id, and never a run
        assert cluster.job(after) is None
    finally:
        cluster.set_server("job_history_enable", True)
