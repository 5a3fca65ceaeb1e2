"""For every test: the size of the run, where a failed test left its files, and a last look for processes left behind.

This file and needs.py are also read by pytest 7.0 on Python 3.6, which runs tests/agent a second time.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
import uuid

import pytest

MYPY = False
if MYPY:
    from typing import Any, Dict, Iterator, List

if sys.version_info >= (3, 11):
    from ssh.fixtures import lab, packages_for_users, proxy, python36_for_users  # noqa: F401

RUN = "CHASQUI_TEST_RUN"
os.environ[RUN] = uuid.uuid4().hex  # inherited by whatever the tests start, and looked for in the end
SIZE = os.environ.get("CHASQUI_TEST_SIZE", "short")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # `make test &` in a script: ignored signals are inherited, and a client under test would be deaf to Ctrl-C too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Size:
    """How much the tests do; the fixture `size`. CHASQUI_TEST_SIZE says short (the default) or long.

    name          "short" or "long"; `long` says the same as a bool
    jobs          jobs of the end-to-end batches
    chaos         jobs of the one in which hosts, server, sshd and disk fail
    acquisitions  of the lock, by `contenders` processes in all
    examples      of each property test
    clusters      of the property test over PBS, 50 steps each
    cuts          places at which a stream is cut, a byte flipped, a log torn
    big_file      bytes of the file that must not fit in memory twice
    idle_jobs     completed jobs in ledger and spool when the cost of an idle sync is looked at
    backlog       scripts that wait, and as many that are done, when the cost of a pump is looked at
    records       of the journal of which a sync may read the newest alone
    """

    def __init__(self, name: str) -> None:
        if name not in ("short", "long"):
            raise pytest.UsageError("CHASQUI_TEST_SIZE is short or long, not " + name)
        self.name, self.long = name, name == "long"
        self.jobs = 2000 if self.long else 200
        self.chaos = 1000 if self.long else 100
        self.contenders = 40
        self.acquisitions = 100000 if self.long else 10000
        self.examples = 2000 if self.long else 100
        self.clusters = 42 if self.long else 6
        self.cuts = 20000 if self.long else 1000
        self.big_file = (2 << 30) + 1 if self.long else (64 << 20) + 1
        self.idle_jobs = 20000 if self.long else 5000
        self.backlog = 100000 if self.long else 5000
        self.records = 1000000 if self.long else 50000

    def __repr__(self) -> str:
        return "<size %s>" % self.name


@pytest.fixture(scope="session")
def size() -> Size:
    return Size(SIZE)


@pytest.fixture
def memory_path(tmp_path: "Any") -> "Iterator[Any]":
    """A folder like tmp_path on a file system in memory, where there is one: fsync costs nothing there."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    path = tempfile.mkdtemp(prefix="chasqui-", dir="/dev/shm")
    yield type(tmp_path)(path)
    shutil.rmtree(path, ignore_errors=True)


def pytest_configure(config: "Any") -> None:
    try:
        from hypothesis import settings
    except ImportError:  # on 3.6 there is none, and no property test
        return
    # A slow machine is no failure, and a short run must fail for a change, not for the luck of the draw.
    options = {"deadline": None, "max_examples": Size(SIZE).examples, "derandomize": SIZE == "short", "database": None}
    settings.register_profile("chasqui", **options)
    settings.load_profile("chasqui")


def pytest_collection_modifyitems(config: "Any", items: "List[Any]") -> None:
    """Tests marked `long` are left out of a short run. They are not skipped: nothing is missing."""
    if SIZE == "long":
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: "Any", call: "Any") -> "Iterator[None]":
    """A failed test says where its files are: pytest keeps them."""
    outcome = yield
    report = outcome.get_result()
    if report.failed and "tmp_path" in getattr(item, "funcargs", {}):
        report.sections.append(("files kept", str(item.funcargs["tmp_path"])))


def _left_behind() -> "Dict[int, str]":
    """Processes other than this one that carry this run's mark, with what they are."""
    mark, found = ("%s=%s" % (RUN, os.environ[RUN])).encode(), {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open("/proc/%s/environ" % name, "rb") as stream:
                marked = mark in stream.read().split(b"\0")
            with open("/proc/%s/cmdline" % name, "rb") as stream:
                words = stream.read().replace(b"\0", b" ").decode("utf-8", "replace")
            with open("/proc/%s/stat" % name, "rb") as stream:
                parent = int(stream.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError):  # gone, or another user's
            continue
        # A fork shows the environment its parent was started with, without the mark. multiprocessing keeps its tracker.
        if (marked or parent == os.getpid()) and words and "multiprocessing.resource_tracker" not in words:
            found[int(name)] = words.strip()
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> "Iterator[None]":
    """After the last test nothing that the tests started may still run; the lab looks after its own accounts."""
    yield
    end = time.time() + 15
    while _left_behind() and time.time() < end:
        time.sleep(0.2)
    left = _left_behind()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "left behind by the tests, and killed now: %s" % left
