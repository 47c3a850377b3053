#!/usr/bin/env bash
# Set up, run ruff and the tests. Arguments go to pytest: bash scripts/test.sh -k entropy -n 0
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# The plain build of torch, whose Triton compiles the kernels in a test.
QSATTN_TORCH="${QSATTN_TORCH:-cuda}" bash scripts/setup.sh requirements.txt requirements-dev.txt
python=.venv/bin/python

"$python" -m ruff check .
"$python" -m ruff format --check .
.venv/bin/lint-imports

# The tensors are tiny: threads within an operation would slow them down, so the cores run tests in parallel.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
