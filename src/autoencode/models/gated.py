"""The network "gated" of restorers: a U-Net of gated blocks maps images to what is to be added to them.

A bottleneck must throw detail away, so that a denoising autoencoder returns less than the noisy image still
shows. A U-Net (Ronneberger et al. 2015) has skips around its bottleneck and here returns what is to be added
to the image (Zhang et al. 2017, DnCNN): detail has a way around every halving. Blocks are those of NAFNet
(Chen et al. 2022) without its attention to means over the image, which would make the result at a position
depend on positions far away and leave seams between tiles. In equal time they are better than two full
convolutions with ReLU between them, with .4 of the weights (docs/log.md).

Shapes: B batch, C channels, H height, W width. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# No setting and no file holds these four numbers: the name "gated" stands for them, and saved weights fit no
# others. A network with other numbers needs a name of its own in `NETWORKS`.
PATCH = 2  # pixels along a side that the first convolution takes as channels: a quarter of the work, or less
# Blocks of a level on the way down and up, and of the deepest: features are mostly made on the way up.
DOWN_BLOCKS, DEEPEST_BLOCKS, UP_BLOCKS = 1, 2, 2


class _Norm(nn.Module):
    """Normalises the channels of each position to mean 0 and variance 1, times a learned factor a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        last = features.permute(0, 2, 3, 1)
        return F.layer_norm(last, last.shape[-1:], self.weight.to(last.dtype)).permute(0, 3, 1, 2)


class _Block(nn.Module):
    """Adds products of pairs of channels, first after a 3x3 convolution of each channel and then without one.

    Products take the place of ReLU. They grow with the square of their input: without the norms, training
    diverges.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.second_norm = _Norm(channels), _Norm(channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        # A full 3x3 convolution takes seven times as long as one a channel (docs/log.md).
        self.near = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.second_expand = nn.Conv2d(channels, 2 * channels, 1)
        self.second_mix = nn.Conv2d(channels, channels, 1)
        # A dozen of blocks in a row would otherwise start with a dozen times the variance.
        with torch.no_grad():
            self.mix.weight.mul_(0.2)
            self.second_mix.weight.mul_(0.2)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        features = features + self.mix(_products(self.near(self.expand(self.norm(features)))))
        return features + self.second_mix(_products(self.second_expand(self.second_norm(features))))  # type: ignore[no-any-return]


def _products(features: Tensor) -> Tensor:
    """Multiply the first half of the channels by the second: (B, 2 C, H, W) to (B, C, H, W)."""
    first, second = features.chunk(2, 1)
    return first * second


class GatedUNet(nn.Module):
    """(B, 3, H, W) -> (B, 3, H, W), what is to be added to the images; H and W multiples of `factor`.

    Args:
        widths: channels of each level, shallow to deep.

    Attributes:
        factor: pixels along a side that become one position of the deepest level.
        reach: pixels that the value of a pixel depends on, in each direction.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.factor = PATCH * 2 ** (len(widths) - 1)
        convolutions = [DOWN_BLOCKS + UP_BLOCKS] * (len(widths) - 1) + [DEEPEST_BLOCKS]
        steps = [PATCH * 2**level for level in range(len(widths))]
        # The first and the last convolution work at the first level; a halving takes in a whole square.
        self.reach = (
            2 * PATCH + sum(n * step for n, step in zip(convolutions, steps, strict=True)) + self.factor
        )
        channels = 3 * PATCH**2
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_blocks(width, DOWN_BLOCKS) for width in widths[:-1])
        self.halve = nn.ModuleList(
            nn.Conv2d(width, deeper, 2, stride=2) for width, deeper in pairwise(widths)
        )
        self.deepest = _blocks(widths[-1], DEEPEST_BLOCKS)
        self.enlarge = nn.ModuleList(nn.Conv2d(deeper, 4 * width, 1) for width, deeper in pairwise(widths))
        self.up = nn.ModuleList(_blocks(width, UP_BLOCKS) for width in widths[:-1])
        self.last = nn.Conv2d(widths[0], channels, 3, padding=1)
        # Training starts near the images as they are.
        with torch.no_grad():
            self.last.weight.mul_(0.1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to what is to be added to them."""
        patches = F.pixel_unshuffle(images - 0.5, PATCH).contiguous(memory_format=torch.channels_last)
        features = self.first(patches)
        passed: list[Tensor] = []
        for down, halve in zip(self.down, self.halve, strict=True):
            features = down(features)
            passed.append(features)
            features = halve(features)
        features = self.deepest(features)
        for level in reversed(range(len(passed))):
            doubled = F.pixel_shuffle(self.enlarge[level](features), 2)
            features = self.up[level](doubled + passed[level])
        return F.pixel_shuffle(self.last(features), PATCH)


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(channels) for _ in range(count)))
