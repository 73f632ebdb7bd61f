"""The objective of a linear VAE against probabilistic PCA, whose optimum is known in closed form.

Tipping & Bishop 1999: with the eigenvalues of the covariance in falling order, the maximum-likelihood noise
variance is the mean of those left out, and the log-likelihood follows from them. The evidence lower bound of
a linear encoder and decoder reaches that log-likelihood exactly (Lucas et al. 2019, "Don't blame the ELBO").
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from autoencode.models.autoencoder import Output, Posterior
from autoencode.training.losses import terms

IMAGES, SHAPE, CODE, NOISE = 400, (3, 2, 2), 3, 0.05
VALUES = math.prod(SHAPE)


def synthetic() -> Tensor:
    """Images (N, 3, 2, 2) that are a linear map of three factors, plus noise."""
    generator = torch.Generator().manual_seed(5)
    factors = torch.randn(IMAGES, CODE, generator=generator) * torch.tensor([0.6, 0.4, 0.25])
    basis = torch.linalg.qr(torch.randn(VALUES, CODE, generator=generator)).Q
    noise = math.sqrt(NOISE) * 0.3 * torch.randn(IMAGES, VALUES, generator=generator)
    return (0.5 + factors @ basis.T + noise).reshape(IMAGES, *SHAPE)


def probabilistic_pca(images: Tensor) -> tuple[float, float]:
    """The greatest mean log-likelihood of an image, nats, and the noise variance there."""
    flat = images.flatten(1).double()
    covariance = torch.cov(flat.T, correction=0)
    eigenvalues = torch.linalg.eigvalsh(covariance).flip(0)
    sigma2 = eigenvalues[CODE:].mean()
    log_determinant = eigenvalues[:CODE].log().sum() + (VALUES - CODE) * sigma2.log()
    return (-0.5 * (VALUES * math.log(2 * math.pi) + log_determinant + VALUES)).item(), sigma2.item()


def fit_linear_vae(images: Tensor, beta: float = 1.0) -> tuple[float, float, float]:
    """Maximise the objective; return the bound in nats per image, sigma2 and the mean squared error there.

    What is decoded is linear in the noise, so the mean over the 2 D points +-sqrt(D) e_j equals the mean over
    the normal distribution, and the objective has no noise of its own.
    """
    flat = images.flatten(1)
    generator = torch.Generator().manual_seed(0)
    encode = 0.1 * torch.randn(CODE, VALUES, generator=generator)
    decode = 0.1 * torch.randn(VALUES, CODE, generator=generator)
    start = (encode, decode, flat.mean(0), torch.zeros(CODE), torch.tensor(-2.0))
    parameters = [value.requires_grad_() for value in start]
    encode, decode, centre, log_variance, log_sigma2 = parameters
    points = math.sqrt(CODE) * torch.cat([torch.eye(CODE), -torch.eye(CODE)])

    def objective() -> tuple[Tensor, Tensor]:
        mean = (flat - centre) @ encode.T
        codes = mean + torch.exp(0.5 * log_variance) * points[:, None]
        restored = (codes @ decode.T + centre).reshape(-1, *SHAPE)
        repeated = mean.repeat(len(points), 1)
        posterior = Posterior(repeated, log_variance.expand_as(repeated))
        clean = images.repeat(len(points), 1, 1, 1)
        found = terms("gaussian", clean, Output(restored, posterior), beta, log_sigma2.exp())
        return found.loss, found.mse

    optimizer = torch.optim.LBFGS(
        parameters, max_iter=800, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss, _ = objective()
        loss.backward()
        return loss

    optimizer.step(closure)
    loss, mse = objective()
    return -loss.item() * VALUES, log_sigma2.exp().item(), mse.item()


def test_the_bound_of_a_linear_vae_is_the_likelihood_of_probabilistic_pca() -> None:
    images = synthetic()
    log_likelihood, sigma2 = probabilistic_pca(images)
    bound, learned, mse = fit_linear_vae(images)
    assert bound == pytest.approx(log_likelihood, abs=1e-3)
    assert bound <= log_likelihood + 1e-3
    assert learned == pytest.approx(sigma2, rel=0.01)
    # What "auto" does: at the optimum, sigma2 is the mean squared error of what is decoded from noisy codes.
    assert mse == pytest.approx(learned, rel=0.01)


def test_another_weight_of_the_kl_misses_that_optimum() -> None:
    images = synthetic()
    _, sigma2 = probabilistic_pca(images)
    _, learned, _ = fit_linear_vae(images, beta=4.0)
    assert learned > 1.1 * sigma2
