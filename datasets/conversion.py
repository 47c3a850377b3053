"""Batch conversion of images into PNG files that can be interrupted and taken up again.

The preparation scripts beside it say what becomes what as a list of `Conversion`s; this file does them:
several at a time, with a progress bar, each file written beside its place and renamed, so that what is there is
whole and a rerun goes on with what is missing. Images are read from a folder or straight from a zip archive,
which is never unpacked.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image
from tqdm import tqdm

from util.errors import UserError
from util.image_files import FORMATS, IMAGE_EXTENSIONS, ImageError, open_rgb, to_rgb


class ImageSource:
    """The files below a folder or inside a zip archive.

    `names` are their paths in it, sorted, with forward slashes. Raises `UserError` for what is neither.
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
        """The names that look like images by their suffix, hidden files and what a Mac adds left out."""
        shown = (name for name in self.names if not any(part[0] in "._" for part in name.split("/")))
        return [name for name in shown if PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS]

    def read(self, name: str) -> Image.Image:
        """Image `name`, decoded, as 8-bit RGB. Raises `UserError` naming it where it cannot be read."""
        try:
            if self._archive is None:
                return open_rgb(self.path / name)
            with Image.open(io.BytesIO(self._archive.read(name)), formats=FORMATS) as image:
                image.load()
                return to_rgb(image)
        except Exception as error:  # decoders meet damaged data with exceptions of every type
            found = error.found if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
            raise UserError(
                f"{self.path}: {name} is no usable image ({found}). Mend it, run this again"
            ) from error

    def read_resized(
        self, name: str, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BICUBIC
    ) -> Image.Image:
        """Image `name` as RGB at `size` (width, height) pixels; one that has that size is left as it is."""
        image = self.read(name)
        return image if image.size == size else image.resize(size, resample)


@dataclass(frozen=True)
class Conversion:
    """One PNG file to write.

    Attributes:
        destination: the file.
        make: gives the image; called on another thread, and only where the file is not there yet.
        size: (width, height) in pixels the file must have: one of another size is made again. None: any.
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
        partial = self.destination.with_name(f".{self.destination.name}.partial")
        image.save(partial, format="PNG")
        os.replace(partial, self.destination)


def convert_all(conversions: Sequence[Conversion], description: str, workers: int | None = None) -> int:
    """Do what is not done yet, `workers` at a time (default: one a core, at most 8); returns how many that was.

    Stops at the first error and keeps what is finished. Raises `UserError` where two conversions want one file.
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
