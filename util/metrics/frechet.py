"""Frechet distance of two Gaussians, and of two sets of features (Heusel et al., 2017, arXiv 1706.08500).

    d^2 = |mu_1 - mu_2|^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^{1/2})

It is the FID when the features are those of the FID Inception network, and must not be called so otherwise.

With C_i = L_i L_i^T the last trace is the sum of the singular values of L_1^T L_2. That needs no square root
of a product of matrices, which loses half of the digits when a covariance is singular, and with fewer images
than features (120 against 2048) every covariance is. The factors can come straight from the centred features.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg

from util.errors import UserError


def frechet_distance(mu1: np.ndarray, cov1: np.ndarray, mu2: np.ndarray, cov2: np.ndarray) -> float:
    """Squared Frechet distance of N(mu1, cov1) and N(mu2, cov2).

    mu: (D,) or a number; cov: (D, D) or a number, symmetric and positive semi-definite, of any rank.
    Raises `UserError` where the shapes differ or a matrix is not a covariance.
    """
    mu1, mu2 = np.atleast_1d(mu1).astype(np.float64), np.atleast_1d(mu2).astype(np.float64)
    cov1, cov2 = np.atleast_2d(cov1).astype(np.float64), np.atleast_2d(cov2).astype(np.float64)
    dim = len(mu1)
    if mu2.shape != (dim,) or cov1.shape != (dim, dim) or cov2.shape != (dim, dim):
        raise UserError(
            f"Frechet distance: means of shape {mu1.shape} and {mu2.shape} and covariances of shape {cov1.shape} "
            f"and {cov2.shape} do not belong together; both sides need the same number of features"
        )
    return _distance(mu1, _factor(cov1), mu2, _factor(cov2))


def frechet_distance_of_features(features1: np.ndarray, features2: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to two feature sets, (N1, D) and (N2, D), N >= 2.

    Means, and covariances over N - 1, in float64. Raises `UserError` for fewer than two rows or different D.
    """
    features1, features2 = np.asarray(features1, np.float64), np.asarray(features2, np.float64)
    if features1.shape[1] != features2.shape[1]:
        raise UserError(f"Frechet distance: {features1.shape[1]} features against {features2.shape[1]}")
    sides = []
    for features in (features1, features2):
        if len(features) < 2:
            raise UserError("Frechet distance: a single image has no covariance; give two or more")
        mean = features.mean(axis=0)
        root = features - mean  # X^T X / (N - 1) is the covariance
        if len(root) > len(mean):
            root = linalg.qr(root, mode="r")[0][: len(mean)]  # R^T R = X^T X with fewer rows
        sides += [mean, root.T / np.sqrt(len(features) - 1)]
    return _distance(*sides)


def _distance(mu1: np.ndarray, factor1: np.ndarray, mu2: np.ndarray, factor2: np.ndarray) -> float:
    """The formula above, from means (D,) and factors L (D, K) of the covariances."""
    cross = linalg.svdvals(factor1.T @ factor2).sum()
    squared = ((mu1 - mu2) ** 2).sum() + (factor1**2).sum() + (factor2**2).sum() - 2 * cross
    return max(float(squared), 0.0)  # rounding can leave equal sets at -1e-13


def _factor(covariance: np.ndarray) -> np.ndarray:
    """L with L L^T = covariance, (D, D)."""
    if not np.isfinite(covariance).all() or not np.allclose(covariance, covariance.T, rtol=1e-5, atol=1e-8):
        raise UserError("Frechet distance: a matrix given as a covariance is not finite and symmetric")
    values, vectors = linalg.eigh(covariance)
    if values[0] < -1e-6 * max(values[-1], 1.0):
        raise UserError(f"Frechet distance: a covariance has the negative eigenvalue {values[0]:.3g}")
    return vectors * np.sqrt(values.clip(min=0))
