"""How far copies agree that are made of the images themselves: the side of the threshold that is known."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoencode.duplicates.sketches import SQUARE, Sketches, sketch_pixels
from autoencode.duplicates.verification import Verifier
from autoencode.errors import ImageError

# An altered copy as sites and messengers make them, and the share of such copies whose agreement is stated.
_QUALITY, _SHRINK, _BORDER = 40, 0.75, 0.025
_SHARE = 0.95
_SAMPLE = 16

Pixels = NDArray[np.uint8]


def copies_agreement(sketches: Sketches, read: Callable[[int], Pixels]) -> float | None:
    """Return the agreement that 95 % of images reach with an altered copy of themselves.

    The copy lost 2.5 % on every side and was saved at three quarters of the size as a JPEG of quality 40.

    Args:
        sketches: of the images.
        read: returns the pixels of a row, or raises ImageError.
    """
    originals: list[Pixels] = []
    sizes = []
    for row in np.linspace(0, len(sketches) - 1, min(_SAMPLE, len(sketches))).astype(int).tolist():
        try:
            originals.append(read(row))
        except ImageError:
            continue
        sizes.append(sketches.sizes[row])
    if not originals:
        return None
    count = len(originals)
    altered = [_altered(pixels, size) for pixels, size in zip(originals, sizes, strict=True)]
    images = [*originals, *(pixels for pixels, _ in altered)]
    both = sketch_pixels(np.stack(images), np.array([*sizes, *(size for _, size in altered)], np.int64))
    verifier = Verifier(both, images.__getitem__, is_thorough=False)
    pairs = np.stack([np.arange(count), np.arange(count) + count], 1)
    found = [match.agreement.one_sided if match else 0.0 for match in verifier.verify(pairs)]
    return round(float(np.quantile(found, 1 - _SHARE)), 2)


def _altered(pixels: Pixels, size: NDArray[np.int64]) -> tuple[Pixels, NDArray[np.int64]]:
    """Return the copy of an image (S, S, 3) of a size in pixels, and the size of the copy."""
    new = np.maximum(1, (size * _SHRINK * (1 - 2 * _BORDER)).round()).astype(np.int64)
    side = pixels.shape[0]
    low, high = _BORDER * side, (1 - _BORDER) * side
    # Compressed at its own size: blocks of a JPEG are 8 pixels whatever they show.
    small = Image.fromarray(pixels).resize(
        tuple(np.minimum(new, side).tolist()), Image.Resampling.BICUBIC, (low, low, high, high)
    )
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_QUALITY)
    square = Image.open(file).resize((SQUARE.width, SQUARE.height), Image.Resampling.BICUBIC)
    return np.array(square), new
