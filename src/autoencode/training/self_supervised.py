"""Make pairs to train on out of images that are all noisy; no clean ones are needed.

The first steps learn from images with more noise added to them (Pang et al. 2021). Their targets are noisy as
well, so that each step teaches little, and noise of 0.3 ends 3.5 dB behind training on clean images. What
these steps have restored then takes the place of clean images: noise of the level that was found is added,
and the network learns to remove that (Zhang et al. 2022, iterative data refinement). A network that restores
already, as its first weights are those of a trained one, begins there.

Files of 8 bits hold noise that is cut off at black and white. Its level is estimated, and its effect on the
mean computed, as for Gaussian noise before the cut.

Shapes: B batch, H height, W width. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from autoencode.data.damage import Draws, clipped_noise
from autoencode.metrics.images import noise_level

if TYPE_CHECKING:
    from autoencode.data.loader import LocalBatch

# Share of the steps after which restored images take the place of clean ones.
FIRST_SHARE = 0.5

_SQUARE_PX = 4  # side of the squares whose means stand for the clean image when a level is estimated
_LARGEST_RATIO, _RATIOS, _BRIGHTNESSES = 2.5, 31, 101
_LEAST_LEVEL = 1e-3


def recorrupted(
    images: Tensor, generator: torch.Generator, local: LocalBatch | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Make a training pair from each noisy image: Pang et al. 2021, Recorrupted-to-Recorrupted.

    The same new noise n is added to the input, as r n, and taken from the target, as n / r. Where n has the
    level of the noise of the image and both are Gaussian, the noise of the two is independent: a network that
    comes closest to the target on average comes closest to the clean image, which nobody has.

    Args:
        images: (B, 3, H, W) with white noise of any level; not changed.
        generator: the source of randomness, on the device of the images.
        local: the part of a batch that the images are; None for all of it.

    Returns:
        Input and target, each (B, 3, H, W), and the levels of the noise before it was cut off, (B,).
    """
    draws = Draws(images, generator, local)
    # Inputs of 1.04 to 1.41 times the noise of the images: what is learned holds for the images themselves.
    ratio = (0.3 + 0.7 * draws.uniform())[:, None, None, None]
    seen_level = noise_level(images)
    noise = seen_level[:, None, None, None] * draws.normal()
    return images + ratio * noise, images - noise / ratio, level_before_cut(images, seen_level)


def damaged_again(
    images: Tensor, restored: Tensor, generator: torch.Generator, local: LocalBatch | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Make a training pair from the restored version of each noisy image; see the module.

    Args:
        images: (B, 3, H, W) with white noise of any level.
        restored: (B, 3, H, W), what the network makes of them so far.
        generator, local: as for `recorrupted`.

    Returns:
        As for `recorrupted`; the target has no noise, so that the levels are 0.
    """
    level = level_before_cut(images, noise_level(images))
    target = restored.float().clamp(0, 1)
    seen = clipped_noise(target, level, Draws(images, generator, local))
    return seen, target, torch.zeros_like(level)


def level_before_cut(images: Tensor, level: Tensor) -> Tensor:
    """Return the standard deviation of noise before it was cut off at black and white.

    Args:
        images: (B, 3, H, W), noisy.
        level: (B,) standard deviation of what is left of the noise, averaged over the image.

    Returns:
        (B,), from `level` to 2.5 times as much.
    """
    means = F.avg_pool2d(images.float(), _SQUARE_PX, ceil_mode=True).flatten(1)
    ratios = torch.linspace(1, _LARGEST_RATIO, _RATIOS, device=images.device)
    brightness = torch.linspace(0, 1, _BRIGHTNESSES, device=images.device)
    levels = level[:, None] * ratios
    mean, variance = _moments(brightness[None, None], levels[..., None])
    # The brightness whose noise, cut off, has the mean of a square; then what is left of the noise there.
    nearest = torch.searchsorted(mean, means[:, None].expand(-1, _RATIOS, -1).contiguous())
    left = variance.gather(2, nearest.clamp_max(_BRIGHTNESSES - 1)).mean(2).sqrt()
    # More noise leaves more: the first of the levels that leaves as much as was found, and the one before.
    above = (left < level[:, None]).sum(1, keepdim=True).clamp(1, _RATIOS - 1)
    (less, more), (low, high) = (
        [values.gather(1, at)[:, 0] for at in (above - 1, above)] for values in (left, levels)
    )
    part = ((level - less) / (more - less).clamp_min(1e-6)).clamp(0, 1)
    return torch.lerp(low, high, part)


def mean_after_cut(images: Tensor, level: Tensor) -> Tensor:
    """Return the mean of images with noise of that standard deviation that is cut off at black and white.

    Args:
        images: (B, 3, H, W), of any values.
        level: (B,); 0 for no noise, which leaves the cut alone.
    """
    return _moments(images.float(), level[:, None, None, None])[0]


def _moments(clean: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of clean + level * n, n standard normal, cut off at 0 and 1."""
    level = level.clamp_min(_LEAST_LEVEL)
    low, high = -clean / level, (1 - clean) / level
    at_low, at_high = _density(low), _density(high)
    within, white = torch.special.ndtr(high) - torch.special.ndtr(low), torch.special.ndtr(-high)
    mean = clean * within + level * (at_low - at_high) + white
    square = (clean.square() + level.square()) * within + 2 * clean * level * (at_low - at_high)
    square = square + level.square() * (low * at_low - high * at_high) + white
    return mean, (square - mean.square()).clamp_min(0)


def _density(values: Tensor) -> Tensor:
    return torch.exp(-0.5 * values.square()) / math.sqrt(2 * math.pi)
