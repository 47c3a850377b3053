"""Make a data set of two folders of images: python scripts/split_dataset.py HORSES ZEBRAS OUT --test 10%

Copies the images of the first folder into trainA and testA, those of the second into trainB and testB. Which
ones are for testing is drawn at random; near-duplicates (frames of one scene, copies of another size or
quality) stay on one side, so that nothing is tested on what it was trained on.
"""

import argparse
import random
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image
from scipy.sparse.csgraph import connected_components

from util.errors import UserError, entry_point
from util.image_files import list_images, open_rgb

SIDE = 11  # of the small images that are compared
NEAR = 0.08  # share of their signs in which near-duplicates may differ; of others about half do


def signs(path: Path) -> np.ndarray:
    """Whether an image becomes brighter from place to place, rightwards and downwards: (220,) of -1 and 1."""
    small = open_rgb(path).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, np.int16)
    rising = np.concatenate([np.diff(grey, axis=1).ravel(), np.diff(grey, axis=0).ravel()]) > 0
    return np.where(rising, 1, -1).astype(np.float32)


def near_duplicates(paths: Sequence[Path]) -> list[list[Path]]:
    """The images in groups of those that look alike."""
    with ThreadPoolExecutor() as pool:
        all_signs = np.stack(list(pool.map(signs, paths)))  # (N, 220)
    correlation = all_signs @ all_signs.T / all_signs.shape[1]  # (N, N): 1 less twice the share that differs
    count, labels = connected_components(correlation >= 1 - 2 * NEAR)
    groups: list[list[Path]] = [[] for _ in range(count)]
    for path, label in zip(paths, labels, strict=True):
        groups[label].append(path)
    return groups


def amount(text: str) -> float | int:
    """A share such as 10%, or a number of images."""
    return float(text[:-1]) / 100 if text.endswith("%") else int(text)


def split(folder: Path, test: float | int, seed: int) -> dict[Path, str]:
    """For each image of a folder, "train" or "test", of which a share or a number is wanted."""
    paths = list_images(folder)
    wanted = round(len(paths) * test) if isinstance(test, float) else test
    if not 0 < wanted < len(paths):
        raise UserError(f"{folder}: --test would keep {wanted} of {len(paths)} images")
    groups = near_duplicates(paths)
    random.Random(seed).shuffle(groups)
    parts: dict[Path, str] = dict.fromkeys(paths, "train")
    kept = 0
    for group in sorted(groups, key=len):  # a large group would make the test set too large
        if kept + len(group) <= wanted:
            kept += len(group)
            parts |= dict.fromkeys(group, "test")
    near = len(paths) - len(groups)
    print(f"{folder}: {len(paths) - kept} to train, {kept} to test, {near} of them near-duplicates of others")
    if not kept:
        raise UserError(f"{folder}: all images look alike, so that none can be kept for testing")
    return parts


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0] + ".")
    add = parser.add_argument
    add("a", type=Path, help="folder of images of domain A")
    add("b", type=Path, help="folder of images of domain B")
    add("out", type=Path, help="folder to make")
    add("--test", type=amount, default="10%", help="of each folder: a share or a number (%(default)s)")
    add("--seed", type=int, default=0, help="another seed draws other test images (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.out.exists():
        raise UserError(f"{args.out} exists already: give another folder")
    sides = {"A": args.a, "B": args.b}
    parts = {side: split(folder, args.test, args.seed) for side, folder in sides.items()}
    for side, folder in sides.items():
        for path, part in parts[side].items():
            target = args.out / f"{part}{side}" / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    print(f"ready: --dataroot {args.out}")


if __name__ == "__main__":
    sys.exit(main())
