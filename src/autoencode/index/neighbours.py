"""The nearest of many codes: what near means, and finding them with FAISS.

Up to `EXACT_LIMIT` codes every one is compared. Beyond, codes are grouped into cells and a query looks into
the nearest cells only (an inverted file: Jégou et al. 2011, section IV), into so many that nearly nothing is
missed, as measured when the cells are made. There FAISS keeps a byte a value, which is half the time and a
quarter of the memory of fp32. What it finds is scored again in fp64, from the codes themselves: distances
between bytes are rough, and those of L2 between codes that nearly agree are mostly rounding.

Shapes: R codes, Q queries, D code size, L cells, K neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.configuration import Distance
from autoencode.errors import ConfigError

EXACT_LIMIT = 100_000
RECALL_SOUGHT = 0.995  # on the sample; its error is about 0.002, which keeps the recall itself above 0.99
RECALL_NEIGHBOURS, RECALL_SAMPLE = 10, 500

_CELLS_PER_ROOT = 2  # cells for the square root of the number of codes; 4 take twice as long and find no more
_TRAINED_PER_CELL, _ITERATIONS = 40, 5  # twice as many of both take four times as long and find no more
FOUND_PER_WANTED = 3  # of what the bytes call nearest, so many times K are scored again
_MULTIPLIED = 1000  # values of all queries; FAISS's own 128,000 takes up to 8 times as long
_EQUAL = 1e-6  # share of their mean by which equal codes differ, from rounding
_BLOCK_VALUES = 16 * 1024**2  # a block of scores is 64 MB
_VECTOR_VALUES = 1024**2  # a block of vectors is 4 MB, and 8 in fp64

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Space:
    """How codes are compared: a linear map, and the angle or the distance between what it gives.

    Attributes:
        distance: "whitened" is the cosine of the angle between codes whose principal directions are scaled
            to unit variance (Jégou & Chum 2012); "cosine" that between the codes themselves; "l2" the
            Euclidean distance.
        centre: (D,) subtracted first; None where nothing is.
        matrix: (D, D) applied next; None where none is.
    """

    distance: Distance
    centre: Floats | None = None
    matrix: Floats | None = None

    @property
    def is_similarity(self) -> bool:
        """Whether a higher score is nearer."""
        return self.distance != "l2"

    def vectors(self, codes: Floats) -> Floats:
        """Map codes (R, D) to vectors (R, D) whose inner product, or whose L2 distance, is the score."""
        vectors: Floats = np.asarray(codes, np.float32)
        if self.centre is not None and self.matrix is not None:
            vectors = ((vectors - self.centre) @ self.matrix).astype(np.float32, copy=False)
        if self.is_similarity:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            # A code of zero length has no direction: it is at a right angle to every other.
            vectors = (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
        return np.ascontiguousarray(vectors)

    def scores(self, queries: Floats, vectors: Floats) -> NDArray[np.float64]:
        """Score queries (..., D) against vectors (..., D), in fp64."""
        queries, vectors = queries.astype(np.float64), vectors.astype(np.float64)
        if self.is_similarity:
            return np.asarray((queries * vectors).sum(-1).clip(-1, 1))
        return np.asarray(np.sqrt(np.square(queries - vectors).sum(-1)))


def fit_space(codes: Floats, distance: Distance) -> Space:
    """Choose what the comparison needs to know of the codes (R, D).

    Whitening shrinks the covariance towards a multiple of the identity with the weight of D further codes
    (a ridge, as in Ledoit & Wolf 2004): directions without variance, or with too few codes to know it, are
    not blown up. Codes that are all equal are compared as they are.

    Raises:
        ConfigError: an unknown distance.
    """
    if distance not in get_args(Distance):
        raise ConfigError(f"Unknown distance {distance!r}. Choose one of: {', '.join(get_args(Distance))}.")
    if distance != "whitened":
        return Space(distance)
    count, size = codes.shape
    total, products = np.zeros(size), np.zeros((size, size))
    for _, block in _blocks(codes):
        total += block.sum(0, dtype=np.float64)
    mean = total / count
    for _, block in _blocks(codes):
        centred = block - mean
        products += centred.T @ centred
    variances, directions = np.linalg.eigh(products / count)
    variances = variances.clip(min=0)
    # Of one code, or equal ones, every difference is rounding: nothing is known to whiten by.
    if variances.mean() <= np.square(_EQUAL * mean).mean():
        return Space(distance)
    weight = size / (size + count)
    shrunk = (1 - weight) * variances + weight * variances.mean()
    shrunk = np.maximum(shrunk, np.finfo(np.float32).tiny)
    return Space(distance, mean.astype(np.float32), (directions / np.sqrt(shrunk)).astype(np.float32))


@dataclass(frozen=True)
class Cells:
    """Codes grouped for approximate search.

    Attributes:
        centroids: (L, D) float32.
        assignment: (R,) int64, the cell of each code.
        probes: cells that a query looks into.
        recall: share of the true 10 nearest that were found for a sample of codes.
    """

    centroids: Floats
    assignment: Rows
    probes: int
    recall: float


def fit_cells(space: Space, codes: Floats, exact_limit: int = EXACT_LIMIT) -> Cells | None:
    """Group codes (R, D), or return None where every one can be compared."""
    count, size = codes.shape
    if count <= exact_limit:
        return None
    prepare_faiss()
    cells = round(_CELLS_PER_ROOT * math.sqrt(count))
    order = np.random.Generator(np.random.Philox(0)).permutation(count)
    sample, rest = np.sort(order[:RECALL_SAMPLE]), order[RECALL_SAMPLE:]
    training = space.vectors(codes[np.sort(rest[: _TRAINED_PER_CELL * cells])])
    kmeans = faiss.Kmeans(
        size,
        cells,
        niter=_ITERATIONS,
        seed=1,
        spherical=space.is_similarity,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rest),
    )
    kmeans.train(training)
    del training
    centroids = np.array(kmeans.centroids)
    quantizer = _flat(space, size)
    quantizer.add(centroids)
    assignment = np.empty(count, np.int64)
    for start, block in _blocks(codes):
        assignment[start : start + len(block)] = quantizer.search(space.vectors(block), 1)[1][:, 0]
    probes, recall = _probes(space, codes, centroids, assignment, sample)
    return Cells(centroids, assignment, probes, recall)


def _probes(
    space: Space, codes: Floats, centroids: Floats, assignment: Rows, sample: Rows
) -> tuple[int, float]:
    """Return how few cells need be looked into, and the recall with them."""
    wanted = Nearest(space, codes, None).others(sample, RECALL_NEIGHBOURS)
    nearest = Nearest(space, codes, Cells(centroids, assignment, 1, 0.0))

    def recall_with(probes: int) -> float:
        nearest.index.nprobe = probes
        found = nearest.others(sample, RECALL_NEIGHBOURS)
        return float(np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found, strict=True)]))

    return fewest_probes(recall_with, len(centroids))


def fewest_probes(recall_with: Callable[[int], float], cells: int, first: int = 1) -> tuple[int, float]:
    """Return how few cells, from `first` on, need be looked into for `RECALL_SOUGHT`, and the recall.

    They are raised in steps of a third; then the last step is halved, to within a sixteenth of the fewest.
    """
    too_few, probes = first - 1, min(first, cells)
    while (recall := recall_with(probes)) < RECALL_SOUGHT and probes < cells:
        too_few, probes = probes, min(math.ceil(probes * 4 / 3), cells)
    while probes - too_few > 1 + probes // 16:
        between = (too_few + probes) // 2
        if (found := recall_with(between)) < RECALL_SOUGHT:
            too_few = between
        else:
            probes, recall = between, found
    return probes, recall


class Found(NamedTuple):
    """Neighbours of one query, nearest first: `scores` (K,) and `rows` (K,)."""

    scores: NDArray[np.float64]
    rows: Rows


def ranked(space: Space, query: Floats, vectors: Floats, rows: Rows, k: int) -> Found:
    """Return the K nearest to the vector of a query (D,), of vectors (N, D); equals by their `rows` (N,)."""
    scores = space.scores(query, vectors)
    order = np.lexsort((rows, -scores if space.is_similarity else scores))[:k]
    return Found(scores[order], rows[order])


class Nearest:
    """Codes, ready to be searched.

    Args:
        space: how they are compared.
        codes: (R, D) float32; kept, and read from when scoring.
        cells: from `fit_cells`; None compares every code.
    """

    def __init__(self, space: Space, codes: Floats, cells: Cells | None) -> None:
        prepare_faiss()
        self.space = space
        self.codes = codes
        self.cells = cells
        size = codes.shape[1]
        self.index: Any = _flat(space, size)
        self._error, self._found_per_wanted = 0.0, 1
        if cells is None:
            for _, block in _blocks(codes):
                self.index.add(space.vectors(block))
            return
        self._quantizer = self.index  # FAISS keeps a bare pointer to it
        self._quantizer.add(cells.centroids)
        self.index = faiss.IndexIVFScalarQuantizer(
            *(self._quantizer, size, len(cells.centroids), faiss.ScalarQuantizer.QT_8bit),
            *(self._quantizer.metric_type, False),
        )
        self.index.nprobe, self._found_per_wanted = cells.probes, FOUND_PER_WANTED
        extremes = [(block.min(0), block.max(0)) for block in self._vector_blocks()]
        low, high = np.min([one for one, _ in extremes], 0), np.max([other for _, other in extremes], 0)
        self.index.train(np.stack([low, high]))
        # The farthest that bytes can be from what they stand for: half a step in every direction.
        self._error = float(np.linalg.norm(high - low)) / 255 / 2
        start = 0
        for vectors in self._vector_blocks():
            rows = np.arange(start, start + len(vectors))
            assignment = np.ascontiguousarray(cells.assignment[rows])
            pointers = [faiss.swig_ptr(array) for array in (vectors, rows, assignment)]
            self.index.add_core(len(vectors), *pointers)
            start += len(vectors)

    def _vector_blocks(self) -> Iterator[Floats]:
        return (self.space.vectors(block) for _, block in _blocks(self.codes))

    def search(self, codes: Floats, k: int) -> list[Found]:
        """Return the K nearest of each of the codes (Q, D), nearest first, equals by row.

        Fewer than K come back where there are no more.
        """
        if not len(codes):
            return []
        vectors, k = self.space.vectors(codes), min(k, len(self.codes))
        sought = min(self._found_per_wanted * k, len(self.codes))
        _, rows = self.index.search(vectors, sought)
        short = np.flatnonzero(rows[:, k - 1] < 0)
        if self.cells and len(short):  # the cells looked into hold fewer than K
            all_cells = faiss.SearchParametersIVF()
            all_cells.nprobe = self.index.nlist
            _, rows[short] = self.index.search(vectors[short], sought, params=all_cells)
        return [
            ranked(self.space, vector, self.space.vectors(self.codes[found]), found, k)
            for vector, found in zip(vectors, (found[found >= 0] for found in rows), strict=True)
        ]

    def others(self, rows: Rows, k: int) -> list[Rows]:
        """Return the rows of the K nearest of each of `rows` (Q,), itself left out."""
        found = self.search(self.codes[rows], k + 1)
        return [near.rows[near.rows != row][:k] for row, near in zip(rows, found, strict=True)]

    def pairs(self, threshold: float) -> Iterator[tuple[Rows, Rows, NDArray[np.float64]]]:
        """Yield blocks (first row, second row, score) of the pairs at least as near as a score.

        Memory does not grow with the square of the number of codes.
        """
        # FAISS wants more than, or less than, and rounds: what it finds is checked again.
        if self.space.is_similarity:
            radius = threshold - 1e-5 - self._error
        else:
            radius = (threshold + self._error) ** 2 * (1 + 1e-4) + 1e-9
        step = max(1, _BLOCK_VALUES // max(len(self.codes), self.codes.shape[1]))
        for start in range(0, len(self.codes), step):
            vectors = self.space.vectors(self.codes[start : start + step])
            limits, _, second = self.index.range_search(vectors, radius)
            first = start + np.repeat(np.arange(len(vectors)), np.diff(limits.astype(np.int64)))
            once = first < second
            first, second = first[once], second[once].astype(np.int64)
            scores = self._pair_scores(first, second)
            near = scores >= threshold if self.space.is_similarity else scores <= threshold
            yield first[near], second[near], scores[near]

    def _pair_scores(self, first: Rows, second: Rows) -> NDArray[np.float64]:
        scores = np.empty(len(first))
        step = max(1, _BLOCK_VALUES // (4 * self.codes.shape[1]))
        for start in range(0, len(first), step):
            part = slice(start, start + step)
            one, other = (self.space.vectors(self.codes[rows[part]]) for rows in (first, second))
            scores[part] = self.space.scores(one, other)
        return scores


def _flat(space: Space, size: int) -> Any:  # noqa: ANN401 - FAISS has no types
    return faiss.IndexFlatIP(size) if space.is_similarity else faiss.IndexFlatL2(size)


def _blocks(codes: Floats) -> Iterator[tuple[int, Floats]]:
    step = max(1, _VECTOR_VALUES // codes.shape[1])
    for start in range(0, len(codes), step):
        yield start, codes[start : start + step]


def prepare_faiss() -> None:
    """Let FAISS use as many threads as torch does and no more, and multiply matrices where that is faster."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    threshold = min(faiss.cvar.distance_compute_blas_threshold, _MULTIPLIED)
    faiss.cvar.distance_compute_blas_threshold = threshold
