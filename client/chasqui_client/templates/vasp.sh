#!/bin/bash
#% inputs = ./POSCAR ./INCAR ./KPOINTS ./POTCAR
#% exclude = WAVECAR CHG CHGCAR
#% cpus = 16
#% walltime = 24:00:00
#% pbs =
#% setup =
#% mpirun = mpirun
#% vasp = vasp_std
#PBS -l select=1:ncpus={{cpus}}:mpiprocs={{cpus}}
#PBS -l walltime={{walltime}}
{{pbs}}
cd "$PBS_O_WORKDIR" || exit 1
{{setup}}
{{mpirun}} -np {{cpus}} {{vasp}}
