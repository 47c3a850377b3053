"""Make cat2dog from AFHQ: cats in A, dogs in B.

    python datasets/prepare_afhq.py --afhq afhq.zip --out datasets/cat2dog [--size 256]

The archive may also be given as the folder it was unpacked into. The script reads `train/{cat,dog}` and
`val/{cat,dog}` (`test/` in AFHQ's second version) and writes `trainA trainB testA testB`, resized
bicubically. The same command resumes an interrupted run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path, PurePosixPath

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file, a script sees only its own folder

from datasets.conversion import ImageSource, add_output_options, resize_all
from util.errors import UserError, entry_point

PHASES = {"train": "train", "val": "test", "test": "test"}
DOMAINS = {"cat": "A", "dog": "B"}


def prepare_afhq(afhq: str | Path, out: str | Path, size: int = 256) -> int:
    """Write `out`/{train,test}{A,B}, `size` x `size` pixels; returns how many files were made.

    Raises `UserError` for a folder that is missing or empty and for images that cannot be read.
    """
    source = ImageSource(afhq)
    folders: dict[str, list[str]] = {f"{phase}{side}": [] for phase in ("train", "test") for side in "AB"}
    for name in source.images:
        phase, domain = ("", "", *PurePosixPath(name).parts[:-1])[-2:]
        if phase in PHASES and domain in DOMAINS:
            folders[PHASES[phase] + DOMAINS[domain]].append(name)
    for folder, names in folders.items():
        if not names:
            wanted = "train/" if folder.startswith("train") else "val/ or test/"
            domain = "cat" if folder.endswith("A") else "dog"
            missing = f"{source.path} holds no images for {folder} (a folder {domain} below {wanted})"
            raise UserError(f"{missing}: give AFHQ's archive or its folder")
    images = [
        (source, name, f"{folder}/{PurePosixPath(name).stem}.png", Image.Resampling.BICUBIC)
        for folder, names in folders.items()
        for name in names
    ]
    return resize_all(images, out, size, "cat2dog")


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--afhq", required=True, help="afhq.zip or its folder")
    add_output_options(parser, "datasets/cat2dog")
    args = parser.parse_args(argv)
    print(f"{args.out}: {prepare_afhq(args.afhq, args.out, args.size)} images written")


if __name__ == "__main__":
    sys.exit(main())
