"""A restorer by its definition: a result of the same size, from what lies within reach, and nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from scipy.ndimage import median_filter
from skimage.metrics import peak_signal_noise_ratio
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
from autoencode.data.corruptions import corrupt, parse_corruptions
from autoencode.errors import ModelFileError
from autoencode.models.bundled import BUNDLED_PATH
from autoencode.models.gated import GatedUNet
from autoencode.models.model_file import load_model
from autoencode.models.networks import NETWORKS
from autoencode.pixels import to_float
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


def test_a_network_that_adds_nothing_returns_the_image_and_a_constant_is_added_everywhere() -> None:
    model, images = restorer(), torch.rand(2, 3, 17, 23)
    for parameter in model.net.last.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(model(images).images, images)
    nn.init.constant_(model.net.last.bias, 0.25)
    torch.testing.assert_close(model(images).images, images + 0.25)


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


def photograph(name: str) -> torch.Tensor:
    """A photograph of scikit-image, (1, 3, 256, 256), made half as large as it is."""
    pixels = getattr(skimage.data, name)()[:512, :512]
    pixels = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels[..., :3]
    return torch.nn.functional.avg_pool2d(to_float(pixels[None].copy()), 2)


@pytest.mark.parametrize("name", ["astronaut", "camera"])
@pytest.mark.parametrize(("damage", "gain_db"), [("clipped-noise:0.1", 1.5), ("camera-noise:0.1", 1.0)])
def test_the_bundled_restorer_beats_a_median_filter_on_noisy_photographs(
    name: str, damage: str, gain_db: float
) -> None:
    clean = photograph(name)
    noisy = corrupt(clean, parse_corruptions([damage]), torch.Generator().manual_seed(0), training=True)
    median = median_filter(noisy[0].numpy(), (1, 3, 3))
    restored = load_restorer().restore(noisy)[0].numpy()
    truth = clean[0].numpy()
    median_db, restored_db = (peak_signal_noise_ratio(truth, one, data_range=1) for one in (median, restored))
    assert restored_db > median_db + gain_db


@pytest.mark.parametrize("name", ["astronaut", "camera"])
def test_the_bundled_restorer_nearly_leaves_a_clean_photograph(name: str) -> None:
    clean = photograph(name)
    restored = load_restorer().restore(clean)
    assert peak_signal_noise_ratio(clean.numpy(), restored.numpy(), data_range=1) > 33


def test_the_card_of_the_bundled_restorer_names_its_file_and_how_it_was_made() -> None:
    digest = hashlib.sha256(BUNDLED_PATH.read_bytes()).hexdigest()
    assert digest == "b55269e23f8239163edfe423470e53ac5c760de1aa88b3d9fbda6103aad82b14"
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "restore.md").read_text()
    card = guide[guide.index("## The bundled restorer") : guide.index("## Reconstruct")]
    made = load_restorer().provenance
    assert digest in card
    assert f"{made['images']['train']:,} of them for training and {made['images']['validation']:,}" in card
    assert f"--epochs {made['train']['epochs']} " in card
    assert f"autoencode {made['autoencode']}, torch {made['torch'].partition('+')[0]}" in card


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
