"""The server's refusals: PBSE numbers and their words. A command exits with the number modulo 256."""

UNKNOWN_JOB = 15001
NO_ATTRIBUTE = 15002
READ_ONLY = 15003
UNAUTHORIZED = 15007
UNKNOWN_HOST = 15008
CANNOT_CONNECT = 15010
ILLEGAL_VALUE = 15014
BAD_STATE = 15016
UNKNOWN_QUEUE = 15018
QUEUE_DISABLED = 15021
BAD_UID = 15023
COMMUNICATION = 15031
PROTOCOL = 15031
UNKNOWN_RESOURCE = 15035
NOT_RERUNNABLE = 15038
QUEUE_FULL = 15046
NO_MOM = 15070
NO_HISTORY = 15138
FINISHED = 15139
ARRAY_TOO_BIG = 15107
MIXED_LIMITS = 15141
HOOK = 15136
COUNT_LIMIT = 15142
RESOURCE_LIMIT = 15143

TEXTS = {
    UNKNOWN_JOB: "Unknown Job Id",
    NO_ATTRIBUTE: "Undefined attribute ",
    READ_ONLY: "Cannot set attribute, read only or insufficient permission ",
    UNAUTHORIZED: "Unauthorized Request ",
    ILLEGAL_VALUE: "Illegal attribute or resource value",
    BAD_STATE: "Request invalid for state of job",
    UNKNOWN_QUEUE: "Unknown queue",
    QUEUE_DISABLED: "Queue is not enabled",
    BAD_UID: "Bad UID for job execution",
    UNKNOWN_RESOURCE: "Unknown resource",
    NOT_RERUNNABLE: "Job is not rerunable",
    QUEUE_FULL: "Maximum number of jobs already in queue",
    NO_MOM: "Server could not connect to MOM",
    NO_HISTORY: "PBS is not configured to maintain job history",
    FINISHED: "Job has finished",
    ARRAY_TOO_BIG: "Array job exceeds server or queue size limit",
}


class Refused(Exception):
    """The server says no; `number` decides the exit code, `text` is what the command prints."""

    def __init__(self, number, text=None):
        self.number = number
        self.text = TEXTS[number] if text is None else text
        super().__init__(number, self.text)


def exit_code(number):
    return number % 256
