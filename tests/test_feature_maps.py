"""Feature maps as arrays and pictures; receptive fields against gradients, values against the network."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from autoencode import (
    Autoencoder,
    ConfigError,
    ImageError,
    ModelConfig,
    OutputError,
    Preprocessing,
    Run,
    features,
    load_model,
)
from autoencode.feature_maps import _watching, layer_grid, trace


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


CONFIGS = {
    "paper": (ModelConfig(code_size=4, network="paper", widths=(3, 4, 5)), Preprocessing(64, 80)),
    "paper, batch norm": (
        ModelConfig(code_size=4, network="paper", widths=(3, 4), batch_norm=True),
        Preprocessing(48, 32),
    ),
    "residual": (ModelConfig(code_size=4, network="residual", widths=(4, 6)), Preprocessing(128, 144)),
}


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> Autoencoder:
    """A network whose every weight is random, those that start at zero too."""
    torch.manual_seed(0)
    built = Autoencoder(*CONFIGS[request.param]).eval()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for name, parameter in built.named_parameters():
        if name.endswith("bias"):
            parameter.data.abs_()  # or a ReLU may be at 0 for every image
    return built


def random_images(model: Autoencoder, count: int) -> Tensor:
    size = model.preprocessing
    return torch.rand(count, 3, size.height, size.width, generator=torch.Generator().manual_seed(1))


def test_a_value_depends_on_the_pixels_of_its_receptive_field_and_on_no_other(model: Autoencoder) -> None:
    """By the gradient of a central value; over many images, since max-pooling passes on one pixel of four."""
    images = random_images(model, 48).requires_grad_()
    with _watching(model, (model.preprocessing.height, model.preprocessing.width)) as layers:
        model.posterior(images)
    for layer in layers:
        _, _, height, width = layer.maps.shape
        (gradient,) = torch.autograd.grad(
            layer.maps[:, :, height // 2, width // 2].sum(), images, retain_graph=True
        )
        touched = gradient.abs().sum((0, 1)) > 0
        rows, columns = touched.any(1).nonzero().ravel(), touched.any(0).nonzero().ravel()
        extent = (int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1)
        assert extent == layer.receptive_field_px, layer.name


def test_maps_are_of_all_images_though_encode_takes_few_at_a_time(
    model: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoencode.models.autoencoder.CPU_LAYER_VALUES", 1)
    images = random_images(model, 3)
    layers, codes = trace(model, images)
    assert {len(layer.maps) for layer in layers} == {3}
    torch.testing.assert_close(codes, model.encode(images), rtol=1e-3, atol=1e-2)


def test_maps_shrink_by_the_stride(model: Autoencoder) -> None:
    layers, codes = trace(model, random_images(model, 2))
    size = model.preprocessing
    for layer in layers:
        height, width = layer.maps.shape[2:]
        assert (height * layer.stride_px[0], width * layer.stride_px[1]) == (size.height, size.width)
    torch.testing.assert_close(codes, model.encode(random_images(model, 2)))


def test_there_is_a_layer_for_each_convolution_and_the_last_is_what_the_code_is_made_of(
    model: Autoencoder,
) -> None:
    images = random_images(model, 3)
    layers = trace(model, images).layers
    convolutions = [name for name, part in model.encoder.named_modules() if isinstance(part, torch.nn.Conv2d)]
    assert [layer.name for layer in layers] == [f"encoder.{name}" for name in convolutions]
    with torch.no_grad():
        torch.testing.assert_close(layers[-1].maps.flatten(1), model.encoder(images))


def test_the_first_map_of_the_paper_is_pooled_and_rectified() -> None:
    torch.manual_seed(0)
    model = Autoencoder(*CONFIGS["paper"]).eval()
    images = random_images(model, 2)
    convolution, bias = list(model.encoder.parameters())[:2]
    expected = F.max_pool2d(F.conv2d(images, convolution, bias, padding=1), 2).relu()
    torch.testing.assert_close(trace(model, images).layers[0].maps, expected.detach())


def test_nothing_is_left_on_the_model_and_wrong_images_are_rejected(model: Autoencoder) -> None:
    with pytest.raises(ConfigError, match="Images must be float"):
        trace(model, torch.rand(1, 3, 8, 8))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
