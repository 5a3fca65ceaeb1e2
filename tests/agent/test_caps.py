"""The caps, as tables; tests/property holds the general laws."""

import pytest

from chasqui_agent.caps import PATIENCE, Caps, Counts, plan, too_large


def carried_out(places, held, waiting):
    """(sizes released, submitted free, submitted with a hold) as a pump does it, jobs in their order."""
    released = [size for size in held if places.payloads.take("h%d" % size, size)]
    free, kept = [], []
    for size in waiting:
        if places.queue.take("w%d" % size, size):
            (free if places.payloads.take("w%d" % size, size) else kept).append(size)
    return released, free, kept


@pytest.mark.parametrize(
    "counts, caps, held, waiting, expected",
    [
        # payloads queued live | running queued total | held waiting | released free held
        ((0, 0, 0), (4, 8, 0), 0, 100, (0, 4, 4)),
        ((4, 4, 8), (4, 8, 0), 4, 100, (0, 0, 4)),
        ((3, 8, 11), (4, 8, 0), 8, 100, (1, 0, 0)),
        ((4, 8, 12), (4, 8, 0), 8, 100, (0, 0, 0)),
        ((0, 3, 3), (4, 8, 0), 3, 0, (3, 0, 0)),
        ((6, 0, 6), (4, 8, 0), 0, 5, (0, 0, 5)),  # max_running was lowered: nothing is added, the queue still fills
        ((0, 20, 20), (4, 8, 0), 20, 5, (4, 0, 0)),  # max_queued was lowered
        ((0, 0, 11), (30, 40, 12), 0, 5, (0, 1, 0)),  # one place left of max_total
        ((1, 0, 1), (1, 1, 1), 0, 5, (0, 0, 0)),  # a site that allows one job
        ((0, 0, 0), (1, 1, 1), 0, 5, (0, 1, 0)),
    ],
)
def test_single_jobs(counts, caps, held, waiting, expected):
    done = carried_out(plan(Counts(*counts + (0, 0, 0)), Caps(*caps)), [1] * held, [1] * waiting)
    assert tuple(len(sizes) for sizes in done) == expected


@pytest.mark.parametrize(
    "counts, held, waiting, expected",
    [
        # payloads queued live, others' | sizes held, waiting | released, free, held; the caps are 6 running, 10 queued
        ((0, 0, 0, 0, 0, 0), [], [6, 1, 1], ([], [6], [1, 1])),
        ((0, 0, 0, 0, 0, 0), [], [4, 3, 1, 1], ([], [4], [3, 1, 1])),  # nobody passes the three
        ((2, 5, 7, 0, 0, 0), [5], [1, 1], ([], [], [1, 1])),
        ((2, 6, 8, 0, 0, 0), [1, 5], [1], ([1], [], [1])),
        ((2, 6, 8, 0, 0, 0), [5, 1], [1], ([], [], [1])),  # the four places are kept for the five
        ((2, 6, 8, 2, 0, 2), [5, 1], [1], ([1], [1], [])),  # not while foreign jobs run: who knows for how long
        ((1, 5, 6, 0, 0, 0), [5], [], ([5], [], [])),
        ((6, 8, 14, 0, 0, 0), [], [3, 1], ([], [], [])),  # the queue's places are kept, too
        ((6, 8, 14, 0, 8, 8), [], [3, 1], ([], [], [1])),
    ],
)
def test_arrays_go_whole(counts, held, waiting, expected):
    assert carried_out(plan(Counts(*counts), Caps(6, 10, 0)), held, waiting) == expected


def test_who_waits_behind_an_array_has_a_round_now_and_then():
    turns, passed = None, []
    for number in range(5 * PATIENCE):
        places = plan(Counts(2, 6, 8, 0, 0, 0), Caps(6, 10, 0), turns)  # its places never become free
        if carried_out(places, [5, 1], [])[0]:
            passed.append(number)
        turns = {"payloads": places.payloads.turn}
    assert passed == [PATIENCE, PATIENCE + 2 * PATIENCE + 1]


@pytest.mark.parametrize(
    "size, beats, caps, words",
    [
        (6, 0, (6, 8, 0), ""),
        (1, 1, (1, 1, 1), ""),
        (7, 0, (6, 8, 0), "an array of 7 elements goes whole, and needs max_running = 7; it is 6"),
        (8, 1, (8, 8, 0), "needs max_queued = 9, 1 of them for the heartbeat; it is 8"),
        (9, 0, (30, 8, 0), "needs max_queued = 9; it is 8"),
        (9, 1, (30, 40, 10), "needs max_total = 11, 2 of them for the heartbeat; it is 10"),
    ],
)
def test_an_array_that_no_cap_has_room_for(size, beats, caps, words):
    said = too_large(size, beats, Caps(*caps))
    assert said.endswith(words) if words else said == ""
