"""One folder of images and no other domain: something to translate, nothing to train towards."""

from __future__ import annotations

import math
import random
from pathlib import Path

from data.base_dataset import BaseDataset, Sample
from data.folders import single_folder
from data.image_store import ImageStore
from data.sampler import SampleKey
from data.transforms import Preprocess
from util.errors import UserError
from util.image_files import list_images


class SingleDataset(BaseDataset):
    """The images under `dataroot` as domain "A", for test alone. Raises `UserError` in training."""

    def __init__(
        self,
        dataroot: str | Path,
        phase: str,
        preprocess: Preprocess,
        *,
        seed: int = 0,
        direction: str = "AtoB",  # as the phase and serial_batches, of no meaning with one folder
        serial_batches: bool = False,
        max_dataset_size: float = math.inf,
        on_bad_image: str = "stop",
        cache_gb: float = 0.0,
    ) -> None:
        if preprocess.training:
            raise UserError(
                "--dataset_mode single has no domain B to train towards. Train with unaligned; single is for test.py."
            )
        super().__init__(preprocess, seed, on_bad_image)
        paths = list_images(single_folder(dataroot), max_dataset_size)
        self.stores = {"A": ImageStore(paths, preprocess.resize, preprocess, cache_gb)}

    def __len__(self) -> int:
        return self.sizes["A"]

    def make(self, sample: Sample, key: SampleKey, generator: random.Random) -> None:
        pixels, path = self.read(self.stores["A"], key.index, key.epoch, generator, sample.replaced)
        sample.views["A"] = self.view(pixels, path, self.preprocess.draw_window(generator, *pixels.shape[:2]))
