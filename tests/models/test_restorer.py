"""A restorer by its definition: a result of the same size, from what lies within reach, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autoencode import (
    Autoencoder,
    ConfigError,
    ModelConfig,
    Preprocessing,
    Restorer,
    load_restorer,
    save_model,
)
from autoencode.errors import ModelFileError
from autoencode.models.gated import GatedUNet
from autoencode.models.model_file import load_model
from autoencode.models.networks import NETWORKS
from autoencode.restoration.tiles import restore_levels
from autoencode.training.runtime import choose_runtime


def restorer(widths: tuple[int, ...] = (4, 6, 8), seed: int = 0) -> Restorer:
    torch.manual_seed(seed)
    config = ModelConfig(kind="restorer", network="gated", widths=widths)
    return Restorer(config, Preprocessing(32, 32)).eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (8, 8), (33, 64), (64, 17)])
def test_an_image_of_any_size_comes_back_in_its_size_and_in_range(size: tuple[int, int]) -> None:
    restored = restorer().restore(torch.randn(2, 3, *size) * 3)
    assert restored.shape == (2, 3, *size)
    assert (restored.min(), restored.max()) == (0, 1)


def test_the_output_is_the_image_and_what_the_network_adds() -> None:
    model, images = restorer(), torch.rand(2, 3, 16, 24)
    torch.testing.assert_close(model(images).images, images + model.net(images))
    for parameter in model.net.last.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(model(images).images, images)


@pytest.mark.parametrize("widths", [(4,), (4, 6), (4, 6, 8)])
def test_a_pixel_depends_on_what_is_within_reach_and_on_nothing_further(widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    # In fp64, where a dependence through every block is small but not lost.
    net = GatedUNet(widths).double()
    side = 2 * (net.reach // net.factor + 2) * net.factor
    images = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    middle = side // 2 // net.factor * net.factor
    for offset in (0, net.factor - 1):
        at = middle + offset
        (gradient,) = torch.autograd.grad(net(images)[0, :, at, at].sum(), images, retain_graph=True)
        rows = gradient[0].abs().sum((0, 2)).nonzero()[:, 0]
        reached = max(at - int(rows.min()), int(rows.max()) - at)
        assert net.reach - 2 * net.factor <= reached <= net.reach


def test_the_result_does_not_depend_on_other_images() -> None:
    model, images = restorer(), torch.rand(4, 3, 24, 24)
    together = model.restore(images)
    for index in range(4):
        torch.testing.assert_close(model.restore(images[index : index + 1])[0], together[index])


def test_a_restorer_is_saved_and_loaded_and_is_no_autoencoder(tmp_path: Path) -> None:
    model = restorer()
    save_model(tmp_path / "model.safetensors", model, {"train": {"corrupt": ["gaussian:0.1"]}})
    loaded = load_restorer(tmp_path)
    images = torch.rand(1, 3, 20, 20)
    torch.testing.assert_close(loaded.restore(images), model.restore(images))
    assert loaded.training_corruptions == ("gaussian:0.1",)
    with pytest.raises(ModelFileError, match="is a restorer: it restores images with `autoencode restore`"):
        load_model(tmp_path)


def test_an_autoencoder_is_no_restorer(tmp_path: Path) -> None:
    model = Autoencoder(ModelConfig(code_size=2, widths=(2,)), Preprocessing(16, 16))
    save_model(tmp_path / "model.safetensors", model, {})
    with pytest.raises(ModelFileError, match=r"is no restorer. Train one with .* --preset restore"):
        load_restorer(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "restorer"}, "The network paper is not for kind restorer"),
        ({"network": "gated"}, "The network gated is not for kind autoencoder"),
        ({"kind": "vae", "network": "gated"}, "The network gated is not for kind vae"),
        ({"kind": "restorer", "network": "gated", "batch_norm": True}, "has no batch normalisation"),
    ],
)
def test_settings_of_another_kind_of_model_are_rejected(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**settings)  # type: ignore[arg-type]


def test_the_restorer_in_the_package_removes_noise_from_any_image_and_leaves_clean_ones() -> None:
    down, across = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij")
    ring = ((down - 0.5) ** 2 + (across - 0.5) ** 2).sqrt().sub(0.3).abs() < 0.05
    image = torch.stack([down, across, 0.3 + 0.5 * ring])[None]
    noisy = image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    model = load_restorer()

    def psnr_db(result: torch.Tensor) -> float:
        return float(-10 * (result - image).square().mean().log10())

    median = torch.nn.functional.unfold(noisy.transpose(0, 1), 3, padding=1).median(1).values
    assert psnr_db(model.restore(noisy)) > psnr_db(median.view(image.shape)) + 2
    assert psnr_db(model.restore(image)) > 40


class Darker(nn.Module):
    """A network of one weight, which no module of the product knows."""

    factor, reach = 4, 0

    def __init__(self) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(0.25))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return -self.amount * images


def test_another_network_is_an_entry_of_the_registry_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = replace(NETWORKS["gated"], build=lambda config, height, width: Darker())
    monkeypatch.setitem(NETWORKS, "darker", entry)
    model = Restorer(ModelConfig(kind="restorer", network="darker"), Preprocessing(32, 32))
    save_model(tmp_path / "model.safetensors", model, {})
    levels = np.random.default_rng(0).integers(0, 256, (21, 30, 3), np.uint8)
    found = restore_levels(load_restorer(tmp_path), levels, runtime=choose_runtime("cpu", "fp32"))
    assert np.abs(found - 0.75 * levels).max() <= 0.5 + 1e-3
