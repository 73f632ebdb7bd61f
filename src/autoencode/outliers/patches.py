"""What a pretrained network sees at each place of an image, and how unlike normal images that is.

A bank keeps patches of normal images: features of three depths of the network (PatchCore, Roth et al. 2022),
whitened, as the features of one depth are strongly correlated and of unequal scale. The distance of a patch
to the nearest one of the bank is its entry in the heat map, and the score of an image comes from that map.

Images keep their shape: a defect on a long part would be cut off by a crop, and lost by a reduction to a
square.

Shapes: H height, W width of an image, h, w rows and columns of its patches, C features of a patch, M patches
of a bank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from autoencode.data import decoding
from autoencode.data.preprocessing import SIZE_MULTIPLE, Limits, Preprocessing, read_image
from autoencode.models.backbones import BACKBONE
from autoencode.pixels import to_float

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

Halves = NDArray[np.float16]
Floats = NDArray[np.float32]

# Lengths of the shorter side that images are seen at. The first decides; the second adds what is too small
# for it (see `normal`).
SHORT_SIDES = (128, 256)
LONGEST_SIDE = 16 * SHORT_SIDES[0]  # of an image at any scale; a longer one is reduced further

# Early, middle and late: edges and texture, parts, and objects. Block 10 gives the grid, of stride 16.
_BLOCKS = (4, 10, 14)
_GRID = _BLOCKS.index(10)
_EARLY = (0, 2, 4)  # their statistics know noise, blur, contrast and colour
LAST = len(BACKBONE.block_channels) - 1

BANK_PATCHES = 5000  # 10,000 gained nothing on parts, and took twice as long
_FITTED_PATCHES = 40_000  # 100 for each feature
_RIDGE = 1e-3  # of the mean variance: directions without any are not blown up


class Picture(NamedTuple):
    """An image read in its own shape.

    Attributes:
        height, width: of the upright image in its file, in pixels.
        pixels: (H, W, 3) in 0..255 at each of `SHORT_SIDES`, or less where the longer side is too long.
    """

    height: int
    width: int
    pixels: tuple[NDArray[np.uint8], ...]


def read_in_shape(path: Path, limits: Limits) -> Picture:
    """Read an image at each scale.

    Raises:
        ImageError: the file cannot be used.
    """
    content = decoding.read_bytes(path, limits.max_bytes)
    with decoding.reading(limits.max_pixels):
        image = decoding.open_image(content)
        decoding.check_pixels(image, limits.max_pixels)
        width, height = decoding.shown_size(image)
    pixels = []
    for short_side in SHORT_SIDES:
        scale = min(short_side / min(width, height), LONGEST_SIDE / max(width, height))
        rows, columns = (
            max(1, round(side * scale / SIZE_MULTIPLE)) * SIZE_MULTIPLE for side in (height, width)
        )
        # Stretched by less than half of the multiple, which keeps the shape.
        pixels.append(read_image(content, Preprocessing(rows, columns, resize_mode="stretch"), limits))
    return Picture(height, width, tuple(pixels))


@dataclass(frozen=True)
class Seen:
    """What the network sees in one image at one scale.

    Attributes:
        patches: (h, w, C) float16, a patch for each 16x16 pixels.
        pooled: (1280,) the last feature map averaged over the image.
        early: (160,) mean and spread of each channel of the first blocks.
    """

    patches: Halves
    pooled: Floats
    early: Floats


@torch.inference_mode()
def see(pixels: NDArray[np.uint8]) -> Seen:
    """Return what the network sees in an image (H, W, 3) in 0..255.

    Raises:
        MissingExtraError: the weights of the network are not installed.
    """
    wanted = sorted({*_BLOCKS, *_EARLY, LAST})
    found = BACKBONE.feature_maps(to_float(pixels[None]), wanted)
    maps = {block: features.float() for block, features in zip(wanted, found, strict=True)}
    # Each patch knows its neighbourhood, so that a shift by a pixel or two is no defect.
    local = [_averaged(maps[block]) for block in _BLOCKS]
    grid = local[_GRID].shape[2:]
    patches = torch.cat([_on_grid(features, grid) for features in local], 1)[0].permute(1, 2, 0)
    spreads = [part for block in _EARLY for part in (maps[block].mean((2, 3)), maps[block].std((2, 3)))]
    return Seen(
        patches.half().cpu().numpy(),
        maps[LAST].mean((2, 3))[0].cpu().numpy(),
        torch.cat(spreads, 1)[0].nan_to_num().cpu().numpy(),
    )


def _averaged(features: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(features, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _on_grid(features: Tensor, grid: torch.Size) -> Tensor:
    if features.shape[2] > grid[0] or features.shape[3] > grid[1]:
        return F.adaptive_avg_pool2d(features, (grid[0], grid[1]))
    return F.interpolate(features, grid, mode="bilinear", align_corners=False)


class PatchBank:
    """Patches of normal images, to which others are compared.

    Attributes:
        mean: (C,) float32, subtracted from a patch.
        whitening: (C, C) float32; times its transpose the inverse covariance of normal patches.
        patches: (M, C) float16, whitened.
    """

    def __init__(self, mean: Floats, whitening: Floats, patches: Halves) -> None:
        """Take the arrays of `fit` or of a file."""
        self.mean, self.whitening, self.patches = mean, whitening, patches
        self._index: Any = faiss.IndexFlatL2(patches.shape[1])
        self._index.add(np.ascontiguousarray(patches, np.float32))

    @classmethod
    def fit(cls, normal: Sequence[Halves]) -> PatchBank:
        """Fit to the patches (h, w, C) of normal images, in any order."""
        every = np.concatenate([patches.reshape(-1, patches.shape[-1]) for patches in normal])
        order = np.random.default_rng(0).permutation(len(every))
        sample = every[order[:_FITTED_PATCHES]].astype(np.float32)
        mean = sample.mean(0, dtype=np.float64).astype(np.float32)
        covariance = np.atleast_2d(np.cov((sample - mean).T, bias=True))
        # Equal patches, of a blank image for instance, have no variance at all.
        ridge = _RIDGE * covariance.trace() / len(covariance) or 1.0
        covariance += ridge * np.eye(len(covariance))
        whitening = np.linalg.cholesky(np.linalg.inv(covariance)).astype(np.float32)
        kept = (every[order[:BANK_PATCHES]].astype(np.float32) - mean) @ whitening
        return cls(mean, whitening, kept.astype(np.float16))

    def distances(self, patches: Halves) -> Floats:
        """Return the distance (h, w) of each patch (h, w, C) to the nearest of the bank.

        1 is about the distance at which a patch of normal images lies from their mean.
        """
        rows, columns, size = patches.shape
        whitened = (patches.reshape(-1, size).astype(np.float32) - self.mean) @ self.whitening
        squares, _ = self._index.search(np.ascontiguousarray(whitened), 1)
        return np.asarray(np.sqrt(squares.clip(min=0) / size), np.float32).reshape(rows, columns)
