"""The two parts of a VAE's evidence lower bound (Kovenko & Bogach 2020, equations 4, 5 and 7), and its unit.

Shapes: B batch, D code size. Images are (B, 3, H, W) in [0, 1]; N = 3 * H * W is the number of their values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_log_likelihood(images: Tensor, means: Tensor, sigma2: float | Tensor) -> Tensor:
    """log p(x | t) of each image, summed over its values; equation (5).

    Args:
        images: x, (B, 3, H, W).
        means: mu(t), the decoded code, (B, 3, H, W).
        sigma2: the variance of every value, above 0.

    Returns:
        (B,) nats: -N/2 log(2 pi sigma2) - sum_i (x_i - mu_i)^2 / (2 sigma2).
    """
    sigma2 = torch.as_tensor(sigma2, dtype=torch.float32, device=images.device)
    squared_error = (images - means.float()).square().flatten(1).sum(1)
    return -0.5 * images[0].numel() * torch.log(2 * math.pi * sigma2) - squared_error / (2 * sigma2)


def kl_per_value(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of each code value: (B, D) nats, summed by equation (7)."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp())


def kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(q(t | x) || N(0, I)) of each image, (B,) nats; equation (7)."""
    return kl_per_value(mean, log_variance).sum(1)


def bits_per_dimension(nats_per_image: float, values_per_image: int) -> float:
    """Negative log-likelihood (or its bound) as bits a value of the 8-bit image.

    The model's density lives on [0, 1]; an image of 256 levels has 8 bits a value more (Theis et al. 2016).
    """
    return nats_per_image / (values_per_image * math.log(2)) + 8
