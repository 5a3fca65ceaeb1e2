"""qsub: options and script to a request, through the background daemon or a connection of its own."""

import os
import pwd
import sys
import time

from . import conf as configuration
from . import errors, qsubdaemon, qsuboptions, qsubscript, wire
from .client import VERSION_LINE, Client, Lost, complain, say_unreachable
from .qsuboptions import USAGE, BadOption, Failure, Options


def main(command, args):
    try:
        return submit(args)
    except Failure as failure:
        if failure.text is not None:
            complain("qsub", failure.text)
        if failure.usage:
            sys.stderr.write(USAGE)
        return failure.code


def submit(args):
    if args == ["--version"]:
        sys.stdout.write(VERSION_LINE)
        return 0
    conf = configuration.load()
    request, options = build(args, conf)
    server = options.server or conf.server
    try:
        answer = send(conf, server, request, options)
    except wire.CannotConnect as failed:
        # OpenPBS cuts the name of a server given with -q here; seven letters were left.
        say_unreachable("qsub", options.server[:7] if options.server else server, failed)
        return errors.exit_code(failed.number)
    except Lost as lost:
        raise Failure(errors.exit_code(errors.PROTOCOL), lost.words) from lost
    except errors.Refused as no:
        raise refusal(no) from no
    if "z" not in options.flags:
        sys.stdout.write(answer["id"] + "\n")
        sys.stdout.flush()
    return wait_for(conf, answer["id"]) if "block" in options.flags else 0


def refusal(no):
    return Failure(errors.exit_code(no.number), no.text)


def build(args, conf):
    options = Options()
    try:
        pairs, rest = qsuboptions.parse(args)
    except BadOption as wrong:
        sys.stderr.write("%s\n" % wrong)
        raise Failure(2, None, usage=True) from wrong
    options.take(pairs, command_line=True)
    if "I" in options.flags:
        terminal = "\tstandard input and output must be a terminal for\n\tinteractive job submission"
        sys.stderr.write("qsub:%s\n" % terminal)
        raise Failure(1, None)
    tmpdir = os.environ.get("TMPDIR") or conf.tmpdir
    if "--" in args and args[len(args) - len(rest) - 1] == "--" and rest:
        text, name = command_script(rest), "STDIN"
    else:
        text, name = qsubscript.read(rest, tmpdir)
        qsubscript.take(options, text)
    return complete(options, args, text, name, conf), options


def command_script(words):
    """The script of `qsub -- words`."""
    import shlex

    return "#!/bin/sh\nexec %s\n" % " ".join(map(shlex.quote, words))


def complete(options, args, text, name, conf):
    request = options.request
    request["script"] = text
    if "name" not in request:
        request["name"] = qsuboptions.job_name(name)
    own = qsuboptions.variables(options.variables, os.environ) if options.variables else []
    cwd = working_directory()
    request["variables"] = origin(cwd) + own
    request["arguments"] = " ".join(args)
    request["cwd"] = cwd
    for field, path in (("output", options.output), ("error", options.error)):
        if path is not None:
            request[field] = full_path(path, cwd)
    return request


def working_directory():
    """$PWD where it is true: PBS_O_WORKDIR keeps the symbolic links the user came by."""
    try:
        here = os.stat(".")
        if "PWD" in os.environ and os.path.samestat(os.stat(os.environ["PWD"]), here):
            return os.environ["PWD"]
        return os.getcwd()
    except OSError:
        return os.environ.get("PWD", "")


def full_path(path, cwd):
    host, colon, rest = path.partition(":")
    if not colon or "/" in host:
        host, rest = "localhost", path
    return "%s:%s" % (host, rest if rest.startswith("/") else os.path.join(cwd, rest))


def origin(cwd):
    """The PBS_O_ variables, in PBS's order; the server adds queue and host after the user's own."""
    environ, me = os.environ, pwd.getpwuid(os.getuid())
    found = [("PBS_O_HOME", environ.get("HOME", me.pw_dir))]
    if "LANG" in environ:
        found.append(("PBS_O_LANG", environ["LANG"]))
    found += [("PBS_O_LOGNAME", environ.get("LOGNAME", me.pw_name)), ("PBS_O_PATH", environ.get("PATH", ""))]
    if "MAIL" in environ:
        found.append(("PBS_O_MAIL", environ["MAIL"]))
    if "SHELL" in environ:
        found.append(("PBS_O_SHELL", environ["SHELL"]))
    return found + [("PBS_O_WORKDIR", cwd), ("PBS_O_SYSTEM", os.uname().sysname)]


def send(conf, server, request, options):
    """The server's answer. Raises CannotConnect, Lost, Refused or Failure."""
    if "f" in options.flags or server != conf.server:
        return send_directly(Client("qsub", conf, server), request)
    answer = qsubdaemon.ask(conf, request)
    if answer is not None:
        if "error" in answer:
            raise errors.Refused(answer["error"], answer["text"])
        if "lost" in answer:
            raise Lost(answer["lost"])
        return answer
    client = Client("qsub", conf, server)
    try:
        client.connect()
        return client.request(request)
    finally:
        qsubdaemon.leave_behind(client)


def send_directly(client, request):
    try:
        client.connect()
        return client.request(request)
    finally:
        client.close()


def wait_for(conf, number):
    """-W block=true: the job's own exit code, once it is over."""
    client = Client("qsub", conf)
    client.connect()
    question = {"verb": "status", "id": number.partition(".")[0], "history": True}
    while True:
        try:
            rows = dict(client.request(question)["jobs"][0]["rows"])
        except errors.Refused:
            return 0
        if rows["job_state"] == "F":
            return int(rows.get("Exit_status", 0)) % 256
        time.sleep(0.2)
