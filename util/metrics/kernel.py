"""Kernel distance: squared maximum mean discrepancy of a cubic kernel (Binkowski et al., 2018, arXiv 1801.01401).

    k(x, y) = (x . y / D + 1)^3
    MMD^2   = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

Without the diagonal terms the estimate is unbiased: two sets of one distribution give 0 on average, at any
number of images, and single values below 0 are right. It is the KID when the features are those of the FID
Inception network.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from util.errors import UserError


class KernelDistance(NamedTuple):
    """Mean over the random subsets and standard deviation between them, not multiplied by 100 or 1000."""

    mean: float
    std: float
    subset_size: int


def polynomial_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD^2 of the sets x (M, D) and y (N, D), M and N at least 2."""
    m, n = len(x), len(y)
    kxx, kyy, kxy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within_x = (kxx.sum() - np.trace(kxx)) / (m * (m - 1))
    within_y = (kyy.sum() - np.trace(kyy)) / (n * (n - 1))
    return float(within_x + within_y - 2 * kxy.mean())


def kernel_inception_distance(
    features1: np.ndarray,
    features2: np.ndarray,
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
) -> KernelDistance:
    """Mean MMD^2 over random pairs of subsets of the features (N1, D) and (N2, D).

    A subset has no repeats. `subset_size` None takes 1000 images, or the smaller set whole. The same seed gives
    the same number.
    Raises `UserError` for a subset larger than a set or smaller than two.
    """
    features1, features2 = np.asarray(features1, np.float64), np.asarray(features2, np.float64)
    fewest = min(len(features1), len(features2))
    subset_size = min(1000, fewest) if subset_size is None else subset_size
    if not 2 <= subset_size <= fewest:
        raise UserError(
            f"kernel distance: subsets of {subset_size} images cannot be drawn from sets of {len(features1)} and "
            f"{len(features2)}; a subset needs two images or more, and no more than the smaller set has"
        )
    rng = np.random.default_rng(seed)
    values = [
        polynomial_mmd2(
            features1[rng.choice(len(features1), subset_size, replace=False)],
            features2[rng.choice(len(features2), subset_size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(values)), float(np.std(values)), subset_size)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3  # (M, N)
