"""The verdict on registered pairs: whether they agree enough to be copies, and of what kind.

One side of the threshold is what copies reach that are made of the images themselves; the other, how far
different images of the folder agree.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoencode.duplicates.features import SQUARE, Sketches, sketch_pixels
from autoencode.duplicates.verification import Match, Verifier
from autoencode.errors import ImageError

# Photographs, faces and pages of one kind agree in less than half of their structure; their copies, in more
# than four fifths of it (docs/results.md).
LEAST, LEAST_MUTUAL = 0.8, 0.55
HIGHEST = 0.96  # a watermark leaves as much of the other image
_STEP, _BAND = 0.01, 0.1
_SURE = 0.97  # agreement of both sides of a copy that was not edited
_SCATTERED = 0.8  # agreement of both sides below which a difference is an edit wherever it is
_MOST_EDITED = 6  # images that edits connect
_ALIKE = 0.85  # threshold from which the folder is one of drawings that share their parts
_FALSE_SHARE, _FALSE_ALWAYS = 0.01, 0.5  # of the pairs called copies, how many may be none by estimate
_HALF = 0.5
_DETAIL = 18.0  # windows of structure below which an image fits into many others; digits have 4 to 16
_SAME_PLACE = 0.08  # of half a side
_SAME_FRAME, _SAME_SCALE, _SAME_ANGLE = 0.97, 0.03, 0.7  # angle in degrees
_PART_OF_PIXEL = 0.5
_RECOLOURED_TONE, _RECOLOURED_CHROMA = 0.1, 0.2  # JPEG of quality 30 takes 0.09 of the contrast of print

# An altered copy as sites and messengers make them, and the share of such copies whose agreement is stated.
_QUALITY, _SHRINK, _BORDER = 40, 0.75, 0.025
_SHARE = 0.95
_SAMPLE = 16

Pixels = NDArray[np.uint8]
Sizes = NDArray[np.int64]


@dataclass(frozen=True)
class Verdict:
    """Which pairs are copies.

    Attributes:
        copies: the pairs that are.
        possible: pairs that agree as copies do, and are not called copies: edited or changed in several ways
            as far as different images of the folder agree, or of too little detail. The likeliest first.
        threshold: the agreement from which a pair that was edited, or changed in several ways, is called a
            copy.
        different: the highest agreement of a pair that has detail enough and is not called one; 0 if none
            comes near.
    """

    copies: list[Match]
    possible: list[Match]
    threshold: float
    different: float


def judge(matches: Sequence[Match], sizes: Sizes) -> Verdict:
    """Tell copies from images that only look alike, by how far images of this folder agree.

    A pair that differs in one way (turned, cropped, recoloured) is a copy if it agrees in most of its
    structure. One that was edited, or changed in several ways at once, has two guards. Where edits would
    connect many images, as among clocks or flags, these are different images. And pairs of different images
    become fewer the more they agree: how many are above a threshold is estimated from the two bands below it,
    and the threshold is raised until that is less than a hundredth of the copies found.

    Args:
        matches: registered pairs.
        sizes: (N, 2), width and height of all images in pixels.
    """
    count = len(sizes)
    usable = [match for match in matches if match.agreement.mutual >= LEAST_MUTUAL and _is_evident(match)]
    usable.sort(key=lambda match: (-match.agreement.one_sided, match.first, match.second))
    changes = {id(match): _changes(match, sizes[match.first], sizes[match.second]) for match in usable}
    threshold = LEAST
    while True:
        copies = [match for match in usable if _is_copy(match, changes[id(match)], threshold)]
        copies = _uncrowded(copies, count)
        groups = Groups(count)
        for match in copies:
            groups.join(match.first, match.second)
        # Pairs that better ones connect already are no evidence: two copies of one image may agree badly.
        apart: dict[tuple[int, int], Match] = {}
        for match in sorted(matches, key=lambda match: -match.agreement.one_sided):
            ends = sorted((groups.find(match.first), groups.find(match.second)))
            if ends[0] != ends[1]:
                apart.setdefault((ends[0], ends[1]), match)
        scores = np.array([match.agreement.one_sided for match in apart.values()])
        near = int(((scores >= threshold - _BAND) & (scores < threshold)).sum())
        far = int(((scores >= threshold - 2 * _BAND) & (scores < threshold - _BAND)).sum())
        # A geometric series: each band has as many of them as the last one had of the one before.
        ratio = min(0.9, near / far) if far else 0.9
        expected = near * ratio / (1 - ratio)
        if expected <= _FALSE_ALWAYS + _FALSE_SHARE * groups.joined or threshold >= HIGHEST:
            left = [match for match in apart.values() if match.agreement.mutual >= LEAST_MUTUAL]
            possible = [match for match in left if match.agreement.one_sided >= LEAST]
            # A stroke agrees with every other, and says nothing about the images of the folder.
            different = max((match.agreement.one_sided for match in left if _is_evident(match)), default=0.0)
            return Verdict(copies, possible, round(threshold, 2), different)
        threshold += _STEP


def _is_evident(match: Match) -> bool:
    """Whether a pair has detail enough for the map between its images: a stroke is found in every other."""
    if match.agreement.detail >= _DETAIL:
        return True
    # One frame on the other, at most mirrored or turned by quarters.
    is_whole = abs(match.map - match.map.round()).max() < _SAME_PLACE and abs(match.map[:, 2]).max() < _HALF
    is_upright = (match.map.round()[:, :2] == np.eye(2)).all()
    return bool(is_whole and (match.agreement.detail >= _DETAIL / 3 or is_upright))


def _is_copy(match: Match, changes: int, threshold: float) -> bool:
    agreement, is_edited = match.agreement, _is_edited(match)
    if changes <= 1 and not is_edited:
        return agreement.one_sided >= LEAST
    # A drawing is easily found in another that shares its parts, if all may differ at once.
    if threshold >= _ALIKE and changes > 1 and (is_edited or agreement.overlap < _HALF):
        return False
    return agreement.one_sided >= threshold


def _is_edited(match: Match) -> bool:
    mutual = match.agreement.mutual
    return mutual < _SCATTERED or (match.agreement.differs is not None and mutual < _SURE)


def _changes(match: Match, first_size: Sizes, second_size: Sizes) -> int:
    """Return in how many ways a pair differs: orientation, frame, colours, content."""
    kinds, (_, quarters, is_mirrored) = (
        kinds_of(match, first_size, second_size),
        _turn(match, first_size, second_size),
    )
    # A scan is a little askew whatever else was done to it.
    return sum((bool(quarters) or is_mirrored, "cropped" in kinds, "recoloured" in kinds, _is_edited(match)))


def _uncrowded(matches: list[Match], count: int) -> list[Match]:
    """Return the pairs without the edits that connect more images than anyone edits."""
    parts, groups = Groups(count), Groups(count)
    for match in matches:
        if not _is_edited(match):
            parts.join(match.first, match.second)
        groups.join(match.first, match.second)
    rows = {row for match in matches for row in (match.first, match.second)}
    joined = Counter(groups.find(part) for part in {parts.find(row) for row in rows})
    return [
        match
        for match in matches
        if not _is_edited(match) or joined[groups.find(match.first)] <= _MOST_EDITED
    ]


class Groups:
    """Rows that belong together (union-find)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))
        self.joined = 0

    def find(self, row: int) -> int:
        """Return the row that stands for the group of a row."""
        while self._parent[row] != row:
            self._parent[row] = self._parent[self._parent[row]]
            row = self._parent[row]
        return row

    def join(self, one: int, other: int) -> None:
        """Put the groups of two rows together."""
        first, second = sorted((self.find(one), self.find(other)))
        self.joined += first != second
        self._parent[second] = first

    def members(self) -> list[list[int]]:
        """Return the groups of more than one row, each in order, by their first row."""
        sizes = Counter(self.find(row) for row in range(len(self._parent)))
        groups: dict[int, list[int]] = {root: [] for root, size in sizes.items() if size > 1}
        for row in range(len(self._parent)):
            if (root := self.find(row)) in groups:
                groups[root].append(row)
        return sorted(groups.values())


def kinds_of(match: Match, first_size: Sizes, second_size: Sizes) -> tuple[str, ...]:
    """Return what was done to an image, from the pair with its copy, in words; see `DuplicateFile`.

    Args:
        match: the pair.
        first_size, second_size: (2,), width and height in pixels.
    """
    angle, quarters, is_mirrored = _turn(match, first_size, second_size)
    kinds = ["mirrored"] * is_mirrored
    # A border between few pixels is placed to a fraction of one.
    side = float(min(first_size.min(), second_size.min()))
    is_askew = abs(angle) > max(_SAME_ANGLE, math.degrees(_PART_OF_PIXEL * 2 / side))
    if quarters or is_askew:
        kinds.append("rotated")
    agreement, same_frame = match.agreement, min(_SAME_FRAME, 1 - _PART_OF_PIXEL * 2 / side)
    if agreement.overlap < same_frame - 0.05 * is_askew or _covered(match.map) < same_frame - 0.1 * is_askew:
        kinds.append("cropped")
    if abs(np.linalg.svd(_in_pixels(match, first_size, second_size))[1] - 1).max() > _SAME_SCALE:
        kinds.append("resized")
    ends = [agreement.offset, agreement.offset + agreement.gain - 1]
    if (
        max(map(abs, ends)) > _RECOLOURED_TONE
        or not 1 - _RECOLOURED_CHROMA < agreement.chroma < 1 + _RECOLOURED_CHROMA
    ):
        kinds.append("recoloured")
    if agreement.differs is not None:
        kinds.append("edited")
    return tuple(kinds) or ("re-encoded",)


def _in_pixels(match: Match, first_size: Sizes, second_size: Sizes) -> NDArray[np.float64]:
    """Return the matrix (2, 2) from pixels of the first image to those of the second."""
    linear = match.map[:, :2].astype(np.float64)
    return np.asarray(np.diag(second_size / 2.0) @ linear @ np.linalg.inv(np.diag(first_size / 2.0)))


def _turn(match: Match, first_size: Sizes, second_size: Sizes) -> tuple[float, int, bool]:
    """Return the angle in degrees that is left after quarter turns, their number, and if it is mirrored."""
    # An orthogonal matrix times a size.
    linear = _in_pixels(match, first_size, second_size)
    is_mirrored = bool(np.linalg.det(linear) < 0)
    if is_mirrored:
        linear = linear @ np.diag([-1, 1])
    left, _, right = np.linalg.svd(linear)
    turn = left @ right
    angle = math.degrees(math.atan2(turn[1, 0], turn[0, 0]))
    quarters = round(angle / 90) % 4
    # An upside-down mirror image is one mirrored the other way.
    if is_mirrored and quarters == 2:
        quarters = 0
    return (angle + 45) % 90 - 45, quarters, is_mirrored


def _covered(map_: NDArray[np.float32]) -> float:
    """Return the share of the frame of the second image that the first covers, by a grid of points."""
    linear = map_[:, :2].astype(np.float64)
    axis = (np.arange(50) + 0.5) / 25 - 1
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    back = (points - map_[:, 2]) @ np.linalg.inv(linear).T
    return float((np.abs(back) <= 1.01).all(1).mean())


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
