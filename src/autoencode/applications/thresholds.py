"""From scores to decisions with a stated rate of false alarms: split conformal p-values.

Scores of held-out ordinary images, which neither training nor the statistics of a score have seen, say how
often an ordinary image scores as high (Vovk, Gammerman & Shafer 2005; Bates et al. 2023, for outliers).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoencode.errors import ConfigError
from autoencode.evaluation.scores import Interval, wilson_interval

USUAL_RATE = 0.01

Array = NDArray[np.float64]


class Rate(NamedTuple):
    """A share of `images`, and its 95 % interval."""

    value: float
    interval: Interval
    images: int


def conformal_p_values(calibration: Array, scores: Array) -> Array:
    """p = (1 + #{calibration scores >= score}) / (n + 1): Vovk et al. 2005, for one more image.

    For an image exchangeable with those of calibration, P(p <= a) <= a for every a, whatever the scores are.

    Args:
        calibration: (n,) scores of held-out ordinary images.
        scores: (N,).

    Returns:
        (N,) in (0, 1]; 1 throughout where there is no calibration score.
    """
    below = np.searchsorted(np.sort(calibration), scores, side="left")
    p_values: Array = (1 + len(calibration) - below) / (len(calibration) + 1)
    return p_values


def images_needed(rate: float) -> int:
    """Fewest calibration images with which a p-value can be as small as `rate`: ceil(1 / rate) - 1.

    Raises:
        ConfigError: the rate is not above 0 and below 1.
    """
    if not 0 < rate < 1:
        raise ConfigError(
            f"The false-positive rate is {rate:g}; it must be above 0 and below 1, such as 0.01."
        )
    fewest = math.floor(1 / rate)
    return fewest - 1 if 1 / fewest <= rate else fewest  # 1 / rate may be rounded either way


def promised_rate(images: int, rate: float | None = None) -> float:
    """Return the false-positive rate to keep to with so many calibration images.

    Args:
        images: calibration images.
        rate: what is asked for; None for 0.01 or, with too few images for that, the smallest rate there is.

    Raises:
        ConfigError: they cannot promise the rate asked for; it says how many are needed.
    """
    if not images:
        raise ConfigError(
            "The pack has no test images to calibrate on, so no image can be called an outlier. Use more "
            "images; about one in ten becomes a test image."
        )
    smallest = 1 / (images + 1)
    if rate is None:
        return max(USUAL_RATE, smallest)
    needed = images_needed(rate)
    if images < needed:
        raise ConfigError(
            f"A false-positive rate of {rate:g} needs {needed:,} test images to calibrate on; the pack has "
            f"{images:,}. Use more images (one in ten is a test image), or --fpr "
            f"{math.ceil(1e4 * smallest) / 1e4:g} or more."
        )
    return rate


def rate_of(flags: NDArray[np.bool_]) -> Rate | None:
    """Share of True, with its Wilson interval; None of no flags."""
    count, images = int(flags.sum()), len(flags)
    return Rate(count / images, wilson_interval(count, images), images) if images else None
