"""What a Torque does otherwise than an OpenPBS, where pbs.conf says PBS_DIALECT=torque: from its manuals (4.2, 6.1),
not measured. The commands are translated on their way in and out; the server keeps what has completed for
keep_completed seconds and tells it in state C.
"""

import os
import sys

from . import errors, jobcommands, options, qselect, qstat, qsub, qsuboptions

VERSION = "Version: 6.1.2\nCommit: 661e092552de43a785c15d39a3634a541d86898e\n"
QSTAT = "aBcefGiMnqQrRtu:x1"
QSELECT = "a:A:c:e:Eh:l:N:p:q:r:s:t:u:"
EXITS = {-29: "-11", -27: "-10"}  # walltime, memory
LEFT_OUT = ("substate", "run_count", "comment", "history_timestamp", "jobdir", "Stageout_status", "project")
NAMES = {"Exit_status": "exit_status", "Submit_arguments": "submit_args", "Submit_Host": "submit_host"}
USER_FULL = 15074  # PBSE_MAXUSERQUED


def main(command, args):
    """One of the commands, as a Torque has it."""
    if args == ["--version"]:
        sys.stderr.write(VERSION)
        return 0
    try:
        return {"qsub": submit, "qstat": status, "qselect": select}.get(command, change)(command, args)
    except options.Wrong as wrong:
        sys.stderr.write("%s: invalid option -- '%s'\n" % (command, wrong.letter))
        return 2


def serve():
    """The server's words."""
    errors.TEXTS[errors.UNKNOWN_JOB] = "Unknown Job Id Error"
    errors.FINISHED = errors.BAD_STATE


# qsub


def submit(command, args):
    qsuboptions.LETTERS = qsuboptions.LETTERS.replace("J:", "t:")
    qsub.Options, qsub.refusal = Options, Refused
    return qsub.main(command, args)


class Refused(qsuboptions.Failure):
    """The server said no, in Torque's words."""

    def __init__(self, no):
        number, text = no.number, no.text
        if number == errors.COUNT_LIMIT:
            number = USER_FULL
            text = ("Maximum number of jobs already in queue for user "
                    "MSG=total number of current user's jobs exceeds the queue limit")  # fmt: skip
        super().__init__(errors.exit_code(number), "submit error (%s)" % text)


class Options(qsuboptions.Options):
    """-f makes a job fault tolerant, there is no submission in the background, and a name begins with a letter."""

    def __init__(self):
        super().__init__()
        self.flags.add("f")

    def on_N(self, value, _):
        if not value[:1].isalpha():
            raise self.illegal("N")
        self.request["name"] = value

    def on_t(self, value, _):
        raise qsuboptions.Failure(1, "this mock has no Torque arrays")

    def on_l(self, value, command_line):
        for item in value.split(","):
            name, _, path = item.partition("=")
            if name != "epilogue":
                super().on_l(item, command_line)
            elif command_line or "epilogue" not in self.request:
                self.request["epilogue"] = os.path.join(os.getcwd(), path)


# qstat, qselect


def status(command, args):
    pairs, operands = options.parse(args, QSTAT, anywhere=True)
    given = {letter for letter, _ in pairs}
    if "x" in given:
        sys.stderr.write("qstat: this mock has no XML\n")
        return 2
    words = ["-%s" % letter + value for letter, value in pairs if letter not in "1cet"]
    words += ["-x"] if not given & set("BQq") else []  # completed jobs are always told
    words += ["-w"] if {"f", "1"} <= given else []
    qstat.Query = Query
    return qstat.main(command, words + operands)


class Query(qstat.Query):
    def jobs(self, request):
        found = super().jobs(request)
        for job in found:
            job["rows"] = [(NAMES.get(name, name), value) for name, value in rows(job)]
            job["facts"]["state"] = "C" if job["facts"]["state"] == "F" else job["facts"]["state"]
        return found


def rows(job):
    for name, value in job["rows"]:
        if name == "job_state" and value == "F":
            value = "C"
        if name == "Exit_status" and value.lstrip("-").isdigit() and int(value) in EXITS:
            value = EXITS[int(value)]
        if name not in LEFT_OUT:
            yield name, value


def select(command, args):
    pairs, rest = options.parse(args, QSELECT)
    words = ["-x"]
    for letter, value in pairs:
        if letter == "s":
            if set(value) - set("CEHQRTW"):
                sys.stderr.write("qselect: illegal -s value\n" + qselect.USAGE)
                return 2
            value = value.replace("C", "F")
        words.append("-%s%s" % (letter, value))
    return qselect.main(command, words + rest)


def change(command, args):
    if command in jobcommands.LETTERS:
        return jobcommands.main(command, args)
    from . import qalter

    return qalter.main(command, args)
