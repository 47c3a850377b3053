#!/usr/bin/env bash
# Set up, then ruff and the tests. Arguments go to pytest: bash scripts/test.sh -k entropy -n 0
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh requirements.txt requirements-dev.txt
python=.venv/bin/python

"$python" -m ruff check .
"$python" -m ruff format --check .
.venv/bin/lint-imports

# The tensors are tiny: threads within an operation cost more than they give, so the cores run tests side by side.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
