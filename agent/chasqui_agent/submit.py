"""One submission, at most once: intent, call, id, record; each step durable before the next.

    journal `intent` -> rename into submitting/ -> the scheduler's call, with the token in the runner and in the queue
    -> id file -> journal `submitted` -> rename into submitted/

The second line is written while the next script's call is under way (behind.py), or at once where there is none: two
may be in submitting/. A crash anywhere leaves files there that `reconcile` resolves one by one by looking for the
token, never by trying again.
"""

import os
import pwd
import re

from . import directives, ending, fault, files, heartbeat, launch, marks, runner, spoiled, way
from .schedulers.base import NotQueued, Request, Sought, Submission
from .spool import Entry, new_token

MYPY = False
if MYPY:
    from typing import Dict, List, Optional, Tuple

    from .pump import Round
    from .spool import Spool

fault.register(
    {
        "submit.call.before": "the intent recorded, the scheduler not yet called",
        "submit.call.after": "the scheduler answered, nothing of it recorded",
        "submit.behind.before": "the call of the next script under way, too, and nothing recorded of the one before",
        "submit.behind.after": "the one before recorded and the one to follow prepared, the call still under way",
        "submit.id.after": "the id file durable, `submitted` not yet journalled",
        "submit.journalled": "`submitted` journalled, the script still in submitting/",
    }
)

CALL_SECONDS = 120.0


def submit(pump: "Round", entry: Entry, hold: bool, following: "Optional[Entry]" = None) -> "Submission":
    """Submit one waiting script; meanwhile record the one before it and prepare the one that is likely to follow.
    Afterwards it is in rejected/, back in waiting/, or in submitting/: where it was accepted, until `pump.behind` has
    recorded it, and where the outcome is unknown. Refused for good in the words of the last such refusal it is
    "doubted", and back in waiting/ too; "unfit" it was rejected without a call. An exception
    (lost lock, full disk) leaves it in one of those too."""
    try:
        request = pump.behind.take_prepared(entry.path) or _prepare_at_last(pump, entry)
    except _Unfit as error:
        reject_waiting(pump, entry, str(error))
        return Submission("unfit", "", str(error))
    request = request._replace(hold=hold)
    job, attempt, token = entry.job, entry.attempt, request.token
    pump.journal.append({"ev": "intent", "job": job, "attempt": attempt, "token": token})
    in_flight = Entry(pump.spool.entry_path("submitting", job, attempt, token), job, attempt, token)
    files.move(entry.path, in_flight.path)

    def meanwhile() -> None:
        if pump.behind.has_records:
            fault.point("submit.behind.before")
        pump.behind.record()
        if following is not None:
            pump.behind.prepare(following.path, lambda: prepare(pump, following))
        fault.point("submit.behind.after")

    try:
        check_lock(pump)
        fault.point("submit.call.before")
        answer = not_for(pump, request) or pump.scheduler.submit(request, CALL_SECONDS, meanwhile)
    except NotQueued:
        # A full disk, and nobody has the job: not an outcome to wait for.
        files.move(in_flight.path, entry.path)
        raise
    fault.point("submit.call.after")
    answer = way.learn(pump, answer)
    if answer.kind == "accepted":
        pump.behind.add(lambda: _record_late(pump, in_flight, answer.id, hold))
        keep_beat_options(pump, request)
    elif answer.kind == "permanent" and answer.text != pump.state.last_rejected():
        reject(pump, in_flight, answer.text)
    else:
        if answer.kind == "permanent":
            answer = answer._replace(kind="doubted")
        if answer.kind != "here":
            refused = {"ev": "refused", "job": job, "attempt": attempt, "kind": answer.kind, "text": answer.text}
            pump.journal.append(refused)
        if answer.kind != "unknown":
            files.move(in_flight.path, entry.path)
            files.remove(request.script)  # one for every refusal would pile up, and count as starts of the job
    return answer


def keep_beat_options(pump: "Round", request: Request) -> None:
    """Remember what a beat copies of a job that was let in. There may be no place for two beats: one small queue must
    not put the heartbeat off."""
    options = heartbeat.options_of(request.directives)
    value = dict(pump.state.value, beat_options=options)
    if "beat_options" not in pump.state.value or heartbeat.has_place(pump.settings, value):
        pump.state.value["beat_options"] = options


class _Unfit(Exception):
    """A work folder that nobody can write to: it must not keep other jobs from being submitted."""


def _prepare_at_last(pump: "Round", entry: Entry) -> Request:
    """`prepare`. Raises _Unfit."""
    try:
        return prepare(pump, entry)
    except OSError as error:
        if not spoiled.gone(error) or not os.path.lexists(entry.path):
            raise
    spoiled.check_work(pump.spool.work)
    files.server_time(pump.spool.work)  # an NFS client's names may be older than the folder: it reads them again now
    try:
        return prepare(pump, entry)
    except OSError as error:
        if not spoiled.gone(error):
            raise
        folder = error.filename or pump.spool.work_dir(entry.job, entry.attempt)
        raise _Unfit("not submitted: %s can't be used: %s" % (folder, error.strerror)) from None


def check_lock(pump: "Round") -> None:
    """Raise Lost where the lock is somebody else's by now, NotQueued where the disk stands in the way."""
    try:
        pump.lock.check()
    except OSError as error:
        raise NotQueued(error.errno, error.strerror, error.filename) from None


def not_for(pump: "Round", request: Request) -> "Optional[Submission]":
    """The refusal of a script whose directives this scheduler would ignore: what it asks for is not what it would
    get."""
    meant = request.dialect
    if meant and pump.scheduler.reads not in ("", meant):
        words = (meant, pump.scheduler.called, pump.scheduler.reads)
        return Submission("permanent", "", "the script has #%s lines; for %s it needs #%s lines, and no others" % words)
    letter = next((letter for letter in "Jt" if letter in request.directives), "")  # t: Torque's
    if pump.scheduler.has_arrays or not letter:
        return None
    return Submission("permanent", "", "the %s scheduler has no job arrays (#PBS -%s)" % (pump.scheduler.name, letter))


def _record_late(pump: "Round", entry: Entry, job_id: str, held: bool) -> None:
    """`record_id`, unless somebody who took us for dead has found the job meanwhile, and knows more of it."""
    if os.path.exists(entry.path):
        record_id(pump, entry, job_id, held, "submitted")


def record_id(pump: "Round", entry: Entry, job_id: str, held: bool, event: str) -> None:
    """Make a submission known: its id file, the journal's `event` ("submitted" or "adopted"), the rename into
    submitted/."""
    job, attempt, token = entry.job, entry.attempt, entry.token
    marks.write_id(pump.spool.meta_dir(job, attempt), token, job_id, held)
    fault.point("submit.id.after")
    pump.journal.append({"ev": event, "job": job, "attempt": attempt, "token": token, "pbs": job_id})
    fault.point("submit.journalled")
    files.move(entry.path, pump.spool.entry_path("submitted", job, attempt, token))


def reject(pump: "Round", entry: Entry, text: str) -> None:
    """Refused for good: the script goes from submitting/ to rejected/, the scheduler's exact words beside it."""
    record = {"ev": "rejected", "job": entry.job, "attempt": entry.attempt, "text": text}
    ending.begin(pump, entry, "rejected", record, {})


def reject_waiting(pump: "Round", entry: Entry, text: str) -> None:
    """Reject a script that was put back into waiting/ after the scheduler had refused it for good."""
    token = new_token()
    in_flight = entry._replace(path=pump.spool.entry_path("submitting", entry.job, entry.attempt, token), token=token)
    files.move(entry.path, in_flight.path)
    reject(pump, in_flight, text)


def prepare(pump: "Round", entry: Entry, token: str = "") -> Request:
    """Write the runner of a new submission, of a new token, and say what the scheduler is to be asked for.

    token: that of a member of a bundle, whose runner is a child of the bundle's script.
    """
    member, token = bool(token), token or new_token()
    with open(entry.path, "rb") as stream:
        script = stream.read()
    spool, job, attempt = pump.spool, entry.job, entry.attempt
    folder = spool.work_dir(job, attempt)
    meta = spool.meta_dir(job, attempt)
    record = spool.job_record(job, attempt)
    asked = directives.asked(script)
    name = _name(spool, entry, asked)
    rerun = bool(record.get("rerun"))
    spoiled.let_in(meta, lambda: files.write_file(os.path.join(meta, "script"), script, 0o700, durable=False))
    values = {
        "dir": folder,
        "root": spool.root,
        "job": job,
        "attempt": str(attempt),
        "token": token,
        "name": name,
        "python": launch.python(),
        "agent": launch.own_path(),
        "path": os.environ.get("PATH", os.defpath),
    }
    command = directives.interpreter(script, login_shell()) + [os.path.join(meta, "script")]
    path = os.path.join(meta, "runner." + token)
    wakes = pump.settings.wake_via not in ("hook", "sync") and not member
    first = "#!%s\n" % runner.shell_path() if member else pump.scheduler.head(script)
    hooked = pump.scheduler.asks_a_server and not member
    text = runner.build(script, values, command, rerun, hooked, wakes, first, member)
    files.write_file(path, text, 0o700, durable=False)
    output, error, join = output_paths(asked, folder, os.path.join(meta, token), name, token)
    return Request(
        script=path,
        folder=folder,
        name=queue_name(pump.scheduler.name_in_queue(name), token, pump.scheduler.name_limit),
        token=token,
        variables=variables(asked.get("v", "")) + [("CHASQUI_TOKEN", token), ("CHASQUI_ROOT", spool.root)],
        output=output,
        error=error,
        join=join,
        hold=False,
        rerun=rerun,
        directives=asked,
        dialect=directives.dialect(script),
    )


def sought(pump: "Round", entry: Entry) -> Sought:
    """What a submission whose outcome is unknown can be recognised by."""
    asked = directives.asked_in(os.path.join(pump.spool.meta_dir(entry.job, entry.attempt), "script"))
    name = pump.scheduler.name_in_queue(_name(pump.spool, entry, asked))
    name = queue_name(name, entry.token, pump.scheduler.name_limit)
    return Sought(entry.token, name, pump.spool.work_dir(entry.job, entry.attempt))


def _name(spool: "Spool", entry: Entry, asked: "Dict[str, str]") -> str:
    """Her name for a job: its -N, else what the client calls it."""
    name = asked.get("N") or spool.job_record(entry.job, entry.attempt).get("name") or entry.job
    return directives.safe_name(str(name))


def login_shell() -> str:
    """The user's login shell, /bin/sh where she has none that runs scripts."""
    try:
        shell = pwd.getpwuid(os.getuid()).pw_shell
    except KeyError:  # a user id without a name, as in containers
        return "/bin/sh"
    return shell if os.access(shell, os.X_OK) and not shell.endswith(("nologin", "false")) else "/bin/sh"


def queue_name(name: str, token: str, limit: int) -> str:
    """The job's name in the queue: as much of hers as fits, and the token."""
    return "%s.%s" % (name[: limit - len(token) - 1], token)


def output_paths(asked: "Dict[str, str]", folder: str, ours: str, name: str, token: str) -> "Tuple[str, str, bool]":
    """(stdout, stderr, joined): her -o and -e below the work folder, ours in .chasqui/ where she gave none; of an
    array, one for each element."""
    join = asked.get("j", "n")[:1]
    each = "." + directives.EACH if directives.elements(asked) else ""
    output = _output_path(asked.get("o", ""), folder, "%s.o%s%s" % (name, token, each)) or ours + each + ".out"
    error = _output_path(asked.get("e", ""), folder, "%s.e%s%s" % (name, token, each)) or ours + each + ".err"
    if join == "e":
        output = error
    elif join == "o":
        error = output
    return output, error, join in "oe"


def final_outputs(spool: "Spool", entry: Entry) -> "Tuple[str, str]":
    """(stdout, stderr) of a submission as paths below its work folder, an array's with the place for the index in them;
    "" for one that is elsewhere or joined."""
    folder = spool.work_dir(entry.job, entry.attempt)
    meta = spool.meta_dir(entry.job, entry.attempt)
    script = os.path.join(meta, "script")
    if not os.path.isfile(script):
        return "", ""
    asked = directives.asked_in(script)
    name = _name(spool, entry, asked)
    output, error, _ = output_paths(asked, folder, os.path.join(meta, entry.token), name, entry.token)
    output, error = [_with_id(path, meta, entry.token) for path in (output, error)]
    inside = [_plain(path[len(folder) + 1 :]) if path.startswith(folder + "/") else "" for path in (output, error)]
    return inside[0], "" if error == output else inside[1]


def _plain(path: str) -> str:
    """A path without the parts that say nothing, as `./logs/` has one."""
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _with_id(path: str, meta: str, token: str) -> str:
    """A path with the job's number filled in; "" where the scheduler fills in something that nobody told us."""
    if directives.OWN_ID in path:
        path = path.replace(directives.OWN_ID, re.sub(r"[\[.].*", "", marks.read_id(meta, token).get("id", "")))
    return "" if "^%" in path else path


def _output_path(value: str, folder: str, default: str) -> str:
    if not value:
        return ""
    host, colon, path = value.partition(":")
    path = os.path.join(folder, path if colon and "/" not in host else value)
    return os.path.join(path, default) if path.endswith("/") or os.path.isdir(path) else path


def variables(text: str) -> "List[Tuple[str, Optional[str]]]":
    """A -v list split at its commas, but not inside quotes: (name, value), value None where it is taken from the
    environment."""
    items, word, quote = [], "", ""
    for char in text + ",":
        if char == "," and not quote:
            items.append(word)
            word = ""
        elif char in "'\"" and quote in ("", char):
            quote = "" if quote else char
        else:
            word += char
    pairs = [item.partition("=") for item in items if item.strip()]
    return [(name.strip(), value if equals else None) for name, equals, value in pairs]
