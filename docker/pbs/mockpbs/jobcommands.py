"""qdel, qhold, qrls, qrerun and qsig: one request an id, one line for each that failed, exit with the last error."""

import sys

from . import errors, jobid, options, wire
from .client import VERSION_LINE, Client, Lost, complain

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
        pairs, ids = options.parse(args, LETTERS[command])
        request = request_for(command, dict(pairs))
    except (options.Wrong, ValueError) as wrong:
        if isinstance(wrong, options.Wrong):
            sys.stderr.write("%s: invalid option -- '%s'\n" % (command, wrong.letter))
        sys.stderr.write(USAGES[command])
        return 2
    if not ids:
        sys.stderr.write(USAGES[command])
        return 2
    return for_each(command, ids, request)


def request_for(command, given):
    request = {"verb": VERBS[command]}
    if "W" in given:
        if given["W"] not in ("force",) and not given["W"].startswith("suppress_email"):
            raise ValueError(given["W"])
        request["force"] = given["W"] == "force"
    request["history"] = "x" in given
    if command in ("qhold", "qrls"):
        request["types"] = given.get("h", "u")
        if request["types"] != "n" and (not request["types"] or set(request["types"]) - set("uos")):
            raise ValueError(request["types"])
    if command == "qsig":
        request["signal"] = signal_number(given.get("s", "TERM"))
    return request


def signal_number(name):
    import signal  # with enum, 4 ms, and only for qsig

    if name.isdigit():
        return int(name)
    return int(getattr(signal, "SIG" + name.upper().replace("SIG", "", 1)))


def for_each(command, ids, request):
    status, client = 0, None
    for one in ids:
        parts = jobid.split(one)
        if not parts:
            complain(command, "illegally formed job identifier: " + one)
            status = 1
            continue
        try:
            client = client or connected(command)
            client.request(dict(request, id=parts[0]))
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
