#!/bin/bash
#PBS -N trapjob
log=$PBS_O_WORKDIR/trap.${PBS_JOBID%%.*}.log
sig=""
say() { echo "$(date +%H:%M:%S.%3N) $*" >>"$log"; }
on_exit() {
    rc=$?
    say "EXIT trap rc=$rc sig=$sig"
    say "which qsub: $(command -v qsub)"
    say "qstat self: $(qstat -f "$PBS_JOBID" | grep -E "job_state|substate" | tr '\n' ' ')"
    say "user jobs: $(qselect -u "$USER" | tr '\n' ' ')"
    out=$(cd "$PBS_O_WORKDIR" && qsub -h -N nested ok.sh 2>&1)
    say "nested qsub rc=$? out=$out"
    for second in {1..20}; do
        sleep 1
        say "trap alive ${second}s"
    done
    say "trap done"
}
trap on_exit EXIT
read -r -a stat </proc/$$/stat
say "start pid=$$ ppid=$PPID sid=${stat[5]} shell=$SHELL PATH=$PATH pwd=$PWD WORKDIR=$PBS_O_WORKDIR MODE=$MODE"
# Without TERMTRAP this leaves 1 in $?, and that is what the EXIT trap then finds there, whatever ended the job.
[ -n "$TERMTRAP" ] && trap 'sig=TERM; say "TERM trap"; exit 143' TERM
case $MODE in
short)
    env | grep -E '^(HOME|MANPATH|PATH|PBS_[A-Z_]*|TMPDIR|USER)=' | LC_ALL=C sort >>"$log"
    sleep 1
    say "script end"
    exit 5
    ;;
fg) sleep 300 ;;
wait)
    sleep 300 &
    wait $!
    ;;
esac
