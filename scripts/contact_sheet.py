"""Write one picture of the first images of several folders, with equal names below each other.

    python scripts/contact_sheet.py --results results/NAME/test_latest --output sheet.jpg
    python scripts/contact_sheet.py --folders DIR,DIR,DIR --output sheet.jpg

The first shows inputs above their translations.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from PIL import Image, ImageOps

from util.arguments import ArgumentParser, integer
from util.errors import UserError, entry_point
from util.image_files import list_images, open_rgb

GAP = 4  # pixels between images, white
QUALITY = 88  # of JPEG


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    images = Path(opt.results or "", "images")
    translations = sorted(images.glob("to_*")) or [images / "fake_B"]
    folders = opt.folders or [images / "real_A", *translations]
    sheet = contact_sheet(folders, opt.count, opt.columns, opt.side)
    opt.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        sheet.save(opt.output, quality=QUALITY)
    except ValueError as error:  # an unknown ending
        raise UserError(f"{opt.output} cannot be written ({error}): give another --output") from None
    print(f"{opt.output}: {sheet.width} x {sheet.height}, {opt.output.stat().st_size / 1024:.0f} KiB")


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(prog="scripts/contact_sheet.py", description=__doc__.splitlines()[0])
    parser.add("--results", None, "a folder of test.py's results", type=Path)
    parser.add("--folders", None, "a list of folders, in place of --results", type=_folders)
    parser.add("--output", Path("contact_sheet.jpg"), "file to write, .jpg or .png", type=Path)
    parser.add("--count", 12, "images of each folder, the first by name", type=integer(1))
    parser.add("--columns", 6, "images side by side", type=integer(1))
    parser.add("--side", 160, "side of an image in pixels", type=integer(16, 1024))
    opt = Namespace(**{**parser.defaults, **parser.parse_given(argv)})
    if bool(opt.results) == bool(opt.folders):
        parser.error("give either --results FOLDER or --folders DIR,DIR")
    return opt


def _folders(text: str) -> list[Path]:
    return [Path(folder) for folder in text.split(",") if folder]


def contact_sheet(folders: Sequence[Path], count: int = 12, columns: int = 6, side: int = 160) -> Image.Image:
    """Bands of `columns` images of each folder, in the order of the first folder's names.

    Args:
        count: at most this many images of each folder.
        side: of each image, in pixels; its middle is shown if it is not square.

    Raises:
        UserError: a folder has no images, or lacks one of these names.
    """
    found = [
        {path.relative_to(folder).with_suffix(""): path for path in list_images(folder)} for folder in folders
    ]
    names = list(found[0])[:count]
    for folder, paths in zip(folders, found, strict=True):
        if missing := [name for name in names if name not in paths]:
            raise UserError(f"{folder} has no image {missing[0]}, which is in {folders[0]}")
    pitch = side + GAP
    rows = len(folders) * math.ceil(len(names) / columns)
    sheet = Image.new("RGB", (columns * pitch + GAP, rows * pitch + GAP), "white")
    for number, name in enumerate(names):
        band, column = divmod(number, columns)
        for row, paths in enumerate(found, band * len(folders)):
            image = ImageOps.fit(open_rgb(paths[name]), (side, side), Image.Resampling.LANCZOS)
            sheet.paste(image, (column * pitch + GAP, row * pitch + GAP))
    return sheet


if __name__ == "__main__":
    sys.exit(main())
