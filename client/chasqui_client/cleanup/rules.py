"""Which jobs' work folders may be cleaned: decided from facts alone. One word for each reason why not.

"Proved twice" is a matter of clocks, and clocks are set: only what time can't have been made up counts. Two proofs
of one boot are as far apart as the clock that nobody sets says, at most; times that go back, or that lie before the
attempt was made, or ten years apart, say nothing.
"""

import math
from collections.abc import Sequence

from chasqui_agent import clearance

from .. import states
from ..fields import dataclass

HOUR = 3600.0
_ABSURD = 10 * 365 * 24 * HOUR

# Why a job stays as it is; the agent has the other words.
REASONS = {
    "running": "it has not ended",
    "unverified": "its results are not all here",
    "cleaned": "it is cleaned already",
    "kept": "chasqui keep: until it is revoked",
    "damaged": "the results here are not what was proved",
    "once": "its results were proved in one run alone",
    "young": "the second proof does not lie long enough after the first (cleanup_min_age)",
    "clock": "the times of its proofs make no sense: was the clock set?",
    "silent": "the cluster gave no answer",
    **clearance.REASONS,
}


@dataclass(frozen=True)
class Proof:
    """One run that found an attempt's results whole. at: seconds since 1970. boot, up: which boot of this computer, and
    seconds since then ("" where the system doesn't say). manifest: digest of what was proved."""

    run: str
    at: float
    boot: str
    up: float
    manifest: str


@dataclass(frozen=True)
class Facts:
    """What the ledger knows of a job. manifest: of the files that are here now; added: when its attempt was made,
    infinite where that can't be told."""

    state: str
    results_state: str
    kept: bool
    manifest: str
    added: float
    proofs: Sequence[Proof]  # in the order they were recorded


def refusal(facts: Facts, min_age: float) -> str:
    """The word for a job that may not be cleaned, "" for one that the cluster may be asked about.

    min_age: seconds from the first proof to the last.
    """
    if facts.state == states.LOST:
        return "lost"
    if facts.state not in states.ENDED:
        return "running"
    if facts.results_state == states.CLEANED:
        return "cleaned"
    if facts.results_state not in (states.VERIFIED, states.CLEANUP_ELIGIBLE):
        return "unverified"
    return "kept" if facts.kept else _age_refusal(facts, min_age)


def _age_refusal(facts: Facts, min_age: float) -> str:
    proofs = [proof for proof in facts.proofs if proof.manifest == facts.manifest]
    if len({proof.run for proof in proofs}) < 2:
        return "once"
    if facts.added == math.inf:
        return "young"
    *earlier, last = _credible(proofs, facts.added)
    spans = [span for first in earlier if first.run != last.run and (span := elapsed(first, last)) is not None]
    if not spans:
        return "clock"
    return "" if max(spans) >= min_age else "young"


def _credible(proofs: Sequence[Proof], added: float) -> list[Proof]:
    """The last proof and those before it whose times never went back since; none from before the attempt was made."""
    kept = [proofs[-1]]
    for proof in reversed(proofs[:-1]):
        if not added <= proof.at <= kept[0].at:
            break
        kept.insert(0, proof)
    return kept


def elapsed(first: Proof, last: Proof) -> float | None:
    """Seconds between two proofs, the least that any clock says; None where they can't be true."""
    spans = [last.at - first.at]
    if first.boot and first.boot == last.boot:
        spans.append(last.up - first.up)
    return min(spans) if all(0 <= span <= _ABSURD for span in spans) else None
