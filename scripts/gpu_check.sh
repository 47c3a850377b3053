#!/usr/bin/env bash
# Verify and measure on a CUDA machine in under 10 minutes:
#   bash scripts/gpu_check.sh [DATAROOT] [OUT_FOLDER] [--cpu]
# Writes report.md, report.json and images to OUT_FOLDER (gpu_check); docs/performance.md explains them.
# Needs Python with torch and Triton, and no network. --cpu: a small rehearsal without a GPU.
# PYTHON names the interpreter (default: the project's .venv, else python3).
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if [ -x "$here/.venv/bin/python" ]; then default="$here/.venv/bin/python"; else default=python3; fi
exec "${PYTHON:-$default}" "$here/scripts/gpu/check.py" "$@"
