"""The paper's convolutional halves (Kovenko & Bogach 2020, section 3).

Shapes: B batch, C channels, H height, W width, D code size. Images are (B, 3, H, W), codes (B, D).

The paper does not print its widths; ours are 32-64-128-256. Max-pooling comes before the bias and ReLU: they
commute, and a quarter of the values is left to shift and rectify. The transposed convolutions are 3x3 with
stride 2, so that the squares they paint overlap; 2x2 ones are a tenth faster and leave tiles in the image
(docs/log.md).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

CHANNELS = 3


class Bias(nn.Module):
    """The bias of a convolution, apart from it: a value added to each channel.

    On a CPU the gradient of a bias inside a convolution may take several times as long as those of its
    weights and its input together; here it is a sum (docs/performance.md). Drawn as PyTorch draws it.
    """

    def __init__(self, convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        inputs = convolution.weight[0].numel()  # PyTorch counts so for transposed ones too
        bound = 1 / math.sqrt(inputs)
        self.bias = nn.Parameter(torch.empty(convolution.out_channels).uniform_(-bound, bound))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same, in place: neither pooling nor a convolution needs its output again."""
        return features.add_(self.bias.to(features.dtype)[:, None, None])


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, width * H/2^n * W/2^n): n times 3x3 convolution, 2x2 max-pooling, ReLU."""

    def __init__(self, widths: tuple[int, ...], batch_norm: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for inputs, outputs in pairwise((CHANNELS, *widths)):
            convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
            # A normalisation does not commute with pooling: its factors may be negative.
            shifted = (
                [nn.BatchNorm2d(outputs), nn.MaxPool2d(2)]
                if batch_norm
                else [nn.MaxPool2d(2), Bias(convolution)]
            )
            self.layers.extend([convolution, *shifted, nn.ReLU(inplace=True)])

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to flat features, channels first."""
        return self.layers(images).flatten(1)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """(B, D) -> (B, 3, H, W) in (0, 1): a linear layer, n transposed convolutions, sigmoid."""

    def __init__(
        self, code_size: int, widths: tuple[int, ...], grid: tuple[int, int], batch_norm: bool
    ) -> None:
        super().__init__()
        deepest_first = widths[::-1]
        self.grid = (deepest_first[0], *grid)
        self.expand = nn.Linear(code_size, deepest_first[0] * grid[0] * grid[1])
        self.layers = nn.Sequential(nn.ReLU(inplace=True))
        for inputs, outputs in pairwise(deepest_first):
            doubling = _doubling(inputs, outputs)
            shift = nn.BatchNorm2d(outputs) if batch_norm else Bias(doubling)
            self.layers.extend([doubling, shift, nn.ReLU(inplace=True)])
        # No batch normalisation here: it would fix the mean and contrast of the output images.
        last = _doubling(deepest_first[-1], CHANNELS)
        self.layers.extend([last, Bias(last)])

    def forward(self, codes: Tensor) -> Tensor:
        """Map (B, D) to images (B, 3, H, W), each value in (0, 1)."""
        features = self.expand(codes).unflatten(1, self.grid)
        return torch.sigmoid(self.layers(features.contiguous(memory_format=torch.channels_last)))


def _doubling(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)
