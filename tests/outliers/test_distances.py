"""Distances against those of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from autoencode.outliers.scores import fit_gaussian, neighbour_distance


def test_the_distance_is_the_mahalanobis_distance_of_scikit_learns_shrunk_covariance() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(size=(60, 30)) @ generator.normal(size=(30, 30))
    others = generator.normal(size=(9, 30))
    mean, scale = values.mean(0), values.std(0)
    peer = LedoitWolf().fit((values - mean) / scale)
    assert peer.shrinkage_ > 1 / 60
    expected = np.sqrt(peer.mahalanobis((others - mean) / scale))
    np.testing.assert_allclose(fit_gaussian(values).distance(others), expected)


@pytest.mark.parametrize("count", [2, 3])
def test_very_few_or_equal_images_still_give_finite_distances(count: int) -> None:
    generator = np.random.default_rng(2)
    for values in (generator.normal(size=(count, 20)), np.ones((count, 20))):
        distance = fit_gaussian(values).distance(generator.normal(size=(4, 20)))
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
