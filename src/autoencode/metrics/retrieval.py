"""Measure how well a search finds images of the same label: each image in turn queries all others.

Shapes: Q queries, M labelled images, D dimensions of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoencode.errors import ConfigError
from autoencode.metrics.statistics import Estimate, confidence_interval_bootstrap, wilson_interval

MOST_QUERIES = 2000
VOTERS = 10

_BLOCK_SCORES = 4 * 1024**2  # a block of distances is 16 MB


@dataclass(frozen=True)
class RetrievalQuality:
    """How well a search finds images of the same label.

    Attributes:
        queries: Q, number of queries.
        images: M, number of images that each query is compared with, itself included.
        classes: number of labels.
        recall_at_1, recall_at_5, recall_at_10: share of queries with an image of their label among the 1, 5,
            10 nearest.
        mean_average_precision: over the whole ranking.
        knn_accuracy: share of queries whose label is the most frequent among the ten nearest; a tie goes to
            the label of the nearest image.
        chance: knn_accuracy of always guessing the most frequent label.
    """

    queries: int
    images: int
    classes: int
    recall_at_1: Estimate
    recall_at_5: Estimate
    recall_at_10: Estimate
    mean_average_precision: Estimate
    knn_accuracy: Estimate
    chance: float


def retrieval_quality(
    vectors: NDArray[np.float32],
    labels: NDArray[np.str_],
    *,
    queries: NDArray[np.int64] | None = None,
    most_queries: int = MOST_QUERIES,
    seed: int = 0,
) -> RetrievalQuality:
    """Measure how often nearest neighbours share a label, in Euclidean distance.

    For vectors of unit length that is the order of the cosine, too.

    Args:
        vectors: (M, D).
        labels: (M,).
        queries: (Q,), rows of the vectors to use as queries, each compared with all others; by default all.
        most_queries: the most queries to use, drawn at random where there are more.
        seed: for that draw and the bootstrap intervals.

    Raises:
        ConfigError: there are fewer than two labels, or no query has another image of its label.
    """
    names, numbers = np.unique(labels, return_inverse=True)
    sizes = np.bincount(numbers)
    candidates = np.arange(len(labels)) if queries is None else queries
    candidates = candidates[sizes[numbers[candidates]] > 1] if len(labels) else candidates
    if len(names) < 2 or not len(candidates):
        raise ConfigError(
            "Search is measured with images in two or more sub-folders, one per label; there are "
            f"{len(names)} labels and {len(candidates)} queries that share theirs with another image."
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(candidates)[:most_queries])
    ranked = []
    step = max(1, _BLOCK_SCORES // len(labels))
    # In blocks: all distances at once would take Q times M floats.
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
        mean_average_precision=Estimate(
            float(precision.mean()), confidence_interval_bootstrap(precision, seed), len(precision)
        ),
        knn_accuracy=_share(voted == numbers[chosen]),
        chance=float(sizes.max() / sizes.sum()),
    )


def average_precision(hits: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the average precision of rankings: Manning, Raghavan and Schütze 2008, section 8.4.

    It is the mean, over the relevant images, of the share of relevant ones among those up to its rank.

    Args:
        hits: (Q, M) whether each image is relevant, nearest first; at least one of each query.

    Returns:
        (Q,) in (0, 1].
    """
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return np.asarray((precision * hits).sum(axis=1) / hits.sum(axis=1))


def _any(hits: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(hits.any(axis=1))


def _share(hits: NDArray[np.bool_]) -> Estimate:
    return Estimate(float(hits.mean()), wilson_interval(int(hits.sum()), len(hits)), len(hits))


def _distances(queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return squared distances (Q, M) less the squared length of each query, which leaves their order."""
    return np.asarray(np.einsum("ij,ij->i", vectors, vectors) - 2 * queries @ vectors.T)


def _ranked(
    distances: NDArray[np.float32],
    queries: NDArray[np.int64],
    labels: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    """Return hits among the ten nearest (Q, 10), average precision (Q,) and the label voted for (Q,)."""
    # The query itself comes last, however many images equal it, and is then cut off.
    distances[np.arange(len(queries)), queries] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :-1]
    near, own = labels[order], labels[queries]
    hits = near == own[:, None]
    votes = np.stack([np.bincount(line, minlength=len(sizes)) for line in near[:, :VOTERS]])
    # The first neighbour with a label of the most votes wins a tie, as it is the nearest.
    most = np.take_along_axis(votes, near[:, :VOTERS], axis=1) == votes.max(axis=1, keepdims=True)
    voted = near[np.arange(len(near)), most.argmax(axis=1)]
    return hits[:, :VOTERS], average_precision(hits), voted
