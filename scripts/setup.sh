#!/usr/bin/env bash
# Create the project's virtual environment, .venv, and install requirement files (default: requirements.txt).
#
#   bash scripts/setup.sh [FILE...]
#
# QSATTN_PYTHON chooses the Python (3.10 to 3.13; a command or an absolute path).
# QSATTN_TORCH=cpu or cuda chooses torch's build for Linux. By default a machine without an NVIDIA device gets the
# CPU build, gigabytes smaller, where its index can be reached.
# Each file that is installed completely leaves a stamp in .venv: a rerun with nothing new ends at once.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

venv=.venv
python=$venv/bin/python
files=("${@:-requirements.txt}")
cpu_index=https://download.pytorch.org/whl/cpu

supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'

fail() { printf 'error: %s\n' "$@" >&2; exit 2; }

# The version and home of a Python; a virtual environment has those of the Python it was made with.
identity() { "$1" -c 'import sys; print("python", sys.version.split()[0], sys.base_prefix)'; }

# Prints the path of a supported Python: of an active virtual environment, the one it was made with.
find_python() {
    local candidate candidates=(python3 python3.13 python3.12 python3.11 python3.10 python)
    [[ -z "${QSATTN_PYTHON:-}" ]] || candidates=("$QSATTN_PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c "$supported" 2>/dev/null; then
            "$candidate" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))'
            return
        fi
    done
    fail "no Python 3.10 to 3.13 (tried: ${candidates[*]}; $("${candidates[0]}" --version 2>&1 | head -n 1))" \
        "Install one, or name one: QSATTN_PYTHON=/path/to/python3 bash scripts/setup.sh"
}

make_venv() {
    echo "making $venv with $1"
    "$1" -m venv --clear "$venv" || fail "$1 could not make $venv (on Debian and Ubuntu: apt install python3-venv)"
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
    pip_install --quiet --timeout 5 --retries 0 --index-url "$cpu_index" $(grep -oE '^torch[a-z]*[^ #;]*' "$1") &&
        "$python" -c 'import torch, torchvision; torchvision.ops.nms(torch.rand(1, 4), torch.rand(1), 0.5)' ||
        "$python" -m pip uninstall --quiet --yes torch torchvision || true
} >/dev/null 2>&1

# visdom 0.3 needs Python 3.12; the source of 0.2.4 builds with a setuptools that still has pkg_resources.
install_old_visdom() {
    echo "setuptools<82" >"$venv/old-setuptools.txt"
    PIP_CONSTRAINT=$venv/old-setuptools.txt PIP_BUILD_CONSTRAINT=$venv/old-setuptools.txt \
        pip_install "visdom>=0.2.4,<0.3" || echo "note: visdom, the optional live view, could not be installed"
}

# ---- the environment: kept if it was made with the chosen Python ----
# (One whose creation was interrupted has a Python but no pip.)
if [[ -n "${QSATTN_PYTHON:-}" ]] || ! "$python" -c "import pip; $supported" 2>/dev/null; then
    base=$(find_python)
    [[ "$("$python" -c 'import pip' 2>/dev/null && identity "$python")" == "$(identity "$base")" ]] || make_venv "$base"
fi

# ---- the requirements ----
stamp_of() { echo "$venv/installed-${1//\//-}"; }
contents() { identity "$python" && cat -- "$1"; }

for file in "${files[@]}"; do
    [[ -f "$file" ]] || fail "there is no $file to install in $PWD"
    [[ "$(contents "$file")" != "$(cat -- "$(stamp_of "$file")" 2>/dev/null)" ]] || continue
    echo "installing $file into $venv"
    if grep -q '^torch>' "$file" && wants_cpu_torch; then install_cpu_torch "$file"; fi
    pip_install -r "$file"
    if grep -q '^visdom' "$file" && ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
        install_old_visdom
    fi
    contents "$file" >"$(stamp_of "$file")"
done
