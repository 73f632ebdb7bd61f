"""The paper's convolutional halves (Kovenko & Bogach 2020, section 3).

Shapes: B batch, C channels, H height, W width, D code size. Images are (B, 3, H, W), codes (B, D).

The paper does not print its widths; ours are 32-64-128-256. Max-pooling comes before ReLU: they commute, and
a quarter of the values is left to rectify. The transposed convolutions are 3x3 with stride 2, so that the
squares they paint overlap; 2x2 ones are a tenth faster and leave tiles in the image (docs/log.md).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

CHANNELS = 3


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, width * H/2^n * W/2^n): n times 3x3 convolution, 2x2 max-pooling, ReLU."""

    def __init__(self, widths: tuple[int, ...], batch_norm: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for inputs, outputs in pairwise((CHANNELS, *widths)):
            self.layers.append(nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=not batch_norm))
            if batch_norm:
                self.layers.append(nn.BatchNorm2d(outputs))
            self.layers.extend([nn.MaxPool2d(2), nn.ReLU(inplace=True)])

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
            self.layers.append(_doubling(inputs, outputs, bias=not batch_norm))
            if batch_norm:
                self.layers.append(nn.BatchNorm2d(outputs))
            self.layers.append(nn.ReLU(inplace=True))
        # No batch normalisation here: it would fix the mean and contrast of the output images.
        self.layers.append(_doubling(deepest_first[-1], CHANNELS, bias=True))

    def forward(self, codes: Tensor) -> Tensor:
        """Map (B, D) to images (B, 3, H, W), each value in (0, 1)."""
        features = self.expand(codes).unflatten(1, self.grid)
        return torch.sigmoid(self.layers(features.contiguous(memory_format=torch.channels_last)))


def _doubling(inputs: int, outputs: int, *, bias: bool) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=bias)
