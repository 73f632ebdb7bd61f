"""How unlike the training images an image is, by several measures; every score is larger for stranger images.

`measure` says what a model makes of images, `TrainingStatistics` what is ordinary, and its `scores` compare
the two. The path and spectrum scores are two-sided: an image that is reconstructed unusually well is as
strange as one reconstructed badly. A likelihood alone calls images simpler than the training images more
ordinary than those (Nalisnick et al. 2019a).

Shapes: B batch, N images, D code size, F descriptors. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from autoencode.errors import ConfigError
from autoencode.models.autoencoder import SIGMA2_FLOOR, Autoencoder

Score = Literal["spectrum", "path", "mahalanobis", "knn", "reconstruction", "kl", "elbo", "typicality"]
SCORES: tuple[Score, ...] = get_args(Score)
VAE_SCORES: tuple[Score, ...] = ("kl", "elbo", "typicality")
DEFAULT_SCORE: Score = "spectrum"

NEIGHBOURS = 5
COARSEST_SIDE = 4  # pixels; fewer are too few to measure a scale by

# Brightness and two colour differences, of length 1 and at right angles (after Ohta, Kanade & Sakai 1980).
_COLOURS = F.normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]]), dim=1)
# Far below the distance of two codes that differ in anything.
_CODE_FLOOR = 1e-6
# Descriptors that hardly vary in training would weigh any rounding as evidence.
_SCALE_FLOOR = 1e-3

Array = NDArray[np.float64]


class Measured(NamedTuple):
    """What a model makes of N images, float64.

    Attributes:
        codes: (N, D), posterior means for a VAE.
        mse: (N,) mean squared error of the reconstruction.
        kl_nats: (N,), see `kl_divergence`; None for a plain autoencoder.
        negative_elbo_nats: (N,), see `negative_elbo`; None for a plain autoencoder.
        path: (N, 2 or 3), see `path_descriptors`.
        spectrum: (N, F), see `spectrum_descriptors`.
    """

    codes: Array
    mse: Array
    kl_nats: Array | None
    negative_elbo_nats: Array | None
    path: Array
    spectrum: Array


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(q(t | x) || N(0, I)) of each image, (B,) nats: Kovenko & Bogach 2020, equation (7).

    It is the paper's outlier score. It sees the code alone, and nothing of what the code leaves out.
    """
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)


def negative_elbo(mse: Tensor, kl_nats: Tensor, sigma2: float, values: int) -> Tensor:
    """Negative of Kovenko & Bogach 2020, equation (4), of each image, (B,) nats.

    N/2 log(2 pi sigma2) + N mse / (2 sigma2) + KL, for N values of an image. The likelihood is taken at the
    mean of the posterior rather than averaged over it, so that equal images have equal scores.
    """
    return 0.5 * values * (math.log(2 * math.pi * sigma2) + mse / sigma2) + kl_nats


def path_descriptors(mse: Tensor, values: int, mean: Tensor, log_variance: Tensor | None) -> Tensor:
    """(B, 2 or 3): log norm of the residual, norm of the mean, norm of the standard deviation (VAE only).

    What the likelihood is computed from, before it is reduced to one number (Huang, He & Lui 2024).
    """
    parts = [0.5 * (values * (mse + SIGMA2_FLOOR)).log(), mean.norm(dim=1)]
    if log_variance is not None:
        parts.append((0.5 * log_variance).exp().norm(dim=1))
    return torch.stack(parts, dim=1)


def residual_spectrum(residuals: Tensor) -> Tensor:
    """Log energy of residuals at each scale and in each colour direction.

    A scale holds what one halving of the image loses, as in the pyramid of Burt & Adelson 1983, with averages
    over 2x2 squares and nearest-neighbour enlargement; the last is what is left at a side of about 4 pixels.

    Args:
        residuals: (B, 3, H, W), image minus reconstruction.

    Returns:
        (B, 3 * scales), finest scale first, natural logarithms.
    """
    level = torch.einsum("ij,bjhw->bihw", _COLOURS.to(residuals), residuals)
    energies = []
    while min(level.shape[-2:]) > COARSEST_SIDE and not any(side % 2 for side in level.shape[-2:]):
        coarser = F.avg_pool2d(level, 2)
        energies.append((level - F.interpolate(coarser, scale_factor=2)).square().mean(dim=(2, 3)))
        level = coarser
    energies.append(level.square().mean(dim=(2, 3)))
    return (torch.cat(energies, dim=1) + SIGMA2_FLOOR).log()


def spectrum_descriptors(residuals: Tensor, mean: Tensor, mean_again: Tensor) -> Tensor:
    """(B, F): the path descriptors with the residual told apart by scale and colour, and the code's return.

    `residual_spectrum`, the norm of the mean, and the log distance between the code of an image and the code
    of its reconstruction: how far the image is from those that the model maps to themselves. The norm of
    the standard deviation is left out: of ordinary images it varies too much to tell others by.

    Args:
        residuals: (B, 3, H, W), image minus reconstruction.
        mean: (B, D), codes of the images.
        mean_again: (B, D), codes of the reconstructions.
    """
    returned = ((mean - mean_again).norm(dim=1) + _CODE_FLOOR).log()
    return torch.cat([residual_spectrum(residuals), mean.norm(dim=1)[:, None], returned[:, None]], dim=1)


@torch.inference_mode()
def measure(model: Autoencoder, images: Tensor) -> Measured:
    """Encode, decode and encode again, and describe what came of it.

    Raises:
        ConfigError: the images have another shape or type than the model was trained on.
    """
    mean, log_variance = model.encode_distribution(images)
    restored = model.decode(mean)
    residuals = images.cpu() - restored
    mse, values = residuals.square().mean(dim=(1, 2, 3)), model.values_per_image
    path = path_descriptors(mse, values, mean, log_variance)
    kl_nats = elbo_nats = None
    if log_variance is not None:
        kl_nats = kl_divergence(mean.double(), log_variance.double())
        elbo_nats = negative_elbo(mse.double(), kl_nats, float(model.sigma2), values)
    return Measured(
        _array(mean),
        _array(mse),
        None if kl_nats is None else _array(kl_nats),
        None if elbo_nats is None else _array(elbo_nats),
        _array(path),
        _array(spectrum_descriptors(residuals, mean, model.encode(restored))),
    )


def joined(parts: Sequence[Measured]) -> Measured:
    """Measurements of several batches, at least one, as one."""
    kl_nats = [part.kl_nats for part in parts if part.kl_nats is not None]
    elbo_nats = [part.negative_elbo_nats for part in parts if part.negative_elbo_nats is not None]
    return Measured(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.mse for part in parts]),
        np.concatenate(kl_nats) if kl_nats else None,
        np.concatenate(elbo_nats) if elbo_nats else None,
        np.concatenate([part.path for part in parts]),
        np.concatenate([part.spectrum for part in parts]),
    )


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

    def distance(self, values: Array) -> Array:
        """Mahalanobis distance (Mahalanobis 1936) of rows (N, F): (N,)."""
        distances: Array = np.linalg.norm((values - self.mean) / self.scale @ self.whitening, axis=1)
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


def neighbour_distance(codes: Array, training_codes: Array, neighbours: int = NEIGHBOURS) -> Array:
    """Euclidean distance (N,) to the k-th nearest training code (Ramaswamy, Rastogi & Shim 2000).

    Args:
        codes: (N, D).
        training_codes: (M, D).
        neighbours: k; M where that is less.
    """
    products = codes @ training_codes.T
    squares = np.square(codes).sum(1)[:, None] + np.square(training_codes).sum(1) - 2 * products
    nth = min(neighbours, len(training_codes)) - 1
    distances: Array = np.sqrt(np.partition(squares, nth, axis=1)[:, nth].clip(min=0))
    return distances


class TrainingStatistics(NamedTuple):
    """What is ordinary, from training images.

    Attributes:
        path: of `path_descriptors`.
        spectrum: of `spectrum_descriptors`.
        codes: of codes.
        training_codes: (M, D) codes themselves.
        negative_elbo_nats: mean over the images; None for a plain autoencoder.
    """

    path: Gaussian
    spectrum: Gaussian
    codes: Gaussian
    training_codes: Array
    negative_elbo_nats: float | None

    def scores(self, measured: Measured) -> dict[Score, Array]:
        """Every score the model has, (N,) each. `typicality` is that of Nalisnick et al. 2019b for one image.

        spectrum, path and mahalanobis (of the code) are Mahalanobis distances, knn a distance of codes,
        reconstruction a mean squared error; kl and elbo are in nats, and typicality is |elbo - its mean|.
        """
        found: dict[Score, Array] = {
            "spectrum": self.spectrum.distance(measured.spectrum),
            "path": self.path.distance(measured.path),
            "mahalanobis": self.codes.distance(measured.codes),
            "knn": neighbour_distance(measured.codes, self.training_codes),
            "reconstruction": measured.mse,
        }
        if measured.kl_nats is not None and measured.negative_elbo_nats is not None:
            found["kl"], found["elbo"] = measured.kl_nats, measured.negative_elbo_nats
            found["typicality"] = np.abs(measured.negative_elbo_nats - (self.negative_elbo_nats or 0.0))
        return found


def training_statistics(measured: Measured) -> TrainingStatistics:
    """Learn what is ordinary.

    Raises:
        ConfigError: of fewer than two images.
    """
    if len(measured.mse) < 2:
        raise ConfigError(f"What is ordinary is learned from 2 or more images; there is {len(measured.mse)}.")
    elbo = measured.negative_elbo_nats
    return TrainingStatistics(
        fit_gaussian(measured.path),
        fit_gaussian(measured.spectrum),
        fit_gaussian(measured.codes),
        measured.codes,
        None if elbo is None else float(elbo.mean()),
    )


def check_score(score: str, model: Autoencoder) -> None:
    """Refuse a score that does not exist, or that this model does not have.

    Raises:
        ConfigError: with the scores it does have.
    """
    if score not in SCORES:
        raise ConfigError(f"Unknown score {score!r}. Choose one of: {', '.join(SCORES)}.")
    if score in VAE_SCORES and not model.is_vae:
        others = ", ".join(other for other in SCORES if other not in VAE_SCORES)
        raise ConfigError(
            f"The score {score} is a VAE's, and this model is a plain autoencoder. Choose one of: {others}."
        )


def _array(values: Tensor) -> Array:
    array: Array = values.double().numpy()
    return array
