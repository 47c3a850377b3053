#!/usr/bin/env bash
# From a fresh clone to a trained translation: set up, draw the embedded set, train QS-Attn on it, translate
# the test images, measure. A rerun continues where the last one stopped and repeats nothing that is done.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
export GOMP_SPINCOUNT=10000 # waiting threads leave their cores to other programs

name=stripes_qsattn_global
data=(--size 64 --train 200 --test 20 --seed 0)
read -r -d '' -a training < <(grep -v '^#' scripts/presets/quickstart.txt) || true # status 1 at the end
training+=(--seed 0 --display_id 0)

python=.venv/bin/python
run=checkpoints/$name
results=results/$name/test_latest
preset="${data[*]} ${training[*]}"

step() { printf '\n== %s\n' "$*"; }

bash scripts/setup.sh

step "the embedded data set: plain animals (A), striped animals (B)"
"$python" datasets/make_stripes.py --out datasets/stripes "${data[@]}"

step "training QS-Attn (global) on it"
if [[ ! -f "$run/quickstart_done" ]]; then
    resume=()
    [[ ! -f "$run/latest_net_G.pth" ]] || resume=(--continue_train)
    "$python" train.py --QS_mode=global --dataroot ./datasets/stripes --name "$name" \
        "${training[@]}" ${resume[@]+"${resume[@]}"}
    echo "$preset" >"$run/quickstart_done"
elif [[ "$(cat "$run/quickstart_done")" == "$preset" ]]; then
    echo "trained already. To start afresh: rm -r $run results/$name"
else
    echo "error: $run was trained with another preset. To start afresh: rm -r $run results/$name" >&2
    exit 2
fi

step "translating the test images"
[[ "$results/index.html" -nt "$run/latest_net_G.pth" ]] || "$python" test.py --name "$name"

step "measuring: the share of the way to B's stripes, and the background's change in levels of 255"
"$python" scripts/evaluate.py --name "$name" --metrics stripes

step "look at it in a browser"
printf '%s\n' "$PWD/$results/index.html" "$PWD/$run/web/index.html"
