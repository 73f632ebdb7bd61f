"""The promise of a p-value, where it can be counted exactly, and on many random splits."""

from __future__ import annotations

import numpy as np
import pytest

from autoencode import ConfigError
from autoencode.outliers.calibration import conformal_p_values, images_needed, promised_rate, rate_of


def test_a_p_value_counts_the_calibration_scores_that_are_not_smaller() -> None:
    calibration = np.array([3.0, 1.0, 2.0, 2.0])
    np.testing.assert_array_equal(
        conformal_p_values(calibration, np.array([0.0, 1.0, 1.5, 2.0, 3.0, 4.0])),
        np.array([5, 5, 4, 4, 2, 1]) / 5,
    )
    np.testing.assert_array_equal(conformal_p_values(np.zeros(0), np.array([7.0])), [1.0])


def test_p_values_of_exchangeable_scores_are_exactly_uniform() -> None:
    """Each of n + 1 scores is as likely to be the new one: the p-values are 1..n+1 over n + 1, once each."""
    scores = np.random.default_rng(0).lognormal(size=50)
    p_values = [
        conformal_p_values(np.delete(scores, new), scores[new : new + 1])[0] for new in range(len(scores))
    ]
    np.testing.assert_allclose(np.sort(p_values), np.arange(1, 51) / 50)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1])
def test_over_200_splits_no_more_ordinary_images_are_flagged_than_promised(rate: float) -> None:
    generator = np.random.default_rng(1)
    scores = generator.standard_t(2, size=2200)  # heavy tails: no assumption on scores is made
    realised = []
    for _ in range(200):
        order = generator.permutation(len(scores))
        calibration, ordinary = scores[order[:199]], scores[order[199:]]
        realised.append((conformal_p_values(calibration, ordinary) <= rate).mean())
    standard_error = np.std(realised) / np.sqrt(200)
    assert np.mean(realised) <= rate + 2 * standard_error
    assert np.mean(realised) >= rate - 2 * standard_error  # 200 p-values are possible: nothing is given away


def test_equal_scores_flag_fewer_and_never_more() -> None:
    generator = np.random.default_rng(2)
    rates = []
    for _ in range(200):
        scores = generator.integers(0, 5, size=300).astype(float)
        rates.append((conformal_p_values(scores[:99], scores[99:]) <= 0.25).mean())
    assert np.mean(rates) <= 0.25


@pytest.mark.parametrize("rate", [*(1 / k for k in range(2, 200)), 0.3, 0.07, 0.013, 0.99, 0.6])
def test_the_images_needed_are_the_fewest_that_allow_such_a_p_value(rate: float) -> None:
    needed = images_needed(rate)
    assert 1 / (needed + 1) <= rate
    assert needed == 0 or 1 / needed > rate


def test_too_few_images_say_how_many_are_needed_and_what_they_allow() -> None:
    assert promised_rate(99, 0.01) == 0.01
    with pytest.raises(
        ConfigError, match=r"0\.01 needs 99 test images to calibrate on; the pack has 98.*--fpr 0\.0102"
    ):
        promised_rate(98, 0.01)
    assert promised_rate(98, 0.0102) == 0.0102
    with pytest.raises(ConfigError, match="no test images to calibrate on"):
        promised_rate(0, 0.5)


@pytest.mark.parametrize("images", [1, 2, 20, 48, 98, 99, 5000])
def test_without_a_rate_it_is_one_percent_or_the_smallest_that_flags_at_all(images: int) -> None:
    rate = promised_rate(images)
    assert rate == (0.01 if images >= 99 else 1 / (images + 1))
    calibration = np.arange(images, dtype=float)
    assert conformal_p_values(calibration, np.array([images + 1.0])) <= rate
    if images < 99:
        assert conformal_p_values(calibration, np.array([images - 1.5])) > rate


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_that_cannot_be_is_rejected(rate: float) -> None:
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        images_needed(rate)


def test_a_rate_has_its_interval_and_nothing_has_none() -> None:
    rate = rate_of(np.array([True, False, False, False]))
    assert rate is not None
    assert (rate.value, rate.images) == (0.25, 4)
    assert rate.interval.low < 0.25 < rate.interval.high
    assert rate_of(np.zeros(0, bool)) is None


@pytest.mark.parametrize("images", [1, 7, 30, 98, 333])
def test_the_rate_that_the_error_names_can_be_promised_and_none_much_smaller(images: int) -> None:
    with pytest.raises(ConfigError, match="or more") as raised:
        promised_rate(images, 0.001)
    named = float(str(raised.value).split("--fpr ")[1].split()[0])
    assert promised_rate(images, named) == named
    assert named - 1 / (images + 1) < 1e-4
