#!/usr/bin/env bash
# Create the project's virtual environment, .venv, and install requirement files (default: requirements.txt).
#
#   bash scripts/setup.sh [FILE...]
#
# QSATTN_PYTHON chooses the Python (3.10 to 3.13; a command or an absolute path). Each file that is installed
# completely leaves a stamp in .venv: a rerun with nothing new ends at once, an interrupted one starts again.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

venv=.venv
python=$venv/bin/python
files=("$@")
(($#)) || files=(requirements.txt)

supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'

# The version and home of a Python; a virtual environment has those of the Python it was made with.
identity() { "$1" -c 'import sys; print("python", sys.version.split()[0], sys.base_prefix)'; }

# Prints the path of a supported Python: of an active virtual environment, the one it was made with.
find_python() {
    local candidate
    local candidates=(python3 python3.13 python3.12 python3.11 python3.10 python)
    [[ -z "${QSATTN_PYTHON:-}" ]] || candidates=("$QSATTN_PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c "$supported" 2>/dev/null; then
            "$candidate" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))'
            return
        fi
    done
    {
        echo "error: no Python 3.10 to 3.13 (tried: ${candidates[*]})"
        for candidate in "${candidates[@]}"; do
            "$candidate" --version 2>/dev/null | sed "s|^|  $candidate is |" || true
        done
        echo "Install one, or name one: QSATTN_PYTHON=/path/to/python3 bash scripts/setup.sh"
    } >&2
    return 2
}

# $1: the Python.
make_venv() {
    echo "making $venv with $1"
    if ! "$1" -m venv --clear "$venv"; then
        echo "error: $1 could not make $venv (on Debian and Ubuntu: apt install python3-venv)" >&2
        return 2
    fi
}

# ---- the environment: kept if it was made with the chosen Python ----
if [[ -n "${QSATTN_PYTHON:-}" ]] || ! "$python" -c "$supported" 2>/dev/null; then
    base=$(find_python)
    [[ "$(identity "$python" 2>/dev/null)" == "$(identity "$base")" ]] || make_venv "$base"
fi

# ---- the requirements ----
stamp_of() { echo "$venv/installed-${1//\//-}"; }
contents() { identity "$python" && cat -- "$1" build-constraints.txt; }

missing=()
for file in "${files[@]}"; do
    if [[ ! -f "$file" ]]; then
        echo "error: there is no $file to install in $PWD" >&2
        exit 2
    fi
    [[ "$(contents "$file")" == "$(cat -- "$(stamp_of "$file")" 2>/dev/null)" ]] || missing+=("$file")
done
((${#missing[@]})) || exit 0

# An environment whose creation was interrupted has a Python but no pip.
if ! "$python" -m pip --version >/dev/null 2>&1; then
    make_venv "$("$python" -c 'import sys; print(sys._base_executable)')"
    missing=("${files[@]}")
fi

for file in "${missing[@]}"; do
    echo "installing $file into $venv"
    # Remove the marker that hides visdom from plain pip (requirements.txt says why), and give its isolated
    # build the setuptools it needs: older pips read the first variable, newer ones the second. Both split at
    # spaces, hence the relative paths.
    sed 's/; *extra == "visdom"//' "$file" >"$venv/resolved-${file//\//-}"
    PIP_CONSTRAINT=build-constraints.txt PIP_BUILD_CONSTRAINT=build-constraints.txt \
        "$python" -m pip install --disable-pip-version-check -r "$venv/resolved-${file//\//-}"
    contents "$file" >"$(stamp_of "$file")"
done
