"""From what is known of a job to one paragraph and the next thing to type. Pure: no disk, no network."""

from collections.abc import Mapping
from typing import Any

from chasqui_agent import elements, space, why

from .. import states
from ..command import as_of, count
from ..config import ANY
from ..fields import dataclass
from ..rows import Parent
from . import endings
from .known import Known

Causes = list[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """causes: (a short word for programs, a sentence), the paragraph in order. next: what to type, "" where nothing
    helps."""

    causes: Causes
    next: str

    @property
    def paragraph(self) -> str:
        return " ".join(sentence for _, sentence in self.causes)


def explain(known: Known) -> Answer:
    """Why the job is where it is."""
    job = known.job
    causes = _head(known)
    if job.ended:
        causes += _again(known, "It was %s.") + endings.how(known)
    elif known.there is not None and why.words(dict(known.there)):
        causes += _said_there(known, known.there)
    else:
        causes += _again(known, "The relay tries it again by itself: %s.")
        causes += _STATES[job.state](known) + _age(known)
    causes += _requests(known)
    return Answer(causes, _next(known, {cause for cause, _ in causes}))


def _again(known: Known, said: str) -> Causes:
    """What is told of an attempt that the relay made."""
    return [("again", said % known.again.rstrip("."))] if known.again else []


def _head(known: Known) -> Causes:
    job = known.job
    newest = (known.there or {}).get("attempt")  # the relay may have made some that no sync has told of
    attempt = max(job.attempt, newest) if isinstance(newest, int) and newest < 1 << 31 else job.attempt
    again = ", attempt %d" % attempt if attempt > 1 else ""
    state = _THERE.get(_there(known), job.state)
    state = states.RUNNING if _there(known) == "submitted" and _runs(known) else state
    return [("state", "%s is %s%s." % (job.name, state, again))]


# What the relay says now, as the states of the ledger; the rest is as the last sync left it.
_THERE = {"waiting": states.UPLOADED, "dropped": states.UPLOADED, "held": states.HELD, "submitting": states.UPLOADED,
          "submitted": states.SUBMITTED, "after": states.UPLOADED}


def _there(known: Known) -> str:
    said = (known.there or {}).get("state")
    return said if isinstance(said, str) else ""


def _said_there(known: Known, there: Mapping[str, Any]) -> Causes:
    found: Causes = [("there-" + (_there(known) or "unknown"), " ".join(why.words(dict(there))))]
    if _there(known) == "held":
        found += _waits(known)
    if there.get("stalled"):
        found.append(("stalled", "A sync starts it again."))
    if _there(known) in ("completed", "rejected", "cancelled", "blocked"):
        found.append(("news", "The next sync brings this home."))
    return found


# -- here, or nobody asked ---------------------------------------------------------------------------------------------


def _queued_here(known: Known) -> Causes:
    job = known.job
    if job.remote == ANY:
        return [("anywhere", "It goes to the first cluster that has a slot free when chasqui sync --all runs.")]
    if not known.configured:
        return [("no-remote", "It is for %s, which is not in config.toml any more." % job.remote)]
    if job.offered == job.attempt:
        return [("unacknowledged", "It was on its way when a sync was cut; the next one finds out whether it arrived.")]
    found = _changes(known) + _kept(known)
    return _waits(known) + (found or _not_yet(known))


def _not_yet(known: Known) -> Causes:
    """Nothing but a sync is missing."""
    job = known.job
    if not known.synced:
        return [("never-synced", "It is still here: no sync with %s has run to its end yet." % job.remote)]
    if known.paused:
        return [("paused", "It is still here: no transfers until %s (windows in config.toml)." % known.paused)]
    return [("not-synced-since", "It is still here: it was added after the last sync with %s." % job.remote)
            if known.synced <= job.changed else
            ("not-uploaded", "It is still here: the last sync did not hand it over.")]


def _changes(known: Known) -> Causes:
    gone = [(path, what) for path, what in known.changes if what != "changed since add"]
    if gone:
        more = " and %s more" % (len(gone) - 1) if len(gone) > 1 else ""
        return [("inputs-missing", "It can't be handed over: %s%s, %s." % (gone[0][0], more, gone[0][1]))]
    if known.changes:
        names = ", ".join(path for path, _ in known.changes[:3])
        more = " and %d more" % (len(known.changes) - 3) if len(known.changes) > 3 else ""
        text = "Inputs changed since it was added (%s%s); they are uploaded as they are then." % (names, more)
        return [("inputs-changed", text)]
    return []


def _kept(known: Known) -> Causes:
    """Why the last sync left it here."""
    table = known.report.get("kept")
    said = table.get(known.job.id) if isinstance(table, dict) else None
    stopped = known.report.get("stopped")
    if isinstance(said, str) and said.startswith(space.NO_ROOM):
        return [("no-room", "There is no room for it there: %s." % said[len(space.NO_ROOM):].rstrip("."))]
    if isinstance(said, str):
        return [("not-taken", "The last sync did not hand it over: %s." % said.rstrip("."))]
    if isinstance(stopped, str) and stopped:
        return [("disk-full", "The last sync could hand over no more: %s" % _ended(stopped))]
    return []


def _held(known: Known) -> Causes:
    job = known.job
    if job.offered < job.attempt:
        return [("held-here", "You held it here, before it was handed over."), *_waits(known)]
    by = "its own line #PBS -h" if job.why == "#PBS -h" else "chasqui hold"
    return [("held", "It is held there by %s." % by), *_waits(known)]


def _prepared(known: Known) -> Causes:
    return [("prepared", "A check keeps it here: %s" % _ended(known.job.why or "it was not finished"))]


def _waits(known: Known) -> Causes:
    """What the ledger knows of those that it waits for."""
    wrong = next((parent for parent in known.parents if parent.in_the_way), None)
    if wrong:
        text = "It will be blocked: it waits for %s." % why.awaited([_told(wrong)], 0, wrong.condition)
        return [("to-be-blocked", text)]
    awaited = [parent for parent in known.parents if not parent.ended]
    if not awaited:
        return []
    return [("waits", "It waits for %s." % why.awaited([_told(one) for one in awaited], 0, awaited[0].condition))]


def _told(parent: Parent) -> tuple[str, str, str]:
    here = parent.state in (states.PREPARED, states.QUEUED_LOCAL)
    return parent.id, parent.name, "still here" if here else parent.state.lower()


def _waiting(known: Known) -> Causes:
    waits = _waits(known)
    if waits:
        return waits + _relay(known)
    before = "%s before it" % count(known.ahead, "job") if known.ahead else "none of yours before it"
    found = [("waiting", "It waits on %s for its turn: %s (priority %d)."
              % (known.job.remote, before, known.job.priority))]
    if known.live >= sum(known.caps) > 0:
        found.append(("caps", "%s in the scheduler, as many as max_running = %d and max_queued = %d allow."
                      % (count(known.live, "job"), *known.caps)))
    return found + _relay(known)


def _relay(known: Known) -> Causes:
    """What the last sync learnt of the relay."""
    from chasqui_agent import outlook
    pump, status = (known.report.get(key) for key in ("pump", "status"))
    found: Causes = []
    for key, cause, text in (("refused", "refused", "It was refused, in the scheduler's words: %s"),
                             ("full", "disk-full", "The relay has no room left: %s"),
                             ("note", "pump", "The pump said: %s")):
        said = pump.get(key) if isinstance(pump, dict) else None
        if isinstance(said, str) and said:
            found.append((cause, text % _ended(said)))
    told = outlook.words(status) if isinstance(status, dict) else ""
    if told:
        found.append(("only-at-syncs" if "at each sync" in told else "relay", told[0].upper() + _ended(told[1:])))
    return found


def _submitted(known: Known) -> Causes:
    job, found = known.job, []
    again = " The scheduler has put it back %d times." % known.starts if known.starts > 1 else ""
    found.append(("submitted", "It is in the scheduler as %s and had not started.%s" % (job.pbs or "?", again)))
    status = known.report.get("status")
    notes = status.get("notes") if isinstance(status, dict) else ""
    for note in notes.split("; ") if isinstance(notes, str) else ():
        if note.startswith(job.id):
            found.append(("comment", "PBS said: %s" % _ended(note.partition(": ")[2])))
    return found + _left(known)


def _running(known: Known) -> Causes:
    told = "" if known.progress is None else " Its elements: %s." % elements.short(dict(known.progress))
    return [("running", "It runs, as %s.%s" % (known.job.pbs or "?", told)), *_left(known)]


def _left(known: Known) -> Causes:
    return [("retries-left", why.retries_left(known.retries))] if known.retries else []


_STATES = {states.PREPARED: _prepared, states.QUEUED_LOCAL: _queued_here, states.HELD: _held,
           states.UPLOADED: _waiting, states.SUBMITTED: _submitted, states.RUNNING: _running}


def _age(known: Known) -> Causes:
    """How old that is, where the relay might know better."""
    if known.job.offered < known.job.attempt or not known.configured:
        return []
    told = "This is %s" % as_of(known.synced) if known.synced else "No sync has ended yet"
    silent = "; %s could not be asked: %s" % (known.job.remote, known.silent) if known.silent else ""
    return [("as-of", _ended(told + silent))]


def _requests(known: Known) -> Causes:
    done = {"cancel": "cancelled", "hold": "held", "release": "released"}
    return [("to-be-" + done[op], "It will be %s by the next sync." % done[op])
            for op in known.operations if op in done]


def _ended(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


# -- what to type ------------------------------------------------------------------------------------------------------


def _next(known: Known, causes: set[str]) -> str:
    job, sync, short = known.job, known.sync, known.job.id[:8]
    for among, line in (
            ({"anywhere"}, "chasqui sync --all"),
            ({"no-remote"}, "chasqui init %s --host HOST" % job.remote),
            ({"inputs-missing"}, "put it back, then: %s    (or: chasqui cancel %s)" % (sync, short)),
            ({"no-room", "disk-full"}, "make room there (chasqui clean --dry-run), then: %s" % sync),
            ({"to-be-cancelled", "to-be-held", "to-be-released", "stalled", "news", "only-at-syncs"}, sync),
            ({"held-here"}, "chasqui release %s" % short),
            ({"held", "there-held"}, "chasqui release %s && %s" % (short, sync)),
            ({"blocked", "to-be-blocked"}, _unblock(known, sync)),
            ({"unblocked"}, "chasqui retry %s && %s" % (short, sync)),
            (_looked_up(known, causes), "chasqui why %s" % _slow(known)),
            ({"rejected"}, "correct its script, then: chasqui retry %s && %s" % (short, sync)),
            ({"results-not-here"}, sync),
            ({"exit", "signal", "failed", "lost", "results-incomplete", *_ENDED},
             "chasqui logs %s%s" % (short, endings.first_failed(known))),
            ({"results-left"}, "chasqui results %s" % short),
            ({"cancelled"}, "chasqui retry %s && %s    (if you want it after all)" % (short, sync)),
            ({"completed", "prepared"}, "")):
        if among & causes:
            return line
    if "Can Never Run" in " ".join(_all_words(known)):
        return "chasqui cancel %s && %s    (then correct what its script asks for)" % (short, sync)
    if _runs(known):
        return "chasqui logs -f %s" % short
    return "" if known.there is not None else sync


def _unblock(known: Known, sync: str) -> str:
    parent = known.blocker
    if parent is None or parent.condition == "fail":
        return ""
    return "chasqui retry %s && %s    (why it ended so: chasqui why %s)" % (parent.id[:8], sync, parent.id[:8])


def _looked_up(known: Known, causes: set[str]) -> set[str]:
    """The causes with which to look at what it waits for: where another sync alone does not help."""
    at_them = known.job.acked == known.job.attempt or "not-taken" in causes
    if (known.there or {}).get("parents") == []:
        return set()  # they have ended there
    return {"waits", "there-after"} if at_them and _slow(known) else set()


def _slow(known: Known) -> str:
    """The first that it waits for and that does not run."""
    found = (one.id[:8] for one in known.parents if not one.ended and one.state != states.RUNNING)
    return next(found, "")


_ENDED = {word.replace(" ", "-") for word in endings.ENDED_FOR}


def _all_words(known: Known) -> list[str]:
    return [text for _, text in _submitted(known)] + (why.words(dict(known.there)) if known.there else [])


def _runs(known: Known) -> bool:
    return bool((known.there or {}).get("began")) if known.there else known.job.state == states.RUNNING
