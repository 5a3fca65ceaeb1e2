"""The caps, as a table; tests/property holds the general law."""

import pytest

from chasqui_agent.caps import Caps, Counts, plan


@pytest.mark.parametrize(
    "counts, caps, expected",
    [
        # payloads queued live held waiting | running queued total | release free held
        ((0, 0, 0, 0, 100), (4, 8, 0), (0, 4, 4)),
        ((4, 4, 8, 4, 100), (4, 8, 0), (0, 0, 4)),
        ((3, 8, 11, 8, 100), (4, 8, 0), (1, 0, 0)),
        ((4, 8, 12, 8, 100), (4, 8, 0), (0, 0, 0)),
        ((0, 3, 3, 3, 0), (4, 8, 0), (3, 0, 0)),
        ((6, 0, 6, 0, 5), (4, 8, 0), (0, 0, 5)),  # max_running was lowered: nothing is added, the queue still fills
        ((0, 20, 20, 20, 5), (4, 8, 0), (4, 0, 0)),  # max_queued was lowered
        ((0, 0, 11, 0, 5), (30, 40, 12), (0, 1, 0)),  # one place left of max_total
        ((1, 0, 1, 0, 5), (1, 1, 1), (0, 0, 0)),  # a site that allows one job
        ((0, 0, 0, 0, 5), (1, 1, 1), (0, 1, 0)),
    ],
)
def test_plan(counts, caps, expected):
    assert tuple(plan(Counts(*counts), Caps(*caps))) == expected
