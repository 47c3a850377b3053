#!/usr/bin/env bash
# Download one data set into datasets/NAME: bash datasets/download_qsattn_dataset.sh horse2zebra
# The same command resumes an interrupted download. The folder appears only once the archive has been checked
# and unpacked. QSATTN_DATASET_URL gives other addresses of the archive (a mirror, file:///...), which are tried
# in turn.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

cyclegan_sets="apple2orange cezanne2photo facades grumpifycat horse2zebra iphone2dslr_flower maps monet2photo \
summer2winter_yosemite ukiyoe2photo vangogh2photo"

fail() { printf 'error: %s\n' "$@" >&2; exit 2; }

usage() {
    cat <<TEXT
usage: bash datasets/download_qsattn_dataset.sh NAME
NAME is one of
$(printf '  %s\n' $cyclegan_sets)
  cat2dog     (AFHQ's cats and dogs, resized to 256 x 256)
  day2night   (aligned pairs, pix2pix's night2day: night is A, day is B)
  cityscapes  (its licence forbids redistribution: register at https://www.cityscapes-dataset.com, download
              leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, and call
              python datasets/prepare.py cityscapes leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip \\
                  --out datasets/cityscapes)
TEXT
}

fetch() { # URL, file; a partial download waits in FILE.part
    local part=$2.part status=0
    echo "downloading $1"
    local get=(curl --fail --location --retry 3 --connect-timeout 30 --output "$part")
    "${get[@]}" --continue-at - "$1" || status=$?
    # 22, 33, 36: the server does not offer the rest alone, so the download starts again.
    if [[ " 22 33 36 " == *" $status "* && -s "$part" ]]; then
        rm -- "$part"
        status=0
        "${get[@]}" "$1" || status=$?
    fi
    [[ $status != 0 ]] || mv -- "$part" "$2"
    return "$status"
}

name=${1:-}
folders=(trainA trainB testA testB)
case $name in
    -h | --help) usage; exit ;;
    cat2dog) urls=("https://www.dropbox.com/s/t9l9o3vsx2jai3z/afhq.zip?dl=1") ;; # of StarGAN v2
    day2night)
        urls=(http://efrosgans.eecs.berkeley.edu/pix2pix/datasets/night2day.tar.gz
              https://people.eecs.berkeley.edu/~tinghuiz/projects/pix2pix/datasets/night2day.tar.gz)
        folders=(train val test)
        ;;
    *)
        [[ $# == 1 && " $cyclegan_sets " == *" $name "* && $name != *" "* ]] || { usage >&2; exit 2; }
        urls=("http://efrosgans.eecs.berkeley.edu/cyclegan/datasets/$name.zip"
              "https://people.eecs.berkeley.edu/~taesung_park/CycleGAN/datasets/$name.zip")
        [[ $name != grumpifycat ]] || folders=(trainA trainB) # has no test images
        ;;
esac
if [[ -n "${QSATTN_DATASET_URL:-}" ]]; then read -ra urls <<<"$QSATTN_DATASET_URL"; fi
[[ ! -e "$name" ]] || fail "$PWD/$name exists already; move it away to download it again"

python=../.venv/bin/python
[[ -x "$python" ]] || python=python3
"$python" -c "import PIL, numpy, tqdm" 2>/dev/null || fail "install the requirements first: bash scripts/setup.sh"

archive=.$name.zip
for url in "${urls[@]}"; do
    [[ -f "$archive" ]] || fetch "$url" "$archive" || echo "the download of $url failed" >&2
done
[[ -f "$archive" ]] || fail "no address of the archive answers" \
    "Run the same command again to resume the download, or set QSATTN_DATASET_URL to a mirror."

echo "checking and unpacking"
again="Call this again to continue, or remove $PWD/$archive to download it anew."
if [[ $name == cat2dog ]]; then # the partial folder is kept, so that nothing is resized twice
    "$python" prepare.py afhq "$archive" --out .cat2dog.partial || fail "$again"
    mv -- .cat2dog.partial "$name"
else
    "$python" prepare.py unpack "$archive" --out "$name" --folders "${folders[@]}" || fail "$again"
fi
rm -f -- "$archive"
echo "ready: $PWD/$name"
if [[ $name == day2night ]]; then
    echo "train day to night: --dataroot ./datasets/day2night --dataset_mode aligned --direction BtoA"
fi
