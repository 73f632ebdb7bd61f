"""How well an index finds images of the same label: each image in turn is the query, the others the index.

Shapes: Q queries, M labelled contents, D values in a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoencode.errors import ConfigError
from autoencode.index.memory import in_memory
from autoencode.metrics.statistics import (
    Interval,
    average_precision,
    confidence_interval_bootstrap,
    wilson_interval,
)

if TYPE_CHECKING:
    from autoencode.configuration import Split
    from autoencode.data.manifest import Entry
    from autoencode.index.base import Index

MOST_QUERIES = 2000
VOTERS = 10

_BLOCK_SCORES = 4 * 1024**2


@dataclass(frozen=True)
class Measured:
    """A mean over the queries, with its 95 % interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class RetrievalQuality:
    """How well an index finds images of the same label.

    Attributes:
        queries: Q, how many images were asked for.
        images: M, how many they were looked for among, itself included.
        classes: how many labels there are.
        recall_at_1, recall_at_5, recall_at_10: share of queries that have their label among so many nearest.
        mean_average_precision: over the whole ranking.
        knn_accuracy: share of queries whose label is the most frequent one of the ten nearest; of equally
            frequent ones that of the nearest image.
        chance: expected knn_accuracy of guessing the most frequent label.
    """

    queries: int
    images: int
    classes: int
    recall_at_1: Measured
    recall_at_5: Measured
    recall_at_10: Measured
    mean_average_precision: Measured
    knn_accuracy: Measured
    chance: float


def evaluate_search(
    index: Index, *, split: Split | None = None, most_queries: int = MOST_QUERIES, seed: int = 0
) -> RetrievalQuality:
    """Measure how well an index finds images of the same label, leaving each query out.

    Every image is compared, whatever the index does when it is searched: this is about the codes. Of files
    with the same bytes one takes part, and images whose label no other has are no queries.

    Args:
        index: from `build_index` or `open_index`, of a folder with a sub-folder for each label.
        split: take queries from this split alone, such as "test": images the model was not trained on. They
            are looked for among all.
        most_queries: of more images, so many are chosen at random to be queries.
        seed: of that choice and of the intervals.

    Raises:
        ConfigError: there are not two labels, or no query has another image of its label; or the index is not
            held in memory.
    """
    index = in_memory(index, "Measuring a search")
    entry_of: dict[int, Entry] = {}
    for entry in index.entries:
        if entry.label is not None and entry.row is not None:
            entry_of.setdefault(entry.row, entry)
    rows, entries = np.array(list(entry_of), np.int64), list(entry_of.values())
    return retrieval_quality(
        index.space.vectors(index.codes[rows]),
        np.array([entry.label for entry in entries], np.str_),
        queries=np.flatnonzero([split in (None, entry.split) for entry in entries]),
        most_queries=most_queries,
        seed=seed,
    )


def retrieval_quality(
    vectors: NDArray[np.float32],
    labels: NDArray[np.str_],
    *,
    queries: NDArray[np.int64] | None = None,
    most_queries: int = MOST_QUERIES,
    seed: int = 0,
) -> RetrievalQuality:
    """Measure how well Euclidean neighbours share a label; of vectors of unit length that is the cosine.

    Args:
        vectors: (M, D).
        labels: (M,).
        queries: (Q,), which of them are queries, each looked for among all others; the default is all.
        most_queries: of more, so many are chosen at random.
        seed: of that choice and of the intervals.

    Raises:
        ConfigError: there are not two labels, or no query has another image of its label.
    """
    names, numbers = np.unique(labels, return_inverse=True)
    sizes = np.bincount(numbers)
    candidates = np.arange(len(labels)) if queries is None else queries
    candidates = candidates[sizes[numbers[candidates]] > 1] if len(labels) else candidates
    if len(names) < 2 or not len(candidates):
        raise ConfigError(
            f"Search is measured with images in two or more sub-folders, one a label; there are {len(names)} "
            f"labels and {len(candidates)} queries that share theirs with another image."
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(candidates)[:most_queries])
    ranked = []
    step = max(1, _BLOCK_SCORES // len(labels))
    for start in range(0, len(chosen), step):
        block = chosen[start : start + step]
        ranked.append(_ranked(_distances(vectors[block], vectors), block, numbers, sizes))
    hits, precision, voted = (np.concatenate(parts) for parts in zip(*ranked, strict=True))
    return RetrievalQuality(
        queries=len(chosen),
        images=len(labels),
        classes=len(names),
        recall_at_1=_share(_any(hits[:, :1])),
        recall_at_5=_share(_any(hits[:, :5])),
        recall_at_10=_share(_any(hits[:, :10])),
        mean_average_precision=Measured(
            float(precision.mean()), confidence_interval_bootstrap(precision, seed)
        ),
        knn_accuracy=_share(voted == numbers[chosen]),
        chance=float(sizes.max() / sizes.sum()),
    )


def _any(hits: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(hits.any(axis=1))


def _share(of: NDArray[np.bool_]) -> Measured:
    return Measured(float(of.mean()), wilson_interval(int(of.sum()), len(of)))


def _distances(queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return squared distances (Q, M) less a constant a query: the same order as any score here."""
    return np.asarray(np.einsum("ij,ij->i", vectors, vectors) - 2 * queries @ vectors.T)


def _ranked(
    distances: NDArray[np.float32],
    queries: NDArray[np.int64],
    labels: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    """Return for each query which of the ten nearest hit (Q, 10), average precision (Q,) and vote (Q,)."""
    distances[np.arange(len(queries)), queries] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :-1]
    near, own = labels[order], labels[queries]
    precision = average_precision(near, own, sizes[own] - 1)
    votes = np.stack([np.bincount(line, minlength=len(sizes)) for line in near[:, :VOTERS]])
    # Of the labels with most votes, the one met first: its nearest image is the nearest.
    most = np.take_along_axis(votes, near[:, :VOTERS], axis=1) == votes.max(axis=1, keepdims=True)
    voted = near[np.arange(len(near)), most.argmax(axis=1)]
    return near[:, :VOTERS] == own[:, None], precision, voted
