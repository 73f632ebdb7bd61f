"""SCORES: the ways to measure how anomalous an image is, one entry each.

A score names a quantity of images (an attribute of `measurements.Measurements`) and a detector, which is
fitted to that quantity of normal images. A larger score is more anomalous. Quantities of a pretrained network
need no model: its patches know defects, its pooled features know other objects, the statistics of its first
feature maps know noise, blur, contrast and colour. Those of a model know what it cannot reconstruct. A
likelihood alone calls images that are simpler than the training images more normal than those (Nalisnick et
al. 2019); hence the scores "spectrum" and "path", which call an image anomalous also where its reconstruction
is unusually good.

No score is the best everywhere. "auto" combines those of `PARTS`, as the normal images ask for; see
`Combination`.

Shapes: N images to judge, M normal images, F dimensions of a quantity, K parts of "auto".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from autoencode.configuration import Rule
from autoencode.errors import ConfigError, any_of, check_choice
from autoencode.outliers.detectors import (
    Combination,
    Detector,
    KthNeighbour,
    Mahalanobis,
    PatchBank,
    Value,
    WhitenedKthNeighbour,
)

# The command line reads this module for its choices and help, which must be there at once: no torch here,
# and numpy (0.07 s) only inside functions.
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

AUTO = "auto"
FOLDS = 5


@dataclass(frozen=True)
class Score:
    """A way to measure how anomalous an image is.

    Attributes:
        name: its name on the command line and in files.
        summary: one line for the help and the error messages.
        quantity: the name of an attribute of `Measurements`; "parts" are the other scores of `PARTS`.
        detector: the class that is fitted to that quantity of the training images, and scores others.
        needs_vae: whether a plain autoencoder lacks the quantity.
    """

    name: str
    summary: str
    quantity: str
    detector: type[Detector]
    needs_vae: bool = False


SCORES = {
    score.name: score
    for score in (
        Score(AUTO, "patches, content, statistics and spectrum, as the images ask for", "parts", Combination),
        Score("patches", "places unlike any of normal images, which defects are", "patches", PatchBank),
        Score(
            "content", "objects: distance to normal images by a pretrained network", "content", KthNeighbour
        ),
        Score("statistics", "noise, blur, contrast and colour: distance to a Gaussian", "early", Mahalanobis),
        Score(
            "spectrum",
            "scales and colours of the error, and the code: distance to training images",
            "spectrum",
            WhitenedKthNeighbour,
        ),
        Score(
            "path",
            "size of the error, the code and its uncertainty: distance to a Gaussian",
            "path",
            Mahalanobis,
        ),
        Score("mahalanobis", "Mahalanobis distance of the code", "vectors", Mahalanobis),
        Score("knn", "distance to the fifth nearest training code", "vectors", KthNeighbour),
        Score("reconstruction", "mean squared error of the reconstruction", "mse", Value),
        Score("kl", "KL of the code, the paper's score", "kl_nats", Value, needs_vae=True),
        Score("elbo", "negative ELBO", "negative_elbo_nats", Value, needs_vae=True),
    )
}
# Of "auto", in the order of its arrays; images judged without a model lack the last.
PARTS = ("patches", "content", "statistics", "spectrum")


def default_score(rule: Rule = "conformal") -> str:
    """Return the name of the default score."""
    return "kl" if rule == "paper" else AUTO


def scores_for(*, is_vae: bool) -> list[Score]:
    """Return the scores that a model allows."""
    return [score for score in SCORES.values() if is_vae or not score.needs_vae]


def check_score(name: str | None, *, is_vae: bool, rule: Rule = "conformal") -> str:
    """Return the name of a score that can be computed, the default for None.

    Raises:
        ConfigError: there is no such rule or score, the rule needs another score, or the model lacks the
            quantity of the score; names the scores that can be computed.
    """
    check_choice("rule", rule, get_args(Rule))
    name = name or default_score(rule)
    if rule == "paper" and name == "kl" and not is_vae:
        raise ConfigError("The paper's rule needs a VAE, and this model is a plain autoencoder.")
    if rule == "paper" and name != "kl":
        raise ConfigError(f"The paper's rule is about the score kl, not {name}. Leave the score out.")
    check_choice("score", name, SCORES)
    possible = [score.name for score in scores_for(is_vae=is_vae)]
    if name not in possible:
        raise ConfigError(
            f"The score {name} needs a VAE, and this model is a plain autoencoder. Choose {any_of(possible)}."
        )
    return name


def measured_for(score: Score) -> list[Score]:
    """Return the scores whose quantities are measured for a score: itself, or the parts of "auto"."""
    return [SCORES[name] for name in PARTS] if score.name == AUTO else [score]


def fit_detectors(measured: Mapping[str, Array], scores: Sequence[Score]) -> dict[str, Detector]:
    """Fit the detectors of scores, by the name of the score; "auto" is fitted to `cross_fitted` scores.

    Args:
        measured: quantities of the training images, (M, F) or (M,) each.
        scores: of those quantities.

    Raises:
        ConfigError: there are fewer than two training images.
    """
    count = len(next(iter(measured.values())))
    if count < 2:
        raise ConfigError(f"Scores are learned from 2 or more training images; there is {count}.")
    return {
        score.name: score.detector.fit(measured[score.quantity]) for score in scores if score.name != AUTO
    }


def apply_detectors(detectors: Mapping[str, Detector], measured: Mapping[str, Array]) -> dict[str, Array]:
    """Return the scores of images, (N,) each, given their quantities, (N, F) or (N,) each."""
    found = {
        name: detector.score(measured[SCORES[name].quantity])
        for name, detector in detectors.items()
        if name != AUTO
    }
    if AUTO in detectors:
        found[AUTO] = detectors[AUTO].score(parts_of(found))
    return found


def parts_of(found: Mapping[str, Array]) -> Array:
    """Return scores (N,) as "auto" takes them, (N, K); without a model, there are fewer."""
    import numpy as np

    return np.stack([found[name] for name in PARTS if name in found], axis=1)


def cross_fitted(measured: Mapping[str, Array], scores: Sequence[Score]) -> dict[str, Array]:
    """Return the scores of each normal image, (M,) each, by detectors fitted to the images of other folds.

    Args:
        measured: quantities of the images, in an order of no meaning.
        scores: of those quantities; "auto" is left out.
    """
    import numpy as np

    count = len(next(iter(measured.values())))
    scores = [score for score in scores if score.name != AUTO]
    if count < 3:  # nothing can be fitted to one image
        return apply_detectors(fit_detectors(measured, scores), measured)
    folds = np.arange(count) % min(FOLDS, count)
    found = {score.name: np.zeros(count) for score in scores}
    for fold in range(folds.max() + 1):
        held_out = folds == fold
        detectors = fit_detectors({name: values[~held_out] for name, values in measured.items()}, scores)
        part = apply_detectors(detectors, {name: values[held_out] for name, values in measured.items()})
        for name, values in part.items():
            found[name][held_out] = values
    return found
