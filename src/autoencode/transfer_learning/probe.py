"""Labelled images, and linear classifiers on frozen features of them.

The classifiers are multinomial logistic regressions on standardised features.

Shapes: N images, F features, K classes.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoencode.data.entries import Entry
from autoencode.data.manifest import is_pack
from autoencode.data.pack import Pack, open_pack, pack_folder
from autoencode.errors import ConfigError, ImageFolderError

if TYPE_CHECKING:
    from autoencode.data.pack import Progress
    from autoencode.data.preprocessing import Limits, Preprocessing

LEAST_LEARNED = 2  # images of a class: one to learn from and one to choose settings by


@dataclass(frozen=True)
class Labelled:
    """Labelled images; the class of a file is the first sub-folder.

    The content of a file decides its split, as in any pack (`split_of`): a classifier learns from the
    training split and is measured on the validation and test splits. An autoencoder trained on a pack of the
    same files, from whatever folder and under whatever names, has therefore not been trained on the images
    that the classifier is measured on. A file saved again, for instance at another size, is another file.

    Attributes:
        pack: of the pixels.
        rows: (N,) of the pack, each content once.
        paths: the N files.
        labels: (N,) the class of each, in 0..K-1.
        classes: the names of the K classes, sorted.
        learned: (N,) whether a classifier may learn from the image; otherwise it is measured on it.
        notes: what was left out and why, one sentence each.
        skipped: files that cannot be used.
    """

    pack: Pack
    rows: NDArray[np.int64]
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    learned: NDArray[np.bool_]
    notes: tuple[str, ...]
    skipped: tuple[Entry, ...]


@contextmanager
def labelled_images(
    source: Path,
    preprocessing: Preprocessing,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Iterator[Labelled]:
    """Open a folder with one sub-folder per class, or its pack; a folder is decoded into a temporary pack.

    Raises:
        ImageFolderError: no image can be used, there are fewer than two classes, or one has too few images.
        ConfigError: the pack was made with other preprocessing.
    """
    if is_pack(source):
        pack = open_pack(source)
        if different := pack.preprocessing.differences(preprocessing):
            raise ConfigError(
                f"The pack {source} was made with {different} as the model needs. Give the folder of images."
            )
        yield _labelled(source, pack)
        return
    # Temporary, as these images are seldom those of a training and are read once.
    with tempfile.TemporaryDirectory(prefix="autoencode-") as temporary:
        pack = pack_folder(source, Path(temporary) / "pack", preprocessing, limits=limits, progress=progress)
        yield _labelled(source, pack)


def _labelled(source: Path, pack: Pack) -> Labelled:
    # Copies of a file count once: they would be learned from, or measured on, more than others.
    copies: dict[str, list[Entry]] = defaultdict(list)
    for entry in pack.entries:
        copies[entry.sha256 or ""].append(entry)
    kept, contradictory, unlabelled = list[Entry](), 0, 0
    for same in copies.values():
        # Copies in two classes contradict each other, and nothing says which is right.
        names = {entry.label for entry in same if entry.label is not None}
        contradictory += len(names) > 1
        unlabelled += not names
        if len(names) == 1:
            kept.append(next(entry for entry in same if entry.label is not None))
    notes = []
    if unlabelled:
        notes.append(f"{_counted(unlabelled)} left out: without a sub-folder there is no class.")
    if contradictory:
        notes.append(f"{_counted(contradictory)} left out: exact copies of each are in two classes.")
    classes = sorted({entry.label or "" for entry in kept})
    _check_classes(source, classes)
    labels = np.array([classes.index(entry.label or "") for entry in kept], np.int64)
    learned = np.array([entry.split == "train" for entry in kept])
    _check_counts(source, classes, labels, learned)
    for index, name in enumerate(classes):
        if not (~learned & (labels == index)).any():
            notes.append(f"No image of {name} is held out, so its accuracy is not measured.")
    rows = np.array([entry.row for entry in kept], np.int64)
    paths = tuple(pack.folder / entry.path for entry in kept)
    return Labelled(pack, rows, paths, labels, tuple(classes), learned, tuple(notes), tuple(pack.skipped))


def _check_classes(source: Path, classes: list[str]) -> None:
    if not classes:
        raise ImageFolderError(
            f"{source} has no sub-folders with images. Put the images of each class into a sub-folder."
        )
    if len(classes) == 1:
        raise ImageFolderError(
            f"{source} has one class, {classes[0]}; a classifier needs two or more. Give each a sub-folder."
        )


def _check_counts(
    source: Path, classes: list[str], labels: NDArray[np.int64], learned: NDArray[np.bool_]
) -> None:
    for index, name in enumerate(classes):
        count, usable = int((labels == index).sum()), int(((labels == index) & learned).sum())
        if usable < LEAST_LEARNED:
            raise ImageFolderError(
                f"The class {name} in {source} has {_counted(count)}, {usable} of them to learn from once a "
                f"quarter is held out; at least {LEAST_LEARNED} are needed. Add images, 20 if you can, or "
                "remove the class."
            )
    if learned.all():
        raise ImageFolderError(
            f"None of the {_counted(len(learned))} in {source} is held out to measure on. Add some, 20 per "
            "class if you can."
        )


def _counted(images: int) -> str:
    return f"{images} image" if images == 1 else f"{images} images"


Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

# Inverse strengths of the penalty on the weights, strongest first.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
FOLDS = 5  # fewer where a class has fewer images
CHOSEN_ON = 1_000  # images at most to choose the strength on: more would not change the choice
ITERATIONS = 300  # weak penalties converge slowly, and accuracy has settled long before


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
        from scipy.special import softmax

        scores = (features - self.mean) / self.scale @ self.weights + self.bias
        return np.asarray(softmax(scores.astype(np.float64), axis=1))


class Choice(NamedTuple):
    """The result of cross-validation: the best of `STRENGTHS`, and its `accuracy`, in [0, 1]."""

    strength: float
    accuracy: float


def choose_strength(features: Floats, labels: Labels, seed: int = 0) -> Choice:
    """Choose the strength of a probe by stratified cross-validation, on at most 1,000 of the images.

    Args:
        features: (N, F).
        labels: (N,) in 0..K-1, each class at least twice.
        seed: of the choice of images and of the folds.
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
    # Back to the features themselves, so that a probe does not depend on the images it was fitted on.
    return LinearProbe(mean, scale, weights if directions is None else directions @ weights, bias)


def some_of_each(labels: Labels, wanted: Callable[[int], int], seed: int) -> NDArray[np.int64]:
    """Return the indices, in order, of a random choice of each class, at least 2 and at most all it has.

    Args:
        labels: (N,).
        wanted: from the size of a class to the number to choose of it.
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
    # A feature that never varies carries no information, and its deviation is rounding: leave it as it is.
    scale[scale < 1e-6 * np.maximum(1, np.abs(mean))] = 1
    return mean, scale


def _narrowed(standard: Floats) -> tuple[Floats, Floats | None]:
    """Rotate features onto the directions that the images span, if F > N; return the directions (F, N), too.

    This changes neither inner products nor the penalty, hence not the fit, only the time it takes.
    """
    if standard.shape[1] <= len(standard):
        return standard, None
    _, singular, directions = np.linalg.svd(standard, full_matrices=False)
    is_spanned = singular > 1e-5 * singular[0]
    is_spanned[0] = True  # images that are all the same span nothing, and a fit takes one feature
    spanned: Floats = directions[is_spanned].T
    return standard @ spanned, spanned


def _choose(standard: Floats, labels: Labels, seed: int) -> Choice:
    """Return the best strength and its accuracy."""
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
            if worse == 2:  # accuracy has one peak over the strengths, and weak penalties take longest to fit
                break
    return Choice(best, highest)


def _fit(standard: Floats, labels: Labels, strength: float) -> tuple[Floats, Floats]:
    """Return weights (F, K) and bias (K,)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=strength, max_iter=ITERATIONS, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # iterations are bounded on purpose
        fitted.fit(standard, labels)
    weights, bias = fitted.coef_.T, fitted.intercept_
    if len(bias) == 1:  # for two classes scikit-learn returns the score of the second against the first
        weights, bias = np.hstack([0 * weights, weights]), np.concatenate([0 * bias, bias])
    return weights.astype(np.float32), bias.astype(np.float32)
