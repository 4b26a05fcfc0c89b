#!/usr/bin/env bash
# One arm of a sweep a task: train and scale it, resumable. Was not run on a cluster: change what your site asks for.
#
#   efface sweep CONFIG.yaml -o DIR --list-arms | wc -l                        # N
#   jobid=$(sbatch --parsable --array=0-$((N - 1))%8 configs/slurm/sweep_array.sh CONFIG.yaml DIR)
#   sbatch --dependency=afterany:$jobid configs/slurm/sweep_array.sh CONFIG.yaml DIR       # no array: measures it all
#
# DIR lies where all nodes see it. A task that is stopped and requeued goes on where it was.
#SBATCH --job-name=efface-sweep
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=efface-sweep-%A_%a.log
set -euo pipefail
config=${1:?CONFIG.yaml}
directory=${2:?DIR}

given=()
if [[ -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then
    mapfile -t arms < <(efface sweep "$config" -o "$directory" --list-arms)
    given=(--arm "${arms[$SLURM_ARRAY_TASK_ID]}")
fi
exec efface sweep "$config" -o "$directory" --resume "${given[@]}"
