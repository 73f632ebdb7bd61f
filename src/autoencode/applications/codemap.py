"""Codes laid out in a plane: their first two principal components, in units of what they change in an image.

Shapes: N images, D code size. Codes are (N, D).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.models.autoencoder import Autoencoder

Vectors = NDArray[np.float32]
Array = NDArray[np.float64]


class CodeMap(NamedTuple):
    """Where codes lie.

    Attributes:
        plane: (N, 2) float64, centred; the first column varies most.
        explained: share of the variance of the codes that the plane holds, in [0, 1].
    """

    plane: Array
    explained: float


def code_map(model: Autoencoder, codes: Vectors) -> CodeMap:
    """Lay out codes (N, D), N at least 1, by principal component analysis."""
    centred = (codes - codes.mean(0, np.float64)) * effects(model, codes)
    # The covariance is small whatever the number of images; a decomposition of the codes themselves is not.
    variances, directions = np.linalg.eigh(centred.T @ centred)
    variances, kept = variances[::-1].clip(min=0), directions[:, ::-1][:, :2]
    plane = np.zeros((len(codes), 2))
    # The largest value of each direction is positive, so that equal codes give equal maps.
    signs = np.sign(kept[np.abs(kept).argmax(0), np.arange(kept.shape[1])])
    plane[:, : kept.shape[1]] = centred @ (kept * signs)
    return CodeMap(plane, float(variances[:2].sum() / max(variances.sum(), 1e-12)))


def effects(model: Autoencoder, codes: Vectors) -> Array:
    """Return how much a unit of each code value (D,) changes the image, at the mean of codes (N, D).

    Codes may be scaled at will without changing what the model does (those of `best` all vary alike), so
    their own variances say nothing.
    """
    wide = codes.astype(np.float64)
    mean, spread = wide.mean(0), np.maximum(wide.std(0), 1e-6)
    moved = torch.from_numpy(mean + np.diag(spread)).float()
    changes = model.decode(moved) - model.decode(torch.from_numpy(mean)[None].float())
    found: Array = changes.flatten(1).norm(dim=1).double().numpy() / spread
    return found
