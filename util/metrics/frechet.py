"""Frechet distance of the Gaussians fitted to two sets of features (Heusel et al., 2017, arXiv 1706.08500).

    d^2 = |mu_1 - mu_2|^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^{1/2})

It is the FID if the features are those of the FID Inception network, and must not be called so otherwise.

With C_i = L_i L_i^T the last trace is the sum of the singular values of L_1^T L_2. This avoids the square
root of a product of matrices, which loses half of the digits if a covariance is singular, and with fewer
images than features (120 against 2048) every covariance is. The factors L_i come straight from the centred
features.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg

from util.errors import UserError


def frechet_distance(features1: np.ndarray, features2: np.ndarray) -> float:
    """Squared Frechet distance of two feature sets, (N1, D) and (N2, D), N >= 2.

    Means, and covariances over N - 1, in float64.
    """
    (mean1, factor1), (mean2, factor2) = _moments(features1), _moments(features2)
    cross = linalg.svdvals(factor1.T @ factor2).sum()
    squared = ((mean1 - mean2) ** 2).sum() + (factor1**2).sum() + (factor2**2).sum() - 2 * cross
    return max(float(squared), 0.0)  # rounding can give -1e-13 for equal sets


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean (D,) of features (N, D), and L (D, K) with covariance L L^T."""
    if len(features) < 2:
        raise UserError("Frechet distance: a single image has no covariance; give two or more")
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    root = features - mean  # X^T X / (N - 1) is the covariance
    if len(root) > len(mean):
        root = linalg.qr(root, mode="r")[0][: len(mean)]  # R^T R = X^T X with fewer rows
    return mean, root.T / np.sqrt(len(features) - 1)
