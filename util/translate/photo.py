"""A photograph before and after its translation: colours for the network, transparency kept aside, a name for the result."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from util.image_files import FORMATS, MAX_PIXELS, ImageError, decode, to_rgb


class Photo(NamedTuple):
    """Colours (H, W, 3) uint8, upright, and the alpha channel of that size where the image has one."""

    pixels: np.ndarray
    alpha: Image.Image | None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def to_photo(image: Image.Image) -> Photo:
    """Any Pillow image as a photo: EXIF orientation applied, deep grey and palettes as RGB, alpha taken off.

    Colours are taken as they are, not blended with a background, since the alpha channel is put back later; where nothing of
    them shows, they are white.
    """
    return _split(ImageOps.exif_transpose(image))


def read_photo(path: Path, shorter_side: int | None = None) -> Photo:
    """An image file as a photo, see `to_photo`. Raises `ImageError`.

    Args:
        shorter_side: scale it to this many pixels first (bicubic, aspect kept).
    """
    image = decode(path)[0]  # upright RGB, and the file is known to be sound
    with Image.open(path, formats=FORMATS) as file:
        photo = to_photo(file) if file.has_transparency_data else Photo(np.asarray(image), None)
    return photo if shorter_side is None else _scaled(photo, shorter_side, path)


def _split(image: Image.Image) -> Photo:
    if not image.has_transparency_data or image.mode.startswith(
        "I"
    ):  # deep grey names at most one transparent value
        return Photo(np.asarray(to_rgb(image)), None)
    if image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    shows = alpha.point(lambda value: 255 * (value > 0))
    colours = Image.composite(image.convert("RGB"), Image.new("RGB", image.size, "white"), shows)
    return Photo(np.asarray(colours), alpha)


def _scaled(photo: Photo, shorter_side: int, path: Path) -> Photo:
    scale = shorter_side / min(photo.size)
    width, height = (max(shorter_side, round(side * scale)) for side in photo.size)
    if width * height > MAX_PIXELS:
        raise ImageError(
            path,
            f"--load_size {shorter_side} would enlarge it to {width} x {height} pixels",
            "Lower --load_size",
        )
    image = Image.fromarray(photo.pixels).resize((width, height), Image.Resampling.BICUBIC)
    return Photo(
        np.asarray(image), photo.alpha and photo.alpha.resize((width, height), Image.Resampling.BICUBIC)
    )


def finished(pixels: np.ndarray, alpha: Image.Image | None) -> Image.Image:
    """A translation (H, W, 3) uint8 with the alpha channel of its photo."""
    image = Image.fromarray(pixels)
    if alpha is not None:
        image.putalpha(alpha)
    return image


def output_names(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """Where each of some files' results goes, relative: the same nested folders and stems, as .png.

    The folders are those below the deepest one that holds all files. Where two names would be one (a.jpg beside a.png, or
    differing in case alone, which some file systems ignore), the later keeps its extension, or is numbered.
    """
    paths = [Path(path) for path in paths]
    root = os.path.commonpath([path.parent for path in paths]) if paths else ""
    taken: set[str] = set()
    names = []
    for path in paths:
        place = path.relative_to(root)
        candidates = (place.with_name(f"{stem}.png") for stem in _stems(place))
        name = next(name for name in candidates if name.as_posix().casefold() not in taken)
        taken.add(name.as_posix().casefold())
        names.append(name)
    return names


def _stems(path: Path) -> Iterable[str]:
    yield path.stem
    number = 1
    while True:
        yield path.name if number == 1 else f"{path.name}_{number}"
        number += 1
