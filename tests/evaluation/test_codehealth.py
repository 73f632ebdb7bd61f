"""The health of a code against torch.distributions, on codes that are known."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from autoencode import Autoencoder, ConfigError, ModelConfig, Preprocessing
from autoencode.evaluation.quality import CodeHealth, code_health, gap_in_words


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


class GaussianCodes:
    """Stands in for a VAE whose codes of all images together are a Gaussian that is known."""

    is_vae = True

    def __init__(self, size: int, shift: float = 0.0, scale: float = 1.0, certain: float = 0.5) -> None:
        """Of the variance of the codes, `certain` is of the means and the rest of the posteriors."""
        self.config = ModelConfig("vae", code_size=size)
        self.shift, self.scale, self.certain = shift, scale, certain

    def encode_distribution(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.shift + self.scale * self.certain**0.5 * codes
        return mean, torch.full_like(mean, (1 - self.certain) * self.scale**2).log()

    def gap(self, count: int) -> float | None:
        generator = torch.Generator().manual_seed(count)
        codes = torch.randn(count, self.config.code_size, generator=generator)
        return code_health(cast("Autoencoder", self), codes.split(1000)).prior_gap_nats


@pytest.mark.parametrize("certain", [0.001, 0.5, 0.999])
@pytest.mark.parametrize(("size", "count", "within"), [(256, 1000, 0.6), (256, 400, 2), (64, 130, 2)])
def test_codes_that_are_the_prior_have_no_gap_whatever_the_number_of_images(
    size: int, count: int, within: float, certain: float
) -> None:
    gap = GaussianCodes(size, certain=certain).gap(count)
    assert gap is not None
    assert 0 <= gap < within  # four standard deviations; without the correction 18, 55 and 10


@pytest.mark.parametrize("count", [400, 1000, 20_000])
@pytest.mark.parametrize("certain", [0.5, 0.999])
@pytest.mark.parametrize(("shift", "scale"), [(0.5, 1.0), (0.0, 0.7), (-0.3, 1.5)])
def test_the_gap_of_a_known_gaussian_is_its_kl(
    shift: float, scale: float, certain: float, count: int
) -> None:
    size = 128
    truth = MultivariateNormal(torch.full((size,), shift), scale**2 * torch.eye(size))
    expected = kl_divergence(truth, MultivariateNormal(torch.zeros(size), torch.eye(size))).item()
    error = (size * (1 + abs(shift)) * scale**2 * 2 / count) ** 0.5
    assert GaussianCodes(size, shift, scale, certain).gap(count) == pytest.approx(expected, abs=4 * error)


def test_of_few_images_the_gap_cannot_be_told() -> None:
    assert GaussianCodes(16).gap(17) is None
    assert GaussianCodes(16).gap(18) is not None
    assert gap_in_words(None) == "cannot be told of so few images"
    assert gap_in_words(12.34) == "12.3 nats"


def test_a_posterior_that_is_the_prior_has_no_gap_no_kl_and_is_told() -> None:
    model = vae(30)
    for head in (model.to_mean, model.to_log_variance):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    found = code_health(model, [IMAGES])
    assert found.prior_gap_nats == pytest.approx(0, abs=0.3)
    assert found.kl_nats.abs().max() == 0
    assert found.active_units == 0
    assert found.warning is not None
    assert found.warning.startswith("0 of 30 code values carry information")


def test_a_code_that_is_used_gives_no_warning() -> None:
    assert CodeHealth(torch.ones(10), torch.ones(10), 0.0).warning is None


def test_one_image_gives_finite_numbers() -> None:
    found = code_health(vae(), [IMAGES[:1]])
    assert found.kl_nats.isfinite().all()
    assert found.active_units == 0


def test_a_plain_autoencoder_and_no_images_are_rejected() -> None:
    plain = Autoencoder(ModelConfig(code_size=4, widths=(2,)), Preprocessing(16, 16))
    with pytest.raises(ConfigError, match="plain autoencoder"):
        code_health(plain, [IMAGES])
    with pytest.raises(ConfigError, match="none were given"):
        code_health(vae(), [])
