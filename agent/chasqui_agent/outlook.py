"""How the relay goes on where not every end of a job wakes it, and how long what is in the scheduler lasts."""

import time

from . import directives, live, settings, way

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Optional

    from .spool import Spool


def gather(spool: "Spool") -> "Dict[str, Any]":
    """{} where every end of a job moves the relay on, else: way (as in way.taken), refused_on (the node whose
    submission was refused, ""), contact (whether nothing but a contact moves it on); and then runnable, held_back (jobs
    in the scheduler without and with our hold), lasts (until when they do; seconds since 1970, 0 where not known)."""
    chosen, state = settings.load(spool), way.read_state(spool)
    taken, refused = way.taken(chosen, state), str(way.remembered(chosen, state).get("refused", ""))
    if taken == "direct" and not refused:
        return {}
    found = {"way": taken, "refused_on": refused, "contact": way.contact_only(chosen, state)}
    if not found["contact"]:
        return found
    alive = [job for job in live.standings(spool) if job.flagged < job.size]
    free = [job for job in alive if job.marks.runs or not job.held]
    end = lasts([_walltime(job.entry.path) for job in free], chosen.max_running)
    return dict(found, runnable=len(free), held_back=len(alive) - len(free), lasts=int(time.time() + end) if end else 0)


def words(found: "Dict[str, Any]") -> str:
    """What `gather` found as a person reads it, with the time as it is where she is; "" where there is nothing."""
    taken, refused = str(found.get("way", "")), found.get("refused_on")
    if found.get("contact"):
        why = "compute nodes may not submit here" if refused else "wake_via is sync"
        return "%s: the relay goes on at each sync; %s" % (why, _remains(found))
    if taken.startswith("ssh:"):
        return "jobs wake the relay by ssh to %s%s" % (taken[4:], ": compute nodes may not submit" if refused else "")
    return "the relay is woken by a hook of the cluster's admin" if taken == "hook" else ""


def _remains(found: "Dict[str, Any]") -> str:
    runnable, held, end = (_number(found.get(key)) for key in ("runnable", "held_back", "lasts"))
    waits = "; %d more are held until then" % held if held else ""
    if not runnable:
        return "nothing that could run is submitted" + waits
    counted = "%d job%s" % (runnable, "" if runnable == 1 else "s")
    if not end:
        return "submitted now: " + counted + waits
    stamp = time.strftime("%Y-%m-%d %H:%M", time.localtime(end))
    stamp = stamp[11:] if stamp[:10] == time.strftime("%Y-%m-%d") else stamp
    return "what is submitted now lasts until about %s (%s, by their walltimes)%s" % (stamp, counted, waits)


def _number(value: "Any") -> int:
    # On the laptop this came from the cluster, and may be anything.
    return value if isinstance(value, int) and 0 <= value < 1 << 35 else 0


def lasts(walltimes: "List[Optional[int]]", places: int) -> int:
    """Seconds until jobs of these walltimes have ended at the latest, `places` at a time, if the scheduler starts them
    at once; 0 where one is not known. The last to start does so no later than the others' sum shared out evenly."""
    known = [seconds for seconds in walltimes if seconds]
    if not known or len(known) != len(walltimes):
        return 0
    return max(known) + (sum(known) - max(known)) // max(1, places)


def _walltime(path: str) -> "Optional[int]":
    try:
        with open(path, "rb") as stream:
            asked = [value for flag, value in directives.options(stream.read()) if flag == "l"]
    except FileNotFoundError:
        return None
    found = [item[len("walltime=") :] for value in asked for item in value.split(",") if item.startswith("walltime=")]
    return seconds(found[-1]) if found else None


def seconds(text: str) -> "Optional[int]":
    """[[hours:]minutes:]seconds of a `-l walltime`, fractions dropped; None where it is none."""
    parts = text.split(".")[0].split(":")
    if len(parts) > 3 or not all(part.isdigit() for part in parts):
        return None
    total = 0
    for part in parts:
        total = 60 * total + int(part)
    return total
