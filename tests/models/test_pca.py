"""PCA against scikit-learn, and the residual network that starts there."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA

from autoencode import Autoencoder, ModelConfig, Preprocessing
from autoencode.metrics.latents import gaussian_log_likelihood, kl
from autoencode.models.pca import principal_components, principal_components_of_images, start_at_pca

GENERATOR = torch.Generator().manual_seed(0)
SCALES = torch.linspace(1.5, 0.1, 40)
VALUES = torch.randn(200, 40, generator=GENERATOR) * SCALES @ torch.linalg.qr(
    torch.randn(40, 40, generator=GENERATOR)
).Q + torch.arange(40)


def smooth_images(count: int, side: int = 16) -> torch.Tensor:
    """Images of a few large, soft patches: nearly linear in few factors."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 3, 3, generator=generator)
    return F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False).clamp(0, 1)


def build(kind: str, code_size: int, side: int = 16) -> Autoencoder:
    torch.manual_seed(0)
    config = ModelConfig(kind, code_size, "residual", widths=(4, 8))  # type: ignore[arg-type]
    return Autoencoder(config, Preprocessing(side, side)).eval()


def test_components_and_variances_are_those_of_scikit_learn() -> None:
    found = principal_components(VALUES.split(30), 10)
    expected = PCA(10, svd_solver="full").fit(VALUES.numpy())
    np.testing.assert_allclose(found.mean, expected.mean_, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.variances, expected.explained_variance_ * 199 / 200, rtol=1e-4)
    np.testing.assert_allclose(np.abs((found.directions.numpy() * expected.components_).sum(1)), 1, rtol=1e-4)
    assert found.total_variance.item() == pytest.approx(VALUES.var(0, correction=0).sum().item(), rel=1e-4)


def test_components_in_several_passes_are_those_of_scikit_learn() -> None:
    found = principal_components_of_images(lambda: VALUES.split(30), 10)
    expected = PCA(10, svd_solver="full").fit(VALUES.numpy())
    np.testing.assert_allclose(found.mean, expected.mean_, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.variances, expected.explained_variance_ * 199 / 200, rtol=1e-4)
    assert found.total_variance.item() == pytest.approx(VALUES.var(0, correction=0).sum().item(), rel=1e-4)
    restored = expected.inverse_transform(expected.transform(VALUES.numpy()))
    np.testing.assert_allclose(found.restore(VALUES), restored, atol=1e-3)


def test_components_in_several_passes_lose_little_where_values_are_many_and_similar() -> None:
    images = torch.rand(300, 500, generator=torch.Generator().manual_seed(2)) + VALUES[:300, :1].mean()
    images[:, :100] += smooth_images(300).flatten(1)[:, :100]
    found = principal_components_of_images(lambda: images.split(64), 20)
    best = PCA(20, svd_solver="full").fit(images.numpy())
    restored = best.inverse_transform(best.transform(images.numpy()))
    error = (found.restore(images) - images).square().mean().item()
    assert error == pytest.approx(((restored - images.numpy()) ** 2).mean(), rel=2e-3)


def test_components_of_few_images_in_several_passes_restore_them() -> None:
    found = principal_components_of_images(lambda: [VALUES[:3]], 10)
    assert found.directions.shape == (3, 40)
    torch.testing.assert_close(found.restore(VALUES[:3]), VALUES[:3], rtol=1e-3, atol=1e-3)


def test_fewer_images_than_components_give_as_many_as_there_are() -> None:
    assert principal_components([VALUES[:3]], 10).directions.shape == (3, 40)


def test_equal_data_in_other_batches_give_equal_signs() -> None:
    first, second = principal_components(VALUES.split(7), 5), principal_components([VALUES], 5)
    torch.testing.assert_close(first.directions, second.directions, rtol=1e-2, atol=1e-3)


def test_the_network_starts_at_the_reconstruction_of_pca() -> None:
    images = smooth_images(100)
    model = build("autoencoder", 8)
    start_at_pca(model, images.split(32))
    flat = images.flatten(1).numpy()
    expected = PCA(8, svd_solver="full").fit(flat)
    best = expected.inverse_transform(expected.transform(flat)).clip(0, 1)
    found = model.reconstruct(images).flatten(1).numpy()
    assert ((found - flat) ** 2).mean() == pytest.approx(((best - flat) ** 2).mean(), rel=0.01)
    codes = model.encode(images)
    torch.testing.assert_close(codes.var(0, correction=0), torch.ones(8), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("side", [16, 64])
def test_a_vae_starts_at_the_elbo_of_probabilistic_pca(side: int) -> None:
    """Tipping & Bishop 1999, equation (4): log N(x; mean, W W' + sigma2 I), which the linear ELBO reaches."""
    images = smooth_images(400, side)
    model = build("vae", 6, side)
    start_at_pca(model, images.split(100))
    sigma2 = model.sigma2.double()
    mean = images.flatten(1).double().mean(0)
    centred = images.flatten(1).double() - mean
    singular, directions = torch.linalg.svd(centred, full_matrices=False)[1:]
    variances = (singular.square() / len(images))[:6]
    inside = centred @ directions[:6].T
    values = len(mean)
    outside = centred.square().sum(1) - inside.square().sum(1)
    exact = -0.5 * (
        values * np.log(2 * np.pi)
        + variances.log().sum()
        + (values - 6) * sigma2.log()
        + (inside.square() / variances).sum(1)
        + outside / sigma2
    )
    generator = torch.Generator().manual_seed(0)
    elbos = []
    for _ in range(20):
        output = model(images, torch.randn(400, 6, generator=generator))
        mean_code, log_variance = output.posterior
        likelihood = gaussian_log_likelihood(images, output.images, model.sigma2)
        elbos.append((likelihood - kl(mean_code, log_variance)).mean().item())
    # Averaging and enlarging lose a little against the exact directions.
    assert np.mean(elbos) == pytest.approx(exact.mean().item(), rel=0.01)


def test_components_below_the_noise_start_at_the_prior() -> None:
    noise = torch.rand(50, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = build("vae", 60)
    start_at_pca(model, [noise * 0 + 0.5])
    mean, log_variance = model.encode_distribution(noise[:2])
    assert log_variance is not None
    assert mean.abs().max() < 1e-3
    assert log_variance.abs().max() < 1e-3


@pytest.mark.parametrize("images", [torch.full((3, 3, 16, 16), 0.3), torch.rand(1, 3, 16, 16)])
@pytest.mark.parametrize("kind", ["autoencoder", "vae"])
def test_constant_images_and_a_single_one_give_finite_weights(kind: str, images: torch.Tensor) -> None:
    model = build(kind, 8)
    start_at_pca(model, [images])
    assert all(bool(torch.isfinite(weight).all()) for weight in model.state_dict().values())
    torch.testing.assert_close(model.reconstruct(images), images, rtol=0, atol=0.35)
