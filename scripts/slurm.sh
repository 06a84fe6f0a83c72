#!/bin/bash
# A sweep as a SLURM job array: each task runs one cell of a grid, as many at a time as the cluster gives. From the root:
#   sbatch --array=1-16 scripts/slurm.sh configs/sweeps/llava_onevision.yaml [flags of `tango sweep`]
# Cells are numbered as `tango sweep GRID --dry-run` lists them, one a line: --array=1-$(tango sweep GRID --dry-run | wc -l).
# Two minutes before its time is over, or when it is pre-empted, a task stops its cell, whose finished samples stay in the
# journal, and queues itself again; it goes on after the last of them. A cell that failed ends its task with its status;
# submitted again, the array computes what is missing and nothing else. PYTHON: by default .venv of the repository.
# Options of sbatch win over these; partition and account are your cluster's own.
#SBATCH --job-name=tango
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

cd "${SLURM_SUBMIT_DIR:-$PWD}" || exit 2
if [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || [ $# -eq 0 ]; then
    echo "slurm.sh: start it with: sbatch --array=1-CELLS scripts/slurm.sh GRID.yaml [flags of tango sweep]" >&2
    exit 2
fi
python=${PYTHON:-.venv/bin/python}
if ! command -v "$python" > /dev/null; then python=python; fi
export NPROC=${NPROC:-${SLURM_GPUS_ON_NODE:-1}} OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

stopped=
"$python" -m tango.cli sweep "$@" --cell "$SLURM_ARRAY_TASK_ID" &
sweep=$!
trap 'stopped=yes; kill -TERM $sweep 2> /dev/null' TERM INT
wait $sweep
status=$?
while kill -0 $sweep 2> /dev/null; do # a signal ends wait before the sweep, which first stops its cell
    wait $sweep
    status=$?
done
task=${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-}}_$SLURM_ARRAY_TASK_ID
# A task that is cancelled, or that SLURM itself queues again after pre-emption, is not running any more.
if [ -n "$stopped" ] && [ $status -ne 0 ] && [ "$(squeue -h -j "$task" -o %T)" = RUNNING ]; then
    echo "slurm.sh: cell $SLURM_ARRAY_TASK_ID was stopped and is queued again" >&2
    scontrol requeue "$task" && exit 0
fi
exit $status
