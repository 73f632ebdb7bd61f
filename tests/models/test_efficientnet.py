"""EfficientNet-Lite0 with its normalisations folded in, against the network of another package."""

import pytest
import torch

from autoencode.models.efficientnet import (
    BLOCK_CHANNELS,
    LAST,
    MEAN,
    SPREAD,
    EfficientNetLite0,
    pretrained_weights,
)


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return EfficientNetLite0(pretrained_weights())


def test_features_equal_those_of_the_port_with_batch_normalisation(network: EfficientNetLite0) -> None:
    port = pytest.importorskip("efficientnet_lite_pytorch", reason="the independent port is not installed")
    reference = port.EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(pretrained_weights())
    images = torch.rand(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = reference.eval().extract_features((images - MEAN) / SPREAD)
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (33, 97), (8, 250)])
def test_maps_of_every_block_have_the_size_of_their_stride(
    network: EfficientNetLite0, size: tuple[int, int]
) -> None:
    with torch.inference_mode():
        maps = network.feature_maps(torch.zeros(1, 3, *size), range(LAST + 1))
    strides = [2] + [4] * 2 + [8] * 2 + [16] * 6 + [32] * 6
    for found, channels, stride in zip(maps, BLOCK_CHANNELS, strides, strict=True):
        assert found.shape == (1, channels, *(max(1, -(-side // stride)) for side in size))
