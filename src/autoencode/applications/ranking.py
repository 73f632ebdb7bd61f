"""The images of a pack in order of strangeness, and what each rate of false alarms would call an outlier.

Lengths: N entries of the pack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoencode.applications.anomaly_scores import DEFAULT_SCORES, Score, measurer
from autoencode.applications.outlier_reference import OutlierReference
from autoencode.applications.thresholds import Rate, conformal_p_values, promised_rate, rate_of
from autoencode.data.batches import batches
from autoencode.data.pack import Pack
from autoencode.models.autoencoder import Autoencoder

BATCH = 64

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """How strange each image of a pack is.

    Attributes:
        score: name of the score.
        scores: (N,) in the order of the pack's entries; larger is stranger.
        p_values: (N,) how rarely an ordinary image scores as high, in (0, 1].
        order: (N,) places of the entries, strangest first.
        calibration_images: held-out images behind the p-values.
        validation_p_values: (M,) of the validation images of the training, all of them ordinary.
    """

    score: Score
    scores: Array
    p_values: Array
    order: NDArray[np.int64]
    calibration_images: int
    validation_p_values: Array

    @property
    def smallest_rate(self) -> float:
        """The smallest rate of false alarms that the calibration images can promise.

        Raises:
            ConfigError: there are none.
        """
        promised_rate(self.calibration_images)
        return 1 / (self.calibration_images + 1)

    def flagged(self, rate: float) -> int:
        """Return how many images a rate of false alarms calls outliers: the first so many of `order`.

        Raises:
            ConfigError: the calibration images cannot promise the rate.
        """
        return int((self.p_values <= promised_rate(self.calibration_images, rate)).sum())

    def measured(self, rate: float) -> Rate | None:
        """Return what share of the validation images it calls outliers; None where there are none."""
        return rate_of(self.validation_p_values <= rate)


def rank_pack(
    model: Autoencoder,
    pack: Pack,
    reference: OutlierReference,
    progress: Callable[[int, int], None] | None = None,
) -> Ranking:
    """Score every image of a pack with the default score of codes.

    Args:
        model: from `load_model`.
        pack: the images, of the model's size; copies of one are scored once.
        reference: what is ordinary, of this model.
        progress: called with (images scored, images in all).

    Raises:
        ConfigError: the images of the pack have another size.
    """
    model.check_pack(pack)
    name, measure = DEFAULT_SCORES["code"], measurer(model, "code")
    rows, places = np.unique(pack.rows(), return_inverse=True)
    scores = np.empty(len(rows))
    done = 0
    for images in batches(pack, rows, BATCH):
        scores[done : done + len(images)] = reference.statistics.scores(measure(images))[name]
        done += len(images)
        if progress:
            progress(done, len(rows))
    scores = scores[places]
    calibration = reference.calibration.get(name, np.zeros(0))
    return Ranking(
        name,
        scores,
        conformal_p_values(calibration, scores),
        np.argsort(-scores, kind="stable"),
        len(calibration),
        conformal_p_values(calibration, reference.validation.get(name, np.zeros(0))),
    )
