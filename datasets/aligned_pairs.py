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

from datasets.conversion import Conversion, ImageSource, convert_all
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


def _by_result(source: ImageSource) -> dict[PurePosixPath, str]:
    """The images of a source by the name of their pair."""
    names = {_png(name): name for name in source.images}
    for name in source.images:
        if names[_png(name)] != name:
            twice = f"{name} and {names[_png(name)]}"
            raise UserError(f"{source.path}: {twice} would be one pair: rename one of them")
    return names


def split_pairs(pairs: str | Path, out: str | Path) -> int:
    """Write `out`/{phase}{A,B} from `pairs`/{phase}; returns how many files were made. Raises `UserError`."""
    sources = {phase: ImageSource(Path(pairs) / phase) for phase in PHASES if (Path(pairs) / phase).is_dir()}
    conversions = [
        Conversion(Path(out) / f"{phase}{side}" / _png(name), partial(_half, source, name, side))
        for phase, source in sources.items()
        for name in source.images
        for side in "AB"
    ]
    if not conversions:
        raise UserError(f"{pairs} holds no images in any of the folders {' '.join(PHASES)}")
    return convert_all(conversions, "split")


def join_pairs(folders: str | Path, out: str | Path) -> int:
    """Write `out`/{phase} from `folders`/{phase}A and B; returns how many files were made."""
    conversions = []
    for phase in PHASES:
        roots = [Path(folders) / f"{phase}{side}" for side in "AB"]
        if not any(root.is_dir() for root in roots):
            continue
        a, b = (ImageSource(root) for root in roots)
        names, partners = _by_result(a), _by_result(b)
        alone = sorted(names.keys() ^ partners.keys())
        if alone:
            example = alone[0].with_suffix("")
            found = f"{len(alone)} images of {phase}A and {phase}B have no partner of the same name"
            raise UserError(f"{found} (such as {example}): add the partners, or remove the images")
        conversions += [
            Conversion(Path(out) / phase / png, partial(_joined, a, name, b, partners[png]))
            for png, name in names.items()
        ]
    if not conversions:
        raise UserError(f"{folders} holds no images in folders such as trainA and trainB")
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
    if args.command == "split":
        written = split_pairs(args.pairs, args.out)
    else:
        written = join_pairs(args.folders, args.out)
    print(f"{args.out}: {written} images written")


if __name__ == "__main__":
    sys.exit(main())
