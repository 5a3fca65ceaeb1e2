#!/bin/bash
# Every way in which a job can end, and what PBS says of it. Order of submission and of the sections as recorded.
declare -A id
submit() { id[$1]=$(qsub "${@:2}"); }
tell() { echo "$1 rc=$?"; }
ended() {
    for name in "$@"; do
        until qstat -x -f "${id[$name]}" | grep -q "job_state = F"; do sleep 1; done
    done
}
running() {
    for name in "$@"; do
        until qstat -x -f "${id[$name]}" | grep -q "job_state = [RF]"; do sleep 0.5; done
    done
}

plain=(exit0 exit3 exit255 exit127 kill9 kill15 segvchild childkill9 badinterp)
for name in "${plain[@]}"; do submit "$name" "x_$name.sh"; done
submit qdel_held -h x_sleep.sh
ended "${plain[@]}" # the node has 8 cpus, and none of what follows may have to wait for one
submit qdel_running x_sleep.sh
submit qdel_exec x_exec_sleep.sh
submit walltime -l walltime=5 x_sleep.sh
submit walltime_exec -l walltime=5 x_exec_sleep.sh
submit mem -l select=1:ncpus=1:mem=100mb x_mem.sh
submit force x_sleep.sh
submit qsigterm x_sleep.sh
submit qsigkill x_sleep.sh
submit rerun x_exec_sleep.sh
running qdel_running qdel_exec walltime walltime_exec force qsigterm qsigkill
qdel "${id[qdel_held]}"; tell "qdel qdel_held"
qdel "${id[qdel_running]}"; tell "qdel qdel_running"
qdel "${id[qdel_exec]}"; tell "qdel qdel_exec"
qdel -W force "${id[force]}"; tell "qdel -W force"
qdel "${id[exit0]}"; tell "qdel finished"
qdel -x "${id[exit255]}"; tell "qdel -x finished"
qdel 999999; tell "qdel unknown"
qdel "${id[exit0]}" "${id[exit3]}"; tell "qdel several"
qsig -s TERM "${id[qsigterm]}"; tell "qsig TERM"
qsig -s KILL "${id[qsigkill]}"; tell "qsig KILL"
ended walltime walltime_exec mem force qdel_running qsigterm qsigkill
running rerun
qstat
ended qdel_exec
for name in exit127 segvchild kill9 childkill9 force qdel_running exit3 exit0 qdel_held qsigkill rerun walltime_exec \
    qsigterm kill15 badinterp exit255 mem qdel_exec walltime; do
    echo "== $name ${id[$name]}"
    qstat -x -f -w "${id[$name]}" |
        grep -E "used.(mem|walltime) =|job_state|substate|comment|run_count|Stageout|Exit_status|history_t"
    cat "x_$name.sh.e${id[$name]%%.*}" 2>/dev/null
done
qdel "${id[rerun]}"
