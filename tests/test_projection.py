"""The map of codes against scikit-learn's PCA."""

from __future__ import annotations

import sys
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from autoencode import MissingExtraError, Run, load_model
from autoencode.projection import (
    FEWEST,
    FITTED_IMAGES,
    MOST_GROUPS,
    Metric,
    code_map,
    effect_sizes,
    neighbour_map,
    scaled_by_effect,
    similar_groups,
)


def test_it_is_pca_of_codes_in_units_of_their_effect(trained: Run) -> None:
    model = load_model(trained.model_path)
    codes = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32) * np.arange(
        1, 9, dtype=np.float32
    )
    made = code_map(model, codes)
    pca = PCA(2).fit(codes * effect_sizes(model, codes))
    expected = pca.transform(codes * effect_sizes(model, codes))
    for column in range(2):
        sign = np.sign(made.plane[:, column] @ expected[:, column])
        np.testing.assert_allclose(made.plane[:, column], sign * expected[:, column], atol=1e-5)
    assert abs(made.explained - pca.explained_variance_ratio_.sum()) < 1e-6


def test_an_effect_is_how_far_the_image_moves_for_a_unit_of_the_value(trained: Run) -> None:
    model = load_model(trained.model_path)
    codes = np.random.default_rng(1).normal(size=(30, 8)).astype(np.float32)
    mean, spread = codes.mean(0), codes.std(0)
    moved = mean.copy()
    moved[3] += spread[3]
    before, after = model.decode(torch.from_numpy(np.stack([mean, moved])))
    np.testing.assert_allclose(effect_sizes(model, codes)[3], (after - before).norm() / spread[3], rtol=1e-3)


def test_one_image_has_a_place(trained: Run) -> None:
    model = load_model(trained.model_path)
    made = code_map(model, np.ones((1, 8), np.float32))
    np.testing.assert_array_equal(made.plane, np.zeros((1, 2)))


def test_neighbours_stay_neighbours_under_umap_where_a_plane_tears_them_apart(trained: Run) -> None:
    pytest.importorskip("umap", reason="needs umap-learn, of the extra map")
    model = load_model(trained.model_path)
    generator = np.random.default_rng(2)
    groups = 8 * np.eye(8)[generator.integers(0, 8, 120)]
    codes = (groups + generator.normal(size=(120, 8)) * 0.5).astype(np.float32)
    seen: list[tuple[int, int]] = []
    threads = torch.get_num_threads()
    made = neighbour_map(scaled_by_effect(model, codes), lambda done, total: seen.append((done, total)))
    assert torch.get_num_threads() == threads
    scaled = codes * effect_sizes(model, codes)
    assert trustworthiness(scaled, made.plane) > trustworthiness(scaled, code_map(model, codes).plane) + 0.02
    assert made.explained is None
    assert seen[-1][0] == seen[-1][1] > 100
    np.testing.assert_array_equal(made.plane, neighbour_map(scaled_by_effect(model, codes)).plane)


def test_by_the_cosine_a_stray_with_a_short_vector_is_no_neighbour_of_all() -> None:
    pytest.importorskip("umap", reason="needs umap-learn, of the extra map")
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(6), 40)
    directions = 0.35 * np.eye(64)[kinds] + rng.normal(size=(240, 64)) / 8
    vectors = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    vectors[rng.permutation(240)[:12]] *= 0.05
    same = {}
    for metric in get_args(Metric):
        plane = neighbour_map(vectors - vectors.mean(0), metric=metric).plane
        near = np.argsort(np.linalg.norm(plane[:, None] - plane, axis=2), axis=1)[:, 1:11]
        same[metric] = (kinds[near] == kinds[:, None]).mean()
    assert same["cosine"] > same["euclidean"] + 0.1


@pytest.mark.parametrize("count", [1, FEWEST, 20])
def test_umap_places_equal_images_too(count: int) -> None:
    pytest.importorskip("umap", reason="needs umap-learn, of the extra map")
    plane = neighbour_map(np.zeros((count, 8))).plane
    assert plane.shape == (count, 2)
    assert np.isfinite(plane).all()


def test_umap_that_is_not_installed_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[map\]'"):
        neighbour_map(np.zeros((9, 8)))


def test_groups_are_those_that_the_images_form_the_largest_first() -> None:
    generator = np.random.default_rng(3)
    formed = np.repeat([2, 0, 3, 1], [90, 70, 50, 30])
    vectors = 10 * np.eye(16)[formed] + generator.normal(size=(240, 16)) * 0.1

    found = similar_groups(vectors)
    assert len(found.typical) == MOST_GROUPS
    for group in range(MOST_GROUPS):
        assert len(np.unique(formed[found.members == group])) == 1
    sizes = np.bincount(found.members)
    assert (np.diff(sizes) <= 0).all()


def test_a_stray_with_a_short_vector_is_typical_of_no_group() -> None:
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(400, 48)) + 0.5
    ordinary = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    strays = 0.1 * rng.normal(size=(8, 48)) / np.sqrt(48)  # unlike all, in dimensions fitted to the others
    vectors = np.concatenate([strays, ordinary])
    found = similar_groups(vectors - vectors.mean(0))
    assert found.typical.min() >= len(strays)


def test_a_typical_image_is_where_a_group_is_dense_not_at_its_mean() -> None:
    generator = np.random.default_rng(6)
    kinds = np.repeat(np.eye(8)[:2], 15, axis=0) + generator.normal(size=(30, 8)) * 0.01
    odd = kinds.mean(0) + 0.2 * np.eye(8)[2:5]  # between the two kinds, and like nothing
    found = similar_groups(np.concatenate([odd, kinds]))
    assert len(found.typical) == 1
    assert found.typical[0] >= len(odd)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (39, 1), (40, 2), (400, 12)])
def test_groups_have_twenty_images_on_average(count: int, expected: int) -> None:
    vectors = np.random.default_rng(4).normal(size=(count, 3))
    found = similar_groups(vectors)
    assert len(found.typical) == expected
    assert found.members.shape == (count,)
    np.testing.assert_array_equal(similar_groups(vectors).members, found.members)


def test_equal_images_are_one_group() -> None:
    assert similar_groups(np.zeros((60, 4))).members.tolist() == [0] * 60


def test_groups_of_many_images_are_fitted_to_some_and_hold_all() -> None:
    generator = np.random.default_rng(5)
    formed = np.arange(2 * FITTED_IMAGES + 1) % 3
    found = similar_groups(5 * np.eye(3)[formed] + generator.normal(size=(len(formed), 3)) * 0.1)
    assert found.members.shape == formed.shape
    for group in range(len(found.typical)):
        assert len(np.unique(formed[found.members == group])) == 1
