"""Photographs before and after translation (colours, alpha, scale), and files of them translated and written.

Threads read and write while the device translates.
"""

import contextlib
import itertools
import json
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from util.device import HostCopy
from util.errors import UserError, lacks_memory
from util.files import write_atomically
from util.image_files import MAX_PIXELS, ImageError, is_deep, read_image, to_rgb, to_rgba
from util.images import to_image

MAX_STEM = 251  # bytes of a name before ".png": all common file systems take 255

# The formats that translations are written in, and Pillow's settings for them: those of JPEG keep thin
# stripes, and the files of PNG's weakest compression are a tenth larger and take a third of the time.
JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
PNG, WEBP = {"format": "PNG", "compress_level": 1}, {"format": "WEBP", "lossless": True}
TIFF = {"format": "TIFF"}
WRITTEN = {".png": PNG, ".jpg": JPEG, ".jpeg": JPEG, ".webp": WEBP, ".tif": TIFF, ".tiff": TIFF}

THREADS = min(8, os.cpu_count() or 1)
FAR = 2.0  # times larger or smaller than the size to translate at: worth a warning
OWN = r"(?s)images/(?!(.*/)?\.\./)[^\0]+"  # what a record may name
RECORD = ".images.json"  # in a folder of results: the files that the last call made, or was about to make

Job = tuple[Path, Path]  # a file to translate and the file to write


class Photo(NamedTuple):
    """What is translated of a photograph, and what its translation becomes."""

    pixels: np.ndarray  # (H, W, 3) uint8, upright
    alpha: Image.Image | None  # the alpha channel, of `result_size`, if there is one
    result_size: tuple[int, int]  # (width, height) to which the translation of `pixels` is scaled

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of `pixels`."""
        return self.pixels.shape[1], self.pixels.shape[0]


def to_photo(image: Image.Image, load_size: int | None = None, translate_size: int | None = None) -> Photo:
    """Any Pillow image as a photo: EXIF orientation applied, all modes as sRGB, the alpha channel apart.

    Colours are not blended with a background, since the alpha channel is put back later; they are white where
    the image is fully transparent. Scaling is bicubic and keeps the aspect; UserError if it enlarges too far.

    load_size: scale the shorter side to this many pixels, those of the result too; 0: as it is.
    translate_size: without load_size, a longer shorter side is translated at this size, and scaled back.
    """
    image = ImageOps.exif_transpose(image)
    alpha = None
    # Grey of 16 bits has no alpha channel, at most one transparent value.
    if not image.has_transparency_data or is_deep(image):
        colours = to_rgb(image)
    else:
        image = to_rgba(image)
        alpha = image.getchannel("A")
        shows = alpha.point(lambda value: 255 * (value > 0))
        colours = Image.composite(image.convert("RGB"), Image.new("RGB", image.size, "white"), shows)
    size = result_size = image.size
    if load_size:
        size = result_size = _scaled_size(image.size, load_size)
        alpha = alpha and _resized(alpha, size)
    elif load_size is None and translate_size and min(image.size) > translate_size:
        size = _scaled_size(image.size, translate_size)
    return Photo(np.asarray(_resized(colours, size)), alpha, result_size)


def _scaled_size(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    scale = shorter_side / min(size)
    width, height = (max(shorter_side, round(side * scale)) for side in size)
    if width * height > MAX_PIXELS:
        found = f"--load_size {shorter_side} would enlarge it to {width} x {height} pixels"
        raise UserError(f"{found}: lower --load_size")
    return width, height


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def read_photo(path: Path, load_size: int | None = None, translate_size: int | None = None) -> Photo:
    """An image file as a photo, see `to_photo`. Raises `UserError`."""
    return to_photo(read_image(path), load_size, translate_size)


def finished(pixels: np.ndarray, photo: Photo) -> Image.Image:
    """The result for a photo whose translation is `pixels`, (H, W, C) uint8 with 1 or 3 channels."""
    image = _resized(to_image(pixels), photo.result_size)
    if photo.alpha is not None:
        image.putalpha(photo.alpha)
    return image


def output_names(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """A relative path for the result of each file: the same nested folders and stems, as .png.

    The folders are those below the deepest one that holds all files. If two names would be equal (a.jpg and
    a.png, or names that differ only in case, which some file systems ignore), the later one keeps its
    extension or is numbered. Names too long for a file system are shortened.
    """
    paths = [Path(path) for path in paths]
    root = os.path.commonpath([path.parent for path in paths]) if paths else ""
    names: dict[str, Path] = {}
    for path in paths:
        place = path.relative_to(root)
        numbered = (f"{number}_{place.name}" for number in itertools.count(2))
        for stem in itertools.chain([place.stem, place.name], numbered):
            name = place.with_name(os.fsdecode(os.fsencode(stem)[:MAX_STEM]) + ".png")
            if names.setdefault(name.as_posix().casefold(), name) is name:
                break
    return list(names.values())


def in_threads(function: Callable, items: Iterable, ahead: int) -> Iterator[tuple[Any, Future]]:
    """The items with the futures of calls in threads, in order; at most `ahead` beyond the one given out."""
    calls: deque[tuple[Any, Future]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for item in items:
                calls.append((item, pool.submit(function, item)))
                if len(calls) > ahead:
                    yield calls.popleft()
            yield from calls
        finally:
            pool.shutdown(cancel_futures=True)


def translate_files(
    translator: Any, jobs: Sequence[Job], *, batch_size=1, load_size: int | None = None, warn=False
) -> dict[Path, str]:
    """Translate every job's file, under a progress bar; the reasons of those that failed, by file.

    translator: a `models.translator.Translator`, whose translate_size `to_photo` gets beside `load_size`.
    batch_size: translate up to so many consecutive images of one size at a time.
    warn: say of the first image far from that size that its translation may be poor.
    """
    failures: dict[Path, str] = {}
    good, ahead = translator.translate_size, 2 * (batch_size + THREADS)

    def read(job: Job) -> Photo:
        return read_photo(job[0], load_size, good)

    def photos() -> Iterator[tuple[Job, Photo]]:
        for job, reading in in_threads(read, jobs, ahead):
            try:
                yield job, reading.result()
            except ImageError as error:
                failures[job[0]] = f"{error.found}. {error.remedy}"
            except UserError as error:
                failures[job[0]] = str(error)

    def translations() -> Iterator[tuple[Job, Photo, HostCopy, int]]:
        """Each photo with the copy that has its translation, and the place there."""
        nonlocal warn
        for size, group in itertools.groupby(photos(), key=lambda item: item[1].size):
            if warn and good and not 1 / FAR <= min(size) / good <= FAR:
                warn = False
                found = (
                    f"translated at {size[0]} x {size[1]} pixels by a model made for a shorter side of {good}"
                )
                tqdm.write(f"warning: {found}: --load_size {good} scales to that", file=sys.stderr)
            while batch := list(itertools.islice(group, batch_size)):
                yield from _translated(translator, batch, failures)

    def write(item: tuple[Job, Photo, HostCopy, int]) -> None:
        (_, target), photo, result, place = item
        image, settings = finished(result.numpy()[place], photo), WRITTEN[target.suffix.lower()]
        if settings is JPEG and image.mode not in ("L", "RGB"):
            image = to_rgb(image)  # it has no alpha channel
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, lambda file: image.save(file, **settings))

    with tqdm(total=len(jobs), unit="image", dynamic_ncols=True, disable=None) as bar:
        for (job, *_), writing in in_threads(write, translations(), ahead):
            try:
                writing.result()
            except OSError as error:
                failures[job[0]] = f"{job[1]} cannot be written ({error})"
            bar.update()
    return failures


def _translated(
    translator: Any, batch: list[tuple[Job, Photo]], failures: dict[Path, str]
) -> Iterator[tuple[Job, Photo, HostCopy, int]]:
    """The batch with its translation; if memory does not suffice, each image separately."""
    try:
        result = translator.translate([photo.pixels for _, photo in batch])
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        if len(batch) == 1:
            (source, _), photo = batch[0]
            width, height = photo.size
            found = f"{width} x {height} pixels need more memory"
            failures[source] = f"{found}; --load_size scales them down ({error})"
            return
        for item in batch:
            yield from _translated(translator, [item], failures)
    else:
        for place, (job, photo) in enumerate(batch):
            yield job, photo, result, place


def clear_results(folder: Path, files: Collection[str]) -> None:
    """Remove an earlier call's page, which says that it is whole, and images, but for `files`."""
    record = folder / RECORD
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").unlink(missing_ok=True)
    own = set()
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):  # none, or a damaged one
        own = {file for file in json.loads(record.read_text()) if re.fullmatch(OWN, str(file))}
    for file in own - set(files):
        (folder / file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder holds others
            for parent in list(Path(file).parents)[:-2]:
                (folder / parent).rmdir()
    write_atomically(record, lambda path: path.write_text(json.dumps(sorted(files), indent=0)))
