"""Search many codes approximately by IVF-PQ: inverted lists of vectors with four bits for each dimension.

FAISS compares 32 rounded vectors (see `rounding`) at once, with look-up tables in registers (FastScan, André
et al. 2017). They are divided among inverted lists, one per k-means centroid, and a query scans the `nprobe`
lists with the nearest centroids (Jégou et al. 2011, section IV). The candidates that this finds are scored
again from the codes. `nprobe` is the smallest number that reaches `RECALL_SOUGHT` on a sample.

R codes take R (d + 20) bytes beside the codes themselves.

Shapes: R codes, Q queries, D code dimensions, d reduced dimensions, L inverted lists, K neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from autoencode.index.neighbours import (
    Floats,
    NearestNeighbours,
    Rows,
    VectorSpace,
    blocks,
    configure_faiss,
    exact_neighbours,
    flat_index,
)
from autoencode.index.rounding import MOST_CANDIDATES, Rounding, check_floats, fit_rounding

# Below, comparing every code takes a few milliseconds at most, and misses nothing.
EXACT_LIMIT = 100_000
# The recall measured on the sample has an error of about 0.002: 0.995 keeps the true recall above 0.99.
RECALL_SOUGHT = 0.995
RECALL_NEIGHBOURS, RECALL_SAMPLE = 10, 500

# Lists for the square root of the number of codes: 4 took twice as long to build and found no more.
_LISTS_PER_ROOT = 2
# Codes per list and iterations of k-means: twice as many of both took four times as long and found no more.
_TRAINED_PER_LIST, _ITERATIONS = 40, 5
# FAISS's ways to scan, by the number of queries: by list, or list by list for all queries that scan it. The
# one that divides the lists of a query among threads waited up to 60 ms for a busy core, and is not used.
_SCAN_ONE, _SCAN_MANY = 11, 13


@dataclass(frozen=True)
class InvertedLists:
    """Codes divided among lists, for approximate search (an inverted file, FAISS's IVF).

    Attributes:
        rounding: what the search compares instead of the vectors.
        centroids: (L, d) float32; of unit length, and compared by direction, for a similarity.
        assignment: (R,) int64, the list of each code.
        packed: (R, d / 2) uint8, see `Rounding.packed`.
        lengths: (R,) float32, see `VectorSpace.lengths`.
        nprobe: lists that a query scans.
        candidates: codes that are scored again for ten neighbours.
        recall: share of the true 10 nearest neighbours found, measured on a sample of the codes.
    """

    rounding: Rounding
    centroids: Floats
    assignment: NDArray[np.int64]
    packed: NDArray[np.uint8]
    lengths: Floats
    nprobe: int
    candidates: int
    recall: float

    def to_content(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the lists as arrays and JSON."""
        parts = {**vars(self), **vars(self.rounding)}
        del parts["rounding"]
        arrays = {name: part for name, part in parts.items() if isinstance(part, np.ndarray)}
        return arrays, {name: part for name, part in parts.items() if name not in arrays}

    @classmethod
    def from_content(cls, arrays: Mapping[str, NDArray[Any]], content: Mapping[str, Any]) -> InvertedLists:
        """Return the lists that `to_content` gave; they are to be checked by `check`.

        Raises:
            KeyError: a part is missing.
        """
        rounding = Rounding(*(arrays[field.name] for field in fields(Rounding)))
        names = [field.name for field in fields(cls) if field.name != "rounding"]
        parts = {**content, **arrays}
        return cls(rounding, *(parts[name] for name in names))

    def check(self, count: int, size: int) -> None:
        """Reject lists that do not fit codes (count, size): FAISS would read outside of them.

        Raises:
            ValueError: names the part that does not fit.
        """
        self.rounding.check(size)
        nlist, reduced = len(self.centroids), self.rounding.projection.shape[1]
        check_floats("centroids", self.centroids, (nlist, reduced))
        check_floats("lengths", self.lengths, (count,))
        if self.packed.shape != (count, reduced // 2) or self.packed.dtype != np.uint8:
            raise ValueError("not a reduced vector for each code")
        if self.assignment.shape != (count,) or self.assignment.dtype != np.int64:
            raise ValueError("not an inverted list for each code")
        if not 0 <= self.assignment.min() <= self.assignment.max() < nlist:
            raise ValueError("codes in an inverted list that is not there")
        if type(self.nprobe) is not int or not 1 <= self.nprobe <= nlist:
            raise ValueError("an nprobe that is not from 1 to the number of inverted lists")
        if type(self.candidates) is not int or not 1 <= self.candidates <= MOST_CANDIDATES:
            raise ValueError(f"a number of candidates that is not from 1 to {MOST_CANDIDATES}")

    def of(self, rows: Rows) -> InvertedLists:
        """Return the lists of some of the codes (N,)."""
        parts = {name: getattr(self, name)[rows] for name in ("assignment", "packed", "lengths")}
        return replace(self, **parts)

    def scanner(self, space: VectorSpace) -> ListScanner:
        """Return the lists, ready to be scanned."""
        return ListScanner(self, space)


class ListScanner:
    """Inverted lists in the form that FAISS scans.

    Attributes:
        nprobe: lists that a query scans.
    """

    def __init__(self, lists: InvertedLists, space: VectorSpace) -> None:
        self.lists, self.nprobe = lists, lists.nprobe
        size = lists.centroids.shape[1]
        # FAISS keeps a bare pointer to the quantizer, which must not dangle.
        self.quantizer = _quantizer(space, lists.centroids)
        filled: Any = faiss.IndexIVFPQ(self.quantizer, size, len(lists.centroids), size, 4, faiss.METRIC_L2)
        filled.by_residual = False
        faiss.copy_array_to_vector(np.ascontiguousarray(lists.rounding.levels.ravel()), filled.pq.centroids)
        # Filled by hand: add() would look for the list and levels of every code again, ten times as slowly.
        order = np.argsort(lists.assignment, kind="stable")
        starts = np.searchsorted(lists.assignment[order], np.arange(len(lists.centroids) + 1))
        for number in np.flatnonzero(np.diff(starts)).tolist():
            rows = np.ascontiguousarray(order[starts[number] : starts[number + 1]], np.int64)
            packed = np.ascontiguousarray(lists.packed[rows])
            filled.invlists.add_entries(number, len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(packed))
        filled.ntotal, filled.is_trained = len(order), True
        self._index: Any = faiss.IndexIVFPQFastScan(filled)
        self._index.orig_invlists = None  # a pointer to lists that are freed with `filled`

    def candidates(self, vectors: Floats, k: int) -> Rows:
        """Return the rows (Q, C) among which the K nearest of each vector (Q, D) are likely; -1 fills up."""
        # As many for each neighbour as where ten are asked for: the farther, the denser the others lie.
        wanted = self.lists.candidates * max(k, RECALL_NEIGHBOURS) // RECALL_NEIGHBOURS
        wanted = min(wanted, len(self.lists.assignment))
        reduced = self.lists.rounding.apply(vectors)
        rows = self._scanned(reduced, wanted, self.nprobe)
        short = np.flatnonzero(rows[:, min(k, wanted) - 1] < 0)
        if len(short):  # the lists scanned hold fewer than K codes
            rows[short] = self._scanned(reduced[short], wanted, len(self.lists.centroids))
        return rows

    def _scanned(self, reduced: Floats, wanted: int, nprobe: int) -> Rows:
        self._index.implem = _SCAN_ONE if len(reduced) == 1 else _SCAN_MANY
        parameters = faiss.SearchParametersIVF()
        parameters.nprobe = nprobe
        _, rows = self._index.search(reduced, wanted, params=parameters)
        # Comparisons with what is no number find anything.
        rows[~np.isfinite(reduced).all(1)] = -1
        return np.asarray(rows)


def fit_inverted_lists(
    space: VectorSpace, codes: Floats, exact_limit: int = EXACT_LIMIT
) -> InvertedLists | None:
    """Divide codes (R, D) among inverted lists; None where there are few enough to compare every one.

    The same codes give the same lists on one machine.
    """
    count = len(codes)
    if count <= exact_limit:
        return None
    configure_faiss()
    nlist = round(_LISTS_PER_ROOT * math.sqrt(count))
    order = np.random.Generator(np.random.Philox(0)).permutation(count)
    sample, rest = np.sort(order[:RECALL_SAMPLE]), order[RECALL_SAMPLE:]
    training = space.vectors(codes[np.sort(rest[: _TRAINED_PER_LIST * nlist])])
    true = exact_neighbours(space, codes, sample, RECALL_NEIGHBOURS)
    near = np.stack([one.rows for one in true])
    queries = space.vectors(codes[sample])
    neighbours = space.vectors(codes[near.ravel()]).reshape(*near.shape, -1)
    rounding, candidates = fit_rounding(training, queries, neighbours, count)
    centroids = _centroids(space, rounding.apply(training), nlist)
    del training  # as large as a tenth of the codes, which is better left to the lists

    size = centroids.shape[1]
    assignment, lengths = np.empty(count, np.int64), np.empty(count, np.float32)
    packed = np.empty((count, size // 2), np.uint8)
    quantizer = _quantizer(space, centroids)
    for start, block in blocks(codes):
        part = slice(start, start + len(block))
        reduced = rounding.apply(space.vectors(block))
        assignment[part] = quantizer.search(reduced, 1)[1][:, 0]
        packed[part], lengths[part] = rounding.packed(reduced), space.lengths(block)
    lists = InvertedLists(rounding, centroids, assignment, packed, lengths, 1, candidates, 0.0)
    nearest = NearestNeighbours(space, codes, lists)
    scanner = nearest.scanner
    assert scanner is not None

    def recall_with(nprobe: int) -> float:
        scanner.nprobe = nprobe
        found = nearest.others(sample, RECALL_NEIGHBOURS)
        return float(np.mean([np.isin(t, f).mean() for t, f in zip(near, found, strict=True)]))

    # No neighbour is found before its list is scanned: fewer lists than that need not be tried.
    _, nearby = quantizer.search(rounding.apply(queries), nlist)
    places = np.argsort(nearby, axis=1)[np.arange(len(sample))[:, None], assignment[near]]
    first = int(np.quantile(places, RECALL_SOUGHT, method="lower")) + 1
    nprobe, recall = smallest_nprobe(recall_with, nlist, first)
    return replace(lists, nprobe=nprobe, recall=recall)


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


def _centroids(space: VectorSpace, reduced: Floats, nlist: int) -> Floats:
    """Group reduced vectors (N, d) by k-means; by their direction where the space has a similarity.

    To find 0.99 of the neighbours among a million hard codes took 155 groups by direction, 214 by distance.
    """
    if space.is_similarity:
        lengths = np.linalg.norm(reduced, axis=1, keepdims=True)
        reduced = reduced / np.maximum(lengths, np.finfo(np.float32).tiny)
    kmeans = faiss.Kmeans(
        reduced.shape[1],
        nlist,
        niter=_ITERATIONS,
        seed=1,
        spherical=space.is_similarity,
        min_points_per_centroid=1,
        max_points_per_centroid=len(reduced),
    )
    kmeans.train(reduced)
    return np.array(kmeans.centroids)


def _quantizer(space: VectorSpace, centroids: Floats) -> Any:  # noqa: ANN401 - FAISS has no types
    found = flat_index(space, centroids.shape[1])
    found.add(centroids)
    return found
