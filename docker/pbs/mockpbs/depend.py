"""Dependencies, with their traps: an unknown predecessor deletes the job, a deleted one holds it for ever."""

import re

KINDS = ("after", "afterok", "afternotok", "afterany")
ID = re.compile(r"^(\d+(?:\[\d*\])?)(?:\.[\w.-]+)?(?:@[\w.-]+)?$")


def parse_depend(text):
    """[(kind, number)] of afterok:1:2.pbshost,afterany:3. Raises ValueError where qsub says "illegal -W value"."""
    found = []
    for clause in text.split(",") if text else []:
        kind, *ids = clause.split(":")
        if kind not in KINDS or not ids:
            raise ValueError(clause)
        for one in ids:
            match = ID.match(one)
            if not match:
                raise ValueError(clause)
            found.append((kind, match.group(1)))
    return found


def verdict(kind, before):
    """What `kind` says of a predecessor: "met", "never" or "wait"."""
    if before is None:
        return "never"  # unknown, or finished with no history kept: the job is deleted without a word
    if kind == "after":
        return "met" if before.stime else "wait"
    if before.state != "F":
        return "wait"
    if before.exit_status is None:
        return "wait"  # deleted before it ran: even afterany waits for ever
    good = before.exit_status == 0
    met = {"afterany": True, "afterok": good, "afternotok": not good}[kind]
    return "met" if met else "never"


def fate(job, jobs):
    """("wait" | "never" | "met", dependencies still open) of all its after-clauses together."""
    still = []
    for kind, number in job.depend:
        if kind not in KINDS:
            continue
        says = verdict(kind, jobs.get(number))
        if says == "never":
            return "never", job.depend
        if says == "wait":
            still.append((kind, number))
    return ("wait" if still else "met"), still


def announce(job, jobs):
    """Lets each living predecessor show beforeany:... for this job."""
    for kind, number in job.depend:
        before = jobs.get(number)
        entry = ("before" + kind[len("after") :], job.number)
        if before is not None and before.live and kind in KINDS and entry not in before.depend:
            before.depend.append(entry)
            yield before
