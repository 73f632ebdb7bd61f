"""Measure how well scores separate two sets, and how sure a mean, a median or a rate is.

NumPy arrays in, numbers out. Shapes: N, M samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from autoencode.errors import ConfigError

# scipy is imported where it is used: that takes half a second, and most commands measure nothing.

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Reals = NDArray[np.floating[Any]]

BOOTSTRAP_RESAMPLES = 2000
RESAMPLED_VALUES = 2**16  # drawn at once: half a megabyte stays in the cache; 2**21 took three times as long


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A number measured on samples.

    Attributes:
        value: the number.
        interval: its 95 % interval; None where there is one sample, which says nothing about others.
        count: samples it comes from.
    """

    value: float
    interval: Interval | None
    count: int


def estimate(values: Reals, statistic: Callable[..., Any] = np.mean) -> Estimate | None:
    """Reduce measurements to one number and its 95 % bootstrap interval.

    Args:
        values: (N,) independent measurements; infinite ones are left out, and not counted.
        statistic: as for `confidence_interval_bootstrap`.

    Returns:
        The estimate; None where no value is finite.
    """
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return None
    interval = confidence_interval_bootstrap(finite, 0, statistic=statistic) if len(finite) > 1 else None
    return Estimate(float(statistic(finite)), interval, len(finite))


def auroc(negative_scores: Reals, positive_scores: Reals) -> float:
    """Area under the ROC curve: P(positive > negative) + P(positive = negative) / 2.

    This is the Mann-Whitney U statistic over the number of pairs (Hanley and McNeil 1982).

    Args:
        negative_scores: (N,) scores that should be low, any unit; may be infinite.
        positive_scores: (M,) scores that should be high.

    Returns:
        A number in [0, 1]; 0.5 is chance.

    Raises:
        ConfigError: a side is empty or holds a NaN.
    """
    from scipy.stats import mannwhitneyu

    negatives = _checked_scores(negative_scores, "negative scores")
    positives = _checked_scores(positive_scores, "positive scores")
    # Not scikit-learn's roc_auc_score, which rejects infinite scores. The method concerns the p-value, which
    # is not used; the exact one takes memory of N times M.
    pairs = len(positives) * len(negatives)
    return float(mannwhitneyu(positives, negatives, method="asymptotic").statistic / pairs)


def auroc_estimate(negative_scores: Reals, positive_scores: Reals) -> Estimate:
    """Return `auroc` with its 95 % interval: DeLong, DeLong & Clarke-Pearson 1988, equations 4 to 6.

    The standard error comes from the share of the other side that each score is on the right side of; no
    distribution is assumed. The interval has no width where the two sides do not overlap. Arguments and
    errors are those of `auroc`.
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
    # No less than 0 and no more than 1, which the normal approximation does not know.
    margin = NormalDist().inv_cdf(0.975) * math.sqrt(variance)
    return Estimate(value, Interval(max(0.0, value - margin), min(1.0, value + margin)), count)


def _shares_below(scores: Reals, others: Reals) -> Reals:
    """Return for each score the share of the sorted `others` below it, with ties as a half."""
    sides = (np.searchsorted(others, scores, side=side) for side in ("left", "right"))
    return np.asarray(sum(sides) / (2 * len(others)))


def confidence_interval_bootstrap(
    values: Reals, seed: int, level: float = 0.95, statistic: Callable[..., Any] = np.mean
) -> Interval:
    """Return the confidence interval of a mean: percentile bootstrap, Efron and Tibshirani 1993, chapter 13.

    Args:
        values: (N,) independent measurements, finite.
        seed: the same seed and values give the same interval.
        level: coverage, in (0, 1).
        statistic: measured on each resample: `numpy.mean`, or another reduction that takes an `axis`, such as
            `numpy.median`.

    Raises:
        ConfigError: there is no value, a value is not finite, or the level lies outside (0, 1).
    """
    from scipy.stats import bootstrap

    _check_level(level)
    sample = _checked_scores(values, "values of a confidence interval")
    if not np.isfinite(sample).all():
        raise ConfigError(
            "A mean of values that are not all finite has no confidence interval. Leave them out."
        )
    if len(sample) == 1:  # which scipy rejects
        return Interval(float(sample[0]), float(sample[0]))
    found = bootstrap(
        (sample,),
        statistic,
        n_resamples=BOOTSTRAP_RESAMPLES,
        batch=max(1, RESAMPLED_VALUES // len(sample)),
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def wilson_interval(k: int, n: int, level: float = 0.95) -> Interval:
    """Return the confidence interval of a rate, k successes in n trials: the score interval of Wilson 1927.

    It keeps its coverage where the rate is near 0 or 1 and n is small, unlike rate ± z sqrt(p(1-p)/n).

    Args:
        k: successes, in [0, n].
        n: trials, at least 1.
        level: coverage, in (0, 1).

    Raises:
        ConfigError: n is below 1, k lies outside [0, n], or the level outside (0, 1).
    """
    from scipy.stats import binomtest

    _check_level(level)
    if n < 1 or not 0 <= k <= n:
        raise ConfigError(f"A rate needs 0 <= k <= n and n >= 1; got k = {k}, n = {n}.")
    found = binomtest(int(k), int(n)).proportion_ci(level, method="wilson")
    return Interval(float(found.low), float(found.high))


def _checked_scores(scores: Reals, name: str) -> NDArray[np.float64]:
    checked = np.asarray(scores, dtype=np.float64).ravel()
    if checked.size == 0 or np.isnan(checked).any():
        raise ConfigError(f"The {name} are {'missing' if checked.size == 0 else 'not all numbers (NaN)'}.")
    return checked


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"A confidence level lies between 0 and 1, such as 0.95; got {level}.")
