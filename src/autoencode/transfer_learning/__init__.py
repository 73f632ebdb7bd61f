"""Learn a classifier from few labels, and compare it with classifiers that do without the encoder.

Shapes: N images, F features, K classes. Pixels are (N, H, W, 3) in 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoencode import notebook
from autoencode.atomic import claim_folder, write_bytes
from autoencode.csv_files import csv_bytes
from autoencode.data.loader import random_seed
from autoencode.embedding import find_encoder
from autoencode.errors import ConfigError, MissingExtraError
from autoencode.figures.plots import confusion_matrix
from autoencode.metrics.statistics import Interval, wilson_interval
from autoencode.models.model_file import as_model
from autoencode.transfer_learning.classifier import (
    CLASSIFIER_NAME,
    CODE,
    Classifier,
    load_classifier,
    save_classifier,
)
from autoencode.transfer_learning.methods import METHODS, Learned, Method, Task
from autoencode.transfer_learning.probe import Labelled, labelled_images, some_of_each

if TYPE_CHECKING:
    from autoencode.configuration import Embedding
    from autoencode.data.pack import StageProgress
    from autoencode.data.preprocessing import Limits
    from autoencode.models.autoencoder import Autoencoder

COMPARISON_NAME, CONFUSION_NAME, PICTURE_NAME = "comparison.csv", "confusion.csv", "confusion.png"

LEVELS = (10, 50)  # labels per class to compare at, besides all that there are
DRAWS = 3  # random choices of the labels that an accuracy is averaged over: one alone says little


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of one method with a number of labels.

    Attributes:
        method: a name in `METHODS`.
        labels_per_class: largest number learned from; None for all that there are.
        accuracy: share of the held-out images whose class is right, in [0, 1], the mean over the draws.
        interval: 95 % interval of it (Wilson 1927), for the choice of held-out images.
        lowest, highest: accuracies among the draws, for the choice of labels.
        draws: number of random choices of the labels; 1 if all are used.
        features: features that the probe was fitted to in the last draw, such as "encoder.layers.0 4x4".
    """

    method: str
    labels_per_class: int | None
    accuracy: float
    interval: Interval
    lowest: float
    highest: float
    draws: int
    features: str


@dataclass(frozen=True)
class Transfer:
    """The result of `transfer`.

    Attributes:
        classifier: the one that is kept; learned from all labels that are not held out.
        kept: its method.
        comparison: the accuracies of the methods, with few labels and with all.
        confusion: (K, K) held-out images by true class (rows) and predicted class (columns).
        learned_images: number of images it could learn from.
        held_out_images: number of images it was measured on.
        notes: what was left out or is limited, and why, one sentence each.
        skipped: files that cannot be used, with the reason.
    """

    classifier: Classifier
    kept: str
    comparison: list[Accuracy]
    confusion: NDArray[np.int64]
    learned_images: int
    held_out_images: int
    notes: list[str]
    skipped: list[tuple[Path, str]]

    def _repr_html_(self) -> str:
        title = (
            f"{self.kept} is kept; {self.held_out_images:,} images held out of {len(self.confusion)} classes"
        )
        rows = ((one.method, one.labels_per_class or "all", one.accuracy) for one in self.comparison)
        return notebook.table(title, ("method", "labels a class", "accuracy"), rows)


# Called with (stage, images done, images in all).
def transfer(
    model: Autoencoder | str | Path,
    labelled: str | Path,
    out: str | Path | None = None,
    *,
    embedding: Embedding | None = None,
    finetune: bool = False,
    seed: int = 0,
    limits: Limits | None = None,
    progress: StageProgress | None = None,
) -> Transfer:
    """Learn a classifier from labelled images, and compare it with others that do without the encoder.

    Three quarters of the images, chosen by their content, may be learned from; the others are held out. An
    autoencoder that was trained on a pack of the same files has not seen the held-out ones in training (see
    `Labelled`). Methods and settings are chosen by cross-validation, never by the held-out images.

    Args:
        model: from `load_model`, or its path; plain or a VAE.
        labelled: a folder with one sub-folder per class, or a pack of one.
        out: a folder for the classifier, the comparison and the confusion matrix, as a table and a picture;
            made here. None writes nothing.
        embedding: which classifier is kept: "pretrained", or "code" for that on the code or a layer of the
            encoder; by default the one of all these that cross-validates best.
        finetune: keep a fine-tuned encoder instead (see `fine_tune`).
        seed: of the choice of labels and all else that is random.
        limits: the largest files and pictures to accept.
        progress: called with (stage, images done, images in all).

    Raises:
        ModelFileError: there is no usable model at the path.
        ImageFolderError: no image can be used, or there are too few classes or images of one.
        ConfigError: pretrained features are to be fine-tuned, or a pack was made with other preprocessing.
        MissingExtraError: the weights of the pretrained network are not installed.
        OutputError: `out` is not a folder or not empty, or cannot be written.
    """
    model = as_model(model)
    kept = _kept(model, embedding, finetune)
    folder = None if out is None else Path(out)
    if folder is not None:  # before the long work, too
        claim_folder(folder, COMPARISON_NAME, "classifier", Path(labelled))
    report = progress or (lambda *_: None)
    with labelled_images(Path(labelled), model.preprocessing, limits, partial(report, "packing")) as data:
        task = Task(data, model, report)
        methods = [method for method in METHODS.values() if finetune or not method.is_fine_tuning]
        levels, notes = _levels(data)
        comparison, best = list[Accuracy](), dict[str, Learned]()
        for level in levels:
            for method in methods.copy():
                try:
                    accuracy, best[method.name] = _measure(method, task, level, seed, report)
                    comparison.append(accuracy)
                except MissingExtraError as err:  # at the first level; it is not tried at the others
                    methods.remove(method)
                    notes.append(f"The method {method.name} is not compared. {err}")
        chosen = max((best[name] for name in kept if name in best), key=lambda learned: learned.validated)
        made = _result(task, chosen, comparison, [*data.notes, *notes, *task.notes], labelled)
    return made if folder is None else _write(folder, made)


def _kept(model: Autoencoder, embedding: Embedding | None, finetune: bool) -> list[str]:
    """Return the methods of which the best is kept."""
    if finetune and embedding not in (None, CODE):
        raise ConfigError("Only the model's own encoder can be fine-tuned: leave out one of the two.")
    if embedding is not None:
        find_encoder(embedding, model)  # before the long work: rejects an embedding that is not installed
    if finetune:
        return [name for name, method in METHODS.items() if method.is_fine_tuning]
    return [
        name
        for name, method in METHODS.items()
        if method.kept_for is not None and embedding in (None, method.kept_for)
    ]


def _levels(data: Labelled) -> tuple[list[int | None], list[str]]:
    """Return the numbers of labels per class to compare at, the last None for all, and notes on them."""
    counts = np.bincount(data.labels[data.learned])
    levels: list[int | None] = [level for level in LEVELS if level < counts.max()]
    notes = []
    for level in LEVELS:
        short = [name for name, count in zip(data.classes, counts, strict=True) if count < level]
        if level not in levels:
            notes.append(
                f"Not compared at {level} labels per class: at most {counts.max()} can be learned from."
            )
        elif short:
            notes.append(f"There are fewer than {level} labels of {', '.join(short)}: all of them are used.")
    return [*levels, None], notes


def _measure(
    method: Method, task: Task, level: int | None, seed: int, report: StageProgress
) -> tuple[Accuracy, Learned]:
    """Measure a method with so many labels per class, over the same draws of labels as every method."""
    data = task.data
    pool, held_out = np.flatnonzero(data.learned), np.flatnonzero(~data.learned)
    draws = 1 if level is None else DRAWS
    shares = []
    for draw in range(draws):
        number = random_seed("draw", seed, draw) % 2**32  # scikit-learn takes 32 bits
        stage = f"{method.name}, {'all' if level is None else level} labels"
        stage += f", draw {draw + 1} of {draws}" if draws > 1 else ""
        rows = pool if level is None else pool[some_of_each(data.labels[pool], lambda _: level, number)]
        learned = method.learn(task, rows, number, partial(report, stage))
        shares.append(float((learned.predict(held_out) == data.labels[held_out]).mean()))
    mean = float(np.mean(shares))
    interval = wilson_interval(round(mean * len(held_out)), len(held_out))
    spread = (min(shares), max(shares), draws)
    return Accuracy(method.name, level, mean, interval, *spread, learned.classifier.features), learned


def _result(
    task: Task, chosen: Learned, comparison: list[Accuracy], notes: list[str], source: str | Path
) -> Transfer:
    data, classifier = task.data, chosen.classifier
    held_out = np.flatnonzero(~data.learned)
    confusion = np.zeros((len(data.classes), len(data.classes)), np.int64)
    np.add.at(confusion, (data.labels[held_out], chosen.predict(held_out)), 1)
    method, learned = classifier.provenance["method"], int(data.learned.sum())
    (measured,) = (one for one in comparison if one.method == method and one.labels_per_class is None)
    provenance = {
        "labelled": str(Path(source).resolve()),
        "fingerprint": data.pack.fingerprint,
        **classifier.provenance,
        "learned_images": learned,
        "held_out_images": len(held_out),
        "accuracy": measured.accuracy,
        "interval": list(measured.interval),
    }
    classifier = replace(classifier, provenance=provenance)
    skipped = [(Path(source) / entry.path, entry.reason or "") for entry in data.skipped]
    return Transfer(classifier, method, comparison, confusion, learned, len(held_out), notes, skipped)


def _write(folder: Path, made: Transfer) -> Transfer:
    # First: see `claim_folder`.
    write_bytes(folder / COMPARISON_NAME, _comparison_table(made.comparison))
    classes = made.classifier.classes
    write_bytes(folder / CONFUSION_NAME, _confusion_table(made.confusion, classes))
    right, total = int(made.confusion.trace()), int(made.confusion.sum())
    title = f"{made.kept}: {right} of {total} held-out images right, {right / total:.1%}"
    confusion_matrix(made.confusion, classes, folder / PICTURE_NAME, title=title)
    save_classifier(folder / CLASSIFIER_NAME, made.classifier)
    # Loaded again: the caller gets what is on the disk, with its digest.
    saved = load_classifier(folder / CLASSIFIER_NAME)
    return replace(made, classifier=saved)


def _comparison_table(comparison: list[Accuracy]) -> bytes:
    rows: list[list[object]] = [
        ["method", "labels_per_class", "accuracy", "low", "high", "lowest", "highest", "draws", "features"]
    ]
    for one in comparison:
        numbers = (one.accuracy, *one.interval, one.lowest, one.highest)
        level = "all" if one.labels_per_class is None else one.labels_per_class
        rows.append([one.method, level, *(f"{number:.4f}" for number in numbers), one.draws, one.features])
    return csv_bytes(rows)


def _confusion_table(confusion: NDArray[np.int64], classes: tuple[str, ...]) -> bytes:
    rows = [[name, *row] for name, row in zip(classes, confusion.tolist(), strict=True)]
    return csv_bytes([["true class \\ classified as", *classes], *rows])
