"""The quantities that scores are computed from, and maps of reconstruction errors.

Shapes: B batch, H height, W width, D code size, F features. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from autoencode.metrics.latents import gaussian_log_likelihood, kl
from autoencode.models.detail import smoothed
from autoencode.outliers.patches import SHORT_SIDES, Seen, see
from autoencode.outliers.scores import AUTO, Score, scores_for
from autoencode.pixels import SIGMA2_FLOOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from autoencode.models.autoencoder import Autoencoder
    from autoencode.outliers.detectors import Array

COARSEST_SIDE = 4  # pixels; fewer are too few to measure a scale by

# Brightness and two colour differences, of length 1 and at right angles (after Ohta, Kanade & Sakai 1980).
_COLOURS = F.normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]]), dim=1)
# Far below the distance of two codes that differ in anything.
_CODE_FLOOR = 1e-6
# Relative to the shorter side: wide enough to join the specks of one defect, narrow enough to locate it.
SMOOTHING = 1 / 32


class Measurements:
    """The quantities of a batch of images, each computed once, when it is first asked for.

    Scores name these attributes. Those that need a VAE are None for a plain autoencoder.
    """

    def __init__(self, model: Autoencoder, images: Tensor) -> None:
        """Encode images (B, 3, H, W) in [0, 1].

        Raises:
            ConfigError: the images have another shape or type than the model was trained on.
        """
        self.model, self.images = model, images.cpu()
        self.vectors, self.log_variance = model.encode_distribution(images)

    @cached_property
    def restored(self) -> Tensor:
        """Reconstructions (B, 3, H, W), of a VAE from the posterior mean: equal images have equal scores."""
        return self.model.decode(self.vectors, "faithful")

    @cached_property
    def residuals(self) -> Tensor:
        """Images minus reconstructions, (B, 3, H, W)."""
        return self.images - self.restored

    @cached_property
    def mse(self) -> Tensor:
        """Mean squared error of the reconstructions, (B,)."""
        return self.residuals.square().mean(dim=(1, 2, 3))

    @cached_property
    def kl_nats(self) -> Tensor | None:
        """KL(q(t | x) || N(0, I)), (B,): the paper's score. It depends only on the code."""
        return None if self.log_variance is None else kl(self.vectors, self.log_variance)

    @cached_property
    def negative_elbo_nats(self) -> Tensor | None:
        """The negative of the paper's equation (4), (B,), its likelihood at the mean of the posterior."""
        if self.kl_nats is None:
            return None
        return self.kl_nats - gaussian_log_likelihood(self.images, self.restored, self.model.sigma2.cpu())

    @cached_property
    def _seen(self) -> Seen:
        # Enlarged to what the network needs to tell objects: of images of 32 pixels its patches are few.
        enlargement = max(1.0, SHORT_SIDES[0] / min(self.images.shape[-2:]))
        size = [round(side * enlargement) for side in self.images.shape[-2:]]
        return see(F.interpolate(self.images, size, mode="bicubic", antialias=True).clamp(0, 1))

    @cached_property
    def patches(self) -> Tensor:
        """Features of a pretrained network at each place, (B, h, w, C) float16."""
        return torch.from_numpy(self._seen.patches)

    @cached_property
    def content(self) -> Tensor:
        """Its last feature map averaged over the image, (B, 1280), of length 1."""
        return torch.from_numpy(self._seen.content)

    @cached_property
    def early(self) -> Tensor:
        """Mean and spread of its first feature maps, (B, 160)."""
        return torch.from_numpy(self._seen.early)

    @cached_property
    def path(self) -> Tensor:
        """See `path_descriptors`."""
        return path_descriptors(self.mse, self.model.values_per_image, self.vectors, self.log_variance)

    @cached_property
    def spectrum(self) -> Tensor:
        """See `spectrum_descriptors`."""
        return spectrum_descriptors(self.residuals, self.vectors, self.model.encode(self.restored))


def path_descriptors(mse: Tensor, values: int, mean: Tensor, log_variance: Tensor | None) -> Tensor:
    """Describe the numbers that a likelihood is computed from, before it adds them up (Huang, He & Lui 2024).

    Args:
        mse: (B,) mean squared errors.
        values: number of values of an image, 3 H W.
        mean: (B, D) codes.
        log_variance: (B, D) of the posterior; None for a plain autoencoder.

    Returns:
        (B, 2 or 3): log norm of the residual, norm of the mean, norm of the standard deviation (VAE only).
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
    """Describe the residual by scale and colour, and how far the code of the reconstruction is from the code.

    Args:
        residuals: (B, 3, H, W), image minus reconstruction.
        mean: (B, D), codes of the images.
        mean_again: (B, D), codes of the reconstructions.

    Returns:
        (B, F): `residual_spectrum`; the norm of the mean; the log distance between the two codes, which
        measures how far the image is from those that the model maps to themselves.
    """
    # Without the norm of the standard deviation: it varies too much over normal images to distinguish others.
    returned = ((mean - mean_again).norm(dim=1) + _CODE_FLOOR).log()
    return torch.cat([residual_spectrum(residuals), mean.norm(dim=1)[:, None], returned[:, None]], dim=1)


def measurer(
    model: Autoencoder, scores: Sequence[Score] | None = None
) -> Callable[[Tensor], dict[str, Array]]:
    """Return a function that measures images (B, 3, H, W): the quantities of scores, (B, F) or (B,) each.

    Args:
        model: from `load_model`.
        scores: the scores whose quantities are measured, other than "auto"; by default all that the model
            allows.
    """
    if scores is None:
        scores = scores_for(is_vae=model.is_vae)
    return partial(_measured, model, tuple(dict.fromkeys(one.quantity for one in scores if one.name != AUTO)))


@torch.inference_mode()
def _measured(model: Autoencoder, quantities: tuple[str, ...], images: Tensor) -> dict[str, Array]:
    measurements = Measurements(model, images)
    values = {quantity: getattr(measurements, quantity) for quantity in quantities}
    # float64: distances subtract squares that are nearly equal. Patches are too many for that.
    return {name: (one if one.dtype == torch.half else one.double()).numpy() for name, one in values.items()}


def collected(batches: Iterable[dict[str, Array]], count: int) -> dict[str, Array]:
    """Return the quantities of `count` images, which come a batch at a time; an empty dict for no image."""
    # One array for all: small ones of each batch would lie between the large ones that are freed.
    found: dict[str, Array] = {}
    start = 0
    for batch in batches:
        if not found:
            found = {name: np.empty((count, *one.shape[1:]), one.dtype) for name, one in batch.items()}
        for name, values in batch.items():
            found[name][start : start + len(values)] = values
        start += len(next(iter(batch.values())))
    return {name: values[:start] for name, values in found.items()}


@torch.inference_mode()
def heat_maps(model: Autoencoder, images: Tensor) -> Tensor:
    """Return where images and their reconstructions differ.

    Args:
        model: from `load_model`.
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, H, W), the squared difference averaged over channels and smoothed by a Gaussian of a 32nd of the
        shorter side; its mean over an image is about the mean squared error.
    """
    squared = (images.cpu() - model.reconstruct(images, "faithful")).square().mean(dim=1, keepdim=True)
    sigma_px = SMOOTHING * min(images.shape[-2:])
    return smoothed(squared, sigma_px, reach=max(1, round(3 * sigma_px)))[:, 0]


def coloured(maps: Tensor) -> NDArray[np.uint8]:
    """Return heat maps (B, H, W) as pixels (B, H, W, 3) in 0..255, dark to bright on one scale for all."""
    from matplotlib import colormaps  # imported late: it takes a while

    largest = float(maps.max())
    shares = (maps / largest if largest > 0 else maps).sqrt().numpy()
    pixels: NDArray[np.uint8] = (colormaps["inferno"](shares)[..., :3] * 255).round().astype(np.uint8)
    return pixels
