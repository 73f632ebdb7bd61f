"""Turn scores into outliers at a stated false positive rate by conformal p-values.

The scores of a calibration set, of normal images that no detector has seen, show how often a normal image
scores as high (Vovk, Gammerman & Shafer 2005; for outliers Bates et al. 2023).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from autoencode.errors import ConfigError
from autoencode.metrics.statistics import Interval, wilson_interval

if TYPE_CHECKING:
    Array = NDArray[np.float64]

DEFAULT_FPR = 0.01
# Confidence of the bound that is stated beside a rate. The bound of 95 % held in 87 to 96 of 100 real splits.
CONFIDENCE = 0.99
# With fewer than 300 images, the default rate leaves three of them beyond the threshold, up to a rate of
# MOST_BY_DEFAULT. A threshold that is the most unusual of 174 good parts found 0 of 52 defects in three
# splits of Kolektor; the third most unusual found 30, 7 and 9.
_BEYOND_BY_DEFAULT, MOST_BY_DEFAULT = 3, 0.05


class FalsePositiveRate(NamedTuple):
    """The fraction of normal images that are called outliers, its 95 % interval, and their number."""

    value: float
    interval: Interval
    images: int


def false_positive_rate(flags: NDArray[np.bool_]) -> FalsePositiveRate | None:
    """Return the share of True among normal images (N,), with its Wilson interval; None if N is 0."""
    count, images = int(flags.sum()), len(flags)
    return FalsePositiveRate(count / images, wilson_interval(count, images), images) if images else None


def conformal_p_values(calibration: Array, scores: Array) -> Array:
    """p = (1 + #{calibration scores >= score}) / (n + 1): Vovk et al. 2005, for one more image.

    For an image exchangeable with the calibration set, P(p <= a) <= a for every a, whatever the scores are.

    Args:
        calibration: (n,) scores of held-out normal images.
        scores: (N,).

    Returns:
        (N,) in (0, 1]; 1 throughout if there is no calibration score.
    """
    # side="left" counts equal scores as at least as high: ties make p-values larger, never too small.
    below = np.searchsorted(np.sort(calibration), scores, side="left")
    p_values: Array = (1 + len(calibration) - below) / (len(calibration) + 1)
    return p_values


def check_fpr(fpr: float) -> None:
    """Reject what is no false positive rate.

    Raises:
        ConfigError: the rate is not above 0 and below 1.
    """
    if not 0 < fpr < 1:
        raise ConfigError(
            f"The false positive rate is {fpr:g}; it must be above 0 and below 1, such as 0.01."
        )


def images_needed(fpr: float) -> int:
    """Fewest calibration images with which a p-value can be as small as `fpr`: ceil(1 / fpr) - 1.

    Raises:
        ConfigError: see `check_fpr`.
    """
    check_fpr(fpr)
    fewest = math.floor(1 / fpr)
    return fewest - 1 if 1 / fewest <= fpr else fewest  # 1 / fpr may be rounded either way


def attainable_fpr(
    images: int,
    fpr: float | None = None,
    *,
    found: str = "test images to calibrate on; the pack has {images:,}",
    advice: str = "Use more images (one in ten is a test image)",
) -> float:
    """Return the false positive rate to keep to with this many calibration images.

    Args:
        images: number of images in the calibration set.
        fpr: the rate asked for; None for 3 / (images + 1), but at least 0.01 and at most 0.05, or with fewer
            than 19 images, which cannot keep to 0.05, 1 / (images + 1).
        found: for the message, which images there are.
        advice: for the message, how there can be more.

    Raises:
        ConfigError: the calibration set is too small for the rate; the message says how many it takes.
    """
    if not images:
        raise ConfigError(
            "The pack has no test images to calibrate on, so no image can be called an outlier. Use more "
            "images (about one in ten becomes a test image), or give another pack of normal images: --pack."
        )
    smallest = 1 / (images + 1)  # p-values are multiples of it
    if fpr is None:
        return max(DEFAULT_FPR, min(_BEYOND_BY_DEFAULT / (images + 1), MOST_BY_DEFAULT), smallest)
    needed = images_needed(fpr)
    # The rate in the message is rounded up: rounded down it would be rejected, too.
    if images < needed:
        raise ConfigError(
            f"A false positive rate of {fpr:g} needs {needed:,} {found.format(images=images)}. {advice}, or "
            f"--fpr {math.ceil(1e4 * smallest) / 1e4:g} or more."
        )
    return fpr


def threshold_rank(images: int, fpr: float) -> int:
    """Return how many calibration scores, at least one, are at or above the threshold."""
    # A rate such as 3 / 41 times 41 may come out below 3.
    return max(1, math.floor(fpr * (images + 1) + 1e-9))


def most_flagged(images: int, fpr: float) -> int:
    """Return how many calibration images at most are outliers among themselves: each is as high as itself."""
    return threshold_rank(images, fpr) - 1


def conformal_threshold(calibration: Array, fpr: float) -> float:
    """Return the largest score whose p-value by calibration scores (M,) is above a false positive rate."""
    return float(np.sort(calibration)[-threshold_rank(len(calibration), fpr)])


def in_percent(share: float) -> str:
    """Return a share for people: "2.97 %"."""
    return f"{100 * share:.2f} %"


def fpr_bound(images: int, fpr: float, confidence: float = CONFIDENCE) -> float:
    """Return the upper bound of the false positive rate of one calibration set, at this confidence.

    The rate depends on the images drawn: it follows a beta distribution (Vovk 2012), whose mean is at most
    `fpr`.

    Args:
        images: number of images in the calibration set.
        fpr: the rate that is kept to on average.
        confidence: in (0, 1).
    """
    rank = threshold_rank(images, fpr)
    return float(beta.ppf(confidence, rank, images + 1 - rank))
