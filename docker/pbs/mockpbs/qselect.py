"""qselect: ids of the jobs that match everything asked for."""

import sys

from . import errors, options, wire
from .client import VERSION_LINE, Client, Lost, complain, say_unreachable

LETTERS = "a:A:c:h:Hl:JN:p:P:q:r:s:t:Tu:x"
USAGE = """usage: qselect [-a [op]date_time] [-A account_string] [-c [op]interval]
	[-h hold_list] [-H] [-J] [-l resource_list] [-N name] [-p [op]priority]
	[-q destination] [-r rerun] [-s states] [-t subopt[op]date_time] [-T] [-P project] [-x] [-u user_name]
       qselect --version
"""
SUPPORTED = "AhHJNqrsTux"


def main(command, args):
    if args == ["--version"]:
        sys.stdout.write(VERSION_LINE)
        return 0
    try:
        pairs, rest = options.parse(args, LETTERS)
        request = request_for(dict(pairs))
        if rest:
            raise ValueError(rest)
    except (options.Wrong, ValueError) as wrong:
        if isinstance(wrong, options.Wrong):
            sys.stderr.write("qselect: invalid option -- '%s'\n" % wrong.letter)
        sys.stderr.write(USAGE)
        return 2
    return ask(request)


def request_for(given):
    request = {"verb": "select"}
    for letter in given:
        if letter not in SUPPORTED:
            raise ValueError(letter)
    lists = {"u": "users", "N": "names"}
    for letter, key in lists.items():
        if letter in given:
            request[key] = [item.partition("@")[0] for item in given[letter].split(",")]
    if "q" in given:
        request["queues"] = [given["q"].partition("@")[0]]
    if "s" in given:
        request["states"] = check_states(given["s"])
    if "r" in given:
        request["rerunable"] = given["r"] == "y"
    if "h" in given:
        request["holds"] = given["h"]
    request.update(elements="T" in given, arrays="J" in given, history="x" in given, finished="H" in given,
                   account=given.get("A"))  # fmt: skip
    return request


def check_states(letters):
    if not letters or set(letters) - set("BEFHMQRSTUWX"):
        complain("qselect", "illegal -s value")
        raise ValueError(letters)
    return letters


def ask(request):
    client = Client("qselect")
    try:
        client.connect()
        answer = client.request(request)
    except wire.CannotConnect as failed:
        say_unreachable("qselect", client.server, failed)
        return errors.exit_code(failed.number)
    except errors.Refused as no:
        complain("qselect", no.text)
        return errors.exit_code(no.number)
    except Lost as lost:
        complain("qselect", lost.words)
        return errors.exit_code(errors.PROTOCOL)
    sys.stdout.write("".join(number + "\n" for number in answer["ids"]))
    return 0
