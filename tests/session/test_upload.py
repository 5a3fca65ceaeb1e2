"""Handing over: each content once, a cut costs a chunk, two sessions at once, the cache, files that change."""

import hashlib
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.agentroot import until
from chasqui_agent import objects, settings, wire
from chasqui_agent.spool import Spool
from chasqui_client import deploy, errors, inputs, launcher, session, states, upload
from chasqui_client.child import Child
from chasqui_client.messages import Handler, JobOffer, Offer
from chasqui_client.session import Session, new_nonce
from chasqui_client.transport import Channel, Local
from session.desk import CutLocal, Desk, unbundled

CHUNK = wire.CHUNK


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path).deploy()


@pytest.fixture
def sent(monkeypatch):
    """(size, from) of every content that a client of this process sends."""
    found, message = [], wire.message

    def noted(*names, **fields):
        if names[0] == "blob":
            found.append((fields["size"], fields["from"]))
        elif names[0] == "blobs":
            found.extend((size, 0) for size in fields["size"])
        return message(*names, **fields)

    monkeypatch.setattr(wire, "message", noted)
    return found


def over(monkeypatch, line):
    monkeypatch.setattr(deploy, "transport_to", lambda *_, **__: line)


def cut_sync(desk, monkeypatch, **where):
    """A sync over a line that breaks; whether it did."""
    line = CutLocal(**where)
    with monkeypatch.context() as patch:
        over(patch, line)
        try:
            desk.sync()
        except errors.ConnectionLost:
            pass
    return line.was_cut


def staged(desk):
    return [path for path in (desk.root / "staging").rglob("*") if path.is_file()]


def caches(desk, size):
    """The cache may hold so much, from the next session on."""
    desk.remote = replace(desk.remote, settings=replace(desk.remote.settings, cache_size=size))
    settings.change(Spool(str(desk.root)), cache_size=size)


def cached(desk):
    return sorted(path for path in (desk.root / "objects").rglob("*") if path.is_file())


class Paused(Exception):
    """The client stops here; its agent does not know yet."""


class Half(Handler):
    """Hands over until it is to open a file of this name; then it stops with all that was said sent."""

    def __init__(self, stop):
        self.stop = stop
        self.session = None

    def open(self, offer, file):
        if file.path == self.stop:
            self.session._packer.flush()
            raise Paused
        return open(file.source, "rb", buffering=0)


@pytest.fixture
def half(monkeypatch):
    """Makes sessions whose client is dead, and whose agents wait for more of the jobs; their channels."""
    channels = []
    unbundled(monkeypatch)

    def make(desk, jobs, stop):
        channels.append(_half_a_session(desk, jobs, stop))
        return channels[-1]

    yield make
    for channel in channels:
        channel.close()


def _half_a_session(desk, jobs, stop):
    with desk.ledger() as ledger:
        offers = [JobOffer(job.id, 1, ledger.files(job.id, 1), {"name": job.name, "script": "job.sh"}) for job in jobs]
        ledger.mark_offered(jobs)
        hello = {"client": "0", "ledger": ledger.id, "root_uuid": "", "cursor": 0, "config": None}
    nonce, handler = new_nonce(), Half(stop)
    channel = Channel(Child(["/bin/sh", "-c", launcher.agent(desk.remote.root, ["serve", "--nonce", nonce])]))
    handler.session = Session(channel, nonce, handler)
    with pytest.raises(Paused):
        handler.session.run(Offer(hello, [(offers, False)]))
    return channel


# -- each content once, slice by slice ---------------------------------------------------------------------------------


def test_each_content_crosses_once_whatever_the_slices(desk, monkeypatch, sent):
    caches(desk, 0)
    monkeypatch.setattr(wire, "SLICE_JOBS", 3)
    library = os.urandom(700_000)
    jobs = desk.add(*(desk.folder("j%d" % n, "cat lib mine again >out", lib=library, mine=b"%d" % n,
                                  again=b"the same in all but not at first" if n > 3 else b"other")
                      for n in range(10)))
    assert desk.sync().uploaded == 10
    assert len(sent) == len({size for size, _ in sent}) + 9 + 9, "a script and a number each, and three for all"
    assert sum(size == len(library) for size, _ in sent) == 1
    desk.finish()
    for number, job in enumerate(jobs):
        desk.completed(job)
        out = (desk.path / "jobs" / job.name / "results" / "out").read_bytes()
        assert out[:700_000] == library and out[700_000:].startswith(b"%d" % number)
    assert not staged(desk) and not (desk.root / "objects").exists()


def test_it_goes_packed_too(desk, monkeypatch):
    """As over ssh: the whole session through the packing layer, both ways."""
    class Packing(Local):
        compress = True

    over(monkeypatch, Packing())
    text, noise = b"many words that are alike\n" * 40_000, os.urandom(3 << 20)
    job, = desk.add(desk.folder("both", "cat text noise >out", text=text, noise=noise))
    desk.finish()
    desk.completed(job)
    assert (desk.path / "jobs/both/results/out").read_bytes() == text + noise


# -- a cut -------------------------------------------------------------------------------------------------------------


def test_a_cut_costs_one_chunk_of_a_large_file(desk, monkeypatch, sent):
    """Cut at every border of a chunk: what had arrived is not sent again."""
    chunks = 5
    large = os.urandom(chunks * CHUNK + 1000)
    for number in range(40):
        job, = desk.add(desk.folder("cut%d" % number, "cmp large %s && echo same" % (desk.path / "ref"),
                                    large=large + b"%d" % number))
        (desk.path / "ref").write_bytes(large + b"%d" % number)
        del sent[:]
        was_cut = cut_sync(desk, monkeypatch, sent=number)
        arrived = sum(path.stat().st_size for path in staged(desk) if path.parent.name == "partial")
        first = list(sent)
        del sent[:]
        desk.finish()
        assert desk.completed(job)
        if not was_cut:
            break
        again = [start for size, start in sent if size > CHUNK]
        if arrived >= wire.PIECE:
            assert again == [arrived - arrived % wire.PIECE], (number, first, sent)
        (desk.path / "ran").unlink()
    assert 10 < number < 39
    assert not staged(desk)


def test_a_beginning_that_was_damaged_is_noticed_and_sent_again(desk, monkeypatch, sent):
    large = os.urandom(12 * CHUNK)
    job, = desk.add(desk.folder("damaged", "cp large out", large=large))
    for number in range(12, 30):
        assert cut_sync(desk, monkeypatch, sent=number)
        partial = next((path for path in staged(desk) if path.parent.name == "partial"), None)
        if partial and partial.stat().st_size >= 3 * CHUNK:
            break
    with open(partial, "r+b") as stream:
        stream.seek(CHUNK + 5)
        stream.write(b"rubbish")
    report = desk.sync()
    assert report.uploaded == 0 and "damaged" in report.refused[0]["why"]
    desk.finish()
    desk.completed(job)
    assert (desk.path / "jobs/damaged/results/out").read_bytes() == large


def test_a_slow_disk_under_a_large_file_does_not_look_like_silence(desk, monkeypatch, sent):
    """What arrived before a cut is read again, and nothing sent meanwhile."""
    job, = desk.add(desk.folder("slow", "cp large out", large=os.urandom(12 * CHUNK)))
    for number in range(12, 30):
        assert cut_sync(desk, monkeypatch, sent=number)
        partial = next((path for path in staged(desk) if path.parent.name == "partial"), None)
        if partial and partial.stat().st_size >= 6 * CHUNK:
            break
    del sent[:]
    real = upload._exactly
    monkeypatch.setattr(upload, "_exactly", lambda *given: (time.sleep(0.4) or chunk for chunk in real(*given)))
    monkeypatch.setattr(session, "SIGN_OF_LIFE", 0.1)
    monkeypatch.setenv("CHASQUI_IDLE", "1.5")
    assert desk.sync().uploaded == 1
    assert [start for size, start in sent if size > CHUNK] >= [6 * CHUNK]
    monkeypatch.undo()
    desk.finish()
    desk.completed(job)


class SlowHash:
    """SHA-256 on a slow disk."""

    def __init__(self):
        self.real = hashlib.sha256()

    def update(self, data):
        time.sleep(0.4)
        self.real.update(data)

    def hexdigest(self):
        return self.real.hexdigest()


def test_a_slow_disk_under_what_changed_since_add_does_not_look_like_silence(desk, monkeypatch):
    jobs = desk.add(*(desk.folder("changed%d" % n, "cmp in now", now=b"%d" % n * 3_000_000) for n in range(3)))
    for job in jobs:
        folder = Path(os.fsdecode(job.folder))
        shutil.copyfile(folder / "now", folder / "in")
        (folder / "now").write_bytes((folder / "now").read_bytes()[:-1] + b"!")
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "hashlib", SimpleNamespace(sha256=SlowHash))
        patch.setattr(session, "SIGN_OF_LIFE", 0.1)
        patch.setenv("CHASQUI_IDLE", "1.5")
        report = desk.sync()
    assert report.uploaded == 3 and len(report.changed_inputs) == 3
    desk.finish()


@pytest.mark.parametrize("kept", [True, False])
def test_small_files_of_a_killed_session_are_not_sent_again(desk, half, sent, kept):
    """Neither those that arrived, nor, if they were spoilt meanwhile, believed to be what they were."""
    files = {"f%02d" % n: os.urandom(100 + n) for n in range(20)}
    job, = desk.add(desk.folder("many", "cat f* >out", **files))
    channel = half(desk, [job], b"f15")
    left = until(lambda: [path for path in staged(desk) if path.name.startswith("f")][14:] and staged(desk), "15 files")
    channel.process.kill()
    channel.close()
    for path in () if kept else left:
        path.write_bytes(bytes(path.stat().st_size))
    del sent[:]
    desk.finish()
    desk.completed(job)
    assert [size for size, _ in sent if 100 <= size < 120][:5] == ([115, 116, 117, 118, 119] if kept else
                                                                   [100, 101, 102, 103, 104])
    assert (desk.path / "jobs/many/results/out").read_bytes() == b"".join(files[name] for name in sorted(files))
    assert not staged(desk)


@pytest.mark.parametrize("point", ["receive.built", "receive.commit.before", "receive.commit.after",
                                   "receive.publish.before", "receive.publish.after", "channel.send.before:2"])
def test_nothing_is_sent_again_after_the_agent_was_killed(desk, monkeypatch, sent, point):
    jobs = desk.add(*(desk.folder("k%d" % n, "cat own >out", own=os.urandom(50), both=b"shared") for n in range(3)))
    with monkeypatch.context() as patch:
        patch.setenv("CHASQUI_FAULT", point)
        with pytest.raises(errors.ConnectionLost):
            desk.sync()
    first, again = len(sent), sent[:]
    del sent[:]
    desk.finish()
    if "built" not in point and "channel" not in point:
        assert first == 7 and not sent, (again, sent)
    assert desk.lines() == ["k0", "k1", "k2"]
    assert all(map(desk.completed, jobs))


# -- two sessions at once ----------------------------------------------------------------------------------------------


def test_the_agent_of_a_killed_client_comes_too_late(desk, half):
    """It has one job complete and half of another; a new session takes both over, and it publishes neither again."""
    jobs = desk.add(desk.folder("one", own=b"1"), desk.folder("two", aa=b"2", zz=b"3"))
    channel = half(desk, jobs, b"zz")
    until(lambda: [path for path in staged(desk) if path.name == "aa"], "the first file of the second job")
    assert desk.sync().uploaded == 2
    channel.close_input()
    until(lambda: channel.process.poll() is not None, "the end of the first agent")
    channel.close()
    desk.finish()
    assert desk.lines() == ["one", "two"]
    assert not staged(desk)
    assert all(map(desk.completed, jobs))


def test_an_agent_that_publishes_while_the_next_session_asks(desk, half):
    """The first agent ends, and publishes, between the other's answers and its commits."""
    jobs = desk.add(desk.folder("one", own=b"1"), desk.folder("two", aa=b"2", zz=b"3"))
    first = half(desk, jobs, b"zz")
    until(lambda: [path for path in staged(desk) if path.name == "aa"], "the first file of the second job")
    for each in (first, half(desk, jobs, b"zz")):
        each.close_input()
        until(lambda each=each: each.process.poll() is not None, "the end of an agent")
        each.close()
    desk.finish()
    assert desk.lines() == ["one", "two"]
    assert all(map(desk.completed, jobs))


def test_another_laptops_session_is_left_alone(desk, half, tmp_path):
    """Two ledgers, one root, the same content: neither takes what the other is receiving."""
    other = Desk(tmp_path / "other")
    other.remote = desk.remote
    same = os.urandom(3 * CHUNK)
    mine = desk.add(desk.folder("mine", "cp big out", big=same, zz=b"z"))
    theirs, = other.add(other.folder("theirs", "cp big out", big=same, zz=b"z"))
    half(desk, mine, b"zz")
    until(lambda: [path for path in staged(desk) if path.parent.name == "content"], "the large file")
    before = {path: path.stat().st_size for path in staged(desk)}
    other.finish()
    other.completed(theirs)
    assert {path: path.stat().st_size for path in before if path.exists()} == before
    desk.finish()
    desk.completed(mine[0])


# -- files that change -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 3 * CHUNK])
def test_a_file_that_changes_while_it_is_read(desk, monkeypatch, size):
    folder = desk.folder("moving", "cat data >out", data=b"a" * size)
    job, fine = desk.add(folder, desk.folder("still"))
    whole = upload.Upload._content

    def changing(self, offer, file, *rest):
        if file.path == b"data":
            with open(file.source, "r+b") as stream:
                stream.seek(size - 10)
                stream.write(b"b")
        whole(self, offer, file, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(upload.Upload, "_content", changing)
        report = desk.sync()
    assert report.uploaded == 1
    assert [item["path"] for item in report.changed_inputs] == ["data"]
    assert desk.job(job).state == states.QUEUED_LOCAL
    desk.finish()
    assert (folder / "results/out").read_bytes() == b"a" * (size - 10) + b"b" + b"a" * 9
    assert desk.completed(fine)


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_what_many_jobs_share_is_kept_and_not_sent_again(desk, sent):
    potcar, wave = os.urandom(90_000), os.urandom(70_000)
    rewrite = "echo spoilt >>potcar; echo spoilt >>wave; cat tiny >out"
    desk.add(*(desk.folder("a%d" % n, rewrite, potcar=potcar, tiny=b"t", wave=wave if n else b"w") for n in range(2)))
    desk.finish()
    assert {path.name for path in cached(desk)} == {hashlib.sha256(data).hexdigest() for data in (potcar, wave, b"t")}
    for path in cached(desk):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, "a job has written into the cache"
        assert path.stat().st_nlink == 1
    del sent[:]
    job, = desk.add(desk.folder("later", "cat potcar tiny >out", potcar=potcar, tiny=b"t", mine=b"mine"))
    desk.finish()
    desk.completed(job)
    assert (desk.path / "jobs/later/results/out").read_bytes() == potcar + b"t"
    assert sorted(size for size, _ in sent) == sorted((4, (desk.path / "jobs/later/job.sh").stat().st_size))


def test_a_damaged_object_is_dropped_and_sent_again(desk, sent):
    shared = os.urandom(80_000)
    desk.add(desk.folder("first", shared=shared))
    desk.finish()
    path, = cached(desk)
    path.write_bytes(bytes(80_000))
    del sent[:]
    job, = desk.add(desk.folder("second", "cat shared >out", shared=shared))
    desk.finish()
    desk.completed(job)
    assert 80_000 in [size for size, _ in sent]
    assert (desk.path / "jobs/second/results/out").read_bytes() == shared
    assert path.read_bytes() == shared


def test_the_cache_may_go_at_any_time(desk, monkeypatch):
    shared = os.urandom(80_000)
    desk.add(desk.folder("first", shared=shared))
    desk.finish()
    job, = desk.add(desk.folder("second", "cat shared >out", shared=shared))
    answered = upload.Upload._job

    def emptied(self, *given):
        shutil.rmtree(desk.root / "objects")
        answered(self, *given)

    monkeypatch.setattr(upload.Upload, "_job", emptied)
    assert desk.sync().uploaded == 1
    desk.finish()
    desk.completed(job)
    assert (desk.path / "jobs/second/results/out").read_bytes() == shared


def test_what_was_used_longest_ago_goes_first(desk):
    caches(desk, 250_000)
    contents = [os.urandom(100_000) for _ in range(3)]
    for number, data in enumerate(contents[:2]):
        desk.add(desk.folder("c%d" % number, data=data))
        desk.finish()
    for path in cached(desk):
        os.utime(path, (1, 1))
    desk.add(desk.folder("uses the first", data=contents[0]))
    desk.finish()
    assert len(cached(desk)) == 2
    desk.add(desk.folder("third", data=contents[2]))
    desk.finish()
    assert {path.name for path in cached(desk)} == {hashlib.sha256(contents[n]).hexdigest() for n in (0, 2)}


def test_no_cache_where_it_is_switched_off_or_there_is_nothing_to_keep(desk):
    desk.add(desk.folder("small", "cat in", **{"in": b"used once"}))
    desk.finish()
    assert not (desk.root / "objects").exists()
    caches(desk, 0)
    desk.add(desk.folder("large", **{"in": os.urandom(objects.LEAST)}))
    desk.finish()
    assert not (desk.root / "objects").exists()


def test_the_configuration_says_how_much_is_kept_and_less_of_it_is_less_at_once(desk):
    section = "[remotes.here.settings]\ncache_size = %d\n"
    written = desk.home.config_path.read_text()

    def says(size):
        desk.home.config_path.write_text(written.replace("[remotes.here.settings]\n", section % size))
        desk.remote = desk.home.config().remote()
        desk.sync()
        return [path.stat().st_size for path in cached(desk)]

    for size in (100_000, 110_000, 120_000):
        desk.add(desk.folder("c%d" % size, data=os.urandom(size)))
        desk.finish()
        time.sleep(0.01)  # their times differ
    assert sorted(says(1 << 50)) == [100_000, 110_000, 120_000]
    assert sorted(says(250_000)) == [110_000, 120_000], "the one used longest ago is gone"
    assert sorted(says(300_000)) == [110_000, 120_000]
    assert says(0) == []


def test_what_is_older_than_a_day_goes(desk, monkeypatch):
    desk.add(desk.folder("gone", large=os.urandom(4 * CHUNK)))
    for number in range(8, 20):
        assert cut_sync(desk, monkeypatch, sent=number)
        if staged(desk):
            break
    folder, = (path for path in (desk.root / "staging").iterdir() if path.is_dir())
    foreign = folder.with_name("0" * 12 + folder.name[12:])
    folder.rename(foreign)
    desk.finish()
    assert foreign.exists(), "another ledger's"
    day = time.time() - 86500
    os.utime(foreign, (day, day))
    desk.add(desk.folder("next"))
    desk.finish()
    assert not foreign.exists()


def test_where_work_is_on_another_file_system(desk, half, sent, memory_path):
    """Staging and cache stand there, the scripts in the root; a cut session is gone on with all the same."""
    assert os.stat(memory_path).st_dev != os.stat(desk.root).st_dev, "needs a file system in memory"
    (desk.root / "work").rmdir()
    (desk.root / "work").symlink_to(memory_path)
    shared = os.urandom(70_000)
    jobs = desk.add(*(desk.folder("w%d" % n, "cat shared own >out", shared=shared, own=b"%d" % n) for n in range(3)))
    channel = half(desk, jobs, b"shared")
    channel.process.kill()
    channel.close()
    desk.finish()
    assert all(map(desk.completed, jobs)) and desk.lines() == ["w0", "w1", "w2"]
    assert [path.name for path in (memory_path / ".objects").rglob("*") if path.is_file()] == [
        hashlib.sha256(shared).hexdigest()]
    assert not (desk.root / "objects").exists() and not staged(desk) and not os.listdir(memory_path / ".staging")


def test_removing_a_root_removes_the_cache(desk):
    desk.add(desk.folder("first", shared=os.urandom(80_000)))
    desk.finish()
    assert cached(desk)
    done = Local().start(launcher.agent(desk.remote.root, ["remove"]))
    done.read_all(1 << 20)
    assert done.close() == 0
    assert sorted(Path(desk.root).iterdir()) == [desk.root / "work"]
