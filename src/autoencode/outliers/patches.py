"""Describe an image, and each position in it, by the features of a pretrained network.

Images that are judged without a model keep their shape: a defect on a long part would be cut off by a crop,
and lost by a reduction to a square.

Shapes: B batch, H height, W width of an image, h, w rows and columns of its patches, C features of a patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from autoencode.data import decoding
from autoencode.data.preprocessing import SIZE_MULTIPLE, Limits, Preprocessing, read_image
from autoencode.models.backbones import BACKBONE

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from torch import Tensor

Halves = NDArray[np.float16]
Floats = NDArray[np.float32]

# Lengths of the shorter side that images are seen at: wide defects stand out at the first, thin ones at the
# second (see `normal`).
SHORT_SIDES = (128, 256)
LONGEST_SIDE = 16 * SHORT_SIDES[0]  # of an image at any scale; a longer one is reduced further
# Pixels up to which an image is seen so at the second scale. A larger one is seen at more, so that a scratch
# of some pixels does not vanish, up to so many times a side: time and memory grow with the square of it.
_USUAL_PIXELS, _MOST_ENLARGED = 1e6, 3.0

# Early, middle and late: edges and texture, parts, and objects. Block 10 gives the grid, of stride 16.
_BLOCKS = (4, 10, 14)
_GRID = _BLOCKS.index(10)
_EARLY = (0, 2, 4)  # their statistics know noise, blur, contrast and colour
LAST = len(BACKBONE.block_channels) - 1


class Picture(NamedTuple):
    """An image read in its own shape.

    Attributes:
        height, width: of the upright image in its file, in pixels.
        pixels: (H, W, 3) in 0..255 at each of `SHORT_SIDES`, or less where the longer side is too long. Those
            of images of over a megapixel are larger at the second, up to three times a side.
    """

    height: int
    width: int
    pixels: tuple[NDArray[np.uint8], ...]


def read_in_shape(path: Path, limits: Limits, value_range: tuple[float, ...] = ()) -> Picture:
    """Read an image at each scale; `value_range` is for images of more than 8 bits, see `Preprocessing`.

    Raises:
        ImageError: the file cannot be used.
    """
    content = decoding.read_bytes(path, limits.max_bytes)
    with decoding.reading(limits.max_pixels):
        image = decoding.open_image(content)
        decoding.check_pixels(image, limits.max_pixels)
        width, height = decoding.shown_size(image)
    sizes = (
        Preprocessing(*size, resize_mode="stretch", value_range=value_range)
        for size in seen_sizes(height, width)
    )
    return Picture(height, width, tuple(read_image(content, size, limits) for size in sizes))


def seen_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return the rows and columns of `Picture.pixels` of an image of a height and width in pixels."""
    finer = min(max(1.0, math.sqrt(height * width / _USUAL_PIXELS)), _MOST_ENLARGED)
    scales = [
        enlarged * min(short_side / min(width, height), LONGEST_SIDE / max(width, height))
        for short_side, enlarged in zip(SHORT_SIDES, (1.0, finer), strict=True)
    ]

    # Stretched by less than half of the multiple, which keeps the shape.
    def scaled(side: int, scale: float) -> int:
        return max(1, round(side * scale / SIZE_MULTIPLE)) * SIZE_MULTIPLE

    return [(scaled(height, scale), scaled(width, scale)) for scale in scales]


def probes() -> dict[str, Picture]:
    """Return pictures that no camera should give, by name, all of them square."""
    side = SHORT_SIDES[0]
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    levels = {"all-black": np.uint8(0), "all-white": np.uint8(255), "plain grey": np.uint8(128)}
    pixels = {name: np.broadcast_to(level, noise.shape) for name, level in levels.items()} | {"noise": noise}
    rows = [np.arange(to) * side // to for to in SHORT_SIDES]  # nearest neighbours at each scale
    return {
        name: Picture(side, side, tuple(np.ascontiguousarray(one[at][:, at]) for at in rows))
        for name, one in pixels.items()
    }


def spoiled(picture: Picture) -> dict[str, Picture]:
    """Return a picture as a broken camera might take it, by the name of the fault."""

    def over_exposed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(np.minimum(pixels.astype(np.uint16) * 2 + 40, 255), np.uint8)

    def out_of_focus(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        sigma = min(pixels.shape[:2]) / 32
        return np.asarray(gaussian_filter(pixels.astype(np.float32), (sigma, sigma, 0)).round(), np.uint8)

    return {
        name: picture._replace(pixels=tuple(map(change, picture.pixels)))
        for name, change in (("over-exposed", over_exposed), ("out of focus", out_of_focus))
    }


@dataclass(frozen=True)
class Seen:
    """The features of images of one size.

    Attributes:
        patches: (B, h, w, C) float16, a patch for each 16x16 pixels.
        content: (B, 1280) the last feature map averaged over the image, of length 1.
        early: (B, 160) mean and spread of each channel of the first blocks.
    """

    patches: Halves
    content: Floats
    early: Floats

    def each(self) -> list[Seen]:
        """Return the same of each image alone, with B of 1."""
        # Copies: a view of one image would keep the others of its batch in memory.
        at = [slice(index, index + 1) for index in range(len(self.content))]
        return [Seen(self.patches[i].copy(), self.content[i].copy(), self.early[i].copy()) for i in at]


class Network(Protocol):
    """An object that returns the outputs of blocks of EfficientNet-Lite0, in any precision."""

    def feature_maps(self, images: Tensor, blocks: Collection[int]) -> list[Tensor]:
        """Return the outputs (B, C, h, w) of some blocks, in their order."""


@torch.inference_mode()
def see(images: Tensor, *, is_fast: bool = False) -> Seen:
    """Return the features of images (B, 3, H, W) in [0, 1].

    Args:
        images: on the CPU.
        is_fast: multiply in bf16 where the hardware does. Patches are as good, but early statistics are three
            standard deviations from those in fp32, so what is kept in a file must not depend on them.

    Raises:
        MissingExtraError: the weights of the network are not installed.
    """
    patches, content, early = features_of(images, BACKBONE if is_fast else BACKBONE.network)
    return Seen(patches.half().cpu().numpy(), content.cpu().numpy(), early.cpu().numpy())


def features_of(images: Tensor, network: Network) -> tuple[Tensor, Tensor, Tensor]:
    """Return the patches, the content and the early statistics of images, see `Seen`, in fp32."""
    wanted = sorted({*_BLOCKS, *_EARLY, LAST})
    found = network.feature_maps(images, wanted)
    maps = {block: features.float() for block, features in zip(wanted, found, strict=True)}
    # Each patch knows its neighbourhood, so that a shift by a pixel or two is no defect.
    local = [_averaged(maps[block]) for block in _BLOCKS]
    grid = local[_GRID].shape[2:]
    patches = torch.cat([_on_grid(features, grid) for features in local], 1).permute(0, 2, 3, 1)
    spreads = [part for block in _EARLY for part in (maps[block].mean((2, 3)), maps[block].std((2, 3)))]
    return patches, F.normalize(maps[LAST].mean((2, 3))), torch.cat(spreads, 1).nan_to_num()


def _averaged(features: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(features, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _on_grid(features: Tensor, grid: torch.Size) -> Tensor:
    if features.shape[2] > grid[0] or features.shape[3] > grid[1]:
        return F.adaptive_avg_pool2d(features, (grid[0], grid[1]))
    return F.interpolate(features, grid, mode="bilinear", align_corners=False)
