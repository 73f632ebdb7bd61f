"""The drawing of a network, checked against the network itself."""

import pytest
import torch

from autoencode import Autoencoder, ModelConfig, Preprocessing
from autoencode.paper.figures import architecture_figure, blocks_of


def build(**settings: object) -> Autoencoder:
    torch.manual_seed(0)
    config = ModelConfig(code_size=6, widths=(4, 8), **settings)  # type: ignore[arg-type]
    return Autoencoder(config, Preprocessing(32, 48))


@pytest.mark.parametrize("network", ["paper", "residual"])
@pytest.mark.parametrize("kind", ["autoencoder", "vae"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_weight_is_counted_once(network: str, kind: str, batch_norm: bool) -> None:
    model = build(network=network, kind=kind, batch_norm=batch_norm)
    blocks = blocks_of(model)
    assert sum(block.parameters for block in blocks) == sum(p.numel() for p in model.parameters())
    assert len({block.name for block in blocks}) == len(blocks)


def test_blocks_are_in_the_order_of_the_image_with_the_shape_that_leaves_them() -> None:
    blocks = blocks_of(build())
    first, last = blocks[0], blocks[-1]
    assert (first.name, first.kind, first.shape) == ("encoder.layers.0", "3x3 convolution", (4, 16, 24))
    assert "max-pool" in first.followers
    assert last.shape == (3, 32, 48)
    assert [block.shape for block in blocks if block.kind == "linear: the code"] == [(6,)]


def test_a_model_in_training_stays_in_training_and_keeps_its_statistics() -> None:
    model = build(batch_norm=True).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    blocks_of(model)
    assert model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name])
    assert not any(module._forward_hooks for module in model.modules())


def test_the_figure_names_the_number_of_weights() -> None:
    model = build(kind="vae")
    figure = architecture_figure(model, "A network")
    title = figure.get_suptitle()
    assert f"A network: {sum(p.numel() for p in model.parameters()):,} parameters" in title
    assert len(figure.axes) >= 2  # the encoder, and below it the decoder
