"""Check a data set before training on it: python scripts/check_dataset.py DATAROOT

Decodes every image and reports problems: unusable files, images that are too small or of almost one colour,
and duplicates, above all between train and test.

Exit status: 0 no problems, 1 problems, 2 wrong call.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.folders import Finding, inspect, names, problems
from data.transforms import MIN_SIDE
from util.errors import entry_point
from util.image_files import describe_grey_range, grey_range, list_images


def folders_under(dataroot: Path) -> dict[str, list[Path]]:
    """The image folders of a data set: trainA ... valB, train ... or the folders in them, else `dataroot`."""
    there = []
    for phase in ("train", "val", "test"):
        inside = sorted(path for path in (dataroot / phase).glob("*") if path.is_dir())
        there += sorted(path for path in dataroot.glob(f"{phase}?*") if path.is_dir())
        there += inside or [path for path in [dataroot / phase] if path.is_dir()]
    return {str(path.relative_to(dataroot)): list_images(path) for path in there or [dataroot]}


def copies(findings: Sequence[Finding]) -> list[str]:
    """The pictures that occur more than once, one line each."""
    same: dict[bytes, dict[str, str]] = defaultdict(dict)  # content -> path -> folder
    for finding in findings:
        if not finding.error:
            same[finding.content][finding.path] = finding.folder
    return [
        f"{' and '.join(dict.fromkeys(of.values()))}: the same picture {len(of)} times: {names([*of])}"
        for of in same.values()
        if len(of) > 1
    ]


@entry_point
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check the images of a data set and report problems.")
    add = parser.add_argument
    add("dataroot", type=Path, help="a folder with trainA, trainB, testA, testB (or train, test of pairs)")
    add("--min_side", type=int, default=MIN_SIDE, metavar="PIXELS", help="least shorter side (%(default)s)")
    opt = parser.parse_args(argv)

    folders = folders_under(opt.dataroot)
    greys = {name: grey_range(paths) for name, paths in folders.items()}
    images = [(name, str(path), greys[name]) for name, paths in folders.items() for path in paths]
    findings = inspect(images, opt.min_side)
    for name, grey in greys.items():
        print(f"{name}: {len(folders[name])} images")
        if grey:
            print(f"{name}: {describe_grey_range(grey)}")
    found = problems(findings) + copies(findings)
    print(f"\n{len(found)} problems:" if found else "\nNo problems found.", *found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
