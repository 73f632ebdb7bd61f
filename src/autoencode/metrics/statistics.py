"""How well scores and rankings separate, and how sure one can be of a mean or a rate.

NumPy arrays in, numbers out. N samples, Q queries, K neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoencode.errors import ConfigError

BOOTSTRAP_RESAMPLES = 2000

Labels = NDArray[np.integer[Any]] | NDArray[np.str_]
Counts = NDArray[np.integer[Any]]
Reals = NDArray[np.floating[Any]]


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A number measured on samples.

    Attributes:
        value: the number.
        interval: its 95 % interval; None where one sample says nothing about others.
        count: how many samples it comes from.
    """

    value: float
    interval: Interval | None
    count: int


def estimate(values: Reals, statistic: Callable[..., Any] = np.mean) -> Estimate | None:
    """Reduce measurements to one number and its 95 % bootstrap interval.

    Args:
        values: (N,) independent measurements. Those that are infinite are left out, and not counted.
        statistic: as for `confidence_interval_bootstrap`.

    Returns:
        The estimate, or None where no value is finite.
    """
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return None
    interval = confidence_interval_bootstrap(finite, 0, statistic=statistic) if len(finite) > 1 else None
    return Estimate(float(statistic(finite)), interval, len(finite))


def auroc(negative_scores: Reals, positive_scores: Reals) -> float:
    """Area under the ROC curve: P(positive > negative) + P(positive = negative) / 2.

    This is the Mann-Whitney U statistic over the number of pairs (Hanley and McNeil 1982), O(n log n).

    Args:
        negative_scores: (N,) scores of what should score low, any unit; may be infinite.
        positive_scores: (M,) scores of what should score high.

    Returns:
        A number in [0, 1]; 0.5 is chance.

    Raises:
        ConfigError: a side is empty or holds a NaN.
    """
    negatives = np.sort(_checked_scores(negative_scores, "negative scores"))
    positives = _checked_scores(positive_scores, "positive scores")
    return float(_shares_below(positives, negatives).mean())


def auroc_estimate(negative_scores: Reals, positive_scores: Reals) -> Estimate:
    """`auroc` with its 95 % interval: DeLong, DeLong & Clarke-Pearson 1988, equations 4 to 6.

    The standard error comes from the share of the other side that each score is on the right side of; no
    distribution is assumed. The interval has no width where the two sides do not overlap.
    """
    value = auroc(negative_scores, positive_scores)
    negatives, positives = (
        np.sort(np.asarray(s, np.float64).ravel()) for s in (negative_scores, positive_scores)
    )
    count = len(negatives) + len(positives)
    if min(len(negatives), len(positives)) < 2:
        return Estimate(value, None, count)
    variance = sum(
        _shares_below(of, among).var(ddof=1) / len(of)
        for of, among in ((negatives, positives), (positives, negatives))
    )
    margin = NormalDist().inv_cdf(0.975) * math.sqrt(variance)
    return Estimate(value, Interval(max(0.0, value - margin), min(1.0, value + margin)), count)


def _shares_below(scores: Reals, others: Reals) -> Reals:
    """Return for each score which share of the sorted others is below it, with ties as a half."""
    sides = (np.searchsorted(others, scores, side=side) for side in ("left", "right"))
    return np.asarray(sum(sides) / (2 * len(others)))


def confidence_interval_bootstrap(
    values: Reals, seed: int, level: float = 0.95, statistic: Callable[..., Any] = np.mean
) -> Interval:
    """Confidence interval of a mean: the percentile bootstrap, Efron and Tibshirani 1993, chapter 13.

    Args:
        values: (N,) independent measurements, finite.
        seed: the same seed and values give the same interval.
        level: coverage, in (0, 1).
        statistic: what the interval is of, a function of (N,): `numpy.mean`, or for instance `numpy.median`.

    Raises:
        ConfigError: no value, a value that is not finite, or a level outside (0, 1).
    """
    _check_level(level)
    sample = _checked_scores(values, "values of a confidence interval")
    if not np.isfinite(sample).all():
        raise ConfigError(
            "A mean of values that are not all finite has no confidence interval. Leave them out."
        )
    generator = np.random.default_rng(seed)
    found = [
        statistic(sample[generator.integers(len(sample), size=len(sample))])
        for _ in range(BOOTSTRAP_RESAMPLES)
    ]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def wilson_interval(k: int, n: int, level: float = 0.95) -> Interval:
    """Confidence interval of a rate, k successes in n trials: the score interval of Wilson 1927.

    It keeps its coverage where the rate is near 0 or 1 and n is small, unlike rate ± z sqrt(p(1-p)/n).

    Args:
        k: successes, in [0, n].
        n: trials, at least 1.
        level: coverage, in (0, 1).

    Raises:
        ConfigError: k or n cannot be, or a level outside (0, 1).
    """
    _check_level(level)
    if n < 1 or not 0 <= k <= n:
        raise ConfigError(f"A rate needs 0 <= k <= n and n >= 1; got k = {k}, n = {n}.")
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = k + z**2 / 2
    half_width = z * math.sqrt(k * (n - k) / n + z**2 / 4)
    low, high = (centre - half_width) / (n + z**2), (centre + half_width) / (n + z**2)
    # exact at the ends, where rounding would leave -1e-18 or 0.9999
    return Interval(0.0 if k == 0 else low, 1.0 if k == n else high)


def recall_at_k(neighbour_labels: Labels, query_labels: Labels, relevant: Counts, k: int) -> float:
    """Share of queries with at least one neighbour of their own label among the first k.

    This is the Recall@K of the metric-learning papers: Oh Song et al. 2016, section 5; Jégou et al. 2011.

    Args:
        neighbour_labels: (Q, K) label of each neighbour, nearest first, the query itself left out. Pad a
            short list with a label that no query has, such as -1.
        query_labels: (Q,) label of each query.
        relevant: (Q,) how many searchable images share the query's label, the query itself left out.
            Queries with none cannot succeed and are left out of the share.
        k: how many neighbours count, in [1, K].

    Returns:
        A number in [0, 1].

    Raises:
        ConfigError: the shapes do not fit, k is outside [1, K], or no query has a relevant image.
    """
    hits, _ = _hits(neighbour_labels, query_labels, relevant)
    if not 1 <= k <= hits.shape[1]:
        raise ConfigError(f"Recall at {k} needs k between 1 and the {hits.shape[1]} neighbours given.")
    return float(hits[:, :k].any(axis=1).mean())


def average_precision(
    neighbour_labels: Labels, query_labels: Labels, relevant: Counts
) -> NDArray[np.float64]:
    """Average precision of each query's first K neighbours.

    AP = sum over ranks i <= K of [neighbour i is relevant] * precision(i), over min(R, K), where R images
    are relevant and precision(i) is the relevant share of the first i. With K the whole collection it is
    the AP of Manning, Raghavan and Schütze 2008, section 8.4; the min keeps 1 within reach of a short list.

    Args:
        neighbour_labels: (Q, K), as for `recall_at_k`.
        query_labels: (Q,), as for `recall_at_k`.
        relevant: (Q,), as for `recall_at_k`.

    Returns:
        (Q',) in [0, 1], for the Q' <= Q queries that have a relevant image, in their order.

    Raises:
        ConfigError: the shapes do not fit, or no query has a relevant image.
    """
    hits, possible = _hits(neighbour_labels, query_labels, relevant)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    scores: NDArray[np.float64] = (precision * hits).sum(axis=1) / np.minimum(possible, hits.shape[1])
    return scores


def mean_average_precision(neighbour_labels: Labels, query_labels: Labels, relevant: Counts) -> float:
    """Mean over the queries of `average_precision`: mAP@K, in [0, 1]. Arguments and errors are the same."""
    return float(average_precision(neighbour_labels, query_labels, relevant).mean())


def _hits(
    neighbour_labels: Labels, query_labels: Labels, relevant: Counts
) -> tuple[NDArray[np.bool_], Counts]:
    """Return which neighbours are relevant (Q', K), and of how many (Q',), for queries that have any."""
    queries = len(query_labels)
    if neighbour_labels.ndim != 2 or len(neighbour_labels) != queries or relevant.shape != (queries,):
        raise ConfigError(
            "Neighbour labels (Q, K), query labels (Q,) and relevant counts (Q,) are needed; got shapes "
            f"{neighbour_labels.shape}, {query_labels.shape} and {relevant.shape}."
        )
    hits: NDArray[np.bool_] = neighbour_labels == query_labels[:, None]
    if (hits.sum(axis=1) > relevant).any():
        raise ConfigError(
            "A query has more neighbours of its label than relevant images. "
            "Leave the query itself out of both."
        )
    answerable = relevant > 0
    if not answerable.any():
        raise ConfigError("No query has a relevant image, so there is nothing to find. Label more images.")
    return hits[answerable], relevant[answerable]


def _checked_scores(scores: Reals, name: str) -> NDArray[np.float64]:
    checked = np.asarray(scores, dtype=np.float64).ravel()
    if checked.size == 0 or np.isnan(checked).any():
        raise ConfigError(f"The {name} are {'missing' if checked.size == 0 else 'not all numbers (NaN)'}.")
    return checked


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"A confidence level lies between 0 and 1, such as 0.95; got {level}.")
