"""qalter: the same options as qsub, for a job that waits."""

import os
import sys

from . import jobcommands, qsub, qsuboptions
from .client import VERSION_LINE, complain
from .qsuboptions import BadOption, Failure, Options

USAGE = """usage: qalter [-a date_time] [-A account_string] [-c interval] [-e path]
	[-h hold_list] [-j y|n] [-k keep] [-J X-Y[:Z]] [-l resource_list]
	[-m mail_options] [-M user_list] [-N jobname] [-o path] [-p priority]
	[-r y|n] [-S path] [-u user_list] [-W dependency_list] [-P project_name] job_identifier...
       qalter --version
"""
FIELDS = ("execution_time", "account", "join", "keep", "mail", "mail_users", "name", "priority", "rerunable", "shell",
          "project", "remove", "umask", "group_list")  # fmt: skip


def main(command, args):
    if args == ["--version"]:
        sys.stdout.write(VERSION_LINE)
        return 0
    try:
        changes, ids = read(args)
    except Failure as failure:
        if failure.text:
            complain("qalter", failure.text)
        if failure.usage:
            sys.stderr.write(USAGE)
        return failure.code
    return jobcommands.for_each("qalter", ids, {"verb": "alter", "changes": changes})


def read(args):
    try:
        pairs, ids = qsuboptions.parse(args)
    except BadOption as wrong:
        sys.stderr.write("%s\n" % str(wrong).replace("qsub:", "qalter:", 1))
        raise Failure(2, None, usage=True) from wrong
    if not ids or not pairs:
        raise Failure(2, None, usage=True)
    options = Options()
    options.take(pairs, command_line=True)
    changes = {field: options.request[field] for field in FIELDS if field in options.request}
    if options.request["resources"]:
        changes["resources"] = options.request["resources"]
    if options.variables is not None:
        changes["variables"] = qsuboptions.variables(options.variables, os.environ)
    cwd = os.getcwd()
    for field, path in (("output", options.output), ("error", options.error)):
        if path is not None:
            changes[field] = qsub.full_path(path, cwd)
    return changes, ids
