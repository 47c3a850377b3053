"""Sliced Wasserstein distance over Laplacian pyramids (Karras et al., 2018, arXiv 1710.10196, section 5).

Each level of an image's Laplacian pyramid holds one band of detail. 128 random 7 x 7 patches are taken from
each level of each image, and a level's patches are normalised per colour channel to mean 0 and deviation 1
over the set. Two sets are compared along 4 x 128 random directions, where optimal transport of points on a
line is sorting. The result is multiplied by 1000 and averaged over the levels, from the image's size (256)
down to 16.

Patch positions depend only on the seed, the image's index in its set and the level. The batch size therefore
changes nothing, and a set against itself is exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import ndimage

PATCH = 7  # pixels a side
PATCHES_PER_IMAGE = 128
SMALLEST_LEVEL = 16  # pixels a side
_BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def level_sizes(size: int) -> list[int]:
    """Sides of an image's levels in pixels: size = 16 * 2^k, size / 2, ..., 16."""
    return [size >> level for level in range(size.bit_length()) if size >> level >= SMALLEST_LEVEL]


def fitting_size(side: int, largest: int = 256) -> int:
    """The greatest 16 * 2^k up to `side`, the shorter side of the images in pixels, and `largest`."""
    size = SMALLEST_LEVEL
    while 2 * size <= min(side, largest):
        size *= 2
    return size


def laplacian_pyramid(image: np.ndarray, levels: int) -> list[np.ndarray]:
    """Bands of an image (C, H, W), float32: (C, H, W), (C, H/2, W/2), ... The last is the remainder."""
    bands = [image.astype(np.float32)]
    for _ in range(levels - 1):
        smaller = _blur(bands[-1])[:, ::2, ::2]
        enlarged = np.zeros_like(bands[-1])
        enlarged[:, ::2, ::2] = smaller
        bands[-1] = bands[-1] - 4 * _blur(enlarged)  # 4: three of four positions are zeros
        bands.append(smaller)
    return bands


def pyramid_patches(images: Iterable[np.ndarray], size: int, seed: int = 0) -> list[np.ndarray]:
    """Patches of N images (3, size, size) of any value range: a float32 array (N, 128, 3, 7, 7) per level."""
    sizes = level_sizes(size)
    levels = [[] for _ in sizes]
    for index, image in enumerate(images):
        for level, band in enumerate(laplacian_pyramid(image, len(sizes))):
            rng = np.random.default_rng((seed, index, level))
            rows, columns = rng.integers(0, sizes[level] - PATCH + 1, (2, PATCHES_PER_IMAGE))
            windows = np.lib.stride_tricks.sliding_window_view(band, (PATCH, PATCH), axis=(1, 2))
            levels[level].append(windows[:, rows, columns].swapaxes(0, 1))  # (128, 3, 7, 7)
    return [np.stack(patches) for patches in levels]


def normalise_patches(patches: np.ndarray) -> np.ndarray:
    """Patches (..., C, 7, 7) to points (N, C * 49), each channel with mean 0 and deviation 1 over the set."""
    patches = patches.reshape(-1, *patches.shape[-3:])
    mean = patches.mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    deviation = patches.std(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    normalised = (patches - mean) / np.where(deviation > 0, deviation, 1)  # a flat channel is 0
    return normalised.reshape(len(patches), -1).astype(np.float32)


def sliced_wasserstein(
    points1: np.ndarray, points2: np.ndarray, repeats: int = 4, directions: int = 128, seed: int = 0
) -> float:
    """Mean Wasserstein-1 distance of two point sets (N, D) along repeats * directions random unit vectors."""
    rng = np.random.default_rng(seed)
    distances = []
    for _ in range(repeats):
        unit = rng.standard_normal((points1.shape[1], directions))
        unit = (unit / np.linalg.norm(unit, axis=0)).astype(points1.dtype)
        # One direction per row, so that each sort runs over contiguous memory.
        projected1, projected2 = (np.sort(unit.T @ points.T, axis=1) for points in (points1, points2))
        distances.append(np.abs(projected1 - projected2).mean(dtype=np.float64))
    return float(np.mean(distances))


def pyramid_distance(
    patches1: Sequence[np.ndarray], patches2: Sequence[np.ndarray], seed: int = 0
) -> list[float]:
    """SWD * 1000 of each level of two sets' `pyramid_patches`, finest first; their mean is reported."""
    return [
        1000 * sliced_wasserstein(normalise_patches(one), normalise_patches(two), seed=seed)
        for one, two in zip(patches1, patches2, strict=True)
    ]


def _blur(image: np.ndarray) -> np.ndarray:
    """The separable 5 x 5 binomial filter; edges are mirrored without being repeated."""
    blurred = ndimage.correlate1d(image, _BINOMIAL, axis=1, mode="mirror")
    return ndimage.correlate1d(blurred, _BINOMIAL, axis=2, mode="mirror")
