"""Laws of the caps, the journal, the wire and paths, for whatever hypothesis can think of."""

import io
import os
import random
import tempfile

from hypothesis import given
from hypothesis import strategies as st

from chasqui_agent import journal, wire
from chasqui_agent.caps import Caps, Counts, plan

small = st.integers(0, 60)
sizes = st.lists(st.one_of(st.just(1), st.integers(2, 80)), max_size=30)


@st.composite
def queues(draw):
    """A queue as it can be: held jobs are queued and no payloads; everything queued or running is live."""
    held, free, running, ended = draw(sizes), draw(small), draw(small), draw(small)
    others = draw(small), draw(small)
    queued = sum(held) + free
    counts = Counts(running + free + others[0], queued + others[1], running + queued + ended + sum(others),
                    *others, sum(others))  # fmt: skip
    most = st.integers(1, 200)
    return counts, Caps(draw(most), draw(most), draw(st.one_of(st.just(0), st.integers(1, 400)))), held, draw(sizes)


def carried_out(places, held, waiting):
    """What a pump makes of the places: (sizes released, submitted free, submitted with a hold)."""
    released = [size for number, size in enumerate(held) if places.payloads.take("h%d" % number, size)]
    free, kept = [], []
    for number, size in enumerate(waiting):
        if places.queue.take("w%d" % number, size):
            (free if places.payloads.take("w%d" % number, size) else kept).append(size)
    return released, free, kept


@given(queues())
def test_caps_hold_and_excess_is_not_added_to(queue):
    counts, caps, held, waiting = queue
    released, free, kept = (sum(sizes) for sizes in carried_out(plan(counts, caps), held, waiting))
    assert counts.payloads + released + free <= max(counts.payloads, caps.max_running)
    assert counts.queued + free + kept <= max(counts.queued, caps.max_queued)
    if caps.max_total:
        assert counts.live + free + kept <= max(counts.live, caps.max_total)


@given(queues())
def test_no_place_is_left_empty(queue):
    """No job that takes one waits beside a place, but behind an array that has it kept."""
    counts, caps, held, waiting = queue
    places = plan(counts, caps)
    released, free, kept = carried_out(places, held, waiting)
    submitted = free + kept
    full = counts.queued + sum(submitted) >= caps.max_queued or (
        caps.max_total and counts.live + sum(submitted) >= caps.max_total
    )
    assert full or places.queue.turn[0] or submitted.count(1) == waiting.count(1)
    running = counts.payloads + sum(released) + sum(free)
    singles = (released + free).count(1) == (held + submitted).count(1)
    assert running >= caps.max_running or places.payloads.turn[0] or singles


@given(st.integers(2, 12), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 30), st.integers(0, 3),
       st.integers(0, 1000))  # fmt: skip
def test_neither_arrays_nor_those_behind_them_wait_for_ever(most, arrays, life, foreign, seed):
    """Single jobs without end, arrays among them; each round some of what runs ends. Every array has its turn, and no
    array keeps places from the single ones for more rounds than it may."""
    caps, turns, running, held, blocked, chance = Caps(most, 1000, 0), None, [], [], 0, random.Random(seed)
    for number, size in enumerate(arrays):
        held += [("one%d" % number, 1), ("array%d" % number, min(size, most - min(foreign, most - 1)))]
    beside = min(foreign, most - 1)
    for count in range(3000):
        held += [("more%d.%d" % (count, number), 1) for number in range(2 * most - len(held))]
        payloads = sum(size for _, size in running) + beside
        places = plan(Counts(payloads, 0, 0, beside, 0, 0), caps, turns)
        room = places.payloads.left
        started = [job for job in held if places.payloads.take(*job)]
        turns = {"payloads": places.payloads.turn}
        held = [job for job in held if job not in started]
        blocked = 0 if started or not room else blocked + 1
        assert blocked <= turns["payloads"][2]
        running = [job for job in running + started if chance.random() > 1 / life]
        if not [name for name, _ in held if name.startswith("array")]:
            return
    raise AssertionError("an array waits for ever: %s %s" % (held[:3], turns))


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
