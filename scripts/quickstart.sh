#!/usr/bin/env bash
# From a fresh clone to a representation of real handwriting, on a laptop, without a download: installs
# into .venv, pretrains on scikit-learn's digits, and says what that was worth.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh

run=${1:-runs/quickstart/$(date +%Y-%m-%d_%H-%M-%S)}
simclr() { .venv/bin/python -m simclr_pl "$@"; }
echo "pretraining on 1,458 handwritten digits, without their labels"
simclr fit --config configs/digits.yaml --run_dir "$run"
simclr report --run_dir "$run"
# Ends with an error unless pretraining beats the untrained encoder by two standard errors.
simclr compare --run_dir "$run" --split test --labels_per_class 5 --draws 5 --require 2
echo "run directory: $run (its pictures on one page: $run/report.html)"
