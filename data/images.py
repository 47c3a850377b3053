"""The images of one folder by index: decoded, resized for the epoch, and cached."""

import mmap
from dataclasses import dataclass

import numpy as np

from data.transforms import Preprocess
from util.errors import UserError
from util.image_files import ImageError, open_rgb


@dataclass(eq=False)
class ImageStore:
    """Images by index, each (H, W, 3) uint8; with `columns` side by side in a file, each resized by itself.

    The cache keeps the first images that fit into `gigabytes` (1e9 bytes), in resize_and_crop, where all have
    one size. It is an anonymous shared mapping, made before the workers are forked, so that all of them
    see what one decodes; it takes memory as it fills and does not depend on the size of /dev/shm. No lock is
    needed: a place is written, then marked, and two workers that fill it write the same bytes. Workers that
    are not forked (macOS, Windows) have no cache.
    """

    paths: list[str]
    preprocess: Preprocess
    gigabytes: float
    columns: int = 1
    grey: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self._set_cache(0, 0)

    def __len__(self) -> int:
        return len(self.paths)

    def begin_epoch(self, epoch: int) -> bool:
        """Make a cache for the size of an epoch; whether it is a new one, of which workers do not know."""
        load_size = self.preprocess.load_size_at(epoch)
        if self.preprocess.mode != "resize_and_crop" or load_size == self._cached_size:
            return False
        image_bytes = 3 * self.columns * load_size**2
        self._set_cache(load_size, min(len(self), int(self.gigabytes * 1e9 // image_bytes)))
        return True

    def read(self, index: int, epoch: int) -> np.ndarray:
        """The image at the size of `epoch`. Raises `ImageError` if it cannot be used."""
        load_size = self.preprocess.load_size_at(epoch)
        has_place = load_size == self._cached_size and index < len(self._kept)
        if has_place and self._kept[index]:
            return self._cache[index]
        image = self._decode(self.paths[index], load_size)
        if has_place:
            self._cache[index] = image
            self._kept[index] = True
        return image

    @property
    def cached(self) -> int:
        """How many images are in memory."""
        return int(self._kept.sum())

    def _decode(self, path: str, load_size: int) -> np.ndarray:
        image = open_rgb(path, self.grey)
        width, rest = divmod(image.width, self.columns)
        if rest:
            raise ImageError(path, f"it is {image.width} pixels wide, and a pair has an even width")
        boxes = [(left, 0, left + width, image.height) for left in range(0, image.width, width)]
        try:
            parts = [np.asarray(self.preprocess.resize(image.crop(box), load_size)) for box in boxes]
        except UserError as error:
            remedy = "Remove it, or change --load_size, --crop_size or --preprocess"
            raise ImageError(path, str(error), remedy) from error
        return np.concatenate(parts, axis=1)

    def _set_cache(self, load_size: int, count: int) -> None:
        self._cached_size = load_size
        self._cache = _shared_zeros((count, load_size, load_size * self.columns, 3))
        self._kept = _shared_zeros((count,)).view(bool)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_cached_size": 0, "_cache": None, "_kept": np.zeros(0, bool)}


def _shared_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Bytes that this process shares with those it forks."""
    size = int(np.prod(shape))
    return np.frombuffer(mmap.mmap(-1, max(1, size)), np.uint8)[:size].reshape(shape)
