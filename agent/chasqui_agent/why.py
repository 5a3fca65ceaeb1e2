"""Why one job is where it is: the facts this root has of it, and the same in plain words.

The words are made here for both sides: the client asks for the facts (`why JOB ATTEMPT --json`) and adds what it knows.
"""

import os
import time

from . import (
    arrays,
    bounds,
    dependents,
    directives,
    elements,
    heartbeat,
    live,
    marks,
    outlook,
    schedulers,
    settings,
    spoiled,
    status,
)
from .schedulers.base import Unreachable
from .spool import JOB, SpoolError
from .state import State

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Optional, Tuple

    from .settings import Settings
    from .spool import Entry, Spool

    Facts = Dict[str, Any]

SHOWN = 1000  # characters of a scheduler's or a script's own words
SHOWN_PARENTS = 3
SHOWN_LIMITS = 3


def gather(spool: "Spool", job: str, attempt: int = 0) -> "Facts":
    """What this root knows of one attempt (0: the newest), as JSON can hold it:

    job, attempt (the last that the relay made of the one asked for), again (of one that it made: which it is, after
    what end, and what it asks for now), left (how often it may be tried again yet), state ("" where it is not here,
    "dropped" for a script not yet taken in), and by state:
    waiting: ahead (scripts before it), priority, back (in words, the limits that kept it back in the last round).
    after: if (ok, any, fail), parents [[id, name, state]] that have not ended, the first of them, and more (how many
    others). held: by ("script": its own #PBS -h, else "hold").
    submitting: grace (seconds). submitted: id, held (by us), began (when its script did; 0: not yet), spoilt (what
    tells that is gone), over (its script has ended), told (it was told to end), letter (the scheduler's state of it),
    words (the scheduler's own), silent (why it could not be asked), shared (of a member of a bundle: "waits" or "runs",
    of that), elements (of an array, as elements.tally). completed, rejected, cancelled, blocked: end (DONE, FAIL,
    LOST), words.

    Of what has not ended also: counts [payloads, queued, live], caps {max_running, max_queued, max_total, running_cap},
    refused [words, since when], called (the scheduler), asks (whether that is a
    server), debt, beat, pumped, stalled (times, seconds since 1970; 0: none), relay (as outlook.gather), failed (words
    of a wake that failed). Calls a scheduler once or twice: for a person who asks, not for pumps. Raises SpoolError.
    """
    if not JOB.match(job):
        raise SpoolError("%r is not the id of a job" % job[:80])
    attempt = spool.final_attempt(job, attempt or _newest(spool, job))
    found: "Facts" = dict(_retries(spool, job, attempt), job=job, attempt=attempt, state=spool.known(job, attempt))
    if not found["state"] and job + ".sh" in [os.path.basename(path) for path in spool.dropped()]:
        found["state"] = "dropped"
    if found["state"] in _OVER:
        return dict(found, **_end(spool, found["state"], job, attempt))
    if not found["state"]:
        return found
    chosen = settings.load(spool)
    if found["state"] == "waiting":
        found.update(_waiting(spool, job, attempt, chosen))
    if found["state"] == "after":
        found.update(_after(spool, job, attempt))
    for entry in spool.entries(found["state"]) if found["state"] in ("held", "submitting", "submitted") else ():
        if (entry.job, entry.attempt) == (job, attempt):
            found.update(_entry(spool, found["state"], entry, chosen))
    return dict(found, **_relay(spool, chosen))


def _newest(spool: "Spool", job: str) -> int:
    attempt = 1
    while os.path.isdir(spool.work_dir(job, attempt + 1)):
        attempt += 1
    return attempt


def _retries(spool: "Spool", job: str, attempt: int) -> "Facts":
    record = spool.job_record(job, attempt)
    again, rule, made = record.get("again"), record.get("retry"), record.get("tries", 0)
    if not isinstance(rule, dict) or not isinstance(rule.get("retries"), int) or not isinstance(made, int):
        return {}
    return {"again": again[:SHOWN] if isinstance(again, str) else "", "left": max(0, rule["retries"] - made)}


def _waiting(spool: "Spool", job: str, attempt: int, chosen: "Settings") -> "Facts":
    ahead, value = 0, State(spool).value
    for shard in _shards(spool):
        for entry in spool.shard_entries(shard):
            if (entry.job, entry.attempt) == (job, attempt):
                priority = spool.job_record(job, attempt).get("priority", 0)
                asked = bounds.asked(directives.asked_in(entry.path))
                asked = bounds.of_state(value, chosen).resolved(asked)
                back = bounds.told(value.get("held_back", ()), asked)
                return {"ahead": ahead, "priority": priority, "back": back}
            ahead += 1
    return {}


def _after(spool: "Spool", job: str, attempt: int) -> "Facts":
    record = spool.job_record(job, attempt)
    awaited = [parent for parent in record.get("after") or () if not dependents.end_of(spool, *parent)]
    parents = [[parent[0], dependents.name_of(spool, *parent[:2]), _standing(spool, parent[0], parent[1])]
               for parent in awaited[:SHOWN_PARENTS]]
    return {"if": record.get("if", "ok"), "parents": parents, "more": len(awaited) - len(parents)}


def _standing(spool: "Spool", job: str, attempt: int) -> str:
    """As `Spool.known`, of the last attempt that the relay made of this one; "running" for a submitted one whose script
    has begun."""
    attempt = spool.final_attempt(job, attempt)
    state = spool.known(job, attempt)
    for entry in spool.entries("submitted") if state == "submitted" else ():
        if (entry.job, entry.attempt) == (job, attempt) and marks.read(spool.meta_dir(job, attempt), entry.token).runs:
            return "running"
    return state


def _shards(spool: "Spool") -> "List[str]":
    """As they will be served: those that no pump has taken in yet stand among the others then."""
    return sorted(shard for new in (False, True) for shard in spool.shards(new))


def _entry(spool: "Spool", state: str, entry: "Entry", chosen: "Settings") -> "Facts":
    if state == "submitting":
        return {"grace": chosen.grace}
    if state == "held":
        released = os.path.exists(os.path.join(spool.meta_dir(entry.job, entry.attempt), "released"))
        own = "h" in directives.asked_in(entry.path) and not released
        return {"by": "script" if own else "hold"}
    return _submitted(spool, entry, chosen)


def _submitted(spool: "Spool", entry: "Entry", chosen: "Settings") -> "Facts":
    meta = spool.meta_dir(entry.job, entry.attempt)
    left, known = marks.read(meta, entry.token), marks.read_id(meta, entry.token)
    job_id = str(known.get("id", "")) or spoiled.id_in_journal(spool.log, entry.token)
    found = {"spoilt": not known, "id": job_id, "held": bool(known.get("held")), "told": left.term or left.cancel,
             "over": left.flag is not None, "letter": "", "words": "", "silent": "", "shared": ""}
    bundle = live.bundled(spool).get(entry.token)
    if bundle:
        of_it = spool.meta_dir(bundle.job, bundle.attempt)
        found["shared"] = "runs" if marks.read(of_it, bundle.token).runs else "waits"
        found["held"] = bool(marks.read_id(of_it, bundle.token).get("held"))
    found["began"] = marks.started_at(meta, entry.token, left) if left.runs else 0
    indices = live.indices(entry, job_id)
    if indices and known:
        found["elements"] = arrays.states(live.Standing(entry, meta, job_id, False, left, indices), alive=True)
    try:
        found["letter"], found["words"] = schedulers.choose(spool, chosen).words_on(job_id) if job_id else ("", "")
    except (Unreachable, schedulers.Unknown) as error:
        why = State(spool).value.get("reasons", {}).get("why", {})
        found.update(silent=str(error)[:SHOWN], words=str(why.get(job_id, "")))
    found["words"] = found["words"][:SHOWN]
    return found


def _end(spool: "Spool", state: str, job: str, attempt: int) -> "Facts":
    if state == "blocked":
        return {"end": "", "words": dependents.why_blocked(spool, job, attempt)}
    suffix = {"completed": "flag", "rejected": "err"}.get(state, "sh")
    if state == "cancelled":
        return {"end": "", "words": ""}
    try:
        with open(spool.entry_path(state, job, attempt, suffix=suffix), "rb") as stream:
            lines = stream.read(SHOWN).decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return {"end": "", "words": ""}
    if state == "rejected":
        return {"end": "", "words": " ".join(lines).strip()}
    why = [line[len("why=") :] for line in lines if line.startswith("why=")]
    return {"end": lines[0], "words": (why or [""])[0]}


def _relay(spool: "Spool", chosen: "Settings") -> "Facts":
    """What holds for all jobs of the root: how much of each cap is used, what was refused, who wakes the relay next."""
    state, beats = State(spool), heartbeat.beats(spool)
    snapshot = state.cached_snapshot(float("inf"))
    scheduler = schedulers.choose(spool, chosen)
    has_beat = heartbeat.enabled(chosen, scheduler, state.value)
    ours = [beat.id for beat in heartbeat.every(spool)] if has_beat else None
    spare = len(heartbeat.reserve(spool))
    counts = live.count(live.standings(spool), len(live.in_flight(spool)), snapshot, ours, spare)
    caps = {key: getattr(chosen, key) for key in ("max_running", "max_queued", "max_total", "running_cap")}
    pumped = state.value.get("pumped", 0)
    stalled = pumped if status.gather(spool)["stalled_since"] else 0
    return {"counts": list(counts)[:3], "caps": caps, "refused": state.value.get("refused"),
            "called": scheduler.called, "asks": scheduler.asks_a_server, "beat": beats[-1].due if beats else 0,
            "debt": _debt(spool), "pumped": pumped, "stalled": stalled,
            "relay": outlook.gather(spool), "failed": _failed(spool)}


def _debt(spool: "Spool") -> int:
    """When the next job that starts shall look whether the places of those that ended are free; 0: nothing is owed."""
    try:
        with open(os.path.join(spool.wake, "debt"), "rb") as stream:
            text = stream.read(20).strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


def _failed(spool: "Spool") -> str:
    """The words of the last wake that failed, if no pump has worked since."""
    path = os.path.join(spool.wake, ".failed")
    try:
        if os.stat(path).st_mtime < os.stat(os.path.join(spool.root, "state.json")).st_mtime:
            return ""
        with open(path, "rb") as stream:
            return stream.read(SHOWN).decode("utf-8", "replace")
    except OSError:
        return ""


# -- in words ----------------------------------------------------------------------------------------------------------
# On the laptop the facts came from the cluster: whatever they are, these functions end well and say little too much.


def words(found: "Facts") -> "List[str]":
    """The facts as sentences; [] where they say nothing."""
    state = found.get("state")
    say = _SAYINGS.get(state) if isinstance(state, str) else None
    return _said_again(found) + say(found) + _said_left(found) if say else []


def _said_again(found: "Facts") -> "List[str]":
    again, over = _text(found, "again"), found.get("state") in _OVER
    said = "It was %s." if over else "The relay tries it again by itself: %s."
    return [said % again.rstrip(".")] if again else []


def _said_left(found: "Facts") -> "List[str]":
    left = _number(found, "left")
    return [retries_left(left)] if left and found.get("state") in ("submitted", "ending") else []


def retries_left(left: int) -> str:
    """What a job that has not ended may come to yet, by its retry policy; left: how many times."""
    return "If it ends as its retry policy says, the relay tries it again, %s." % (
        "once" if left == 1 else "%d times at most" % left)


_OVER = ("completed", "rejected", "cancelled", "blocked")


def _said_dropped(found: "Facts") -> "List[str]":
    return ["Its script lies in waiting/ and was not taken in yet; the next pump does that, once it is 5 s old."]


def _said_unknown(found: "Facts") -> "List[str]":
    return ["The relay there has no such job."]


def _said_waiting(found: "Facts") -> "List[str]":
    ahead = _number(found, "ahead")
    turn = "it is the next" if not ahead else "%s before it" % _count(ahead, "script goes", "scripts go")
    lines = ["It waits there for its turn to be submitted: %s (priority %d)." % (turn, _signed(found, "priority"))]
    full = _full(found)
    if full:
        lines.append("No more are submitted now: %s." % "; ".join(full))
    return lines + _moves_on(found, bool(full))


def _full(found: "Facts") -> "List[str]":
    """The caps that keep anything from being submitted."""
    _, queued, everything = _counts(found)
    caps, said = _table(found, "caps"), []
    for cap, used, which in (("max_queued", queued, "queued"), ("max_total", everything, "in the scheduler")):
        most = _number(caps, cap)
        if most and used >= most:
            said.append("%s = %d is reached (%d are %s)" % (cap, most, used, which))
    back = found.get("back")
    told = back[:SHOWN_LIMITS] if isinstance(back, list) else []
    return said + [text[:200] for text in told if isinstance(text, str)]


def _moves_on(found: "Facts", full: bool) -> "List[str]":
    """What has the relay go on, or keeps it from that."""
    lines = []
    refused = found.get("refused")
    if isinstance(refused, list) and len(refused) == 2 and isinstance(refused[0], str):
        since = _when(refused[1])
        lines.append("%s refuses submissions%s, in its words: %s" % (
            _called(found, True), " since " + since if since else "", _ended(refused[0][:SHOWN])))
    if _number(found, "debt"):
        lines.append("Jobs that have just ended still take their places in %s; the next job that starts looks again."
                     % _called(found))
    if _text(found, "failed"):
        lines.append("The last wake of the relay failed: " + _ended(_text(found, "failed")))
    stalled = _when(found.get("stalled"))
    if stalled:
        return lines + ["The relay has stood still since %s: nothing is alive to wake it." % stalled]
    told = outlook.words(_table(found, "relay"))
    if told:
        return lines + [told[0].upper() + _ended(told[1:])]
    beat = _when(found.get("beat"))
    if beat and not full and not lines:
        lines.append("There is room for it: the next pump takes it.")
    return lines + (["The relay is woken when a job ends, and at %s by its heartbeat." % beat] if beat else [])


def _said_after(found: "Facts") -> "List[str]":
    parents = found.get("parents")
    triples = [item for item in parents if _are_texts(item)] if isinstance(parents, list) else []
    if not triples:
        return ["All that it waits for has ended there; the next pump moves it on."] + _moves_on(found, True)
    told = [(job, name, _STANDING.get(state, state)) for job, name, state in triples]
    line = "It waits there for %s." % awaited(told, _number(found, "more"), found.get("if"))
    return [line] + [line for line in _moves_on(found, True) if found.get("stalled")]


def _are_texts(item: "Any") -> bool:
    return isinstance(item, list) and len(item) == 3 and all(isinstance(text, str) for text in item)


_STANDING = {"after": "waiting for others", "submitting": "being submitted", "submitted": "in the scheduler",
             "": "not there"}


def awaited(parents: "List[Tuple[str, str, str]]", more: int, condition: "Any") -> str:
    """Of (id, name, state) each: "prepare (kx3f7a2b, running) and 2 more to end ok"."""
    ends = {"ok": "to end ok", "fail": "to fail"}
    texts = ["%s (%s, %s)" % (name[:200], job[:8], state[:40]) for job, name, state in parents[:SHOWN_PARENTS]]
    more += len(parents) - len(texts)
    if more:
        texts.append("{:,} more".format(more))
    listed = " and ".join(([", ".join(texts[:-1])] if texts[1:] else []) + texts[-1:])
    return "%s %s" % (listed, ends.get(condition, "to end") if isinstance(condition, str) else "to end")


def _said_held(found: "Facts") -> "List[str]":
    by = "its own line #PBS -h" if found.get("by") == "script" else "chasqui hold"
    return ["It is held there by %s, and waits until it is released." % by]


def _said_submitting(found: "Facts") -> "List[str]":
    return ["Its submission was begun and the answer was lost. The relay looks for it in %s and decides after %d s of"
            " good answers; it never submits it a second time before that." % (_called(found), _number(found, "grace"))]


def _said_submitted(found: "Facts") -> "List[str]":
    job_id = _text(found, "id") or "an id that is not known yet"
    if found.get("over") and found.get("shared"):
        return ["Its script has ended; how it ended is decided when the job it shares with others has (%s)." % job_id]
    if found.get("over") and _text(found, "letter"):
        return ["Its script has ended; %s, asked now, still lists it (%s, state %s)." % (
            _called(found), job_id, _text(found, "letter")[:3])]
    if found.get("over"):
        last = _when(found.get("pumped"))
        looked = "; it last looked at %s" % last if last else ""
        lines = ["Its script has ended (%s); the relay writes down how once it has looked again%s." % (job_id, looked)]
        return lines + (_own_words(found) if found.get("silent") else [])
    if found.get("began"):
        since = _when(found.get("began"))
        told = " It was told to end (TERM), and has up to half a minute for it." if found.get("told") else ""
        return ["It runs%s, as %s.%s" % (" since " + since if since else "", job_id, told)] + _elements(found)
    if found.get("spoilt"):
        ends = "how it ends is known by the word of %s alone" % _called(found)
        return ["It is in %s as %s; %s: %s." % (_called(found), job_id, spoiled.GONE, ends)] + _own_words(found)
    lines = ["It is in %s as %s and has not started." % (_called(found), job_id)]
    if found.get("shared"):
        lines = ["It shares the job %s of %s with others (a bundle)." % (job_id, _called(found))]
        if found.get("shared") == "runs":
            return lines + ["That runs; its turn comes when one of the others has ended."]
        lines.append("That has not started.")
    return lines + (_cap_hold(found) if found.get("held") else []) + _own_words(found)


def _elements(found: "Facts") -> "List[str]":
    told = elements.checked(found.get("elements"))
    if told is None:
        return []
    failed = ["%s: %s" % line for row, line in zip(told["states"], elements.lines(told)) if row["state"] == "failed"]
    return ["Elements: %s%s." % (elements.short(told), " (%s)" % "; ".join(failed)[:SHOWN] if failed else "")]


def _cap_hold(found: "Facts") -> "List[str]":
    payloads, most = _counts(found)[0], _number(_table(found, "caps"), "max_running")
    reached = "max_running = %d is reached (%d run, or may start)" % (most, payloads)
    if payloads < most:
        reached = "when the relay last looked, max_running = %d was reached" % most
    return ["The relay keeps it under a hold: %s. It is released when one of those ends." % reached] + \
        [line for line in _moves_on(found, True) if found.get("stalled")]


def _own_words(found: "Facts") -> "List[str]":
    called, said = _called(found, True), _text(found, "words")
    if _text(found, "silent"):
        then = " Before, it said: %s" % _ended(said) if said else ""
        return ["%s did not answer: %s%s" % (called, _ended(_text(found, "silent")), then)]
    if said:
        return ["%s says: %s" % (called, _ended(said))]
    if found.get("held") or not found.get("asks"):
        return []
    letter = _text(found, "letter")
    return ["%s gives no reason%s." % (called, " (state %s)" % letter[:3] if letter else "")]


def _said_ended(found: "Facts") -> "List[str]":
    state, why = _text(found, "state"), _text(found, "words")
    if state == "rejected":
        return ["It was refused there for good, in the scheduler's words: " + _ended(why)]
    if state == "cancelled":
        return ["It was cancelled there."]
    if state == "blocked":
        return ["It will not run there: %s" % _ended(why or "what it waited for ended otherwise")]
    return ["It has ended there: %s%s" % (_text(found, "end")[:4] or "?", ", " + _ended(why) if why else ".")]


_SAYINGS = {
    "": _said_unknown,
    "dropped": _said_dropped,
    "waiting": _said_waiting,
    "after": _said_after,
    "held": _said_held,
    "submitting": _said_submitting,
    "submitted": _said_submitted,
    "ending": lambda found: ["It has ended there; the next pump writes down how."],
    "completed": _said_ended,
    "rejected": _said_ended,
    "cancelled": _said_ended,
    "blocked": _said_ended,
}


def _text(found: "Facts", key: str) -> str:
    value = found.get(key)
    return value[:SHOWN] if isinstance(value, str) else ""


def _table(found: "Facts", key: str) -> "Facts":
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def _signed(found: "Facts", key: str) -> int:
    value = found.get(key)
    return int(value) if isinstance(value, (int, float)) and abs(value) < 1 << 50 else 0


def _number(found: "Facts", key: str) -> int:
    return max(0, _signed(found, key))


def _counts(found: "Facts") -> "List[int]":
    value = found.get("counts")
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(number, int) for number in value):
        return [0, 0, 0]
    return value


def _called(found: "Facts", first: bool = False) -> str:
    called = _text(found, "called")[:40] or "the scheduler"
    return called[0].upper() + called[1:] if first else called


def _count(amount: int, one: str, more: str) -> str:
    return "%s %s" % ("{:,}".format(amount), one if amount == 1 else more)


def _ended(text: str) -> str:
    """`text` as the end of a sentence."""
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else text + "."


def _when(seconds: "Optional[Any]") -> str:
    """A time as it is where the reader is: the date too, unless it is today; "" where it is none."""
    if not isinstance(seconds, (int, float)) or not 0 < seconds < 1 << 33:
        return ""
    stamp = time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    return stamp[11:] if stamp[:10] == time.strftime("%Y-%m-%d") else stamp
