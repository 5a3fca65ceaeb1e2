"""What refused submissions mean: the texts and exit codes an OpenPBS 23.06 gave, and those other sites report."""

import pytest

from chasqui_agent.schedulers.base import EVERYWHERE
from chasqui_agent.schedulers.refusals import classify

USAGE = "\nusage: qsub [-a date_time] [-A account_string] [-c interval]\n\t[-C directive_prefix] [-e path] [-f ]\n"


@pytest.mark.parametrize(
    "code, text, kind",
    [
        (75, "qsub: Requested walltime out of range for queue short\n", "other"),
        (75, "qsub: wall time out of range\n", "other"),
        (75, "qsub: cpu time out of range for queue short\n", "other"),
        (1, "qsub: connection time out\n", "unknown"),
        (38, "qsub: would exceed complex's per-user limit\n", "limit"),
        (38, "qsub: would exceed queue generic's per-user limit\n", "limit"),
        (38, "qsub: would exceed complex's per-user limit of jobs in 'Q' state\n", "limit"),
        (38, "qsub: Maximum number of jobs for user ada already in complex\n", "limit"),
        (39, "qsub: would exceed per-user limit on resource ncpus in complex\n", "limit"),
        (198, "qsub: Maximum number of jobs already in queue\n", "limit"),
        (226, "qsub: submit error (Maximum number of jobs already in queue for user)\n", "limit"),
        (38, "", "limit"),
        (1, "wrapper: qsub said: would exceed queue debug's per-project limit\n", "limit"),
        (188, "qsub: Job violates queue and/or server resource limits\n", "limit"),
        (162, "Connection refused\nqsub: cannot connect to server pbshost (errno=15010)\n", "temporary"),
        (160, "Unknown Host.\nqsub: cannot connect to server nosuchh (errno=15008)\n", "temporary"),
        (222, "qsub: Server could not connect to MOM\n", "temporary"),
        (173, "qsub: Queue is not enabled\n", "temporary"),
        (183, "Premature end of message\nqsub: End of File\n", "unknown"),
        (255, "qsub: Failed to recv data from background qsub\n", "unknown"),
        (255, "qsub: would exceed complex's per-user limit\n", "unknown"),
        (None, "", "unknown"),
        (-9, "", "unknown"),
        (0, "", "unknown"),
        (2, "qsub: illegal -N value" + USAGE, "permanent"),
        (2, "qsub: illegal -W value" + USAGE, "permanent"),
        (2, "qsub: Job name is too long \n", "permanent"),
        (3, "qsub: Array job exceeds server or queue size limit\n", "permanent"),
        (166, "qsub: Illegal attribute or resource value Resource_List.walltime\n", "permanent"),
        (170, "qsub: Unknown queue\n", "permanent"),
        (187, "qsub: Unknown resource Resource_List.epilogue\n", "permanent"),
        (1, "qsub: directive error: this is junk \n", "permanent"),
        (1, "qsub: invalid option -- 'Z'\nqsub: directive error: -Z junk \n", "permanent"),
        (171, "qsub: Job rejected by all possible destinations\n", "permanent"),
        (1, "qsub: script file:: No such file or directory\n", "other"),
        (1, "mkstemp: No such file or directory\nqsub: could not create/open tmp file\n", "other"),
        (175, "qsub: Bad UID for job execution\n", "other"),
        (159, "qsub: Unauthorized Request\n", "other"),
        (77, "Your allocation has expired. See https://example.org\n", "other"),
    ],
)
def test_kind(code, text, kind):
    assert classify(code, text).kind == kind


@pytest.mark.parametrize(
    "code, text, queue, array, learn",
    [
        (38, "qsub: would exceed complex's per-user limit\n", "", False, EVERYWHERE),
        (38, "qsub: would exceed complex's per-user limit\n", "debug", False, EVERYWHERE),
        (38, "qsub: would exceed queue generic's per-user limit\n", "debug", False, "debug"),
        (38, "qsub: would exceed queue generic's per-user limit\n", "", False, ""),
        (38, "qsub: Maximum number of jobs for user ada already in complex\n", "", False, EVERYWHERE),
        (38, "qsub: Maximum number of jobs for user ada already in queue debug\n", "debug", False, "debug"),
        (38, "qsub: would exceed complex's per-user limit\n", "", True, None),  # how far an array is over, who knows
        (38, "qsub: would exceed complex's per-user limit of jobs in 'Q' state\n", "", False, None),
        (38, "qsub: would exceed complex's per-project limit\n", "", False, None),  # shared with others
        (38, "qsub: would exceed queue generic's per-group limit\n", "", False, None),
        (39, "qsub: would exceed per-user limit on resource ncpus in complex\n", "", False, None),
        (198, "qsub: Maximum number of jobs already in queue\n", "", False, None),
        (173, "qsub: Queue is not enabled\n", "", False, None),
    ],
)
def test_a_limit_is_learnt_from_38_on_a_single_job_alone(code, text, queue, array, learn):
    assert classify(code, text, queue, array).learn == learn


@pytest.mark.parametrize(
    "text, shared",
    [
        ("would exceed complex's per-project limit", ("project", EVERYWHERE)),
        ("would exceed queue generic's per-group limit", ("group", "")),
        ("would exceed complex's per-project limit of jobs in 'Q' state", ("project", EVERYWHERE)),
        ("Maximum number of jobs for project ab12 already in queue debug", ("project", "")),
        ("would exceed complex's per-user limit", None),
        ("Maximum number of jobs for user ada already in complex", None),
        ("Queue is not enabled", None),
    ],
)
def test_a_limit_shared_with_others_is_told_apart(text, shared):
    assert classify(38, "qsub: %s\n" % text).shared == shared


@pytest.mark.parametrize(
    "text, here",
    [
        ("Job submission is not allowed from this host\n", True),
        ("qsub: Access from host not allowed, or unknown host\n", True),
        ("qsub: Unauthorized Request\n", False),
    ],
)
def test_a_host_that_may_not_submit_is_told_apart(text, here):
    answer = classify(159, text)
    assert answer.here == here
    assert answer.kind == "other"  # the job waits all the same
