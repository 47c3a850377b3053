"""Check a data set before training on it: python scripts/check_dataset.py DATAROOT

Decodes every image and reports counts, sizes and modes for each folder, and problems: unusable files, images
that are too small or of almost one colour, and duplicates, above all between train and test.

Exit status: 0 no problems, 1 problems, 2 wrong call.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.preflight import folders_under, inspect
from data.transforms import MIN_SIDE
from util.errors import entry_point
from util.image_files import parse_grey_range


@entry_point
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check the images of a data set and report problems.")
    add = parser.add_argument
    add("dataroot", help="the data set: a folder with trainA, trainB, testA, testB (or train, test of pairs)")
    add("--min_side", type=int, default=MIN_SIDE, metavar="PIXELS", help="least shorter side (%(default)s)")
    add("--grey_range", default="auto", help="as of train.py: LOW,HIGH or auto (%(default)s)")
    add("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(argv)

    report = inspect(folders_under(options.dataroot), options.min_side, parse_grey_range(options.grey_range))
    problems = report.problems()
    if options.json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        print(report.table())
        print(f"\n{len(problems)} problems:" if problems else "\nNo problems found.", *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
