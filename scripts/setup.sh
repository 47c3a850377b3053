#!/usr/bin/env bash
# Create the project's virtual environment, .venv, and install requirement files (default: requirements.txt).
#
#   bash scripts/setup.sh [FILE...]
#
# QSATTN_PYTHON chooses the Python that .venv is made with (3.10 to 3.13; a command or an absolute path).
# QSATTN_TORCH=cpu or cuda chooses torch's build for Linux. By default a machine without an NVIDIA device gets the
# CPU build, gigabytes smaller, where its index can be reached and gives a pair that works.
# Each file that is installed completely is copied into .venv: a rerun with nothing new ends at once.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

venv=.venv
python=$venv/bin/python
supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'

pip_install() { "$python" -m pip install --disable-pip-version-check "$@"; }

make_venv() {
    local candidate candidates=(python3 python3.13 python3.12 python3.11 python3.10 python)
    [[ -z "${QSATTN_PYTHON:-}" ]] || candidates=("$QSATTN_PYTHON")
    for candidate in "${candidates[@]}"; do
        "$candidate" -c "$supported" 2>/dev/null || continue
        echo "making $venv with $candidate"
        "$candidate" -m venv --clear "$venv" && return
        echo "error: that failed (on Debian and Ubuntu: apt install python3-venv)" >&2
        exit 2
    done
    echo "error: no Python 3.10 to 3.13: QSATTN_PYTHON=/path/to/python3 bash scripts/setup.sh names one" >&2
    exit 2
}

wants_cpu_torch() {
    case "${QSATTN_TORCH:-}" in
        cpu) ;;
        cuda) return 1 ;;
        *) [[ "$(uname -s)" == Linux && ! -e /dev/nvidia0 ]] && ! command -v nvidia-smi >/dev/null ;;
    esac
}

# A .venv whose creation was interrupted has a Python but no pip.
"$python" -c "import pip; $supported" 2>/dev/null || make_venv

for file in "${@:-requirements.txt}"; do
    installed=$venv/installed-${file//\//-}
    if cmp -s "$file" "$installed"; then continue; fi
    echo "installing $file into $venv"
    if grep -q '^torch>' "$file" && wants_cpu_torch; then
        pip_install --quiet --timeout 5 --retries 0 --index-url https://download.pytorch.org/whl/cpu \
            $(grep -oE '^torch[a-z]*[^ #;]*' "$file") >/dev/null 2>&1 || true
        "$python" -c 'import torchvision' 2>/dev/null || "$python" -m pip uninstall -qqy torch torchvision
    fi
    pip_install -r "$file"
    if grep -q '^visdom' "$file" && ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
        # The source of 0.2.4 builds with a setuptools that still has pkg_resources.
        echo "setuptools<82" >"$venv/old-setuptools.txt"
        PIP_CONSTRAINT=$venv/old-setuptools.txt PIP_BUILD_CONSTRAINT=$venv/old-setuptools.txt \
            pip_install "visdom>=0.2.4,<0.3" || echo "note: visdom, the optional live view, could not be installed"
    fi
    cp "$file" "$installed"
done
