"""What may be released and submitted now: counts in, numbers out, nothing else."""

from collections import namedtuple

# payloads: that run, or could start at any moment; queued: queued, held or waiting in the scheduler; live: all there;
# held: of ours, with our hold, to be released; waiting: scripts ready in the spool
Counts = namedtuple("Counts", "payloads queued live held waiting")
Caps = namedtuple("Caps", "max_running max_queued max_total")  # max_total 0: none
Plan = namedtuple("Plan", "release submit_free submit_held")


def plan(counts: Counts, caps: Caps) -> Plan:
    """How many held jobs to release, and how many scripts to submit without and with a hold.

    After it is carried out, payloads <= max_running, queued <= max_queued and live <= max_total hold wherever they held
    before; where they did not (a cap was lowered, the scheduler put jobs back), nothing is added to the excess.
    A job submitted free counts in both payloads and queued until it is seen to run, since nobody knows when it starts.
    """
    room = max(0, caps.max_running - counts.payloads)
    release = min(room, counts.held)
    room -= release
    space = max(0, caps.max_queued - counts.queued)
    if caps.max_total:
        space = min(space, max(0, caps.max_total - counts.live))
    submit = min(space, counts.waiting)
    free = min(room, submit)
    return Plan(release, free, submit - free)
