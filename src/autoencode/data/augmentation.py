"""Patches, mirror images and shifted images, by which training makes more images out of few.

Shapes: B batch, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoencode.data.damage import Draws

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from autoencode.data.loader import LocalBatch

# How many pixels along a side become one, the last as often as the others together. Many photographs are soft
# at full size, or were enlarged by somebody. A network that saw no sharp ones takes fine detail for noise:
# trained on such photographs at one scale it returned sharp ones, clean, with 26 dB. Soft ones
# are sharp only at the last scale: with half of the squares at that scale it has 34.8 dB, with a third 32.8,
# after the same time, and returns soft ones as well (docs/log.md).
SCALES = (1, 2, 4, 4)


def random_patch(
    images: Tensor,
    side: int,
    generator: torch.Generator,
    local: LocalBatch | None = None,
    *,
    scaled: bool = False,
) -> Tensor:
    """Return a square of `side` pixels at a random place of each of the images (B, 3, H, W).

    Args:
        images: not changed; one that is smaller keeps that side whole.
        side: in pixels.
        generator: the source of randomness, on the device of the images.
        local: which part of a batch the images are; None for all of it.
        scaled: whether each image draws one of `SCALES`. So much larger is the square that is cut out and
            made small; where the image has not as much, its borders are mirrored. An image of less than
            twice the side stays as it is. Not for learning from noise, which would be mirrored, too.
    """
    import torch

    height, width = images.shape[-2:]
    draws = Draws(images, generator, local)
    down, across = draws.uniform().tolist(), draws.uniform().tolist()
    factors, thinned = [1] * len(images), [0.0] * len(images)
    if scaled and min(height, width) >= 2 * side:
        factors = [SCALES[int(one * len(SCALES))] for one in draws.uniform().tolist()]
        thinned = draws.uniform().tolist()
    places = zip(images, down, across, factors, thinned, strict=True)
    return torch.stack([_patch(*place, side) for place in places]).contiguous(
        memory_format=torch.channels_last
    )


def _patch(image: Tensor, down: float, across: float, factor: int, thinned: float, side: int) -> Tensor:
    """Cut a patch of `factor * side` pixels out of an image (3, H, W), and make it small: `side` pixels.

    `thinned` is the weight of the image that has one pixel in `factor` of each row and column, beside that
    of averages. The average of a soft photograph is softer than a sharp one.
    """
    import torch.nn.functional as F

    height, width = image.shape[1:]
    tall, wide = (min(side * factor, length) // factor * factor for length in (height, width))
    top, left = int(down * (height - tall + 1)), int(across * (width - wide + 1))
    patch = image[:, top : top + tall, left : left + wide]
    if factor == 1:
        return patch
    small = F.avg_pool2d(patch, factor).lerp(patch[:, factor // 2 :: factor, factor // 2 :: factor], thinned)
    below, beside = side - small.shape[1], side - small.shape[2]
    margins = (beside // 2, beside - beside // 2, below // 2, below - below // 2)
    return F.pad(small[None], margins, mode="reflect")[0]


def horizontal_flip(images: Tensor, generator: torch.Generator, local: LocalBatch | None = None) -> Tensor:
    """Flip each of the images (B, 3, H, W) left to right with probability one half.

    Args:
        images: not changed.
        generator: the source of randomness, on the device of the images.
        local: which part of a batch the images are; None for all of it.
    """
    flipped = Draws(images, generator, local).uniform() < 0.5
    return images.flip(3).where(flipped[:, None, None, None], images)


def random_shift(
    images: Tensor, max_shift: int, generator: torch.Generator, local: LocalBatch | None = None
) -> Tensor:
    """Shift each of the images (B, 3, H, W) by whole pixels, and fill the margin with its border pixels.

    Args:
        images: not changed.
        max_shift: pixels, at least 0. Each shift from -`max_shift` to `max_shift` is equally likely, down and
            across independently.
        generator: the source of randomness, on the device of the images.
        local: which part of a batch the images are; None for all of it.

    Returns:
        Images in the memory format of those given.
    """
    import torch

    draws, (height, width) = Draws(images, generator, local), images.shape[2:]
    down, across = ((draws.uniform() * (2 * max_shift + 1)).long() - max_shift for _ in range(2))
    rows, columns = (
        (torch.arange(length, device=images.device) - shift[:, None]).clamp(0, length - 1)
        for length, shift in ((height, down), (width, across))
    )
    each = torch.arange(len(images), device=images.device)[:, None, None]
    # Indices around the channels put these last, as channels_last has them in memory.
    shifted = images[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return shifted.contiguous() if images.is_contiguous() else shifted
