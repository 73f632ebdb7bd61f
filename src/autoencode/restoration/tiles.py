"""Restore one image of any size in tiles: memory beyond the two images is that of one tile.

A tile is cut with as much around it as its result depends on, on the grid of the network's halvings: the
result is that of the whole image, without seams.

Shapes: H height, W width, C channels. Levels are (H, W, C) in 0..255 or 0..65535.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from autoencode.data.damage import enlarge
from autoencode.pixels import to_16_bits, to_float, to_pixels
from autoencode.training.runtime import Runtime, choose_runtime

if TYPE_CHECKING:
    from autoencode.data.pictures import Levels
    from autoencode.models.networks import RestoringNetwork
    from autoencode.models.restorer import Restorer

# Pixels along a side of a tile's result. Larger ones waste less on what is computed twice. Above 900 glibc
# gets the memory of each feature map from the system and gives it back: a pass takes up to twice as long.
TILE = 768


# Which channels of an image make the three of the network, pass by pass. Inks are restored as they are, the
# black one as grey: a conversion to RGB and back would change every colour.
_PASSES: dict[int, Sequence[tuple[int, int, int]]] = {
    1: [(0, 0, 0)],
    3: [(0, 1, 2)],
    4: [(0, 1, 2), (3, 3, 3)],
}


class Region(NamedTuple):
    """A rectangle of an image: its rows and its columns."""

    rows: slice
    columns: slice

    def scaled(self, factor: int) -> Region:
        """Return the same region of the image enlarged by a factor."""
        rows, columns = (slice(one.start * factor, one.stop * factor) for one in self)
        return Region(rows, columns)

    def within(self, outer: Region) -> Region:
        """Return where it is in a cut-out of the same image that holds it."""
        rows, columns = (
            slice(own.start - first.start, own.stop - first.start)
            for own, first in zip(self, outer, strict=True)
        )
        return Region(rows, columns)


def restore_levels(
    model: Restorer,
    levels: Levels,
    *,
    scale: int = 1,
    amount: float = 1.0,
    runtime: Runtime | None = None,
    seen: Callable[[Region, Tensor, Tensor], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Levels:
    """Restore one image that is in memory.

    Args:
        model: from `load_restorer`.
        levels: (H, W, C), uint8 or uint16: grey, RGB, or CMYK for C of 1, 3 or 4.
        scale: as for `restore`.
        amount: as for `restore`.
        runtime: where and how to compute; it must be on the device of the model. By default the fastest way
            on that device.
        seen: called for each tile with its region of the result, and the images (1, 3, h, w) before and
            after.
        progress: called after each tile with (tiles done, tiles in total).

    Returns:
        (H * scale, W * scale, C) of the same type.

    Raises:
        Exception: what `seen` or `progress` raises; the work then stops.
    """
    runtime = runtime or choose_runtime(next(model.parameters()).device.type)
    height, width, channels = levels.shape
    restored = np.empty((height * scale, width * scale, channels), levels.dtype)
    tiles, done = list(_tiles(height, width, scale, model.net)), 0
    for columns in _PASSES[channels]:
        for tile, source in tiles:
            part = to_image(levels[source.rows, source.columns][..., columns], inverted=channels == 4)
            before = runtime.to_device(part)
            if scale > 1:
                before = enlarge(before, part.shape[2] * scale, part.shape[3] * scale)
            with torch.inference_mode(), runtime.autocast():
                after = torch.lerp(before, model.restore(before), amount)
            inside = (..., *tile.within(source.scaled(scale)))
            before, after = before[inside].float().cpu(), after[inside].float().cpu()
            if len(set(columns)) == 1:  # grey goes in as three equal channels
                after = after.mean(1, keepdim=True).expand_as(after)
            _put(restored[tile.rows, tile.columns], after, columns, inverted=channels == 4)
            if seen:
                seen(tile, before, after)
            done += 1
            if progress:
                progress(done, len(tiles) * len(_PASSES[channels]))
    return restored


def _tiles(height: int, width: int, scale: int, net: RestoringNetwork) -> Iterator[tuple[Region, Region]]:
    """Yield regions that cover the result, and the region of the image (H, W) that each depends on."""
    grid = net.factor
    # On the grid of the halvings: what a position of the deepest level sees is then the same in every tile.
    # A bicubic enlargement reaches two pixels further.
    margin = -(-(math.ceil(net.reach / scale) + (2 if scale > 1 else 0)) // grid) * grid
    side = max(grid, TILE // scale // grid * grid)
    for top in range(0, height, side):
        for left in range(0, width, side):
            bottom, right = min(top + side, height), min(left + side, width)
            source = Region(
                slice(max(0, top - margin), min(bottom + margin, height)),
                slice(max(0, left - margin), min(right + margin, width)),
            )
            yield Region(slice(top, bottom), slice(left, right)).scaled(scale), source


def to_image(levels: Levels, *, inverted: bool = False) -> Tensor:
    """Turn levels (h, w, C) into an image (1, C, h, w) in [0, 1]; inks are inverted, to be like light."""
    image = to_float(levels[None].copy())  # levels of Pillow are read-only, of which torch warns
    return 1 - image if inverted else image


def _put(target: Levels, image: Tensor, columns: tuple[int, int, int], *, inverted: bool) -> None:
    """Write an image (1, 3, h, w) in [0, 1] into those channels of levels (h, w, C)."""
    image = 1 - image if inverted else image
    levels = (to_pixels(image) if target.dtype == np.uint8 else to_16_bits(image))[0]
    for index, column in enumerate(columns):
        target[..., column] = levels[..., index]
