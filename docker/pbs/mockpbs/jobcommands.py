"""qdel, qhold, qrls, qrerun and qsig: one request an id, one line for each that failed, exit with the last error."""

import getopt
import re
import signal
import sys

from . import errors, wire
from .client import VERSION_LINE, Client, Lost, complain

ID = re.compile(r"^(\d+(?:\[\d*\])?)(?:\.([\w-]+)[\w.-]*)?(?:@([\w.-]+))?$")
LETTERS = {"qdel": "W:x", "qhold": "h:", "qrls": "h:", "qrerun": "W:", "qsig": "s:"}
USAGES = {
    "qdel": "usage:\n\tqdel [-W force|suppress_email=X] [-x] job_identifier...\n\tqdel --version\n",
    "qhold": "usage: qhold [-h hold_list] job_identifier...\n       qhold --version\n",
    "qrls": "usage: qrls [-h hold_list] job_identifier...\n       qrls --version\n",
    "qrerun": "usage: qrerun [-W force] job_identifier...\n       qrerun --version\n",
    "qsig": "usage: qsig [-s signal] job_identifier...\n       qsig --version\n",
}
VERBS = {"qdel": "delete", "qhold": "hold", "qrls": "release", "qrerun": "rerun", "qsig": "signal"}


def main(command, args):
    if args == ["--version"]:
        sys.stdout.write(VERSION_LINE)
        return 0
    try:
        options, ids = getopt.getopt(args, LETTERS[command])
        request = request_for(command, dict(options))
    except (getopt.GetoptError, ValueError) as wrong:
        if isinstance(wrong, getopt.GetoptError):
            sys.stderr.write("%s: invalid option -- '%s'\n" % (command, wrong.opt))
        sys.stderr.write(USAGES[command])
        return 2
    if not ids:
        sys.stderr.write(USAGES[command])
        return 2
    return for_each(command, ids, request)


def request_for(command, options):
    request = {"verb": VERBS[command]}
    if "-W" in options:
        if options["-W"] not in ("force",) and not options["-W"].startswith("suppress_email"):
            raise ValueError(options["-W"])
        request["force"] = options["-W"] == "force"
    request["history"] = "-x" in options
    if command in ("qhold", "qrls"):
        request["types"] = options.get("-h", "u")
        if not re.match(r"^(n|[uos]+)$", request["types"]):
            raise ValueError(request["types"])
    if command == "qsig":
        request["signal"] = signal_number(options.get("-s", "TERM"))
    return request


def signal_number(name):
    if name.isdigit():
        return int(name)
    return int(getattr(signal, "SIG" + name.upper().replace("SIG", "", 1)))


def for_each(command, ids, request):
    status, client = 0, None
    for one in ids:
        match = ID.match(one)
        if not match:
            complain(command, "illegally formed job identifier: " + one)
            status = 1
            continue
        try:
            client = client or connected(command)
            client.request(dict(request, id=match.group(1)))
        except wire.CannotConnect as failed:
            say_no_server(command, failed)
            return errors.exit_code(failed.number)
        except errors.Refused as no:
            complain(command, "%s %s" % (no.text, one))
            status = errors.exit_code(no.number)
        except Lost as lost:
            complain(command, lost.words)
            return errors.exit_code(errors.PROTOCOL)
    return status


def connected(command):
    client = Client(command)
    client.connect()
    return client


def say_no_server(command, failed):
    conf = Client(command).conf
    sys.stderr.write(failed.words + "\n")
    if command == "qdel":
        sys.stderr.write("Couldn't connect to cluster: %s\n" % conf.server)
    else:
        complain(command, "cannot connect to server %s (errno=%d)" % (conf.server, failed.number))
