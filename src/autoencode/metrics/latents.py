"""Measures of codes: the two parts of a VAE's evidence lower bound, its unit, and active dimensions.

Equations are those of Kovenko & Bogach 2020. Shapes: B batch, D code size. Images are (B, 3, H, W) in [0, 1];
N = 3 * H * W is the number of their values.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

ACTIVE_VARIANCE = 0.01  # of Burda et al. 2016


def gaussian_log_likelihood(images: Tensor, means: Tensor, sigma2: float | Tensor) -> Tensor:
    """Return log p(x | t) of each image, summed over its values; equation (5).

    Args:
        images: x, (B, 3, H, W).
        means: mu(t), the decoded code, (B, 3, H, W).
        sigma2: the variance of every value, above 0.

    Returns:
        (B,) nats: -N/2 log(2 pi sigma2) - sum_i (x_i - mu_i)^2 / (2 sigma2).
    """
    # In fp32 also under autocast: the sum over an image's values has more digits than bf16 keeps.
    if not isinstance(sigma2, Tensor):  # filled on the device: a copy to a GPU would wait for it
        sigma2 = torch.full((), sigma2, dtype=torch.float32, device=images.device)
    sigma2 = sigma2.to(images.device, torch.float32)
    squared_error = (images - means.float()).square().flatten(1).sum(1)
    return -0.5 * images[0].numel() * torch.log(2 * math.pi * sigma2) - squared_error / (2 * sigma2)


def kl_per_dimension(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_variance)) || N(0, 1)) of each code dimension: (B, D) nats, equation (7)."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp())


def kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(q(t | x) || N(0, I)) of each image, (B,) nats; equation (7)."""
    return kl_per_dimension(mean, log_variance).sum(1)


def bits_per_dimension(nats_per_image: float, values_per_image: int) -> float:
    """Return the negative log-likelihood (or its bound) in bits per value of the 8-bit image.

    The model's density lives on [0, 1]; an image of 256 levels has 8 bits per value more (Theis et al. 2016).
    """
    return nats_per_image / (values_per_image * math.log(2)) + 8


class RunningVariance:
    """Variance of each column over rows that come in parts, in memory of one part (Chan et al. 1979).

    Attributes:
        count: rows so far.
        mean: (D,) float64, on the GPU of the rows where that is CUDA's; else on the CPU.
    """

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, torch.zeros(0), torch.zeros(0)

    def add(self, rows: Tensor) -> None:
        """Take in rows (B, D), at least one, any device; all calls with the same."""
        # In fp64 and about the mean: sums of squares lose every digit where the mean is a million deviations.
        values = in_fp64(rows)
        variance, mean = torch.var_mean(values, dim=0, correction=0)
        self._merge(len(values), mean, variance * len(values))

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if self.count:
            difference, both = mean - self.mean, self.count + count
            squares = squares + self._squares + difference.square() * (self.count * count / both)
            mean = self.mean + difference * (count / both)
        self.count, self.mean, self._squares = self.count + count, mean, squares

    @property
    def variance(self) -> Tensor:
        """(D,) float64 on the CPU: mean squared distance from the mean."""
        return (self._squares / self.count).cpu()

    def on_cpu(self) -> RunningVariance:
        """Return it with its numbers on the CPU, from where another process can read them."""
        moved = RunningVariance()
        moved.count, moved.mean, moved._squares = self.count, self.mean.cpu(), self._squares.cpu()
        return moved


def in_fp64(values: Tensor) -> Tensor:
    """Return values without a graph in 64 bits: on a GPU of CUDA where they are there, else on the CPU.

    To read a number on a GPU is to wait for all that it has to do, so sums stay there; MPS has no 64 bits.
    """
    values = values.detach()
    return (values if values.is_cuda else values.cpu()).double()


def merged(parts: Iterable[RunningVariance]) -> RunningVariance:
    """Return the variance over the rows of all parts together."""
    whole = RunningVariance()
    for part in parts:
        if part.count:
            whole._merge(part.count, part.mean, part._squares)
    return whole


def active_units(variance: Tensor) -> int:
    """Count the code dimensions whose posterior mean varies over the data: Burda et al. 2016, section 5.3.

    A dimension u is active if Var_x(E[u | x]) > 0.01; the others have collapsed onto the prior.

    Args:
        variance: (D,) Var_x(E[u | x]); see `RunningVariance`.
    """
    return int((variance > ACTIVE_VARIANCE).sum())
