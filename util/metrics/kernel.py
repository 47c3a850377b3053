"""Squared maximum mean discrepancy of a cubic kernel (Binkowski et al., 2018, arXiv 1801.01401).

    k(x, y) = (x . y / D + 1)^3
    MMD^2   = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

Without the diagonal terms the estimate is unbiased: two sets of one distribution give 0 on average, for any
number of images, so single values may be below 0. It is the KID if the features are those of the FID
Inception network.
"""

from __future__ import annotations

import numpy as np

from util.errors import UserError


def polynomial_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD^2 of the sets x (M, D) and y (N, D), M and N at least 2."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3  # (M, N)

    def within(a: np.ndarray) -> float:
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def kernel_inception_distance(
    features1: np.ndarray, features2: np.ndarray, subset_size: int, subsets: int = 100, seed: int = 0
) -> tuple[float, float]:
    """MMD^2 over random pairs of subsets, each without repeats, of features (N1, D) and (N2, D).

    The mean and the standard deviation between subsets, not multiplied by 100 or 1000. Raises `UserError` for
    a subset larger than a set or smaller than two.
    """
    sets = [np.asarray(features, np.float64) for features in (features1, features2)]
    if not 2 <= subset_size <= min(map(len, sets)):
        raise UserError(
            f"kernel distance: subsets of {subset_size} images cannot be drawn from sets of {len(sets[0])} "
            f"and {len(sets[1])}"
        )
    rng = np.random.default_rng(seed)
    values = [
        polynomial_mmd2(
            *(features[rng.choice(len(features), subset_size, replace=False)] for features in sets)
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))
