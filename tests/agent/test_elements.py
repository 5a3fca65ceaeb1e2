"""The table of an array's elements: whole where it is short, bounded where it is not, and nothing of it is believed."""

import copy
import json
import random

import pytest

from chasqui_agent import elements


def spread(text):
    """The numbers of a text of ranges."""
    found = []
    for piece in text.split(",") if text else []:
        span, _, step = piece.partition(":")
        first, _, last = span.partition("-")
        found += range(int(first), int(last or first) + 1, int(step or 1))
    return found


@pytest.mark.parametrize(
    "indices, text",
    [
        ([], ""),
        ([5], "5"),
        ([0, 1], "0-1"),
        ([0, 2], "0,2"),
        ([0, 1, 2, 3, 7, 9, 10], "0-3,7,9-10"),
        ([0, 2, 4, 6, 7, 8], "0-6:2,7-8"),
        (range(0, 100001, 10), "0-100000:10"),
    ],
)
def test_ranges(indices, text):
    assert elements.ranges(indices, 3000) == text


@pytest.mark.parametrize("seed", range(20))
def test_ranges_say_what_they_were_made_of_or_the_beginning_of_it(seed):
    chance = random.Random(seed)
    indices = sorted(chance.sample(range(20000), chance.randrange(1, 5000)))
    assert spread(elements.ranges(indices, 10**6)) == indices
    for most in (4, 80, 500):
        cut = elements.ranges(indices, most)
        assert len(cut) <= most and (cut.endswith("...") or spread(cut) == indices)
        begun = spread(cut[: -len("...")].rstrip(","))
        assert begun == indices[: len(begun)]


def test_the_table_of_a_small_array():
    found = [(1, "done", 0), (2, "failed", 7), (3, "failed", 3), (4, "unfinished", None), (5, "failed", 7)]
    told = elements.tally(found + [(6, "done", 0)], elements.ENDED)
    assert told == {
        "done": 2,
        "failed": 3,
        "unfinished": 1,
        "unstarted": 0,
        "states": [
            {"state": "failed", "exit": 3, "count": 1, "indices": "3"},
            {"state": "failed", "exit": 7, "count": 2, "indices": "2,5"},
            {"state": "unfinished", "exit": None, "count": 1, "indices": "4"},
            {"state": "done", "exit": 0, "count": 2, "indices": "1,6"},
        ],
    }
    assert elements.short(told) == "2 done, 3 failed, 1 did not finish"
    assert elements.lines(told)[:2] == [("1 failed, exit 3", "3"), ("2 failed, exit 7", "2,5")]
    assert elements.checked(json.loads(json.dumps(told))) == told


@pytest.mark.parametrize("size", [100, 10000, 100000])
@pytest.mark.parametrize("codes", [1, 20, 21, 255])
def test_the_table_stays_small_whatever_became_of_the_array(size, codes):
    chance = random.Random(size)

    def end(index):
        state = chance.choice(elements.ENDED)
        return index, state, {"failed": 1 + chance.randrange(codes), "done": 0}.get(state)

    found = [end(index) for index in range(size)]
    told = elements.tally(found, elements.ENDED)
    assert len(json.dumps(told)) < 6000 and elements.checked(told) == told
    assert sum(len(row["indices"]) for row in told["states"]) < 4500
    assert sum(told[kind] for kind in elements.ENDED) == sum(row["count"] for row in told["states"]) == size
    for row in told["states"]:
        assert row["indices"] and row["count"] <= told[row["state"]]
    others = [row for row in told["states"] if row["state"] == "failed" and row["exit"] is None]
    kinds = {code for _, state, code in found if state == "failed"}
    assert len(others) == int(len(kinds) > elements.MOST_CODES)


GOOD = elements.tally([(1, "done", 0), (2, "failed", 7), (3, "unstarted", None)], elements.ENDED)


@pytest.mark.parametrize(
    "place, value",
    [
        (("done",), -1),
        (("done",), "1"),
        (("done",), True),
        (("done",), 10**6 + 1),
        (("states",), None),
        (("states",), {}),
        (("states",), [GOOD["states"][0]] * 30),
        (("states",), [7]),
        (("states", 0, "state"), "gone"),
        (("states", 0, "state"), ["failed"]),
        (("states", 0, "exit"), "7"),
        (("states", 0, "exit"), -7),
        (("states", 0, "count"), None),
        (("states", 0, "indices"), None),
        (("states", 0, "indices"), "1\x1b[2J"),
        (("states", 0, "indices"), "1-3...,4"),
        (("states", 0, "indices"), "1\n"),
        (("states", 0, "indices"), "1," * 2000),
    ],
)
def test_what_is_not_as_it_must_be_is_not_believed(place, value):
    told = copy.deepcopy(GOOD)
    spot = told
    for step in place[:-1]:
        spot = spot[step]
    spot[place[-1]] = value
    assert elements.checked(told) is None and elements.checked(GOOD) == GOOD


BEFORE = {"done": 1, "failed": 0, "unfinished": 2}  # what agents before this one said


@pytest.mark.parametrize("value", [None, [], "x", {}, {"done": 1}, {"states": []}, BEFORE])
def test_no_table_at_all(value):
    assert elements.checked(value) is None


def test_keys_that_nobody_knows_do_not_get_through():
    told = dict(copy.deepcopy(GOOD), more="x")
    told["states"][0]["color"] = "red"
    assert elements.checked(told) == GOOD
