"""The health of a code against torch.distributions, on codes that are known."""

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from autoencode import Autoencoder, ConfigError, ModelConfig, Preprocessing
from autoencode.applications.codehealth import CodeHealth, code_health


def vae(code_size: int = 4) -> Autoencoder:
    torch.manual_seed(0)
    model = Autoencoder(ModelConfig("vae", code_size=code_size, widths=(2,)), Preprocessing(16, 16))
    nn.init.normal_(model.to_mean.weight, std=0.3)
    nn.init.normal_(model.to_log_variance.weight, std=0.2)
    return model.eval()


IMAGES = torch.rand(300, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_kl_of_each_value_is_that_of_torch_distributions() -> None:
    model = vae()
    mean, log_variance = model.encode_distribution(IMAGES)
    assert log_variance is not None
    expected = kl_divergence(Normal(mean, log_variance.exp().sqrt()), Normal(0.0, 1.0)).mean(0)
    found = code_health(model, IMAGES.split(70))
    torch.testing.assert_close(found.kl_nats, expected.double(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.mean_variance, mean.double().var(0, correction=0))


def test_the_gap_to_the_prior_is_the_kl_of_the_moments_of_the_aggregate_posterior() -> None:
    model = vae()
    mean, log_variance = (part.double() for part in model.encode_distribution(IMAGES) if part is not None)
    aggregate = torch.cov(mean.T, correction=0) + torch.diag(log_variance.exp().mean(0))
    prior = MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double())
    expected = kl_divergence(MultivariateNormal(mean.mean(0), aggregate), prior)
    assert code_health(model, [IMAGES]).prior_gap_nats == pytest.approx(expected.item(), rel=1e-6)


def test_a_posterior_that_is_the_prior_has_no_gap_no_kl_and_is_told() -> None:
    model = vae(30)
    for head in (model.to_mean, model.to_log_variance):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    found = code_health(model, [IMAGES])
    assert found.prior_gap_nats == pytest.approx(0, abs=1e-9)
    assert found.kl_nats.abs().max() == 0
    assert found.active_units == 0
    assert found.warning is not None
    assert found.warning.startswith("0 of 30 code values carry information")


def test_a_code_that_is_used_gives_no_warning() -> None:
    assert CodeHealth(torch.ones(10), torch.ones(10), 0.0).warning is None


def test_one_image_gives_finite_numbers() -> None:
    assert code_health(vae(), [IMAGES[:1]]).prior_gap_nats > 0


def test_a_plain_autoencoder_and_no_images_are_refused() -> None:
    plain = Autoencoder(ModelConfig(code_size=4, widths=(2,)), Preprocessing(16, 16))
    with pytest.raises(ConfigError, match="plain autoencoder"):
        code_health(plain, [IMAGES])
    with pytest.raises(ConfigError, match="none were given"):
        code_health(vae(), [])
