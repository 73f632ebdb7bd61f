"""What layers see, as arrays and pictures."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoencode import ConfigError, ImageError, OutputError, Run, features, load_model
from autoencode.feature_maps import layer_grid, trace


@pytest.fixture
def image(photos: Path) -> Path:
    return sorted(photos.rglob("*.png"))[0]


def test_channels_come_most_active_first_with_the_numbers_they_have_in_the_network(
    trained: Run, image: Path
) -> None:
    model = load_model(trained.model_path)
    found = features(model, image)
    for layer, expected in zip(found.layers, trace(model, model.read(image)).layers, strict=True):
        maps = expected.maps[0].numpy()
        np.testing.assert_array_equal(layer.maps, maps[layer.channels])
        activity = np.abs(maps).mean(axis=(1, 2))
        assert (np.diff(activity[layer.channels]) <= 0).all()
        assert sorted(layer.channels) == list(range(len(maps)))
        assert (layer.receptive_field_px, layer.stride_px) == (
            expected.receptive_field_px,
            expected.stride_px,
        )


def test_equal_values_of_a_layer_are_equally_bright_in_every_channel(trained: Run, image: Path) -> None:
    found = features(load_model(trained.model_path), image)
    layer = found.layers[0]
    grid = layer_grid(found, 0)
    low, high = layer.range
    assert low == 0
    side = found.image.shape[0] * round(112 / found.image.shape[0])
    for position, values in enumerate(layer.maps, 1):
        left, top = 18 + position * (side + 6), 18 + 18 + 12
        tile = grid[top : top + side, left : left + side, 0].astype(float)
        step = side // values.shape[0]
        expected = 255 * (values / high).clip(0, 1)
        np.testing.assert_allclose(tile[step // 2 :: step, step // 2 :: step], expected, atol=2)


def test_a_residual_network_shows_negative_values_in_another_colour(photos: Path, tmp_path: Path) -> None:
    import torch

    from autoencode import Autoencoder, ModelConfig, Preprocessing

    torch.manual_seed(0)
    config = ModelConfig(network="residual", widths=(4, 6), code_size=4)
    model = Autoencoder(config, Preprocessing(32, 32)).eval()
    found = features(model, sorted(photos.rglob("*.png"))[0], tmp_path / "out")
    layer = found.layers[2]  # the sum of the first block
    assert layer.range[0] == -layer.range[1]
    assert len(found.layers) == 6
    assert len(list((tmp_path / "out").glob("layer-*.png"))) == 6


def test_the_files_are_a_grid_a_layer_a_sheet_and_a_table(trained: Run, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    model = load_model(trained.model_path)
    features(model, image, out)
    (out / "layer-07.png").write_bytes(b"of an earlier model with more layers")
    found = features(model, image, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "layer-01.png",
        "layer-02.png",
        "layers.csv",
        "layers.png",
    ]
    with (out / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["receptive_field_px"] for row in rows] == ["4x4", "10x10"]
    assert [row["channels"] for row in rows] == ["4", "8"]
    with Image.open(out / "layers.png") as sheet:
        np.testing.assert_array_equal(np.asarray(sheet), found.sheet)


def test_a_vae_has_features_too(trained_vae: Run, image: Path) -> None:
    assert [len(layer.maps) for layer in features(load_model(trained_vae.model_path), image).layers] == [4, 8]


def test_what_cannot_be_used_is_told(trained: Run, image: Path, tmp_path: Path) -> None:
    model = load_model(trained.model_path)
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"no\.png"):
        features(model, tmp_path / "no.png")
    with pytest.raises(OutputError, match="holds no earlier features"):
        features(model, image, tmp_path)


def test_pictures_of_an_earlier_call_are_not_replaced_while_one_is_read(
    trained: Run, image: Path, tmp_path: Path
) -> None:
    model = load_model(trained.model_path)
    features(model, image, tmp_path / "seen")
    (tmp_path / "link").symlink_to(tmp_path / "seen")
    with pytest.raises(ConfigError, match="Choose another --out"):
        features(model, tmp_path / "link" / "layer-01.png", tmp_path / "seen")
