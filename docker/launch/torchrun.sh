#!/bin/bash
# bash docker/launch/torchrun.sh [key=value ...]        the same command on each node, in the same shared directory
# NODES=2 PROCESSES=4 HEAD=node1 bash docker/launch/torchrun.sh data=folder data.path=/shared/photos trainer=gpu
# WAIT=600 waits that many seconds for the other nodes, in place of 60.
set -euo pipefail
exec torchrun \
    --nnodes="${NODES:-1}" \
    --nproc-per-node="${PROCESSES:-gpu}" \
    --rdzv-backend=c10d \
    --rdzv-endpoint="${HEAD:-localhost}:${PORT:-29500}" \
    --rdzv-conf="join_timeout=${WAIT:-60},read_timeout=${WAIT:-60}" \
    --rdzv-id="${JOB:-graftline}" \
    -m graftline train "$@"
