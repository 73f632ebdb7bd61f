"""The map of codes against scikit-learn's PCA."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.decomposition import PCA

from autoencode import Run, load_model
from autoencode.applications.codemap import code_map, effects


def test_it_is_pca_of_codes_in_units_of_their_effect(trained: Run) -> None:
    model = load_model(trained.model_path)
    codes = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32) * np.arange(
        1, 9, dtype=np.float32
    )
    made = code_map(model, codes)
    pca = PCA(2).fit(codes * effects(model, codes))
    expected = pca.transform(codes * effects(model, codes))
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
    np.testing.assert_allclose(effects(model, codes)[3], (after - before).norm() / spread[3], rtol=1e-3)


def test_one_image_has_a_place(trained: Run) -> None:
    model = load_model(trained.model_path)
    made = code_map(model, np.ones((1, 8), np.float32))
    np.testing.assert_array_equal(made.plane, np.zeros((1, 2)))
