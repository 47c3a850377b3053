"""Batch conversion of images into PNG files that can be interrupted and resumed.

The preparation scripts list `Conversion`s; `convert_all` does them, several at a time, with a progress bar.
Each file is written under another name and renamed, so that every file is whole and a rerun makes only those
that are missing. Images are read from a folder or directly from a zip archive.
"""

from __future__ import annotations

import argparse
import io
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image
from tqdm import tqdm

from util.errors import UserError
from util.image_files import FORMATS, IMAGE_EXTENSIONS, ImageError, open_rgb, to_rgb


class ImageSource:
    """The files below a folder or inside a zip archive.

    `names` are their paths in it, sorted, with forward slashes. Raises `UserError` if `path` is neither.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._archive = None
        if self.path.is_dir():
            walk = os.walk(self.path, followlinks=True)
            files = (Path(parent, name) for parent, _, names in walk for name in names)
            self.names = sorted(file.relative_to(self.path).as_posix() for file in files)
        elif zipfile.is_zipfile(self.path):
            self._archive = zipfile.ZipFile(self.path)
            self.names = sorted(name for name in self._archive.namelist() if not name.endswith("/"))
        elif self.path.exists():
            raise UserError(f"{self.path} is neither a folder nor a whole zip archive: download it again")
        else:
            raise UserError(f"{self.path} does not exist: give a folder or a zip archive")

    def images(self) -> list[str]:
        """The names with an image's suffix, without hidden files and those that macOS adds."""
        shown = (name for name in self.names if not any(part[0] in "._" for part in name.split("/")))
        return [name for name in shown if PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS]

    def read(self, name: str) -> Image.Image:
        """Image `name` as 8-bit RGB. Raises `UserError`, which names it, if it cannot be read."""
        try:
            if self._archive is None:
                return open_rgb(self.path / name)
            with Image.open(io.BytesIO(self._archive.read(name)), formats=FORMATS) as image:
                image.load()
                return to_rgb(image)
        except Exception as error:  # decoders raise exceptions of every type for damaged data
            found = error.found if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
            problem = f"{self.path}: {name} is not a usable image ({found})"
            raise UserError(f"{problem}. Repair or remove it, then run this again") from error

    def read_resized(self, name: str, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
        """Image `name` as RGB, resized to `size` (width, height) pixels unless it has that size."""
        image = self.read(name)
        return image if image.size == size else image.resize(size, resample)


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
        if self.size is None:
            return True
        with Image.open(self.destination) as image:
            return image.size == self.size

    def run(self) -> None:
        image = self.make()
        assert self.size is None or image.size == self.size
        unfinished = self.destination.with_name(f".{self.destination.name}.partial")
        image.save(unfinished, format="PNG")
        os.replace(unfinished, self.destination)


Resizing = tuple[ImageSource, str, str, Image.Resampling]  # source, name in it, destination, filter


def resize_all(images: Sequence[Resizing], out: str | Path, size: int, description: str) -> int:
    """`convert_all` of images that become `size` x `size` pixels; destinations are relative to `out`."""
    if size < 4:
        raise UserError(f"--size is {size}: it must be at least 4")
    conversions = [
        Conversion(Path(out, place), partial(source.read_resized, name, (size, size), resample), (size, size))
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
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        running = [pool.submit(conversion.run) for conversion in todo]
        done = len(conversions) - len(todo)
        bar = tqdm(total=len(conversions), initial=done, desc=description, unit="image")
        try:
            for future in as_completed(running):
                future.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            bar.close()
    return len(todo)
