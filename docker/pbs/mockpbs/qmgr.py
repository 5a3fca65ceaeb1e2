"""qmgr -c "set server max_queued = [u:PBS_GENERIC=3]": attributes, queues and hooks, through the control port."""

import re
import sys

from . import conf as configuration
from . import errors, jsonwire, wire
from .client import identity, say_unreachable

COMMAND = re.compile(r"^(set|unset)\s+(server|queue|hook)\s*(.*)$", re.S)


class Unparsable(Exception):
    """Not one of the commands known here."""


def main(command, args):
    if len(args) != 2 or args[0] != "-c":
        sys.stderr.write("usage: qmgr -c command\n")
        return 2
    conf = configuration.load()
    try:
        request = parse(args[1])
    except Unparsable:
        sys.stderr.write("qmgr: Syntax error\n%s\n" % args[1])
        return 1
    try:
        caller = {key: value for key, value in identity(conf).items() if key in ("user", "host")}
        answer = jsonwire.connect("127.0.0.1", conf.control_port).ask(dict(request, **caller))
    except wire.CannotConnect as failed:
        say_unreachable("qmgr", conf.server, failed)
        return 1
    if "error" in answer:
        return refused(request, answer)
    if isinstance(answer["ok"], dict):
        sys.stderr.write(answer["ok"]["said"])
    else:
        sys.stdout.write(answer["ok"] or "")
    return 0


def refused(request, answer):
    sys.stderr.write("qmgr obj=%s svr=default: %s\n" % (request.get("name") or "", answer["text"]))
    hook = answer["error"] == errors.HOOK
    sys.stderr.write("qmgr: hook error returned from server\n" if hook
                     else "qmgr: Error (%d) returned from server\n" % answer["error"])  # fmt: skip
    return errors.exit_code(answer["error"])


def parse(text):
    words = text.split()
    match = COMMAND.match(text.strip())
    if match:
        return attribute(*match.groups())
    if words[:2] in (["create", "queue"], ["delete", "queue"]):
        return {"verb": words[0] + "_queue", "name": words[2]}
    if words[:2] in (["create", "hook"], ["delete", "hook"], ["list", "hook"]):
        return {"verb": words[0] + "_hook", "name": words[2]}
    if words[:2] == ["import", "hook"]:
        with open(words[5], encoding="utf-8") as source:
            return {"verb": "import_hook", "name": words[2], "source": source.read()}
    raise Unparsable(text)


def attribute(verb, kind, rest):
    name = None
    if kind != "server":
        name, _, rest = rest.strip().partition(" ")
    attribute, _, value = rest.partition("=")
    value = value.strip().strip('"') if verb == "set" else None
    found = {"verb": "set", "kind": kind, "name": name, "attribute": attribute.strip(), "value": value}
    return dict(found, verb="set_hook") if kind == "hook" else found
