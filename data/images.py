"""The images of one folder by index: decoded, resized for the epoch, and cached."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.transforms import Preprocess
from util.errors import UserError
from util.image_files import ImageError, open_rgb

Resize = Callable[[Image.Image, int], Image.Image]  # the deterministic half of preprocessing


class ImageStore:
    """Images by index, each (H, W, 3) uint8.

    The cache is an anonymous shared mapping, made before the workers are forked, so that all of them see what
    one decodes. It takes memory as it fills and does not depend on the size of /dev/shm. No lock is needed: a
    place is written, then marked, and two workers that fill the same place write the same bytes. Workers that
    are not forked (macOS, Windows) cannot share it and have none.

    Args:
        paths: the files.
        preprocess: the load size of an epoch.
        resize: (image, load size) -> image.
        gigabytes: bound of the cache (1e9 bytes), which keeps the first images that fit. It serves
            resize_and_crop alone, where all images have one size.
        columns: images side by side in one file, 2 for aligned pairs.
        grey: black and white of grey images of more than 8 bits.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        preprocess: Preprocess,
        resize: Resize,
        gigabytes: float,
        columns: int = 1,
        grey: tuple[float, float] | None = None,
    ) -> None:
        self.paths = [str(path) for path in paths]
        self._preprocess, self._resize = preprocess, resize
        self._gigabytes, self._columns = gigabytes, columns
        self.grey = grey
        self._failed: dict[tuple[int, int], ImageError] = {}
        self._set_cache(0, 0)

    def __len__(self) -> int:
        return len(self.paths)

    def begin_epoch(self, epoch: int) -> bool:
        """Make a cache for the size of an epoch; whether it is a new one, of which workers do not know."""
        load_size = self._preprocess.load_size_at(epoch)
        if self._preprocess.mode != "resize_and_crop" or load_size == self._cached_size:
            return False
        image_bytes = 3 * self._columns * load_size**2
        self._set_cache(load_size, min(len(self), int(self._gigabytes * 1e9 // image_bytes)))
        return True

    def read(self, index: int, epoch: int) -> np.ndarray:
        """The image at the size of `epoch`. Raises `ImageError` if it cannot be used, which is remembered."""
        load_size = self._preprocess.load_size_at(epoch)
        if (index, load_size) in self._failed:
            raise self._failed[index, load_size]
        has_place = load_size == self._cached_size and index < len(self._kept)
        if has_place and self._kept[index]:
            return self._cache[index]
        try:
            image = self._decode(index, load_size)
        except ImageError as error:
            self._failed[index, load_size] = error
            raise
        if has_place:
            self._cache[index] = image
            self._kept[index] = True
        return image

    @property
    def cached(self) -> int:
        """How many images are in memory."""
        return int(self._kept.sum())

    def _decode(self, index: int, load_size: int) -> np.ndarray:
        path = self.paths[index]
        image = open_rgb(path, self.grey)
        try:
            return np.asarray(self._resize(image, load_size))
        except UserError as error:
            remedy = "Remove it, or change --load_size, --crop_size or --preprocess"
            raise ImageError(path, str(error), remedy) from error

    def _set_cache(self, load_size: int, count: int) -> None:
        self._cached_size = load_size
        self._cache = _shared_zeros((count, load_size, load_size * self._columns, 3))
        self._kept = _shared_zeros((count,)).view(bool)

    def __getstate__(self) -> dict:
        state = dict(self.__dict__)
        return state | {"_cached_size": 0, "_cache": None, "_kept": np.zeros(0, bool)}


def _shared_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Bytes that this process shares with those it forks."""
    size = int(np.prod(shape))
    if not size:
        return np.zeros(shape, np.uint8)
    try:
        return np.frombuffer(mmap.mmap(-1, size), np.uint8).reshape(shape)
    except OSError as error:
        found = f"cannot reserve {size / 1e9:.1f} GB for decoded images ({error})"
        raise UserError(f"{found}. Lower --cache_gb; 0 turns the cache off.") from error
