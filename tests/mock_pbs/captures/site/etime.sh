#!/bin/bash
# The states that a job is seen in, three times at a natural end and three times after qdel.
watch() { # watch HOW ID [COMMAND...]: one line for each change of state; the command after the first look
    local before="" now="" began=$SECONDS
    while [ "$now" != F ]; do
        now=$(qstat -x -f "$2" | sed -n 's/^ *job_state = //p')
        [ "$now" = "$before" ] || echo "$1 $2 $now t=$((SECONDS - began))"
        [ -n "$before" ] || "${@:3}"
        before=$now
    done
}
until_running() { until qstat -f "$1" | grep -q "job_state = R"; do sleep 0.1; done; }

for _ in 1 2 3; do
    job=$(qsub ok.sh)
    until_running "$job"
    watch natural "$job"
done
for _ in 1 2 3; do
    job=$(qsub long.sh)
    until_running "$job"
    watch qdel "$job" qdel "$job" # R may be over 0.2 s after a qdel: before that it is seen for certain
done
