"""A bundle's script: its first lines, and the shell that runs its members, `parallel` at a time.

It runs the members' own runners, each in its own work folder, with its own token, marks, flag and output; PBS_JOBID is
the bundle's. It passes by one whose token was closed while it waited there, and looks every second for the cancel mark
of one that runs: TERM to the payload, KILL ten seconds later. A member that takes longer than its own walltime is ended
the same way, so that the others have theirs. The end of one wakes the relay no more often than `query_interval`.
"""

import os
import re
import shlex

from . import bundle_kinds, directives, launch, runner, submit

MYPY = False
if MYPY:
    from typing import Dict, List

    from .pump import Round

# Variables that say how much of the allocation there is: each member is told its share.
_SHARED = ("NCPUS", "OMP_NUM_THREADS", "PBS_NUM_PPN", "PBS_NP")
OVER_SECONDS = 5  # a scheduler would have ended it by then

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


def head(group: bundle_kinds.Group, count: int) -> str:
    """The first lines of a bundle's script: what its members ask for, multiplied."""
    text = "#!%s\n" % runner.shell_path()
    parallel = min(group.kind.parallel, count)
    walltime = bundle_kinds.in_turns(group.kind.limit, -(-count // parallel)) if group.kind.limit else 0
    _, dialect, same = group.kind.key
    if dialect == "SBATCH":
        fresh = [(name, bundle_kinds.clock(walltime) if name == "time" else value) for name, value in same]
        words = ["--%s%s" % (name, "=" + value if value else "") for name, value in [("job-name", "bundle")] + fresh]
        return text + "".join("#SBATCH %s\n" % shlex.quote(word) for word in words)
    text += "#PBS -N bundle\n"
    with open(group.path, "rb") as stream:
        options = directives.options(stream.read())
    for flag, value in options:
        if flag == "l":
            value = bundle_kinds.multiplied(value, parallel, walltime) or value
        if flag in bundle_kinds.SAME:
            text += "#PBS -%s %s\n" % (flag, shlex.quote(value) if value else "")
    return text


def body(pump: "Round", group: bundle_kinds.Group, members: "List[Dict[str, str]]") -> str:
    """What follows its first lines. members: as `script` has them."""
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
    members: of each its dir meta token out err; all unquoted; shared: NAME=value of the variables that are shared out,
    unless they have just that value."""
    cases = []
    for number, one in enumerate(members):
        words = ["cq_%s=%s" % (name, shlex.quote(value)) for name, value in sorted(one.items())]
        cases.append("        %d) %s ;;" % (number, " ".join(words)))
    quoted = {name: shlex.quote(value) if value else "" for name, value in values.items()}
    quoted.update(count="%d" % len(members), members="\n".join(cases), shell=runner.shell_path())
    quoted.update(carried=runner.carried_words(), shared=" ".join(shared))
    return re.sub("@([a-z]+)@", lambda match: quoted[match.group(1)], _SCRIPT)
