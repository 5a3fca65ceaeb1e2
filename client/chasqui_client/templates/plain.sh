#!/bin/bash
#% command
#% cpus = 1
#% walltime = 01:00:00
#% pbs =
#% setup =
#PBS -l select=1:ncpus={{cpus}}
#PBS -l walltime={{walltime}}
{{pbs}}
cd "$PBS_O_WORKDIR" || exit 1
{{setup}}
{{command}}
