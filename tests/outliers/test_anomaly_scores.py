"""Every score against an independent computation, and the order it puts images in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from autoencode import Autoencoder, ConfigError, ModelConfig, Pack, Preprocessing, Run, load_model
from autoencode.embedding import image_encoder
from autoencode.metrics.statistics import auroc
from autoencode.outliers import scores as application
from autoencode.outliers.scores import (
    PRETRAINED_SCORES,
    SCORES,
    VAE_SCORES,
    Measured,
    check_score,
    joined,
    measure,
    measurer,
    neighbour_distance,
    residual_spectrum,
    training_statistics,
)
from autoencode.pixels import SIGMA2_FLOOR, to_float


@pytest.fixture(scope="module")
def vae(trained_vae: Run) -> Autoencoder:
    return load_model(trained_vae.model_path)


@pytest.fixture(scope="module")
def plain(trained: Run) -> Autoencoder:
    return load_model(trained.model_path)


@pytest.fixture(scope="module")
def images(tiny_pack: Pack) -> torch.Tensor:
    return to_float(tiny_pack.pixels(tiny_pack.rows()))


def test_the_kl_is_that_of_two_distributions(vae: Autoencoder, images: torch.Tensor) -> None:
    mean, log_variance = vae.encode_distribution(images)
    assert log_variance is not None
    posterior = Independent(Normal(mean, (log_variance / 2).exp()), 1)
    prior = Independent(Normal(torch.zeros_like(mean), 1), 1)
    np.testing.assert_allclose(measure(vae, images)["kl_nats"], kl_divergence(posterior, prior), rtol=1e-4)


def test_the_elbo_is_that_of_two_distributions(vae: Autoencoder, images: torch.Tensor) -> None:
    likelihood = Normal(vae.reconstruct(images), vae.sigma2.sqrt()).log_prob(images).sum(dim=(1, 2, 3))
    measured = measure(vae, images)
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
        np.testing.assert_allclose(measure(model, images)["path"], np.stack(expected, axis=1), rtol=1e-3)


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
    measured = measure(vae, images)
    np.testing.assert_allclose(measured["spectrum"][:, -1], expected, atol=1e-3)
    np.testing.assert_allclose(measured["spectrum"][:, -2], measured["path"][:, 1])


def test_images_simpler_than_training_are_strange_to_the_two_sided_scores_only() -> None:
    """The paradox of the likelihood, in a pure form: residuals a tenth of the ordinary ones."""
    generator = np.random.default_rng(4)

    def toy(count: int, size: float) -> Measured:
        residuals = torch.from_numpy(generator.normal(0, size, (count, 3, 16, 16)))
        mse = residuals.square().mean(dim=(1, 2, 3))
        codes = torch.from_numpy(generator.normal(size=(count, 4)))
        path = application.path_descriptors(mse, 768, codes, None)
        again = codes + torch.from_numpy(generator.normal(0, 0.1, (count, 4)))
        spectrum = application.spectrum_descriptors(residuals, codes, again)
        return {
            "vectors": codes.numpy(),
            "mse": mse.numpy(),
            "path": path.numpy(),
            "spectrum": spectrum.numpy(),
        }

    statistics = training_statistics(toy(200, 0.1))
    ordinary, simple = statistics.scores(toy(100, 0.1)), statistics.scores(toy(100, 0.05))
    assert auroc(ordinary["reconstruction"], simple["reconstruction"]) < 0.01
    for score in ("spectrum", "path"):
        assert auroc(ordinary[score], simple[score]) > 0.99
    for score in ("mahalanobis", "knn"):
        assert 0.3 < auroc(ordinary[score], simple[score]) < 0.7


def test_what_lies_between_two_kinds_of_ordinary_images_is_strange_by_spectrum() -> None:
    """One Gaussian around both kinds, as `path` has, calls the middle as ordinary as either."""
    generator = np.random.default_rng(5)

    def at(centre: float, count: int) -> Measured:
        values = generator.normal(0, 0.1, (count, 3))
        values[:, 0] += centre
        return {"vectors": values, "mse": values[:, 0], "path": values, "spectrum": values}

    statistics = training_statistics(joined([at(-3, 200), at(3, 200)]))
    ordinary, between = (statistics.scores(at(centre, 50)) for centre in (3, 0))
    assert auroc(ordinary["path"], between["path"]) < 0.6
    assert auroc(ordinary["spectrum"], between["spectrum"]) > 0.95
    whitened = statistics.gaussians["spectrum"].whitened(at(0, 1)["spectrum"])
    fifth = np.sort(np.linalg.norm(statistics.spectra - whitened, axis=1))[4]
    assert neighbour_distance(whitened, statistics.spectra)[0] == pytest.approx(fifth)


def test_noise_is_stranger_than_held_out_images(
    vae: Autoencoder, plain: Autoencoder, images: torch.Tensor
) -> None:
    noise = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for model in (vae, plain):
        statistics = training_statistics(measure(model, images[:32]))
        held_out, strange = (statistics.scores(measure(model, x)) for x in (images[32:], noise))
        assert auroc(held_out["spectrum"], strange["spectrum"]) == 1


def test_constant_and_single_images_have_finite_scores(
    vae: Autoencoder, plain: Autoencoder, images: torch.Tensor
) -> None:
    for model in (vae, plain):
        statistics = training_statistics(measure(model, images))
        for value in (0.0, 0.5, 1.0):
            scores = statistics.scores(measure(model, torch.full((1, 3, 32, 32), value)))
            assert all(values.shape == (1,) and np.isfinite(values).all() for values in scores.values())


def test_scores_do_not_depend_on_how_images_are_batched(vae: Autoencoder, images: torch.Tensor) -> None:
    whole = measure(vae, images)
    parts = joined([measure(vae, images[:5]), measure(vae, images[5:])])
    assert whole.keys() == parts.keys()
    for quantity, values in whole.items():
        np.testing.assert_allclose(values, parts[quantity], rtol=1e-4, atol=1e-4)


def test_each_model_has_its_scores_and_a_plain_one_says_which(
    vae: Autoencoder, plain: Autoencoder, images: torch.Tensor
) -> None:
    assert set(training_statistics(measure(vae, images)).scores(measure(vae, images))) == set(SCORES)
    measured = measure(plain, images)
    assert set(training_statistics(measured).scores(measured)) == set(SCORES) - set(VAE_SCORES)
    for score in VAE_SCORES:
        check_score(score, vae)
        with pytest.raises(ConfigError, match=f"The score {score} is a VAE's.*Choose one of: spectrum, path"):
            check_score(score, plain)
    with pytest.raises(ConfigError, match="Unknown score 'luck'"):
        check_score("luck", vae)


def test_pretrained_features_have_distances_alone(vae: Autoencoder, images: torch.Tensor) -> None:
    measured = measurer(vae, "pretrained")(images[:6])
    np.testing.assert_array_equal(
        measured["vectors"], image_encoder(vae, "pretrained").encode(images[:6]).astype(float)
    )
    assert set(training_statistics(measured).scores(measured)) == set(PRETRAINED_SCORES)
    check_score("knn", vae, "pretrained")
    with pytest.raises(ConfigError, match=r"spectrum needs a reconstruction.*mahalanobis, knn"):
        check_score("spectrum", vae, "pretrained")


def test_one_image_cannot_say_what_is_ordinary(plain: Autoencoder, images: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="2 or more images; there is 1"):
        training_statistics(measure(plain, images[:1]))


@pytest.mark.parametrize("size", [(16, 16), (48, 32), (80, 16)])
def test_images_of_any_shape_have_a_spectrum(size: tuple[int, int]) -> None:
    model = Autoencoder(ModelConfig(widths=(4,), code_size=4), Preprocessing(*size)).eval()
    images = torch.rand(3, 3, *size)
    assert np.isfinite(measure(model, images)["spectrum"]).all()
