"""Distances of vectors from those of ordinary images: to a Gaussian around them, and to the nearest of them.

Shapes: N rows to measure, M ordinary rows, F values in a row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 5
# Values that hardly vary among ordinary rows would weigh any rounding as evidence.
_SCALE_FLOOR = 1e-3

Array = NDArray[np.float64]


class Gaussian(NamedTuple):
    """A Gaussian around what is ordinary: distance = norm of (x - mean) / scale @ whitening.

    Attributes:
        mean: (F,).
        scale: (F,) standard deviations, not below a thousandth of the largest.
        whitening: (F, F), times its transpose the inverse of the correlations.
    """

    mean: Array
    scale: Array
    whitening: Array

    def whitened(self, values: Array) -> Array:
        """Map rows (N, F) so that those of the Gaussian have no correlations and unit variances."""
        mapped: Array = (values - self.mean) / self.scale @ self.whitening
        return mapped

    def distance(self, values: Array) -> Array:
        """Mahalanobis distance (Mahalanobis 1936) of rows (N, F): (N,)."""
        distances: Array = np.linalg.norm(self.whitened(values), axis=1)
        return distances


def fit_gaussian(values: Array) -> Gaussian:
    """Fit to rows (N, F), N at least 2, with the correlations shrunk as by Ledoit & Wolf 2004, section 3.3.

    The shrinkage is at least 1/N: from very few rows the estimate of it is itself too small to be inverted.
    """
    mean, scale = values.mean(0), values.std(0)
    scale = np.maximum(scale, _SCALE_FLOOR * scale.max()) if scale.max() > 0 else np.ones_like(scale)
    standard = (values - mean) / scale
    count, size = standard.shape
    covariance = standard.T @ standard / count
    spread = float(np.trace(covariance)) / size or 1.0
    target = spread * np.eye(size)
    distance = float(np.square(covariance - target).sum())
    noise = (
        float(np.square(np.square(standard).sum(1)).sum()) / count - float(np.square(covariance).sum())
    ) / count
    shrinkage = max(min(noise / distance, 1.0) if distance > 0 else 1.0, 1 / count)
    precision = np.linalg.inv((1 - shrinkage) * covariance + shrinkage * target)
    whitening = np.linalg.cholesky((precision + precision.T) / 2)
    return Gaussian(mean, scale, np.asarray(whitening, np.float64))


def neighbour_distance(rows: Array, ordinary: Array, neighbours: int = NEIGHBOURS) -> Array:
    """Euclidean distance (N,) to the k-th nearest ordinary row (Ramaswamy, Rastogi & Shim 2000).

    Args:
        rows: (N, F).
        ordinary: (M, F).
        neighbours: k; M where that is less.
    """
    products = rows @ ordinary.T
    squares = np.square(rows).sum(1)[:, None] + np.square(ordinary).sum(1) - 2 * products
    nth = min(neighbours, len(ordinary)) - 1
    distances: Array = np.sqrt(np.partition(squares, nth, axis=1)[:, nth].clip(min=0))
    return distances
