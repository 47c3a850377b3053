"""Decoded images in memory, shared by the loader's worker processes, up to a number of gigabytes.

The memory is an anonymous shared mapping, made before the workers are forked, so that all of them see what
one decodes. It is allocated as it fills, and does not depend on the size of /dev/shm. Images never change, so
no lock is needed: a slot is written, then its flag is set, and two workers that fill the same slot write the
same bytes.
"""

from __future__ import annotations

import mmap

import numpy as np

from util.errors import UserError


class ImageCache:
    """Keeps the first of `count` images (height, width, 3) uint8 that fit into `gigabytes` (1e9 bytes); 0:
    none.

    Workers that are not forked (macOS, Windows) get a copy that keeps none, since they cannot share the
    memory.
    """

    def __init__(self, count: int, height: int, width: int, gigabytes: float) -> None:
        self.shape = (height, width, 3)
        self._bytes = height * width * 3
        self.capacity = max(0, min(count, int(gigabytes * 1e9 // self._bytes)))
        self._closed_and_flags = bytearray(1)
        if self.capacity:
            try:
                self._memory = mmap.mmap(-1, self.capacity * self._bytes)
                self._closed_and_flags = mmap.mmap(-1, 1 + self.capacity)
            except OSError as error:
                found = (
                    f"cannot reserve {self.capacity * self._bytes / 1e9:.1f} GB for decoded images ({error})"
                )
                raise UserError(f"{found}. Lower --cache_gb; 0 turns the cache off.") from error

    def get(self, index: int) -> np.ndarray | None:
        """A copy of the image (H, W, 3), or None if it is not cached."""
        if index >= self.capacity or self._closed or not self._closed_and_flags[1 + index]:
            return None
        image = self._slot(index).copy()
        # If the cache was closed meanwhile, the memory may have been freed before it was copied.
        return None if self._closed else image

    def put(self, index: int, image: np.ndarray) -> None:
        """Keep an image if there is room for its index."""
        if index < self.capacity and not self._closed:
            assert image.shape == self.shape and image.dtype == np.uint8, (image.shape, image.dtype)
            self._slot(index)[:] = image
            self._closed_and_flags[1 + index] = 1

    def close(self) -> None:
        """Turn the cache off for every process, for good, and free its memory where the system can."""
        if self._closed:
            return
        self._closed_and_flags[0] = 1
        if self.capacity and hasattr(mmap, "MADV_REMOVE"):
            self._memory.madvise(mmap.MADV_REMOVE)

    @property
    def held(self) -> int:
        """How many images are cached."""
        return 0 if self._closed else sum(self._closed_and_flags[1:])

    @property
    def _closed(self) -> bool:
        return bool(self._closed_and_flags[0])

    def _slot(self, index: int) -> np.ndarray:
        start = index * self._bytes
        return np.frombuffer(self._memory, np.uint8, self._bytes, start).reshape(self.shape)

    def __reduce__(self):
        return ImageCache, (0, *self.shape[:2], 0.0)
