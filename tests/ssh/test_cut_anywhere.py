"""Syncs that break at a random byte, in seven ways: nothing half done is ever seen, and the next ones bring all home.

The seed is printed; CHASQUI_CUT_SEED repeats a run.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from ssh import cuts
from ssh.cuts import Cutter
from ssh.lab import Lab
from ssh.proxy import Proxy

CAMPAIGN = 5  # cuts in one direction while the same files are under way
CHUNK = 256 << 10  # what a cut may cost
LISTS = 16 << 10  # of a session with news: manifests, journal, listings
FRAMES = 0.02  # of the content: what ssh and our frames put around it


@pytest.fixture(scope="module")
def random_() -> random.Random:
    seed = int(os.environ.get("CHASQUI_CUT_SEED", random.SystemRandom().randrange(10**6)))
    print(f"\nCHASQUI_CUT_SEED={seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def cutter(lab: Lab, tmp_path_factory: pytest.TempPathFactory, random_: random.Random) -> Iterator[Cutter]:
    with Proxy(lab.port, rate=cuts.RATE) as proxy:
        made = Cutter(lab, proxy, tmp_path_factory.mktemp("anywhere"), "anywhere", random_)
        yield made
        made.chasqui("logout", "hpc")


def cut_often(cutter: Cutter, random_: random.Random, count: int, up: bool) -> Counter[str]:
    """`count` cuts at random places in one direction of campaigns; how many of each kind happened."""
    done: Counter[str] = Counter()
    kinds = list(cuts.KINDS)
    while sum(done.values()) < count:
        cutter.campaign()
        if not up:
            cutter.chasqui("sync", "--no-results")
            cutter.ran()
        total = cuts.JOBS * (cuts.INPUT if up else cuts.OUTPUT)
        for place in cuts.places(random_, total, min(CAMPAIGN, count)):
            random_.shuffle(kinds)
            kind = min(kinds, key=lambda name: done[name])
            if not cutter.cut(kind, place, up):
                break  # all had crossed before
            done[kind] += 1
        cutter.converge()
    return done


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_cut_at_random_bytes(cutter: Cutter, random_: random.Random, size: Any, up: bool) -> None:
    each = cutter.overhead() + LISTS
    crossed, content, sessions = cutter.crossed, cutter.content, cutter.sessions
    done = cut_often(cutter, random_, 200 if size.long else 30, up)
    crossed, content, sessions = cutter.crossed - crossed, cutter.content - content, cutter.sessions - sessions
    twice = crossed - content * (1 + FRAMES) - sessions * each
    happened = sum(done.values())
    print(f"{happened} cuts {'up' if up else 'down'}: {dict(done)}; in {sessions} sessions {crossed} bytes crossed for "
          f"{content}: {twice / happened / 1024:.0f} kB sent twice a cut, at {each} bytes a session")  # fmt: skip
    assert set(done) == set(cuts.KINDS)
    assert twice <= happened * CHUNK
