"""What the data sets share: samples, their random numbers, and the handling of unusable images."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from data.image_store import ImageStore
from data.sampler import SampleKey
from data.transforms import Preprocess, Window
from util.errors import UserError
from util.image_files import ImageError

MAX_REPLACEMENTS = 100
NEARLY_ALL = 0.95
LARGE = 4  # times the window's pixels: such an image is cropped before it is sent to the device


# What a window shows of its image: top, left, height and width as fractions, and 1 if mirrored.
Part = tuple[float, float, float, float, float]


class View(NamedTuple):
    """One image of a sample: pixels (H, W, 3) uint8, the window to crop, its (h, w), and the file."""

    pixels: np.ndarray
    window: Window
    size: tuple[int, int]
    path: str
    part: Part = (0.0, 0.0, 1.0, 1.0, 0.0)


@dataclass
class Sample:
    """The views by domain, "A" (source) and "B" (target), and the errors of files that were replaced."""

    views: dict[str, View] = field(default_factory=dict)
    replaced: list[ImageError] = field(default_factory=list)


class BaseDataset(Dataset):
    """Samples by `SampleKey`. Their random numbers come from a generator seeded by (seed, epoch, position),
    so a sample does not depend on the worker that makes it or on earlier samples.

    A subclass defines `open_stores`, `__len__` (images per epoch) and `make`.

    Args:
        dataroot: the data set's folder.
        phase: "train", "test", ...: the beginning of the names of its folders.
        preprocess: how images become inputs.
        seed: of everything that is drawn.
        direction: "AtoB", or "BtoA" to exchange the domains, so that "A" of a sample is always the source.
        serial_batches: B is taken by index, not drawn.
        max_dataset_size: use only the first so many images of a folder.
        on_bad_image: "stop" raises the `ImageError` of an image that cannot be used. "skip" takes another
            image in training, drawn from the sample's generator (each time, so that the draw is the same
            whether or not the file was known to be bad); at test the error is raised and the loader leaves
            the sample out.
        cache_gb: gigabytes for decoded images.
    """

    def __init__(
        self,
        dataroot: str | Path,
        phase: str,
        preprocess: Preprocess,
        *,
        seed: int = 0,
        direction: str = "AtoB",
        serial_batches: bool = False,
        max_dataset_size: float = math.inf,
        on_bad_image: str = "stop",
        cache_gb: float = 0.0,
    ) -> None:
        if on_bad_image not in ("stop", "skip"):
            raise UserError(f"--on_bad_image {on_bad_image} is unknown; possible are stop and skip.")
        self.preprocess, self.seed, self.direction, self.on_bad_image = (
            preprocess,
            seed,
            direction,
            on_bad_image,
        )
        self.in_order = serial_batches or not preprocess.training
        self.stores = self.open_stores(Path(dataroot), phase, max_dataset_size, cache_gb)

    def open_stores(self, dataroot: Path, phase: str, limit: float, cache_gb: float) -> dict[str, ImageStore]:
        """The images of each domain, at most `limit` per folder."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def make(self, sample: Sample, key: SampleKey, generator: random.Random) -> None:
        """Fill in the views of the sample."""
        raise NotImplementedError

    @property
    def sizes(self) -> dict[str, int]:
        """Images in each domain."""
        return {domain: len(store) for domain, store in self.stores.items()}

    def __getitem__(self, key: SampleKey) -> Sample:
        sample = Sample()
        self.make(sample, key, random.Random(f"sample {self.seed} {key.epoch} {key.position}"))
        return sample

    def in_memory(self, epoch: int) -> bool:
        """Whether (nearly) all images are cached at this epoch's size, so that workers would not help."""
        cached = sum(store.cached(epoch) for store in self.stores.values())
        return cached >= NEARLY_ALL * sum(self.sizes.values())

    def begin_epoch(self, epoch: int) -> None:
        """Free the memory that only earlier epochs need. The main process calls it."""
        for store in self.stores.values():
            store.begin_epoch(epoch)

    def read(
        self, store: ImageStore, index: int, key: SampleKey, generator: random.Random, sample: Sample
    ) -> tuple[np.ndarray, str]:
        """The image (H, W, 3) uint8 at `index` of a store, or its replacement, and its file."""
        for _ in range(MAX_REPLACEMENTS):
            try:
                return store.read(index, key.epoch), store.paths[index]
            except ImageError as error:
                if self.on_bad_image == "stop" or not self.preprocess.training:
                    raise
                sample.replaced.append(error)
                index = generator.randrange(len(store))
        raise UserError(
            f"{MAX_REPLACEMENTS} images in a row could not be used, the last being {store.paths[index]!r}. "
            "See what is wrong with the data set: python scripts/check_dataset.py DATAROOT"
        ) from sample.replaced[-1]

    def view(self, pixels: np.ndarray, path: str, window: Window) -> View:
        (rows, columns), (top, left, flip) = pixels.shape[:2], window
        height, width = size = self.preprocess.input_size(rows, columns)
        part = (top / rows, left / columns, height / rows, width / columns, float(flip))
        if pixels.size > LARGE * height * width * pixels.shape[2]:
            pixels, window = pixels[top : top + height, left : left + width], (0, 0, flip)
        return View(pixels, window, size, path, part)
