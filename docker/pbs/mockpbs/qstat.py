"""qstat: which jobs, which form; the sleep of a second call in the same second; exit code of the last error."""

import os
import sys
import time

from . import errors, jobid, qstatforms, wire
from .client import VERSION_LINE, Client, Lost, complain, say_unreachable
from .options import Wrong, parse

LETTERS = "aBE:fF:GhHiJMnpqQrsStTu:wxD:1"
USAGE = """usage:
qstat [-f] [-J] [-p] [-t] [-x] [-E] [-F format] [-D delim] [ job_identifier... | destination... ]
qstat [-a|-i|-r|-H|-T] [-J] [-t] [-u user] [-n] [-s] [-G|-M] [-1] [-w]
\t[ job_identifier... | destination... ]
qstat -Q [-f] [-F format] [-D delim] [ destination... ]
qstat -q [-G|-M] [ destination... ]
qstat -B [-f] [-F format] [-D delim] [ server_name... ]
qstat --version
"""


def main(command, args):
    if args == ["--version"]:
        sys.stdout.write(VERSION_LINE)
        return 0
    try:
        pairs, operands = parse(args, LETTERS, anywhere=not os.environ.get("POSIXLY_CORRECT"))
    except Wrong as wrong:
        sys.stderr.write("qstat: invalid option -- '%s'\n%s" % (wrong.letter, USAGE))
        return 2
    options = dict(pairs)
    if "F" in options and options["F"].lower() not in ("json", "dsv"):
        sys.stderr.write(USAGE)
        return 2
    client = Client("qstat")
    wait_a_moment(client.conf)
    return Query(client, options, operands).run()


def wait_a_moment(conf):
    """A second qstat of the same user in the same wall-clock second sleeps 200 ms, as the real one does."""
    path = os.path.join(conf.tmpdir, ".pbs_last_query_%d" % os.getuid())
    try:
        last = int(os.stat(path).st_mtime)
    except OSError:
        last = None
    if last == int(time.time()):
        time.sleep(0.2)
    try:
        with open(path, "wb"):
            os.utime(path)
    except OSError:
        pass


def emit(text):
    sys.stdout.buffer.write(text.encode("latin-1"))  # one character, one byte: see qstatforms.shown
    sys.stdout.buffer.flush()


class Query:
    """One qstat."""

    def __init__(self, client, options, operands):
        self.client, self.options, self.operands = client, options, operands
        self.status = 0
        self.form = options.get("F", "text").lower()
        self.table_form = "text" if set("auinrHs") & set(options) else "default"

    def run(self):
        try:
            self.client.connect()
        except wire.CannotConnect as failed:
            self.show_nothing()
            say_unreachable("qstat", self.client.server, failed)
            return 255
        try:
            return self.answer()
        except Lost as lost:
            complain("qstat", lost.words)
            return errors.exit_code(errors.PROTOCOL)

    def show_nothing(self):
        """Server down: the JSON is valid and empty all the same. Only the exit code tells."""
        if self.form == "json":
            self.emit_json([])

    def answer(self):
        if set("BQq") & set(self.options):
            counted = self.client.request({"verb": "server"})
            emit(qstatforms.server_text(counted, self.options, self.client.server))
            return 0
        jobs = self.collect()
        if self.status == 0 or jobs or self.form == "json":
            self.show(jobs)
        for text in self.complaints:
            complain("qstat", text)
        return self.status

    def collect(self):
        self.complaints = []
        jobs = []
        for operand in self.operands or [None]:
            try:
                jobs += self.one(operand)
            except errors.Refused as no:
                self.refused(no, operand)
        return jobs

    def one(self, operand):
        options = self.options
        request = {"verb": "status", "history": "x" in options or "H" in options, "finished": "H" in options,
                   "elements": "t" in options}  # fmt: skip
        if operand is None:
            return self.jobs(request)
        if not operand[0].isdigit():
            return self.jobs(dict(request, queue=operand.partition("@")[0]))
        return self.jobs(dict(request, id=self.number(operand)))

    def jobs(self, request):
        found = self.client.request(request)["jobs"]
        for job in found:
            job["rows"] = [(name, qstatforms.shown(value)) for name, value in job["rows"]]
            job["facts"]["comment"] = qstatforms.shown(job["facts"]["comment"])
        return found

    def number(self, operand):
        number, server = jobid.split(operand) or (None, None)
        if not number or server not in (None, self.client.server.partition(".")[0]):
            raise errors.Refused(1, "illegally formed job identifier: " + operand)
        return number

    def refused(self, no, operand):
        self.status = errors.exit_code(no.number) if no.number > 1 else 1
        parts = jobid.split(operand or "")
        shown = "%s.%s" % (parts[0], self.client.server) if parts else operand
        if no.number == 1:
            self.complaints.append(no.text)
        elif no.number == errors.UNKNOWN_QUEUE:
            self.complaints.append("Unknown queue destination %s" % operand)
        elif no.number == errors.FINISHED:
            self.complaints.append("%s Job has finished, use -x or -H to obtain historical job information" % shown)
        else:
            self.complaints.append("%s %s" % (no.text, shown))
        if no.number == errors.NO_HISTORY:
            self.status = 0  # said on stderr, and the exit code is 0 all the same

    def show(self, jobs):
        if self.table_form == "text":
            emit(qstatforms.alternate_table(self.chosen(jobs), self.options, self.client.server))
            # -f -u prints the table; with -F json a JSON without jobs follows it
            jobs = []
            if self.form != "json":
                return
        if self.form == "json":
            self.emit_json(jobs)
        elif self.form == "dsv":
            emit(qstatforms.dsv_text(jobs, self.options.get("D", "|")))
        elif "f" in self.options:
            emit(qstatforms.full_text(jobs, "w" not in self.options))
        else:
            emit(qstatforms.default_table(self.without_elements(jobs)))

    def emit_json(self, jobs):
        from . import qstatjson  # imports re, which the other forms do without

        emit(qstatjson.text(jobs, self.client.server))

    def without_elements(self, jobs):
        return [job for job in jobs if "J" not in self.options or job["facts"]["array"]]

    def chosen(self, jobs):
        """What -u, -r, -i and -H leave; with -t and -u the elements are shown and their array is not."""
        options = self.options
        users = options["u"].split(",") if "u" in options else None
        kept = []
        for job in jobs:
            facts = job["facts"]
            if users is not None and facts["user"] not in [user.partition("@")[0] for user in users]:
                continue
            if "t" in options and facts["array"]:
                continue
            if "r" in options and facts["state"] not in "RES" or "i" in options and facts["state"] not in "QHWT":
                continue
            kept.append(job)
        return kept
