"""The networks against the paper's description, layer by layer."""

import pytest
import torch
from torch import nn

from autoencode.models.networks import Decoder, Encoder


def test_pooling_before_rectifying_computes_the_function_the_paper_describes() -> None:
    torch.manual_seed(0)
    encoder = Encoder((4, 8), batch_norm=False)
    convolutions = [layer for layer in encoder.layers if isinstance(layer, nn.Conv2d)]
    images = torch.rand(2, 3, 16, 32)
    features = images
    for convolution in convolutions:
        features = nn.functional.max_pool2d(nn.functional.relu(convolution(features)), 2)
    assert torch.equal(encoder(images), features.flatten(1))


def test_batch_normalisation_before_pooling_computes_the_function_the_paper_describes() -> None:
    torch.manual_seed(0)
    encoder = Encoder((4,), batch_norm=True)
    convolution, norm = encoder.layers[0], encoder.layers[1]
    nn.init.normal_(norm.weight)  # negative factors too
    images = torch.rand(6, 3, 16, 16)
    expected = nn.functional.max_pool2d(nn.functional.relu(norm(convolution(images))), 2)
    torch.testing.assert_close(encoder(images), expected.flatten(1))


@pytest.mark.parametrize("size", [(16, 16), (32, 80), (128, 128)])
def test_the_decoder_doubles_the_grid_once_a_width(size: tuple[int, int]) -> None:
    grid = (size[0] // 16, size[1] // 16)
    images = Decoder(5, (2, 3, 4, 6), grid, batch_norm=False)(torch.randn(2, 5))
    assert images.shape == (2, 3, *size)
    assert 0 < images.min() < images.max() < 1


def test_batch_normalisation_follows_each_convolution_but_the_one_that_makes_the_image() -> None:
    counts = [
        sum(isinstance(layer, nn.BatchNorm2d) for layer in half.layers)
        for half in (Encoder((2, 3, 4), True), Decoder(5, (2, 3, 4), (1, 1), True))
    ]
    assert counts == [3, 2]
