"""One folder of images without a second domain: for translating, not for training."""

from __future__ import annotations

import random
from pathlib import Path

from data.base_dataset import BaseDataset, Sample
from data.folders import single_folder
from data.image_store import ImageStore
from data.sampler import SampleKey
from util.errors import UserError
from util.image_files import list_images


class SingleDataset(BaseDataset):
    """The images under `dataroot` as domain "A". Raises `UserError` in training."""

    def open_stores(self, dataroot: Path, phase: str, limit: float, cache_gb: float) -> dict[str, ImageStore]:
        if self.preprocess.training:
            raise UserError(
                "--dataset_mode single has no domain B to train towards. Train with unaligned or aligned; "
                "single is for test.py."
            )
        paths = list_images(single_folder(dataroot), limit)
        return {"A": ImageStore(paths, self.preprocess.resize, self.preprocess, cache_gb)}

    def __len__(self) -> int:
        return self.sizes["A"]

    def make(self, sample: Sample, key: SampleKey, generator: random.Random) -> None:
        pixels, path = self.read(self.stores["A"], key.index, key, generator, sample)
        sample.views["A"] = self.view(pixels, path, self.preprocess.draw_window(generator, *pixels.shape[:2]))
