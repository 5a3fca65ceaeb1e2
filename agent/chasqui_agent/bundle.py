"""Bundles: K small jobs in one allocation, each with its own state, results and at-most-once claim.

Forming. With `bundle` = K > 1 in config.json, a round of fill.py puts waiting scripts of one priority with equal
directives (less names and outputs) together, K at most, those of the ledger that sent the settings alone. Out stay:
what asks for a rerun, an array, or anything whose meaning for several jobs we don't know; on a batch system, what names
no walltime; what its owner wants alone. A bundle of one is that job, as ever.

What it is. A script of ours, attempt 0 (no job has that) of `bundle-<random>`, in work/bundle-<random>.0/, submitted as
any other: token, runner, claim, closing, adoption, hold and heartbeat are those of a job. Its script runs the members'
own runners, `parallel` at a time, each in its own work folder, with its own token, marks, flag and output; PBS_JOBID is
the bundle's. It counts as one job in every cap, as it does at the site. Walltime: the job's, times the turns it takes
(members / parallel) and some seconds for each turn, so many members that `bundle_walltime` is kept; cpus and memory:
the job's, times `parallel`; what can't be multiplied, and all for Slurm, runs one by one. A member that takes longer
than its own walltime is ended by the bundle's script, so that the others have theirs.

In the spool. bundles/<name>.<generation> first, an empty file: by that, folders of bundles are found that are not in
the scheduler any more, and go. The bundle's script in submitting/ and submitted/ names its members and their tokens
(live.members); without it they are jobs like any other. They go through both folders behind their bundle, with its id,
and back to where they waited when it is refused. No member gets another token before its own is closed, or nobody was
asked to take the bundle; so it starts at most once whatever became of the bundle.

Ends. A member's flag settles it at once. Its end pumps no more often than `query_interval`; the bundle's does as any
job's. When the scheduler says the bundle is over, or has forgotten it (grace and a second round), a member without a
start goes back to waiting, its token closed, the second time to go alone; one that began and left no flag has ended as
the scheduler says of the bundle, else LOST, and a late flag repairs that. Then the bundle's folder goes.

Refusals. No member is rejected for what its bundle asks: one refused for good is taken apart, and its members go alone
from then on, each refused, or not, for itself. Where it may be a limit on resources (a bundle asks for more of them
than a job does) its first one goes alone at once: if that is refused, too, it is a wait as any; none waits for ever.

Cancel and hold of a member that waits in its bundle close its token: the bundle passes it by. One that runs is told
by its cancel mark, which the bundle's script looks for every second: TERM to the payload, KILL ten seconds later. A
bundle with no member left that has not begun is deleted.
"""

import os
import re
import shlex
import shutil
import time
from collections import namedtuple

from . import directives, fault, files, fill, launch, live, marks, outlook, reconcile, runner, spoiled, submit, way
from .heartbeat import options_of
from .schedulers.base import DELETED, Ended, NotQueued, Submission
from .spool import Entry, new_token, random_name

MYPY = False
if MYPY:
    from typing import Any, Dict, List, Optional, Tuple

    from .pump import Round
    from .schedulers.base import Snapshot
    from .spool import Spool

fault.register(
    {
        "bundle.named": "a bundle's name noted, its folder not yet made",
        "bundle.formed": "a bundle's folder is whole and durable, nothing moved yet",
        "bundle.moved": "the bundle in submitting/, none of its members",
        "bundle.recorded": "the bundle in submitted/, its members still in submitting/",
        "bundle.settled": "its members settled or back in waiting/, the bundle still there",
        "bundle.gone": "the bundle's script gone, its folder still there",
    }
)

# How a bundle is put together. key: what its members have in common; most: how many they may be; limit: the walltime of
# each in seconds, None for none
Kind = namedtuple("Kind", "key most parallel limit")
_OWN = "SNoejh"  # letters that may differ
_SAME = "lqAPpvVmM"  # that have to be equal; scripts with any others go alone
# The same of sbatch's options; these are not passed on, others than these and the ones that follow have to be equal.
_OWN_OPTIONS = "job-name output error hold no-requeue parsable quiet verbose chdir".split()
_ALONE_OPTIONS = (
    "array begin clusters deadline dependency export-file get-user-env input mem-bind open-mode requeue signal"
    " test-only time-min wait wrap"
).split()
_KEPT = ("mpiprocs", "ompthreads", "place")
_TOO_MUCH = "violates queue and/or server resource limits"  # a wait for a job; here it may be what was multiplied
# Not GPUs: nobody tells each member which of them are its own.
_COUNTED = re.compile(r"(ncpus|ppn|mem|vmem)=([0-9]+)([a-z]*)$")
# Variables that say how much of the allocation there is: each member is told its share.
_SHARED = ("NCPUS", "OMP_NUM_THREADS", "PBS_NUM_PPN", "PBS_NP")
TURN_SECONDS = 30  # more walltime for each turn: a member that takes too long is ended 17 s late at most
OVER_SECONDS = 5  # a scheduler would have ended it by then
MOST_TIMES = 2  # bundles that end before a job's turn came; then it goes alone

_SCRIPT = r"""
cq_parallel=@parallel@
cq_limit=@limit@
cq_interval=@interval@
cq_root=@root@
cq_wakes=@wakes@
cq_nodes=@nodes@
cq_n=@count@
cq_id=${PBS_JOBID:-${SLURM_JOB_ID:-}}

# The script goes on to its end under TERM: the scheduler tells the members' own runners, and no other begins.
cq_stop=
trap 'cq_stop=1' TERM INT HUP

member() {
    case $1 in
@members@
    esac
}

# What the scheduler says is there is there for all members together: each begins as many threads as it is told. But not
# what the script gives itself (NAME=value), where that counts.
cq_value=
for cq_given in @shared@; do
    cq_name=${cq_given%%=*}
    eval "cq_value=\${$cq_name:-}"
    case $cq_value in '' | *[!0-9]* | "${cq_given#*=}") continue ;; esac
    [ $((cq_value % cq_parallel)) -ne 0 ] || export "$cq_name=$((cq_value / cq_parallel))"
done
cq_lines=0
[ -z "$cq_nodes" ] || [ ! -r "${PBS_NODEFILE:-}" ] || cq_lines=$(wc -l <"$PBS_NODEFILE")
if [ "$cq_lines" -gt 0 ] && [ $((cq_lines % cq_parallel)) -eq 0 ]; then
    head -n $((cq_lines / cq_parallel)) "$PBS_NODEFILE" >nodes && export PBS_NODEFILE="$PWD/nodes"
fi

# A path with the scheduler's number in it, which it would fill in itself.
filled() {
    cq_path=$1
    case $cq_path in *'^job_id^'*) cq_path=${cq_path%%'^job_id^'*}${cq_id%%[.[]*}${cq_path#*'^job_id^'} ;; esac
}

# A member's token may have been closed while it waited here: cancelled, or held.
begin() {
    member "$1"
    case $(readlink "$cq_meta/claim.$cq_token" 2>/dev/null) in closed:*) return 0 ;; esac
    filled "$cq_out" && cq_out=$cq_path
    filled "$cq_err" && cq_err=$cq_path
    (: >"$cq_out") 2>/dev/null || cq_out=$cq_meta/$cq_token.out
    (: >"$cq_err") 2>/dev/null || cq_err=$cq_meta/$cq_token.err
    (
        export PBS_O_WORKDIR="$cq_dir" CHASQUI_TOKEN="$cq_token"
        if [ "$cq_out" = "$cq_err" ]; then
            exec @shell@ "$cq_meta/runner.$cq_token" </dev/null >"$cq_out" 2>&1
        fi
        exec @shell@ "$cq_meta/runner.$cq_token" </dev/null >"$cq_out" 2>"$cq_err"
    ) &
    cq_slots="$cq_slots $1:$!:$cq_clock"
}

# The runner of a member is told every second, but not before its start mark: until then it has no trap.
look() {
    member "$1"
    cq_over=
    if [ -n "$cq_limit" ] && [ $((cq_clock - $3)) -ge "$cq_limit" ]; then
        cq_over=1
        [ -L "$cq_meta/over.$cq_token" ] || ln -s "$cq_limit" "$cq_meta/over.$cq_token" 2>/dev/null
    fi
    if [ -n "$cq_over" ] || [ -e "$cq_meta/cancel.$cq_token" ]; then
        [ ! -L "$cq_meta/run.$cq_token.1" ] || kill -USR1 "$2" 2>/dev/null
    fi
}

wake() {
    env -i HOME="$HOME" USER="${USER:-}" LOGNAME="${LOGNAME:-}" PATH=@path@ LC_ALL=C PBS_JOBID="$cq_id" \
        @carried@ @python@ -I -S @agent@ --root "$cq_root" wake --reason bundle --budget 15 </dev/null >/dev/null 2>&1
}

cq_slots=
cq_next=0
cq_clock=0
cq_woken=0
cq_busy=0
cq_before=$(date +%s)
cq_waker=
cq_ended=
while :; do
    cq_now=$(date +%s)
    cq_tick=$((cq_now - cq_before))
    cq_before=$cq_now
    # Time in which all of it was suspended is no time that a member had, nor is a clock that was put right.
    if [ "$cq_tick" -lt 0 ] || [ "$cq_tick" -gt 10 ]; then
        cq_tick=1
    fi
    cq_clock=$((cq_clock + cq_tick))
    cq_left=
    cq_count=0
    for cq_slot in $cq_slots; do
        cq_pid=${cq_slot#*:}
        cq_pid=${cq_pid%:*}
        if kill -0 "$cq_pid" 2>/dev/null; then
            cq_left="$cq_left $cq_slot"
            cq_count=$((cq_count + 1))
            [ "$cq_tick" -eq 0 ] || look "${cq_slot%%:*}" "$cq_pid" "${cq_slot##*:}"
        else
            cq_ended=1
            cq_busy=$cq_clock
        fi
    done
    cq_slots=$cq_left
    while [ -z "$cq_stop" ] && [ "$cq_next" -lt "$cq_n" ] && [ "$cq_count" -lt "$cq_parallel" ]; do
        begin "$cq_next"
        cq_next=$((cq_next + 1))
        cq_count=$((cq_count + 1))
    done
    [ -n "$cq_slots" ] || { [ -z "$cq_stop" ] && [ "$cq_next" -lt "$cq_n" ]; } || break
    if [ -n "$cq_ended" ] && [ -n "$cq_wakes" ] && [ $((cq_clock - cq_woken)) -ge "$cq_interval" ]; then
        cq_woken=$cq_clock
        cq_ended=
        wake &
        cq_waker=$!
    fi
    # Where they take a second each, one more between them would be half of it.
    if [ $((cq_clock - cq_busy)) -lt 5 ]; then
        sleep 0.2 2>/dev/null || sleep 1
    else
        sleep 1
    fi
done
[ -z "$cq_waker" ] || wait "$cq_waker"
exit 0
"""


class Group(namedtuple("Group", "path job attempt members kind")):
    """Scripts to be submitted as one; path, job, attempt are the first one's."""

    __slots__ = ()


# -- forming -----------------------------------------------------------------------------------------------------------


def grouped(pump: "Round", found: "List[Tuple[Entry, int]]") -> "List[Tuple[Any, int]]":
    """Waiting scripts with those put together that may share an allocation; each at the place of its first."""
    result: "List[Tuple[Any, int]]" = []
    filling: "Dict[Any, Group]" = {}
    for entry, size in found:
        kind = _kind(pump, entry) if size == 1 else None
        group = filling.get(kind.key) if kind else None
        if kind is None:
            result.append((entry, size))
        elif group is not None and len(group.members) < kind.most:
            group.members.append(entry)
        else:
            filling[kind.key] = Group(entry.path, entry.job, entry.attempt, [entry], kind)
            result.append((filling[kind.key], 1))
    return [(one.members[0] if isinstance(one, Group) and len(one.members) == 1 else one, n) for one, n in result]


def _kind(pump: "Round", entry: Entry) -> "Optional[Kind]":
    """What a script may be bundled with, None where it goes alone."""
    try:
        record = pump.spool.job_record(entry.job, entry.attempt)
        with open(entry.path, "rb") as stream:
            script = stream.read()
    except (OSError, ValueError):
        return None  # its own submission says what is wrong
    if record.get("ledger", "") != pump.settings.owner or record.get("rerun") or record.get("bundle") is False:
        return None
    alone = _alone(pump.spool, entry)
    if os.path.exists(alone) or not os.access(os.path.dirname(alone), os.R_OK | os.W_OK | os.X_OK):
        return None
    dialect, letters = directives.dialect(script), directives.options(script)
    same = _same_options(script) if dialect == "SBATCH" else _same(letters)
    outputs = [value.replace(directives.OWN_ID, "", 1) for flag, value in letters if flag in "oe"]
    if same is None or any("^" in value for value in outputs):
        return None
    asked = [value for flag, value in letters if flag == "l"]
    one = _walltime(pump, asked)
    if one == 0:
        return None
    parallel = 1 if dialect == "SBATCH" else _parallel(pump, asked)
    most = _most(pump, one, parallel)
    return Kind((pump.rank_of(entry), dialect, same), most, parallel, one) if most > 1 else None


def _same(letters: "List[Tuple[str, str]]") -> "Optional[Any]":
    """What has to be equal of #PBS lines; None where there is something that nothing is equal to."""
    if any(not flag or flag not in _OWN + _SAME for flag, _ in letters):
        return None
    return tuple(sorted(one for one in letters if one[0] in _SAME))


def _same_options(script: bytes) -> "Optional[Any]":
    from . import sbatch

    found = [one for one in sbatch.options(script) if one[0] not in _OWN_OPTIONS]
    return None if any(not name or name in _ALONE_OPTIONS for name, _ in found) else tuple(sorted(found))


def _walltime(pump: "Round", asked: "List[str]") -> "Optional[int]":
    """Seconds that each may run: None for as long as it likes, where nobody ends it; 0 where that can't be told, or
    another limit on time counts, which for several jobs nobody has multiplied."""
    items = [item.partition("=") for value in asked for item in value.split(",")]
    times = [outlook.seconds(value) or 0 for name, _, value in items if name == "walltime"]
    if any(re.search("walltime|cput", name) for name, _, _ in items if name != "walltime"):
        return 0
    if not times and not pump.scheduler.asks_a_server:
        return None
    return times[0] if len(times) == 1 else 0


def _parallel(pump: "Round", asked: "List[str]") -> int:
    """How many run at the same time: one, where what they ask for can't be multiplied."""
    parallel = int(pump.settings.parallel)
    if pump.scheduler.asks_a_server and not re.search("(ncpus|ppn)=", ",".join(asked)):
        return 1  # nobody knows what it gets, and how much of that is for one
    return parallel if all(_times(value, parallel) is not None for value in asked) else 1


def _most(pump: "Round", walltime: "Optional[int]", parallel: int) -> int:
    """How many there may be in one bundle."""
    most, longest = int(pump.settings.bundle), pump.settings.bundle_walltime
    if walltime is None:
        return most
    turns = max(int(longest // (walltime + TURN_SECONDS)), int(walltime <= longest))
    return min(most, parallel * turns)


def _in_turns(walltime: int, turns: int) -> int:
    """Seconds that `turns` jobs take one after the other; a single turn has what each would have had."""
    return walltime if turns == 1 else turns * (walltime + TURN_SECONDS)


def _times(value: str, parallel: int, walltime: int = 0) -> "Optional[str]":
    """A `-l` value for `parallel` of its jobs at once, with another walltime; None where it can't be multiplied."""
    found = []
    for item in value.split(","):
        name, _, rest = item.partition("=")
        if name == "walltime":
            found.append("walltime=" + _clock(walltime) if walltime else item)
        elif name in ("select", "nodes") and parallel > 1:
            pieces = [_piece(piece, parallel) for piece in rest.split(":")[1:]]
            if "+" in rest or not rest.startswith("1:") or None in pieces:
                return None
            found.append("%s=%s" % (name, ":".join(["1"] + [piece for piece in pieces if piece])))
        else:
            piece = _piece(item, parallel)
            if piece is None:
                return None
            found.append(piece)
    return ",".join(found)


def _piece(item: str, parallel: int) -> "Optional[str]":
    counted = _COUNTED.match(item)
    if parallel == 1 or item.partition("=")[0] in _KEPT:
        return item
    if not counted:
        return None
    return "%s=%d%s" % (counted.group(1), int(counted.group(2)) * parallel, counted.group(3))


def _clock(seconds: int) -> str:
    return "%02d:%02d:%02d" % (seconds // 3600, seconds // 60 % 60, seconds % 60)


def _alone(spool: "Spool", entry: Entry) -> str:
    """The mark of a script that goes without others."""
    return os.path.join(spool.meta_dir(entry.job, entry.attempt), "alone")


def _form(pump: "Round", group: Group) -> "Tuple[Entry, List[Entry]]":
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
    text = _head(group, max(1, len(members))) + "".join(told) + _script_of(pump, group, assigned)
    path = os.path.join(meta, "bundle.sh")
    files.write_file(path, text.encode("utf-8", "surrogateescape"), 0o700)
    return Entry(path, job, 0, ""), members


def _head(group: Group, count: int) -> str:
    """The first lines of a bundle's script: what its members ask for, multiplied."""
    text = "#!%s\n" % runner.shell_path()
    parallel = min(group.kind.parallel, count)
    walltime = _in_turns(group.kind.limit, -(-count // parallel)) if group.kind.limit else 0
    _, dialect, same = group.kind.key
    if dialect == "SBATCH":
        fresh = [(name, _clock(walltime) if name == "time" else value) for name, value in same]
        words = ["--%s%s" % (name, "=" + value if value else "") for name, value in [("job-name", "bundle")] + fresh]
        return text + "".join("#SBATCH %s\n" % shlex.quote(word) for word in words)
    text += "#PBS -N bundle\n"
    with open(group.path, "rb") as stream:
        options = directives.options(stream.read())
    for flag, value in options:
        if flag == "l":
            value = _times(value, parallel, walltime) or value
        if flag in _SAME:
            text += "#PBS -%s %s\n" % (flag, shlex.quote(value) if value else "")
    return text


def _script_of(pump: "Round", group: Group, members: "List[Dict[str, str]]") -> str:
    limit = group.kind.limit if pump.scheduler.asks_a_server else None  # who ends no job by its walltime ends none here
    with open(group.path, "rb") as stream:
        options = directives.options(stream.read())
    wanted = ",".join(value for flag, value in options if flag == "l")
    given = dict(submit.variables(",".join(value for flag, value in options if flag == "v")))
    shared = ["%s=%s" % (name, re.sub("[^0-9]", "", given.get(name) or "")) for name in _SHARED]
    if "ompthreads=" in wanted:
        shared.remove(next(one for one in shared if one.startswith("OMP_NUM_THREADS=")))
    values = {
        "parallel": "%d" % max(1, min(group.kind.parallel, len(members))),
        "limit": "%d" % (limit + OVER_SECONDS) if limit else "",
        "interval": "%d" % max(1, pump.settings.query_interval),
        "root": pump.spool.root,
        "wakes": "1" if pump.settings.wake_via not in ("hook", "sync") else "",
        "nodes": "1" if "nodes=" in wanted else "",
        "path": os.environ.get("PATH", os.defpath),
        "python": launch.python(),
        "agent": launch.own_path(),
    }
    return script(values, members, shared)


def script(values: "Dict[str, str]", members: "List[Dict[str, str]]", shared: "List[str]") -> str:
    """A bundle's script without its first lines. values: parallel limit interval root wakes nodes path python agent;
    members: of each its dir meta token out err; all unquoted; shared: NAME=value of the
    variables that are shared out, unless they have just that value."""
    cases = []
    for number, one in enumerate(members):
        words = ["cq_%s=%s" % (name, shlex.quote(value)) for name, value in sorted(one.items())]
        cases.append("        %d) %s ;;" % (number, " ".join(words)))
    quoted = {name: shlex.quote(value) if value else "" for name, value in values.items()}
    quoted.update(count="%d" % len(members), members="\n".join(cases), shell=runner.shell_path())
    quoted.update(carried=runner.carried_words(), shared=" ".join(shared))
    return re.sub("@([a-z]+)@", lambda match: quoted[match.group(1)], _SCRIPT)


def _assigned(pump: "Round", one: Entry) -> "Dict[str, str]":
    """Write a member's runner; what `script` has to know of it."""
    request = submit.prepare(pump, one, one.token)
    meta = pump.spool.meta_dir(one.job, one.attempt)
    return {"dir": request.folder, "meta": meta, "token": one.token, "out": request.output, "err": request.error}


# -- submission --------------------------------------------------------------------------------------------------------


def submit_group(pump: "Round", group: Group, hold: bool) -> Submission:
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
        files.write_file(_alone(spool, members[0]), b"", durable=False)  # so that it is not the same again for ever
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
        pump.state.value["beat_options"] = options_of(request.directives)
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
        files.write_file(_alone(pump.spool, one), b"", durable=False)
    return answer._replace(kind="apart") if for_good or perhaps else answer


def _undo(pump: "Round", entry: Entry, members: "List[Entry]", moved: "List[Tuple[str, str]]") -> None:
    """Put members back to where they stood: nobody has the bundle."""
    files.move_all([(target, before) for before, target in moved if os.path.lexists(target)])
    for one in members:
        meta = pump.spool.meta_dir(one.job, one.attempt)
        files.remove(os.path.join(meta, "runner." + one.token))  # one for every refusal would pile up
    _drop(pump, entry)


def record(pump: "Round", entry: Entry, job_id: str, held: bool, event: str) -> None:
    """As submit.record_id, of a bundle: its id, its rename into submitted/, and then its members'."""
    marks.write_id(_made(pump.spool, entry), entry.token, job_id, held)
    fault.point("submit.id.after")
    recorded = entry._replace(path=pump.spool.entry_path("submitted", *entry[1:]))
    files.move(entry.path, recorded.path)
    fault.point("bundle.recorded")
    _follow(pump, recorded, job_id, event)


def _follow(pump: "Round", entry: Entry, job_id: str, event: str) -> None:
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


def _made(spool: "Spool", entry: Entry) -> str:
    """The bundle's .chasqui/, made again where it is gone: a token can be closed there, and nothing more happens."""
    meta = spool.meta_dir(entry.job, 0)
    os.makedirs(meta, 0o700, exist_ok=True)
    return meta


# -- ends --------------------------------------------------------------------------------------------------------------


def settle(pump: "Round", standing: live.Standing, snapshot: "Optional[Snapshot]", fresh: bool) -> bool:
    """Settle a bundle that is over, with all of its members; whether it is."""
    entry = standing.entry
    if not os.path.isdir(standing.meta):
        # Somebody has deleted its folder. Nobody knows whether it is held: it is released, runs nothing, and is over.
        marks.write_id(_made(pump.spool, entry), entry.token, standing.id, True)
    _follow(pump, entry, standing.id, "submitted")
    every = [_member(pump, one, standing) for one in members_of(pump.spool, entry, "submitted")]
    alive = [one for one in every if not reconcile.member(pump, one)]
    if not alive and not _started(standing.marks):
        if close(pump, entry):
            return False  # it started this very moment
        pump.state.delete.append(standing.id)  # every member was cancelled or held
        pump.state.save()
        _drop(pump, entry)
        return True
    ended = _over(pump, standing, snapshot, fresh, any(_started(one.marks) for one in alive))
    if ended is None:
        # Without a server its end is that of its script; where there is one, it counts there until it is quite gone.
        if alive or pump.scheduler.stages_output or not standing.marks.flag:
            return False
    elif not _started(standing.marks) and close(pump, entry):
        return False
    elif [one for one in alive if not _settle_member(pump, one, ended)]:
        return False
    fault.point("bundle.settled")
    _drop(pump, entry)
    return True


def _over(
    pump: "Round", standing: live.Standing, snapshot: "Optional[Snapshot]", fresh: bool, missing: bool
) -> "Optional[Ended]":
    """How a bundle ended that the scheduler no longer runs; None where that is not certain yet. missing: whether there
    are members without the flag that they should have written."""
    if snapshot is None or not fresh or standing.id in snapshot.live:
        return None
    found, flag = standing.marks, standing.marks.flag
    ended: "Optional[Ended]" = snapshot.ended.get(standing.id)
    if ended is None and flag and not found.term:
        ended = Ended(standing.id, 0, "", "", False)
    elif ended is None and not snapshot.knows(standing.id):
        return None
    late = missing and pump.scheduler.stages_output  # a flag may still be on its way through the file server's caches
    if (ended is None or late) and not reconcile.given_up(pump, standing.entry.token):
        return None
    return ended or Ended(standing.id, None, "gone from the scheduler without a trace", "", True)


def _member(pump: "Round", one: Entry, bundle: live.Standing) -> live.Standing:
    meta = pump.spool.meta_dir(one.job, one.attempt)
    spoilt = not marks.read_id(meta, one.token)
    return live.Standing(one, meta, bundle.id, False, marks.read(meta, one.token), (), spoilt, True)


def _settle_member(pump: "Round", standing: live.Standing, ended: Ended) -> bool:
    """What becomes of a member whose bundle is over; False where that is not certain yet."""
    one, found = standing.entry, standing.marks
    if standing.spoilt:  # whether it has started is not known: it is never submitted again
        if reconcile.cancelled_spoilt(pump, standing):
            return reconcile.cancelled(pump, standing, "cancelled", ended.exit)
        return reconcile.end(pump, standing, {"state": "LOST", "exit": None, "why": "its bundle is over"})
    if not _started(found):
        if pump.close_token(standing.meta, one.token):
            return False  # it started this very moment: its marks say more next time
        if sum(1 for name in files.names(standing.meta) if name.startswith("runner.")) >= MOST_TIMES:
            files.write_file(_alone(pump.spool, one), b"", durable=False)
        reconcile.back_to_waiting(pump, one, "its bundle ended before its turn came")
        return True
    if found.cancel or ended.why == DELETED:
        why = "cancelled" if found.cancel else "its bundle was deleted in " + pump.scheduler.called
        return reconcile.cancelled(pump, standing, why, ended.exit)
    return reconcile.end(pump, standing, outcome(standing, ended))


def outcome(standing: live.Standing, ended: Ended) -> "Dict[str, Any]":
    """How a member ended that began, of which no flag says so for certain; ended: how its bundle did."""
    found = standing.marks
    certain = reconcile.told_by_flags(standing)
    if certain:
        return certain  # it waits for a round that has time for what follows
    code = int(found.flag["exit"]) if found.flag and found.flag.get("exit", "").isdigit() else 0
    if found.term and (ended.lost or not ended.exit):
        return {"state": "FAIL", "exit": code or None, "why": "terminated"}
    if ended.lost or ended.exit is None or ended.exit == runner.EXIT_REFUSED:
        why = "its bundle is over: %s" % (ended.why or "its end is not known")
        return {"state": "LOST", "exit": None, "why": why}
    if not ended.exit:
        return {"state": "FAIL", "exit": None, "why": "its runner was killed"}
    return {"state": "FAIL", "exit": ended.exit, "why": ended.why or "its bundle was killed (%d)" % ended.exit}


def _started(found: marks.Marks) -> bool:
    return bool(found.runs or (found.claim and not marks.is_closed(found.claim)))


def close(pump: "Round", entry: Entry) -> str:
    """As Round.close_token, of a bundle."""
    return pump.close_token(_made(pump.spool, entry), entry.token)


def take_back(pump: "Round", entry: Entry) -> None:
    """Take a bundle apart that the scheduler never got, its token closed: its members wait again."""
    for one in members_of(pump.spool, entry):
        meta = pump.spool.meta_dir(one.job, one.attempt)
        if not os.path.lexists(one.path) or not spoiled.names(meta):
            continue  # one whose folder is spoilt is a job like any other
        if not pump.close_token(meta, one.token):
            reconcile.back_to_waiting(pump, one, "the scheduler never got its bundle")
    fault.point("bundle.settled")
    _drop(pump, entry)


def _drop(pump: "Round", entry: Entry) -> None:
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
