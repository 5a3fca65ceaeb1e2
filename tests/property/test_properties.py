"""Laws of the caps, the journal, the wire and paths, for whatever hypothesis can think of."""

import io
import os
import tempfile

from hypothesis import given
from hypothesis import strategies as st

from chasqui_agent import journal, wire
from chasqui_agent.caps import Caps, Counts, plan

small = st.integers(0, 200)


@st.composite
def queues(draw):
    """A queue as it can be: held jobs are queued and no payloads; everything queued or running is live."""
    held, free, running, ended = draw(small), draw(small), draw(small), draw(small)
    counts = Counts(running + free, held + free, running + held + free + ended, held, draw(small))
    return counts, Caps(
        draw(st.integers(1, 200)), draw(st.integers(1, 200)), draw(st.one_of(st.just(0), st.integers(1, 400)))
    )


@given(queues())
def test_caps_hold_and_excess_is_not_added_to(queue):
    counts, caps = queue
    done = plan(counts, caps)
    assert min(done) >= 0 and done.release <= counts.held and done.submit_free + done.submit_held <= counts.waiting
    submitted = done.submit_free + done.submit_held
    assert counts.payloads + done.release + done.submit_free <= max(counts.payloads, caps.max_running)
    assert counts.queued + submitted <= max(counts.queued, caps.max_queued)
    if caps.max_total:
        assert counts.live + submitted <= max(counts.live, caps.max_total)


@given(queues())
def test_no_place_is_left_empty(queue):
    counts, caps = queue
    done = plan(counts, caps)
    submitted = done.submit_free + done.submit_held
    full = counts.queued + submitted >= caps.max_queued or (
        caps.max_total and counts.live + submitted >= caps.max_total
    )
    assert submitted == counts.waiting or full
    running = counts.payloads + done.release + done.submit_free
    assert running >= caps.max_running or (done.release == counts.held and done.submit_held == 0)


records = st.dictionaries(st.text(max_size=8), st.one_of(st.text(max_size=20), st.integers(), st.none()), max_size=4)


@given(st.lists(st.lists(records, min_size=1, max_size=3), max_size=5), st.data())
def test_a_journal_cut_anywhere_and_written_on_keeps_its_order(batches, data):
    with tempfile.TemporaryDirectory() as folder:
        writer = journal.Writer(folder, 1)
        for batch in batches:
            writer.append(*[dict(record, ev="n") for record in batch])
        writer.close()
        path = journal.segments(folder)[-1][2]
        before = [offset for offset, _ in journal.records(folder)]
        cut = data.draw(st.integers(0, os.path.getsize(path)))
        os.truncate(path, cut)
        kept = [offset for offset in before if offset <= cut]
        assert [offset for offset, _ in journal.records(folder)] == kept
        writer = journal.Writer(folder, 2, took_over=True)
        writer.append({"ev": "after"})
        writer.close()
        assert [r["ev"] for _, r in journal.records(folder)] == ["n"] * len(kept) + ["after"]
        assert [r["ev"] for _, r in journal.records(folder, journal.segments(folder)[-1][0])] == ["after"]


@given(st.binary(max_size=300))
def test_noise_is_never_a_record(noise):
    assert journal.parse(noise) is None and journal.parse(noise + b"\n") is None


@given(st.lists(st.tuples(st.sampled_from([wire.DATA, wire.MESSAGE]), st.binary(max_size=200)), max_size=5))
def test_frames_come_back_in_order(frames):
    read = io.BytesIO(b"".join(wire.frame(kind, payload) for kind, payload in frames)).read
    assert [wire.read_frame(read) for _ in frames] == frames


@given(st.binary(max_size=400))
def test_noise_is_refused_as_a_frame(noise):
    try:
        kind, payload = wire.read_frame(io.BytesIO(noise).read)
    except wire.WireError:
        return
    assert noise.startswith(wire.frame(kind, payload))


@given(st.binary(max_size=300))
def test_a_path_survives_its_text(path):
    text = wire.path_text(path)
    assert wire.path_bytes(text) == path
    assert wire.printable(text, 10000).isprintable()
    text.encode("utf-8")


@given(st.one_of(st.binary(min_size=1, max_size=60).map(wire.path_text), st.text(max_size=60)))
def test_a_confined_path_stays_inside(text):
    try:
        path = wire.confined(text)
    except wire.WireError:
        return
    folder = b"/a/b"
    assert os.path.normpath(os.path.join(folder, path)).startswith(folder + b"/")
    assert os.path.normpath(path) == path and b"\0" not in path
