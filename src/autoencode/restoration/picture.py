"""Restore one picture in memory, and measure what was removed and how close it is to a clean image.

Shapes: H height, W width, C channels. Levels are (H, W, C) in 0..255 or 0..65535.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from autoencode.data.corruptions import alternatives_of, parse_corruptions
from autoencode.data.pictures import Picture, read_picture
from autoencode.data.preprocessing import Limits
from autoencode.errors import ConfigError, ImageError
from autoencode.metrics.images import SSIM_WINDOW_PX, ssim
from autoencode.models.model_file import load_restorer
from autoencode.models.restorer import Restorer
from autoencode.restoration.tiles import Region, restore_levels, to_image

if TYPE_CHECKING:
    from autoencode.data.pack import Progress
    from autoencode.data.pictures import Levels
    from autoencode.training.runtime import Runtime

_STRIP_PX = 1_000_000  # pixels for which SSIM is computed at once, in some 100 MB


@dataclass(frozen=True, eq=False)
class RestoredPicture:
    """One picture in memory, before and after.

    Both have `encoded()`, the file to keep, and `shown()`, a file for a browser.

    Attributes:
        before: the picture as it was given.
        after: as restored, of the same kind; `scale` times as large.
        removed_rms: as in `Restoration`.
    """

    before: Picture
    after: Picture
    removed_rms: float


def restore_picture(
    model: Restorer | str | Path,
    picture: str | Path | bytes,
    *,
    scale: int = 1,
    amount: float = 1.0,
    limits: Limits | None = None,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> RestoredPicture:
    """Restore one picture in memory at its full size; nothing is written.

    Memory is that of the pixels, before and after, and of one tile.

    Args:
        model: from `load_restorer`, or its path.
        picture: an image file, or its content.
        scale: as for `restore`.
        amount: as for `restore`.
        limits: as for `restore`.
        runtime: where and how to compute; by default the fastest way where the model is.
        progress: called with (tiles done, tiles in total). What it raises stops the work.

    Raises:
        ModelFileError: there is no usable restorer at the path.
        ImageError: the picture cannot be used; the message is the plain reason.
        ConfigError: an argument cannot be used.
    """
    loaded = model if isinstance(model, Restorer) else load_restorer(model)
    check_arguments(loaded, scale, amount)
    limits = limits or Limits()
    before = read_picture(picture if isinstance(picture, bytes) else Path(picture), limits)
    check_enlarged(before.levels, scale, limits)
    differences = DifferenceSums()
    levels = restore_levels(
        loaded,
        before.levels,
        scale=scale,
        amount=amount,
        runtime=runtime,
        seen=differences.add,
        progress=progress,
    )
    return RestoredPicture(before, before.with_levels(levels), differences.removed_rms)


class DifferenceSums:
    """Sums over the tiles of one image: what was removed, and how far it is from the clean image.

    Args:
        clean: levels (H, W, C) of the clean image, grey or RGB; None for none.
    """

    def __init__(self, clean: Levels | None = None) -> None:
        self.clean = clean
        self.removed = self.before = self.after = 0.0
        self.values = 0

    def add(self, region: Region, before: Tensor, after: Tensor) -> None:
        """Count a tile: its region of the result, and the images (1, 3, h, w) before and after."""
        self.removed += float((after - before).square().double().sum())
        self.values += before.numel()
        if self.clean is not None:
            target = to_image(self.clean[region.rows, region.columns])  # grey is broadcast
            self.before += float((before.clamp(0, 1) - target).square().double().sum())
            self.after += float((after - target).square().double().sum())

    @property
    def removed_rms(self) -> float:
        """Root mean square of what was removed, in [0, 1]."""
        return math.sqrt(self.removed / self.values)

    @property
    def psnr_db(self) -> tuple[float, float]:
        """PSNR against the clean image in dB, before and after."""
        return _decibels(self.before / self.values), _decibels(self.after / self.values)


def _decibels(mse: float) -> float:
    return math.inf if mse == 0 else -10 * math.log10(mse)


def ssim_of_whole(restored: Levels, clean: Levels) -> float | None:
    """Return the structural similarity of two images (H, W, C); None if they are smaller than its window.

    It is computed in strips that overlap by the window, so that memory does not depend on the size.
    """
    height, width = restored.shape[:2]
    if min(height, width) < SSIM_WINDOW_PX:
        return None
    windows: int = height - SSIM_WINDOW_PX + 1  # from top to bottom
    step = max(1, _STRIP_PX // width)
    similarity = 0.0
    for top in range(0, windows, step):
        count = min(step, windows - top)
        strip = slice(top, top + count + SSIM_WINDOW_PX - 1)
        similarity += count * float(ssim(to_image(restored[strip]), to_image(clean[strip])))
    return similarity / windows


def check_arguments(model: Restorer, scale: int, amount: float) -> None:
    """Reject what this model cannot do.

    Raises:
        ConfigError: the amount or the scale is out of range, or the model was not trained to enlarge by it.
    """
    if not 0 <= amount <= 1:
        raise ConfigError(f"The amount is {amount:g}; it must be from 0 to 1.")
    if scale < 1:
        raise ConfigError(f"The scale is {scale}; it must be at least 1.")
    factors = factors_of(model)
    if scale > 1 and not factors:
        raise ConfigError(
            "This model was not trained to enlarge. Train one with --corrupt downscale:2-4, or leave "
            "--scale out."
        )
    if scale > 1 and scale not in factors:
        known = " or ".join(map(str, factors))
        raise ConfigError(f"The scale is {scale}; this model was trained to enlarge by {known}.")


def check_enlarged(levels: Levels, scale: int, limits: Limits) -> None:
    """Reject an image (H, W, C) of which the result would have too many pixels.

    Raises:
        ImageError: it would; the message is the plain reason.
    """
    height, width = (side * scale for side in levels.shape[:2])
    most = limits.max_pixels
    if scale > 1 and width * height > most:
        raise ImageError(
            f"its {width:,}x{height:,} pixels after enlarging are more than the limit of {most:,}"
        )


def factors_of(model: Restorer) -> list[int]:
    """Return the factors by which a restorer was trained to enlarge images: those of `downscale`, if any."""
    ranges = [
        (corruption.amount, corruption.most or corruption.amount)
        for step in parse_corruptions(model.training_corruptions)
        for corruption in alternatives_of(step)
        if corruption.name == "downscale"
    ]
    return sorted({factor for low, high in ranges for factor in range(max(2, int(low)), int(high) + 1)})
