"""Unpaired images: a folder of A and a folder of B."""

from __future__ import annotations

import random
from pathlib import Path

from data.base_dataset import BaseDataset, Sample
from data.folders import domain_folders
from data.image_store import ImageStore
from data.sampler import SampleKey
from util.image_files import list_images


class UnalignedDataset(BaseDataset):
    """A by index, B at random (by index with serial_batches and at test), each with its own crop and
    mirroring.

    A training epoch is as long as the larger folder; a smaller A starts over. At test it is every image of A
    once; B is for comparison, and may be missing.
    """

    def open_stores(self, dataroot: Path, phase: str, limit: float, cache_gb: float) -> dict[str, ImageStore]:
        folders = dict(zip("AB", domain_folders(dataroot, phase, self.direction), strict=True))
        if not self.preprocess.training and not folders["B"].is_dir():
            del folders["B"]
        paths = {domain: list_images(folder, limit) for domain, folder in folders.items()}
        share = cache_gb / sum(map(len, paths.values()))  # gigabytes per image
        return {
            domain: ImageStore(files, self.preprocess.resize, self.preprocess, share * len(files))
            for domain, files in paths.items()
        }

    def __len__(self) -> int:
        return max(self.sizes.values()) if self.preprocess.training else self.sizes["A"]

    def make(self, sample: Sample, key: SampleKey, generator: random.Random) -> None:
        for domain, store in self.stores.items():
            index = key.index % len(store)
            if domain == "B" and not self.in_order:
                index = generator.randrange(len(store))
            pixels, path = self.read(store, index, key, generator, sample)
            window = self.preprocess.draw_window(generator, *pixels.shape[:2])
            sample.views[domain] = self.view(pixels, path, window)
