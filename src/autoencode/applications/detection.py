"""How well a model tells the images of another folder from held-out images of its own pack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from autoencode.applications.outlier_reference import fit_reference
from autoencode.applications.outliers import find_outliers
from autoencode.data.images import Limits
from autoencode.data.pack import Pack
from autoencode.evaluation.scores import Estimate, auroc_estimate
from autoencode.models.autoencoder import Autoencoder


@dataclass(frozen=True)
class Detection:
    """How well other images are told from the held-out ones.

    Attributes:
        folder: where the other images are.
        images: how many of them could be used.
        score: name of the outlier score, see `find_outliers`.
        auroc: area under its ROC curve: 1 where every other image scores above every held-out one, 0.5 for
            chance.
    """

    folder: str
    images: int
    score: str
    auroc: Estimate


def detect(
    model: Autoencoder,
    pack: Pack,
    folder: str,
    paths: Sequence[Path],
    limits: Limits | None,
    report: Callable[[str, int, int], None],
) -> tuple[Detection, int]:
    """Measure it, by the score that is the default of `find_outliers`.

    Args:
        model: from `load_model`.
        pack: of its training, with test images.
        folder: where the other images are, for the result to name.
        paths: the other images.
        limits: the largest files and pictures of them to accept.
        report: called with (stage, images done, images in all) of each stage.

    Returns:
        What was measured, and how many of the other images could not be used.

    Raises:
        ImageFolderError: none of them could.
    """
    reference = fit_reference(model, pack, progress=partial(report, "learning what is ordinary"))
    found = find_outliers(
        model, paths, reference, limits=limits, progress=partial(report, f"scoring {folder}")
    )
    scores = np.array([finding.score for finding in found.findings])
    auroc = auroc_estimate(reference.calibration[found.score], scores)
    return Detection(folder, len(scores), found.score, auroc), len(found.refused)
