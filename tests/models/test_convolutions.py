"""The paper's halves against its description, layer by layer; the residual ones: shapes and linear start."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencode.models import convolutions
from autoencode.models.convolutions import (
    Bias,
    Decoder,
    Encoder,
    Enlargement,
    LinearDecoder,
    LinearEncoder,
    ResidualDecoder,
    ResidualEncoder,
    computes_by_onednn,
    pooling_of,
)


def test_pooling_before_the_bias_and_rectifying_computes_the_function_the_paper_describes() -> None:
    torch.manual_seed(0)
    encoder = Encoder((4, 8), batch_norm=False)
    images = torch.rand(2, 3, 16, 32)
    features = images
    for weight, bias in pairwise_weights(encoder):
        convolved = nn.functional.conv2d(features, weight, bias, padding=1)
        features = nn.functional.max_pool2d(nn.functional.relu(convolved), 2)
    torch.testing.assert_close(encoder(images), features.flatten(1))


def test_the_encoder_by_onednn_computes_its_layers_and_rounds_less() -> None:
    torch.manual_seed(0)
    encoder = Encoder((16, 32), batch_norm=False).to(memory_format=torch.channels_last)
    images = torch.rand(8, 3, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    direction = torch.randn(8, 32 * 8 * 8)
    with torch.autocast("cpu", torch.bfloat16):
        if not computes_by_onednn(images):
            pytest.skip("there is no oneDNN here, or it has no bf16 on this CPU")

    def computed(layers: nn.Module, *, bf16: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            features = layers(images).flatten(1).float()
        (features * direction).sum().backward()
        inputs = [*encoder.parameters(), images]
        found = [features.detach(), *(one.grad for one in inputs if one.grad is not None)]
        for one in inputs:
            one.grad = None
        return found

    exact = computed(encoder, bf16=False)
    by_layers = computed(encoder.layers, bf16=True)
    by_onednn = computed(encoder, bf16=True)
    assert not torch.equal(by_onednn[0], by_layers[0])  # they are two ways
    assert len(by_onednn) == 6
    assert _distance(by_onednn[0], exact[0]) < _distance(by_layers[0], exact[0])
    # Of gradients, too, in all: each way rounds some values to the other side of ReLU or of a maximum.
    found, other, wanted = (
        torch.cat([one.flatten() for one in way[1:]]) for way in (by_onednn, by_layers, exact)
    )
    assert _distance(found, wanted) < 1.1 * _distance(other, wanted) < 0.2
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(encoder(images).float(), by_onednn[0])


def _distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("channels", [3, 32])
def test_a_bias_is_added_to_each_channel_in_any_memory_format(channels: int) -> None:
    torch.manual_seed(0)
    shift = Bias(nn.Conv2d(2, channels, 3))
    features, direction = torch.randn(2, channels, 4, 6), torch.randn(2, channels, 4, 6)
    for layout in (torch.contiguous_format, torch.channels_last):
        shift.bias.grad = None
        found = shift(features.clone(memory_format=layout))
        assert torch.equal(found, features + shift.bias.detach().view(1, -1, 1, 1))
        (found * direction).sum().backward()
        torch.testing.assert_close(shift.bias.grad, direction.sum((0, 2, 3)))


def test_a_bias_apart_from_its_convolution_has_the_gradient_of_one_inside() -> None:
    torch.manual_seed(0)
    decoder = Decoder(5, (4, 8), (2, 3), batch_norm=False)
    codes, wanted = torch.randn(2, 5), torch.rand(2, 3, 8, 12)
    (decoder(codes) - wanted).square().mean().backward()
    found = [parameter.grad for parameter in decoder.layers.parameters()]
    weights = [parameter.detach().requires_grad_() for parameter in decoder.layers.parameters()]
    features = decoder.expand(codes).unflatten(1, decoder.grid).detach()
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        features = nn.functional.conv_transpose2d(features.relu(), weight, bias, 2, 1, 1)
    (features.sigmoid() - wanted).square().mean().backward()
    torch.testing.assert_close(found, [weight.grad for weight in weights])


def test_weights_and_biases_are_drawn_as_pytorch_draws_those_of_its_layers() -> None:
    torch.manual_seed(0)
    encoder, decoder = Encoder((4, 8), batch_norm=False), Decoder(5, (4, 8), (1, 1), batch_norm=False)
    torch.manual_seed(0)
    plain = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3), nn.Linear(5, 8)]
    plain += [nn.ConvTranspose2d(8, 4, 3), nn.ConvTranspose2d(4, 3, 3)]
    expected = [parameter for layer in plain for parameter in layer.parameters()]
    for ours, theirs in zip([*encoder.parameters(), *decoder.parameters()], expected, strict=True):
        assert torch.equal(ours, theirs)


def pairwise_weights(encoder: Encoder) -> list[tuple[Tensor, Tensor]]:
    parameters = list(encoder.parameters())
    return list(zip(parameters[::2], parameters[1::2], strict=True))


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


@pytest.mark.parametrize(
    ("small", "size"), [((32, 32), (64, 64)), ((40, 32), (160, 128)), ((7, 9), (11, 10)), ((8, 5), (8, 5))]
)
@pytest.mark.parametrize("autocast", [False, True])
def test_enlargement_is_bilinear_interpolation(
    small: tuple[int, int], size: tuple[int, int], autocast: bool
) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, *small).to(memory_format=torch.channels_last).requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = Enlargement(small, size)(images)
    wanted = F.interpolate(images, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    weights = torch.rand_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, images, weights),
        torch.autograd.grad(wanted, images, weights),
    )


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
    images, linear = decoder(codes), decoder.linear(codes)
    assert images.shape == (3, 3, *size)
    within = (linear >= 0) & (linear <= 1)
    assert 0 < within.sum() < within.numel()
    assert torch.equal(images[within], linear[within])


def test_what_is_beyond_black_and_white_is_a_tenth_as_far() -> None:
    torch.manual_seed(0)
    decoder = ResidualDecoder(1, (4, 6), 16, 16, False)
    torch.nn.init.zeros_(decoder.linear.matrix.weight)
    expected = {-2.0: -0.2, -0.5: -0.05, 0.0: 0.0, 0.3: 0.3, 1.0: 1.0, 1.5: 1.05}
    for level, shown in expected.items():
        torch.nn.init.constant_(decoder.linear.matrix.bias, level)
        torch.testing.assert_close(decoder(torch.zeros(1, 1)), torch.full((1, 3, 16, 16), shown))


def test_drawings_are_learned_with_less_grain_in_their_white(monkeypatch: pytest.MonkeyPatch) -> None:
    drawings = torch.ones(32, 3, 32, 32)  # a dark bar on white
    for index, drawing in enumerate(drawings):
        drawing[:, :, 4 + 3 * (index % 8) : 6 + 3 * (index % 8)] = 0.2

    def grain(beyond: float) -> float:
        monkeypatch.setattr(convolutions, "_BEYOND", beyond)
        torch.manual_seed(0)
        decoder, codes = ResidualDecoder(8, (8, 16), 32, 32, False), torch.randn(32, 8)
        optimizer = torch.optim.Adam(decoder.parameters(), 3e-3)
        for _ in range(100):
            optimizer.zero_grad()
            F.mse_loss(decoder(codes), drawings).backward()
            optimizer.step()
        return float((1 - decoder(codes).detach().clamp(0, 1))[drawings == 1].square().mean().sqrt())

    assert grain(convolutions._BEYOND) < 0.7 * grain(1.0)


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
