#!/usr/bin/env bash
# One model a task: its audit, in a directory of its own, resumable. Was not run on a cluster.
#
#   sbatch --array=0-$((N - 1)) configs/slurm/audit_array.sh MODELS.txt BASE DIR [more flags of efface audit]
#
# MODELS.txt names N checkpoints, one a line. `efface report DIR/* -o REPORT.html` puts all of them on one page.
#SBATCH --job-name=efface-audit
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --output=efface-audit-%A_%a.log
set -euo pipefail
models=${1:?MODELS.txt}
base=${2:?BASE}
directory=${3:?DIR}
shift 3

mapfile -t names < "$models"
model=${names[${SLURM_ARRAY_TASK_ID:?an array job}]}
name=$(basename "$model")
exec efface audit "$name=$model" --base "$base" -o "$directory/$name" --resume "$@"
