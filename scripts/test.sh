#!/usr/bin/env bash
# Linters, types, import contract, tests. Arguments go to pytest: `bash scripts/test.sh -m slow`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh dev
bin=.venv/bin

"$bin/ruff" format --check .
"$bin/ruff" check .
"$bin/mypy"
"$bin/lint-imports"
if [ $# -gt 0 ]; then
    exec "$bin/pytest" "$@"
fi
exec "$bin/pytest" --numprocesses 2 --dist loadfile --cov --cov-report term
