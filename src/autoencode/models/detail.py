"""Detail of images: split into fine and coarse, amplified for networks to see, and refined after decoding.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencode.models.convolutions import CHANNELS, MEAN, SPREAD, start_at_zero

# Detail of a sharp decoder counts as coarse where a Gaussian of this deviation keeps it, for images whose
# shorter side is at most _COARSE_SIDE, and in proportion to the side above it. At equal error a smaller
# deviation gives images more fine detail and a worse KID (docs/log.md).
_COARSE_PX, _COARSE_SIDE = 1.2, 64

_DETAIL = 9  # factor on the detail of patches (docs/log.md has others)
_REFINED_WIDTH = 16


def parts_of_detail(faithful: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
    """Split what a sharp image adds to a faithful one into a fine and a coarse part, each (B, 3, H, W).

    The coarse part is what a Gaussian of 1.2 pixels keeps, or of 1.2 s / 64 where the shorter side s is above
    64.

    Args:
        faithful: images (B, 3, H, W) of the first decoder.
        sharp: those of the second.
    """
    added = (sharp - faithful).float().contiguous()
    deviation = _COARSE_PX * max(1.0, min(added.shape[2:]) / _COARSE_SIDE)
    # Each channel as an image of its own, in fp32: grouped convolutions in bf16 can take minutes on a CPU.
    with torch.autocast(added.device.type, enabled=False):
        channels = added.flatten(0, 1)[:, None]
        coarse = smoothed(channels, deviation, reach=math.ceil(3 * deviation)).view(added.shape)
    return added - coarse, coarse


def smoothed(maps: Tensor, sigma_px: float, reach: int) -> Tensor:
    """Return maps (B, 1, H, W) blurred by a Gaussian, cut off beyond `reach` pixels, edges repeated."""
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=maps.device) / sigma_px).square())
    weights = weights / weights.sum()
    maps = F.conv2d(F.pad(maps, (reach, reach, 0, 0), mode="replicate"), weights.view(1, 1, 1, -1))
    return F.conv2d(F.pad(maps, (0, 0, reach, reach), mode="replicate"), weights.view(1, 1, -1, 1))


class DetailConvolution(nn.Conv2d):
    """A 3x3 convolution of patches whose detail, the difference from their mean, is amplified nine times.

    Detail that images lack, and grain that they should not have, have a small amplitude: a network that sees
    images as they are is blind to both for hundreds of steps (docs/log.md).

    Args:
        inputs, outputs: channels.
        padding: of zeros around the images, pixels.
    """

    def __init__(self, inputs: int, outputs: int, padding: int = 0) -> None:
        super().__init__(inputs, outputs, 3, padding=padding)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to features (B, out_channels, h, w)."""
        # The map that enlarges detail is symmetric: applied to the weights it gives the same products.
        mean = self.weight.mean((2, 3), keepdim=True)
        weight = mean + _DETAIL * (self.weight - mean)
        return F.conv2d(images, weight, self.bias, padding=self.padding)


class Refinement(nn.Module):
    """Decoded images (B, 3, H, W) -> the same with less grain and cleaner edges; at first unchanged.

    A decoder paints squares of a few pixels and in each knows little of the next: plain parts get grain, and
    edges steps. Here each pixel is corrected by the 7x7 around it, as far as that is within the image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = DetailConvolution(CHANNELS, _REFINED_WIDTH)
        self.middle = nn.Conv2d(_REFINED_WIDTH, _REFINED_WIDTH, 3, padding=1)
        self.last = nn.Conv2d(_REFINED_WIDTH, CHANNELS, 3, padding=1)
        start_at_zero(self.last)

    def forward(self, images: Tensor) -> Tensor:
        """Map float32 images, about in [0, 1], to such images."""
        scaled = F.pad((images - MEAN) / SPREAD, (1, 1, 1, 1), mode="replicate")
        # Not in bf16, whose steps are as large as grain.
        with torch.autocast(images.device.type, enabled=False):
            features = self.first(scaled.contiguous(memory_format=torch.channels_last))
        features = self.middle(F.silu(features))
        return images + SPREAD * self.last(F.silu(features)).float()  # type: ignore[no-any-return]
