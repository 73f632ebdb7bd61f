"""Nearest neighbours among codes: how two codes are compared, and the search with FAISS.

Up to `EXACT_LIMIT` codes, a query is compared with every one. Beyond, the codes are divided among inverted
lists, one per k-means centroid, and a query scans the `nprobe` lists with the nearest centroids (Jégou et al.
2011, section IV); `nprobe` is the smallest number that reaches `RECALL_SOUGHT` on a sample. FAISS then keeps
one byte per dimension: half the time and a quarter of the memory of fp32. The candidates it finds are scored
again in fp64 from the codes themselves: distances between bytes are rough, and FAISS's L2 distances between
nearly equal codes are mostly rounding error.

Shapes: R codes, Q queries, D code dimensions, L inverted lists, K neighbours.
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
from autoencode.errors import check_choice

EXACT_LIMIT = 100_000
# The recall measured on the sample has an error of about 0.002: 0.995 keeps the true recall above 0.99.
RECALL_SOUGHT = 0.995
RECALL_NEIGHBOURS, RECALL_SAMPLE = 10, 500
# Candidates scored again for each neighbour asked for, as the order of the one-byte distances is rough.
CANDIDATES_PER_NEIGHBOUR = 3

# Lists for the square root of the number of codes: 4 took twice as long and found no more.
_LISTS_PER_ROOT = 2
# Codes per list and iterations of k-means: twice as many of both took four times as long and found no more.
_TRAINED_PER_LIST, _ITERATIONS = 40, 5
# Query values from which FAISS multiplies matrices: its own default of 128,000 took up to 8 times as long.
_MATRIX_THRESHOLD = 1000
_RELATIVE_ROUNDING = 1e-6  # share of their mean by which equal codes may differ, from fp32 rounding
_BLOCK_VALUES = 16 * 1024**2  # a block of scores is 64 MB
_VECTOR_VALUES = 1024**2  # a block of vectors is 4 MB, and 8 in fp64

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class VectorSpace:
    """How codes are compared: a linear map to vectors, and a score between two vectors.

    Attributes:
        distance: "whitened" scores by the cosine of the angle between codes whose principal directions are
            scaled to unit variance (Jégou & Chum 2012), "cosine" by the cosine between the codes themselves,
            "l2" by their Euclidean distance.
        mean: (D,) subtracted from a code; None without whitening.
        whitening: (D, D) the centred code is multiplied by; None without whitening.
    """

    distance: Distance
    mean: Floats | None = None
    whitening: Floats | None = None

    @property
    def is_similarity(self) -> bool:
        """Whether a higher score is nearer."""
        return self.distance != "l2"

    def vectors(self, codes: Floats) -> Floats:
        """Map codes (R, D) to vectors (R, D) whose inner product, or whose L2 distance, is the score."""
        vectors: Floats = np.asarray(codes, np.float32)
        if self.mean is not None and self.whitening is not None:
            vectors = ((vectors - self.mean) @ self.whitening).astype(np.float32, copy=False)
        if self.is_similarity:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            # A code of zero length has no direction. It stays zero, and so scores 0 with every other.
            vectors = (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
        return np.ascontiguousarray(vectors)

    def scores(self, queries: Floats, vectors: Floats) -> NDArray[np.float64]:
        """Score queries (..., D) against vectors (..., D), in fp64."""
        queries, vectors = queries.astype(np.float64), vectors.astype(np.float64)
        if self.is_similarity:
            return np.asarray((queries * vectors).sum(-1).clip(-1, 1))
        return np.asarray(np.sqrt(np.square(queries - vectors).sum(-1)))


def fit_vector_space(codes: Floats, distance: Distance) -> VectorSpace:
    """Fit the map that a distance needs to codes (R, D); only "whitened" needs one.

    Whitening shrinks the covariance towards a multiple of the identity with the weight of D further codes (a
    ridge, as in Ledoit & Wolf 2004), so that directions without variance, or with too few codes to estimate
    it, are not blown up. Codes that are all equal are not whitened.

    Raises:
        ConfigError: the distance is unknown.
    """
    check_choice("distance", distance, get_args(Distance))
    if distance != "whitened":
        return VectorSpace(distance)
    count, size = codes.shape
    # In blocks: an fp64 copy of the codes would take twice their memory.
    total, products = np.zeros(size), np.zeros((size, size))
    for _, block in _blocks(codes):
        total += block.sum(0, dtype=np.float64)
    mean = total / count
    for _, block in _blocks(codes):
        centred = block - mean
        products += centred.T @ centred
    variances, directions = np.linalg.eigh(products / count)
    variances = variances.clip(min=0)
    # A single code, or equal ones, differ from their mean by rounding alone, which must not be scaled up.
    if variances.mean() <= np.square(_RELATIVE_ROUNDING * mean).mean():
        return VectorSpace(distance)
    weight = size / (size + count)
    shrunk = (1 - weight) * variances + weight * variances.mean()
    shrunk = np.maximum(shrunk, np.finfo(np.float32).tiny)
    whitening = (directions / np.sqrt(shrunk)).astype(np.float32)
    return VectorSpace(distance, mean.astype(np.float32), whitening)


@dataclass(frozen=True)
class InvertedLists:
    """Codes divided among lists, for approximate search (an inverted file, FAISS's IVF).

    Attributes:
        centroids: (L, D) float32.
        assignment: (R,) int64, the list of each code.
        nprobe: lists that a query scans.
        recall: share of the true 10 nearest neighbours found, measured on a sample of the codes.
    """

    centroids: Floats
    assignment: Rows
    nprobe: int
    recall: float

    def check(self, count: int, size: int) -> None:
        """Reject lists that do not fit codes (count, size): FAISS would read outside of them.

        Raises:
            ValueError: names the part that does not fit.
        """
        nlist = len(self.centroids)
        is_matrix = self.centroids.shape == (nlist, size) and self.centroids.dtype == np.float32
        if not nlist or not is_matrix or not np.isfinite(self.centroids).all():
            raise ValueError(f"centroids of shape {self.centroids.shape} or not finite")
        if self.assignment.shape != (count,) or self.assignment.dtype != np.int64:
            raise ValueError("not an inverted list for each code")
        if not 0 <= self.assignment.min() <= self.assignment.max() < nlist:
            raise ValueError("codes in an inverted list that is not there")
        if type(self.nprobe) is not int or not 1 <= self.nprobe <= nlist:
            raise ValueError("an nprobe that is not from 1 to the number of inverted lists")


def fit_inverted_lists(
    space: VectorSpace, codes: Floats, exact_limit: int = EXACT_LIMIT
) -> InvertedLists | None:
    """Divide codes (R, D) among inverted lists; None where there are few enough to compare every one."""
    count, size = codes.shape
    if count <= exact_limit:
        return None
    configure_faiss()
    nlist = round(_LISTS_PER_ROOT * math.sqrt(count))
    order = np.random.Generator(np.random.Philox(0)).permutation(count)
    sample, rest = np.sort(order[:RECALL_SAMPLE]), order[RECALL_SAMPLE:]
    training = space.vectors(codes[np.sort(rest[: _TRAINED_PER_LIST * nlist])])
    kmeans = faiss.Kmeans(
        size,
        nlist,
        niter=_ITERATIONS,
        seed=1,
        spherical=space.is_similarity,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rest),
    )
    kmeans.train(training)
    del training  # as large as a tenth of the codes, and the search below needs room for all of them
    centroids = np.array(kmeans.centroids)
    quantizer = _flat(space, size)
    quantizer.add(centroids)
    assignment = np.empty(count, np.int64)
    for start, block in _blocks(codes):
        assignment[start : start + len(block)] = quantizer.search(space.vectors(block), 1)[1][:, 0]
    true = NearestNeighbours(space, codes, None).others(sample, RECALL_NEIGHBOURS)
    approximate = NearestNeighbours(space, codes, InvertedLists(centroids, assignment, 1, 0.0))

    def recall_with(nprobe: int) -> float:
        approximate.index.nprobe = nprobe
        found = approximate.others(sample, RECALL_NEIGHBOURS)
        return float(np.mean([np.isin(t, f).mean() for t, f in zip(true, found, strict=True)]))

    return InvertedLists(centroids, assignment, *smallest_nprobe(recall_with, nlist))


def smallest_nprobe(recall_with: Callable[[int], float], nlist: int, first: int = 1) -> tuple[int, float]:
    """Return the smallest nprobe, from `first` on, with a recall of `RECALL_SOUGHT`, and its recall.

    It is raised in steps of a third; then the last step is bisected, to within a sixteenth.
    """
    too_few, nprobe = first - 1, min(first, nlist)
    while (recall := recall_with(nprobe)) < RECALL_SOUGHT and nprobe < nlist:
        too_few, nprobe = nprobe, min(math.ceil(nprobe * 4 / 3), nlist)
    while nprobe - too_few > 1 + nprobe // 16:
        between = (too_few + nprobe) // 2
        if (found := recall_with(between)) < RECALL_SOUGHT:
            too_few = between
        else:
            nprobe, recall = between, found
    return nprobe, recall


class Ranked(NamedTuple):
    """Neighbours of one query, nearest first: `scores` (K,) and `rows` (K,)."""

    scores: NDArray[np.float64]
    rows: Rows


def rank(space: VectorSpace, query: Floats, vectors: Floats, rows: Rows, k: int) -> Ranked:
    """Return the K of the vectors (N, D) nearest to a query (D,); equal scores are ordered by `rows` (N,)."""
    scores = space.scores(query, vectors)
    order = np.lexsort((rows, -scores if space.is_similarity else scores))[:k]
    return Ranked(scores[order], rows[order])


class NearestNeighbours:
    """Codes, ready to be searched.

    Args:
        space: how codes are compared.
        codes: (R, D) float32; kept, and read again for exact scores.
        lists: from `fit_inverted_lists`; None compares a query with every code.
    """

    def __init__(self, space: VectorSpace, codes: Floats, lists: InvertedLists | None) -> None:
        configure_faiss()
        self.space = space
        self.codes = codes
        self.lists = lists
        size = codes.shape[1]
        self.index: Any = _flat(space, size)
        self._error, self._candidates_per_neighbour = 0.0, 1
        if lists is None:
            for _, block in _blocks(codes):
                self.index.add(space.vectors(block))
            return
        self._quantizer = self.index  # FAISS keeps a bare pointer to it, which must not dangle
        self._quantizer.add(lists.centroids)
        self.index = faiss.IndexIVFScalarQuantizer(
            *(self._quantizer, size, len(lists.centroids), faiss.ScalarQuantizer.QT_8bit),
            *(self._quantizer.metric_type, False),
        )
        self.index.nprobe, self._candidates_per_neighbour = lists.nprobe, CANDIDATES_PER_NEIGHBOUR
        extremes = [(block.min(0), block.max(0)) for block in self._vector_blocks()]
        low, high = np.min([one for one, _ in extremes], 0), np.max([other for _, other in extremes], 0)
        self.index.train(np.stack([low, high]))
        # The farthest that a vector can be from its bytes: half a quantization step in every direction.
        self._error = float(np.linalg.norm(high - low)) / 255 / 2
        start = 0
        for vectors in self._vector_blocks():
            rows = np.arange(start, start + len(vectors))
            assignment = np.ascontiguousarray(lists.assignment[rows])
            # add_core() takes the lists that are known; add() would search for the nearest centroids again.
            pointers = [faiss.swig_ptr(array) for array in (vectors, rows, assignment)]
            self.index.add_core(len(vectors), *pointers)
            start += len(vectors)

    def _vector_blocks(self) -> Iterator[Floats]:
        return (self.space.vectors(block) for _, block in _blocks(self.codes))

    def search(self, codes: Floats, k: int) -> list[Ranked]:
        """Return the K nearest neighbours of each code (Q, D), nearest first, equal scores by row.

        There are fewer than K only where the index holds fewer.
        """
        if not len(codes):
            return []
        vectors, k = self.space.vectors(codes), min(k, len(self.codes))
        candidates = min(self._candidates_per_neighbour * k, len(self.codes))
        _, rows = self.index.search(vectors, candidates)
        short = np.flatnonzero(rows[:, k - 1] < 0)
        if self.lists and len(short):  # the lists scanned hold fewer than K codes
            every_list = faiss.SearchParametersIVF()
            every_list.nprobe = self.index.nlist
            _, rows[short] = self.index.search(vectors[short], candidates, params=every_list)
        return [
            rank(self.space, vector, self.space.vectors(self.codes[found]), found, k)
            for vector, found in zip(vectors, (found[found >= 0] for found in rows), strict=True)
        ]

    def others(self, rows: Rows, k: int) -> list[Rows]:
        """Return the rows of the K nearest neighbours of each of `rows` (Q,), without the row itself."""
        found = self.search(self.codes[rows], k + 1)
        return [near.rows[near.rows != row][:k] for row, near in zip(rows, found, strict=True)]

    def pairs(self, threshold: float) -> Iterator[tuple[Rows, Rows, NDArray[np.float64]]]:
        """Yield blocks (first row, second row, score) of the pairs at least as near as a score.

        Memory does not grow with the square of the number of codes.
        """
        # FAISS finds what is strictly nearer than a radius, and rounds: the radius is a little wider, and
        # exact scores decide below.
        if self.space.is_similarity:
            radius = threshold - 1e-5 - self._error
        else:
            radius = (threshold + self._error) ** 2 * (1 + 1e-4) + 1e-9
        step = max(1, _BLOCK_VALUES // max(len(self.codes), self.codes.shape[1]))
        for start in range(0, len(self.codes), step):
            vectors = self.space.vectors(self.codes[start : start + step])
            limits, _, second = self.index.range_search(vectors, radius)
            first = start + np.repeat(np.arange(len(vectors)), np.diff(limits.astype(np.int64)))
            once = first < second  # each pair is found from both of its ends
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


def _flat(space: VectorSpace, size: int) -> Any:  # noqa: ANN401 - FAISS has no types
    return faiss.IndexFlatIP(size) if space.is_similarity else faiss.IndexFlatL2(size)


def _blocks(codes: Floats) -> Iterator[tuple[int, Floats]]:
    step = max(1, _VECTOR_VALUES // codes.shape[1])
    for start in range(0, len(codes), step):
        yield start, codes[start : start + step]


def configure_faiss() -> None:
    """Give FAISS as many threads as torch has, and let it multiply matrices from few query values on.

    Without the first, two thread pools of one process compete for the same cores.
    """
    faiss.omp_set_num_threads(torch.get_num_threads())
    threshold = min(faiss.cvar.distance_compute_blas_threshold, _MATRIX_THRESHOLD)
    faiss.cvar.distance_compute_blas_threshold = threshold
