"""Distances of two sets of images, by features (Frechet, kernel) or by patches (sliced Wasserstein)."""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import linalg, ndimage

PATCH, PATCHES_PER_IMAGE = 7, 128  # pixels a side
SMALLEST_LEVEL = 16  # pixels a side
_BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def frechet_distance(features1: np.ndarray, features2: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets (N1, D) and (N2, D), N >= 2, in float64.

        d^2 = |mu_1 - mu_2|^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^{1/2})        covariances over N - 1

    It is the FID (Heusel et al., 2017, arXiv 1706.08500) of features of the FID Inception network. With C_i =
    L_i L_i^T the last trace is the sum of the singular values of L_1^T L_2. A root of C_1 C_2 would lose half
    of the digits where a covariance is singular, and with fewer images than features every one is.
    """
    (mean1, factor1), (mean2, factor2) = _moments(features1), _moments(features2)
    cross = linalg.svdvals(factor1.T @ factor2).sum()
    squared = ((mean1 - mean2) ** 2).sum() + (factor1**2).sum() + (factor2**2).sum() - 2 * cross
    return max(float(squared), 0.0)  # rounding can give -1e-13 for equal sets


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean (D,) of features (N, D), and L (D, K) with covariance L L^T."""
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    root = features - mean  # X^T X / (N - 1) is the covariance
    if len(root) > len(mean):
        root = linalg.qr(root, mode="r")[0][: len(mean)]  # R^T R = X^T X with fewer rows
    return mean, root.T / np.sqrt(len(features) - 1)


def polynomial_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy of k(a, b) = (a . b / D + 1)^3, of x (M, D) and y (N, D), M, N >= 2.

        MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    Unbiased: two sets of one distribution give 0 on average, so single values may be below 0.
    """

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3  # (M, N)

    def within(a: np.ndarray) -> float:
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def kernel_inception_distance(
    features1: np.ndarray, features2: np.ndarray, subset_size: int, subsets: int = 100, seed: int = 0
) -> tuple[float, float]:
    """KID (Binkowski et al., 2018, arXiv 1801.01401) of features (N, D) of the FID Inception network.

    Mean and deviation of `polynomial_mmd2` over random pairs of subsets, each without repeats.
    """
    sets = [np.asarray(features, np.float64) for features in (features1, features2)]
    rng = np.random.default_rng(seed)
    drawn = (
        [features[rng.choice(len(features), subset_size, replace=False)] for features in sets]
        for _ in range(subsets)
    )
    values = [polynomial_mmd2(*pair) for pair in drawn]
    return float(np.mean(values)), float(np.std(values))


# ---- sliced Wasserstein distance over Laplacian pyramids (Karras et al., 2018, arXiv 1710.10196, section 5)
#
# Each level of an image's pyramid holds one band of detail, from its size (256) down to 16 pixels. Positions
# of patches depend only on the seed, the image's index in its set and the level, so a set against itself is
# 0.


def level_sizes(size: int) -> list[int]:
    """Sides of an image's levels in pixels: size = 16 * 2^k, size / 2, ..., 16."""
    return [size >> level for level in range(size.bit_length()) if size >> level >= SMALLEST_LEVEL]


def fitting_size(side: int, largest: int = 256) -> int:
    """The greatest 16 * 2^k up to `side`, the shorter side of the images in pixels, and `largest`."""
    return SMALLEST_LEVEL << max(0, (min(side, largest) // SMALLEST_LEVEL).bit_length() - 1)


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


def _blur(image: np.ndarray) -> np.ndarray:
    """The separable 5 x 5 binomial filter; edges are mirrored without being repeated."""
    blurred = ndimage.correlate1d(image, _BINOMIAL, axis=1, mode="mirror")
    return ndimage.correlate1d(blurred, _BINOMIAL, axis=2, mode="mirror")


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
        # One direction per row, so that each sort, transport on a line, runs over contiguous memory.
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
