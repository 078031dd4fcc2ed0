#!/usr/bin/env bash
# A run on any number of machines without Slurm, one process a GPU. On each machine:
#
#   NODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash scripts/torchrun.sh configs/cifar.yaml runs/cifar [any option of fit]
#   NODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 bash scripts/torchrun.sh configs/cifar.yaml runs/cifar [any option of fit]
#
#   NODES        machines (default 1)             NODE_RANK    this one's number, from 0
#   MASTER_ADDR  the first machine's address      MASTER_PORT  a free port of it (default 29500)
#   DEVICES      processes a machine (default: as many as it has GPUs, or one)
#
# Of the recipe nothing changes: batch_size is global. SIGTERM ends a step, saves, and stops; the same
# command goes on. torchrun itself then ends with 1 whatever the run's exit code was: its report has it.
set -euo pipefail
usage="usage: bash scripts/torchrun.sh CONFIG RUN_DIR [OPTIONS OF fit]"
config=${1:?$usage}
run_dir=${2:?$usage}
shift 2
nodes=${NODES:-1}
if [ "$nodes" -gt 1 ] && { [ -z "${MASTER_ADDR:-}" ] || [ -z "${NODE_RANK:-}" ]; }; then
    echo "error: with NODES=$nodes give MASTER_ADDR, the first machine's address, and NODE_RANK, this one's number" >&2
    exit 2
fi
python=${PYTHON:-.venv/bin/python}
devices=${DEVICES:-$("$python" -c 'import torch; print(torch.cuda.device_count() or 1)')}
exec "$python" -m torch.distributed.run --nnodes "$nodes" --node-rank "${NODE_RANK:-0}" \
    --nproc-per-node "$devices" --master-addr "${MASTER_ADDR:-127.0.0.1}" \
    --master-port "${MASTER_PORT:-29500}" --max-restarts 0 \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    -m simclr_pl fit --config "$config" --run_dir "$run_dir" --resume \
    --trainer.num_nodes "$nodes" --trainer.devices "$devices" "$@"
