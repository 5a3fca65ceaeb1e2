"""Finds the script of a qsub and the directives in it."""

import os
import stat
import sys

from . import qsuboptions
from .qsuboptions import BadOption, Failure


def read(rest, tmpdir):
    """(script text, default name, name to show) of the words after the options."""
    if rest[:1] == ["--"]:
        raise AssertionError("handled by command_script")
    if len(rest) > 1:
        raise Failure(2, None, usage=True)
    if not rest or rest[0] == "-":
        return copied(sys.stdin.buffer.read(), tmpdir), "STDIN"
    path = rest[0]
    try:
        found = os.stat(path)
    except OSError as failed:
        raise Failure(1, "script file:: %s" % failed.strerror) from failed
    if not stat.S_ISREG(found.st_mode):
        raise Failure(1, "script not a file")
    try:
        with open(path, "rb") as script:
            text = script.read()
    except OSError as failed:
        raise Failure(1, "script file:: %s" % failed.strerror) from failed
    return copied(text, tmpdir), os.path.basename(path)


def copied(text, tmpdir):
    """qsub works on a copy in TMPDIR: where that was removed (every detached child of a job) it fails here."""
    name = os.path.join(tmpdir, "pbsscrpt" + os.urandom(3).hex())
    try:
        with os.fdopen(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy:
            os.unlink(name)
            copy.write(text)
    except OSError as failed:
        sys.stderr.write("mkstemp: %s\n" % failed.strerror)
        raise Failure(1, "could not create/open tmp file %s for script" % name) from failed
    return text.decode("utf-8", "surrogateescape")


def directives(text, prefix):
    """The #PBS lines before the first command line, without the prefix."""
    for number, line in enumerate(text.split("\n")):
        if line.startswith(prefix) and prefix:
            yield line[len(prefix) :].rstrip("\r")
        elif line.strip() and not line.lstrip().startswith("#") and not (number == 0 and line.startswith(":")):
            return


def take(options, text):
    prefix = options.request.pop("prefix", "#PBS")
    pairs = []
    for line in directives(text, prefix):
        words = qsuboptions.words(line)
        try:
            found, rest = qsuboptions.parse(words)
        except BadOption as wrong:
            sys.stderr.write("%s\n" % wrong)
            raise Failure(1, "directive error: %s " % line.strip()) from wrong
        if rest:
            raise Failure(1, "directive error: %s " % line.strip())
        pairs += found
    options.take(pairs, command_line=False)
