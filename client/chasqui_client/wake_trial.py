"""`chasqui doctor --job`: which wakes move the relay on there, seen by real tiny jobs; the best goes to config.toml."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from chasqui_agent import settings, wakes, wire

from . import deploy, errors, launcher, one_line
from .command import Command
from .config import Remote
from .transport import Transport

_SILENCE = 900.0  # seconds: it speaks every half minute, but not while it clears up
_CLEARING = 300.0  # seconds in which the agent has ended and cleared up after our end
_MOST = 300  # characters believed of what a site says
_VERDICTS = {"yes": "works", "no": "no", "open": "not known", "none": "not tried"}
_WHAT = {"tail": "the end of a job, on its node", "hook": "a hook of the admin's", "ssh": "ssh from the node back",
         "epilogue": "Torque's epilogue, of a job that was killed",
         "cron": "cron on the login host", "heartbeat": "a small job with a start time"}
_AFTER = wakes.AFTER

Say = Callable[[str], None]


class NothingLearnt(errors.RemoteRefused):
    """{remote}: no wake_via can be chosen: {why}."""

    hint = "when that has changed: chasqui doctor --job {remote}"


class TooShort(NothingLearnt):
    """{remote}: no wake_via can be chosen: {why}."""

    hint = "chasqui doctor --job {remote} --patience 3600    waits longer for jobs to start"


class NoTrials(errors.RemoteRefused):
    """{remote}: the agent there is of another version, which can't try wakes; nothing was submitted."""

    hint = "chasqui agent deploy --remote {remote}; where that changes nothing, upgrade chasqui on this computer"


class TrialBroken(errors.RemoteRefused):
    """{remote}: the trial of wakes ended early: {message}"""

    hint = "chasqui doctor {remote}"


def _forms(text: str) -> list[str]:
    found = text.split(",")
    if not set(found) <= set(wakes.FORMS):
        raise errors.BadInput("--only %s: known are %s" % (wire.printable(text, 100), ", ".join(wakes.FORMS)))
    return found


def run(command: Command, remote: Remote) -> None:
    """Ask, try, tell, write. Puts rows, choice and whether it was written into the command's data. Raises
    BadInput (the answer was no), NothingLearnt, NoTrials, TrialBroken, one_line.NotOneLine, NotWritten."""
    args = command.args
    wanted = _forms(args.only) if args.only else list(wakes.FORMS)
    _ask(command, remote, wanted)
    transport = deploy.transport_to(command.home, remote, sure=True)
    found = _try(transport, remote, wanted, args.patience or wakes.SECONDS, command.say)
    rows = _rows(found["rows"], wanted)
    choice = wakes.choice(rows)
    if choice == "direct" and remote.wake_via != "direct":
        choice = "auto"  # the same, but other nodes than the one tried may be refused: then it goes by ssh
    command.data.update(forms=[row._asdict() for row in rows], wake_via=choice, written=False)
    _tell(command, rows)
    for folder in _texts(found.get("left")):
        command.say("left for the next doctor --job, since a job in it has not ended: %s" % folder)
    if found.get("scheduler") == "shell":
        command.say("plain processes of this host: there is nothing to choose")
        return
    if not choice and not {row.form for row in rows} & {"tail", "hook", "ssh"}:
        command.say("wake_via is chosen by tail, hook and ssh; none of them was tried")
        return
    if not choice:
        raise _nothing_learnt(remote, rows)
    _write(command, remote, choice)


def _nothing_learnt(remote: Remote, rows: Sequence[wakes.Row]) -> NothingLearnt:
    unknown = [row for row in rows if row.verdict == "open"]
    if not unknown:
        return NothingLearnt(remote=remote.name, why="none of those tried works",
                             hint="try them all: chasqui doctor --job %s" % remote.name)
    late = [row for row in unknown if row.words.startswith(wakes.TIME_IS_UP)]
    kind = TooShort if late else NothingLearnt
    return kind(remote=remote.name, why=(late or unknown)[0].words)


def _ask(command: Command, remote: Remote, wanted: Sequence[str]) -> None:
    said = ("up to %d jobs of a second or two and %d heartbeats, at most %d of them at once, under your caps"
            % (wakes.JOBS, wakes.BEATS, wakes.AT_ONCE))
    if len(wanted) < len(wakes.FORMS):
        said = "two jobs of a second or two for each of: " + ", ".join(wanted)
    command.say("%s: to be submitted: %s; in a folder of their own, which is removed afterwards" % (remote.name, said))
    if not command.interactive or command.args.json or command.args.yes:
        return
    sys.stderr.write("submit them? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise errors.BadInput("Nothing was submitted.")


def _try(transport: Transport, remote: Remote, wanted: Sequence[str], seconds: float,
         say: Say) -> dict[str, Any]:
    """What the agent answers. Its standard input stays open: its end would tell it that nobody waits any more."""
    nonce = launcher.new_nonce()
    asked = {"forms": list(wanted), "seconds": seconds, "after": _AFTER, "config": remote.agent_config()}
    channel = deploy.start(transport, remote, launcher.agent(remote.root, ["_wakes", "--nonce", nonce]))
    channel.silence = _SILENCE
    found: dict[str, Any] | None = None
    try:
        channel.write(json.dumps(asked).encode("ascii") + b"\n")
        for text in deploy.lines_of(channel, remote):
            said = _said(text, nonce)
            if "rows" in said:
                found = said
            elif "words" in said:
                form, words = wire.printable(str(said.get("form")), 20), wire.printable(str(said["words"]), _MOST)
                say("  %-10s %s" % (form, words))
    except wire.Closed:
        pass  # its exit status and words say more
    except BaseException:
        say("what was submitted is being deleted; that may take a minute")
        channel.close(_CLEARING)
        raise
    status = channel.close(_CLEARING)
    deploy.check_status(remote, status, channel.stderr_tail())
    if found is None and "no verb '_wakes'" in channel.stderr_tail():
        raise NoTrials(remote=remote.name)
    if found is None:
        last = channel.stderr_tail().strip().splitlines()[-1:] or ["exit status %s" % status]
        raise TrialBroken(wire.printable(last[0].removeprefix("chasqui-agent: "), _MOST), remote=remote.name)
    return found


def _said(text: str, nonce: str) -> dict[str, Any]:
    """A line of the agent's; {} for what a login shell prints."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) and said.get("doctor") == nonce else {}


def _rows(given: Any, wanted: Sequence[str]) -> list[wakes.Row]:
    """What looks like a row and was asked for; a way only where it is one that could be typed."""
    found = []
    for row in given if isinstance(given, list) else []:
        if not isinstance(row, list) or len(row) != 5 or row[0] not in wanted or row[1] not in tuple(_VERDICTS):
            continue
        seconds = float(row[2]) if isinstance(row[2], (int, float)) and 0 <= row[2] < 1e6 else 0.0
        way = row[4] if isinstance(row[4], str) and row[4] and not settings.check_wake_via(row[4]) else ""
        verdict = row[1] if way or row[0] not in ("tail", "hook", "ssh") or row[1] != "yes" else "open"
        found.append(wakes.Row(row[0], verdict, seconds, wire.printable(str(row[3]), _MOST), way))
    return found[: len(wakes.FORMS)]


def _texts(given: Any) -> list[str]:
    return [wire.printable(str(text), _MOST) for text in given[:10]] if isinstance(given, list) else []


def _tell(command: Command, rows: Sequence[wakes.Row]) -> None:
    command.say()
    command.table([("wake", "what it is", "woke", "after", "in the site's words, or what was seen")]
                  + [(row.form, _WHAT[row.form], _VERDICTS[row.verdict],
                      "%.1f s" % row.seconds if row.verdict == "yes" else "", row.words) for row in rows])
    command.say()


def _write(command: Command, remote: Remote, choice: str) -> None:
    line = one_line.line("wake_via", choice)
    if command.args.dry_run:
        command.say("for [remotes.%s] in %s:" % (remote.name, command.home.config_path))
        command.say(line)
    elif one_line.set_text(command.home, remote.name, "wake_via", choice):
        command.data["written"] = True
        command.say("wrote into %s: %s" % (command.home.config_path, line))
        command.say("next: %s    (it takes the setting there)" % command.sync_line([remote.name]))
    else:
        command.say("%s says so already: %s" % (os.path.basename(command.home.config_path), line))
