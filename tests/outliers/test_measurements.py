"""The quantities of images and the heat maps against independent computations."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.distributions import Independent, Normal, kl_divergence

from autoencode import Autoencoder, ModelConfig, Preprocessing, heat_maps
from autoencode.metrics.statistics import auroc
from autoencode.outliers.measurements import collected, coloured, measurer, residual_spectrum
from autoencode.pixels import SIGMA2_FLOOR


def test_the_kl_is_that_of_two_distributions(vae: Autoencoder, images: torch.Tensor) -> None:
    mean, log_variance = vae.encode_distribution(images)
    assert log_variance is not None
    posterior = Independent(Normal(mean, (log_variance / 2).exp()), 1)
    prior = Independent(Normal(torch.zeros_like(mean), 1), 1)
    np.testing.assert_allclose(measurer(vae)(images)["kl_nats"], kl_divergence(posterior, prior), rtol=1e-4)


def test_the_elbo_is_that_of_two_distributions(vae: Autoencoder, images: torch.Tensor) -> None:
    likelihood = Normal(vae.reconstruct(images), vae.sigma2.sqrt()).log_prob(images).sum(dim=(1, 2, 3))
    measured = measurer(vae)(images)
    np.testing.assert_allclose(
        measured["negative_elbo_nats"], measured["kl_nats"] - likelihood.numpy(), rtol=1e-4
    )


def test_the_path_is_three_norms_for_a_vae_and_two_for_a_plain_code(
    vae: Autoencoder, plain: Autoencoder, images: torch.Tensor
) -> None:
    for model in (vae, plain):
        mean, log_variance = model.encode_distribution(images)
        residual = (images - model.reconstruct(images)).numpy().reshape(len(images), -1)
        expected = [np.log(np.linalg.norm(residual, axis=1)), np.linalg.norm(mean.numpy(), axis=1)]
        if log_variance is not None:
            expected.append(np.linalg.norm(np.sqrt(np.exp(log_variance.numpy())), axis=1))
        np.testing.assert_allclose(measurer(model)(images)["path"], np.stack(expected, axis=1), rtol=1e-3)


def test_the_spectrum_of_residuals_is_the_energy_that_each_halving_loses() -> None:
    residuals = np.random.default_rng(0).normal(0, 0.1, (2, 3, 16, 32))
    red, green, blue = np.moveaxis(residuals, 1, 0)
    directions = [
        (red + green + blue) / np.sqrt(3),
        (red - blue) / np.sqrt(2),
        (2 * green - red - blue) / np.sqrt(6),
    ]
    expected: list[np.ndarray] = []
    for size in (1, 2):  # from 16 to 8 and from 8 to 4 rows, then what is left
        for plane in directions:
            fine, coarse = (block_means(plane, size * factor) for factor in (1, 2))
            expected.append(np.log(np.mean((fine - coarse) ** 2, axis=(1, 2)) + SIGMA2_FLOOR))
    expected += [
        np.log(np.mean(block_means(plane, 4) ** 2, axis=(1, 2)) + SIGMA2_FLOOR) for plane in directions
    ]
    np.testing.assert_allclose(
        residual_spectrum(torch.from_numpy(residuals)), np.stack(expected, axis=1), atol=1e-5
    )


def block_means(plane: np.ndarray, side: int) -> np.ndarray:
    """Replace each square of `side` pixels by its mean."""
    count, height, width = plane.shape
    blocks = plane.reshape(count, height // side, side, width // side, side)
    return np.broadcast_to(blocks.mean(axis=(2, 4), keepdims=True), blocks.shape).reshape(plane.shape)


def test_the_spectrum_ends_with_how_far_the_code_of_the_reconstruction_is(
    vae: Autoencoder, images: torch.Tensor
) -> None:
    codes = vae.encode(images)
    again = vae.encode(vae.decode(codes))
    expected = np.log(np.linalg.norm((codes - again).numpy(), axis=1))
    measured = measurer(vae)(images)
    np.testing.assert_allclose(measured["spectrum"][:, -1], expected, atol=1e-3)
    np.testing.assert_allclose(measured["spectrum"][:, -2], measured["path"][:, 1])


@pytest.mark.parametrize("size", [(16, 16), (48, 32), (80, 16)])
def test_images_of_any_shape_have_a_spectrum(size: tuple[int, int]) -> None:
    model = Autoencoder(ModelConfig(widths=(4,), code_size=4), Preprocessing(*size)).eval()
    images = torch.rand(3, 3, *size)
    assert np.isfinite(measurer(model)(images)["spectrum"]).all()


def test_a_heat_map_is_the_smoothed_squared_difference(plain: Autoencoder, images: torch.Tensor) -> None:
    images = images[:4]
    squared = (images - plain.reconstruct(images)).square().mean(dim=1).numpy()
    expected = [gaussian_filter(plane, 1.0, mode="nearest", truncate=3.0) for plane in squared]
    np.testing.assert_allclose(heat_maps(plain, images), np.stack(expected), atol=1e-6)


def test_a_heat_map_shows_where_a_defect_is(plain: Autoencoder, images: torch.Tensor) -> None:
    images = images[:4]
    damaged = images.clone()
    pattern = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(4, 4)
    damaged[:, :, 4:12, 20:28] = pattern
    mask = np.zeros((32, 32), bool)
    mask[4:12, 20:28] = True
    for heat in heat_maps(plain, damaged).numpy():
        assert auroc(heat[~mask], heat[mask]) > 0.9


def test_colours_run_from_dark_to_bright_and_nothing_is_dark() -> None:
    maps = torch.tensor([[[0.0, 0.1], [0.5, 1.0]]])
    brightness = coloured(maps).astype(int).sum(axis=3)[0]
    assert brightness[0, 0] < brightness[0, 1] < brightness[1, 0] < brightness[1, 1]
    assert coloured(torch.zeros(1, 2, 2)).max() < 10


def test_no_batch_outlives_the_next() -> None:
    # Small arrays that are kept of each batch keep the memory around them from the system.
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def batches() -> Iterator[dict[str, np.ndarray]]:
        nonlocal most
        for first in range(0, 40, 4):
            batch = np.arange(first, first + 4, dtype=np.float32)
            alive.append(weakref.ref(batch))
            most = max(most, sum(one() is not None for one in alive))
            yield {"error": batch}

    found = collected(batches(), 40)
    assert most <= 2  # the one that is made, and the one before it
    np.testing.assert_array_equal(found["error"], np.arange(40))
