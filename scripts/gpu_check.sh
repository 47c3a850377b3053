#!/usr/bin/env bash
# The whole verification on a CUDA machine in under 8 minutes: bash scripts/gpu_check.sh [DATAROOT] [OUT_FOLDER]
# Leaves report.md, report.json and a few images in OUT_FOLDER (default: gpu_check); docs/performance.md says how to read them.
# Needs Python with torch, and Triton; no network. --cpu as last word: a small rehearsal without a GPU.
# PYTHON names the interpreter (default: the project's .venv, else python3).
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if [ -x "$here/.venv/bin/python" ]; then default="$here/.venv/bin/python"; else default=python3; fi
exec "${PYTHON:-$default}" "$here/scripts/gpu/check.py" "$@"
