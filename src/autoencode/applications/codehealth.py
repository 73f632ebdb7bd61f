"""Whether the code of a VAE carries information, and whether its prior describes it.

Shapes: B batch, D code size. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from autoencode.data.batches import random_seed
from autoencode.errors import ConfigError
from autoencode.evaluation.metrics import active_units
from autoencode.models.autoencoder import Autoencoder
from autoencode.models.likelihood import kl_per_value

# Below this share of active values, the code is wasted on most of its size and that is said.
FEW_ACTIVE = 0.1


@dataclass(frozen=True)
class CodeHealth:
    """What the posteriors of many images say about the code.

    Attributes:
        kl_nats: (D,) KL(q(t_j | x) || N(0, 1)) of each code value, nats, mean over the images; equation (7)
            of Kovenko & Bogach 2020 before its sum.
        mean_variance: (D,) variance over the images of the posterior mean of each value.
        prior_gap_nats: KL(N(m, S) || N(0, I)), nats, at least 0, where m and S are the mean and covariance of
            the aggregate posterior, that of the codes of all images together. 0 where the codes fill the
            prior as far as two moments tell; samples from the prior then decode to what the decoder knows.
            Without the bias of an estimate from few images; None of up to D + 1 of them, which cannot tell.
    """

    kl_nats: Tensor
    mean_variance: Tensor
    prior_gap_nats: float | None

    @property
    def active_units(self) -> int:
        """Code values whose mean varies by more than 0.01 over the images (Burda et al. 2016)."""
        return active_units(self.mean_variance)

    @property
    def warning(self) -> str | None:
        """One sentence on a collapsed code, or None where there is nothing to warn of."""
        size = len(self.mean_variance)
        if self.active_units >= FEW_ACTIVE * size:
            return None
        return (
            f"{self.active_units} of {size} code values carry information; "
            "try a smaller sigma2 (or auto), or a warm-up."
        )


def code_health(model: Autoencoder, batches: Iterable[Tensor]) -> CodeHealth:
    """Measure the code over images.

    Args:
        model: a VAE.
        batches: images (B, 3, H, W) in [0, 1], at least one; read once, so memory does not grow with them.

    Raises:
        ConfigError: the model is no VAE, or there is no image.
    """
    if not model.is_vae:
        raise ConfigError("Only the code of a VAE has a KL and a prior; this model is a plain autoencoder.")
    size = model.config.code_size
    count, kl = 0, torch.zeros(size, dtype=torch.float64)
    means, squares, codes = torch.zeros_like(kl), torch.zeros_like(kl), torch.zeros_like(kl)
    products = torch.zeros(size, size, dtype=torch.float64)
    generator = torch.Generator().manual_seed(random_seed("code health"))
    for images in batches:
        posterior = model.encode_distribution(images)
        mean, log_variance = (part.double() for part in posterior if part is not None)
        count += len(mean)
        kl += kl_per_value(mean, log_variance).sum(0)
        means += mean.sum(0)
        squares += mean.square().sum(0)
        # A draw from each posterior is a draw from the aggregate one, of which the bias is known.
        code = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator).double()
        codes += code.sum(0)
        products += code.T @ code
    if not count:
        raise ConfigError("The health of a code is measured on images, and none were given.")
    variance = (squares / count - (means / count).square()).clamp(min=0)
    centre = codes / count
    covariance = products / count - torch.outer(centre, centre)
    return CodeHealth(kl / count, variance, _gap(centre, covariance, count))


def gap_in_words(gap_nats: float | None) -> str:
    """Return a `prior_gap_nats` as text."""
    return "cannot be told of so few images" if gap_nats is None else f"{gap_nats:.1f} nats"


def _gap(mean: Tensor, covariance: Tensor, count: int) -> float | None:
    """KL of a Gaussian from the standard one, of the moments of `count` codes, without its bias.

    Of the true moments it is (tr S + m'm - D - log det S) / 2. Those of n draws from any Gaussian give the
    trace and m'm right in sum: what the covariance, divided by n, lacks, the mean has too much. The
    log-determinant is off by sum_{i=1..D} digamma((n - i) / 2) + D log(2 / n), by the expectation of that of
    a Wishart matrix of n - 1 degrees of freedom (Bishop 2006, Pattern Recognition, eq. B.81).
    """
    size = len(mean)
    if count <= size + 1:
        return None
    half_degrees = (count - torch.arange(1, size + 1, dtype=torch.float64)) / 2
    bias = torch.digamma(half_degrees).sum() + size * math.log(2 / count)
    log_determinant = torch.linalg.slogdet(covariance).logabsdet - bias
    return max(0.0, float(0.5 * (covariance.trace() + mean @ mean - size - log_determinant)))
