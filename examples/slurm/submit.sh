#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Submit a stage of hlrp to one or more queues; the first job to start takes the run.
#
#   examples/slurm/submit.sh <run> <script> <queue>[,<queue>...] [options of lerobot-train]
#   examples/slurm/submit.sh laq examples/slurm/hlrp_1.sbatch h100
#   examples/slurm/submit.sh trunk examples/slurm/hlrp_2.sbatch h100,a100 --steps=50000
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n 's/^# \{0,1\}//p' "$0" | sed -n '2,6p' >&2
    exit 2
fi
run=$1 script=$2 queues=$3
shift 3
for queue in ${queues//,/ }; do
    sbatch --job-name="$run" --partition="$queue" --export="ALL,RUN=$run" "$script" "$@"
done
