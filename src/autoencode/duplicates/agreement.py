"""Agreement: measure whether two registered images are one picture, position by position.

Both are brought to the frame of the first and to a resolution that both have. At each place that has
structure in either, the local correlation of a copy is near 1, whatever was done to its size, brightness or
compression; two shots of like things agree in outlines at best. A watermark or an edit takes places from one
side only: what the other image has is still all there.

Shapes: P pairs, S side. Images are (P, 3, S, S) in [0, 1], stretched to squares; sizes (P, 2) are width and
height of the files in pixels; maps (P, 2, 3) are those of `registration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import label, maximum_filter
from torch import Tensor

from autoencode.duplicates.registration import points_of, warped

SIDE = 128
SHARP_SIDE = 512  # of the pairs that are called copies: the digits of a page are seen
# Resolutions at which pairs are compared; images of fewer pixels have nothing to compare.
_LEVELS = (12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_LEAST_OVERLAP = 0.1
_AGREES = 0.7  # local correlation from which a place agrees
_FLAT = 3 / 255  # spread below which a place has no structure
_COLOUR, _TONE = 0.06, 0.12  # differences in colour and in brightness that are none of compression
_WHITE = 0.98  # brightness from which a place may be brighter than can be shown
_VISIBLE = 0.06  # difference in brightness of an edit; compression makes smaller ones
_LEAST_EDIT = 25  # pixels, a letter and what the window around it adds
_REACH = 32  # of a side
_MOST_EDITS = 5  # places; more are noise
_GREY_IMAGE = 0.012  # chroma below which an image is grey
_WEIGHTS = torch.tensor([0.299, 0.587, 0.114])


Box = tuple[float, float, float, float]  # left, top, right, bottom, as shares of a frame


@dataclass(frozen=True)
class Agreement:
    """How far two images are one picture.

    Attributes:
        one_sided: share of the structure of the one image that the other has too: the larger of both sides.
        mutual: share of the places with structure in either that agree.
        overlap: share of the frame of the first image that the second covers.
        detail: how many windows of the local correlation the structure of either would fill: the more, the
            less chance explains their agreement.
        gain, offset: brightness of the second image by that of the first, both from 0 to 1.
        chroma: colourfulness of the second by the first; 0 where the second is grey, infinite where the first
            is.
        differs: where they visibly differ, as shares of the frame of the first image; None if they differ
            nowhere, or here and there.
    """

    one_sided: float
    mutual: float
    overlap: float
    detail: float = 0.0
    gain: float = 1.0
    offset: float = 0.0
    chroma: float = 1.0
    differs: Box | None = None

    @classmethod
    def of(cls, numbers: Sequence[float], differs: Box | None) -> Agreement:
        """Return the agreement of seven numbers, in the order of the attributes."""
        one_sided, mutual, overlap, detail, gain, offset, chroma = numbers
        return cls(one_sided, mutual, overlap, detail, gain, offset, chroma, differs)


NONE = Agreement(0, 0, 0)


def grey_of(images: Tensor) -> Tensor:
    """Return the brightness (P, S, S) of images (P, 3, S, S)."""
    return torch.einsum("pchw,c->phw", images, _WEIGHTS)


def content_box(images: Tensor) -> Tensor:
    """Return left, top, right, bottom of what is inside a border of one colour, (P, 4) from -1 to 1."""
    side = images.shape[-1]
    differs = (images - images[:, :, :1, :1]).abs().amax(1) > 0.06
    boxes = torch.tensor([-1.0, -1.0, 1.0, 1.0]).repeat(len(images), 1)
    for number, lines in enumerate((differs.float().mean(1) > 0.02, differs.float().mean(2) > 0.02)):
        low = lines.float().argmax(1)
        high = side - lines.flip(1).float().argmax(1)
        # A line of a few pixels is no content to put another image on.
        usable = lines.any(1) & (high - low >= side // 4)
        boxes[:, number] = torch.where(usable, low * 2 / side - 1, boxes[:, number])
        boxes[:, number + 2] = torch.where(usable, high * 2 / side - 1, boxes[:, number + 2])
    return boxes


def agreements(
    first: Tensor, second: Tensor, maps: Tensor, first_size: Tensor, second_size: Tensor, second_box: Tensor
) -> list[Agreement]:
    """Return how far registered pairs are one picture.

    Args:
        first, second: (P, 3, S, S).
        maps: (P, 2, 3).
        first_size, second_size: (P, 2).
        second_box: (P, 4), see `content_box`.
    """
    side = first.shape[-1]
    scale = torch.linalg.det(maps[:, :, :2]).abs().sqrt()
    sides = torch.stack(
        [
            first_size.prod(1).sqrt(),
            second_size.prod(1).sqrt() * scale,
            torch.full_like(scale, side),
            side * scale,
        ]
    )
    limit = sides.amin(0) * 1.02  # a JPEG of 63 pixels is compared at 64
    results: list[Agreement] = [NONE] * len(first)
    groups: dict[tuple[int, int], list[int]] = {}
    for pair, (least, ratio) in enumerate(zip(limit.tolist(), scale.tolist(), strict=True)):
        level = max((level for level in _LEVELS if level <= least), default=0)
        if level:
            # The second is reduced to the same pixels, to within an eighth, which makes groups of a size.
            other = min(side, max(8, 2 ** (round(8 * torch.log2(torch.tensor(level / ratio)).item()) / 8)))
            groups.setdefault((level, round(other)), []).append(pair)
    for (level, other), pairs in groups.items():
        chosen = torch.tensor(pairs)
        found = _compared(
            _reduced(first[chosen], level), _reduced(second[chosen], other), maps[chosen], second_box[chosen]
        )
        for pair, result in zip(pairs, found, strict=True):
            results[pair] = result
    return results


def _compared(first: Tensor, second: Tensor, maps: Tensor, box: Tensor) -> list[Agreement]:
    """Compare pairs at one resolution: (P, 3, n, n) with (P, 3, m, m)."""
    side = first.shape[-1]
    second, shown = warped(second, maps, side)
    inside = shown & _without_border(maps, box, side)
    # The outermost pixels are half of what is outside.
    valid = -F.max_pool2d(-inside[:, None].float(), 3, 1, 1)
    first, second = _smooth(first), _smooth(second)
    a, b = grey_of(first)[:, None], grey_of(second)[:, None]
    window = 7 if side >= 48 else 5
    share = _box(valid, window).clamp(min=1e-6)

    def mean(values: Tensor) -> Tensor:
        return _box(values * valid, window) / share

    mean_a, mean_b = mean(a), mean(b)
    spread_a = (mean(a * a) - mean_a.square()).clamp(min=0)
    spread_b = (mean(b * b) - mean_b.square()).clamp(min=0)
    together = mean(a * b) - mean_a * mean_b
    local = together / ((spread_a + 2e-5) * (spread_b + 2e-5)).sqrt()
    gain, offset, tone = _toned(a, b, valid)
    chroma, colour = _coloured(first - a, second - b, valid)
    is_valid = valid > 0
    off_colour = colour & is_valid
    has_a = (spread_a.sqrt() > _structure(a, valid)) & is_valid
    has_b = (spread_b.sqrt() > _structure(b, valid)) & is_valid
    # Flat places differ by their brightness or colour alone.
    off_flat = off_colour | ((tone > _TONE) & is_valid & ~has_a & ~has_b)
    agrees = (local > _AGREES) & ~off_colour

    def agreeing(places: Tensor) -> Tensor:
        count = places.sum((1, 2, 3))
        found = (agrees & places).sum((1, 2, 3)) / count.clamp(min=1)
        return torch.where(count > 0, found, torch.ones_like(found))

    sides = torch.maximum(agreeing(has_a | off_flat), agreeing(has_b | off_flat))
    either = has_a | has_b | off_flat
    mutual = agreeing(either)
    overlap = shown.float().mean((1, 2))
    detail = either.sum((1, 2, 3)) / window**2
    # Compression takes fine structure from places that look the same.
    contrast = (_box(tone.square() * valid, window) / share).sqrt()
    # Where brightness takes a channel beyond white, structure is lost that nobody edited.
    gain_, offset_ = (x[:, None, None, None] for x in (gain.clamp(0.5, 2), offset))
    brightest = torch.maximum(first * gain_ + offset_, (second - offset_) / gain_).amax(1, keepdim=True)
    clipped = brightest > 1.02
    is_lost = _box(clipped.float(), window) > 0.1
    differs = either & ~agrees & ((contrast > _VISIBLE) | off_colour) & ~is_lost
    # An image that shines through a watermark is still there.
    differs = differs | ((contrast > 2 * _VISIBLE) & is_valid & ~is_lost)
    columns = zip(*(x.tolist() for x in (sides, mutual, overlap, detail, gain, offset, chroma)), strict=True)
    return [
        Agreement.of(values, _bounds(places)) if values[2] >= _LEAST_OVERLAP else NONE
        for values, places in zip(columns, differs[:, 0], strict=True)
    ]


def _reduced(images: Tensor, side: int) -> Tensor:
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)


def _box(values: Tensor, window: int) -> Tensor:
    return F.avg_pool2d(values, window, 1, window // 2)


def _smooth(images: Tensor) -> Tensor:
    """Blur a little, so that a map that is a third of a pixel off costs nothing."""
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(images.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=images.shape[1])


def _without_border(maps: Tensor, box: Tensor, side: int) -> Tensor:
    """Return where the content of the second is, (P, n, n); everywhere if the first shows its border too.

    Where the first is the content of the second, the border would bleed into the outermost places.
    """
    grid = points_of(maps, side)
    low, high = box[:, None, None, :2], box[:, None, None, 2:]
    within = ((grid >= low) & (grid <= high)).all(-1)
    shown = (grid.abs() <= 1).all(-1)
    beyond = (shown & ~within).float().mean((1, 2)) / shown.float().mean((1, 2)).clamp(min=1e-6)
    return within | (beyond > 0.06)[:, None, None]


def _structure(values: Tensor, valid: Tensor) -> Tensor:
    """Return the local spread from which a place has structure, (P, 1, 1, 1)."""
    total = valid.sum((1, 2, 3), keepdim=True).clamp(min=1)
    mean = (values * valid).sum((1, 2, 3), keepdim=True) / total
    spread = ((values - mean).square() * valid).sum((1, 2, 3), keepdim=True) / total
    return (0.1 * spread.sqrt()).clamp(min=_FLAT)


def _toned(a: Tensor, b: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit b = gain a + offset to most places; return both (P,), and the distance (P, 1, n, n)."""
    # Fitted to coarse cells: the contrast of fine print is that of the scaling and the compression.
    coarse = max(1, a.shape[-1] // 32)
    a_coarse, b_coarse, known = (F.avg_pool2d(x, coarse) for x in (a, b, valid))
    known = (known > 0.99).float()
    # Places that are white or black in both say nothing about what was cut off; in a drawing they are most.
    low, high = torch.minimum(a_coarse, b_coarse), torch.maximum(a_coarse, b_coarse)
    inner = known * ~((low > _WHITE) | (high < 1 - _WHITE))
    fits = [_line(a_coarse, b_coarse, weight) for weight in (known, inner)]
    distances = [(b - (slope * a + offset).clamp(0, 1)).abs() for slope, offset in fits]
    errors = [(distance * valid).mean((1, 2, 3), keepdim=True) for distance in distances]
    first = errors[0] <= 1.2 * errors[1] + 1e-3
    slope, offset = (torch.where(first, one, other) for one, other in zip(*fits, strict=True))
    return slope.flatten(), offset.flatten(), torch.where(first, distances[0], distances[1])


def _line(a: Tensor, b: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    weight = known
    for _ in range(4):
        total = weight.sum((1, 2, 3), keepdim=True).clamp(min=1e-6)
        mean_a = (a * weight).sum((1, 2, 3), keepdim=True) / total
        mean_b = (b * weight).sum((1, 2, 3), keepdim=True) / total
        slope = ((a - mean_a) * (b - mean_b) * weight).sum((1, 2, 3), keepdim=True)
        slope = slope / (((a - mean_a).square() * weight).sum((1, 2, 3), keepdim=True) + 1e-6)
        distance = (b - mean_b - slope * (a - mean_a)).abs()
        weight = known / (1 + (distance / 0.05).square())
    return slope, mean_b - slope * mean_a


def _coloured(a: Tensor, b: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Compare chroma (P, 3, n, n): a copy has that of the original, all of it fainter or stronger, or none.

    Returns:
        chroma of the second by the first (P,), and where the colours differ (P, 1, n, n).
    """
    total = valid.sum((1, 2, 3)).clamp(min=1)
    strength_a, strength_b = ((x.square() * valid).sum((1, 2, 3)).div(total).sqrt() for x in (a, b))
    weight = valid
    for _ in range(4):
        factor = (a * b * weight).sum((1, 2, 3), keepdim=True)
        factor = (factor / ((a.square() * weight).sum((1, 2, 3), keepdim=True) + 1e-4)).clamp(0, 2)
        cast = ((b - factor * a) * weight).sum((2, 3), keepdim=True)
        cast = cast / weight.sum((2, 3), keepdim=True).clamp(min=1e-6)
        distance = (b - factor * a - cast.clamp(-0.05, 0.05)).square().sum(1, keepdim=True).sqrt()
        weight = valid / (1 + (distance / 0.05).square())
    size = torch.maximum(a.square().sum(1, keepdim=True), b.square().sum(1, keepdim=True)).sqrt()
    differs = distance > _COLOUR + 0.25 * size
    grey_a, grey_b = strength_a < _GREY_IMAGE, strength_b < _GREY_IMAGE
    differs = differs & ~(grey_a | grey_b)[:, None, None, None]
    ratio = torch.where(grey_a, torch.full_like(strength_a, torch.inf), factor.flatten())
    ratio = torch.where(grey_b, torch.zeros_like(ratio), ratio)
    return torch.where(grey_a & grey_b, torch.ones_like(ratio), ratio), differs


def _bounds(places: Tensor) -> Box | None:
    side = places.shape[-1]
    # Single places are noise of compression: a difference is one of the smallest window.
    solid = (F.avg_pool2d(places[None, None].float(), 3, 1, 1)[0, 0] > 0.5).numpy()
    # The letters of a watermark are one place.
    reach = 2 * (side // _REACH) + 1
    numbers, _ = label(maximum_filter(solid, reach))
    sizes = np.bincount(numbers[solid])
    # An edit takes up a hundredth of a small image at least, and in a large one as much as a letter.
    edits = np.flatnonzero(sizes >= min(_LEAST_EDIT, 0.01 * side**2))
    if not 1 <= len(edits) <= _MOST_EDITS or sizes[edits].sum() < 0.5 * sizes.sum():
        return None
    rows, columns = np.nonzero(solid & np.isin(numbers, edits))
    ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    left, top, right, bottom = (round(float(end) / side, 3) for end in ends)
    return left, top, right, bottom
