"""Check a data set before training on it: python scripts/check_dataset.py DATAROOT

Decodes every image and reports counts, sizes and modes for each folder, and problems: unusable files, images
that are too small or of almost one colour, and duplicates, above all between train and test.

Exit status: 0 no problems, 1 problems, 2 wrong call.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import preflight
from data.transforms import MIN_SIDE
from util.errors import entry_point
from util.image_files import describe_grey_range, grey_range, parse_grey_range


@entry_point
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check the images of a data set and report problems.")
    add = parser.add_argument
    add("dataroot", help="the data set: a folder with trainA, trainB, testA, testB (or train, test of pairs)")
    add("--min_side", type=int, default=MIN_SIDE, metavar="PIXELS", help="least shorter side (%(default)s)")
    add("--grey_range", default="auto", help="as of train.py: LOW,HIGH or auto (%(default)s)")
    opt = parser.parse_args(argv)

    folders, grey = preflight.folders_under(opt.dataroot), parse_grey_range(opt.grey_range)
    greys = {name: grey or grey_range(paths) for name, paths in folders.items()}
    findings = preflight.inspect(folders, greys)
    for name in folders:
        print(preflight.summary(name, findings))
        if greys[name]:
            print(f"{name}: {describe_grey_range(greys[name])}")
    problems = preflight.problems(findings, opt.min_side) + preflight.copies(findings)
    print(f"\n{len(problems)} problems:" if problems else "\nNo problems found.", *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
