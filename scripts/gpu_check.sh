#!/usr/bin/env bash
# Both parts of scripts/gpu_check.py, with its options; PYTHON names the interpreter (default: .venv, else python3).
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if [ -x "$here/.venv/bin/python" ]; then default="$here/.venv/bin/python"; else default=python3; fi
status=0
for part in correctness speed; do
    "${PYTHON:-$default}" "$here/scripts/gpu_check.py" --part "$part" "$@" || status=1
done
exit "$status"
