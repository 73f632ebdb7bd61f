"""Intervals and AUROC against scikit-learn, closed forms and plain loops."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from autoencode.errors import ConfigError
from autoencode.metrics import statistics
from autoencode.metrics.statistics import (
    auroc,
    auroc_estimate,
    confidence_interval_bootstrap,
    estimate,
    wilson_interval,
)

few_values = st.lists(st.integers(-3, 3), min_size=1, max_size=30)


@settings(derandomize=True, deadline=None)
@given(few_values, few_values)
def test_auroc_agrees_with_scikit_learn_ties_included(negatives: list[int], positives: list[int]) -> None:
    labels = [0] * len(negatives) + [1] * len(positives)
    expected = roc_auc_score(labels, negatives + positives)
    assert auroc(np.array(negatives), np.array(positives)) == pytest.approx(expected)


def test_auroc_is_the_share_of_pairs_in_order_with_infinite_scores_too() -> None:
    generator = np.random.default_rng(0)
    negatives, positives = (
        generator.integers(0, 9, 40).astype(float),
        generator.integers(3, 12, 30).astype(float),
    )
    negatives[:3], positives[:3] = (-np.inf, np.inf, np.inf), (np.inf, -np.inf, np.inf)
    wins = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    assert auroc(negatives, positives) == pytest.approx(wins.mean(), abs=1e-12)


def test_auroc_of_separate_reversed_equal_and_infinite_scores() -> None:
    low, high = np.array([0.1, 0.2]), np.array([0.3, np.inf])
    assert auroc(low, high) == 1
    assert auroc(high, low) == 0
    assert auroc(low, low) == 0.5


def test_auroc_rejects_nothing_and_nan() -> None:
    with pytest.raises(ConfigError, match="positive scores are missing"):
        auroc(np.array([1.0]), np.array([]))
    with pytest.raises(ConfigError, match="NaN"):
        auroc(np.array([np.nan]), np.array([1.0]))


def test_the_interval_of_an_auroc_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    truth = NormalDist().cdf(1 / np.sqrt(2))  # of two normal distributions, one deviation apart
    held = 0
    for _ in range(400):
        found = auroc_estimate(generator.normal(size=80), generator.normal(1, 1, size=50))
        assert found.interval is not None
        held += found.interval.low <= truth <= found.interval.high
    assert binomtest(held, 400).proportion_ci(0.99).high >= 0.95
    assert binomtest(held, 400).proportion_ci(0.99).low <= 0.97


def test_the_error_of_an_auroc_is_that_of_delong_written_out() -> None:
    generator = np.random.default_rng(1)
    negatives, positives = generator.integers(0, 6, 30), generator.integers(2, 9, 20)
    wins = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    error = np.sqrt(wins.mean(1).var(ddof=1) / 20 + wins.mean(0).var(ddof=1) / 30)
    found = auroc_estimate(negatives, positives)
    assert found.value == pytest.approx(wins.mean())
    assert found.count == 50
    assert found.interval == pytest.approx((wins.mean() - 1.96 * error, wins.mean() + 1.96 * error), abs=1e-4)
    assert auroc_estimate(negatives[:1], positives).interval is None


def test_an_estimate_leaves_out_what_is_infinite_and_knows_when_it_knows_nothing() -> None:
    found = estimate(np.array([1.0, np.inf, 3.0]))
    assert found is not None
    assert (found.value, found.count) == (2, 2)
    assert found.interval == (1, 3)
    one = estimate(np.array([2.5]))
    assert one is not None
    assert (one.value, one.interval, one.count) == (2.5, None, 1)
    assert estimate(np.array([np.inf])) is None


def test_the_interval_of_a_median_is_near_that_of_its_order_statistics() -> None:
    values = np.sort(np.random.default_rng(0).exponential(size=401))
    found = estimate(values, np.median)
    assert found is not None
    assert found.value == values[200]
    assert found.interval == pytest.approx((values[180], values[220]), rel=0.05)


def test_bootstrap_interval_is_near_the_normal_one_and_deterministic() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    interval = confidence_interval_bootstrap(values, seed=1)
    margin = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - margin, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + margin, abs=0.03)
    assert interval == confidence_interval_bootstrap(values, seed=1)
    assert interval != confidence_interval_bootstrap(values, seed=2)
    wider = confidence_interval_bootstrap(values, seed=1, level=0.99)
    assert wider.low < interval.low < interval.high < wider.high


@pytest.mark.parametrize("size", [2, 7, 400, 70_000])
@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_bootstrap_interval_is_that_of_a_loop_over_resamples(
    size: int, statistic: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "BOOTSTRAP_RESAMPLES", resamples := 40)
    values = np.random.default_rng(0).normal(3, 2, size)
    generator = np.random.default_rng(5)
    found = [statistic(values[generator.integers(size, size=size)]) for _ in range(resamples)]
    expected = np.quantile(found, [0.05, 0.95])
    interval = confidence_interval_bootstrap(values, 5, 0.9, statistic)
    np.testing.assert_allclose(interval, expected, rtol=0, atol=1e-12)


def test_bootstrap_interval_of_equal_values_has_no_width() -> None:
    assert confidence_interval_bootstrap(np.full(9, 1.5), seed=0) == (1.5, 1.5)


def test_bootstrap_interval_of_one_value_is_that_value_and_infinity_is_rejected() -> None:
    assert confidence_interval_bootstrap(np.array([2.5]), seed=0) == (2.5, 2.5)
    with pytest.raises(ConfigError, match="not all finite"):
        confidence_interval_bootstrap(np.array([1.0, np.inf]), seed=0)


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 500), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_interval_follows_its_closed_form(n: int, data: st.DataObject, level: float) -> None:
    k = data.draw(st.integers(0, n))
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre, half_width = k + z**2 / 2, z * math.sqrt(k * (n - k) / n + z**2 / 4)
    expected = ((centre - half_width) / (n + z**2), (centre + half_width) / (n + z**2))
    found = wilson_interval(k, n, level)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    # exact at the ends, where rounding would leave -1e-18 or 0.9999
    assert (found.low == 0) == (k == 0)
    assert (found.high == 1) == (k == n)


@pytest.mark.parametrize(("k", "n", "level"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_wilson_interval_rejects_what_cannot_be(k: int, n: int, level: float) -> None:
    with pytest.raises(ConfigError):
        wilson_interval(k, n, level)
