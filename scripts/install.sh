#!/usr/bin/env bash
# Makes .venv and installs the package into it: `scripts/install.sh [EXTRA]`, EXTRA being dev, for
# example. Does nothing where that has been done and neither pyproject.toml nor constraints.txt changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:-}

python=""
for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "error: Python 3.11 or newer is needed: install it, or name it in the variable PYTHON" >&2
    exit 1
fi

stamp=.venv/installed-${extra:-base}
wanted=$(cat pyproject.toml constraints.txt | cksum)
stamps=("$stamp")
if [ -z "$extra" ]; then # an environment with any extra serves where none is asked for
    stamps=(.venv/installed-*)
fi
for done in "${stamps[@]}"; do
    if [ -x .venv/bin/python ] && [ "$(cat "$done" 2>/dev/null)" = "$wanted" ]; then
        exit 0
    fi
done
if ! "$python" -m venv .venv; then
    echo "error: $python cannot make .venv: on Debian and Ubuntu, install python3-venv" >&2
    exit 1
fi
echo "installing simclr_pl into .venv (PyTorch is large: this takes a few minutes)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable ".${extra:+[$extra]}"
echo "$wanted" >"$stamp"
