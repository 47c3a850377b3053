"""What the data sets share: the sample they make, its random numbers, and what happens at an image that cannot be used."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
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
LARGE = 4  # times the window: such an image is cut before it travels, lest all of a large photograph goes to the device


class View(NamedTuple):
    """One image of a sample: pixels (H, W, 3) uint8, the window to cut out of it, that window's (h, w), and its file."""

    pixels: np.ndarray
    window: Window
    size: tuple[int, int]
    path: str


@dataclass
class Sample:
    """The views by domain, "A" (source) and "B" (target), and the files that had to be replaced on the way to them."""

    views: dict[str, View] = field(default_factory=dict)
    replaced: list[ImageError] = field(default_factory=list)


class BaseDataset(Dataset):
    """Samples by `SampleKey`. All that is random in one is drawn from a generator seeded by (seed, epoch, position), so
    neither the worker that makes it nor what came before it has any influence.

    A subclass sets `stores` (domain -> ImageStore) and defines `__len__`, the images in an epoch, and `make`.
    on_bad_image: "stop" raises the `ImageError` of an image that cannot be used. "skip" takes another image in training,
    drawn from the sample's own generator (again and again, so that the draw is the same whether or not the file was known
    to be bad); at test the error is raised and the loader leaves the sample out.
    """

    stores: dict[str, ImageStore]

    def __init__(self, preprocess: Preprocess, seed: int, on_bad_image: str) -> None:
        if on_bad_image not in ("stop", "skip"):
            raise UserError(f"--on_bad_image {on_bad_image} is unknown; possible are stop and skip.")
        self.preprocess, self.seed, self.on_bad_image = preprocess, seed, on_bad_image

    @property
    def sizes(self) -> dict[str, int]:
        """Images in each domain."""
        return {domain: len(store) for domain, store in self.stores.items()}

    def __len__(self) -> int:
        raise NotImplementedError

    def make(self, sample: Sample, key: SampleKey, generator: random.Random) -> None:
        """Fill in the views of the sample."""
        raise NotImplementedError

    def __getitem__(self, key: SampleKey) -> Sample:
        sample = Sample()
        self.make(sample, key, random.Random(f"sample {self.seed} {key.epoch} {key.position}"))
        return sample

    def in_memory(self, epoch: int) -> bool:
        """Whether (nearly) all images are cached at the size of this epoch, so that workers would only be a detour."""
        return sum(store.cached(epoch) for store in self.stores.values()) >= NEARLY_ALL * sum(
            self.sizes.values()
        )

    def settle(self, epoch: int) -> None:
        """To be called by the main process as an epoch begins: frees what only other epochs need."""
        for store in self.stores.values():
            store.settle(epoch)

    def read(
        self, store: ImageStore, index: int, epoch: int, generator: random.Random, replaced: list[ImageError]
    ) -> tuple[np.ndarray, str]:
        """The image (H, W, 3) uint8 at `index` of a store, or its replacement, and its file."""
        for _ in range(MAX_REPLACEMENTS):
            try:
                return store.read(index, epoch), store.paths[index]
            except ImageError as error:
                if self.on_bad_image == "stop" or not self.preprocess.training:
                    raise
                replaced.append(error)
                index = generator.randrange(len(store))
        raise UserError(
            f"{MAX_REPLACEMENTS} images drawn in turn could not be used, the last being {store.paths[index]!r}. "
            "See what is wrong with the data set: python scripts/check_dataset.py DATAROOT"
        ) from replaced[-1]

    def view(self, pixels: np.ndarray, path: str, window: Window) -> View:
        height, width = size = self.preprocess.input_size(*pixels.shape[:2])
        if pixels.size > LARGE * height * width * pixels.shape[2]:
            top, left, flip = window
            pixels, window = pixels[top : top + height, left : left + width], (0, 0, flip)
        return View(pixels, window, size, path)
