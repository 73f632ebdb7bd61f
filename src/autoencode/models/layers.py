"""What each convolution of an encoder makes of images, and how much of an image each of its values sees.

Layers are found by running the encoder, not by its name, so this holds for either network.

Shapes: B batch, C channels, H and W of the image, h and w of a map. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencode.models.autoencoder import Autoencoder

# Parts along a side that maps are pooled over. On digits 4x4 tells classes apart far better than 1x1, and
# hardly better than 2x2; where things may be anywhere, 1x1 needs fewer labels.
SQUARES = (1, 4)

Pair = tuple[int, int]


@dataclass
class Layer:
    """A convolution and all that follows it up to the next: normalisation, pooling, activation, a sum.

    Attributes:
        name: of the convolution within the model, such as "encoder.layers.0".
        maps: (B, C, h, w) float32: what the next convolution is given.
        receptive_field_px: (height, width) of the square of pixels that a value depends on. Near an edge
            part of it lies outside the image.
        stride_px: (vertical, horizontal) pixels from one value to the next.
    """

    name: str
    maps: Tensor
    receptive_field_px: Pair
    stride_px: Pair

    def pooled(self, squares: int) -> Tensor:
        """Describe the maps by the mean and standard deviation of each channel in parts of the image.

        Args:
            squares: S, parts along a side; 1 forgets where in the image something is.

        Returns:
            (B, 2 C S^2).
        """
        mean = F.adaptive_avg_pool2d(self.maps, squares)
        variance = F.adaptive_avg_pool2d(self.maps.square(), squares) - mean.square()
        return torch.cat([mean, variance.clamp(min=0).sqrt()], 1).flatten(1)


class Trace(NamedTuple):
    """One pass through the encoder: its `layers`, shallow to deep, and the `codes` (B, D) at its end."""

    layers: list[Layer]
    codes: Tensor


def trace(model: Autoencoder, images: Tensor) -> Trace:
    """Encode images and keep what each convolution made of them, on the CPU.

    Args:
        model: from `load_model`.
        images: (B, 3, H, W) float in [0, 1], a batch small enough to go through the model at once.

    Raises:
        ConfigError: the images have another shape or type than the model was trained on.
    """
    with _watching(model, (images.shape[-2], images.shape[-1])) as layers:
        codes = model.encode_at_once(images)
    for layer in layers:
        layer.maps = layer.maps.float().cpu()
    return Trace(layers, codes)


def descriptions(layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Return the maps of each layer pooled, (B, F), by names such as "encoder.layers.0 4x4".

    They are pooled over the image (1x1) and over 4x4 parts of it, if the maps have more values than that.
    """
    return {
        f"{layer.name} {squares}x{squares}": layer.pooled(squares)
        for layer in layers
        for squares in SQUARES
        if squares == 1 or min(layer.maps.shape[2:]) > squares
    }


@contextmanager
def _watching(model: Autoencoder, image_size: Pair) -> Iterator[list[Layer]]:
    """Yield a list that fills with the layers of the encoder while it runs."""
    layers: list[Layer] = []
    names = {module: name for name, module in model.named_modules()}

    def begin(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        given: Tensor = inputs[0]
        if layers:
            field, stride = layers[-1].receptive_field_px, layers[-1].stride_px
        else:
            # What comes before the first convolution may lay squares of pixels one behind the other as
            # channels; it is then given a smaller image, of which each value has seen one such square.
            field = stride = (image_size[0] // given.shape[2], image_size[1] // given.shape[3])
        layers.append(Layer(names[module], given, field, stride))

    def keep(module: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
        if not layers or output.ndim != 4:
            return
        layer = layers[-1]
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            layer.receptive_field_px, layer.stride_px = _widened(layer, module)
        layer.maps = output

    hooks = []
    for module in model.encoder.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_pre_hook(begin))
        hooks.append(module.register_forward_hook(keep))
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()


def _widened(layer: Layer, module: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) -> tuple[Pair, Pair]:
    """Receptive field and stride after one more window: Dumoulin & Visin 2016; Araujo et al. 2019, eq. 2.

    r' = r + (k - 1) * dilation * stride, stride' = stride * step. Where a sum joins two paths the longer one
    decides, and that is the one with the convolutions: a skip widens nothing.
    """
    kernel, step = _pair(module.kernel_size), _pair(module.stride)
    dilation = _pair(getattr(module, "dilation", 1))
    field, stride = layer.receptive_field_px, layer.stride_px
    return (
        (
            field[0] + (kernel[0] - 1) * dilation[0] * stride[0],
            field[1] + (kernel[1] - 1) * dilation[1] * stride[1],
        ),
        (stride[0] * step[0], stride[1] * step[1]),
    )


def _pair(value: int | tuple[int, ...]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
