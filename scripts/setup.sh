#!/usr/bin/env bash
# Create the project's virtual environment, .venv, and install requirement files (default: requirements.txt).
#
#   bash scripts/setup.sh [FILE...]
#
# QSATTN_PYTHON chooses the Python that .venv is made with (3.10 to 3.13; a command or an absolute path).
# QSATTN_TORCH=cpu or cuda chooses torch's build for Linux. By default a machine without an NVIDIA device gets the
# CPU build, gigabytes smaller, where its index can be reached.
# Each file that is installed completely is copied into .venv: a rerun with nothing new ends at once.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

venv=.venv
python=$venv/bin/python
supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'

fail() { printf 'error: %s\n' "$@" >&2; exit 2; }

make_venv() {
    local candidate candidates=(python3 python3.13 python3.12 python3.11 python3.10 python)
    [[ -z "${QSATTN_PYTHON:-}" ]] || candidates=("$QSATTN_PYTHON")
    for candidate in "${candidates[@]}"; do
        "$candidate" -c "$supported" 2>/dev/null || continue
        echo "making $venv with $candidate"
        "$candidate" -m venv --clear "$venv" || fail "that failed (on Debian and Ubuntu: apt install python3-venv)"
        return
    done
    fail "no Python 3.10 to 3.13. Install one, or name one: QSATTN_PYTHON=/path/to/python3 bash scripts/setup.sh"
}

pip_install() { "$python" -m pip install --disable-pip-version-check "$@"; }

wants_cpu_torch() {
    case "${QSATTN_TORCH:-}" in
        cpu) ;;
        cuda) return 1 ;;
        *) [[ "$(uname -s)" == Linux && ! -e /dev/nvidia0 ]] && ! command -v nvidia-smi >/dev/null || return 1 ;;
    esac
    ! "$python" -c 'import torch' 2>/dev/null
}

# Without a word where the index does not answer, or what it gives does not work: the plain build follows.
install_cpu_torch() {
    pip_install --quiet --timeout 5 --retries 0 --index-url https://download.pytorch.org/whl/cpu \
        $(grep -oE '^torch[a-z]*[^ #;]*' "$1") &&
        "$python" -c 'import torch, torchvision; torchvision.ops.nms(torch.rand(1, 4), torch.rand(1), 0.5)' ||
        "$python" -m pip uninstall --quiet --yes torch torchvision || true
} >/dev/null 2>&1

# visdom 0.3 needs Python 3.12; the source of 0.2.4 builds with a setuptools that still has pkg_resources.
install_old_visdom() {
    echo "setuptools<82" >"$venv/old-setuptools.txt"
    PIP_CONSTRAINT=$venv/old-setuptools.txt PIP_BUILD_CONSTRAINT=$venv/old-setuptools.txt \
        pip_install "visdom>=0.2.4,<0.3" || echo "note: visdom, the optional live view, could not be installed"
}

# One whose creation was interrupted has a Python but no pip.
"$python" -c "import pip; $supported" 2>/dev/null || make_venv

for file in "${@:-requirements.txt}"; do
    installed=$venv/installed-${file//\//-}
    if cmp -s "$file" "$installed"; then continue; fi
    echo "installing $file into $venv"
    if grep -q '^torch>' "$file" && wants_cpu_torch; then install_cpu_torch "$file"; fi
    pip_install -r "$file"
    if grep -q '^visdom' "$file" && ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
        install_old_visdom
    fi
    cp "$file" "$installed"
done
