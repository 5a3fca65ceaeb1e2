"""What an ended job has to deliver, and files that change while they are read: on the cluster's side alone."""

import hashlib
import io
import json
import os
import subprocess
import sys

import pytest

from agent.agentroot import AGENT
from chasqui_agent import beneath, deliver, files, globs, journal, wire
from chasqui_agent.spool import Spool

CONTENT = bytes(bytearray(range(251))) * 4000  # four chunks, the last not whole


class Ended:
    """One ended job and its work folder."""

    def __init__(self, path, **record):
        self.spool = Spool(str(path / "root"))
        self.spool.create()
        self.work = self.spool.work_dir("job", 1)
        os.makedirs(self.spool.meta_dir("job", 1))
        self.record(**record)
        files.write_file(self.spool.entry_path("completed", "job", 1, suffix="flag"), b"DONE\n")

    def record(self, **record):
        files.write_json(os.path.join(self.spool.meta_dir("job", 1), "job.json"), dict({"ledger": "me"}, **record))

    def put(self, name, content=b"x", mode=0o600):
        place = os.path.join(self.work, name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        files.write_file(place, content, mode)
        return place

    def list(self, fetch=None):
        return deliver.listing(self.spool, ("job", 1), "me", fetch)

    def paths(self, fetch=None):
        return [row[0] for row in self.list(fetch).files]


@pytest.fixture
def ended(tmp_path):
    return Ended(tmp_path)


def sent(found, have=0, after=None, index=0):
    """The frames of one file as (messages, data); `after` is called once the first data frame is out."""
    frames = []

    def send(frame):
        frames.append(frame)
        if after and frame[:1] == wire.DATA and len(frames) == 2:
            after()

    sender = deliver.Sender(send, lambda: open(os.devnull))
    try:
        sender.file(found, index, have)
    finally:
        sender.close()
    read = io.BytesIO(b"".join(frames)).read
    parsed = [wire.read_frame(read) for _ in frames]
    messages = [wire.parse_message(payload) for kind, payload in parsed if kind == wire.MESSAGE]
    return messages, b"".join(payload for kind, payload in parsed if kind == wire.DATA)


# -- sending -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "have, start",
    [(0, 0), (wire.CHUNK, wire.CHUNK), (3 * wire.CHUNK, 3 * wire.CHUNK), (len(CONTENT), len(CONTENT)), (5, 0),
     (4 * wire.CHUNK, 0), (1 << 60, 0)],
)
def test_a_file_is_sent_from_where_the_client_has_it(ended, have, start):
    ended.put("out", CONTENT)
    (file, sha), data = sent(ended.list(), have)
    assert (file["m"], file["size"], file["from"]) == ("file", len(CONTENT), start)
    assert data == CONTENT[start:]
    assert sha == {"m": "sha", "sha256": hashlib.sha256(CONTENT).hexdigest()}


def shrink(place):
    os.truncate(place, wire.CHUNK + 7)


def grow(place):
    with open(place, "ab") as stream:
        stream.write(b"more")


def rewrite(place):
    """Same size, and the same time as before: only ctime tells."""
    status = os.stat(place)
    with open(place, "r+b") as stream:
        stream.seek(3 * wire.CHUNK)
        stream.write(b"!")
    os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [shrink, grow, rewrite])
def test_a_file_that_changes_while_it_is_read_says_so(ended, change):
    place = ended.put("out", CONTENT)
    (file, sha), data = sent(ended.list(), after=lambda: change(place))
    assert len(data) == file["size"] == len(CONTENT)
    assert sha["why"] == "it changed while it was read"


@pytest.mark.parametrize("change", [shrink, grow, os.unlink, lambda place: (os.unlink(place), os.mkfifo(place))])
def test_a_file_that_changed_since_it_was_listed_is_not_sent(ended, change):
    place = ended.put("out", CONTENT)
    found = ended.list()
    change(place)
    (gone,), data = sent(found)
    assert gone["m"] == "gone" and gone["why"] and data == b""


def test_a_listing_reads_nothing(ended, monkeypatch):
    """But inputs of their old size and a new time: whether they are results is in their content alone."""
    ended.put("out", CONTENT)
    ended.put("touched", b"same")
    ended.put("edited", b"then")
    rows = [{"path": name, "size": 4, "mode": 0o600, "sha256": hashlib.sha256(text).hexdigest(), "mtime_ns": 5}
            for name, text in (("touched", b"same"), ("edited", b"THEN"))]
    files.write_json(os.path.join(ended.work, ".chasqui", "manifest.json"), {"files": rows})
    opened = []
    real = beneath.open_file
    monkeypatch.setattr(beneath, "open_file", lambda folder, path: opened.append(path) or real(folder, path))
    assert ended.paths() == ["edited", "out"]
    assert sorted(opened) == [b"edited", b"touched"]


def bundles(ended, wanted, before=None):
    """What `files` sends of the listing: ([(index, from, sha256, content)], paths that are gone)."""
    found, frames, arrived, gone = ended.list(), [], [], []
    if before:
        before()
    sender = deliver.Sender(frames.append, lambda: open(os.devnull))
    try:
        sender.files([(found, index, have) for index, have in (wanted or [(n, 0) for n in range(len(found.files))])])
    finally:
        sender.close()
    read = io.BytesIO(b"".join(frames)).read
    parsed = [wire.read_frame(read) for _ in frames]
    for at, (kind, payload) in enumerate(parsed):
        message = wire.parse_message(payload) if kind == wire.MESSAGE else {"m": ""}
        if message["m"] == "gone":
            gone.append((found.files[message["index"]][0], message["why"]))
        elif message["m"] == "bundle":
            data = io.BytesIO(b"".join(after for kind, after in parsed[at + 1:at + 3] if kind == wire.DATA))
            assert len(data.getvalue()) <= wire.CHUNK
            for job, attempt, items in message["jobs"]:
                assert (job, attempt) == ("job", 1)
                arrived += [(index, start, sha, data.read(found.files[index][1] - start))
                            for index, start, sha in items]
    return arrived, gone


def test_small_files_come_in_bundles_whole_and_with_their_hashes(ended):
    for number in range(40):
        ended.put("f%02d" % number, os.urandom(30000) if number % 3 else b"%d " % number * 5000)
    ended.put("empty", b"")
    ended.put("sub/one", b"1")
    arrived, gone = bundles(ended, None)
    assert not gone and sorted(item[0] for item in arrived) == list(range(42))
    for index, start, sha, content in arrived:
        with open(os.path.join(ended.work, ended.paths()[index]), "rb") as stream:
            assert (stream.read(), start) == (content, 0)
        assert sha == hashlib.sha256(content).hexdigest()


def test_of_a_small_file_that_the_client_has_only_the_hash_goes(ended):
    ended.put("a", b"one")
    ended.put("b", b"three")
    arrived, _ = bundles(ended, [(0, 3), (1, 2)])
    assert arrived == [(0, 3, hashlib.sha256(b"one").hexdigest(), b""), (1, 0, hashlib.sha256(b"three").hexdigest(),
                                                                         b"three")]


@pytest.mark.parametrize("change", [shrink, grow, os.unlink, lambda place: (os.unlink(place), os.mkfifo(place))])
def test_a_small_file_that_changed_since_it_was_listed_is_gone(ended, change):
    place = ended.put("a", b"x" * 60000)
    ended.put("b", b"y")
    arrived, ((path, why),) = bundles(ended, None, lambda: change(place))
    assert path == "a" and why
    assert [(index, content) for index, _, _, content in arrived] == [(0, b"y")]


@pytest.mark.parametrize("change", [shrink, grow, lambda place: os.utime(place, (5, 5))])
def test_a_small_file_that_changes_while_it_is_read_is_gone(ended, change, monkeypatch):
    place = ended.put("a", b"x" * 60000)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, count, at: (real(fd, count, at), change(place))[0])
    arrived, gone = bundles(ended, None)
    assert (arrived, gone) == ([], [("a", "it changed while it was read")])


# -- what is listed ----------------------------------------------------------------------------------------------------


def test_links_and_odd_files_are_no_results(ended):
    ended.put("out")
    os.symlink("/etc/passwd", os.path.join(ended.work, "link"))
    os.symlink("/etc", os.path.join(ended.work, "folder"))
    os.mkfifo(os.path.join(ended.work, "fifo"))
    ended.put(".chasqui/script")
    assert ended.paths() == ended.paths([]) == ended.paths(["**"]) == ["out"]


def test_expected_files_are_wanted_and_missing_ones_named(ended):
    ended.put("run/OUTCAR")
    ended.put("x.log")
    os.symlink("OUTCAR", os.path.join(ended.work, "vasprun.xml"))
    ended.record(outputs=["*.log"], expect=["OUTCAR", "vasprun.xml", "./OUTCAR"])
    found = ended.list()
    assert sorted(row[0] for row in found.files) == ["run/OUTCAR", "x.log"]
    assert found.missing == ["vasprun.xml", "./OUTCAR"]
    assert json.loads(found.message()[5:-4].decode())["missing"] == found.missing
    assert ended.list([]).missing == []


def test_limits_take_the_small_ones_first(ended):
    for name, size in (("a", 50), ("b", 10), ("c", 30), ("d", 500)):
        ended.put(name, b"x" * size)
    ended.record(max_file=100, max_job=60)
    found = ended.list()
    assert [row[0] for row in found.files] == ["b", "c"]
    assert [item["path"] for item in found.left_out] == ["d", "a"]
    assert ended.paths(["[ad]"]) == ["a", "d"] and ended.paths([]) == ["b", "c", "a", "d"]


def test_the_schedulers_output_is_fetched_by_the_name_it_has_here(ended):
    ended.put(".chasqui/stdout", b"x" * 200)
    ended.put("run.err", b"y" * 300)
    final = {"stdout": ".chasqui/stdout", "stderr": "run.err", "pbs": "77.server"}
    files.write_json(os.path.join(ended.work, ".chasqui", "final.json"), final)
    ended.record(name="my job", max_file=100)
    assert [(item["path"], item["size"]) for item in ended.list().left_out] == [("my_job.o77", 200), ("run.err", 300)]
    assert ended.paths(["*.o77"]) == ["my_job.o77"]
    assert ended.paths(["run.err"]) == ["run.err"]
    assert ended.paths([]) == ["my_job.o77", "run.err"]


def test_more_than_a_message_holds_is_left_out(ended, monkeypatch):
    for number in range(30):
        ended.put("f%02d" % number)
    monkeypatch.setattr(deliver, "MAX_LISTED", 20)
    assert len(ended.list().files) == 20 and len(ended.list().left_out) == 10
    monkeypatch.setattr(deliver, "MAX_LISTED", 1000)
    monkeypatch.setattr(deliver, "_MAX_LIST", 10 * 140)
    assert len(ended.list().files) == 10 and len(ended.list().left_out) == 20


def test_what_its_owner_may_not_read_stays(ended, monkeypatch):
    place = ended.put("secret", mode=0o200)
    if not os.geteuid():  # root may read everything, and give a file to somebody who may not
        os.chown(place, 12345, -1)
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert ended.list().left_out == [{"path": "secret", "size": 1, "why": "can't be read: its mode is 200"}]


@pytest.mark.parametrize("name", [b"caf\xc3\xa9", b"caf\xc3\xa9[1]", b"\xff", b"a*", b"[!x]", b"a\\[b"])
def test_a_pattern_for_one_file_alone_in_any_locale(name):
    """Patterns come as UTF-8; under LC_ALL=C Python 3.6 knows only ASCII."""
    others = [b"sub/" + name, b"caf1", b"ax", b"x", b"!", name + b"x", b"\xfe"]
    said = ("import sys; from chasqui_agent import globs; pattern = globs.compile_globs([%s])\n"
            "sys.exit(sum(globs.matches(pattern, path) << bit for bit, path in enumerate(%r)))"
            % (ascii(globs.literal(name)), [name] + others))
    for locale in ("C", "C.UTF-8"):
        done = subprocess.run([sys.executable, "-c", said], env={"LC_ALL": locale, "PYTHONPATH": AGENT})
        assert done.returncode == 1


def test_an_end_that_a_retry_follows_goes_with_the_word_of_it(tmp_path, monkeypatch):
    """Whatever piece of the journal it stands at the end of; where the pump has died in between, neither goes yet."""
    os.mkdir(str(tmp_path / "log"))
    writer = journal.Writer(str(tmp_path / "log"), 1)
    for number in range(1, 40):
        writer.append({"ev": "started", "job": "it", "attempt": number, "why": "x" * (number * 7 % 40)})
        writer.append({"ev": "ended", "job": "it", "attempt": number, "next": number + 1},
                      {"ev": "retried", "job": "it", "attempt": number, "next": number + 1})
    whole = journal.end(writer.folder)
    writer.append({"ev": "ended", "job": "it", "attempt": 40, "next": 41})
    for size in (1, 100, 333, 1000, 1 << 20):
        monkeypatch.setattr(deliver, "_PIECE", size)
        pieces = list(deliver.log_pieces(writer.folder, 0))
        told = [[json.loads(line) for line in lines.splitlines()] for _, _, lines, _ in pieces]
        assert all(records[-1]["ev"] != "ended" for records in told) and sum(map(len, told)) == 3 * 39
        assert pieces[-1][1] == whole and [key for piece in pieces for key in piece[3]] == [
            ("it", number) for number in range(1, 40)]
        assert len(pieces) >= min(39, whole // size // 3) and list(deliver.log_pieces(writer.folder, whole)) == []
    writer.append({"ev": "ended", "job": "it", "attempt": 40, "next": 41}, {"ev": "retried", "job": "it", "next": 41})
    (_, to, lines, _), = deliver.log_pieces(writer.folder, whole)
    assert to == journal.end(writer.folder) and lines.count(b"\n") == 2
    writer.close()
