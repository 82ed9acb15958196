#!/bin/bash
# A search on several nodes of a Slurm cluster:  sbatch slurm.sh RECIPE NAME
# It goes on by itself after the time limit, a preemption or a lost node: the job is requeued, and --or-resume goes on
# where the ledger ends. RUNS must lie on storage that all nodes share.
#SBATCH --job-name=dux
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

recipe=${1:?usage: sbatch slurm.sh RECIPE NAME}
name=${2:?usage: sbatch slurm.sh RECIPE NAME}
runs=${RUNS:-$PWD/runs}
port=${RAY_PORT:-6379}
cpus=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=1
# A token of this job alone guards Ray's ports, which other users of the nodes can reach.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$runs/.ray-token-$SLURM_JOB_ID"
mkdir -p "$runs"
(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\n'*}  # not by `| head -n 1`, which can end scontrol, and with it this script, by SIGPIPE
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')

srun --nodes=1 --ntasks=1 --overlap -w "$head" \
  ray start --head --node-ip-address="$address" --port="$port" --num-cpus="$cpus" --include-dashboard=false --block &
nodes=($!)
sleep "${RAY_HEAD_SECONDS:-15}"
if (( SLURM_JOB_NUM_NODES > 1 )); then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --overlap --exclude="$head" \
    ray start --address="$address:$port" --num-cpus="$cpus" --block &
  nodes+=($!)
  sleep "${RAY_WORKER_SECONDS:-15}"
fi

srun --nodes=1 --ntasks=1 --overlap -w "$head" \
  dux run "$recipe" --storage "$runs" --name "$name" --address "$address:$port" --or-resume &
search=$!

# Two minutes before the limit Slurm sends SIGTERM to this script: the search ends in order, and the job comes back.
requeue=no
trap 'requeue=yes; kill -TERM "$search"' TERM
code=0
wait "$search" || code=$?
if [[ $requeue == yes ]]; then
  code=0  # of the first wait, which the trap cut short
  wait "$search" || code=$?
fi
kill "${nodes[@]}" || true
wait "${nodes[@]}" || true
rm -f "$RAY_AUTH_TOKEN_PATH"
if [[ $requeue == yes && $code -ne 0 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
