"""Heat-maps against the definition, and on a defect whose place is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from autoencode import Autoencoder, Pack, Run, heat_maps, load_model
from autoencode.metrics.statistics import auroc
from autoencode.outliers.heatmaps import coloured
from autoencode.pixels import to_float


@pytest.fixture(scope="module")
def model(trained: Run) -> Autoencoder:
    return load_model(trained.model_path)


@pytest.fixture(scope="module")
def images(tiny_pack: Pack) -> torch.Tensor:
    return to_float(tiny_pack.pixels(tiny_pack.rows()[:4]))


def test_a_heat_map_is_the_smoothed_squared_difference(model: Autoencoder, images: torch.Tensor) -> None:
    squared = (images - model.reconstruct(images)).square().mean(dim=1).numpy()
    expected = [gaussian_filter(plane, 1.0, mode="nearest", truncate=3.0) for plane in squared]
    np.testing.assert_allclose(heat_maps(model, images), np.stack(expected), atol=1e-6)


def test_a_heat_map_shows_where_a_defect_is(model: Autoencoder, images: torch.Tensor) -> None:
    damaged = images.clone()
    pattern = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(4, 4)
    damaged[:, :, 4:12, 20:28] = pattern
    mask = np.zeros((32, 32), bool)
    mask[4:12, 20:28] = True
    for heat in heat_maps(model, damaged).numpy():
        assert auroc(heat[~mask], heat[mask]) > 0.9


def test_colours_run_from_dark_to_bright_and_nothing_is_dark() -> None:
    maps = torch.tensor([[[0.0, 0.1], [0.5, 1.0]]])
    brightness = coloured(maps).astype(int).sum(axis=3)[0]
    assert brightness[0, 0] < brightness[0, 1] < brightness[1, 0] < brightness[1, 1]
    assert coloured(torch.zeros(1, 2, 2)).max() < 10
