"""P1 to P5 under whatever happens, in any order: hypothesis drives agent and mock PBS, one small disaster a step.

CI takes the same steps every time, the long size others each time. A failure prints its seed, its steps and a blob, and

    CHASQUI_ANY_ORDER=<seed> pytest tests/pbs/test_any_order.py

takes the same steps again, those of the clusters before it first; with the blob (AX...) in place of the seed, those of
the cluster that failed alone. The steps are the same; how far processes come between two of them is not, so a rare
failure may want several attempts.

The steps are a list that hypothesis draws, not the rules of its RuleBasedStateMachine. That one leaves some rules out
for the whole of a machine, begins with the plainest machine, and cuts others short: it pays where thousands of machines
cost nothing. Of six machines of fifty steps four never had a job, and nothing was killed. Nor is anything shrunk here:
what is left of the steps when the same ones have come less far by chance means little.
"""

import os
import random
import re
from pathlib import Path
from typing import ClassVar

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from conftest import Size
from fault.test_faults import cluster_python  # noqa: F401
from pbs.any_order import AnyOrder, Ground, Step, steps
from pbs.promises import Broken

CHOSEN = os.environ.get("CHASQUI_ANY_ORDER", "")
STEPS = 50  # of one cluster


def run(ground: Ground, made: type[AnyOrder], clusters: int, count: int, chosen: str) -> None:
    """chosen: a seed, or a blob that stands for the steps of one cluster."""

    def test(history: bool, steps: list[Step]) -> None:
        # The first that hypothesis thinks of is the plainest, again and again: no test of anything.
        if any(step != steps[0] for step in steps):
            with made(ground, history) as world:
                world.take(steps)

    given = hypothesis.given(history=st.booleans(), steps=st.lists(steps(), min_size=count, max_size=count))(test)
    again = hypothesis.seed(int(chosen)) if chosen.isdigit() else \
        hypothesis.reproduce_failure(hypothesis.__version__, chosen.encode())  # fmt: skip
    chosen_settings = hypothesis.settings(
        max_examples=clusters + 1, phases=[Phase.generate], print_blob=True, deadline=None, derandomize=False,
        database=None, suppress_health_check=list(HealthCheck))  # fmt: skip
    try:
        again(chosen_settings(given))()
    except Exception as error:
        error.add_note("the same steps again: CHASQUI_ANY_ORDER=%s, or the blob above" % chosen)
        raise


def test_the_promises_hold_whatever_happens(
        tmp_path: Path, size: Size, cluster_python: str, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    ground = Ground(tmp_path, cluster_python)
    chosen = CHOSEN or str(random.SystemRandom().randrange(10**9) if size.long else 5)
    with capsys.disabled():
        print("\nproperty over PBS: CHASQUI_ANY_ORDER=" + chosen)
    run(ground, AnyOrder, size.clusters, STEPS, chosen)
    with capsys.disabled():
        print("property over PBS: " + ", ".join("%d %s" % (count, what) for what, count in ground.done.items()))


class RunsTwice(AnyOrder):
    """Some payloads start a second time."""

    taken: ClassVar[list[list[Step]]] = []

    def take(self, steps: list[Step]) -> None:
        self.taken.append(steps)
        super().take(steps)

    def text(self, job: str) -> str:
        first, start, *rest = super().text(job).split("\n")
        return "\n".join([first, start] + [start] * (self.kinds[job] in ("short", "while")) + rest)


def test_a_planted_bug_is_found_and_found_again(tmp_path: Path, cluster_python: str) -> None:  # noqa: F811
    """By the steps that its blob stands for, which are those of its seed; hypothesis itself has taken them twice."""
    ground = Ground(tmp_path, cluster_python)
    with pytest.raises(Broken, match="P1: started more than once") as found:
        run(ground, RunsTwice, 3, 15, "1")
    notes = "\n".join(found.value.__notes__)
    blob = re.findall(r"@reproduce_failure\('[^']*', b'([^']*)'\)", notes)
    assert blob and "CHASQUI_ANY_ORDER=1," in notes and repr(RunsTwice.taken[-1]) in re.sub(r"\s+", " ", notes), notes
    with pytest.raises(Broken, match="P1: started more than once"):
        run(ground, RunsTwice, 3, 15, blob[0])
    assert RunsTwice.taken[-1] == RunsTwice.taken[-2] == RunsTwice.taken[-3]
