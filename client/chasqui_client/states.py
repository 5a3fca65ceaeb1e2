"""The states of a job and of its results, and the one table of allowed moves for each.

    PREPARED -> QUEUED_LOCAL -> UPLOADED -> SUBMITTED -> RUNNING -> COMPLETED | FAILED | LOST | REJECTED | CANCELLED

(UPLOADED leads from FAILED and LOST, too, where the relay itself makes the next attempt: that is no move of this one.)
HELD is what the user put aside (here or on the cluster). BLOCKED is an end, too: the job did not run, for how one ended
that it waited for. From an end only a new attempt (QUEUED_LOCAL) leads on; LOST alone can be repaired, by a flag that
shows up late.
"""

PREPARED, QUEUED_LOCAL, UPLOADED, SUBMITTED, RUNNING = "PREPARED", "QUEUED_LOCAL", "UPLOADED", "SUBMITTED", "RUNNING"
COMPLETED, FAILED, LOST, REJECTED, CANCELLED = "COMPLETED", "FAILED", "LOST", "REJECTED", "CANCELLED"
HELD, BLOCKED = "HELD", "BLOCKED"

ENDED = (COMPLETED, FAILED, LOST, REJECTED, CANCELLED, BLOCKED)
OPEN = (PREPARED, QUEUED_LOCAL, UPLOADED, SUBMITTED, RUNNING, HELD)
STATES = OPEN + ENDED

_LIVE = frozenset((UPLOADED, SUBMITTED, RUNNING, HELD) + ENDED)
_AGAIN = frozenset((QUEUED_LOCAL,))

# QUEUED_LOCAL leads anywhere: an acknowledgement can be lost, and the journal then tells the whole story at once.
JOB_MOVES: dict[str, frozenset[str]] = {
    "": frozenset((PREPARED,)),
    PREPARED: frozenset((QUEUED_LOCAL, HELD, CANCELLED)),
    QUEUED_LOCAL: _LIVE,
    UPLOADED: _LIVE - {UPLOADED} | _AGAIN,
    SUBMITTED: _LIVE - {SUBMITTED},
    RUNNING: _LIVE - {RUNNING},
    HELD: _LIVE - {HELD} | _AGAIN,
    COMPLETED: _AGAIN,
    FAILED: _AGAIN,
    LOST: _AGAIN | {COMPLETED, FAILED},
    REJECTED: _AGAIN,
    CANCELLED: _AGAIN,
    BLOCKED: _AGAIN,
}

NONE, PARTIAL, VERIFIED, CLEANUP_ELIGIBLE, CLEANED = "NONE", "PARTIAL", "VERIFIED", "CLEANUP_ELIGIBLE", "CLEANED"
RESULTS_STATES = (NONE, PARTIAL, VERIFIED, CLEANUP_ELIGIBLE, CLEANED)

# Every state leads back to NONE: a new attempt has no results yet.
RESULTS_MOVES: dict[str, frozenset[str]] = {
    NONE: frozenset((PARTIAL, VERIFIED)),
    PARTIAL: frozenset((NONE, VERIFIED)),
    VERIFIED: frozenset((NONE, PARTIAL, CLEANUP_ELIGIBLE)),
    CLEANUP_ELIGIBLE: frozenset((NONE, VERIFIED, CLEANED)),
    CLEANED: frozenset((NONE,)),
}

_ENDS = {"DONE": COMPLETED, "FAIL": FAILED, "LOST": LOST}
_EVENTS = {
    "accepted": UPLOADED, "submitted": SUBMITTED, "adopted": SUBMITTED, "started": RUNNING, "held": HELD,
    "released": UPLOADED, "closed": UPLOADED, "requeued": SUBMITTED, "lost": LOST, "rejected": REJECTED,
    "cancelled": CANCELLED, "blocked": BLOCKED,
}


def state_after(event: str, outcome: str, state: str, in_scheduler: bool) -> str:
    """The state a journal record leads to; `state` itself where it changes nothing.

    event: the record's "ev". outcome: its "state" (DONE, FAIL, LOST), of `ended` and `repaired` alone.
    in_scheduler: the scheduler has the attempt (it was submitted and not taken back).
    Late and repeated records change nothing: from an end only LOST moves, to the end that was found after all.
    """
    after = _ENDS.get(outcome, "") if event in ("ended", "repaired") else _EVENTS.get(event, "")
    if event == "accepted" and state not in (QUEUED_LOCAL, PREPARED):
        return state
    if event == "released":
        after = state if state != HELD else SUBMITTED if in_scheduler else UPLOADED
    if after in ("", state) or after == QUEUED_LOCAL or after not in JOB_MOVES.get(state, ()):
        return state
    return after
