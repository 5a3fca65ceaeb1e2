"""Which jobs may be cleaned: every rule as a row, and every clock that is not to be believed."""

import math

import pytest

from chasqui_client import states
from chasqui_client.cleanup import rules
from chasqui_client.cleanup.rules import Facts, Proof
from chasqui_client.fields import replace

HOUR = 3600.0
DAY = 24 * HOUR
NOON = 1_795_000_000.0


def proof(run: str, at: float, boot: str = "", up: float = 0.0, manifest: str = "m") -> Proof:
    return Proof(run, NOON + at, boot, up, manifest)


SYNC, NOW = proof("sync", 0), proof("now", 3 * DAY)
GOOD = Facts("COMPLETED", "VERIFIED", False, "m", NOON - HOUR, [SYNC, NOW])

RULES = [
    ({}, ""),
    ({"state": "FAILED"}, ""),
    ({"state": "CANCELLED"}, ""),
    ({"results_state": "CLEANUP_ELIGIBLE"}, ""),  # a clean that was killed
    ({"state": "RUNNING"}, "running"),
    ({"state": "QUEUED_LOCAL", "results_state": "NONE"}, "running"),  # a newer attempt
    ({"state": "HELD"}, "running"),
    ({"state": "LOST"}, "lost"),
    ({"results_state": "NONE"}, "unverified"),
    ({"results_state": "PARTIAL"}, "unverified"),
    ({"results_state": "CLEANED"}, "cleaned"),
    ({"kept": True}, "kept"),
    ({"proofs": [NOW]}, "once"),
    ({"proofs": [proof("now", 0), NOW]}, "once"),  # twice by the same run
    ({"proofs": [proof("sync", 0, manifest="older"), NOW]}, "once"),  # more came home since
    ({"manifest": "other"}, "once"),
    ({"proofs": [SYNC, proof("now", DAY - 1)]}, "young"),
    ({"proofs": [SYNC, proof("now", DAY)]}, ""),
    ({"added": math.inf}, "young"),  # nobody knows when its attempt was made
    ({"proofs": [SYNC, proof("a", HOUR), proof("b", 2 * HOUR), proof("now", DAY)]}, ""),
    ({"proofs": [SYNC, proof("a", HOUR), proof("now", 2 * HOUR)]}, "young"),
]

CLOCKS = [
    # A clock set back between the two: the difference is negative, however large.
    ([proof("sync", 3 * DAY), proof("now", 0)], "clock"),
    # Set back, and now on its way again: only what was proved since counts.
    ([proof("sync", 30 * DAY), proof("a", 0), proof("now", HOUR)], "young"),
    ([proof("sync", 30 * DAY), proof("a", 0), proof("now", 2 * DAY)], ""),
    # Set back before the first proof (it lies before the attempt was made), and set right since.
    ([proof("sync", -3 * DAY), proof("now", HOUR)], "clock"),
    ([proof("sync", -3 * DAY), proof("a", 0), proof("now", HOUR)], "young"),
    # Set forward within one boot: the clock that nobody sets tells.
    ([proof("sync", 0, "boot", 100.0), proof("now", 3 * DAY, "boot", 160.0)], "young"),
    ([proof("sync", 0, "boot", 100.0), proof("now", 3 * DAY, "boot", 100.0 + 2 * DAY)], ""),
    ([proof("sync", 0, "boot", 100.0), proof("now", 3 * DAY, "boot", 50.0)], "clock"),
    ([proof("sync", 0, "boot", 100.0), proof("now", 3 * DAY, "other", 50.0)], ""),  # another boot says nothing
    # Absurd: a computer that woke up in 1970, and one in 2099.
    ([proof("sync", 0), proof("now", 40 * 365 * DAY)], "clock"),
]


@pytest.mark.parametrize("different, word", RULES)
def test_rules(different: dict[str, object], word: str) -> None:
    assert rules.refusal(replace(GOOD, **different), DAY) == word  # type: ignore[arg-type]


@pytest.mark.parametrize("proofs, word", CLOCKS)
def test_clocks(proofs: list[Proof], word: str) -> None:
    assert rules.refusal(replace(GOOD, proofs=proofs), DAY) == word


def test_no_age_is_asked_for_and_two_runs_still_are() -> None:
    assert rules.refusal(replace(GOOD, proofs=[SYNC, proof("now", 0)]), 0) == ""
    assert rules.refusal(replace(GOOD, proofs=[SYNC, SYNC]), 0) == "once"


def test_every_state_has_an_answer_and_every_word_a_meaning() -> None:
    for state in states.STATES:
        for results in states.RESULTS_STATES:
            word = rules.refusal(replace(GOOD, state=state, results_state=results), DAY)
            assert not word or word in rules.REASONS
            if state not in ("COMPLETED", "FAILED", "REJECTED", "CANCELLED", "BLOCKED"):
                assert word in ("running", "lost")
