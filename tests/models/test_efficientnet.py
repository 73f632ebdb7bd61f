"""EfficientNet-Lite0 with its normalisations folded in, against the network of another package."""

import copy
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from autoencode.models import efficientnet
from autoencode.models.backbones import multiplies_bf16
from autoencode.models.efficientnet import (
    BLOCK_CHANNELS,
    LAST,
    MEAN,
    SPREAD,
    EfficientNetLite0,
    _FixedConvolution,
    _for_same_padding,
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


@pytest.mark.skipif(not multiplies_bf16(torch.device("cpu")), reason="this processor does not multiply bf16")
def test_maps_have_the_same_bits_where_onednn_applies_the_relu6(
    network: EfficientNetLite0, monkeypatch: pytest.MonkeyPatch
) -> None:
    cast = copy.deepcopy(network).to(torch.bfloat16)
    images = torch.rand(3, 3, 97, 160, generator=torch.Generator().manual_seed(0))
    fused = mock.Mock(wraps=efficientnet._with_relu6)
    monkeypatch.setattr(efficientnet, "_with_relu6", fused)
    with torch.inference_mode():
        found = cast.feature_maps(images, range(LAST + 1))
        assert fused.call_count == 33  # all but 16 linear ones
        monkeypatch.setattr(efficientnet, "_fuses", lambda _: False)
        expected = cast.feature_maps(images, range(LAST + 1))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(8, 12), (7, 12), (8, 11), (7, 9), (1, 2)])
def test_zeros_in_the_kernel_do_what_the_padding_of_the_features_did(
    kernel: int, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 6, *size, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 1, kernel, kernel, generator=generator, dtype=torch.float64)
    missing = [kernel - 2 + side % 2 for side in (size[1], size[0])]
    same = F.pad(features, [part for one in missing for part in (one // 2, one - one // 2)])
    found = F.conv2d(features, _for_same_padding(weight, features), stride=2, padding=kernel // 2, groups=6)
    torch.testing.assert_close(found, F.conv2d(same, weight, stride=2, groups=6), rtol=0, atol=1e-12)


def test_gradients_reach_the_images_by_the_operations_apart(network: EfficientNetLite0) -> None:
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    assert not efficientnet._fuses(images.bfloat16())
    network(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(8, 12), (7, 12), (8, 11), (7, 9)])
def test_the_fast_gradient_of_a_convolution_is_that_of_pytorch(kernel: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 6, *size, generator=generator)
    weight = _for_same_padding(torch.randn(6, 1, kernel, kernel, generator=generator), features)
    arguments = weight, torch.randn(6, generator=generator), (2, 2), (kernel // 2,) * 2, (1, 1), 6
    found, expected = (features.clone().requires_grad_() for _ in range(2))
    results = [_FixedConvolution.apply(found, *arguments), F.conv2d(expected, *arguments)]
    assert torch.equal(*results)
    gradient = torch.randn(results[0].shape, generator=generator)
    for result in results:
        result.backward(gradient)
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-5)


def test_the_fast_gradient_of_the_network_in_bf16_is_as_close_to_fp32_as_that_of_pytorch(
    network: EfficientNetLite0, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.rand(2, 3, 65, 64, generator=torch.Generator().manual_seed(0))

    def gradient(of: EfficientNetLite0) -> torch.Tensor:
        seen = images.clone().requires_grad_()
        sum(one.float().square().mean() for one in of.feature_maps(seen, (0, 2, 4, 10))).backward()
        assert seen.grad is not None
        return seen.grad

    exact = gradient(network)
    cast = copy.deepcopy(network).to(torch.bfloat16)
    fast = mock.Mock(wraps=_FixedConvolution.apply)
    monkeypatch.setattr(_FixedConvolution, "apply", fast)
    found = gradient(cast)
    assert fast.call_count == 3  # the strided ones among these blocks
    monkeypatch.setattr(efficientnet, "_has_slow_gradient", lambda *_: False)
    errors = [(one - exact).norm() / exact.norm() for one in (found, gradient(cast))]
    assert errors[0] < 1.05 * errors[1]
