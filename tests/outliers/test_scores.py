"""Every score against an independent computation, the order it puts images in, and the registry of scores."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from autoencode import Autoencoder, ConfigError, Pack, find_outliers, fit_reference
from autoencode.errors import any_of
from autoencode.metrics.statistics import auroc
from autoencode.outliers.detectors import (
    Combination,
    Detector,
    Mahalanobis,
    Places,
    WhitenedKthNeighbour,
    neighbour_distance,
    resized,
)
from autoencode.outliers.measurements import Measurements, measurer, path_descriptors, spectrum_descriptors
from autoencode.outliers.scores import (
    SCORES,
    Score,
    apply_detectors,
    check_score,
    cross_fitted,
    fit_detectors,
    scores_for,
)
from autoencode.pixels import to_float

PLAIN = [score for score in SCORES.values() if not score.needs_vae]
# Of the residual and the code alone.
OF_CODES = [score for score in PLAIN if score.quantity in ("vectors", "mse", "path", "spectrum")]
Array = NDArray[np.float64]
Measured = dict[str, Array]


def joined(parts: list[Measured]) -> Measured:
    return {quantity: np.concatenate([part[quantity] for part in parts]) for quantity in parts[0]}


def test_images_simpler_than_training_are_anomalous_by_the_two_sided_scores_only() -> None:
    """The paradox of the likelihood, in a pure form: residuals half of the normal ones."""
    generator = np.random.default_rng(4)

    def toy(count: int, size: float) -> Measured:
        residuals = torch.from_numpy(generator.normal(0, size, (count, 3, 16, 16)))
        mse = residuals.square().mean(dim=(1, 2, 3))
        codes = torch.from_numpy(generator.normal(size=(count, 4)))
        path = path_descriptors(mse, 768, codes, None)
        again = codes + torch.from_numpy(generator.normal(0, 0.1, (count, 4)))
        spectrum = spectrum_descriptors(residuals, codes, again)
        return {
            "vectors": codes.numpy(),
            "mse": mse.numpy(),
            "path": path.numpy(),
            "spectrum": spectrum.numpy(),
        }

    detectors = fit_detectors(toy(200, 0.1), OF_CODES)
    normal, simple = (apply_detectors(detectors, toy(100, size)) for size in (0.1, 0.05))
    assert auroc(normal["reconstruction"], simple["reconstruction"]) < 0.01
    for score in ("spectrum", "path"):
        assert auroc(normal[score], simple[score]) > 0.99
    for score in ("mahalanobis", "knn"):
        assert 0.3 < auroc(normal[score], simple[score]) < 0.7


def test_what_lies_between_two_kinds_of_normal_images_is_anomalous_by_spectrum() -> None:
    """One Gaussian around both kinds, as `path` has, calls the middle as normal as either."""
    generator = np.random.default_rng(5)

    def at(centre: float, count: int) -> Measured:
        values = generator.normal(0, 0.1, (count, 3))
        values[:, 0] += centre
        return {"vectors": values, "mse": values[:, 0], "path": values, "spectrum": values}

    detectors = fit_detectors(joined([at(-3, 200), at(3, 200)]), OF_CODES)
    normal, between = (apply_detectors(detectors, at(centre, 50)) for centre in (3, 0))
    assert auroc(normal["path"], between["path"]) < 0.6
    assert auroc(normal["spectrum"], between["spectrum"]) > 0.95
    detector, one = detectors["spectrum"], at(0, 1)["spectrum"]
    assert isinstance(detector, WhitenedKthNeighbour)
    fifth = np.sort(np.linalg.norm(detector.neighbours - detector.whitened(one), axis=1))[4]
    assert detector.score(one)[0] == pytest.approx(fifth)


def test_noise_is_more_anomalous_than_held_out_images(
    vae: Autoencoder, plain: Autoencoder, images: torch.Tensor
) -> None:
    noise = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for model in (vae, plain):
        measure = measurer(model)
        detectors = fit_detectors(measure(images[:32]), PLAIN)
        held_out, anomalous = (apply_detectors(detectors, measure(x)) for x in (images[32:], noise))
        assert auroc(held_out["spectrum"], anomalous["spectrum"]) == 1


def test_constant_and_single_images_have_finite_scores(
    vae: Autoencoder, plain: Autoencoder, images: torch.Tensor
) -> None:
    for model in (vae, plain):
        measure = measurer(model)
        detectors = fit_detectors(measure(images), scores_for(is_vae=model.is_vae))
        for value in (0.0, 0.5, 1.0):
            scores = apply_detectors(detectors, measure(torch.full((1, 3, 32, 32), value)))
            assert all(values.shape == (1,) and np.isfinite(values).all() for values in scores.values())


def test_scores_do_not_depend_on_how_images_are_batched(vae: Autoencoder, images: torch.Tensor) -> None:
    measure = measurer(vae)
    whole = measure(images)
    parts = joined([measure(images[:5]), measure(images[5:])])
    assert whole.keys() == parts.keys()
    for quantity, values in whole.items():
        # Patches are in half precision.
        loose = 0.02 if quantity == "patches" else 1e-4
        np.testing.assert_allclose(values, parts[quantity], rtol=loose, atol=loose)


def test_each_model_has_its_scores_and_a_plain_one_says_which(vae: Autoencoder, plain: Autoencoder) -> None:
    assert scores_for(is_vae=True) == list(SCORES.values())
    assert scores_for(is_vae=False) == PLAIN
    needs_vae = [score.name for score in SCORES.values() if score.needs_vae]
    assert {"kl", "elbo"} <= set(needs_vae)
    possible = any_of(name for name in SCORES if name not in needs_vae)
    for name in needs_vae:
        assert check_score(name, is_vae=True) == name
        with pytest.raises(ConfigError, match=f"The score {name} needs a VAE.*Choose {possible}."):
            check_score(name, is_vae=False)
    with pytest.raises(ConfigError, match="Unknown score 'luck'"):
        check_score("luck", is_vae=True)
    assert set(measurer(plain)(torch.zeros(1, 3, 32, 32))) < set(measurer(vae)(torch.zeros(1, 3, 32, 32)))


def test_a_new_score_takes_one_entry(
    vae: Autoencoder, tiny_pack: Pack, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is offered, fitted, kept in the reference file, calibrated, and used to find outliers."""
    fit_reference(vae, tiny_pack, tmp_path / "kept")
    entry = Score("unusual-kl", "distance of the KL from its mean", "kl_nats", Deviation, needs_vae=True)
    monkeypatch.setitem(SCORES, entry.name, entry)
    found = find_outliers(vae, photos, tiny_pack, score="unusual-kl", cache=tmp_path / "kept")
    kept = fit_reference(vae, tiny_pack, tmp_path / "kept")
    trained = {tiny_pack.folder / entry.path for entry in tiny_pack.entries if entry.split == "train"}
    unseen = [image for image in found.images if image.path not in trained]
    assert 0 < len(unseen) < len(found.images)
    kl = measurer(vae)(vae.read([image.path for image in unseen]))["kl_nats"]
    of_training = measurer(vae)(to_float(tiny_pack.pixels(np.unique(tiny_pack.rows("train")))))["kl_nats"]
    expected = np.abs(kl - of_training.mean())
    np.testing.assert_allclose([image.score for image in unseen], expected, rtol=1e-3, atol=1e-4)
    assert found.validation_fpr == kept.validation_fpr("unusual-kl", found.fpr)
    assert len(kept.calibration["unusual-kl"]) == kept.calibration_images
    with pytest.raises(ConfigError, match=f"Choose {any_of(SCORES)}."):
        check_score("luck", is_vae=True)
    with pytest.raises(ConfigError, match="The score unusual-kl needs a VAE"):
        check_score("unusual-kl", is_vae=False)


@dataclass(frozen=True)
class Deviation(Detector):
    """Distance from the mean."""

    mean: Array

    @classmethod
    def fit(cls, values: Array) -> Self:
        return cls(np.asarray(values.mean()))

    def score(self, values: Array) -> Array:
        return np.abs(values - self.mean)


def test_scores_of_a_fold_are_by_detectors_fitted_to_the_others() -> None:
    values = np.random.default_rng(0).normal(size=(23, 4))
    values[7] += 20  # its own detector would know it
    found = cross_fitted({"vectors": values}, [SCORES["knn"]])["knn"]
    for index in (0, 7, 22):
        others = values[np.arange(23) % 5 != index % 5]
        expected = np.sort(np.linalg.norm(others - values[index], axis=1))[4]
        assert found[index] == pytest.approx(expected)
    assert found.argmax() == 7


def norm(z: np.ndarray) -> np.ndarray:
    """The length of what is above 0; where nothing is, the largest."""
    return np.array([np.linalg.norm(row[row > 0]) if (row > 0).any() else row.max() for row in z])


def test_a_combination_adds_squares_of_varied_images_and_gates_those_of_images_that_are_alike() -> None:
    generator = np.random.default_rng(0)
    for content, alike in ((1.2, False), (0.3, True)):  # cosines of .28 and .955 to the fifth neighbour
        scores = np.exp(generator.normal(0, 0.05, (200, 4)))
        scores[:, 1] *= content
        found = Combination.fit(scores)
        assert bool(found.alike) == alike
        z = (np.log(scores + 1e-6) - found.centre) / found.spread
        expected = z[:, 0] if alike else norm(z)
        far = z.max(1) > 4
        np.testing.assert_allclose(found.score(scores)[~far], expected[~far])
        assert abs(np.median(z, axis=0)).max() < 0.01
        odd = np.exp(np.array([[0.0, np.log(content), 3.0, 0.0]]))
        assert found.score(odd)[0] > found.score(scores).max()
    both = Combination.fit(scores, ([1, 1, 1, 0], [1, 0, 0, 1]))
    assert both.weights.tolist() == [[1, 1, 1, 0], [1, 0, 0, 1]]
    assert bool(both.alike)
    np.testing.assert_allclose(both.score(scores)[~far], z[:, [0, 3]].max(1)[~far])  # the larger decides
    varied = replace(both, alike=np.array(0.0))
    np.testing.assert_allclose(varied.score(scores), norm(z[:, :3]))


def test_each_score_judges_a_quantity_that_there_is_and_says_what_it_is() -> None:
    for name, score in SCORES.items():
        assert score.name == name
        assert score.quantity in ("parts", "vectors") or hasattr(Measurements, score.quantity)
        assert fields(score.detector)
        assert 10 < len(score.summary) < 80
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "outliers.md").read_text()
    table = guide[guide.index("| `--score`") :].split("\n\n")[0]
    assert set(re.findall(r"`([\w-]+)`", table.replace("--score", ""))) == set(SCORES)


def test_the_registry_can_be_read_without_torch_or_numpy() -> None:
    script = (
        "import sys; import autoencode.outliers.scores; "
        "assert not {'torch', 'numpy', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_one_training_image_is_too_few(plain: Autoencoder, images: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="2 or more training images; there is 1"):
        fit_detectors(measurer(plain)(images[:1]), PLAIN)


def test_the_distance_is_the_mahalanobis_distance_of_scikit_learns_shrunk_covariance() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(size=(60, 30)) @ generator.normal(size=(30, 30))
    others = generator.normal(size=(9, 30))
    mean, scale = values.mean(0), values.std(0)
    peer = LedoitWolf().fit((values - mean) / scale)
    assert peer.shrinkage_ > 1 / 60
    expected = np.sqrt(peer.mahalanobis((others - mean) / scale))
    np.testing.assert_allclose(Mahalanobis.fit(values).score(others), expected)


def test_the_shrinkage_is_that_of_the_closed_form() -> None:
    """Ledoit & Wolf 2004, section 3.3: b^2 / d^2 of the standardised values, written out."""
    generator = np.random.default_rng(4)
    values = generator.normal(size=(40, 12)) @ generator.normal(size=(12, 12))
    standard = (values - values.mean(0)) / values.std(0)
    covariance = standard.T @ standard / 40
    target = np.trace(covariance) / 12 * np.eye(12)
    scatter = sum(np.square(np.outer(row, row) - covariance).sum() for row in standard)
    shrinkage = scatter / 40**2 / np.square(covariance - target).sum()
    assert 1 / 40 < shrinkage < 1
    precision = np.linalg.inv((1 - shrinkage) * covariance + shrinkage * target)
    whitening = Mahalanobis.fit(values).whitening
    np.testing.assert_allclose(whitening @ whitening.T, precision, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [2, 3])
def test_very_few_or_equal_images_still_give_finite_distances(count: int) -> None:
    generator = np.random.default_rng(2)
    for values in (generator.normal(size=(count, 20)), np.ones((count, 20))):
        distance = Mahalanobis.fit(values).score(generator.normal(size=(4, 20)))
        assert np.isfinite(distance).all()
        assert (distance > 0).all()


def test_neighbours_are_those_of_scikit_learn_and_the_farthest_there_is_of_few() -> None:
    generator = np.random.default_rng(3)
    training, codes = generator.normal(size=(50, 7)), generator.normal(size=(6, 7))
    distances, _ = NearestNeighbors(n_neighbors=5).fit(training).kneighbors(codes)
    np.testing.assert_allclose(neighbour_distance(codes, training), distances[:, -1])
    assert neighbour_distance(training[:1], training, 1) == pytest.approx(0, abs=1e-6)
    farthest = np.linalg.norm(codes[:, None] - training[:3], axis=2).max(axis=1)
    np.testing.assert_allclose(neighbour_distance(codes, training[:3]), farthest)


def test_places_take_what_is_usual_there_from_a_map() -> None:
    generator = np.random.default_rng(0)
    rows, columns = 12, 24
    across = np.linspace(0, 1, columns)[None] * np.ones((rows, 1))  # noise grows to the right
    maps = [
        np.exp(across + (0.5 + across) * generator.standard_normal((rows, columns))).astype(np.float32)
        for _ in range(400)
    ]
    places = Places.fit(maps[:300])
    standard = np.stack([places.standard(one) for one in maps[300:]])
    assert standard.shape == (100, rows, columns)
    raw = np.log(np.stack(maps[300:]))
    left, right = raw[:, :, :4], raw[:, :, -4:]
    assert right.mean() - left.mean() > 0.8 and right.std() > 2 * left.std()
    # The blur at the border of the grid leaves a little of the slope.
    np.testing.assert_allclose(standard[:, :, :4].mean(), standard[:, :, -4:].mean(), atol=0.2)
    assert abs(standard.mean()) < 0.1
    # A cell of the grid is two columns, whose mean varies less than each of them.
    spreads = standard.std(0).mean(0)
    assert spreads[2:-2].max() / spreads[2:-2].min() < 1.4
    # Of one image, nothing is known about a place: 11 in 1 of the trust is in all places together.
    alone = Places.fit(maps[:1])
    logs = np.log(maps[0])
    assert np.abs(alone.mean - logs.mean()).max() < 0.25 * np.abs(logs - logs.mean()).max()
    np.testing.assert_allclose(resized(resized(across, (24, 48)), (12, 24)), across, atol=0.02)
