"""Levels of 8 or 16 bits to images in [0, 1] and back, in the one way that all other modules use.

Shapes: B batch, C channels, H height, W width. Pixels are (B, H, W, 3) uint8 in 0..255, levels (B, H, W, C)
uint8 or uint16, images (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Levels = NDArray[np.uint8] | NDArray[np.uint16]

# The variance of rounding to 8 bits: 256 levels over [0, 1], uniform within one. A likelihood narrower than
# that would model the rounding, and its density has no bound.
SIGMA2_FLOOR = (1 / 255) ** 2 / 12


def to_float(levels: Levels | Tensor) -> Tensor:
    """Turn levels (B, H, W, C) into images (B, C, H, W) float32 in [0, 1], on the same device.

    The result is channels last in memory, as the levels are: the only copy is the conversion itself.
    """
    import torch  # imported here: settings need the constant above, and --help must not wait for torch

    levels = levels if isinstance(levels, torch.Tensor) else torch.from_numpy(levels)
    white = 65535 if levels.dtype == torch.uint16 else 255
    return levels.permute(0, 3, 1, 2).to(torch.float32).div_(white)


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Turn images (B, 3, H, W) float in [0, 1] on the CPU into pixels (B, H, W, 3) in 0..255.

    Values are rounded to the nearest level, so `to_pixels(to_float(pixels))` equals `pixels`. Values outside
    [0, 1], which the residual network may decode, are clipped.
    """
    import torch

    # Rounded and clipped before the cast, which truncates, and wraps values outside 0..255 around.
    levels = images.mul(255).round_().clamp_(0, 255).to(torch.uint8)
    pixels: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).numpy()
    return pixels


def to_16_bits(images: Tensor) -> NDArray[np.uint16]:
    """Turn images (B, C, H, W) float in [0, 1] on the CPU into levels (B, H, W, C) in 0..65535."""
    import numpy as np

    levels = images.mul(65535).round_().clamp_(0, 65535)
    return levels.permute(0, 2, 3, 1).numpy().astype(np.uint16)


def rounded_to_8_bits(images: Tensor) -> Tensor:
    """Return images as a file of 8 bits holds them: clipped to [0, 1] and rounded to one of 256 levels."""
    return images.clamp(0, 1).mul(255).round().div(255)
