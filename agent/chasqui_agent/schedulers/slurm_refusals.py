"""What a refused sbatch means: its text in, kind out, nothing else. It exits with 1 for whatever the controller says,
and with 255 for what it finds wrong by itself.
"""

import re

from .refusals import Refusal

MYPY = False
if MYPY:
    from typing import Optional

# Looked for in this order. A QOS or account may be one of several that the user has: the number of all of our jobs says
# nothing about its limit, so none is learnt.
_TEXTS = (
    ("temporary", r"unable to contact slurm controller \(connect failure\)|in standby mode|auth_g_create|munge encode"),
    # The controller may have the job: what failed is its answer.
    ("unknown", "unable to contact slurm controller|timed out|zero bytes were transmitted|unexpected message received"),
    ("unknown", "authentication|connection (reset|closed)|communication"),
    ("temporary", "inactive or drain|unable to resolve|configuration source|sleeping and retrying|temporarily"),
    ("limit", "(max|grp)submit|maxjobs|job submit limit reached|job queue full"),
    ("permanent", "(qos|assoc)max[a-z]*(perjob|pernode|wall)|partition(time|node)limit"),
    # The one text for a number of jobs and for a job too large, where the version says no more: a wait that somebody is
    # told of.
    ("limit", "violates accounting/qos policy"),
    ("permanent", "invalid|not a valid|dependency problem|can not be satisfied|not available|not permitted"),
    ("permanent", "unrecognized option|unable to open file"),
    ("permanent", "does not look like a batch script|requires an argument|more processors requested|is ambiguous"),
    ("permanent", "time limit .* (required|missing)|no partition specified|can't be reached now|dos line breaks"),
)
# Whatever the reason is: sbatch says so where there is no job.
_REFUSED = "submission failed: |^sbatch: error: "
_HERE = "access/permission denied"  # AllocNodes of a partition, among others


def classify(code: "Optional[int]", text: str) -> Refusal:
    """What a submission that got no id means. code: sbatch's exit, negative where a signal ended it, None where we
    did."""
    here = bool(re.search(_HERE, text, re.IGNORECASE))
    if code is None or code <= 0:
        return Refusal("unknown", None, here)
    for kind, pattern in _TEXTS:
        if re.search(pattern, text, re.IGNORECASE):
            return Refusal(kind, None, here)
    refused = re.search(_REFUSED, text, re.IGNORECASE | re.MULTILINE)
    return Refusal("other" if refused else "unknown", None, here)
