"""Unpaired images: a folder of A, a folder of B, and nothing that tells which belong together."""

from __future__ import annotations

import math
import random
from pathlib import Path

from data.base_dataset import BaseDataset, Sample
from data.folders import domain_folders
from data.image_store import ImageStore
from data.sampler import SampleKey
from data.transforms import Preprocess
from util.image_files import list_images


class UnalignedDataset(BaseDataset):
    """A by index, B at random (by index with serial_batches and at test), each with a crop and a mirroring of its own.

    In training an epoch is as long as the larger folder, and the smaller A starts over. At test it is A, once each; B goes along
    for comparison, and may be missing.
    direction: "AtoB", or "BtoA" to exchange the folders, so that domain "A" of a sample is always the source.
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
        super().__init__(preprocess, seed, on_bad_image)
        self.in_order = serial_batches or not preprocess.training
        folders = dict(zip("AB", domain_folders(dataroot, phase, direction), strict=True))
        if not preprocess.training and not folders["B"].is_dir():
            del folders["B"]
        paths = {domain: list_images(folder, max_dataset_size) for domain, folder in folders.items()}
        share = cache_gb / sum(map(len, paths.values()))  # gigabytes an image
        self.stores = {
            domain: ImageStore(files, preprocess.resize, preprocess, share * len(files))
            for domain, files in paths.items()
        }

    def __len__(self) -> int:
        return max(self.sizes.values()) if self.preprocess.training else self.sizes["A"]

    def make(self, sample: Sample, key: SampleKey, generator: random.Random) -> None:
        for domain, store in self.stores.items():
            index = key.index % len(store)
            if domain == "B" and not self.in_order:
                index = generator.randrange(len(store))
            pixels, path = self.read(store, index, key.epoch, generator, sample.replaced)
            window = self.preprocess.draw_window(generator, *pixels.shape[:2])
            sample.views[domain] = self.view(pixels, path, window)
