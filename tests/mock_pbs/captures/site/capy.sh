#!/bin/bash
#PBS -N capy
on_exit() {
    cd "$PBS_O_WORKDIR" || exit
    said=$(qsub -h ok.sh 2>&1)
    status=$?
    echo "$(date +%T) trap qsub rc=$status $said" >capy.log
}
trap on_exit EXIT
sleep 1
