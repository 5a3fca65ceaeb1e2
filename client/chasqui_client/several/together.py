"""`sync --all`: every remote of config.toml at once, each by a `chasqui sync` process of its own.

Whoever asks for passwords and codes does so before any of them starts, one remote after the other: two prompts on one
terminal can't be told apart. One remote that fails stops no other.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import chasqui_agent

from .. import api, deploy, errors
from ..command import Command, clean, count
from ..config import Config
from ..exchange import SyncReport
from ..fields import dataclass, field
from ..progress import EVERY, MARK
from . import place
from .board import Board

_PATIENCE = 30.0  # seconds for a child that was told to end: it records what has arrived
_LONGEST = 10_000  # bytes of a line of theirs that are kept
_ON_TERMINAL, _ELSEWHERE = "0.3", "10"  # seconds between two words of a child


class Named(Command):
    """The command, as one remote speaks in it: every line begins with its name."""

    def __init__(self, command: Command, name: str) -> None:
        super().__init__(command.verb, command.args)
        self._name, self._config = name, command.config

    def say(self, text: str = "") -> None:
        for line in text.split("\n"):
            super().say("%s: %s" % (self._name, line))

    def sync_line(self, remotes: Iterable[str]) -> str:
        """That which was typed, whichever of them it is for."""
        return super().sync_line(self.config.remotes)


@dataclass
class Outcome:
    """What came of one remote: a report, or an error as --json tells it (kind, message, hint, exit)."""

    remote: str
    code: int = 0
    report: SyncReport | None = None
    error: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        report = self.report.as_dict() if self.report else None
        return {"remote": self.remote, "ok": self.code == 0, "exit": self.code, "report": report, "error": self.error}


def sync_all(command: Command, tell: Callable[[Command, SyncReport], None]) -> int:
    """The verb: sync every remote of config.toml, and say what came of each as it ends; the exit code.

    tell(command, report) says what a sync did. Returns 0 where every sync did what was asked, else the code of the
    first remote, in config.toml's order, that failed (3, failed jobs with --fail, only where no sync itself did).
    """
    args = command.args
    if args.remote or args.watch:
        raise errors.BadInput("--all goes neither with --remote nor with --watch.",
                              hint="chasqui sync --remote NAME --watch SECONDS    in a terminal for each")
    words = ["--" + word for word in ("dry-run", "no-results", "no-deploy", "take-caps", "fail")
             if getattr(args, word.replace("-", "_"))]

    def say(outcome: Outcome) -> None:
        if outcome.report:
            tell(Named(command, outcome.remote), outcome.report)
        if outcome.error:
            command.warn("chasqui: %s" % outcome.error["message"])
            if outcome.error["hint"]:
                command.warn("  hint: %s" % outcome.error["hint"])

    found = outcomes(command, words, say)
    command.data = {"remotes": [outcome.as_dict() for outcome in found]}
    codes = [outcome.code for outcome in found if outcome.code]
    return next((code for code in codes if code != 3), codes[0] if codes else 0)


def outcomes(command: Command, words: list[str], tell: Callable[[Outcome], None]) -> list[Outcome]:
    """Sync every remote of config.toml; what came of each, in its order. words: options for each sync.

    tell(outcome) is called for each as it ends. Jobs that go anywhere get their remote first, of those that can be
    reached. Raises NoConfig; BadConfig, LedgerBusy and its like, before anything was begun.
    """
    config = command.config
    if not config.remotes:
        raise errors.NoConfig(path=config.path)
    done: dict[str, Outcome] = {}
    if "--dry-run" not in words:
        done = _connect(command, config)
        _place(command, config, [name for name in config.remotes if name not in done])
    for outcome in done.values():
        tell(outcome)
    left = [name for name in config.remotes if name not in done]
    with _Children(left, words, Board(left, sys.stderr) if not command.args.json else None) as children:
        for outcome in children.run():
            done[outcome.remote] = outcome
            tell(outcome)
    return [done[name] for name in config.remotes]


def _connect(command: Command, config: Config) -> dict[str, Outcome]:
    """Open what connections there are not yet, one after the other; the remotes for which that failed."""
    failed = {}
    for name, remote in config.remotes.items():
        try:
            deploy.transport_to(command.home.create(), remote, command.interactive, sure=True)
        except errors.ChasquiError as error:
            told = {"kind": type(error).__name__, "message": str(error), "hint": error.hint, "exit": error.exit_code}
            failed[name] = Outcome(name, error.exit_code, None, told)
    return failed


def _place(command: Command, config: Config, names: list[str]) -> None:
    with api.open_ledger(command.home) as ledger:
        placed = place.place(ledger, config, names)
    for name, amount in placed.items():
        command.say("%s: takes %s of those that go anywhere" % (name, count(amount, "job")))


# -- the processes -----------------------------------------------------------------------------------------------------


@dataclass
class _Child:
    """One `chasqui sync --remote NAME --json`: its pipes, and what came out of each that is not a whole line yet."""

    name: str
    process: "subprocess.Popen[bytes]"
    answer: bytearray = field(default_factory=bytearray)
    line: bytearray = field(default_factory=bytearray)
    last: str = "it said nothing"  # on its standard error, progress left out

    @property
    def pipes(self) -> list[IO[bytes]]:
        return [pipe for pipe in (self.process.stdout, self.process.stderr) if pipe and not pipe.closed]

    def outcome(self) -> Outcome:
        """What it answered, when it has ended."""
        code = self.process.wait()
        try:
            answer = json.loads(self.answer)
            report = SyncReport(**{key: value for key, value in answer["data"].items() if key != "syncs"}) \
                if answer["data"] else None
            return Outcome(self.name, code, report, answer.get("error"))
        except (ValueError, KeyError, TypeError, AttributeError):
            said = "%s: its sync ended with status %d: %s" % (self.name, code, self.last)
            hint = "chasqui sync --remote %s" % self.name
            return Outcome(self.name, code if code > 0 else 1, None,
                           {"kind": "ChasquiError", "message": said, "hint": hint, "exit": 1})

    def close(self) -> None:
        """Our ends of its pipes."""
        for pipe in self.pipes:
            pipe.close()


def _start(name: str, words: list[str], every: str) -> _Child:
    argv = [sys.executable, "-m", "chasqui_client", "sync", "--remote", name, "--json", *words]
    # A process group of its own: Ctrl-C is for us, who end them once and in order.
    return _Child(name, subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                         env=_environment(every), process_group=0))


def _environment(every: str) -> dict[str, str]:
    """Ours, with the packages that we are where a new Python finds them, however we found them."""
    ours = [str(Path(__file__).resolve().parents[2]), str(Path(chasqui_agent.__file__).resolve().parents[1])]
    path = os.pathsep.join([*dict.fromkeys(ours), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, EVERY: every}


class _Children:
    """All of them. However the block ends, none is left running."""

    def __init__(self, names: list[str], words: list[str], board: Board | None) -> None:
        self.board = board
        every = "0" if board is None else _ON_TERMINAL if board.terminal else _ELSEWHERE
        self.running: list[_Child] = []
        try:
            for name in names:
                self.running.append(_start(name, words, every))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "_Children":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self) -> Iterator[Outcome]:
        """Each outcome as its process ends."""
        with selectors.DefaultSelector() as waiting:
            for child in self.running:
                for pipe in child.pipes:
                    waiting.register(pipe, selectors.EVENT_READ, child)
            while self.running:
                for key, _ in waiting.select():
                    if self._heard(key.data, key.fd):
                        continue
                    waiting.unregister(key.fileobj)
                    if not any(one.data is key.data for one in waiting.get_map().values()):
                        yield self._ended(key.data)

    def _heard(self, child: _Child, fd: int) -> bool:
        """Take in what a child says; False at the end of the pipe."""
        data = os.read(fd, 1 << 16)
        if child.process.stdout and fd == child.process.stdout.fileno():
            child.answer += data
            return bool(data)
        child.line += data
        *lines, rest = child.line.split(b"\n")
        child.line = bytearray(rest[-_LONGEST:])
        for line in lines:
            self._said(child, line.decode("utf-8", "replace"))
        return bool(data)

    def _said(self, child: _Child, line: str) -> None:
        if not line.startswith(MARK):
            child.last = clean(line.strip()) or child.last
        elif self.board:
            self.board.tell(child.name, line[len(MARK):])

    def _ended(self, child: _Child) -> Outcome:
        outcome = child.outcome()
        child.close()
        self.running.remove(child)
        if self.board:
            self.board.done(child.name)
        return outcome

    def close(self) -> None:
        """End what still runs, as Ctrl-C does: what has arrived is recorded."""
        if self.board:
            self.board.end()
        for child in self.running:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGINT)
        for child in self.running:
            try:
                child.process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            child.close()
        self.running = []
