"""A model of the submission protocol, small enough to be searched whole: every order of every step, a crash anywhere.

One attempt of one job; a pump that does what submit.py, reconcile.py and operations.py do, one durable step at a time;
a second pump, taken for dead while it was only frozen (lock.py), which goes on with what it had in hand; runners
(runner.py); and a batch system that accepts late or never, loses replies, starts, reruns, deletes and forgets as it
likes, and may give up a job whose processes go on. Each function names what it stands for. Where the code does two
things in a row of which nobody can see the first alone, the model does one step.

Time is left out: a pump may give up whatever its snapshot does not show, at once, so nothing shown here rests on the
grace period. Nor is anything counted: what can never act again is dropped (`normal`), and so the world stays finite
under any number of crashes, takeovers, submissions, reruns and holds.
"""

from collections import Counter, deque, namedtuple

# script: where the attempt's one file is, (folder, token): waiting held submitting submitted cancelled rejected, ending
#         (by its name, in one of the former), "" once it was removed. It is one file that is renamed, never copied.
# flag:   completed/<job>.<attempt>.flag, "" or DONE FAIL LOST
# told:   the last end the journal tells of; only the holder's records count (journal.py: a dead tail is never read)
# starts: how often the payload was started; late: it was claimed after it had been called ended
# op:     the operation asked for in wake/; retry: whether there is a second attempt
World = namedtuple("World", "script flag told tokens jobs starts late op retry pump zombie")

# The marks of one token (marks.py). claim: None, "closed", or the number of a job; id: the job in <token>.id;
# run: the highest k, 1 without rerun = true; intent: journalled; final: the end that has begun
Token = namedtuple("Token", "claim id run flag term cancel intent final")

# One call of the scheduler and what came of it. state: new (not sent), wire, never, Q, R, then what Ended says:
# unrun (no exit status), exited, deleted; gone (history is off, or has forgotten). runner: the process the scheduler
# knows of; orphan: one it has given up. Processes: "", new, claimed (it made the claim), passed (it found its own id
# there), marked, payload, flagged
Job = namedtuple("Job", "token state runner orphan")

# A pump in the middle of its round. step: the step it does next, a key of STEPS; path: the script as it read it; job:
# the id it is about to record; views: its snapshot, one word a job, None where it could not or need not ask; then:
# what the step was for
Pump = namedtuple("Pump", "step path job views then")

# What the protocol's safety rests on. Each rule can be left out, to see what it is there for. The last three were not
# in the code before this search asked for them.
#   closing            marks.close makes the claim of what is given up, cancelled or held
#   new_token          submit.submit: no token is used for a second call
#   claim              runner.py 2: only the id in the claim runs
#   asked_only         Snapshot.knows: absence counts only where the id was asked for
#   deleted_closes     a job deleted before its claim was made is closed before it is called cancelled
#   start_looks_again  the runner looks at its claim once more behind its run mark, and marks.close at the run marks
#                      behind its claim: one of the two sees the other, also where a claim was taken back (norun)
#   ends_by_rename     ending.begin: an end begins with a rename of the submission's own file, and its kind can be read
#                      there; only then come flag and journal. Who finds it finishes it; who comes too late, frozen for
#                      longer than the lease, finds nothing to rename
Rules = namedtuple("Rules", "closing new_token claim asked_only deleted_closes start_looks_again ends_by_rename")
PROTOCOL = Rules(*[True] * len(Rules._fields))

START = World(("waiting", None), "", "", (), (), 0, False, "", False, None, None)
ENDS = ("unrun", "exited", "deleted")
SETTLED = ("", "cancelled", "rejected")
ENDING = ("ask", "reconcile_submitting", "settle", "write_flag", "tell_end", "move_to_rest", "repair")
LOOKS = ("ask", "reconcile_submitting", "settle", "operations", "act")  # steps that read the script's place anew
MISSES = (
    "answer", "record_late", "give_back", "write_id", "move_to_submitted", "back_to_waiting", "end_begins",
    "move_by_operation",
)  # fmt: skip
MOST_JOBS = 2  # that can still act; with 3 exactly the same worlds are found


def with_token(world, number, **changes):
    tokens = list(world.tokens)
    tokens[number] = tokens[number]._replace(**changes)
    return world._replace(tokens=tuple(tokens))


def with_job(world, number, **changes):
    jobs = list(world.jobs)
    jobs[number] = jobs[number]._replace(**changes)
    return world._replace(jobs=tuple(jobs))


def some_pump_at(world, step):
    """Whether a pump is about to read what a move would change; done earlier it could not be told from done now."""
    return any(pump is not None and pump.step == step for pump in (world.pump, world.zombie))


def ended(world):
    """Whether anybody has been told, or can see in the folders, that the attempt is over."""
    return bool(world.told or world.flag) or world.script[0] in ("cancelled", "rejected")


# -- the batch system and the nodes ------------------------------------------------------------------------------------


def request_is_accepted(world, rules, number, job):
    if job.state == "wire":
        yield with_job(world, number, state="Q")


def request_never_arrives(world, rules, number, job):
    if job.state == "wire":
        yield with_job(world, number, state="never")


def job_starts(world, rules, number, job):
    if job.state == "Q":
        yield with_job(world, number, state="R", runner="new")


def job_is_rerun(world, rules, number, job):
    """`qrerun -W force`, a server's restart, a lost node: -r n or not. The old processes may live on."""
    if job.state == "R":
        yield with_job(world, number, state="Q", runner="")
        if job.runner and not job.orphan:
            yield with_job(world, number, state="Q", runner="", orphan=job.runner)


def job_is_deleted(world, rules, number, job):
    """qdel, by hand or by the pump's `delete`. With -W force nobody waits for the processes."""
    if job.state == "Q":
        yield with_job(world, number, state="unrun")
    if job.state == "R":
        yield with_job(world, number, state="deleted", runner="")
        if job.runner and not job.orphan:
            yield with_job(world, number, state="deleted", runner="", orphan=job.runner)


def node_is_lost(world, rules, number, job):
    if job.state == "R" and job.runner and not job.orphan:
        yield with_job(world, number, state="exited", runner="", orphan=job.runner)


def job_is_forgotten(world, rules, number, job):
    """History is off, or its time is over."""
    if job.state in ENDS and some_pump_at(world, "ask"):
        yield with_job(world, number, state="gone")


# -- runner.py, for both of a job's possible processes -----------------------------------------------------------------


def process_moves(world, number, which, to, **marks):
    """The process is now `to`, and has left `marks`; "" is its end, and the job's where the scheduler waits for it."""
    if marks:
        world = with_token(world, world.jobs[number].token, **marks)
    if to == "" and which == "runner":
        return with_job(world, number, runner="", state="exited")
    return with_job(world, number, **{which: to})


def process_is_killed(world, rules, number, which, process, token):
    yield process_moves(world, number, which, "")


def runner_claims(world, rules, number, which, process, token):
    """runner.py 2: one id may run this token, and none once the relay has closed it."""
    if process != "new":
        return
    if not rules.claim:
        yield process_moves(world, number, which, "claimed")
    elif token.claim is None:
        late = world.late or (ended(world) and not token.run)  # behind a run mark nothing starts any more
        yield process_moves(world, number, which, "claimed", claim=number)._replace(late=late)
    else:
        yield process_moves(world, number, which, "passed" if token.claim == number else "")


def runner_marks_its_start(world, rules, number, which, process, token):
    """runner.py 3 and 4: the first start of an id runs the payload, a second one leaves no mark and exits 97 (-r n)."""
    if process in ("claimed", "passed"):
        to = "" if token.run else "marked" if rules.start_looks_again else "payload"
        after = process_moves(world, number, which, to, run=1)
        yield _payload_starts(after, rules) if to == "payload" else after


def runner_looks_again(world, rules, number, which, process, token):
    """The claim once more, now that the mark stands: it may have been taken back, and closed by the relay."""
    if process == "marked":
        if token.claim == number or not rules.claim:
            yield _payload_starts(process_moves(world, number, which, "payload"), rules)
        else:
            yield process_moves(world, number, which, "")


def _payload_starts(world, rules):
    late = world.late or (not rules.claim and ended(world))
    return world._replace(starts=min(2, world.starts + 1), late=late)


def runner_finds_no_space(world, rules, number, which, process, token):
    """runner.py 3: the run mark can't be made: whoever made the claim takes it back, and exits 97."""
    if process == "claimed" and rules.claim:
        yield process_moves(world, number, which, "", claim=None)
    elif process in ("claimed", "passed"):
        yield process_moves(world, number, which, "")


def runner_is_told_to_end(world, rules, number, which, process, token):
    if process == "payload":
        yield process_moves(world, number, which, process, term=True)


def runner_writes_flag(world, rules, number, which, process, token):
    """runner.py 5."""
    if process == "payload":
        yield process_moves(world, number, which, "flagged", flag=True)


def runner_exits(world, rules, number, which, process, token):
    if process == "flagged":
        yield process_moves(world, number, which, "")


# -- the user ----------------------------------------------------------------------------------------------------------


def user_cancels(world, rules):
    """operations.request, for an attempt she has no end of."""
    if not world.op and not ended(world) and some_pump_at(world, "operations"):
        yield world._replace(op="cancel")


def user_holds(world, rules):
    """The same, and the release of what is held."""
    if not world.op and not ended(world) and some_pump_at(world, "operations"):
        yield world._replace(op="release" if world.script[0] == "held" else "hold")


def user_retries(world, rules):
    """A second attempt of what the journal calls ended: its work folder is there (batch.py), and it may run."""
    if world.told and not world.retry and world.script[0] in SETTLED:
        yield world._replace(retry=True)


# -- the pump, step by step. Each takes the world, the pump, whether it holds the lock; gives (world, pump) ------------


def ask(world, pump, holds, rules):
    """pump._snapshot: a query round, or none because the last one is young or nobody answers."""
    views = []
    for number, job in enumerate(world.jobs):
        view = job.state if job.state in ENDS else "live" if job.state in "QR" else "absent"
        asked = world.script == ("submitted", job.token) and world.tokens[job.token].id == number
        views.append("not asked" if view == "absent" and rules.asked_only and not asked else view)
    yield world, pump._replace(step="reconcile_submitting", views=tuple(views))
    yield world, pump._replace(step="reconcile_submitting", views=None)


def reconcile_submitting(world, pump, holds, rules):
    """reconcile.submitting, _look_for and _take_back."""
    place, number = world.script
    pump = pump._replace(path=world.script, then="settle")
    if place == "ending":  # an end begun by one who got no further
        yield world, pump._replace(step="tell_end", then=world.tokens[number].final)
        return
    if place != "submitting":
        yield world, pump._replace(step="settle")
        return
    token = world.tokens[number]
    if token.id is not None or isinstance(token.claim, int):
        job = token.claim if token.id is None else token.id
        yield world, pump._replace(step="write_id", job=job)
        return
    if token.claim == "closed":  # by a pump that got no further
        yield world, pump._replace(step="close_link", then="submitting")
        return
    if pump.views is None:
        yield world, pump._replace(step="settle")
        return
    for job, view in enumerate(pump.views):
        if world.jobs[job].token == number and view not in ("absent", "not asked"):
            yield world, pump._replace(step="write_id", job=job)
            return
    yield world, pump._replace(step="close_link", then="submitting")
    yield world, pump._replace(step="settle")


def write_id(world, pump, holds, rules):
    """submit.record_id, first half."""
    yield with_token(world, pump.path[1], id=pump.job), pump._replace(step="move_to_submitted", job=None)


def move_to_submitted(world, pump, holds, rules):
    """submit.record_id, second half: journal and rename."""
    if world.script == pump.path:
        yield world._replace(script=("submitted", pump.path[1])), pump._replace(step=pump.then, then="")
    else:
        yield world, None


def close_link(world, pump, holds, rules):
    """marks.close: its create."""
    number = pump.path[1]
    if rules.closing and world.tokens[number].claim is None:
        world = with_token(world, number, claim="closed")
    yield world, pump._replace(step="close_read")


def close_read(world, pump, holds, rules):
    """marks.close: its look at what stands there; then what each of its callers makes of it."""
    number = pump.path[1]
    claim, why = world.tokens[number].claim, pump.then
    if rules.start_looks_again and world.tokens[number].run:
        claim = next(job for job in range(len(world.jobs)) if world.jobs[job].token == number)
    elif rules.start_looks_again and rules.closing and claim is None:
        yield world, pump._replace(step="close_link")
        return
    if isinstance(claim, int):
        if why == "submitting":
            yield world, pump._replace(step="write_id", job=claim, then="settle")
        elif why == "cancel":
            yield with_token(world, number, cancel=True), pump._replace(step="operation_done")
        else:
            yield world, pump._replace(step="operation_done" if why == "hold" else "operations", views=None)
    elif why == "vanished":
        yield world, pump._replace(step="end_begins", then="LOST")
    elif why == "hold":
        yield world, pump._replace(step="move_by_operation", then="held")
    elif why in ("unrun", "deleted", "cancel"):
        yield world, pump._replace(step="end_begins", then="cancelled")
    else:
        yield world, pump._replace(step="back_to_waiting")
        if why == "exited":
            yield world, pump._replace(step="end_begins", then="FAIL")  # after MAX_STARTS


def back_to_waiting(world, pump, holds, rules):
    """reconcile.back_to_waiting: journal and rename."""
    if world.script == pump.path:
        then = "settle" if pump.path[0] == "submitting" else "operations"
        yield world._replace(script=("waiting", None)), pump._replace(step=then)
    else:
        yield world, None


def settle(world, pump, holds, rules):
    """pump._settle and reconcile.submitted, for PBS (stages_output)."""
    place, number = world.script
    pump, views = pump._replace(path=world.script, then="", views=None), pump.views
    if place != "submitted":
        yield world, pump._replace(step="operations")
    elif world.flag:
        yield world, pump._replace(step="write_flag", then=world.flag)
    else:
        token = world.tokens[number]
        view = None
        if views is not None:
            seen = token.id is not None and token.id < len(views)
            view = views[token.id] if seen else "not asked" if rules.asked_only else "absent"
        for step, then in fates(token, view, rules):
            yield world, pump._replace(step=step, then=then)


def fates(token, view, rules):
    """reconcile.submitted, _gone, _never_ran, _vanished: what may be done next, and what for."""
    later = ("operations", "")
    if view == "live" or view is None:
        return [later]
    if token.flag and not token.term:
        return [("end_begins", "DONE")]
    if view == "not asked":
        return [later]
    unclaimed = token.claim in (None, "closed") and not (rules.start_looks_again and token.run)
    if view == "absent":
        if unclaimed:
            return [later, ("close_link", "deleted" if token.cancel else "vanished")]
        return [later, ("end_begins", "cancelled" if token.cancel else "FAIL" if token.term else "LOST")]
    if view == "deleted" or token.cancel:
        closes = rules.deleted_closes and unclaimed
        return [("close_link", "deleted") if closes else ("end_begins", "cancelled")]
    if unclaimed:
        return [("close_link", view)]
    if view == "exited":  # by its own exit status; 97 is that of a second start
        return [later, ("end_begins", "FAIL"), ("end_begins", "LOST")]
    return [later, ("end_begins", "LOST")]


def end_begins(world, pump, holds, rules):
    """ending.begin: an end begins with the rename into ending/, which says of what kind it is: who has done that ends
    this submission, and nobody else does anything with it."""
    if not rules.ends_by_rename:
        yield world, pump._replace(step="write_flag" if pump.then.isupper() else "tell_end")
    elif world.script == pump.path:
        world = with_token(world, pump.path[1], final=pump.then)._replace(script=("ending", pump.path[1]))
        yield world, pump._replace(step="write_flag" if pump.then.isupper() else "tell_end", path=world.script)
    else:
        yield world, None


def write_flag(world, pump, holds, rules):
    """ending.write_flag: the flag in completed/."""
    yield world._replace(flag=pump.then), pump._replace(step="tell_end")


def tell_end(world, pump, holds, rules):
    """The journal: ending._finish, or ending.resume by whoever finds it begun."""
    if pump.then.isupper() and not world.flag:
        yield world, pump._replace(step="write_flag")
    else:
        yield tell(world, holds, pump.then), pump._replace(step="move_to_rest")


def tell(world, holds, what):
    return world._replace(told=what) if holds else world


def move_to_rest(world, pump, holds, rules):
    """The script leaves: removed beside a flag (no error where it is gone), else moved to cancelled/ or rejected/."""
    after = pump._replace(step="operations", path=None, then="")
    place = "" if pump.then.isupper() else pump.then
    if world.script == pump.path:
        yield world._replace(script=(place, None)), after
    else:
        yield world, None if place else after


def operations(world, pump, holds, rules):
    """operations._apply_one."""
    place, op = world.script[0], world.op
    pump = pump._replace(path=world.script, then="")
    if not op:
        yield world, pump._replace(step="act", path=None)
    elif place in ("submitting", "submitted") and op != "release":
        yield world, pump._replace(step="close_link", then=op)
    elif op == "cancel" and place in ("waiting", "held"):
        yield world, pump._replace(step="tell_operation", then="cancelled")
    elif (op, place) in (("hold", "waiting"), ("release", "held")):
        yield world, pump._replace(step="move_by_operation", then="held" if op == "hold" else "waiting")
    else:
        yield world, pump._replace(step="operation_done")


def tell_operation(world, pump, holds, rules):
    """operations._say."""
    yield tell(world, holds, pump.then), pump._replace(step="move_by_operation")


def move_by_operation(world, pump, holds, rules):
    """The rename of operations._waiting, _held and _in_scheduler."""
    if world.script == pump.path:
        yield world._replace(script=(pump.then, None)), pump._replace(step="operation_done")
    else:
        yield world, None


def operation_done(world, pump, holds, rules):
    """The request leaves wake/. What a frozen pump has carried out stays asked for: it may be done once more."""
    yield world._replace(op="") if holds else world, pump._replace(step="act", path=None, then="")


def act(world, pump, holds, rules):
    """fill.fill: submit the waiting script, or not (caps, no answer)."""
    yield world, None
    if world.script[0] == "waiting" and len(world.jobs) < MOST_JOBS:
        yield world, pump._replace(step="tell_intent", path=world.script)


def tell_intent(world, pump, holds, rules):
    """submit.submit: a new token, its runner, and the intent in the journal."""
    if rules.new_token or not world.tokens:
        token = Token(None, None, 0, False, False, False, holds, "")
        number = len(world.tokens)
        world = world._replace(tokens=world.tokens + (token,))
    else:  # with the old token, whose closing has to be undone, or nothing could ever start under it
        number, claim = 0, world.tokens[0].claim
        world = with_token(world, 0, claim=None if claim == "closed" else claim)
    world = world._replace(jobs=world.jobs + (Job(number, "new", "", ""),))
    yield world, pump._replace(step="move_to_submitting", job=len(world.jobs) - 1, then=number)


def move_to_submitting(world, pump, holds, rules):
    if world.script == pump.path:
        path = ("submitting", pump.then)
        yield world._replace(script=path), pump._replace(step="check_lock", path=path, then="")
    else:
        yield world, None


def check_lock(world, pump, holds, rules):
    """lock.check: the last step a frozen pump can be stopped at."""
    yield world, pump._replace(step="call") if holds else None


def call(world, pump, holds, rules):
    """scheduler.submit: from here on the request may be accepted, at any time or never."""
    yield with_job(world, pump.job, state="wire"), pump._replace(step="answer")


def answer(world, pump, holds, rules):
    """What scheduler.submit returns: the id, a refusal, or nothing that can be believed ("unknown")."""
    yield world, None
    state = world.jobs[pump.job].state
    if state == "wire":
        refused = with_job(world, pump.job, state="never")
        yield refused, pump._replace(step="give_back")
        yield refused, pump._replace(step="end_begins", then="rejected")
    elif state != "never":
        yield world, pump._replace(step="record_late", then="act")


def record_late(world, pump, holds, rules):
    """behind.record and submit._record_late: the pump has the id in hand, and is about another script's submission.
    That one may tell it that the lock is lost, and an error of the disk (fill.fill) may be the end of both."""
    yield world, None
    if world.script == pump.path:
        yield world, pump._replace(step="write_id")


def give_back(world, pump, holds, rules):
    """A refusal for now: back to where it was."""
    yield world._replace(script=("waiting", None)) if world.script == pump.path else world, None


def repair(world, pump, holds, rules):
    """reconcile.late_flag, once it has looked: journal and flag."""
    yield tell(world._replace(flag="DONE"), holds, "DONE"), pump._replace(step="ask")


STEPS = {
    step.__name__: step
    for step in (
        ask, reconcile_submitting, write_id, move_to_submitted, close_link, close_read, back_to_waiting, settle,
        end_begins, write_flag, tell_end, move_to_rest, operations, tell_operation,
        move_by_operation, operation_done, act, tell_intent, move_to_submitting, check_lock, call, answer,
        record_late, give_back, repair,
    )
}  # fmt: skip


def pump_wakes(world):
    """pump.pump takes the lock; reconcile.late_flag looks where a runner left an event."""
    yield world._replace(pump=Pump("ask", None, None, None, ""))
    if world.flag == "LOST" and not world.retry and any(token.flag for token in world.tokens):
        yield world._replace(pump=Pump("repair", None, None, None, ""))


def pump_steps(world, rules, who):
    """What the pump in world.pump, or the frozen one in world.zombie, can do next."""
    pump = getattr(world, who)
    for changed, after in STEPS[pump.step](world, pump, who == "pump", rules):
        if who == "zombie" and after is not None and after.step in LOOKS:
            after = None  # it goes on with what it had in hand, not with another round
        yield changed._replace(**{who: after})


# -- the search --------------------------------------------------------------------------------------------------------

SCHEDULER = (
    request_is_accepted, request_never_arrives, job_starts, job_is_rerun, job_is_deleted, node_is_lost,
    job_is_forgotten,
)  # fmt: skip
RUNNER = (
    process_is_killed, runner_claims, runner_marks_its_start, runner_looks_again, runner_finds_no_space,
    runner_is_told_to_end, runner_writes_flag, runner_exits,
)  # fmt: skip
USER = (user_cancels, user_holds, user_retries)
EVERYTHING = frozenset([move.__name__ for move in SCHEDULER + RUNNER + USER] + ["pump_is_frozen"])
# Too many worlds to be searched in a minute with everything and a frozen pump at once: so two searches.
ONE_PUMP = EVERYTHING - {"pump_is_frozen"}
TWO_PUMPS = EVERYTHING - {"job_is_rerun", "runner_finds_no_space", "runner_is_told_to_end", "user_holds"}


def moves(world, rules, scope):
    """(name, next world) for everything that can happen next. scope: the names of what the world around the pump
    may do."""
    for number, job in enumerate(world.jobs):
        for move in SCHEDULER:
            if move.__name__ in scope:
                for after in move(world, rules, number, job):
                    yield move.__name__, after
        for which in ("runner", "orphan"):
            process = getattr(job, which)
            for move in RUNNER if process else ():
                if move.__name__ in scope:
                    for after in move(world, rules, number, which, process, world.tokens[job.token]):
                        yield move.__name__, after
    for move in USER:
        if move.__name__ in scope:
            for after in move(world, rules):
                yield move.__name__, after
    for name, after in pump_moves(world, rules):
        yield name, after
    if world.pump is not None:
        yield "pump_crashes", world._replace(pump=None)
        if "pump_is_frozen" in scope and world.zombie is None and world.pump.step not in LOOKS:
            yield "pump_is_frozen", world._replace(pump=None, zombie=world.pump)
    if world.zombie is not None:
        for after in pump_steps(world, rules, "zombie"):
            yield "frozen " + world.zombie.step, after
        yield "frozen_pump_ends", world._replace(zombie=None)


def pump_moves(world, rules):
    if world.pump is None:
        for after in pump_wakes(world):
            yield "pump_wakes", after
    else:
        for after in pump_steps(world, rules, "pump"):
            yield world.pump.step, after


def normal(world, rules):
    """The world without the tokens that can never act again, and the others numbered anew.

    A token nobody has in hand (not the script's name, not a pump) is past when it is closed, or when no call made
    with it can be accepted, started or run any more.
    """
    pump, zombie = _rested(world.pump, world), _rested(world.zombie, world)
    if zombie is not None and rules.ends_by_rename and _has_missed(world, zombie):
        zombie = None
    if pump is not world.pump or zombie is not world.zombie:
        world = world._replace(pump=pump, zombie=zombie)
    if world.script[0] in SETTLED + ("ending",):
        world = _settled(world)
    if not rules.new_token:
        return world
    kept = [number for number in range(len(world.tokens)) if not _is_past(world, number)]
    if len(kept) == len(world.tokens):
        return world
    tokens = {number: position for position, number in enumerate(kept)}
    jobs_kept = [number for number, job in enumerate(world.jobs) if job.token in tokens]
    jobs = {number: position for position, number in enumerate(jobs_kept)}
    return world._replace(
        script=_path(world.script, tokens),
        tokens=tuple(_renumbered(world.tokens[number], jobs) for number in kept),
        jobs=tuple(world.jobs[number]._replace(token=tokens[world.jobs[number].token]) for number in jobs_kept),
        pump=_pump(world.pump, tokens, jobs, jobs_kept),
        zombie=_pump(world.zombie, tokens, jobs, jobs_kept),
    )


def _rested(pump, world):
    """A pump without what it will not use: none where the script is at rest and it only looks."""
    if pump is None or pump.step not in LOOKS:
        return pump
    if world.script[0] in SETTLED:
        return None
    if pump.step == "settle" and pump.views and not any(view != "live" for view in pump.views):
        pump = pump._replace(views=None)
    return pump._replace(path=None) if pump.path else pump


def _has_missed(world, zombie):
    """Whether a frozen pump's rename will find its source gone for good, and nothing it does before that matters: a
    script never comes back to a token, and a claim that stands can't be closed."""
    if not zombie.path or zombie.path[1] is None or zombie.path == world.script:
        return False
    number = zombie.path[1]
    if zombie.step in ("close_link", "close_read"):
        same = number == world.script[1]
        return world.tokens[number].claim is not None and not (same and zombie.then == "cancel")
    return zombie.step in MISSES


def _settled(world):
    """The world without what nobody reads any more once the script is at rest, or will be."""
    jobs = tuple(job._replace(state="gone") if job.state in ENDS else job for job in world.jobs)
    world = world._replace(jobs=jobs, told=world.told and "told", op="")
    if world.flag == "FAIL" and not world.script[0]:
        world = world._replace(flag="DONE")
    if world.zombie is not None or world.pump and world.pump.step not in ENDING:
        return world
    tokens = []
    for number, token in enumerate(world.tokens):
        final = token.final if world.script[1] == number else ""
        repairs = token.flag and (world.flag or final) == "LOST"
        tokens.append(token._replace(id=None, flag=repairs, term=False, cancel=False, final=final))
    return world._replace(tokens=tuple(tokens))


def _is_past(world, number):
    token = world.tokens[number]
    if world.script[1] == number or (world.flag == "LOST" and token.flag):
        return False
    for pump in (world.pump, world.zombie):
        if pump is not None and ((pump.path and pump.path[1] == number) or pump.then == number):
            return False
    jobs = [job for job in world.jobs if job.token == number]
    over = all(job.state not in ("wire", "Q", "R") and not job.runner and not job.orphan for job in jobs)
    return token.claim == "closed" or over


def _path(path, tokens):
    return path and (path[0], tokens.get(path[1]))


def _renumbered(token, jobs):
    claim = jobs[token.claim] if isinstance(token.claim, int) else token.claim
    return token._replace(claim=claim, id=jobs.get(token.id))


def _pump(pump, tokens, jobs, kept):
    if pump is None:
        return None
    views = pump.views and tuple(pump.views[number] for number in kept if number < len(pump.views))
    then = tokens[pump.then] if isinstance(pump.then, int) else pump.then
    return pump._replace(path=_path(pump.path, tokens), job=jobs.get(pump.job), views=views, then=then)


def bad_ends(world, rules):
    """What must never be, by name."""
    place = world.script[0]
    if world.starts > 1:
        yield "the payload started twice"
    if world.late:
        yield "started after its end was told"
    if ended(world) and any(_at_work(world, number, rules) for number in range(len(world.jobs))):
        yield "an end was told of a job that runs"
        if world.retry:
            yield "the retry and the old attempt run together"
    if not place and not world.flag:
        yield "in no state"
    if world.flag and place not in ("", "submitted", "ending"):
        yield "in two states"
    if any(job.state != "new" and not world.tokens[job.token].intent for job in world.jobs):
        yield "a call without its intent"


def _at_work(world, number, rules):
    """Whether a process that the scheduler still calls running has its claim and may start the payload, or runs it.
    (What goes on after the scheduler has given the job up, on a node nobody can reach, no protocol can see.)"""
    job = world.jobs[number]
    token = world.tokens[job.token]
    if job.state != "R" or (rules.claim and token.claim != number):
        return False
    return job.runner in ("marked", "payload") or (job.runner in ("claimed", "passed") and not token.run)


Found = namedtuple("Found", "states taken traces parents")


def search(rules, scope, most=None, kinds=()):
    """Every world that can be reached, breadth first. taken: how often each move was; traces: the shortest way to
    each kind of bad end. Stops early after `most` worlds, or when every one of `kinds` is found."""
    parents, taken, traces = {START: None}, Counter(), {}
    front = deque([START])
    while front:
        world = front.popleft()
        for name, after in moves(world, rules, scope):
            taken[name] += 1
            after = normal(after, rules)
            if after in parents:
                continue
            parents[after] = (name, world)
            front.append(after)
            for kind in bad_ends(after, rules):
                if kind not in traces:
                    traces[kind] = trace(parents, after)
        if (most and len(parents) >= most) or (kinds and all(kind in traces for kind in kinds)):
            break
    return Found(len(parents), taken, traces, parents)


def trace(parents, world):
    """The moves from START to a world."""
    names = []
    while parents[world] is not None:
        name, world = parents[world]
        names.append(name)
    return names[::-1]


def stuck(worlds, rules):
    """Worlds where nothing is in flight or alive, and pumping for ever brings the attempt neither to an end nor back
    to where it waits to be submitted or released."""
    known = {}
    return [world for world in worlds if _is_quiet(world) and not _gets_on(world, rules, known)]


def _is_quiet(world):
    alive = any(job.state in ("wire", "Q", "R") or job.runner or job.orphan for job in world.jobs)
    return not alive and world.pump is None and world.zombie is None


def _gets_on(world, rules, known):
    seen, front = {world}, [world]
    while front and world not in known:
        one = front.pop()
        if known.get(one) or one.script[0] in SETTLED + ("waiting", "held"):
            known[world] = True
        for _, after in pump_moves(one, rules):
            after = normal(after, rules)
            if after not in seen:
                seen.add(after)
                front.append(after)
    return known.setdefault(world, False)
