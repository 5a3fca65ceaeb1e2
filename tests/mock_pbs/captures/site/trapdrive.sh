#!/bin/bash
# Does an EXIT trap run, and what can it do: after a normal end, qdel and the walltime; with and without a TERM trap.
declare -A id
submit() { id[$1]=$(qsub "${@:2}" site/trapjob.sh); }
order=(short fg-qdel fg+TERMtrap-qdel wait+TERMtrap-qdel fg-walltime wait+TERMtrap-walltime fg-qsigTERM)
submit short -v MODE=short
submit fg-qdel -v MODE=fg
submit fg+TERMtrap-qdel -v MODE=fg,TERMTRAP=1
submit wait+TERMtrap-qdel -v MODE=wait,TERMTRAP=1
submit fg-walltime -l walltime=5 -v MODE=fg
submit wait+TERMtrap-walltime -l walltime=5 -v MODE=wait,TERMTRAP=1
submit fg-qsigTERM -v MODE=fg
for name in "${order[@]}"; do
    until grep -q start "trap.${id[$name]%%.*}.log" 2>/dev/null; do sleep 0.2; done
done
date +%T
qdel "${id[fg-qdel]}" "${id[fg+TERMtrap-qdel]}" "${id[wait+TERMtrap-qdel]}"
qsig -s TERM "${id[fg-qsigTERM]}"
date +%T
for name in "${order[@]}"; do
    until qstat -x -f "${id[$name]}" | grep -q "job_state = F"; do sleep 0.5; done
done
qstat
for name in "${order[@]}"; do
    number=${id[$name]%%.*}
    echo "=========== $name ${id[$name]}"
    cat "trap.$number.log"
    qstat -x -f -w "${id[$name]}" | grep -E "job_state|comment|Exit_status"
    cat "trapjob.e$number"
done
