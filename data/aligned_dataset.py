"""Pairs in pix2pix's layout: each file shows A in its left half and B in its right half."""

from __future__ import annotations

import functools
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
    """The halves of one file, resized separately and cropped and mirrored alike. An epoch is every file once.

    direction: "AtoB" (source on the left) or "BtoA" (source on the right).
    """

    def open_stores(self, dataroot: Path, phase: str, limit: float, cache_gb: float) -> dict[str, ImageStore]:
        paths = list_images(paired_folder(dataroot, phase), limit)
        resize = functools.partial(resize_halves, self.preprocess)
        pairs = ImageStore(paths, resize, self.preprocess, cache_gb, columns=2)
        return {"A": pairs, "B": pairs}

    def __len__(self) -> int:
        return self.sizes["A"]

    def make(self, sample: Sample, key: SampleKey, generator: random.Random) -> None:
        pixels, path = self.read(self.stores["A"], key.index, key, generator, sample)
        middle = pixels.shape[1] // 2
        left, right = pixels[:, :middle], pixels[:, middle:]
        source, target = (left, right) if self.direction == "AtoB" else (right, left)
        window = self.preprocess.draw_window(generator, *source.shape[:2])
        sample.views = {"A": self.view(source, path, window), "B": self.view(target, path, window)}


def resize_halves(preprocess: Preprocess, image: Image.Image, load_size: int) -> Image.Image:
    """Resize the two halves of a side-by-side image separately, and join them again."""
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
