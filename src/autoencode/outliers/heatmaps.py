"""Where images differ from their reconstructions.

Shapes: B batch, H height, W width. Images are (B, 3, H, W) in [0, 1], heat-maps (B, H, W).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from autoencode.models.autoencoder import Autoencoder

# Of the shorter side: wide enough to join the specks of one defect, narrow enough to tell where it is.
SMOOTHING = 1 / 32


@torch.inference_mode()
def heat_maps(model: Autoencoder, images: Tensor) -> Tensor:
    """Where images and their reconstructions differ.

    Args:
        model: from `load_model`.
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, H, W), the squared difference averaged over channels and smoothed by a Gaussian of a 32nd of the
        shorter side; its mean over an image is about the mean squared error.
    """
    squared = (images.cpu() - model.reconstruct(images)).square().mean(dim=1, keepdim=True)
    return _smoothed(squared, SMOOTHING * min(images.shape[-2:]))[:, 0]


def coloured(maps: Tensor) -> NDArray[np.uint8]:
    """Return heat-maps (B, H, W) as pixels (B, H, W, 3) in 0..255, dark to bright on one scale for all."""
    from matplotlib import colormaps  # imported late: it takes a while

    largest = float(maps.max())
    shares = (maps / largest if largest > 0 else maps).sqrt().numpy()
    pixels: NDArray[np.uint8] = (colormaps["inferno"](shares)[..., :3] * 255).round().astype(np.uint8)
    return pixels


def _smoothed(maps: Tensor, sigma_px: float) -> Tensor:
    """(B, 1, H, W) blurred by a Gaussian, edges repeated."""
    reach = max(1, round(3 * sigma_px))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma_px).square())
    weights = weights / weights.sum()
    maps = F.conv2d(F.pad(maps, (reach, reach, 0, 0), mode="replicate"), weights.view(1, 1, 1, -1))
    return F.conv2d(F.pad(maps, (0, 0, reach, reach), mode="replicate"), weights.view(1, 1, -1, 1))
