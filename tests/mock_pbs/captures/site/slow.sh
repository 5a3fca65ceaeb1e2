#!/bin/bash
# A classic epilogue that hangs for one job: what happens to that one and to another one beside it.
value() { qstat -x -f "$1" | sed -n "s/^ *$2 = //p"; }
report() { echo "t=$SECONDS slowepi=$(value "$slow" job_state) $(value "$slow" substate)  other=$(value "$other" job_state) "; }
reach() { until [ "$(value "$1" job_state)" = "$2" ]; do sleep 0.3; done; }
slow=$(qsub -N slowepi ok.sh)
other=$(echo "sleep 4" | qsub -N other)
reach "$slow" R
reach "$other" R
report
reach "$other" F
report
reach "$slow" F
report
qstat -x -f "$slow" | grep -E "job_state|comment|Exit_status"
