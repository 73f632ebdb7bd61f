"""Pixels to images and back: the one place where uint8 becomes float.

Shapes: B batch, H height, W width. Pixels are (B, H, W, 3) uint8 in 0..255, images (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

# The variance of rounding to 8 bits: 256 levels over [0, 1], uniform within one. A likelihood narrower than
# that would model the rounding, and its density has no bound.
SIGMA2_FLOOR = (1 / 255) ** 2 / 12


def to_float(pixels: NDArray[np.uint8] | Tensor) -> Tensor:
    """Turn pixels (B, H, W, 3) in 0..255 into images (B, 3, H, W) float32 in [0, 1], on the same device.

    The result is channels last in memory, as the pixels are: the only copy is the conversion itself.
    """
    import torch  # imported here: settings need the constant above, and --help must not wait for torch

    pixels = pixels if isinstance(pixels, torch.Tensor) else torch.from_numpy(pixels)
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255)


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
