"""The images of one folder as the data sets use them: by index, decoded, resized for the epoch, cached."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.cache import ImageCache
from data.transforms import Preprocess
from util.errors import UserError
from util.image_files import ImageError, open_rgb

Resize = Callable[[Image.Image, int], Image.Image]  # (image, load_size) -> image


class ImageStore:
    """Images by index, each (H, W, 3) uint8.

    Args:
        paths: the files.
        resize: the deterministic half of preprocessing.
        preprocess: gives the load size of an epoch.
        gigabytes: bound of the cache, which serves resize_and_crop alone, where all images have one size.
        columns: images side by side in one file, 2 for aligned pairs.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        resize: Resize,
        preprocess: Preprocess,
        gigabytes: float,
        columns: int = 1,
    ) -> None:
        self.paths = [str(path) for path in paths]
        self.preprocess = preprocess
        self._resize = resize
        self._last_size = preprocess.load_size_at(sys.maxsize)
        self._failed: dict[tuple[int, int], ImageError] = {}
        # One for each half of training. Only one is in use at a time; the other takes no memory
        # (`begin_epoch`).
        cached = preprocess.mode == "resize_and_crop"
        sizes = {preprocess.load_size_at(1), self._last_size} if cached else set()
        self._caches = {size: ImageCache(len(self.paths), size, size * columns, gigabytes) for size in sizes}

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, epoch: int) -> np.ndarray:
        """The image at the size of `epoch`. Raises `ImageError` if it cannot be used, which is remembered."""
        load_size = self.preprocess.load_size_at(epoch)
        if (index, load_size) in self._failed:
            raise self._failed[index, load_size]
        cache = self._caches.get(load_size)
        image = None if cache is None else cache.get(index)
        if image is None:
            try:
                image = self._decode(index, load_size)
            except ImageError as error:
                self._failed[index, load_size] = error
                raise
            if cache is not None:
                cache.put(index, image)
        return image

    def cached(self, epoch: int) -> int:
        """How many images are in memory at the size of an epoch."""
        cache = self._caches.get(self.preprocess.load_size_at(epoch))
        return 0 if cache is None else cache.held

    def begin_epoch(self, epoch: int) -> None:
        """Free what is cached at sizes that no epoch from this one on needs. The main process calls it."""
        if self.preprocess.load_size_at(epoch) == self._last_size:
            for size, cache in self._caches.items():
                if size != self._last_size:
                    cache.close()

    def _decode(self, index: int, load_size: int) -> np.ndarray:
        path = self.paths[index]
        image = open_rgb(path)
        try:
            return np.asarray(self._resize(image, load_size))
        except UserError as error:
            remedy = "Remove it, or change --load_size, --crop_size or --preprocess"
            raise ImageError(path, str(error), remedy) from error
