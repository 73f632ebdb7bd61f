"""The residual network: its linear start, its shapes, and what the convolutions may add."""

import pytest
import torch
import torch.nn.functional as F

from autoencode.models.networks import (
    LinearDecoder,
    LinearEncoder,
    ResidualDecoder,
    ResidualEncoder,
    pooling_of,
)


@pytest.mark.parametrize(
    ("size", "pooling"),
    [((16, 16), 1), ((32, 64), 1), ((64, 64), 2), ((96, 160), 2), ((128, 128), 4), ((1024, 1024), 32)],
)
def test_the_linear_maps_see_a_short_side_of_32_to_63(size: tuple[int, int], pooling: int) -> None:
    assert pooling_of(*size) == pooling


@pytest.mark.parametrize(
    ("size", "pooling"), [((16, 512), 2), ((512, 16), 2), ((32, 512), 2), ((32, 2048), 4), ((16, 8192), 8)]
)
def test_long_images_leave_the_linear_maps_no_more_than_square_ones(
    size: tuple[int, int], pooling: int
) -> None:
    assert pooling_of(*size) == pooling
    assert (size[0] // pooling) * (size[1] // pooling) <= 64 * 64
    encoder, decoder = LinearEncoder(3, *size), LinearDecoder(3, *size)
    assert decoder(encoder(torch.rand(1, 3, *size))).shape == (1, 3, *size)


def test_the_linear_maps_are_linear() -> None:
    torch.manual_seed(0)
    encoder, decoder = LinearEncoder(5, 64, 96), LinearDecoder(5, 64, 96)
    a, b = torch.rand(2, 3, 64, 96), torch.rand(2, 3, 64, 96)
    torch.testing.assert_close(encoder((a + b) / 2), (encoder(a) + encoder(b)) / 2)
    codes = encoder(a)
    torch.testing.assert_close(
        decoder((codes + 1) / 2), (decoder(codes) + decoder(torch.ones_like(codes))) / 2
    )


@pytest.mark.parametrize("size", [(16, 16), (48, 80)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_convolutions_start_by_adding_nothing(size: tuple[int, int], batch_norm: bool) -> None:
    torch.manual_seed(0)
    decoder = ResidualDecoder(5, (4, 6, 8), *size, batch_norm)
    codes = torch.randn(3, 5)
    images = decoder(codes)
    assert images.shape == (3, 3, *size)
    assert torch.equal(images, decoder.linear(codes))


def test_what_they_add_is_learned_from_the_first_step() -> None:
    torch.manual_seed(0)
    decoder = ResidualDecoder(5, (4, 6), 16, 16, False)
    F.mse_loss(decoder(torch.randn(8, 5)), torch.rand(8, 3, 16, 16)).backward()
    assert decoder.out.weight.grad is not None
    assert decoder.out.weight.grad.abs().max() > 0


def test_features_of_the_encoder_cover_the_deepest_grid() -> None:
    torch.manual_seed(0)
    encoder = ResidualEncoder((4, 6, 8), batch_norm=False)
    assert encoder(torch.rand(2, 3, 32, 48)).shape == (2, 8 * 2 * 3)
