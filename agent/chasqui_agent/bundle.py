"""Bundles: K small jobs in one allocation, each with its own state, results and at-most-once claim.

What it is. A script of ours, attempt 0 (no job has that) of `bundle-<random>`, in work/bundle-<random>.0/, submitted as
any other: token, runner, claim, closing, adoption, hold and heartbeat are those of a job. It counts as one job in every
cap, as it does at the site. Which jobs go together is in bundle_kinds.py, what runs them there in bundle_script.py, and
what becomes of them in bundle_ends.py; here it is made and submitted.

In the spool. bundles/<name>.<generation> first, an empty file: by that, folders of bundles are found that are not in
the scheduler any more, and go. The bundle's script in submitting/ and submitted/ names its members and their tokens
(live.members); without it they are jobs like any other. They go through both folders behind their bundle, with its id,
and back to where they waited when it is refused. No member gets another token before its own is closed, or nobody was
asked to take the bundle; so it starts at most once whatever became of the bundle.

Refusals. No member is rejected for what its bundle asks: one refused for good is taken apart, and its members go alone
from then on, each refused, or not, for itself. Where it may be a limit on resources (a bundle asks for more of them
than a job does) its first one goes alone at once: if that is refused, too, it is a wait as any; none waits for ever.
"""

import os
import re
import shutil
import time

from . import bundle_kinds, bundle_script, fault, files, fill, live, marks, submit, way
from .schedulers.base import NotQueued, Submission
from .spool import Entry, new_token, random_name

MYPY = False
if MYPY:
    from typing import Dict, List, Tuple

    from .pump import Round
    from .spool import Spool

fault.register(
    {
        "bundle.named": "a bundle's name noted, its folder not yet made",
        "bundle.formed": "a bundle's folder is whole and durable, nothing moved yet",
        "bundle.moved": "the bundle in submitting/, none of its members",
        "bundle.recorded": "the bundle in submitted/, its members still in submitting/",
        "bundle.gone": "the bundle's script gone, its folder still there",
    }
)

_TOO_MUCH = "violates queue and/or server resource limits"  # a wait for a job; here it may be what was multiplied


def _form(pump: "Round", group: bundle_kinds.Group) -> "Tuple[Entry, List[Entry]]":
    """Make the bundle's folder, and each member's runner; (the bundle, its members under their tokens), nothing
    moved."""
    spool, job = pump.spool, "bundle-" + random_name(12)
    os.makedirs(spool.bundles, 0o700, exist_ok=True)
    files.write_file(os.path.join(spool.bundles, "%s.%d" % (job, pump.lock.generation)), b"", durable=False)
    fault.point("bundle.named")
    meta = spool.meta_dir(job, 0)
    os.makedirs(meta, 0o700)
    members, assigned = [], []
    for one in [one._replace(token=new_token()) for one in group.members]:
        try:
            assigned.append(_assigned(pump, one))
            members.append(one)
        except OSError as error:
            if files.no_space(error):
                raise
            # Nobody can write to its folder: that is no reason for the others to wait, and it is told when it is alone.
    told = ["%s%s %d %s\n" % (live.MEMBER, one.job, one.attempt, one.token) for one in members]
    text = bundle_script.head(group, max(1, len(members))) + "".join(told) + bundle_script.body(pump, group, assigned)
    path = os.path.join(meta, "bundle.sh")
    files.write_file(path, text.encode("utf-8", "surrogateescape"), 0o700)
    return Entry(path, job, 0, ""), members


def _assigned(pump: "Round", one: Entry) -> "Dict[str, str]":
    """Write a member's runner; what the bundle's script has to know of it."""
    request = submit.prepare(pump, one, one.token)
    meta = pump.spool.meta_dir(one.job, one.attempt)
    return {"dir": request.folder, "meta": meta, "token": one.token, "out": request.output, "err": request.error}


def submit_group(pump: "Round", group: bundle_kinds.Group, hold: bool) -> Submission:
    """As submit.submit, of a bundle: accepted, it is recorded at once. "apart": refused, and some of its members go one
    by one in the next round, which is due at once; "late": no time is left for the call. Then, and where it is refused
    for a while, they wait where they did."""
    spool = pump.spool
    formed, members = _form(pump, group)
    if not members:
        return submit.submit(pump, group.members[0], hold)
    request = submit.prepare(pump, formed)._replace(hold=hold)
    entry = Entry(spool.entry_path("submitting", formed.job, 0, request.token), formed.job, 0, request.token)
    fault.point("bundle.formed")
    intents = [{"ev": "intent", "job": one.job, "attempt": one.attempt, "token": one.token} for one in members]
    pump.journal.append(*intents)
    with open(formed.path, "rb") as stream:
        files.replace_file(entry.path, stream.read())
    fault.point("bundle.moved")
    moved = [(one.path, spool.entry_path("submitting", *one[1:])) for one in members]
    try:
        files.move_all(moved)
    except OSError:
        _undo(pump, entry, members, moved)
        raise
    if pump.scheduler.deadline - time.monotonic() < fill.LEAST_SECONDS:
        _undo(pump, entry, members, moved)
        bundle_kinds.set_apart(spool, members[0])  # so that it is not the same again for ever
        return Submission("late", "", "")
    try:
        submit.check_lock(pump)
        fault.point("submit.call.before")
        answer = submit.not_for(pump, request)
        answer = answer or pump.scheduler.submit(request, submit.CALL_SECONDS, pump.behind.record)
    except NotQueued:
        _undo(pump, entry, members, moved)
        raise
    fault.point("submit.call.after")
    answer = way.learn(pump, answer)
    if answer.kind == "accepted":
        submit.keep_beat_options(pump, request)
        record(pump, entry, answer.id, hold, "submitted")
    elif answer.kind != "unknown":
        _undo(pump, entry, members, moved)
        answer = _apart(pump, members, answer)
    return answer


def _apart(pump: "Round", members: "List[Entry]", answer: Submission) -> Submission:
    """A refusal that says nothing of the number of jobs may be the fault of what was multiplied: then members go alone
    from now on; all of them, or, where it may be a wait after all, the first."""
    if answer.kind != "here":
        refused = {"ev": "refused", "job": members[0].job, "attempt": members[0].attempt, "kind": answer.kind}
        pump.journal.append(dict(refused, text=answer.text))
    for_good = answer.kind in ("permanent", "other") or re.search(_TOO_MUCH, answer.text, re.IGNORECASE)
    # Where jobs of ours are there it may be their number, and they end.
    ours = pump.spool.entries("submitted")
    perhaps = answer.kind == "limit" and answer.learn is None and not answer.shared and not ours
    for one in members if for_good else members[:1] if perhaps else ():
        bundle_kinds.set_apart(pump.spool, one)
    return answer._replace(kind="apart") if for_good or perhaps else answer


def _undo(pump: "Round", entry: Entry, members: "List[Entry]", moved: "List[Tuple[str, str]]") -> None:
    """Put members back to where they stood: nobody has the bundle."""
    files.move_all([(target, before) for before, target in moved if os.path.lexists(target)])
    for one in members:
        meta = pump.spool.meta_dir(one.job, one.attempt)
        files.remove(os.path.join(meta, "runner." + one.token))  # one for every refusal would pile up
    drop(pump, entry)


def record(pump: "Round", entry: Entry, job_id: str, held: bool, event: str) -> None:
    """As submit.record_id, of a bundle: its id, its rename into submitted/, and then its members'."""
    marks.write_id(made(pump.spool, entry), entry.token, job_id, held)
    fault.point("submit.id.after")
    recorded = entry._replace(path=pump.spool.entry_path("submitted", *entry[1:]))
    files.move(entry.path, recorded.path)
    fault.point("bundle.recorded")
    follow(pump, recorded, job_id, event)


def follow(pump: "Round", entry: Entry, job_id: str, event: str) -> None:
    """Move those members to submitted/ that are still in submitting/."""
    late = [one for one in members_of(pump.spool, entry) if os.path.lexists(one.path)]
    for one in late:
        marks.write_id(pump.spool.meta_dir(one.job, one.attempt), one.token, job_id, False)
        pump.journal.later({"ev": event, "job": one.job, "attempt": one.attempt, "token": one.token, "pbs": job_id})
    pump.journal.append()
    files.move_all([(one.path, pump.spool.entry_path("submitted", *one[1:])) for one in late])


def members_of(spool: "Spool", entry: Entry, state: str = "submitting") -> "List[Entry]":
    """The members of a bundle, as they stand in `state` if they do."""
    return [Entry(spool.entry_path(state, *row), *row) for row in live.members(entry.path)]


def made(spool: "Spool", entry: Entry) -> str:
    """The bundle's .chasqui/, made again where it is gone: a token can be closed there, and nothing more happens."""
    meta = spool.meta_dir(entry.job, 0)
    os.makedirs(meta, 0o700, exist_ok=True)
    return meta


def close(pump: "Round", entry: Entry) -> str:
    """As Round.close_token, of a bundle."""
    return pump.close_token(made(pump.spool, entry), entry.token)


def drop(pump: "Round", entry: Entry) -> None:
    """Take away a bundle whose members are settled, or stand where they did."""
    files.remove(entry.path)
    fault.point("bundle.gone")
    sweep(pump)


def sweep(pump: "Round") -> None:
    """Remove the folders of bundles that are not in the scheduler: of those that were, and of such as somebody did not
    finish. Not of later holders of the lock, if this one was frozen just here."""
    spool = pump.spool
    names = files.names(spool.bundles)
    there = {one.job for state in ("submitting", "submitted") for one in spool.entries(state)} if names else set()
    for name in names:
        job, _, generation = name.partition(".")
        if job not in there and generation.isdigit() and int(generation) <= pump.lock.generation:
            shutil.rmtree(spool.work_dir(job, 0), ignore_errors=True)
            files.remove(os.path.join(spool.bundles, name))
    try:
        os.rmdir(spool.bundles)
    except OSError:
        pass  # there are others, or never were any
