#!/usr/bin/env bash
# Runs tests/gpu/run.py on a machine without a network, with what tests/gpu/carry.sh collected. Options are handed on.
set -euo pipefail
site=$(mktemp -d)
python=${PYTHON:-python3}
install() { $python -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$@"; }
install .whl/*.whl
install --no-build-isolation .
export PYTHONPATH=$site HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 PYTHONUNBUFFERED=1
exec $python -P tests/gpu/run.py --data .data "$@"
