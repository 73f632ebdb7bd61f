"""Distances of vectors from those of ordinary images: to a Gaussian around them, and to the nearest of them.

Shapes: N rows to measure, M ordinary rows, F values in a row.

How unlike the training images an image is, by several measures; every score is larger for stranger images.

`measurer` says what is measured of images, `TrainingStatistics` what is ordinary, and its `scores` compare
the two. The path and spectrum scores are two-sided: an image that is reconstructed unusually well is as
strange as one reconstructed badly. A likelihood alone calls images simpler than the training images more
ordinary than those (Nalisnick et al. 2019).

Shapes: B batch, N images, D code size, F descriptors. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from autoencode.embedding import image_encoder
from autoencode.errors import ConfigError
from autoencode.metrics.latents import gaussian_log_likelihood, kl
from autoencode.pixels import SIGMA2_FLOOR

if TYPE_CHECKING:
    from autoencode.models.autoencoder import Autoencoder

if TYPE_CHECKING:
    from autoencode.configuration import Embedding

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


Score = Literal["spectrum", "path", "mahalanobis", "knn", "reconstruction", "kl", "elbo"]
SCORES: tuple[Score, ...] = get_args(Score)
VAE_SCORES: tuple[Score, ...] = ("kl", "elbo")
PRETRAINED_SCORES: tuple[Score, ...] = ("mahalanobis", "knn")
DEFAULT_SCORES: dict[Embedding, Score] = {"code": "spectrum", "pretrained": "mahalanobis"}

COARSEST_SIDE = 4  # pixels; fewer are too few to measure a scale by

# Brightness and two colour differences, of length 1 and at right angles (after Ohta, Kanade & Sakai 1980).
_COLOURS = F.normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]]), dim=1)
# Far below the distance of two codes that differ in anything.
_CODE_FLOOR = 1e-6

# What is measured of N images, each (N,) or a row an image:
#   vectors             (N, D) codes, posterior means for a VAE; or (N, F) pretrained features, then alone
#   mse                 of the reconstruction, a value
#   kl_nats             KL(q(t | x) || N(0, I)), the paper's score: it sees the code alone  (VAE only)
#   negative_elbo_nats  the negative of the paper's equation (4), its likelihood taken at the mean of the
#                       posterior, so that equal images have equal scores  (VAE only)
#   path, spectrum      see `path_descriptors` and `spectrum_descriptors`
Quantity = Literal["vectors", "mse", "kl_nats", "negative_elbo_nats", "path", "spectrum"]
Measured = dict[Quantity, Array]

# What a Gaussian is fitted to; the scores that are Mahalanobis distances; those that are a quantity itself.
_FITTED: tuple[Quantity, ...] = ("spectrum", "path", "vectors")
_DISTANCES: dict[Score, Quantity] = {"path": "path", "mahalanobis": "vectors"}
_QUANTITIES: dict[Score, Quantity] = {
    "reconstruction": "mse",
    "kl": "kl_nats",
    "elbo": "negative_elbo_nats",
}


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
    images, restored = images.cpu(), model.decode(mean)
    residuals = images - restored
    mse = residuals.square().mean(dim=(1, 2, 3))
    found: dict[Quantity, Tensor] = {
        "vectors": mean,
        "mse": mse,
        "path": path_descriptors(mse, model.values_per_image, mean, log_variance),
        "spectrum": spectrum_descriptors(residuals, mean, model.encode(restored)),
    }
    if log_variance is not None:
        found["kl_nats"] = kl(mean, log_variance)
        likelihood = gaussian_log_likelihood(images, restored, model.sigma2.cpu())
        found["negative_elbo_nats"] = found["kl_nats"] - likelihood
    return {quantity: values.double().numpy() for quantity, values in found.items()}


def measurer(model: Autoencoder, embedding: Embedding) -> Callable[[Tensor], Measured]:
    """Return what measures images (B, 3, H, W): `measure`, or pretrained features in place of the model.

    Raises:
        ConfigError: there are no such features.
        MissingExtraError: pretrained features need the optional part `eval`.
    """
    encoder = image_encoder(model, embedding)
    if embedding == "code":
        return partial(measure, model)
    return lambda images: {"vectors": encoder.encode(images).astype(np.float64)}


def joined(parts: Sequence[Measured]) -> Measured:
    """Measurements of several batches, at least one, as one."""
    return {quantity: np.concatenate([part[quantity] for part in parts]) for quantity in parts[0]}


class TrainingStatistics(NamedTuple):
    """What is ordinary, from training images.

    Attributes:
        gaussians: fitted to the vectors; to path and spectrum where they were measured.
        vectors: (M, D) codes or pretrained features themselves.
        spectra: (M, F) spectrum descriptors, whitened by their Gaussian; None where they were not measured.
    """

    gaussians: dict[Quantity, Gaussian]
    vectors: Array
    spectra: Array | None

    def scores(self, measured: Measured) -> dict[Score, Array]:
        """Every score there is, (N,) each.

        spectrum is the distance to the fifth nearest training image by whitened descriptors: ordinary images
        may be of several kinds, which one Gaussian would join. path and mahalanobis (of the vectors) are
        Mahalanobis distances, knn is a distance of vectors, reconstruction a mean squared error; kl and elbo
        are in nats.
        """
        found = {
            score: self.gaussians[quantity].distance(measured[quantity])
            for score, quantity in _DISTANCES.items()
            if quantity in measured
        }
        if self.spectra is not None:
            whitened = self.gaussians["spectrum"].whitened(measured["spectrum"])
            found["spectrum"] = neighbour_distance(whitened, self.spectra)
        found["knn"] = neighbour_distance(measured["vectors"], self.vectors)
        return found | {score: measured[of] for score, of in _QUANTITIES.items() if of in measured}


def training_statistics(measured: Measured) -> TrainingStatistics:
    """Learn what is ordinary.

    Raises:
        ConfigError: of fewer than two images.
    """
    count = len(measured["vectors"])
    if count < 2:
        raise ConfigError(f"What is ordinary is learned from 2 or more images; there is {count}.")
    gaussians = {of: fit_gaussian(measured[of]) for of in _FITTED if of in measured}
    spectra = gaussians["spectrum"].whitened(measured["spectrum"]) if "spectrum" in measured else None
    return TrainingStatistics(gaussians, measured["vectors"], spectra)


def check_score(score: str, model: Autoencoder, embedding: Embedding = "code") -> None:
    """Reject a score that does not exist, or that is not to be had from this model or these features.

    Raises:
        ConfigError: with the scores that are.
    """
    if score not in SCORES:
        raise ConfigError(f"Unknown score {score!r}. Choose one of: {', '.join(SCORES)}.")
    if embedding == "pretrained" and score not in PRETRAINED_SCORES:
        raise ConfigError(
            f"The score {score} needs a reconstruction or a code, and pretrained features have neither. "
            f"Choose one of: {', '.join(PRETRAINED_SCORES)}."
        )
    if score in VAE_SCORES and not model.is_vae:
        others = ", ".join(other for other in SCORES if other not in VAE_SCORES)
        raise ConfigError(
            f"The score {score} is a VAE's, and this model is a plain autoencoder. Choose one of: {others}."
        )
