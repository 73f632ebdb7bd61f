"""The training objective (Kovenko & Bogach 2020, equations 1, 2, 4, 5, 7 and 8).

Shapes: B batch, D code size. Images are (B, 3, H, W) in [0, 1]; N = 3 * H * W is the number of their values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from autoencode.metrics.latents import gaussian_log_likelihood, in_fp64, kl
from autoencode.pixels import SIGMA2_FLOOR

if TYPE_CHECKING:
    from autoencode.configuration import Loss
    from autoencode.models.image_model import Output

# Momentum of the running estimate of sigma2: an average of about 50 batches, enough to follow a falling error
# without the noise of one batch.
SIGMA2_MOMENTUM = 0.98


# Added to the mean squared error of an image before its logarithm: that of a PSNR of 55 dB, better than which
# nothing is to be gained. Rounding to 8 bits is 59 dB.
LOG_FLOOR = 3e-6


class Terms(NamedTuple):
    """The objective of one batch, each a scalar tensor.

    Attributes:
        loss: the value the optimiser minimises.
        reconstruction: for an autoencoder the mean squared or absolute error per value; for a VAE the
            negative log-likelihood, nats per image.
        kl: nats per image; 0 for an autoencoder.
        mse: mean squared error per value.
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor
    mse: Tensor

    def measured(self) -> Tensor:
        """Return the terms as (4,) float64, which an epoch sums over images; see `in_fp64` for the device."""
        return in_fp64(torch.stack([term.detach().float() for term in self]))


def mse_loss(images: Tensor, restored: Tensor) -> Tensor:
    """Mean of (x - G(E(x)))^2 over every value of the batch; equation (1). Differentiable by `restored`."""
    found: Tensor = _MeanSquaredError.apply(images, restored)  # type: ignore[no-untyped-call]
    return found


class _MeanSquaredError(torch.autograd.Function):
    """`torch.nn.functional.mse_loss` with a gradient that lies in memory as the restored images do.

    Its own gradient has channels outermost. With channels innermost, the layers before then read two orders
    at once, or copy one: a twentieth of a step of the paper's network on a CPU (docs/performance.md).
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, restored: Tensor) -> Tensor:  # noqa: ANN401 - torch has no type for it
        ctx.save_for_backward(images, restored)
        return F.mse_loss(restored.float(), images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # noqa: ANN401
        images, restored = ctx.saved_tensors
        difference = restored.float() - images
        return None, difference.mul_(gradient * (2 / difference.numel())).to(restored.dtype)


def l1_loss(images: Tensor, restored: Tensor) -> Tensor:
    """Mean of |x - G(E(x))| over every value of the batch; equation (2)."""
    return F.l1_loss(restored.float(), images)


def log_mse_loss(images: Tensor, restored: Tensor) -> Tensor:
    """Mean over the images of ln(MSE of an image + LOG_FLOOR), the PSNR in other units.

    The mean squared error of a batch is decided by its most damaged images; here a decibel counts the same
    for all of them.
    """
    mse = (restored.float() - images).square().flatten(1).mean(1)
    return (mse + LOG_FLOOR).log().mean()


def terms(loss: Loss, images: Tensor, output: Output, beta: float | Tensor, sigma2: float | Tensor) -> Terms:
    """Return the objective of a batch; for a VAE the negative of equation (4) with beta times the KL (8).

    A VAE's objective is divided by N, so that one learning rate serves every image size; dividing by a
    constant changes no optimum.

    Args:
        loss: "mse", "mae" or "log_mse"; "gaussian" for a VAE's likelihood of variance `sigma2`. A VAE with
            "mse" sums squared errors, which is "gaussian" with sigma2 = 0.5 apart from a constant; with "mae"
            it sums absolute errors, a Laplace likelihood of scale 1.
        images: the clean images, (B, 3, H, W) in [0, 1].
        output: the output of the model for them, or for corrupted versions of them.
        beta: weight of the KL.
        sigma2: see `gaussian_log_likelihood`.
    """
    # MSE is measured for every loss, because sigma2 and the metrics need it.
    error = {"mae": l1_loss, "log_mse": log_mse_loss}.get(loss, mse_loss)
    mean_error = error(images, output.images)
    mse = mean_error if error is mse_loss else mse_loss(images, output.images)
    if output.posterior is None or output.posterior.log_variance is None:
        return Terms(mean_error, mean_error.detach(), torch.zeros_like(mse), mse.detach())
    mean, log_variance = output.posterior
    assert log_variance is not None
    values = images[0].numel()
    if loss == "gaussian":
        reconstruction = -gaussian_log_likelihood(images, output.images, sigma2).mean()
    else:
        reconstruction = mean_error * values
    divergence = kl(mean, log_variance).mean()
    objective = (reconstruction + beta * divergence) / values
    return Terms(objective, reconstruction.detach(), divergence.detach(), mse.detach())


def update_sigma2(sigma2: Tensor, mse: Tensor, step: int) -> None:
    """Update sigma2 in place with the maximum-likelihood value of this batch, its mean squared error.

    Setting the derivative of (5) by sigma2 to zero gives the mean squared error: the optimal sigma-VAE of
    Rybkin, Daniilidis & Levine 2021, equation (7). The average starts at the first batch and later covers
    about fifty.

    Args:
        sigma2: the running value, a scalar.
        mse: mean squared error of this batch, per value.
        step: steps taken before this one, from 0.
    """
    momentum = min(SIGMA2_MOMENTUM, step / (step + 1))
    sigma2.mul_(momentum).add_(mse.detach(), alpha=1 - momentum).clamp_(min=SIGMA2_FLOOR)


def beta_at(step: int, steps: int, warmup_steps: int, cycles: int, beta: float) -> float:
    """Weight of the KL at a step; equation (8).

    Args:
        step: steps taken before this one, from 0.
        steps: all the steps of the run.
        warmup_steps: linear from 0, reaching `beta` at exactly this step; 0 for none.
        cycles: instead of one warm-up, this many equal cycles over the run, each linear from 0 to `beta` in
            its first half and constant in its second (Fu et al. 2019); 0 for none.
        beta: the weight after the warm-up.
    """
    if cycles:
        # At the last step a cycle is complete, not at its start again, where beta would be 0.
        position = (step * cycles / steps) % 1 if step < steps else 1.0
        return beta * min(1.0, 2 * position)
    return beta * min(1.0, step / warmup_steps) if warmup_steps else beta
