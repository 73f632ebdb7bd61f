"""SCORES: the ways to measure how anomalous an image is, one entry each.

A score names a quantity of images (an attribute of `measurements.Measurements`) and a detector, which is
fitted to that quantity of training images. A larger score is more anomalous. A likelihood alone calls images
that are simpler than the training images more normal than those (Nalisnick et al. 2019); hence the scores
"spectrum" and "path", which call an image anomalous also where its reconstruction is unusually good.

Shapes: N images to judge, M training images, F dimensions of a quantity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from autoencode.configuration import Rule
from autoencode.errors import ConfigError, any_of, check_choice

# The command line reads this module for its choices and help, which must be there at once: no torch here,
# and numpy (.07 s) only inside functions.
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

NEIGHBOURS = 5
# A dimension that hardly varies over the training images would weigh any rounding as evidence.
_SCALE_FLOOR = 1e-3


@dataclass(frozen=True)
class Detector(ABC):
    """A fit to a quantity of training images. Its fields are arrays, which a file can keep."""

    @classmethod
    @abstractmethod
    def fit(cls, values: Array) -> Self:
        """Fit to the quantity of training images, (M, F) with M at least 2, or (M,)."""

    @abstractmethod
    def score(self, values: Array) -> Array:
        """Return how anomalous images are, (N,), from their values of the same quantity, (N, F) or (N,)."""


@dataclass(frozen=True)
class Mahalanobis(Detector):
    """Distance from the mean of the training images, relative to their covariance (Mahalanobis 1936).

    Attributes:
        mean: (F,).
        scale: (F,) standard deviations, not below a thousandth of the largest.
        whitening: (F, F); times its transpose the inverse of the shrunk correlations.
    """

    mean: Array
    scale: Array
    whitening: Array

    @classmethod
    def fit(cls, values: Array) -> Self:
        """Fit a Gaussian with its correlations shrunk as by Ledoit & Wolf 2004, section 3.3."""
        import numpy as np
        from sklearn.covariance import ledoit_wolf_shrinkage, shrunk_covariance

        mean, scale = values.mean(0), values.std(0)
        scale = np.maximum(scale, _SCALE_FLOOR * scale.max()) if scale.max() > 0 else np.ones_like(scale)
        # In place: this array takes 100 MB for 10,000 images with 1,280 pretrained features, and scikit-learn
        # makes two more of its size; the fit peaks at 390 MB there, and at 21 MB with a code of 128.
        standard = values - mean
        standard /= scale
        count, size = standard.shape
        correlations = standard.T @ standard / count if standard.any() else np.eye(size)
        # From very few images the shrinkage itself is estimated too small for the matrix to be inverted.
        shrinkage = max(ledoit_wolf_shrinkage(standard, assume_centered=True), 1 / count)
        precision = np.linalg.inv(shrunk_covariance(correlations, shrinkage))
        whitening: Array = np.asarray(np.linalg.cholesky((precision + precision.T) / 2), np.float64)
        return cls(mean, scale, whitening)

    def whitened(self, values: Array) -> Array:
        """Map (N, F) so that the training images have no correlations and unit variances."""
        mapped: Array = (values - self.mean) / self.scale @ self.whitening
        return mapped

    def score(self, values: Array) -> Array:
        """Return the Mahalanobis distances of (N, F): (N,)."""
        import numpy as np

        distances: Array = np.linalg.norm(self.whitened(values), axis=1)
        return distances


@dataclass(frozen=True)
class KthNeighbour(Detector):
    """Euclidean distance to the fifth nearest training image (Ramaswamy, Rastogi & Shim 2000).

    Attributes:
        neighbours: (M, F) the training images.
    """

    neighbours: Array

    @classmethod
    def fit(cls, values: Array) -> Self:
        """Keep the training images."""
        return cls(values)

    def score(self, values: Array) -> Array:
        """Return the distances of (N, F): (N,)."""
        return neighbour_distance(values, self.neighbours)


@dataclass(frozen=True)
class WhitenedKthNeighbour(Mahalanobis):
    """Distance to the fifth nearest training image after whitening.

    Normal images may be of several kinds. One Gaussian around all of them would call images between the kinds
    normal; neighbours do not.

    Attributes:
        neighbours: (M, F) the training images, whitened.
    """

    neighbours: Array

    @classmethod
    def fit(cls, values: Array) -> Self:
        """Fit a Gaussian, and keep the training images as it whitens them."""
        gaussian = Mahalanobis.fit(values)
        return cls(gaussian.mean, gaussian.scale, gaussian.whitening, gaussian.whitened(values))

    def score(self, values: Array) -> Array:
        """Return the distances of (N, F): (N,)."""
        return neighbour_distance(self.whitened(values), self.neighbours)


@dataclass(frozen=True)
class Value(Detector):
    """The quantity itself, one number per image.

    Attributes:
        median: () of the training images: the threshold of the paper's rule.
    """

    median: Array

    @classmethod
    def fit(cls, values: Array) -> Self:
        """Keep the median."""
        import numpy as np

        return cls(np.asarray(np.median(values)))

    def score(self, values: Array) -> Array:
        """Return the values (N,) as they are."""
        return values


@dataclass(frozen=True)
class Score:
    """A way to measure how anomalous an image is.

    Attributes:
        name: its name on the command line and in files.
        summary: one line for the help and the error messages.
        quantity: the name of an attribute of `Measurements`. Scores of "vectors" take every embedding; the
            others need the reconstruction of a model, or its posterior.
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
        Score("mahalanobis", "Mahalanobis distance of the embedding", "vectors", Mahalanobis),
        Score("knn", "distance to the fifth nearest training embedding", "vectors", KthNeighbour),
        Score("reconstruction", "mean squared error of the reconstruction", "mse", Value),
        Score("kl", "KL of the code, the paper's score", "kl_nats", Value, needs_vae=True),
        Score("elbo", "negative ELBO", "negative_elbo_nats", Value, needs_vae=True),
    )
}


def default_score(embedding: str, rule: Rule = "conformal") -> str:
    """Return the name of the default score."""
    if rule == "paper":
        return "kl"
    return "spectrum" if embedding == "code" else "mahalanobis"


def scores_for(embedding: str, *, is_vae: bool) -> list[Score]:
    """Return the scores that an embedding of images allows: "code" all that its model has, another few."""
    return [
        score
        for score in SCORES.values()
        if score.quantity == "vectors" or (embedding == "code" and (is_vae or not score.needs_vae))
    ]


def check_score(name: str | None, embedding: str = "code", *, is_vae: bool, rule: Rule = "conformal") -> str:
    """Return the name of a score that can be computed, the default for None.

    Raises:
        ConfigError: there is no such rule or score, the rule needs another score, or the model or the
            embedding lacks the quantity of the score; names the scores that can be computed.
    """
    check_choice("rule", rule, get_args(Rule))
    name = name or default_score(embedding, rule)
    if rule == "paper" and name == "kl" and embedding == "code" and not is_vae:
        raise ConfigError("The paper's rule needs a VAE, and this model is a plain autoencoder.")
    if rule == "paper" and name != "kl":
        raise ConfigError(f"The paper's rule is about the score kl, not {name}. Leave the score out.")
    check_choice("score", name, SCORES)
    possible = [score.name for score in scores_for(embedding, is_vae=is_vae)]
    if name not in possible:
        lacks = (
            f"needs a reconstruction or a posterior, and {embedding} features have neither"
            if embedding != "code"
            else "needs a VAE, and this model is a plain autoencoder"
        )
        raise ConfigError(f"The score {name} {lacks}. Choose {any_of(possible)}.")
    return name


def fit_detectors(measured: Mapping[str, Array], scores: Sequence[Score]) -> dict[str, Detector]:
    """Fit the detectors of scores, by the name of the score.

    Args:
        measured: quantities of the training images, (M, F) or (M,) each.
        scores: of those quantities.

    Raises:
        ConfigError: there are fewer than two training images.
    """
    count = len(measured[scores[0].quantity])
    if count < 2:
        raise ConfigError(f"Scores are learned from 2 or more training images; there is {count}.")
    return {score.name: score.detector.fit(measured[score.quantity]) for score in scores}


def apply_detectors(detectors: Mapping[str, Detector], measured: Mapping[str, Array]) -> dict[str, Array]:
    """Return the scores of images, (N,) each, given their quantities, (N, F) or (N,) each."""
    return {name: detector.score(measured[SCORES[name].quantity]) for name, detector in detectors.items()}


def neighbour_distance(rows: Array, others: Array, neighbours: int = NEIGHBOURS) -> Array:
    """Euclidean distance (N,) of rows (N, F) to the k-th nearest of others (M, F), the farthest if M < k."""
    import numpy as np

    # |a - b|^2 = |a|^2 + |b|^2 - 2ab: one matrix product, where differences would take N x M x F numbers.
    squares = np.square(rows).sum(1)[:, None] + np.square(others).sum(1) - 2 * (rows @ others.T)
    nth = min(neighbours, len(others)) - 1
    distances: Array = np.sqrt(np.partition(squares, nth, axis=1)[:, nth].clip(min=0))
    return distances
