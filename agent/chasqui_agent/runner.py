"""The runner: the shell script that goes to the scheduler in place of the user's, and runs hers as its child.

It is plain POSIX sh (bash where there is one, for `set -m`), because on a compute node nothing else is certain. What it
does, in order: make room for its flag, claim the token, mark this start, run the script, write the flag, wake the
relay. Every step but the script itself happens in .chasqui/ of the work folder and in wake/.
"""

import os
import re
import shlex

from . import directives, fault

MYPY = False
if MYPY:
    from typing import Dict, List

EXIT_REFUSED = 97  # duplicate, closed, rerun not asked for, no folder, no space: the payload was not run

# Directives the runner does not pass on: we set them ourselves, or they are about the user's script.
_OURS = "SNhvoejr"

# What tells the scheduler's commands where their server is, on sites (and in accounts) that set it.
SERVER = ("PBS_CONF_FILE", "PBS_EXEC", "PBS_DEFAULT", "PBS_SERVER", "SLURM_CONF")

# Every variable of its own begins with cq_: what is exported to a job (`#PBS -v n=1000`) stays exported where sh
# assigns to it, and would reach the payload with another value.
_TEXT = r"""
cq_dir=@dir@
cq_meta=$cq_dir/.chasqui
cq_root=@root@
cq_job=@job@
cq_attempt=@attempt@
cq_token=@token@
cq_rerun=@rerun@
cq_python=@python@
cq_agent=@agent@
cq_record=@record@
cq_wakes=@wakes@
cq_member=@member@
cq_id=${PBS_JOBID:-${SLURM_JOB_ID:-none.$$}}
[ -n "${PBS_JOBID:-}" ] || [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || cq_id="${SLURM_ARRAY_JOB_ID:-}[$SLURM_ARRAY_TASK_ID]"
cq_host=$(uname -n)
cq_k=0
cq_term=

# An element of an array, 37[5].server: the token's claim names the array, 37[].server, and all else is its own.
cq_base=$cq_id
cq_own=$cq_token
case $cq_id in
*\[*\]*)
    cq_own=${cq_id#*\[}
    cq_own=$cq_token.${cq_own%%\]*}
    cq_base="${cq_id%%\[*}[]${cq_id#*\]}"
    ;;
esac

# An event for the next pump, whole or absent, in plain shell: python may be missing on this node. Elements of one array
# leave theirs on many hosts at once.
event() {
    cq_from=$cq_own.$cq_host.$$
    printf '%s\n' "$cq_id" >"$cq_root/wake/.$1.$cq_from" 2>/dev/null &&
        mv -f "$cq_root/wake/.$1.$cq_from" "$cq_root/wake/ev.$1.$cq_job.$cq_attempt.$cq_from" 2>/dev/null
}

# wake REASON [COMMAND]: one pump, at once; COMMAND (setsid) is put in front. Nothing, where tails are not to wake.
wake() {
    cq_reason=$1
    shift
    [ -n "$cq_wakes" ] || return 0
    "$@" env -i HOME="$HOME" USER="${USER:-}" LOGNAME="${LOGNAME:-}" PATH=@path@ LC_ALL=C PBS_JOBID="$cq_id" @carried@ \
        "$cq_python" -I -S "$cq_agent" --root "$cq_root" wake --reason "$cq_reason" --budget 15 \
        </dev/null >/dev/null 2>&1
}

refuse() {
    rm -f "$cq_room"
    event "$1"
    wake "$1" || :
    exit 97
}

# The job runs in the folder above ours. It may have protected that (`chmod -R a-w .`), or taken ours away: how it ended
# is to be told all the same.
let_us_in() {
    [ ! -w "$cq_meta" ] || [ ! -w "$cq_room" ] || return 0
    [ -x "$cq_dir" ] || chmod u+rx "$cq_dir"
    [ -d "$cq_meta" ] || mv -f "$cq_meta" "$cq_meta.$cq_token" 2>/dev/null
    [ -d "$cq_meta" ] || mkdir -m 700 "$cq_meta"
    [ -w "$cq_meta" ] && [ -x "$cq_meta" ] || chmod u+rwx "$cq_meta"
    [ ! -e "$cq_room" ] || [ -w "$cq_room" ] || chmod u+rw "$cq_room"
    # What was taken away had said that this has started: PBS may start it once more.
    ln -s "$cq_base" "$cq_meta/claim.$cq_token"
    [ "$cq_own" = "$cq_token" ] || ln -s "$cq_id" "$cq_meta/claim.$cq_own"
    cq_begun=1
    while [ "$cq_begun" -le "$cq_k" ]; do
        ln -s "$cq_id" "$cq_meta/run.$cq_own.$cq_begun"
        cq_begun=$((cq_begun + 1))
    done
} 2>/dev/null

# 1. Room for the flag, before anything else: a full quota at the end must not eat the truth.
cq_room=$cq_meta/flag.$cq_own.$cq_host.$$.new
printf '%4096s\n' '' 2>/dev/null >"$cq_room" || exit 97

# 2. The claim: one id may run this token, and none once the relay has closed it.
cq_claimed=1
if ! ln -s "$cq_base" "$cq_meta/claim.$cq_token" 2>/dev/null; then
    cq_claimed=
    [ "$(readlink "$cq_meta/claim.$cq_token" 2>/dev/null)" = "$cq_base" ] || refuse duplicate
fi
# An element also makes one of its own, and never takes the array's back: the other elements stand on that.
if [ "$cq_own" != "$cq_token" ]; then
    cq_claimed=
    ln -s "$cq_id" "$cq_meta/claim.$cq_own" 2>/dev/null ||
        [ "$(readlink "$cq_meta/claim.$cq_own" 2>/dev/null)" = "$cq_id" ] || refuse duplicate
fi

# A member of a bundle is cancelled by itself: TERM to the payload, and KILL when we were asked ten times, once a
# second.
cq_asks=0
# shellcheck disable=SC2329 # the trap calls it
on_cancel() {
    on_term
    cq_asks=$((cq_asks + 1))
    [ -n "${cq_child:-}" ] || return 0
    cq_deadly=TERM
    [ "$cq_asks" -le 10 ] || cq_deadly=KILL
    kill -"$cq_deadly" -- "-$cq_child" 2>/dev/null || kill -"$cq_deadly" "$cq_child" 2>/dev/null || :
}
[ -z "$cq_member" ] || trap on_cancel USR1

# 3. This start. A second one of the same id is PBS's own rerun: only where the job asked for it, else it leaves no
# mark, because the first start may live on (lost node, restarted server) and would take it for one that has the word.
# A symlink, because a file would stay behind empty on a full disk, and look like an earlier start.
cq_k=1
until ln -s "$cq_id" "$cq_meta/run.$cq_own.$cq_k" 2>/dev/null; do
    if [ ! -L "$cq_meta/run.$cq_own.$cq_k" ]; then
        # Nothing ran: without our claim the relay can close the token and queue the job again.
        [ -z "$cq_claimed" ] || rm -f "$cq_meta/claim.$cq_token"
        refuse norun
    fi
    [ "$cq_rerun" = 1 ] || refuse rerun
    cq_k=$((cq_k + 1))
done
# The claim once more: it may have been taken back by an earlier start of this id, and closed since.
if [ "$(readlink "$cq_meta/claim.$cq_token" 2>/dev/null)" != "$cq_base" ]; then
    rm -f "$cq_meta/run.$cq_own.$cq_k"
    refuse duplicate
fi

# shellcheck disable=SC2329 # the trap calls it
on_term() {
    [ -z "$cq_term" ] || return 0
    cq_term=1
    let_us_in
    true 2>/dev/null >"$cq_meta/term.$cq_own.$cq_k"
    event term
}
trap on_term TERM INT HUP

# For a hook that the cluster's admin installed: it knows a job's id and owner, and learns here which relay to wake.
if [ -n "$cq_record" ]; then
    cq_record=$HOME/.chasqui-agent/jobs/$cq_id
    (umask 077 && mkdir -p "${cq_record%/*}" &&
        printf '%s\n' "$cq_root" "$cq_python" "$cq_agent" @carried@ >"$cq_record") 2>/dev/null
fi

# 4. The user's script, in its own process group where the shell can: its `kill 0` must not end the runner.
PBS_JOBNAME=@name@
PBS_O_WORKDIR=${PBS_O_WORKDIR:-$cq_dir}
export PBS_JOBNAME PBS_O_WORKDIR
[ -z "${SLURM_JOB_NAME:-}" ] || export SLURM_JOB_NAME="$PBS_JOBNAME"
cd "$cq_dir" || refuse nofolder
# The head: a place was left empty while another job was still ending, and is free by now. The payload does not wait.
cq_head=
if read -r cq_due 2>/dev/null <"$cq_root/wake/debt" && [ "$(date +%s)" -ge "${cq_due:-0}" ] 2>/dev/null; then
    wake head &
    cq_head=$!
fi
if [ -n "${BASH_VERSION:-}" ]; then
    set -m
fi
@command@ </dev/null &
cq_child=$!
while :; do
    wait "$cq_child"
    cq_code=$?
    # A trap ends `wait` early, with the child still there; `wait` also returns when the child is only stopped.
    kill -0 "$cq_child" 2>/dev/null || break
    [ -n "$cq_term" ] || sleep 1
done
if [ "$cq_code" -gt 128 ]; then
    wait "$cq_child" 2>/dev/null
    cq_again=$?
    [ "$cq_again" = 127 ] || cq_code=$cq_again
fi

# What it leaves in the background would live until its bundle ends.
[ -z "$cq_member" ] || kill -KILL -- "-$cq_child" 2>/dev/null || :

# 5. The flag: the room is overwritten in place and renamed. A later start of the same id has the word.
let_us_in
if [ ! -L "$cq_meta/run.$cq_own.$((cq_k + 1))" ]; then
    printf 'exit=%s\nid=%s\nk=%s\nterm=%s\nhost=%s\nended=%s\nwhole\n' \
        "$cq_code" "$cq_id" "$cq_k" "${cq_term:-0}" "$cq_host" "$(date +%s)" 1<>"$cq_room"
    mv -f "$cq_room" "$cq_meta/flag.$cq_own.$cq_k"
fi

[ -z "$cq_record" ] || [ -z "$cq_wakes" ] || rm -f "$cq_record"

# 6. The tail. After TERM the session is about to be killed: only a detached wake lives long enough. Slurm kills the
# detached, too, as soon as we end; until then it waits (KillWait, 30 s).
event tail
if [ -n "$cq_term" ] && [ -z "${SLURM_JOB_ID:-}" ] && command -v setsid >/dev/null 2>&1; then
    wake term setsid &
else
    wake tail || :
fi
[ -z "$cq_head" ] || wait "$cq_head" || : # what a job leaves in the background dies with it
exit "$cq_code"
"""


def shell_path() -> str:
    """bash where it stands in its usual places, else sh."""
    for path in ("/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"):
        if os.access(path, os.X_OK):
            return path
    return "/bin/sh"


def carried() -> "Dict[str, str]":
    """The variables a wake needs of the environment the job was submitted in: which server, for one."""
    found = {name: os.environ[name] for name in SERVER if os.environ.get(name)}
    return dict(found, **fault.environment())


def carried_words() -> str:
    """`carried` as NAME=value words of a shell's command line. What the node's own environment says of the server goes
    first: it may be there by another file."""
    kept = [item for item in sorted(carried().items()) if not re.search("[\0-\x1f\x7f]", item[1])]
    words = ["%s=%s" % (name, shlex.quote(value)) for name, value in kept]
    return " ".join(words + ['${%s:+"%s=$%s"}' % (name, name, name) for name in SERVER])


def head(script: bytes) -> str:
    """The first lines of a runner: the shell, and the #PBS lines of a script that are passed on."""
    text = "#!%s\n" % shell_path()
    for flag, value in directives.options(script) if directives.dialect(script) == "PBS" else ():
        if flag and flag not in _OURS:
            text += "#PBS -%s %s\n" % (flag, value)
    return text


def build(
    script: bytes,
    values: "Dict[str, str]",
    command: "List[str]",
    rerun: bool,
    record: bool = False,
    wakes: bool = True,
    first: str = "",
    member: bool = False,
) -> bytes:
    """The runner of one submission.

    script: the user's, for its #PBS lines; command: the words that run it; values: dir root job attempt token python
    agent path name, unquoted. `path` is the PATH a wake needs to find the scheduler. record: leave a note for hooks;
    wakes: pump at its end, or where it refuses to run; first:
    its first lines, "" for those of `head`; member: of a bundle, whose script tells it of a cancel by USR1.
    """
    text = first or head(script)
    quoted = {key: shlex.quote(value) for key, value in values.items()}
    quoted["rerun"] = "1" if rerun else "0"
    quoted["command"] = " ".join(shlex.quote(word) for word in command)
    quoted["record"] = "1" if record else ""
    quoted["wakes"] = "1" if wakes else ""
    quoted["member"] = "1" if member else ""
    quoted["carried"] = carried_words()
    # One pass, so that a folder named "@job@" stays one.
    return (text + re.sub("@([a-z]+)@", lambda match: quoted[match.group(1)], _TEXT)).encode("utf-8", "surrogateescape")
