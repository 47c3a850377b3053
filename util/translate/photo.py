"""A photograph before and after its translation: its colours, its alpha channel, and the result's name."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from util.image_files import MAX_PIXELS, ImageError, is_deep, read_image, to_rgb, to_rgba

MAX_NAME = 255  # bytes of a file's name on all common file systems


class Photo(NamedTuple):
    """Colours (H, W, 3) uint8, upright, and the alpha channel of the same size, if there is one."""

    pixels: np.ndarray
    alpha: Image.Image | None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def to_photo(image: Image.Image) -> Photo:
    """Any Pillow image as a photo: EXIF orientation applied, all modes as RGB, the alpha channel apart.

    Colours are not blended with a background, since the alpha channel is put back later; they are white where
    the image is fully transparent.
    """
    image = ImageOps.exif_transpose(image)
    # Grey of 16 bits has no alpha channel, at most one transparent value.
    if not image.has_transparency_data or is_deep(image):
        return Photo(np.asarray(to_rgb(image)), None)
    image = to_rgba(image)
    alpha = image.getchannel("A")
    shows = alpha.point(lambda value: 255 * (value > 0))
    colours = Image.composite(image.convert("RGB"), Image.new("RGB", image.size, "white"), shows)
    return Photo(np.asarray(colours), alpha)


def read_photo(path: Path, shorter_side: int | None = None) -> Photo:
    """An image file as a photo, see `to_photo`. Raises `ImageError`.

    Args:
        shorter_side: scale it to this many pixels first (bicubic, aspect kept).
    """
    photo = to_photo(read_image(path))
    return photo if shorter_side is None else _scaled(photo, shorter_side, path)


def _scaled(photo: Photo, shorter_side: int, path: Path) -> Photo:
    scale = shorter_side / min(photo.size)
    width, height = (max(shorter_side, round(side * scale)) for side in photo.size)
    if width * height > MAX_PIXELS:
        found = f"--load_size {shorter_side} would enlarge it to {width} x {height} pixels"
        raise ImageError(path, found, "Lower --load_size")
    colours, alpha = (
        image and image.resize((width, height), Image.Resampling.BICUBIC)
        for image in (Image.fromarray(photo.pixels), photo.alpha)
    )
    return Photo(np.asarray(colours), alpha)


def finished(pixels: np.ndarray, alpha: Image.Image | None) -> Image.Image:
    """A translation (H, W, 3) uint8 with the alpha channel of its photo."""
    image = Image.fromarray(pixels)
    if alpha is not None:
        image.putalpha(alpha)
    return image


def output_names(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """A relative path for the result of each file: the same nested folders and stems, as .png.

    The folders are those below the deepest one that holds all files. If two names would be equal (a.jpg and
    a.png, or names that differ only in case, which some file systems ignore), the later one keeps its
    extension or is numbered. Names too long for a file system are shortened.
    """
    paths = [Path(path) for path in paths]
    root = os.path.commonpath([path.parent for path in paths]) if paths else ""
    taken: set[str] = set()
    names = []
    for path in paths:
        place = path.relative_to(root)
        candidates = map(place.with_name, _candidates(place))
        name = next(name for name in candidates if name.as_posix().casefold() not in taken)
        taken.add(name.as_posix().casefold())
        names.append(name)
    return names


def _candidates(path: Path) -> Iterator[str]:
    """Names for the result of `path`, in order of preference."""
    yield _shortened(path.stem, ".png")
    yield _shortened(path.name, ".png")
    for number in itertools.count(2):
        yield _shortened(path.name, f"_{number}.png")


def _shortened(stem: str, end: str) -> str:
    """stem + end in at most `MAX_NAME` bytes."""
    return os.fsdecode(os.fsencode(stem)[: MAX_NAME - len(end)]) + end
