"""One command being run: its arguments, its folder, and the only way its words reach the terminal."""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from chasqui_agent import wire

from . import api, errors
from .config import Config, Home, Remote
from .ledger import Job
from .select import Selection, parse_states


def clean(text: str) -> str:
    """`text` with everything but line breaks made harmless for a terminal."""
    return "\n".join(wire.printable(line, 10_000) for line in text.split("\n"))


class Command:
    """What a verb gets. It says things with `say` and puts its answer for --json into `data`."""

    def __init__(self, verb: str, args: argparse.Namespace) -> None:
        self.verb, self.args = verb, args
        self.data: Any = {}
        self.home = Home()
        self._config: Config | None = None

    @property
    def config(self) -> Config:
        if self._config is None:
            self._config = self.home.config()
        return self._config

    @property
    def remote(self) -> Remote:
        """The remote that --remote names, or the default one."""
        return self.config.remote(self.args.remote)

    def sync_line(self, remotes: Iterable[str]) -> str:
        """What to type for a sync with these remotes."""
        try:
            return self.config.sync_line(remotes)
        except errors.BadConfig:
            return "chasqui sync"  # what was asked for is done; what is wrong with config.toml is the sync's to say

    @property
    def interactive(self) -> bool:
        """Whether there is a person who could type a one-time code."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    def say(self, text: str = "") -> None:
        """A line for the reader; nothing with --json."""
        if not self.args.json:
            sys.stdout.write(clean(text) + "\n")

    def warn(self, text: str) -> None:
        """A line on standard error, with --json too."""
        sys.stderr.write(clean(text) + "\n")

    def raw(self, text: str) -> None:
        """A job's own output: its line breaks and tabs stay, everything else is made harmless."""
        if not self.args.json:
            pieces = re.split(r"([\n\t])", text)
            sys.stdout.write("".join(p if p in ("\n", "\t") else wire.printable(p, 1 << 20) for p in pieces))

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Columns as wide as they must be; the last one is never padded."""
        cleaned = [[wire.printable(cell, 200) for cell in row] for row in rows]
        widths = [max(len(row[i]) for row in cleaned) for i in range(len(cleaned[0]))] if cleaned else []
        for row in cleaned:
            padded = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
            self.say("  ".join([*padded, row[-1]]).rstrip())

    def selection(self) -> Selection:
        """What the arguments made by `add_selection` select."""
        args = self.args
        return Selection(args.jobs, parse_states(args.state or ""), args.name or "", args.all, args.remote or "")

    def confirmed_selection(self) -> Selection:
        """The selection; --all asks first. Raises NotConfirmed where nobody can be asked or the answer is no."""
        selection = self.selection()
        if selection.all and not self.args.yes:
            count = number(len(api.find(self.home, selection)))
            self.confirm("--all means %s jobs here" % count, "%s %s jobs?" % (self.verb, count))
        return selection

    def confirm(self, why: str, question: str) -> None:
        """Ask. Raises NotConfirmed (`why`) where nobody can be asked, BadInput where the answer is no."""
        if not self.interactive or self.args.json:
            raise errors.NotConfirmed(why=why)
        sys.stderr.write("%s [y/N] " % question)
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise errors.BadInput("Nothing was changed.")


def add_selection(parser: argparse.ArgumentParser, confirm: bool = True) -> None:
    """The arguments that every verb on jobs takes."""
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="id, its beginning, name or folder")
    parser.add_argument("--state", metavar="A,B", help="jobs in one of these states")
    parser.add_argument("--name", metavar="GLOB", help="jobs whose name matches")
    parser.add_argument("--all", action="store_true", help="every job")
    if confirm:
        parser.add_argument("--yes", action="store_true", help="don't ask")


def envelope(stream: TextIO, verb: str, ok: bool, data: Any, error: errors.ChasquiError | None = None) -> None:
    """The one shape of every --json answer. ASCII: what is odd is escaped, and no control character gets through."""
    answer: dict[str, Any] = {"chasqui": 1, "verb": verb, "ok": ok, "data": data}
    if error:
        answer["error"] = {"kind": type(error).__name__, "message": str(error), "hint": error.hint,
                           "exit": error.exit_code}
    stream.write(json.dumps(answer) + "\n")


# -- words for numbers, times, places ----------------------------------------------------------------------------------


def number(count: int) -> str:
    """12345 -> "12,345"."""
    return format(count, ",")


def count(amount: int, noun: str) -> str:
    """"1 job", "2,000 jobs"."""
    return "%s %s%s" % (number(amount), noun, "" if amount == 1 else "s")


def size(amount: int) -> str:
    """Bytes for people: "1.2 MB" (powers of 1000)."""
    value = float(amount)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return "%d %s" % (value, unit) if unit == "bytes" else "%.1f %s" % (value, unit)
        value /= 1000
    return "%.1f TB" % value


def as_of(stamp: str) -> str:
    """How old what the ledger says of a remote is: "as of the last sync, 3 minutes ago"."""
    return "as of the last sync, " + age(stamp) if stamp else "not synced yet"


def age(stamp: str) -> str:
    """How long ago a time of the ledger is, in one unit: "3 minutes ago"."""
    import calendar
    seconds = max(0, int(time.time()) - calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")))
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return "%d %ss ago" % (seconds // length, unit)
    return "%s ago" % count(seconds, "second")


def place(path: bytes) -> str:
    """A path the shortest way: relative where it lies below the current folder, ~ for the home folder."""
    here, home = os.fsencode(os.getcwd()), os.fsencode(os.path.expanduser("~"))
    for start, sign in ((here, b""), (home, b"~/")):
        if path == start:
            return (sign or b".").decode("ascii").rstrip("/")
        if path.startswith(start + b"/"):
            return wire.path_text(sign + path[len(start) + 1:])
    return wire.path_text(path)


def fetch_line(job: str, path: bytes) -> str:
    """What to type for one result alone, in any POSIX shell, whatever its name holds."""
    import shlex

    from chasqui_agent import globs
    pattern = globs.literal(path)
    if len(pattern) > globs.LONGEST:
        return "chasqui results fetch %s --all" % job[:8]
    word = shlex.quote(pattern) if pattern.isprintable() else _printf(pattern.encode("utf-8", "surrogateescape"))
    return "chasqui results fetch %s --glob %s" % (job[:8], word)


def _printf(pattern: bytes) -> str:
    """A word of a command line that stands for bytes no terminal can show. $( ) drops line breaks at the end, so a
    slash is there, which means nothing to the pattern."""
    shown = "".join(chr(byte) if chr(byte).isalnum() and byte < 128 or byte in b"./_-" else "\\%03o" % byte
                    for byte in pattern)
    return '"$(printf \'%s/\')"' % shown


def reason(job: Job) -> str:
    """Why a job is where it is, shortly: what it should have left, else what was said, signal or exit status."""
    if job.missing:
        return incomplete(job.missing)
    if job.why:
        return job.why
    if job.signal:
        return "signal %d" % job.signal
    return "exit %d" % job.exit if job.exit else ""


def incomplete(missing: Sequence[str]) -> str:
    """What to say of a completed job whose expected results are not all there; "" where they are."""
    return "results incomplete: no %s" % ", ".join(missing) if missing else ""
