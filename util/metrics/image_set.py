"""A folder of images as one side of a comparison: its files in order, their sizes, and a checksum."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from util.image_files import grey_range, list_images, open_rgb


class ImageSet:
    """The images of a folder in the order of their names, decoded to RGB again in each pass.

    Raises `UserError` if there are none, or for one that cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.paths = list_images(folder)
        self.grey = grey_range(self.paths)  # black and white of grey images of more than 8 bits

    def __len__(self) -> int:
        return len(self.paths)

    def images(self, what: str) -> Iterator[Image.Image]:
        """Every image in RGB, in order, under a progress bar labelled `what`."""
        for path in tqdm(self.paths, f"{what}: {self.folder.name}", unit="image", leave=False):
            yield open_rgb(path, self.grey)

    def squares(self, size: int) -> Iterator[np.ndarray]:
        """Every image as uint8 (3, size, size), scaled bicubically if it has another size."""
        for image in self.images("patches"):
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BICUBIC)
            yield np.asarray(image).transpose(2, 0, 1)  # (3, size, size)

    @cached_property
    def sizes(self) -> set[tuple[int, int]]:
        """All (width, height) in pixels."""
        return {open_rgb(path).size for path in self.paths}

    @cached_property
    def record(self) -> dict[str, object]:
        """For the receipt: the folder, how many images, and a checksum of all names and bytes."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(os.fsencode(path.name) + b"\0" + path.read_bytes())
        return {"folder": str(self.folder), "count": len(self), "sha256": digest.hexdigest()}
