"""Registration: find one image inside another, over crops, mirrors, turns and small rotations.

Every image is stretched to a square, so that a batch of pairs is one tensor; the sizes of the files say by
how much. A coarse search looks for each image inside the other, in eight
orientations and over sizes, by normalised correlation at `COARSE` pixels (Lewis 1995). The best few places
are refined to affine maps by Gauss-Newton steps, on images normalised by their local contrast, from coarse
to fine (Baker & Matthews 2004); differences count less the larger they are, so that a watermark or an edit
does not move the map.

Shapes: P pairs, H hypotheses of a pair, O orientations, S side. Grey images are (P, S, S) in [0, 1]. A map
is (2, 3): it takes the point (x, y, 1) of the first image to the point of the second, both from -1 to 1 (the
convention of `torch.nn.functional.affine_grid`).
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

COARSE = 16
# How much smaller the one is inside the other: a step moves a border by 0.7 of a coarse pixel.
SCALES = tuple(1.09**-i for i in range(9))
_BANK = 64  # sizes to which a template can be reduced
_LEAST_SCALE = 0.3
HYPOTHESES = 5


def orientations() -> Tensor:
    """Return the eight symmetries of the square, (8, 2, 2): the identity first, mirrors where det < 0."""
    turns = []
    for transpose in (torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]])):
        turns += [transpose @ torch.diag(torch.tensor([x, y])) for y in (1.0, -1.0) for x in (1.0, -1.0)]
    return torch.stack(turns)


def inverse(maps: Tensor) -> Tensor:
    """Return the maps (..., 2, 3) of the way back."""
    linear = torch.linalg.inv(maps[..., :2])
    return torch.cat([linear, -linear @ maps[..., 2:]], -1)


def onto_box(boxes: Tensor) -> Tensor:
    """Return the maps (P, 2, 3) that take a frame to a box (P, 4): left, top, right, bottom, from -1 to 1."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return torch.cat([torch.diag_embed((high - low) / 2), (low + high)[..., None] / 2], -1)


def oriented(images: Tensor) -> Tensor:
    """Return images (..., S, S) in all eight orientations, (..., 8, S, S): at a point x the image at D x."""
    results = []
    for base in (images, images.mT):
        results += [base, base.flip(-1), base.flip(-2), base.flip(-1, -2)]
    return torch.stack(results, -3)


@functools.cache
def _reductions() -> tuple[Tensor, Tensor]:
    """Return matrices (K, COARSE, 2 COARSE) that reduce an image to K sizes, and which rows they fill."""
    source = 2 * COARSE
    scales = torch.logspace(math.log10(_LEAST_SCALE), 0, _BANK)
    centres = (torch.arange(COARSE) + 0.5) / (COARSE * scales[:, None])  # (K, COARSE), 1 at the far edge
    width = (1 / (COARSE * scales))[:, None, None]
    distance = ((torch.arange(source) + 0.5) / source - centres[..., None]).abs() / width
    weights = (1 - distance).clamp(min=0)
    filled = (torch.arange(COARSE) + 1) / COARSE <= scales[:, None] + 0.25 / COARSE
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6) * filled[..., None]
    return weights, filled.float()


def contrast(images: Tensor, window: int = 5) -> Tensor:
    """Return images (P, S, S) less their local mean, over their local spread."""

    def blurred(values: Tensor) -> Tensor:
        pad = window // 2
        values = F.pad(values[:, None], (pad, pad, pad, pad), mode="replicate")
        return F.avg_pool2d(values, window, 1)[:, 0]

    centred = images - blurred(images)
    spread = blurred(centred.square()).sqrt()
    # Flat ground has noise only, which must not be blown up to the size of the picture.
    floor = 0.02 + 0.3 * centred.square().mean((-1, -2), keepdim=True).sqrt()
    return centred / (spread + floor)


def find_inside(
    templates: Tensor, canvases: Tensor, stretch: Tensor, tried: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Find images inside others at coarse resolution.

    Args:
        templates: (P, 2 COARSE, 2 COARSE).
        canvases: (P, COARSE, COARSE).
        stretch: (P,), width over height of the template, over that of the canvas, in pixels of the files.
        tried: O, how many of `orientations` to look for.

    Returns:
        scores (P, O) of the orientations; the sizes (P, O, 2) of the template in the canvas, width and height
        as shares of the side; and its centres (P, O, 2), from -1 to 1.
    """
    bank, filled = _reductions()
    in_all = oriented(templates)[:, :tried] if tried > 1 else templates[:, None]  # (P, O, 2C, 2C)
    scales = torch.tensor(SCALES)
    # In the four transposed orientations width and height are swapped.
    log_stretch = stretch.log()[:, None] * torch.tensor([1.0] * 4 + [-1.0] * 4)[:tried]
    half = (log_stretch / 2).exp()[..., None]  # (P, O, 1)
    rx, ry = (scales * half), (scales / half)
    # The whole frame is tried too, as a picture may have been resized to another shape.
    one = torch.ones_like(rx[..., :1])
    rx, ry = torch.cat([rx, one], -1), torch.cat([ry, one], -1)
    clip = torch.maximum(rx, ry).clamp(min=1)
    rx, ry = (rx / clip).clamp(_LEAST_SCALE, 1), (ry / clip).clamp(_LEAST_SCALE, 1)  # (P, O, S)

    def index(r: Tensor) -> Tensor:
        return ((r / _LEAST_SCALE).log() / math.log(1 / _LEAST_SCALE) * (_BANK - 1)).round().long()

    ix, iy = index(rx), index(ry)
    small = bank[iy] @ in_all[:, :, None] @ bank[ix].mT  # (P, O, S, C, C)
    support = filled[iy][..., None] * filled[ix][..., None, :]
    count = support.sum((-1, -2), keepdim=True)
    small = (small - small.sum((-1, -2), keepdim=True) / count) * support
    small = small / small.square().sum((-1, -2), keepdim=True).sqrt().clamp(min=1e-4)
    spectrum = torch.fft.rfft2(canvases)[:, None, None] * torch.fft.rfft2(small).conj()
    products = torch.fft.irfft2(spectrum, s=(COARSE, COARSE))
    width, height = filled[ix].sum(-1).long(), filled[iy].sum(-1).long()
    # Four orientations have the same windows, and the other four.
    energy = _window_energy(canvases, width[:, ::4], height[:, ::4]).repeat_interleave(4, dim=1)[:, :tried]
    place = torch.arange(COARSE)
    fits = (place[:, None] + height[..., None, None] <= COARSE) & (place + width[..., None, None] <= COARSE)
    scores = (products / energy.clamp(min=1e-4)).masked_fill(~fits, -1)
    best, where = scores.flatten(2).max(-1)  # (P, O)
    size_at, position = where // COARSE**2, where % COARSE**2

    # The search moves a whole number of pixels; the size is that of the whole template, not of the
    # pixels it fills.
    corner = torch.stack([position % COARSE, position // COARSE], -1).float()
    sizes = torch.stack([r.gather(-1, size_at[..., None])[..., 0] for r in (rx, ry)], -1)
    centres = (corner + COARSE * sizes / 2) / COARSE * 2 - 1
    return best, sizes, centres


def _window_energy(canvases: Tensor, width: Tensor, height: Tensor) -> Tensor:
    """Return the norm of what a window, less its mean, holds at every place: (P, O, S, C, C)."""

    def sums(values: Tensor) -> Tensor:
        table = F.pad(values.cumsum(-1).cumsum(-2), (1, 0, 1, 0)).flatten(1)  # (P, (C+1)^2)
        place = torch.arange(COARSE)
        top, left = place[:, None], place[None, :]
        bottom = (top + height[..., None, None]).clamp(max=COARSE)
        right = (left + width[..., None, None]).clamp(max=COARSE)
        row = COARSE + 1

        def at(y: Tensor, x: Tensor) -> Tensor:
            flat = (y * row + x).expand((*bottom.shape[:-2], COARSE, COARSE)).flatten(1)
            return table.gather(1, flat).view(*bottom.shape[:-2], COARSE, COARSE)

        return at(bottom, right) - at(top, right) - at(bottom, left) + at(top, left)

    count = (width * height)[..., None, None]
    return (sums(canvases.square()) - sums(canvases).square() / count).clamp(min=0).sqrt()


def coarse_maps(first: Tensor, second: Tensor, stretch: Tensor, *, upright: bool = False) -> Tensor:
    """Return the best maps (P, H, 2, 3) of pairs, the best first.

    Args:
        first, second: (P, 2 COARSE, 2 COARSE), normalised by their contrast.
        stretch: (P,), width over height of the second image, over that of the first.
        upright: whether to look for images that are neither mirrored nor turned.
    """
    half_first, half_second = (F.avg_pool2d(x[:, None], 2)[:, 0] for x in (first, second))
    count = 1 if upright else 8
    turns = orientations()[:count]
    # The second inside the first: u = D (a - c) / r.
    score_in, size, centre = find_inside(second, half_first, stretch, count)
    linear = turns @ torch.diag_embed(1 / size)
    inside = torch.cat([linear, -(linear @ centre[..., None])], -1)
    # The first inside the second, turned: D^-1 u = c + r a if the template was turned, so a = D (v - c) / r.
    score_out, size, centre = find_inside(first, half_second, 1 / stretch, count)
    linear = turns @ torch.diag_embed(1 / size)
    outside = inverse(torch.cat([linear, -(linear @ centre[..., None])], -1))
    scores, maps = torch.cat([score_in, score_out], 1), torch.cat([inside, outside], 1)
    which = scores.topk(min(HYPOTHESES, 2 * count), 1).indices
    return maps.gather(1, which[..., None, None].expand(-1, -1, 2, 3))


def warped(images: Tensor, maps: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return images (P, C, S, S) in the frame of the first, (P, C, side, side), and where they reach."""
    grid = points_of(maps, side)
    seen = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    inside = grid.abs().amax(-1) <= 1
    return seen, inside


def points_of(maps: Tensor, side: int) -> Tensor:
    """Return where maps (P, 2, 3) take each place of the first image, (P, side, side, 2), from -1 to 1."""
    # Rows and columns apart: `affine_grid` multiplies a matrix for each place, and takes 10 times as long.
    axis = (torch.arange(side) + 0.5) * (2 / side) - 1
    across = maps[:, None, None, :, 0] * axis[:, None]
    down = (maps[:, None, :, 1] * axis[:, None] + maps[:, None, :, 2])[:, :, None]
    return across + down


def refined(first: Tensor, second: Tensor, maps: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Improve maps by Gauss-Newton steps; return them and the correlation (P,) of the images where both are.

    Args:
        first, second: (P, S, S), normalised by their contrast.
        maps: (P, 2, 3).
        steps: of Gauss-Newton.
    """
    count, side = len(first), first.shape[-1]
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    x, y = axis.expand(side, side), axis[:, None].expand(side, side)
    points = torch.stack([x, y, torch.ones_like(x)]).flatten(1)  # (3, n)
    layers = second[:, None]
    if steps:  # no slope is needed to see how well a map fits
        pad = F.pad(layers, (1, 1, 1, 1), mode="replicate")
        # Per unit of the coordinates, which are 2 / S apart.
        across = (pad[..., 1:-1, 2:] - pad[..., 1:-1, :-2]) * side / 4
        down = (pad[..., 2:, 1:-1] - pad[..., :-2, 1:-1]) * side / 4
        layers = torch.cat([layers, across, down], 1)
    target = first.flatten(1)
    best, best_score = maps, torch.full((count,), -1.0)
    for step in range(steps + 1):
        seen, inside = warped(layers, maps, side)
        seen, mask = seen.flatten(2), inside.flatten(1).float()
        total = mask.sum(1, keepdim=True).clamp(min=1)
        a, _ = _standardised(target, mask, total)
        b, spread = _standardised(seen[:, 0], mask, total)
        score = (a * b * mask).sum(1) / total[:, 0]
        # An overlap of a tenth says nothing.
        score = torch.where(total[:, 0] < 0.1 * side * side, torch.full_like(score, -1), score)
        better = score > best_score
        best_score = torch.where(better, score, best_score)
        best = torch.where(better[:, None, None], maps, best)
        if step == steps:
            break
        error = a - b
        weight = mask / (1 + error.square())
        jacobian = (seen[:, 1:, None] * points).flatten(1, 2) / spread[:, None]  # (P, 6, n)
        weighted = jacobian * weight[:, None]
        hessian = weighted @ jacobian.mT
        damping = 1e-3 * hessian.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(
            6
        ) + 1e-6 * torch.eye(6)
        change = torch.linalg.solve(hessian + damping, (weighted @ error[..., None]))[..., 0]
        maps = maps + change.clamp(-0.3, 0.3).view(-1, 2, 3)
    return best, best_score


def _standardised(values: Tensor, mask: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    centred = values - (values * mask).sum(1, keepdim=True) / total
    spread = ((centred.square() * mask).sum(1, keepdim=True) / total).sqrt().clamp(min=1e-3)
    return centred / spread, spread


def framed_maps(first_box: Tensor, second_box: Tensor) -> Tensor:
    """Return the maps (P, 8, 2, 3) from the content of one image to that of the other, in eight orientations.

    Args:
        first_box, second_box: (P, 4), left, top, right, bottom of the content, from -1 to 1.
    """
    turns = orientations()

    def centre_and_size(box: Tensor) -> tuple[Tensor, Tensor]:
        low, high = box[:, None, :2], box[:, None, 2:]
        return (low + high) / 2, (high - low) / 2

    (c1, s1), (c2, s2) = centre_and_size(first_box), centre_and_size(second_box)
    linear = torch.diag_embed(s2.expand(-1, 8, -1)) @ turns @ torch.diag_embed(1 / s1.expand(-1, 8, -1))
    offset = c2[..., None] - linear @ c1[..., None]
    return torch.cat([linear, offset], -1)


def turned(angle: float, aspect: Tensor) -> Tensor:
    """Return the maps (P, 2, 3) that turn images of an aspect (P,), width over height, by degrees."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    zero = torch.zeros_like(aspect)
    across = torch.stack([zero + cosine, -sine / aspect, zero], -1)
    return torch.stack([across, torch.stack([sine * aspect, zero + cosine, zero], -1)], 1)


def shifted_maps(first: Tensor, second: Tensor, first_size: Tensor, second_size: Tensor) -> Tensor:
    """Return the map (P, 2, 3) of pairs that have the same pixels, shifted: where one was cut from the other.

    Args:
        first, second: (P, S, S).
        first_size, second_size: (P, 2), width and height of the files in pixels.
    """
    side = first.shape[-1]
    longest = torch.maximum(first_size.amax(1), second_size.amax(1))[:, None]
    canvases = []
    for images, size in ((first, first_size), (second, second_size)):
        scale = longest / size  # the canvas spans so many sides of the image
        maps = torch.cat([torch.diag_embed(scale), torch.zeros(len(size), 2, 1)], -1)
        seen, inside = warped(images[:, None], maps, side)
        values = contrast(seen[:, 0]) * inside
        canvases.append(torch.fft.rfft2(values))
    correlation = torch.fft.irfft2(canvases[0].conj() * canvases[1], s=(side, side))
    position = correlation.flatten(1).argmax(1)
    shift = torch.stack([position % side, position // side], -1).float()
    shift = torch.where(shift > side / 2, shift - side, shift) * 2 / side  # of the canvas, from -1 to 1
    ratio = first_size / second_size
    offset = shift * longest / second_size
    return torch.cat([torch.diag_embed(ratio), offset[..., None]], -1)
