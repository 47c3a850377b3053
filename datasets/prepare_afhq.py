"""Make cat2dog from AFHQ: cats in A, dogs in B.

    python datasets/prepare_afhq.py --afhq afhq.zip --out datasets/cat2dog [--size 256]

The archive may also be given as the folder it was unpacked into. Read are `train/{cat,dog}` and `val/{cat,dog}`
(`test/` in AFHQ's second version); written are `trainA trainB testA testB`, resized bicubically. An interrupted
run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file, a script sees only its own folder

from datasets.conversion import Conversion, ImageSource, convert_all
from util.errors import UserError, entry_point

PHASES = {"train": "train", "val": "test", "test": "test"}
DOMAINS = {"cat": "A", "dog": "B"}


def prepare_afhq(afhq: str | Path, out: str | Path, size: int = 256) -> int:
    """Write `out`/{train,test}{A,B}, `size` x `size` pixels; returns how many files that took.

    Raises `UserError` where a folder is missing or empty and for images that cannot be read.
    """
    source = ImageSource(afhq)
    folders: dict[str, list[str]] = {f"{phase}{side}": [] for phase in ("train", "test") for side in "AB"}
    for name in source.images():
        phase, domain = ("", "", *PurePosixPath(name).parts[:-1])[-2:]
        if phase in PHASES and domain in DOMAINS:
            folders[PHASES[phase] + DOMAINS[domain]].append(name)
    for folder, names in folders.items():
        if not names:
            wanted = "train/" if folder.startswith("train") else "val/ or test/"
            domain = "cat" if folder.endswith("A") else "dog"
            missing = f"{source.path} holds no images for {folder} (a folder {domain} below {wanted})"
            raise UserError(f"{missing}: give AFHQ's archive or its folder")
    conversions = [
        Conversion(
            destination=Path(out) / folder / f"{PurePosixPath(name).stem}.png",
            make=partial(source.read_resized, name, (size, size)),
            size=(size, size),
        )
        for folder, names in folders.items()
        for name in names
    ]
    return convert_all(conversions, "cat2dog")


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--afhq", required=True, help="afhq.zip or its folder")
    parser.add_argument("--out", default="datasets/cat2dog", help="folder to write into")
    parser.add_argument("--size", type=int, default=256, help="width and height in pixels")
    args = parser.parse_args(argv)
    if args.size < 4:
        raise UserError(f"--size is {args.size}: it must be at least 4")
    print(f"{args.out}: {prepare_afhq(args.afhq, args.out, args.size)} images written")


if __name__ == "__main__":
    sys.exit(main())
