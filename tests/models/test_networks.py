"""A network is one entry of NETWORKS: whatever asks an entry must hold for each of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from autoencode import Autoencoder, ConfigError, ModelConfig, Preprocessing
from autoencode.errors import any_of
from autoencode.models import networks
from autoencode.models.convolutions import Decoder, Encoder
from autoencode.models.networks import NETWORKS, Halves, Network

every_network = pytest.mark.parametrize(
    "network", [name for name, network in NETWORKS.items() if not network.restores]
)


def build(network: str, size: tuple[int, int] = (32, 48), **settings: object) -> Autoencoder:
    torch.manual_seed(0)
    config = ModelConfig(**{"network": network, "code_size": 5, "widths": (4, 6), **settings})  # type: ignore[arg-type]
    return Autoencoder(config, Preprocessing(*size))


@every_network
def test_features_cover_the_deepest_grid_and_images_come_back_in_their_size(network: str) -> None:
    model, images = build(network), torch.rand(2, 3, 32, 48)
    height, width = NETWORKS[network].grid((4, 6), 32, 48)
    assert model.encoder(images).shape == (2, 6 * height * width)
    assert model.decoder(torch.randn(2, 5)).shape == images.shape


@every_network
def test_a_size_that_cannot_be_halved_is_rejected_with_the_multiple_that_can(network: str) -> None:
    multiple = NETWORKS[network].first_level * 2**4
    with pytest.raises(
        ConfigError, match=rf"halved as often as 2,2,2,2,2 asks .* a multiple of {multiple}\."
    ):
        build(network, (48, 48), widths=(2,) * 5)


@every_network
def test_the_groups_of_the_optimiser_are_all_parameters_once(network: str) -> None:
    model = build(network)
    groups = model.parameter_groups()
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()}
    assert len(grouped) == len(list(model.parameters()))
    torch.optim.AdamW(groups)


def test_the_linear_path_learns_slowly_and_does_not_decay() -> None:
    model = build("residual")
    rest, linear = model.parameter_groups()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(p)] for p in linear["params"]] == [
        "linear.matrix.weight",
        "linear.matrix.bias",
        "decoder.linear.matrix.weight",
        "decoder.linear.matrix.bias",
    ]
    assert (rest["scale"], linear["scale"], linear["weight_decay"]) == (1.0, 0.03, 0.0)


@every_network
def test_the_last_weight_paints_the_image(network: str) -> None:
    model = build(network)
    before = model.decoder(torch.ones(1, 5))
    with torch.no_grad():
        model.decoder.last_weight.add_(1)
    assert not torch.equal(model.decoder(torch.ones(1, 5)), before)
    deeper = [p for p in model.decoder.parameters() if p is not model.decoder.last_weight]
    assert len(deeper) == len(list(model.decoder.parameters())) - 1


@pytest.mark.parametrize(
    ("network", "size", "depth", "least"),
    [
        ("paper", (16, 16), 4, 1),  # the deepest grid is 1x1, but it is pooled after the normalisation
        ("paper", (16, 32), 3, 1),
        ("residual", (16, 16), 3, 2),
        ("residual", (16, 32), 3, 1),
        ("residual", (32, 32), 3, 1),
    ],
)
def test_the_least_batch_is_what_batch_normalisation_can_be_trained_on(
    network: str, size: tuple[int, int], depth: int, least: int
) -> None:
    widths = (4,) * depth
    model = build(network, size, widths=widths, batch_norm=True)

    def fails(count: int) -> bool:
        try:
            model.train()(torch.rand(count, 3, *size))
        except ValueError as err:  # torch: more than 1 value per channel
            assert "Expected more than 1 value per channel" in str(err)
            return True
        return False

    assert model.least_batch == least
    assert fails(1) == (least == 2)
    assert not fails(2)
    assert build(network, size, widths=widths).least_batch == 1


def test_a_start_needs_a_linear_path() -> None:
    start = NETWORKS["residual"].start
    assert start is not None
    with pytest.raises(TypeError, match="'paper' has no linear path"):
        start(build("paper"), [torch.rand(2, 3, 32, 48)])


def test_another_entry_is_a_network_like_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def halves(config: ModelConfig, height: int, width: int) -> Halves:
        grid = (height // 2 ** len(config.widths), width // 2 ** len(config.widths))
        encoder = nn.Sequential(Encoder(config.widths, False), nn.Tanh())
        return Halves(encoder, Decoder(config.code_size, config.widths, grid, False), None)

    monkeypatch.setitem(NETWORKS, "bounded", Network("bounded features", 2, 1, False, 1.0, halves))
    model = build("bounded")
    assert model.reconstruct(torch.rand(2, 3, 32, 48)).shape == (2, 3, 32, 48)
    with pytest.raises(ConfigError, match=f"Unknown network 'other'. Choose {any_of(NETWORKS)}."):
        ModelConfig(network="other")


def test_networks_are_listed_without_torch() -> None:
    code = f"import sys, {networks.__name__}; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
