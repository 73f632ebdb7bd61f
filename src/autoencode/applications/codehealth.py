"""Whether the code of a VAE carries information, and whether its prior describes it.

Shapes: B batch, D code size. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

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
        prior_gap_nats: KL(N(m, S) || N(0, I)), nats, where m and S are the mean and covariance of the
            aggregate posterior, that of the codes of all images together. 0 where the codes fill the prior
            as far as two moments tell; samples from the prior then decode to what the decoder knows. Of n
            images it is too large by up to about D^2 / 4n nats, 16 for 256 values and 1,000 images, and by
            far more where n is not well above D.
    """

    kl_nats: Tensor
    mean_variance: Tensor
    prior_gap_nats: float

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
    total, spread = torch.zeros_like(kl), torch.zeros_like(kl)
    products = torch.zeros(size, size, dtype=torch.float64)
    for images in batches:
        posterior = model.encode_distribution(images)
        mean, log_variance = (part.double() for part in posterior if part is not None)
        count += len(mean)
        kl += kl_per_value(mean, log_variance).sum(0)
        total += mean.sum(0)
        spread += log_variance.exp().sum(0)
        products += mean.T @ mean
    if not count:
        raise ConfigError("The health of a code is measured on images, and none were given.")
    centre = total / count
    covariance = products / count - torch.outer(centre, centre)
    aggregate = covariance + torch.diag(spread / count)
    return CodeHealth(kl / count, covariance.diagonal().clamp(min=0), _gap(centre, aggregate))


def _gap(mean: Tensor, covariance: Tensor) -> float:
    """KL of a Gaussian from the standard one: (tr S + m'm - D - log det S) / 2."""
    log_determinant = torch.linalg.slogdet(covariance).logabsdet
    return float(0.5 * (covariance.trace() + mean @ mean - len(mean) - log_determinant))
