"""Make data sets from the official archives of AFHQ and Cityscapes, or from the folders they unpack to.

    python datasets/prepare.py afhq afhq.zip --out datasets/cat2dog [--size 256]
    python datasets/prepare.py cityscapes leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip \
        --out datasets/cityscapes [--size 256]

afhq reads `train/{cat,dog}` and `val/{cat,dog}` (`test/` in its second version) into `trainA trainB testA
testB`. cityscapes makes the set of the paper's baselines: photos in `trainA valA` (bicubic), label colours in
`trainB valB` (nearest neighbour, so that no new colour appears), paired by file name; labels to photos, the
papers' task, is `--direction BtoA`. The same command resumes an interrupted run.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file, a script sees only its own folder

from util.errors import UserError, entry_point
from util.image_files import (
    describe_grey_range,
    grey_range,
    has_image_extension,
    list_images,
    name_others,
    read_image,
    to_rgb,
)

AFHQ = re.compile(r"(?:^|/)(train|val|test)/(cat|dog)/([^/]+)\.\w+$")
PHOTO = re.compile(r"(?:^|/)(train|val)/[^/]+/([^/]+)_leftImg8bit\.png$")
LABEL = re.compile(r"(?:^|/)(train|val)/[^/]+/([^/]+)_gtFine_color\.png$")


class ImageSource:
    """The images below a folder or inside a zip archive.

    `images` are their paths in it, sorted, with forward slashes. Hidden files and what macOS adds to archives
    are left out; other files that are no images are counted on stderr. Raises `UserError` if `path` is
    neither or has no images.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.grey, self._archive = Path(path), None, None
        if self.path.is_file():
            if not zipfile.is_zipfile(self.path):
                raise UserError(f"{self.path} is neither a folder nor a whole zip archive: download it again")
            self._archive = zipfile.ZipFile(self.path)
            names = sorted(name for name in self._archive.namelist() if not name.endswith("/"))
            names = [name for name in names if "/." not in f"/{name}" and not name.startswith("__MACOSX/")]
            self.images = [name for name in names if has_image_extension(name)]
            name_others(self.path, set(names) - set(self.images))
        else:
            files = list_images(self.path)
            self.images = [file.relative_to(self.path).as_posix() for file in files]
            self.grey = grey_range(files)
            if self.grey:
                print(f"note: {self.path}: {describe_grey_range(self.grey)}", file=sys.stderr)

    def read(self, name: str, size: int | None = None, resample: int | None = None) -> Image.Image:
        """Image `name` as 8-bit RGB, resized to `size` squared. Raises `UserError` if it cannot be read."""
        try:
            content = None if self._archive is None else self._archive.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise UserError(f"{self.path}: {name} cannot be unpacked ({error}): download it again") from None
        image = to_rgb(read_image(self.path / name, content), self.grey)
        return image if size is None else image.resize((size, size), resample)


Conversion = tuple[Path, Callable[[], Image.Image]]  # a PNG file to write, and what makes its image


def convert_all(conversions: Sequence[Conversion], description: str) -> int:
    """Write the files that do not exist yet, several at a time; return their number.

    Each is written under another name and renamed, so that every file is whole and a rerun makes only those
    that are missing. Stops at the first error. Raises `UserError` if two images would become one file.
    """
    twice = [path for path, count in Counter(path for path, _ in conversions).items() if count > 1]
    if twice:
        raise UserError(f"two images would become {twice[0]}: rename one of them")
    todo = [(path, make) for path, make in conversions if not path.is_file()]

    def convert(conversion: Conversion) -> None:
        path, make = conversion
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.partial")
        make().save(unfinished, format="PNG")
        os.replace(unfinished, path)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in tqdm(pool.map(convert, todo), description, len(todo), unit="image"):
            pass
    return len(todo)


def prepare_afhq(afhq: str | Path, out: str | Path, size: int) -> int:
    """Write `out`/{train,test}{A,B}, `size` x `size` pixels; returns how many files were made."""
    source = ImageSource(afhq)
    conversions = []
    for name in source.images:
        if match := AFHQ.search(name):
            phase, animal, stem = match.groups()
            folder = ("train" if phase == "train" else "test") + ("A" if animal == "cat" else "B")
            make = partial(source.read, name, size, Image.Resampling.BICUBIC)
            conversions.append((Path(out, folder, f"{stem}.png"), make))
    for folder in ("trainA", "trainB", "testA", "testB"):
        if not any(path.parent.name == folder for path, _ in conversions):
            raise UserError(f"{source.path} holds no images for {folder}: give AFHQ's archive or its folder")
    return convert_all(conversions, "cat2dog")


def prepare_cityscapes(photos: str | Path, labels: str | Path, out: str | Path, size: int) -> int:
    """Write `out`/{train,val}{A,B}, `size` x `size` pixels; returns how many files were made."""
    conversions, keys = [], []
    for path, pattern, side, resample in (
        (photos, PHOTO, "A", Image.Resampling.BICUBIC),
        (labels, LABEL, "B", Image.Resampling.NEAREST),
    ):
        source = ImageSource(path)
        found = {match.groups(): name for name in source.images if (match := pattern.search(name))}
        keys.append(found.keys())
        conversions += [
            (Path(out, f"{phase}{side}", f"{stem}.png"), partial(source.read, name, size, resample))
            for (phase, stem), name in found.items()
        ]
    alone = sorted(keys[0] ^ keys[1])
    if alone or not keys[0]:
        example = f" (such as {'/'.join(alone[0])})" if alone else ""
        raise UserError(
            f"{len(keys[0])} photos and {len(keys[1])} label maps do not make pairs{example}: give both "
            "official archives, whole, or their folders"
        )
    return convert_all(conversions, "cityscapes")


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    afhq = commands.add_parser("afhq", help="cats in A, dogs in B")
    afhq.add_argument("sources", nargs=1, metavar="afhq", help="afhq.zip or its folder")
    cityscapes = commands.add_parser("cityscapes", help="photos in A, label maps in B")
    cityscapes.add_argument(
        "sources",
        nargs=2,
        metavar=("leftImg8bit", "gtFine"),
        help="photos and label maps: archives or folders",
    )
    for command in (afhq, cityscapes):
        command.add_argument("--out", required=True, help="folder to write into")
        command.add_argument("--size", type=int, default=256, help="width and height in pixels (%(default)s)")
    args = parser.parse_args(argv)
    prepare = prepare_afhq if args.command == "afhq" else prepare_cityscapes
    print(f"{args.out}: {prepare(*args.sources, args.out, args.size)} images written")


if __name__ == "__main__":
    sys.exit(main())
