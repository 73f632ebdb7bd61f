"""Round vectors to four bits a value; inverted lists scan these instead of the vectors of the codes.

Vectors are centred, projected onto their strongest principal directions and rotated at random, so that all
values vary alike; then each value is rounded to one of 16 levels. How many directions are kept, and how many
candidates must be scored again, is measured on the codes.

Shapes: N vectors, D dimensions, d reduced dimensions, K neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from autoencode.index.neighbours import Floats

# Directions are added until so few candidates are enough: scoring 600 again takes a tenth of a millisecond,
# as long as scanning 20 lists of a million codes.
_FEW_CANDIDATES, MOST_CANDIDATES = 600, 10_000
_LEAST_CANDIDATES = 60  # twice what is scored in fp64
# Share of the true neighbours that has to be among the candidates, if all lists are scanned.
_KEPT_SHARE = 0.999
_DIMENSION_STEP = 32
_LEVELS, _LEVEL_ITERATIONS = 16, 25
_LEVEL_SAMPLE, _CROWD = 20_000, 40_000
_QUERIES_AT_ONCE = 100


@dataclass(frozen=True)
class Rounding:
    """A map from vectors to few values of four bits.

    Attributes:
        centre: (D,) float32, subtracted from a vector.
        projection: (D, d) float32 the centred vector is multiplied by; d is even.
        levels: (d, 16) float32, ascending: what each value is rounded to.
    """

    centre: Floats
    projection: Floats
    levels: Floats

    def apply(self, vectors: Floats) -> Floats:
        """Reduce vectors (N, D) to (N, d)."""
        return np.ascontiguousarray((vectors - self.centre) @ self.projection)

    def rounded(self, reduced: Floats) -> NDArray[np.uint8]:
        """Return the number (N, d) of the level nearest to each value of reduced vectors (N, d)."""
        found = np.zeros(reduced.shape, np.uint8)
        # One comparison per boundary is eight times as fast as FAISS's search for the nearest level.
        for boundary in ((self.levels[:, 1:] + self.levels[:, :-1]) / 2).T:
            found += reduced > boundary
        return found

    def packed(self, reduced: Floats) -> NDArray[np.uint8]:
        """Round reduced vectors (N, d), two values to a byte (N, d / 2), the first in the lower half."""
        found = self.rounded(reduced)
        return found[:, ::2] | (found[:, 1::2] << np.uint8(4))

    def check(self, size: int) -> None:
        """Reject a map that does not fit vectors of `size` dimensions.

        Raises:
            ValueError: names the part that does not fit.
        """
        reduced = self.projection.shape[-1]
        shapes = {"centre": (size,), "projection": (size, reduced), "levels": (reduced, _LEVELS)}
        for name, shape in shapes.items():
            check_floats(name, getattr(self, name), shape)
        if reduced % 2 or not (np.diff(self.levels) >= 0).all():
            raise ValueError("levels that are not ascending, or of an odd number of dimensions")


def fit_rounding(training: Floats, queries: Floats, neighbours: Floats, count: int) -> tuple[Rounding, int]:
    """Return the smallest rounding that keeps the true neighbours among the candidates, and their number.

    Args:
        training: (T, D), a sample of the vectors.
        queries: (S, D), others.
        neighbours: (S, K, D), the true neighbours of the queries.
        count: all vectors.
    """
    size = training.shape[1]
    centre = training.mean(0)
    centred = training - centre
    _, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, ::-1]  # the strongest first
    crowd = training[:_CROWD]
    full = size + size % 2  # two values share a byte
    for reduced in [*range(_DIMENSION_STEP, full, _DIMENSION_STEP), full]:
        mixing = np.random.Generator(np.random.Philox(reduced)).normal(size=(reduced, reduced))
        rotation, _ = np.linalg.qr(mixing)
        projection = (directions[:, :reduced] @ rotation[: min(reduced, size)]).astype(np.float32)
        rounding = Rounding(centre, projection, np.zeros((reduced, _LEVELS), np.float32))
        rounding = replace(rounding, levels=_levels(rounding.apply(training[:_LEVEL_SAMPLE])))
        wanted = _candidates_wanted(rounding, queries, neighbours, crowd) * count / len(crowd)
        if wanted <= _FEW_CANDIDATES:
            break
    return rounding, min(max(_LEAST_CANDIDATES, math.ceil(wanted)), MOST_CANDIDATES)


def _candidates_wanted(rounding: Rounding, queries: Floats, neighbours: Floats, crowd: Floats) -> float:
    """Return how many of a crowd (N, D) a search must find to find `_KEPT_SHARE` of the neighbours too."""

    def decoded(vectors: Floats) -> Floats:
        numbers = rounding.rounded(rounding.apply(vectors)).astype(np.int64)
        return np.take_along_axis(rounding.levels, numbers.T, axis=1).T

    others, asked = decoded(crowd), rounding.apply(queries)
    squares = np.square(others).sum(1)
    nearer = []
    for start in range(0, len(asked), _QUERIES_AT_ONCE):
        query = asked[start : start + _QUERIES_AT_ONCE]
        known = neighbours[start : start + _QUERIES_AT_ONCE]
        distances = squares - 2 * query @ others.T
        limits = decoded(known.reshape(-1, known.shape[-1])).reshape(*known.shape[:2], -1)
        limits = np.square(limits).sum(-1) - 2 * (limits @ query[:, :, None])[..., 0]
        nearer += [(distances < limits[:, place, None]).sum(1) for place in range(known.shape[1])]
    # The neighbours themselves are candidates too.
    return float(np.quantile(np.concatenate(nearer), _KEPT_SHARE))


def _levels(sample: Floats) -> Floats:
    """Return the 16 levels (d, 16) per dimension with the least squared error on a sample (N, d): Lloyd's."""
    ordered = np.sort(sample, axis=0).astype(np.float64)
    count, size = ordered.shape
    sums = np.concatenate([np.zeros((1, size)), np.cumsum(ordered, axis=0)])
    found = np.empty((size, _LEVELS), np.float32)
    first = ((np.arange(_LEVELS) + 0.5) / _LEVELS * count).astype(np.int64)
    for one in range(size):
        levels = ordered[first, one]
        for _ in range(_LEVEL_ITERATIONS):
            between = np.searchsorted(ordered[:, one], (levels[1:] + levels[:-1]) / 2)
            cuts = np.concatenate([[0], between, [count]])
            held = np.diff(cuts)
            means = np.diff(sums[cuts, one]) / np.maximum(held, 1)
            levels = np.where(held > 0, means, levels)
        found[one] = levels
    # Equal values round their mean up or down, which would leave levels out of order.
    return np.sort(found, axis=1)


def check_floats(name: str, array: Floats, shape: tuple[int, ...]) -> None:
    """Reject an array that is not finite fp32 of this shape, or is empty.

    Raises:
        ValueError: names the array.
    """
    if array.shape != shape or 0 in shape or array.dtype != np.float32 or not np.isfinite(array).all():
        raise ValueError(f"{name} of shape {array.shape} or not finite")
