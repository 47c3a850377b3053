"""Make the Cityscapes set of the paper's baselines from the official archives: photos in A, label maps in B.

    python datasets/prepare_cityscapes.py --leftImg8bit leftImg8bit_trainvaltest.zip \
        --gtFine gtFine_trainvaltest.zip --out datasets/cityscapes [--size 256]

Each archive may also be given as the folder it was unpacked into. Read are
`leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png` and `gtFine/{train,val}/CITY/NAME_gtFine_color.png`;
written are `trainA valA` (photos, resized bicubically) and `trainB valB` (the colours of the labels, resized to
the nearest pixel so that no colour is invented), paired by file name. A and B are as in CycleGAN: labels to
photo, the task of the papers, is `--direction BtoA`. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import re
import sys
from functools import partial
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file, a script sees only its own folder

from datasets.conversion import Conversion, ImageSource, convert_all
from util.errors import UserError, entry_point

PHOTO = re.compile(r"(?:^|/)(train|val)/[^/]+/([^/]+)_leftImg8bit\.png$")
LABEL = re.compile(r"(?:^|/)(train|val)/[^/]+/([^/]+)_gtFine_color\.png$")


def _halves(source: ImageSource, pattern: re.Pattern[str], layout: str) -> dict[tuple[str, str], str]:
    """{(phase, name): member} of what `pattern` matches; both phases must be there."""
    found = {match.groups(): name for name in source.names if (match := pattern.search(name))}
    for phase in ("train", "val"):
        if not any(found_phase == phase for found_phase, _ in found):
            missing = layout.format(phase)
            raise UserError(f"{source.path} holds no {missing}: give the official archive or its folder")
    return found


def _check_pairs(photos: dict[tuple[str, str], str], labels: dict[tuple[str, str], str]) -> None:
    for have, lack, what in ((photos, labels, "label map"), (labels, photos, "photo")):
        alone = sorted(have.keys() - lack.keys())
        if alone:
            examples = ", ".join("/".join(key) for key in alone[:3])
            found = f"{len(alone)} images have no {what} ({examples})"
            raise UserError(f"{found}: one of the archives is not complete, get it again")


def prepare_cityscapes(photos: str | Path, labels: str | Path, out: str | Path, size: int = 256) -> int:
    """Write `out`/{train,val}{A,B}, `size` x `size` pixels; returns how many files that took. Raises `UserError`."""
    sources = ImageSource(photos), ImageSource(labels)
    found = (
        _halves(sources[0], PHOTO, "leftImg8bit/{}/CITY/NAME_leftImg8bit.png"),
        _halves(sources[1], LABEL, "gtFine/{}/CITY/NAME_gtFine_color.png"),
    )
    _check_pairs(*found)
    resampling = (Image.Resampling.BICUBIC, Image.Resampling.NEAREST)
    conversions = [
        Conversion(
            destination=Path(out) / f"{phase}{side}" / f"{name}.png",
            make=partial(source.read_resized, member, (size, size), resample),
            size=(size, size),
        )
        for source, members, side, resample in zip(sources, found, "AB", resampling, strict=True)
        for (phase, name), member in sorted(members.items())
    ]
    return convert_all(conversions, "cityscapes")


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--leftImg8bit", required=True, help="the photos: leftImg8bit_trainvaltest.zip or folder"
    )
    parser.add_argument("--gtFine", required=True, help="the label maps: gtFine_trainvaltest.zip or folder")
    parser.add_argument("--out", default="datasets/cityscapes", help="folder to write into")
    parser.add_argument("--size", type=int, default=256, help="width and height in pixels")
    args = parser.parse_args(argv)
    if args.size < 4:
        raise UserError(f"--size is {args.size}: it must be at least 4")
    written = prepare_cityscapes(args.leftImg8bit, args.gtFine, args.out, args.size)
    print(f"{args.out}: {written} images written. Labels to photos: --dataroot {args.out} --direction BtoA")


if __name__ == "__main__":
    sys.exit(main())
