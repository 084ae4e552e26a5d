#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The work of a job of hlrp_{1,2,3}.sbatch: claim the run, cancel its other jobs, train on all nodes and GPUs.
#
#   train.sh <name of a configuration, see so101-config> [options of lerobot-train]
#
# RUN, the name of the run, comes from submit.sh. A run that was stopped resumes from its last checkpoint.
set -euo pipefail
config=$(so101-config "$1")
shift
output=outputs/$RUN

# The same run may wait in several queues. The first job to start creates this folder. The others stop, unless
# that job has ended without removing it.
mkdir -p outputs/claims
if ! mkdir "outputs/claims/$RUN" 2>/dev/null; then
    [ -s "outputs/claims/$RUN/job" ] || sleep 5 # the other job is about to write it
    other=$(cat "outputs/claims/$RUN/job")
    if [ "$other" != "$SLURM_JOB_ID" ] && [ -n "$(squeue --noheader --jobs="$other" 2>/dev/null)" ]; then
        echo "$RUN is trained by job $other; nothing to do here."
        exit 0
    fi
fi
echo "$SLURM_JOB_ID" > "outputs/claims/$RUN/job"
trap 'rm -r "outputs/claims/$RUN"' EXIT # so that a later submission can claim the run
scancel --me --name="$RUN" --state=PENDING

last=$output/checkpoints/last/pretrained_model/train_config.json
if [ -f "$last" ]; then
    options=("--config_path=$last" --resume=true)
else
    options=("--config_path=$config" "--output_dir=$output" "$@")
fi
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MAIN=${nodes%%$'\n'*} PORT=$((20000 + SLURM_JOB_ID % 20000))
# One launcher per node; srun sets the number of the node.
# shellcheck disable=SC2016
srun --ntasks-per-node=1 bash -c 'processes=$((SLURM_NNODES * SLURM_GPUS_ON_NODE))
    ((processes > 1)) && several=--multi_gpu # accelerate rejects it for a single process
    exec accelerate launch ${several:-} --mixed_precision=bf16 \
    --num_machines="$SLURM_NNODES" --machine_rank="$SLURM_NODEID" --num_processes="$processes" \
    --main_process_ip="$MAIN" --main_process_port="$PORT" "$(which lerobot-train)" "$@"' train "${options[@]}"
