"""Nearest neighbours among codes: how two codes are compared, and the search with FAISS.

A query is compared with every code, or with those that inverted lists (`inverted_lists`) propose. Candidates
are scored again in fp64 from the codes themselves: the vectors in the lists are rough, and FAISS's L2
distances between nearly equal codes are mostly rounding error.

Shapes: R codes, Q queries, D code dimensions, K neighbours.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.configuration import Distance
from autoencode.errors import check_choice

if TYPE_CHECKING:
    from autoencode.index.inverted_lists import InvertedLists

# Candidates scored in fp64 for each neighbour asked for, as the order of rounded vectors is rough.
CANDIDATES_PER_NEIGHBOUR = 3

# Query values from which FAISS multiplies matrices: its own default of 128,000 took up to 8 times as long.
_MATRIX_THRESHOLD = 1000
OWN_SAMPLE = 1000  # a percentile then has an error of a third of a percent where it is 1
_SCORE_OF_COPIES = 0.9  # of reduced vectors: files saved again as JPEG, or a little smaller, score more
_RELATIVE_ROUNDING = 1e-6  # share of their mean by which equal codes may differ, from fp32 rounding
_VECTOR_VALUES = 1024**2  # a block of vectors is 4 MB, and 8 in fp64
_LARGE_BLOCK_VALUES = 8 * _VECTOR_VALUES  # FAISS multiplies large matrices twice as fast

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
        vectors = self._whitened(codes)
        if self.is_similarity:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            # A code of zero length has no direction. It stays zero, and so scores 0 with every other.
            vectors = (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
        return np.ascontiguousarray(vectors)

    def lengths(self, codes: Floats) -> Floats:
        """Return the length (R,) that the vector of each code (R, D) has before it is scaled to 1."""
        return np.asarray(np.linalg.norm(self._whitened(codes), axis=1), np.float32)

    def rough_scores(self, query: Floats, codes: Floats, lengths: Floats) -> Floats:
        """Score codes (N, D) of lengths (N,) against the vector (D,) of a query in fp32; higher is nearer.

        The map is applied to the query instead of to the codes: one product of a matrix and a vector.
        """
        if not self.is_similarity:
            return np.asarray(-np.square(codes - query).sum(1))
        offset = 0.0
        if self.mean is not None and self.whitening is not None:
            query = self.whitening @ query
            offset = float(self.mean @ query)
        return np.asarray((codes @ query - offset) / np.maximum(lengths, np.finfo(np.float32).tiny))

    def _whitened(self, codes: Floats) -> Floats:
        vectors: Floats = np.asarray(codes, np.float32)
        if self.mean is not None and self.whitening is not None:
            vectors = ((vectors - self.mean) @ self.whitening).astype(np.float32, copy=False)
        return vectors

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
    for _, block in blocks(codes):
        total += block.sum(0, dtype=np.float64)
    mean = total / count
    for _, block in blocks(codes):
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
        self.scanner = None if lists is None else lists.scanner(space)

    @functools.cached_property
    def index(self) -> Any:  # noqa: ANN401 - FAISS has no types
        """All vectors, one after the other; made at the first use, as lists are scanned without."""
        index = flat_index(self.space, self.codes.shape[1])
        for _, block in blocks(self.codes):
            index.add(self.space.vectors(block))
        return index

    def search(self, codes: Floats, k: int) -> list[Ranked]:
        """Return the K nearest neighbours of each code (Q, D), nearest first, equal scores by row.

        There are fewer than K only where the index holds fewer.
        """
        if not len(codes):
            return []
        vectors, k = self.space.vectors(codes), min(k, len(self.codes))
        if self.scanner is None:
            _, rows = self.index.search(vectors, k)
        else:
            rows = self.scanner.candidates(vectors, k)
        return [
            self._ranked(vector, found[found >= 0], k) for vector, found in zip(vectors, rows, strict=True)
        ]

    def _ranked(self, vector: Floats, rows: Rows, k: int) -> Ranked:
        if self.lists is not None and len(rows) > (kept := CANDIDATES_PER_NEIGHBOUR * k):
            scores = self.space.rough_scores(vector, self.codes[rows], self.lists.lengths[rows])
            rows = rows[np.argpartition(-scores, kept)[:kept]]
        return rank(self.space, vector, self.space.vectors(self.codes[rows]), rows, k)

    def others(self, rows: Rows, k: int) -> list[Rows]:
        """Return the rows of the K nearest neighbours of each of `rows` (Q,), without the row itself."""
        found = self.search(self.codes[rows], k + 1)
        return [near.rows[near.rows != row][:k] for row, near in zip(rows, found, strict=True)]


def exact_neighbours(space: VectorSpace, codes: Floats, rows: Rows, k: int) -> list[Ranked]:
    """Return the K nearest of codes (R, D) to each of `rows` (Q,), without the row itself; all are compared.

    The codes are read once, block by block: beside them, memory is needed for the queries alone.
    """
    configure_faiss()
    queries, k = space.vectors(codes[rows]), min(k + 1, len(codes))
    metric = faiss.METRIC_INNER_PRODUCT if space.is_similarity else faiss.METRIC_L2
    best = np.zeros((len(rows), 0), np.float32)
    known = np.zeros((len(rows), 0), np.int64)
    for start, block in blocks(codes, _LARGE_BLOCK_VALUES):
        scores, found = faiss.knn(queries, space.vectors(block), min(k, len(block)), metric=metric)
        best = np.concatenate([best, -scores if space.is_similarity else scores], axis=1)
        known = np.concatenate([known, found + start], axis=1)
        nearest = np.argsort(best, axis=1, kind="stable")[:, :k]
        best, known = np.take_along_axis(best, nearest, 1), np.take_along_axis(known, nearest, 1)
    ranked = (
        rank(space, query, space.vectors(codes[found]), found, k)
        for query, found in zip(queries, known, strict=True)
    )
    return [
        Ranked(*(part[near.rows != row][: k - 1] for part in near))
        for row, near in zip(rows, ranked, strict=True)
    ]


@dataclass(frozen=True)
class OwnScores:
    """Scores of a sample of an index's codes with their nearest neighbours; other scores are judged by them.

    Attributes:
        scores: (S,) float64, the farthest first; none if there is a single code.
        is_similarity: whether a higher score is nearer.
        lengths: (L,) of their codes, in order, where a short code is one beyond the folder (see `Reduction`);
            none elsewhere.
    """

    scores: NDArray[np.float64]
    is_similarity: bool
    lengths: Floats = field(default_factory=lambda: np.zeros(0, np.float32))

    @classmethod
    def of(cls, space: VectorSpace, codes: Floats) -> OwnScores:
        """Measure a sample of codes (R, D); each of the sample is compared with all codes."""
        order = np.random.Generator(np.random.Philox(1)).permutation(len(codes))
        found = exact_neighbours(space, codes, np.sort(order[:OWN_SAMPLE]), 1)
        scores = np.sort(np.concatenate([near.scores for near in found]))
        return cls(scores if space.is_similarity else scores[::-1].copy(), space.is_similarity)

    def with_lengths(self, codes: Floats) -> OwnScores:
        """Return the same with the lengths of codes (L, D)."""
        return replace(self, lengths=np.sort(np.linalg.norm(codes, axis=1)).astype(np.float32))

    def percentile(self, score: float, length: float = 1.0) -> float | None:
        """Return which percentage of images have a nearest neighbour that is no nearer than a score.

        A new image, drawn like those of the index, reaches x or less with its best neighbour in at most x %
        of cases: it is a conformal p-value (Vovk et al. 2005), and so never 0. None if nothing is known.

        Args:
            score: of a query with one of the images.
            length: of the code of the query. The percentage of images as far beyond the folder as it is the
                most that is returned.
        """
        if not len(self.scores):
            return None
        sign = 1 if self.is_similarity else -1
        no_nearer = int(np.searchsorted(sign * self.scores, sign * score, side="right"))
        percentile = 100 * (1 + no_nearer) / (1 + len(self.scores))
        # A copy of an odd image is as odd, and very close to it.
        if not len(self.lengths) or (self.is_similarity and score > _SCORE_OF_COPIES):
            return percentile
        # Equal lengths of nearly all images differ by rounding.
        as_far = int(np.searchsorted(self.lengths, length * (1 + 1e-5), side="right"))
        return min(percentile, 100 * (1 + as_far) / (1 + len(self.lengths)))

    def check(self) -> None:
        """Reject scores that are not finite or not in order.

        Raises:
            ValueError: they are not.
        """
        scores = self.scores
        if scores.ndim != 1 or scores.dtype != np.float64 or not np.isfinite(scores).all():
            raise ValueError("scores of its own images that are not finite")
        if (np.diff(scores if self.is_similarity else -scores) < 0).any():
            raise ValueError("scores of its own images that are not in order")
        lengths = self.lengths
        if lengths.ndim != 1 or lengths.dtype != np.float32 or not np.isfinite(lengths).all():
            raise ValueError("lengths of its own images that are not finite")
        if (np.diff(lengths) < 0).any():
            raise ValueError("lengths of its own images that are not in order")


def lengths_of(codes: Floats) -> list[float]:
    """Return the length of each of codes (R, D), by which one beyond its folder is known."""
    lengths: list[float] = np.linalg.norm(codes, axis=1).tolist()
    return lengths


def flat_index(space: VectorSpace, size: int) -> Any:  # noqa: ANN401 - FAISS has no types
    """Return an empty index of FAISS that compares vectors of `size` values one by one."""
    return faiss.IndexFlatIP(size) if space.is_similarity else faiss.IndexFlatL2(size)


def blocks(codes: Floats, values: int = _VECTOR_VALUES) -> Iterator[tuple[int, Floats]]:
    """Yield the codes (R, D) in blocks of about so many values, each with the row of its first code."""
    step = max(1, values // codes.shape[1])
    for start in range(0, len(codes), step):
        yield start, codes[start : start + step]


def configure_faiss() -> None:
    """Give FAISS as many threads as torch has, and let it multiply matrices from few query values on.

    Without the first, two thread pools of one process compete for the same cores.
    """
    faiss.omp_set_num_threads(torch.get_num_threads())
    threshold = min(faiss.cvar.distance_compute_blas_threshold, _MATRIX_THRESHOLD)
    faiss.cvar.distance_compute_blas_threshold = threshold
