"""Likelihood and divergence against torch.distributions, the running variance against NumPy."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from autoencode.metrics.latents import (
    RunningVariance,
    active_units,
    bits_per_dimension,
    gaussian_log_likelihood,
    kl,
    merged,
)

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


def test_active_units_counts_dimensions_whose_mean_varies() -> None:
    scale = torch.tensor([1.0, 0.2, 0.05, 0.0])
    means = 100 + scale * torch.randn((5000, 4), generator=torch.Generator().manual_seed(0))
    assert active_units(means.double().var(0, correction=0)) == 2


@pytest.mark.parametrize("size", [1, 7, 5000])
def test_the_variance_of_parts_is_that_of_the_whole(size: int) -> None:
    # A mean a million times the spread, where sums of squares have no digit left.
    rows = 1e4 + 0.01 * torch.randn(
        (5000, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    running = RunningVariance()
    for part in rows.split(size):
        running.add(part)
    assert running.count == 5000
    np.testing.assert_allclose(running.mean, rows.numpy().mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(running.variance, rows.numpy().var(axis=0), rtol=1e-6)


def test_variances_of_several_processes_merge_to_that_of_all_rows_whatever_part_is_empty() -> None:
    rows = torch.randn((30, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = [RunningVariance() for _ in range(3)]
    parts[0].add(rows[:7])
    parts[2].add(rows[7:])
    whole = merged(parts)
    assert whole.count == 30
    np.testing.assert_allclose(whole.mean, rows.numpy().mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(whole.variance, rows.numpy().var(axis=0), rtol=1e-12)
