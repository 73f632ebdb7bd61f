"""The measurements on held-out images, against scikit-image, torch.distributions and formulas written out."""

import math
from dataclasses import fields, replace
from typing import cast

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from autoencode import (
    Autoencoder,
    ConfigError,
    ModelConfig,
    Pack,
    Preprocessing,
    Run,
    load_model,
)
from autoencode.data.corruptions import parse_corruptions
from autoencode.data.loader import random_seed
from autoencode.evaluation import quality
from autoencode.evaluation.quality import (
    CodeHealth,
    HeldOutImages,
    code_health,
    code_quality,
    gap_in_words,
    image_quality,
    quick_evaluation,
)
from autoencode.metrics.images import MEASURES
from autoencode.pixels import to_float

NOTHING = lambda images: None  # noqa: E731


def held_out(pack: Pack, corruptions: tuple[str, ...] = (), split: str = "train") -> HeldOutImages:
    return HeldOutImages(pack, pack.rows(split), parse_corruptions(corruptions))  # type: ignore[arg-type]


def test_psnr_and_ssim_are_the_means_of_those_of_scikit_image(trained: Run, tiny_pack: Pack) -> None:
    model, images = load_model(trained.model_path), held_out(tiny_pack)
    done: list[int] = []
    found = image_quality(images, {"model": model.reconstruct}, done.append)["model"]
    clean = to_float(tiny_pack.pixels(images.rows))
    pairs = list(zip(clean.numpy(), model.reconstruct(clean).numpy(), strict=True))
    assert sum(done) == len(pairs)
    settings = {"channel_axis": 0, "data_range": 1, "gaussian_weights": True, "use_sample_covariance": False}
    settings |= {"sigma": 1.5}
    psnrs = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in pairs]
    ssims = []
    for a, b in pairs:
        _, each = structural_similarity(a, b, full=True, **settings)
        ssims.append(each[:, 5:-5, 5:-5].mean())  # where the window lies inside the image
    assert found.psnr_db is not None
    assert found.ssim is not None
    assert found.psnr_db.value == pytest.approx(np.mean(psnrs), rel=1e-5)
    assert found.ssim.value == pytest.approx(np.mean(ssims), abs=1e-4)
    assert found.psnr_db.count == len(pairs)
    assert found.psnr_db.interval is not None
    assert found.psnr_db.interval.low < found.psnr_db.value < found.psnr_db.interval.high


def test_images_restored_exactly_have_no_psnr_and_the_best_of_the_rest(tiny_pack: Pack) -> None:
    found = image_quality(held_out(tiny_pack), {"same": lambda seen: seen}, NOTHING)["same"]
    assert found.psnr_db is None
    values = [found.ssim, found.mse, found.mae, found.sharpness]
    assert [value and round(value.value, 5) for value in values] == [1, 0, 0, 1]


def test_a_denoiser_sees_the_same_noise_whenever_it_is_asked(tiny_pack: Pack) -> None:
    images = held_out(tiny_pack, ("gaussian:0.1",))
    found = image_quality(images, {"seen": lambda seen: seen, "again": lambda seen: seen}, NOTHING)
    assert found["seen"] == found["again"]
    assert found["seen"].mse is not None
    assert found["seen"].mse.value == pytest.approx(0.01, rel=0.05)
    assert image_quality(images, {"seen": lambda seen: seen}, NOTHING)["seen"] == found["seen"]


def test_the_elbo_and_its_bits_are_those_of_torch_distributions(trained_vae: Run, tiny_pack: Pack) -> None:
    model, images = load_model(trained_vae.model_path), held_out(tiny_pack)
    found = code_quality(model, images, NOTHING)
    clean = to_float(tiny_pack.pixels(images.rows))
    mean, log_variance = model.encode_distribution(clean)
    assert log_variance is not None
    posterior = Independent(Normal(mean, (0.5 * log_variance).exp()), 1)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    divergence = kl_divergence(posterior, prior)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(random_seed("evaluate", "codes")))
    decoded = model.decode(mean + posterior.base_dist.scale * noise).double()
    likelihood = Independent(Normal(decoded, float(model.sigma2) ** 0.5), 3).log_prob(clean.double())
    elbo = (likelihood - divergence).mean().item()
    assert found.kl_nats is not None
    assert found.elbo_nats is not None
    assert found.bits_per_dimension is not None
    assert found.kl_nats.value == pytest.approx(divergence.mean().item(), rel=1e-4)
    assert found.elbo_nats.value == pytest.approx(elbo, rel=1e-5)
    assert found.bits_per_dimension.value == pytest.approx(8 - elbo / (32 * 32 * 3) / math.log(2))
    low, high = found.elbo_nats.interval or (0, 0)
    assert found.bits_per_dimension.interval == pytest.approx(
        [8 - end / (32 * 32 * 3) / math.log(2) for end in (high, low)]
    )


def test_bits_a_dimension_of_an_image_known_but_for_rounding_meet_their_closed_form(
    trained_vae: Run, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The decoder is exact, the code is its prior: what is left is the density of a normal at its mean.
    model, images = load_model(trained_vae.model_path), held_out(tiny_pack).head(1)
    clean = to_float(tiny_pack.pixels(images.rows))
    zero = torch.zeros(1, model.config.code_size)
    monkeypatch.setattr(model, "decode", lambda codes, decoder: clean)
    monkeypatch.setattr(
        model, "encode_distribution", lambda seen: type(model.posterior(seen))(zero, zero.clone())
    )
    model.sigma2.fill_(0.25)
    found = code_quality(model, images, NOTHING)
    assert found.bits_per_dimension is not None
    assert found.bits_per_dimension.value == pytest.approx(8 + 0.5 * math.log2(2 * math.pi * 0.25))
    assert found.bits_per_dimension.interval is None


def test_the_likelihood_is_the_one_of_training(trained_vae: Run) -> None:
    model = load_model(trained_vae.model_path)
    assert quality.likelihood_variance(model) == float(model.sigma2)
    for loss, variance in (("mse", 0.5), ("mae", None)):
        model.provenance = {"train": {"loss": loss}}
        assert quality.likelihood_variance(model) == variance


def test_batches_change_no_number(trained: Run, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = load_model(trained.model_path), held_out(tiny_pack)
    whole = image_quality(images, {"model": model.reconstruct}, NOTHING)["model"]
    monkeypatch.setattr(quality, "BATCH", 5)
    parts = image_quality(replace(images), {"model": model.reconstruct}, NOTHING)["model"]
    assert parts.mse is not None
    assert whole.mse is not None
    assert parts.mse.value == pytest.approx(whole.mse.value, rel=1e-5)


def test_a_quick_evaluation_is_the_quality_of_some_held_out_images(
    trained: Run, trained_vae: Run, tiny_pack: Pack
) -> None:
    model = load_model(trained.model_path)
    found = quick_evaluation(model, tiny_pack, 3, lambda count: None)
    images = HeldOutImages(tiny_pack, np.unique(tiny_pack.held_out().rows)[:3], ())
    expected = image_quality(images, {"model": model.reconstruct}, lambda count: None)["model"]
    assert (found.images, found.split, found.quality, found.code) == (3, "test", expected, None)
    code = quick_evaluation(load_model(trained_vae.model_path), tiny_pack, 3, lambda count: None).code
    assert code is not None
    assert len(code.mean_variance) == 8


# The code of a VAE, where its distribution is known


def vae(code_size: int = 4) -> Autoencoder:
    torch.manual_seed(0)
    model = Autoencoder(ModelConfig("vae", code_size=code_size, widths=(2,)), Preprocessing(16, 16))
    nn.init.normal_(model.to_mean.weight, std=0.3)
    nn.init.normal_(model.to_log_variance.weight, std=0.2)
    return model.eval()


IMAGES = torch.rand(300, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_kl_of_each_dimension_is_that_of_torch_distributions() -> None:
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


def test_the_gap_of_few_images_is_not_measurable() -> None:
    assert GaussianCodes(16).gap(17) is None
    assert GaussianCodes(16).gap(18) is not None
    assert gap_in_words(None) == "not measurable on so few images"
    assert gap_in_words(12.34) == "12.3 nats"


def test_a_posterior_that_is_the_prior_has_no_gap_and_no_kl_and_is_warned_of() -> None:
    model = vae(30)
    for head in (model.to_mean, model.to_log_variance):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    found = code_health(model, [IMAGES])
    assert found.prior_gap_nats == pytest.approx(0, abs=0.3)
    assert found.kl_nats.abs().max() == 0
    assert found.active_units == 0
    assert found.warning is not None
    assert found.warning.startswith("0 of 30 code dimensions carry information")


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


def test_every_measure_of_reconstructions_is_shown() -> None:
    assert set(MEASURES) == {field.name for field in fields(quality.ImageQuality)}
