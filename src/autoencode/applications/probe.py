"""A linear classifier on features that stay as they are: standardised, then multinomial logistic regression.

Shapes: N images, F features, K classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

# Inverse strengths of the penalty on the weights, strongest first.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
FOLDS = 5
CHOSEN_ON = 1_000  # images that settings are chosen on at most: more would not change the choice
PASSES = 300


@dataclass(frozen=True)
class LinearProbe:
    """p(class | x) = softmax(((x - mean) / scale) @ weights + bias).

    Attributes:
        mean: (F,) of the features it was fitted on.
        scale: (F,) their standard deviations, all above 0.
        weights: (F, K).
        bias: (K,).
    """

    mean: Floats
    scale: Floats
    weights: Floats
    bias: Floats

    def predict(self, features: Floats) -> Labels:
        """Return the most probable class (N,) of features (N, F)."""
        best: Labels = self.probabilities(features).argmax(axis=1)
        return best

    def probabilities(self, features: Floats) -> NDArray[np.float64]:
        """Return (N, K) of features (N, F), each row with sum 1."""
        scores = ((features - self.mean) / self.scale @ self.weights + self.bias).astype(np.float64)
        shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


class Choice(NamedTuple):
    """What cross-validation says of features: the best of `STRENGTHS`, and its `accuracy`."""

    strength: float
    accuracy: float


def choose_strength(features: Floats, labels: Labels, seed: int = 0) -> Choice:
    """Choose the strength of a probe by stratified cross-validation, on at most 1,000 of the images.

    Args:
        features: (N, F).
        labels: (N,) in 0..K-1, each class at least twice.
        seed: of the folds, and of the images.
    """
    if len(labels) > CHOSEN_ON:
        share = CHOSEN_ON / len(labels)
        kept = some_of_each(labels, lambda count: math.ceil(share * count), seed)
        features, labels = features[kept], labels[kept]
    mean, scale = _standard(features)
    return _choose(_narrowed((features - mean) / scale)[0], labels, seed)


def fit_probe(features: Floats, labels: Labels, strength: float) -> LinearProbe:
    """Fit a probe.

    Args:
        features: (N, F).
        labels: (N,) in 0..K-1, each class at least once.
        strength: C of scikit-learn, the inverse strength of the penalty.
    """
    mean, scale = _standard(features)
    standard, directions = _narrowed((features - mean) / scale)
    weights, bias = _fit(standard, labels, strength)
    return LinearProbe(mean, scale, weights if directions is None else directions @ weights, bias)


def some_of_each(labels: Labels, wanted: Callable[[int], int], seed: int) -> NDArray[np.int64]:
    """Return the indices, in order, of a random choice of each class, at least 2 and at most all it has.

    Args:
        labels: (N,).
        wanted: how many of a class of so many.
        seed: of the choice.
    """
    generator = np.random.default_rng(seed)
    chosen = [np.zeros(0, np.int64)]
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        chosen.append(members[: max(2, wanted(len(members)))])
    return np.sort(np.concatenate(chosen))


def _standard(features: Floats) -> tuple[Floats, Floats]:
    """Return mean and scale (F,)."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    # A feature that never varies says nothing, whatever it is divided by.
    scale[scale < 1e-6 * np.maximum(1, np.abs(mean))] = 1
    return mean, scale


def _narrowed(standard: Floats) -> tuple[Floats, Floats | None]:
    """Turn more features than images onto the directions the images span, and return those (F, N) too.

    That changes neither inner products nor the penalty, and so not what is fitted, only the time it takes.
    """
    if standard.shape[1] <= len(standard):
        return standard, None
    _, singular, directions = np.linalg.svd(standard, full_matrices=False)
    is_spanned = singular > 1e-5 * singular[0]
    is_spanned[0] = True  # of images that are all the same, which span nothing
    spanned: Floats = directions[is_spanned].T
    return standard @ spanned, spanned


def _choose(standard: Floats, labels: Labels, seed: int) -> Choice:
    """Return the best strength and its accuracy; weaker penalties are not tried once two got worse."""
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(min(FOLDS, int(np.bincount(labels).min())), shuffle=True, random_state=seed)
    splits = list(folds.split(standard, labels))
    best, highest, worse = STRENGTHS[0], -1.0, 0
    for strength in STRENGTHS:
        right = 0
        for learn, check in splits:
            weights, bias = _fit(standard[learn], labels[learn], strength)
            right += int((np.argmax(standard[check] @ weights + bias, axis=1) == labels[check]).sum())
        accuracy = right / len(labels)
        if accuracy > highest:
            best, highest, worse = strength, accuracy, 0
        elif accuracy < highest:
            worse += 1
            if worse == 2:
                break
    return Choice(best, highest)


def _fit(standard: Floats, labels: Labels, strength: float) -> tuple[Floats, Floats]:
    """Return weights (F, K) and bias (K,)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=strength, max_iter=PASSES, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the passes are bounded on purpose
        fitted.fit(standard, labels)
    weights, bias = fitted.coef_.T, fitted.intercept_
    if len(bias) == 1:  # of two classes scikit-learn gives the score of the second against the first
        weights, bias = np.hstack([0 * weights, weights]), np.concatenate([0 * bias, bias])
    return weights.astype(np.float32), bias.astype(np.float32)
