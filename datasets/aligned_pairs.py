"""Turn side-by-side pairs (pix2pix's layout, `--dataset_mode aligned`) into A and B folders, and back.

    python datasets/aligned_pairs.py split --pairs datasets/facades_pairs --out datasets/facades
    python datasets/aligned_pairs.py join --folders datasets/facades --out datasets/facades_pairs

`split` cuts each image of `train val test` in two: the left half is A, the right half B, under one file name
in `trainA trainB` and so on. `join` puts A and B of the same name (the suffix may differ) and size side by
side. Missing phases are skipped. The same command resumes an interrupted run.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file, a script sees only its own folder

from datasets.prepare import Conversion, ImageSource, convert_all
from util.errors import UserError, entry_point

PHASES = ("train", "val", "test")


def _half(source: ImageSource, name: str, side: str) -> Image.Image:
    pair = source.read(name)
    if pair.width % 2:
        raise UserError(f"{source.path / name} is {pair.width} pixels wide: the width of a pair is even")
    left = 0 if side == "A" else pair.width // 2
    return pair.crop((left, 0, left + pair.width // 2, pair.height))


def _joined(source_a: ImageSource, name_a: str, source_b: ImageSource, name_b: str) -> Image.Image:
    a, b = source_a.read(name_a), source_b.read(name_b)
    if a.size != b.size:
        sizes = f"{a.width} x {a.height} in A and {b.width} x {b.height} in B"
        raise UserError(f"{source_a.path / name_a} is {sizes}: the images of a pair must have one size")
    pair = Image.new("RGB", (2 * a.width, a.height))
    pair.paste(a, (0, 0))
    pair.paste(b, (a.width, 0))
    return pair


def _png(name: str) -> PurePosixPath:
    return PurePosixPath(name).with_suffix(".png")


def split_pairs(pairs: str | Path, out: str | Path) -> int:
    """Write `out`/{phase}{A,B} from `pairs`/{phase}; returns how many files were made. Raises `UserError`."""
    conversions: list[Conversion] = []
    for phase in PHASES:
        if Path(pairs, phase).is_dir():
            source = ImageSource(Path(pairs, phase))
            conversions += [
                (Path(out, f"{phase}{side}", _png(name)), partial(_half, source, name, side))
                for name in source.images
                for side in "AB"
            ]
    if not conversions:
        raise UserError(f"{pairs} holds none of the folders {' '.join(PHASES)}")
    return convert_all(conversions, "split")


def join_pairs(folders: str | Path, out: str | Path) -> int:
    """Write `out`/{phase} from `folders`/{phase}A and B; returns how many files were made."""
    conversions: list[Conversion] = []
    for phase in PHASES:
        roots = [Path(folders, f"{phase}{side}") for side in "AB"]
        if not any(root.is_dir() for root in roots):
            continue
        a, b = (ImageSource(root) for root in roots)
        partners = {_png(name): name for name in b.images}
        alone = sorted({_png(name) for name in a.images} ^ partners.keys())
        if alone:
            found = f"{len(alone)} images of {phase}A and {phase}B have no partner of the same name"
            raise UserError(f"{found} (such as {alone[0].stem}): add the partners, or remove the images")
        if len(partners) < len(b.images):
            raise UserError(f"{b.path} has images whose names differ in the suffix alone: rename one of them")
        conversions += [
            (Path(out, phase, _png(name)), partial(_joined, a, name, b, partners[_png(name)]))
            for name in a.images
        ]
    if not conversions:
        raise UserError(f"{folders} holds no folders such as trainA and trainB")
    return convert_all(conversions, "join")


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    split = commands.add_parser("split", help="side-by-side images into A and B folders")
    split.add_argument("--pairs", required=True, help="folder with train, val or test of side-by-side images")
    join = commands.add_parser("join", help="A and B folders into side-by-side images")
    join.add_argument("--folders", required=True, help="folder with trainA and trainB (valA, testA, ...)")
    for command in (split, join):
        command.add_argument("--out", required=True, help="folder to write into")
    args = parser.parse_args(argv)
    written = (
        split_pairs(args.pairs, args.out) if args.command == "split" else join_pairs(args.folders, args.out)
    )
    print(f"{args.out}: {written} images written")


if __name__ == "__main__":
    sys.exit(main())
