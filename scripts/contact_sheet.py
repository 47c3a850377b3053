"""Write one picture of the first images of several folders, with equal names below each other.

    python scripts/contact_sheet.py --results results/NAME/test_latest --output sheet.jpg
    python scripts/contact_sheet.py --folders DIR,DIR,DIR --output sheet.jpg

The first shows inputs above their translations.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image, ImageOps

from util.arguments import ArgumentParser, integer
from util.errors import UserError, entry_point
from util.image_files import list_images, open_rgb
from util.images import image_grid


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="scripts/contact_sheet.py", description=__doc__.splitlines()[0])
    parser.add("--results", None, "a folder of test.py's results", type=Path)
    parser.add("--folders", [], "a list of folders, in place of --results", type=lambda text: text.split(","))
    parser.add("--output", Path("contact_sheet.jpg"), "file to write, .jpg or .png", type=Path)
    parser.add("--count", 12, "images of each folder, the first by name", type=integer(1))
    parser.add("--columns", 6, "images side by side", type=integer(1))
    parser.add("--side", 160, "side of an image in pixels", type=integer(16, 1024))
    opt = Namespace(**{**parser.defaults, **parser.parse_given(argv)})
    if bool(opt.results) == bool(opt.folders):
        parser.error("give either --results FOLDER or --folders DIR,DIR")
    if opt.results:
        images = opt.results / "images"
        opt.folders = [images / "real_A", *(sorted(images.glob("to_*")) or [images / "fake_B"])]
    sheet = contact_sheet([*map(Path, opt.folders)], opt.count, opt.columns, opt.side)
    opt.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        sheet.save(opt.output, quality=88)
    except ValueError as error:  # an unknown ending
        raise UserError(f"{opt.output} cannot be written ({error}): give another --output") from None
    print(f"{opt.output}: {sheet.width} x {sheet.height}, {opt.output.stat().st_size / 1024:.0f} KiB")


def contact_sheet(folders: Sequence[Path], count: int = 12, columns: int = 6, side: int = 160) -> Image.Image:
    """Bands of `columns` images, cut to squares, of each folder; `count` names of the first one's."""
    found = [
        {path.relative_to(folder).with_suffix(""): path for path in list_images(folder)} for folder in folders
    ]
    names = list(found[0])[:count]
    cells = []
    for start in range(0, len(names), columns):
        band = names[start : start + columns]
        for folder, paths in zip(folders, found, strict=True):
            if missing := [name for name in band if name not in paths]:
                raise UserError(f"{folder} has no image {missing[0]}, which is in {folders[0]}")
            fitted = (ImageOps.fit(open_rgb(paths[name]), (side, side), Image.LANCZOS) for name in band)
            blank = [np.full((side, side, 3), 255, np.uint8)] * (columns - len(band))
            cells += [*map(np.asarray, fitted), *blank]
    return Image.fromarray(image_grid(cells, columns, side))


if __name__ == "__main__":
    sys.exit(main())
