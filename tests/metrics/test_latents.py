"""The likelihood and the divergence against torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from autoencode.metrics.latents import bits_per_dimension, gaussian_log_likelihood, kl

IMAGES = torch.rand(5, 3, 16, 32, generator=torch.Generator().manual_seed(1))
RESTORED = torch.rand(5, 3, 16, 32, generator=torch.Generator().manual_seed(2))
MEAN = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
LOG_VARIANCE = torch.randn(5, 7, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("sigma2", [0.1, 0.01, 0.001])
def test_the_likelihood_is_that_of_a_normal_distribution(sigma2: float) -> None:
    expected = Independent(Normal(RESTORED.double(), math.sqrt(sigma2)), 3).log_prob(IMAGES.double())
    found = gaussian_log_likelihood(IMAGES, RESTORED, sigma2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-2)


def test_kl_is_that_of_torch_distributions() -> None:
    posterior = Independent(Normal(MEAN, (0.5 * LOG_VARIANCE).exp()), 1)
    prior = Independent(Normal(torch.zeros(5, 7), torch.ones(5, 7)), 1)
    torch.testing.assert_close(kl(MEAN, LOG_VARIANCE), kl_divergence(posterior, prior))


def test_kl_of_the_prior_itself_is_zero() -> None:
    assert kl(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0, 0]


def test_bits_per_dimension_of_uniform_noise_is_eight() -> None:
    assert bits_per_dimension(0.0, 100) == 8
    assert bits_per_dimension(100 * math.log(2), 100) == 9
