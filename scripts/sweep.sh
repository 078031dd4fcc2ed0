#!/usr/bin/env bash
# Tries the values of a sweep's YAML (configs/sweep.yaml, or --config YAML):
#
#   bash scripts/sweep.sh --local 8           here, run after run, without an account (again: --resume)
#   bash scripts/sweep.sh --count 8           W&B's server hands out the values, an agent here trains
#   bash scripts/sweep.sh --slurm 8 -- --time=1:00:00 --gpus-per-node=4 --ntasks-per-node=4
#                                             the same with an array of 8 Slurm jobs, a run each;
#                                             options behind -- are sbatch's, and the ranks are srun's
#   --sweep ENTITY/PROJECT/ID                 more runs of a sweep that is on the server already (by
#                                             --slurm of one that was made so)
#
# Values reach `fit` as options: each rank of DDP and of Slurm is started with them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -x .venv/bin/python ]; then
    export PATH="$PWD/.venv/bin:$PATH" # also of the agents, whose ${interpreter} is python
fi

fail() {
    echo "error: $1" >&2
    exit 2
}

for word in "$@"; do
    case $word in
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
    --local | --local=*) exec python -m simclr_pl sweep "$@" ;;
    --) break ;;
    esac
done

config=configs/sweep.yaml count="" jobs="" sweep=""
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    [ $# -gt 1 ] || fail "$1 needs a value (--help)"
    case $1 in
    --config) config=$2 ;;
    --count) count=$2 ;;
    --slurm) jobs=$2 ;;
    --sweep) sweep=$2 ;;
    *) fail "unknown option $1 (--help)" ;;
    esac
    shift 2
done
[ "${1:-}" != -- ] || shift
for number in $count $jobs; do
    [[ $number =~ ^[1-9][0-9]*$ ]] || fail "$number is no number of runs (--help)"
done
[ -z "$jobs" ] || command -v sbatch >/dev/null || fail "there is no sbatch here: --slurm is for Slurm"
[ -f "$config" ] || fail "there is no sweep at $config: give a YAML file as --config"
python -c 'import sys; from simclr_pl.tracking.wandb_mode import logged_in; sys.exit(not logged_in())' ||
    fail "nobody is logged in to W&B: wandb login, or sweep without it (--local 8)"

if [ -z "$sweep" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    yaml=$folder/$(basename "$config")
    cp "$config" "$yaml"
    if [ -n "$jobs" ]; then # one agent a job: srun starts the ranks, in one run directory
        python - "$yaml" <<'END'
import sys, pathlib, yaml

path = pathlib.Path(sys.argv[1])
sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
plain = ["${env}", "${interpreter}", "${program}", "${args}"]  # of W&B, where none is given
command = ["srun", *map(str, sweep.get("command") or plain)]
if not any(word.startswith("--run_dir") for word in command):
    command += ["--run_dir=runs/sweep-${envvar:SLURM_ARRAY_JOB_ID}/${envvar:SLURM_ARRAY_TASK_ID}"]
path.write_text(yaml.safe_dump({**sweep, "command": command}, sort_keys=False), encoding="utf-8")
END
    fi
    # Into a file: what the client leaves running would hold a pipe open.
    python - "$yaml" >"$folder/said" 2>&1 <<'END' || fail "W&B takes no sweep: $(tail -n 1 "$folder/said")"
import os, subprocess, sys

make = ["wandb", "sweep", sys.argv[1]]
loud = {**os.environ, "WANDB_SILENT": "false"}  # the sweep's name is in what it says
try:  # its client tries again for minutes, or for as long as nothing comes back
    sys.exit(subprocess.run(make, stdin=subprocess.DEVNULL, env=loud, timeout=60).returncode)
except subprocess.TimeoutExpired:
    sys.exit("its server did not answer within a minute")
END
    said=$(<"$folder/said")
    sweep=$(sed -n 's/.*wandb agent //p' <<<"$said" | tail -n 1)
    [ -n "$sweep" ] || fail "W&B takes no sweep: $(tail -n 1 <<<"$said")"
fi
echo "sweep $sweep; more runs of it: bash scripts/sweep.sh ${jobs:+--slurm $jobs }--sweep $sweep"
if [ -z "$jobs" ]; then
    wandb agent ${count:+--count "$count"} "$sweep" </dev/null
    exit
fi
mkdir -p runs
# Queued again, a job would be given other values: more runs come by --sweep.
sbatch --array="1-$jobs" --no-requeue --job-name=sweep --ntasks-per-node=1 \
    --output='runs/sweep-%A_%a.log' "$@" \
    --wrap="export SRUN_CPUS_PER_TASK=\${SLURM_CPUS_PER_TASK:-1}; wandb agent --count 1 $sweep"
