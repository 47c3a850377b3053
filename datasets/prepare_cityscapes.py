"""Make the Cityscapes set of the paper's baselines from the official archives: photos in A, label maps in B.

    python datasets/prepare_cityscapes.py --leftImg8bit leftImg8bit_trainvaltest.zip \
        --gtFine gtFine_trainvaltest.zip --out datasets/cityscapes [--size 256]

Each archive may also be given as the folder it was unpacked into. The script reads
`leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png` and `gtFine/{train,val}/CITY/NAME_gtFine_color.png`. It
writes `trainA valA` (photos, bicubic) and `trainB valB` (label colours, nearest neighbour, so that no new
colour appears), paired by file name. A and B are as in CycleGAN: labels to photos, the task of the papers, is
`--direction BtoA`. The same command resumes an interrupted run.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file, a script sees only its own folder

from datasets.conversion import ImageSource, add_output_options, resize_all
from util.errors import UserError, entry_point

PHOTO = re.compile(r"(?:^|/)(train|val)/[^/]+/([^/]+)_leftImg8bit\.png$")
LABEL = re.compile(r"(?:^|/)(train|val)/[^/]+/([^/]+)_gtFine_color\.png$")


def _halves(source: ImageSource, pattern: re.Pattern[str], layout: str) -> dict[tuple[str, str], str]:
    """{(phase, name): member} of the members that match `pattern`; both phases must occur."""
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
            raise UserError(f"{found}: one of the archives is incomplete, download it again")


def prepare_cityscapes(photos: str | Path, labels: str | Path, out: str | Path, size: int = 256) -> int:
    """Write `out`/{train,val}{A,B}, `size` x `size` pixels; returns how many files were made."""
    sources = ImageSource(photos), ImageSource(labels)
    found = (
        _halves(sources[0], PHOTO, "leftImg8bit/{}/CITY/NAME_leftImg8bit.png"),
        _halves(sources[1], LABEL, "gtFine/{}/CITY/NAME_gtFine_color.png"),
    )
    _check_pairs(*found)
    resampling = (Image.Resampling.BICUBIC, Image.Resampling.NEAREST)
    images = [
        (source, member, f"{phase}{side}/{name}.png", resample)
        for source, members, side, resample in zip(sources, found, "AB", resampling, strict=True)
        for (phase, name), member in sorted(members.items())
    ]
    return resize_all(images, out, size, "cityscapes")


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    what = "leftImg8bit_trainvaltest.zip or its folder"
    parser.add_argument("--leftImg8bit", required=True, help=f"the photos: {what}")
    parser.add_argument(
        "--gtFine", required=True, help="the label maps: gtFine_trainvaltest.zip or its folder"
    )
    add_output_options(parser, "datasets/cityscapes")
    args = parser.parse_args(argv)
    written = prepare_cityscapes(args.leftImg8bit, args.gtFine, args.out, args.size)
    print(f"{args.out}: {written} images written. Labels to photos: --dataroot {args.out} --direction BtoA")


if __name__ == "__main__":
    sys.exit(main())
