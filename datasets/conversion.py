"""Batch conversion of images into PNG files that can be interrupted and resumed.

The preparation scripts list `Conversion`s; `convert_all` does them, several at a time, with a progress bar.
Each file is written under another name and renamed, so that every file is whole and a rerun makes only those
that are missing. Images are read from a folder or directly from a zip archive.
"""

from __future__ import annotations

import argparse
import os
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from util.errors import UserError
from util.image_files import (
    describe_grey_range,
    grey_range,
    has_image_extension,
    list_images,
    name_others,
    read_image,
    to_rgb,
)


class ImageSource:
    """The files below a folder or inside a zip archive.

    `names` are their paths in it, sorted, with forward slashes, `images` those of images. Hidden files and
    what macOS adds to archives are left out; other files that are no images are counted on stderr. Raises
    `UserError` if `path` is neither or has no images.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.grey = Path(path), None
        self._archive = None
        if zipfile.is_zipfile(self.path):
            self._archive = zipfile.ZipFile(self.path)
            members = sorted(name for name in self._archive.namelist() if not name.endswith("/"))
            hidden = (".", "__MACOSX/")
            self.names = [name for name in members if not any(f"/{name}".count(f"/{h}") for h in hidden)]
            self.images = [name for name in self.names if has_image_extension(name)]
            name_others(self.path, set(self.names) - set(self.images))
        elif self.path.is_dir():
            files = list_images(self.path)
            self.images = self.names = [file.relative_to(self.path).as_posix() for file in files]
            self.grey = grey_range(files)
            if self.grey:
                print(f"note: {self.path}: {describe_grey_range(self.grey)}", file=sys.stderr)
        elif self.path.exists():
            raise UserError(f"{self.path} is neither a folder nor a whole zip archive: download it again")
        else:
            raise UserError(f"{self.path} does not exist: give a folder or a zip archive")

    def read(self, name: str, size: tuple[int, int] | None = None, resample=None) -> Image.Image:
        """Image `name` as 8-bit RGB, resized to `size` (width, height). `UserError` if it cannot be read."""
        try:
            content = None if self._archive is None else self._archive.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise UserError(f"{self.path}: {name} cannot be unpacked ({error}): download it again") from None
        image = to_rgb(read_image(self.path / name, content), self.grey)
        return image if size in (None, image.size) else image.resize(size, resample)


@dataclass(frozen=True)
class Conversion:
    """One PNG file to write.

    Attributes:
        destination: the file.
        make: returns the image; called on another thread, and only if the file does not exist.
        size: (width, height) in pixels; an existing file of another size is made again. None: any size.
    """

    destination: Path
    make: Callable[[], Image.Image]
    size: tuple[int, int] | None = None

    def is_done(self) -> bool:
        if not self.destination.is_file():
            return False
        return self.size in (None, read_image(self.destination).size)

    def run(self) -> None:
        unfinished = self.destination.with_name(f".{self.destination.name}.partial")
        self.make().save(unfinished, format="PNG")
        os.replace(unfinished, self.destination)


Resizing = tuple[ImageSource, str, str, Image.Resampling]  # source, name in it, destination, filter


def resize_all(images: Sequence[Resizing], out: str | Path, size: int, description: str) -> int:
    """`convert_all` of images that become `size` x `size` pixels; destinations are relative to `out`."""
    if size < 4:
        raise UserError(f"--size is {size}: it must be at least 4")
    conversions = [
        Conversion(Path(out, place), partial(source.read, name, (size, size), resample), (size, size))
        for source, name, place, resample in images
    ]
    return convert_all(conversions, description)


def add_output_options(parser: argparse.ArgumentParser, out: str) -> None:
    """--out and --size, of the scripts that make a set of one image size."""
    parser.add_argument("--out", default=out, help="folder to write into (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=256, help="width and height in pixels (default: %(default)s)"
    )


def convert_all(conversions: Sequence[Conversion], description: str, workers: int | None = None) -> int:
    """Do the conversions not done yet, `workers` at a time (default: one per core, at most 8); return their
    number.

    Stops at the first error and keeps what is finished. Raises `UserError` if two conversions have one
    destination.
    """
    twice = [path for path, count in Counter(c.destination for c in conversions).items() if count > 1]
    if twice:
        raise UserError(f"two images would become {twice[0]}: rename one of them")
    for folder in {conversion.destination.parent for conversion in conversions}:
        folder.mkdir(parents=True, exist_ok=True)
    todo = [conversion for conversion in conversions if not conversion.is_done()]
    done = len(conversions) - len(todo)
    with (
        ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(conversions), initial=done, desc=description, unit="image") as bar,
    ):
        running = [pool.submit(conversion.run) for conversion in todo]
        try:
            for future in as_completed(running):
                future.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return len(todo)
