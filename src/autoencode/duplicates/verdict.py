"""The verdict on registered pairs: from which agreement on they are copies, and of what kind."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from autoencode.duplicates.verification import Match

# Photographs, faces and pages of one kind agree in less than half of their structure; their copies, in more
# than four fifths of it (docs/results.md).
LEAST, LEAST_MUTUAL = 0.8, 0.55
HIGHEST = 0.98
_STEP, _BAND = 0.01, 0.04
_SURE = 0.97  # agreement of both sides of a copy that was not edited
_MOST_EDITED = 6  # images that edits connect
_FALSE_SHARE, _FALSE_ALWAYS = 0.01, 0.5  # of the pairs called copies, how many may be none by estimate
_SAME_FRAME, _SAME_SCALE, _SAME_ANGLE = 0.97, 0.03, 0.7  # angle in degrees
_RECOLOURED_TONE, _RECOLOURED_CHROMA = 0.04, 0.2


@dataclass(frozen=True)
class Verdict:
    """Which pairs are copies.

    Attributes:
        copies: the pairs that are.
        possible: pairs that agree as far as different images of the folder do, the likeliest first.
        threshold: the agreement from which a pair is called a copy.
        different: the highest agreement of a pair that is not called one; 0 if none comes near.
    """

    copies: list[Match]
    possible: list[Match]
    threshold: float
    different: float


def judge(matches: Sequence[Match], count: int) -> Verdict:
    """Tell copies from images that only look alike, by how far images of this folder agree.

    Two guards. Copies of one image agree in nearly everything, but for a few that were edited; where edits
    would connect many images, as among clocks or flags, these are different images, and only pairs that agree
    in everything are copies. And pairs of different images become fewer the more they agree: how many are
    above a threshold is estimated from the two bands below it, and the threshold is raised until that is less
    than a hundredth of the copies found.

    Args:
        matches: registered pairs.
        count: N, images in all.
    """
    usable = [match for match in matches if match.agreement.mutual >= LEAST_MUTUAL]
    usable.sort(key=lambda match: (-match.agreement.one_sided, match.first, match.second))
    threshold = LEAST
    while True:
        copies = _uncrowded([match for match in usable if match.agreement.one_sided >= threshold], count)
        groups = Groups(count)
        for match in copies:
            groups.join(match.first, match.second)
        # Pairs that better ones connect already are no evidence: two copies of one image may agree badly.
        apart: dict[tuple[int, int], Match] = {}
        for match in usable:
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
            possible = [match for match in apart.values() if match.agreement.one_sided >= LEAST]
            return Verdict(copies, possible, round(threshold, 2), float(scores.max(initial=0.0)))
        threshold += _STEP


def _uncrowded(matches: list[Match], count: int) -> list[Match]:
    """Return the pairs without the edits that connect more images than anyone edits."""
    sure = [match for match in matches if match.agreement.mutual >= _SURE]
    parts, groups = Groups(count), Groups(count)
    for match in sure:
        parts.join(match.first, match.second)
    for match in matches:
        groups.join(match.first, match.second)
    rows = {row for match in matches for row in (match.first, match.second)}
    joined = Counter(groups.find(part) for part in {parts.find(row) for row in rows})
    return [
        match
        for match in matches
        if match.agreement.mutual >= _SURE or joined[groups.find(match.first)] <= _MOST_EDITED
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


def kinds_of(match: Match, first_size: NDArray[np.int64], second_size: NDArray[np.int64]) -> tuple[str, ...]:
    """Return what was done to an image, from the pair with its copy, in words; see `DuplicateFile`.

    Args:
        match: the pair.
        first_size, second_size: (2,), width and height in pixels.
    """
    kinds = []
    half = np.diag(first_size / 2.0), np.diag(second_size / 2.0)
    # From pixels of the first image to those of the second: an orthogonal matrix times a size.
    linear = half[1] @ match.map[:, :2].astype(np.float64) @ np.linalg.inv(half[0])
    if np.linalg.det(linear) < 0:
        kinds.append("mirrored")
        linear = linear @ np.diag([-1, 1])
    left, stretch, right = np.linalg.svd(linear)
    turn = left @ right
    angle = math.degrees(math.atan2(turn[1, 0], turn[0, 0]))
    quarters = round(angle / 90) % 4
    # An upside-down mirror image is one mirrored the other way.
    if kinds and quarters == 2:
        quarters = 0
    rest = (angle + 45) % 90 - 45
    if quarters or abs(rest) > _SAME_ANGLE:
        kinds.append("rotated")
    if match.agreement.overlap < _SAME_FRAME - 0.05 * (abs(rest) > _SAME_ANGLE) or _covered(
        match.map
    ) < _SAME_FRAME - 0.1 * (abs(rest) > _SAME_ANGLE):
        kinds.append("cropped")
    if abs(stretch - 1).max() > _SAME_SCALE:
        kinds.append("resized")
    agreement = match.agreement
    ends = [agreement.offset, agreement.offset + agreement.gain - 1]
    if (
        max(map(abs, ends)) > _RECOLOURED_TONE
        or not 1 - _RECOLOURED_CHROMA < agreement.chroma < 1 + _RECOLOURED_CHROMA
    ):
        kinds.append("recoloured")
    if agreement.differs is not None and agreement.mutual < 0.97:
        kinds.append("edited")
    return tuple(kinds) or ("re-encoded",)


def _covered(map_: NDArray[np.float32]) -> float:
    """Return the share of the frame of the second image that the first covers, by a grid of points."""
    linear = map_[:, :2].astype(np.float64)
    axis = (np.arange(50) + 0.5) / 25 - 1
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    back = (points - map_[:, 2]) @ np.linalg.inv(linear).T
    return float((np.abs(back) <= 1.01).all(1).mean())
