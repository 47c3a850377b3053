"""Pairs, as pix2pix keeps them: each file shows A on its left half and B on its right."""

from __future__ import annotations

import functools
import math
import random
from pathlib import Path

from PIL import Image

from data.base_dataset import BaseDataset, Sample
from data.folders import paired_folder
from data.image_store import ImageStore
from data.sampler import SampleKey
from data.transforms import Preprocess
from util.errors import UserError
from util.image_files import list_images


class AlignedDataset(BaseDataset):
    """The halves of one file, resized apart and cut and mirrored alike. An epoch is every file once.

    direction: "AtoB" (source on the left) or "BtoA" (source on the right).
    """

    def __init__(
        self,
        dataroot: str | Path,
        phase: str,
        preprocess: Preprocess,
        *,
        seed: int = 0,
        direction: str = "AtoB",
        serial_batches: bool = False,  # files come by index in any case
        max_dataset_size: float = math.inf,
        on_bad_image: str = "stop",
        cache_gb: float = 0.0,
    ) -> None:
        super().__init__(preprocess, seed, on_bad_image)
        self.domains = "AB" if direction == "AtoB" else "BA"  # of the left and the right half
        paths = list_images(paired_folder(dataroot, phase), max_dataset_size)
        resize = functools.partial(resize_halves, preprocess)
        self.pairs = ImageStore(paths, resize, preprocess, cache_gb, columns=2)
        self.stores = {"A": self.pairs, "B": self.pairs}

    def __len__(self) -> int:
        return len(self.pairs)

    def make(self, sample: Sample, key: SampleKey, generator: random.Random) -> None:
        pixels, path = self.read(self.pairs, key.index, key.epoch, generator, sample.replaced)
        middle = pixels.shape[1] // 2
        halves = pixels[:, :middle], pixels[:, middle:]
        window = self.preprocess.draw_window(generator, *halves[0].shape[:2])
        views = {
            domain: self.view(half, path, window) for domain, half in zip(self.domains, halves, strict=True)
        }
        sample.views.update(sorted(views.items()))


def resize_halves(preprocess: Preprocess, image: Image.Image, load_size: int) -> Image.Image:
    """Resize the two halves of a side-by-side image apart, and put them side by side again."""
    if image.width % 2:
        raise UserError(f"it is {image.width} pixels wide, and a side-by-side pair has an even width")
    middle = image.width // 2
    left, right = (
        preprocess.resize(image.crop((start, 0, start + middle, image.height)), load_size)
        for start in (0, middle)
    )
    pair = Image.new("RGB", (left.width + right.width, left.height))
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width, 0))
    return pair
