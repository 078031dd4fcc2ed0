#!/usr/bin/env bash
# Linters, types, import contract, tests. `scripts/test.sh quick` leaves out tests that start processes
# or compute for long: under three minutes on two cores. `scripts/test.sh coverage` runs all, and fails
# where too few lines are reached; counting them takes a third more time. Other arguments go to pytest:
# `-m slow`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh dev
bin=.venv/bin

"$bin/ruff" format --check .
"$bin/ruff" check .
"$bin/mypy"
"$bin/lint-imports"
if [ "${1:-}" = quick ]; then
    shift
    exec "$bin/pytest" --numprocesses 2 --dist worksteal \
        -m "not slow and not processes and not long" "$@"
elif [ "${1:-}" = coverage ]; then
    set -- --numprocesses 2 --dist loadfile --no-loadscope-reorder --cov --cov-report term
elif [ $# = 0 ]; then
    set -- --numprocesses 2 --dist loadfile --no-loadscope-reorder
fi
exec "$bin/pytest" "$@"
