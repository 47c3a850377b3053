#!/usr/bin/env bash
# Download one data set into datasets/NAME:
#
#   bash datasets/download_qsattn_dataset.sh horse2zebra
#
# The same command resumes an interrupted download. The folder appears only once the archive has been checked
# and unpacked. Where the first address does not answer, the second is tried. QSATTN_DATASET_URL gives other
# addresses of the archive (a mirror, or file:///...), separated by spaces.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

cyclegan_sets="apple2orange cezanne2photo facades grumpifycat horse2zebra iphone2dslr_flower maps monet2photo
               summer2winter_yosemite ukiyoe2photo vangogh2photo"
cyclegan_hosts=(http://efrosgans.eecs.berkeley.edu/cyclegan/datasets
                https://people.eecs.berkeley.edu/~taesung_park/CycleGAN/datasets)
pix2pix_hosts=(http://efrosgans.eecs.berkeley.edu/pix2pix/datasets
               https://people.eecs.berkeley.edu/~tinghuiz/projects/pix2pix/datasets)
afhq_archive="https://www.dropbox.com/s/t9l9o3vsx2jai3z/afhq.zip?dl=1" # of StarGAN v2

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 2
}

usage() {
    cat <<TEXT
usage: bash datasets/download_qsattn_dataset.sh NAME
NAME is one of
$(printf '  %s\n' $cyclegan_sets)
  cat2dog     (AFHQ's cats and dogs, resized to 256 x 256)
  day2night   (aligned pairs, pix2pix's night2day: night is A, day is B; ASGIT's own day2night is
              unpaired crops of BDD100K)
  cityscapes  (prints how to get it: its licence forbids redistribution)
TEXT
}

cityscapes_instructions() {
    cat <<'TEXT'
Cityscapes may not be redistributed, so it cannot be downloaded from here. To get it:
  1. register at https://www.cityscapes-dataset.com and accept the licence;
  2. download leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB), not to be unpacked;
  3. python datasets/prepare_cityscapes.py --leftImg8bit leftImg8bit_trainvaltest.zip \
         --gtFine gtFine_trainvaltest.zip --out datasets/cityscapes
  4. python train.py --QS_mode=global --dataroot ./datasets/cityscapes --direction BtoA \
         --name cityscapes_qsattn_global
TEXT
}

fetch() { # $1: URL, $2: file; a partial download waits in $2.part
    local url=$1 part=$2.part status=0
    echo "downloading $url"
    if command -v curl >/dev/null; then
        curl --fail --location --retry 3 --connect-timeout 30 --continue-at - --output "$part" "$url" || status=$?
        # 22, 33, 36: the server does not offer the rest alone, so the download starts again.
        if [[ $status == 22 || $status == 33 || $status == 36 ]] && [[ -s "$part" ]]; then
            rm -f -- "$part"
            status=0
            curl --fail --location --retry 3 --connect-timeout 30 --output "$part" "$url" || status=$?
        fi
    elif command -v wget >/dev/null; then
        wget --tries=3 --connect-timeout=30 --continue --output-document="$part" "$url" || status=$?
    else
        fail "neither curl nor wget is installed"
    fi
    if [[ $status == 0 ]]; then
        mv -- "$part" "$2"
    else
        [[ -s "$part" ]] || rm -f -- "$part" # wget creates the file before it has any content
        echo "the download of $url failed (status $status)" >&2
    fi
    return "$status"
}

fetch_any() { # $1: file; then URLs, tried in turn
    local file=$1 url
    for url in "${@:2}"; do
        if fetch "$url" "$file"; then return; fi
    done
    fail "no address of the archive answers" \
        "Run the same command again to resume the download, or set QSATTN_DATASET_URL to a mirror."
}

[[ $# == 1 && -n "$1" ]] || { usage >&2; exit 2; }
name=$1
case $name in
    -h | --help) usage; exit ;;
    cityscapes) cityscapes_instructions; exit 2 ;;
    cat2dog) urls=("$afhq_archive") ;;
    day2night) urls=("${pix2pix_hosts[@]/%//night2day.tar.gz}") ;;
    *)
        if [[ $name == *[[:space:]]* || " ${cyclegan_sets//[[:space:]]/ } " != *" $name "* ]]; then
            echo "error: there is no data set $name" >&2
            usage >&2
            exit 2
        fi
        urls=("${cyclegan_hosts[@]/%//$name.zip}")
        ;;
esac
if [[ -n "${QSATTN_DATASET_URL:-}" ]]; then read -ra urls <<<"$QSATTN_DATASET_URL"; fi
[[ ! -e "$name" ]] || fail "$PWD/$name exists already; move it away to download it again"

python=../.venv/bin/python
[[ -x "$python" ]] || python=python3
if [[ $name == cat2dog ]] && ! "$python" -c 'import PIL, tqdm' 2>/dev/null; then
    fail "resizing AFHQ needs the project's environment: bash scripts/setup.sh"
fi

archive=.$name.zip
[[ -f "$archive" ]] || fetch_any "$archive" "${urls[@]}" # it exists if a run was stopped between download and unpacking

echo "checking and unpacking"
status=0
case $name in
    cat2dog)
        partial=.$name.partial # kept over an interruption, so that nothing is resized twice
        "$python" prepare_afhq.py --afhq "$archive" --out "$partial" && mv -- "$partial" "$name" ||
            fail "resizing AFHQ failed; call this again to continue, or remove $PWD/$archive to download it anew"
        ;;
    grumpifycat) # has no test images
        "$python" unpack_dataset.py "$archive" "$name" --folders trainA trainB || status=$?
        ;;
    day2night) "$python" unpack_dataset.py "$archive" "$name" --folders train val test || status=$? ;;
    *) "$python" unpack_dataset.py "$archive" "$name" || status=$? ;;
esac
if [[ $status == 2 ]]; then # the archive is at fault
    rm -f -- "$archive"
    fail "the archive from ${urls[*]} cannot be used and was removed"
fi
[[ $status == 0 ]] || exit "$status"
rm -f -- "$archive"
echo "ready: $PWD/$name"
if [[ $name == day2night ]]; then
    echo "train day to night: --dataroot ./datasets/day2night --dataset_mode aligned --direction BtoA"
fi
