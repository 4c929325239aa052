#!/usr/bin/env bash
# The retraining on a Slurm cluster, one Ray node on each of the job's nodes; docs/clusters.md explains. To submit it:
#   export PSCLAP_PROJECT=/path/of/the/checkout MLFLOW_TRACKING_URI=http://mlflow:5000 AWS_ACCESS_KEY_ID=...
#   sbatch --nodes=4 --gpus-per-node=8 --output="$PSCLAP_PROJECT/runs/slurm-%j.log" pipelines/deploy/slurm.sh
#SBATCH --job-name=psclap-retrain
#SBATCH --dependency=singleton
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --mail-type=FAIL,INVALID_DEPEND

set -euo pipefail

: "${PSCLAP_PROJECT:?set it to the folder with dvc.yaml and retrain.yaml}"
: "${MLFLOW_TRACKING_URI:?set it to the tracking server}"
: "${SLURM_JOB_ID:?this is a script for sbatch}" "${SLURM_JOB_NODELIST:?}" "${SLURM_NNODES:?}"
readonly config=${PSCLAP_RETRAIN_CONFIG:-retrain.yaml}
readonly max_restarts=${PSCLAP_MAX_RESTARTS:-5}
readonly join_within_s=${PSCLAP_JOIN_WITHIN_S:-600}

cd "$PSCLAP_PROJECT"
export PATH="${PSCLAP_VENV:-$PSCLAP_PROJECT/.venv}/bin:$PATH"

# A token of this job's own: Ray's nodes talk to nobody without it. srun hands the environment on, no file has it.
RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(python -c 'import secrets; print(secrets.token_hex(32))')}
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_ip=$(python -c 'import ray.util; print(ray.util.get_node_ip_address())')
readonly head_ip head_host=${hosts[0]} port=$((20000 + SLURM_JOB_ID % 10000)) temp="/tmp/ray-$SLURM_JOB_ID"
export RAY_ADDRESS="$head_ip:$port"

# `ray stop` would end the Ray of others, too: the steps are ended, and with them what they started.
stop_ray() {
  trap '' TERM INT
  mapfile -t running < <(jobs -p)
  if ((${#running[@]})); then
    kill -TERM "${running[@]}" 2>/dev/null || true
    wait
  fi
  srun --overlap --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" rm -rf "$temp" || true
}
trap stop_ray EXIT
trap 'exit 130' TERM INT

start_ray() { # SRUN OPTIONS -- OPTIONS OF ray start
  local srun_options=()
  while [[ $1 != -- ]]; do
    srun_options+=("$1")
    shift
  done
  shift
  env -u RAY_ADDRESS srun --overlap --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${srun_options[@]}" \
    ray start --block --disable-usage-stats --num-cpus="${SLURM_CPUS_PER_TASK:-1}" "$@" &
}

start_ray --nodes=1 --ntasks=1 --nodelist="$head_host" -- \
  --head --node-ip-address="$head_ip" --port="$port" --include-dashboard=false --temp-dir="$temp"
if ((SLURM_NNODES > 1)); then
  workers=$((SLURM_NNODES - 1))
  start_ray --nodes="$workers" --ntasks="$workers" --exclude="$head_host" -- --address="$RAY_ADDRESS" --temp-dir="$temp"
fi

run() { # COMMAND: passes TERM on to it, waits for its end, and leaves its exit status in $status
  "$@" &
  local command=$!
  # shellcheck disable=SC2064  # this command, whatever comes later
  trap "kill -TERM $command 2>/dev/null || true" TERM INT
  status=0
  while true; do
    if wait "$command"; then status=0; else status=$?; fi
    kill -0 "$command" 2>/dev/null || break # a signal ends a wait, and not the command
  done
  trap 'exit 130' TERM INT
}

run python -m pipelines.deploy.nodes --wait-for "$SLURM_NNODES" --within "$join_within_s"
if ((status == 0)); then
  run python -m pipelines.retrain --config "$config"
fi

case $status in
0 | 10) # done, nothing new, or the champion was kept: no failure
  echo "retrain: exit $status"
  exit 0
  ;;
1 | 2 | 11) # a person has to mend something, or the data is not sound: not tried again, Slurm sends a mail
  echo "retrain: exit $status" >&2
  exit "$status"
  ;;
*) ;; # busy, out of reach, or interrupted: later, from where it is now
esac
if ((${SLURM_RESTART_COUNT:-0} >= max_restarts)); then
  echo "retrain: exit $status after ${SLURM_RESTART_COUNT:-0} restarts; not tried again" >&2
  exit "$status"
fi
echo "retrain: exit $status; it is queued again" >&2
stop_ray
trap - EXIT TERM INT
scontrol requeue "$SLURM_JOB_ID" && sleep 60 # Slurm ends this script
exit "$status"
