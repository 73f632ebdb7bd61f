"""A classifier from few labels: what the encoder of a model is worth, beside what one would do without it.

Shapes: N images, F features, K classes. Pixels are (N, H, W, 3) in 0..255.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoencode.atomic import csv_bytes, make_folder, write_bytes
from autoencode.data.loader import random_seed
from autoencode.embedding import EMBEDDINGS, image_encoder
from autoencode.errors import ConfigError, OutputError, install_command
from autoencode.figures.plots import confusion_matrix
from autoencode.metrics.statistics import Interval, wilson_interval
from autoencode.models.model_file import as_model
from autoencode.transfer_learning.classifier import (
    CLASSIFIER_NAME,
    CODE,
    PRETRAINED,
    Classifier,
    load_classifier,
    save_classifier,
)
from autoencode.transfer_learning.methods import FAMILIES, Learned, Representations, Rows, learn, represent
from autoencode.transfer_learning.probe import Labelled, labelled_images, some_of_each

if TYPE_CHECKING:
    from autoencode.configuration import Embedding
    from autoencode.data.preprocessing import Limits
    from autoencode.models.autoencoder import Autoencoder

COMPARISON_NAME, CONFUSION_NAME, PICTURE_NAME = "comparison.csv", "confusion.csv", "confusion.png"

LEVELS = (10, 50)  # labels a class to compare at, besides all there are
DRAWS = 3  # choices of so few labels that accuracies are averaged over


@dataclass(frozen=True)
class Accuracy:
    """How well one method does with so many labels.

    Attributes:
        method: see `methods`.
        labels_per_class: learned from, at most; None for all there are.
        accuracy: share of the held-out images whose class is right, the mean over the draws.
        interval: of that share, 95 %, by Wilson 1927: how far other held-out images might have moved it.
        lowest: of the draws of the labels: how far other labels might have moved it.
        highest: of the draws.
        draws: choices of the labels; 1 where all are used.
        features: what a linear probe looked at in the last draw, such as "encoder.layers.0 4x4".
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
    """What `transfer` found and made.

    Attributes:
        classifier: the one that is kept; learned from all labels that are not held out.
        kept: its method.
        comparison: the methods, with few labels and with all.
        confusion: (K, K) held-out images by true class (rows) and the kept classifier's (columns).
        learned_images: images it could learn from.
        held_out_images: images it was measured on.
        notes: what was left out, and what falls short, a sentence each.
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


# Called with (what is at work, images done, images in all).
Report = Callable[[str, int, int], None]


def transfer(
    model: Autoencoder | str | Path,
    labelled: str | Path,
    out: str | Path | None = None,
    *,
    embedding: Embedding = "code",
    finetune: bool = False,
    seed: int = 0,
    limits: Limits | None = None,
    progress: Report | None = None,
) -> Transfer:
    """Learn a classifier from labelled images, and measure what the encoder was worth to it.

    Three quarters of the images, by their content, may be learned from; the others are held out, and no
    autoencoder that was trained on a pack of the same files has seen them in training (see `labelled`).
    Methods and settings are chosen by cross-validation on what is learned from, never on what is held out.

    Args:
        model: from `load_model`, or its path; plain or a VAE.
        labelled: a folder with a sub-folder for each class, or a pack of one.
        out: a folder for the classifier, the comparison and the confusion matrix, as a table and a picture;
            made here. None writes nothing.
        embedding: what is kept: "code" for the code or the layer of the encoder that classifies best, or
            "pretrained".
        finetune: keep a fine-tuned encoder instead (see `finetune`).
        seed: of the choice of labels and everything else that is drawn.
        limits: the largest files and pictures to accept.
        progress: called with (what is at work, images done, images in all).

    Raises:
        ModelFileError: the path given leads to no model.
        ImageFolderError: no image can be used, or there are too few classes or images of one.
        ConfigError: pretrained features are to be fine-tuned, or a pack was made with other preprocessing.
        MissingExtraError: pretrained features need the optional part `eval`.
        OutputError: `out` is something else, or cannot be written.
    """
    model = as_model(model)
    kept = _kept(embedding, finetune)
    if kept == PRETRAINED:
        image_encoder(model, "pretrained")  # rejects before the long work
    folder = None if out is None else _prepared(Path(out))
    report = progress or (lambda *_: None)
    with labelled_images(Path(labelled), model.preprocessing, limits, partial(report, "packing")) as data:
        seen = represent(model, data, report)
        methods = [name for name in FAMILIES if name != "fine-tuned" or finetune]
        methods = [name for name in methods if name != PRETRAINED or seen.has(PRETRAINED)]
        levels, notes = _levels(data)
        if not seen.has(PRETRAINED):
            notes.append(f"Pretrained features are not compared: {install_command('eval')} adds them.")
        notes += seen.notes
        comparison, best = list[Accuracy](), dict[str, Learned]()
        for level in levels:
            accuracies, best = _compare(data, seen, methods, level, seed, report)
            comparison += accuracies
        chosen = best[kept] if kept != CODE else max(best[CODE], best["layer"], key=lambda one: one.validated)
        made = _result(data, chosen, comparison, [*data.notes, *notes], labelled)
    if folder is not None:
        made = _write(folder, made)
    return made


def _kept(embedding: Embedding, finetune: bool) -> str:
    if embedding not in EMBEDDINGS:
        raise ConfigError(f"Unknown embedding {embedding!r}. Choose {' or '.join(EMBEDDINGS)}.")
    if finetune and not EMBEDDINGS[embedding].needs_model:
        raise ConfigError("Only the model's own encoder can be fine-tuned: leave out one of the two.")
    return "fine-tuned" if finetune else embedding


def _levels(data: Labelled) -> tuple[list[int | None], list[str]]:
    """Return the numbers of labels to compare at, the last None for all, and what is to be said of them."""
    counts = np.bincount(data.labels[data.learned])
    levels: list[int | None] = [level for level in LEVELS if level < counts.max()]
    notes = []
    for level in LEVELS:
        short = [name for name, count in zip(data.classes, counts, strict=True) if count < level]
        if level not in levels:
            notes.append(
                f"Not compared at {level} labels a class: at most {counts.max()} can be learned from."
            )
        elif short:
            notes.append(
                f"At {level} labels a class, all that can be learned from of {', '.join(short)}: fewer."
            )
    return [*levels, None], notes


def _compare(
    data: Labelled,
    seen: Representations,
    methods: list[str],
    level: int | None,
    seed: int,
    report: Report,
) -> tuple[list[Accuracy], dict[str, Learned]]:
    """Measure every method with so many labels; the same choices of labels for each."""
    pool, held_out = np.flatnonzero(data.learned), np.flatnonzero(~data.learned)
    draws = 1 if level is None else DRAWS
    accuracies, last = [], dict[str, Learned]()
    for method in methods:
        shares = []
        for draw in range(draws):
            number = random_seed("draw", seed, draw) % 2**32  # as much as scikit-learn takes
            what = f"{method}, {'all' if level is None else level} labels"
            what += f", draw {draw + 1} of {draws}" if draws > 1 else ""
            rows = _drawn(data, pool, level, number)
            learned = learn(method, data, seen, rows, number, partial(report, what))
            shares.append(float((learned.predict(held_out) == data.labels[held_out]).mean()))
            last[method] = learned
        mean = float(np.mean(shares))
        interval = wilson_interval(round(mean * len(held_out)), len(held_out))
        spread = (min(shares), max(shares), draws)
        accuracies.append(Accuracy(method, level, mean, interval, *spread, last[method].features))
    return accuracies, last


def _drawn(data: Labelled, pool: Rows, level: int | None, seed: int) -> Rows:
    if level is None:
        return pool
    return pool[some_of_each(data.labels[pool], lambda _: level, seed)]


def _result(
    data: Labelled, chosen: Learned, comparison: list[Accuracy], notes: list[str], source: str | Path
) -> Transfer:
    held_out = np.flatnonzero(~data.learned)
    predicted = chosen.predict(held_out)
    confusion = np.zeros((len(data.classes), len(data.classes)), np.int64)
    np.add.at(confusion, (data.labels[held_out], predicted), 1)
    (measured,) = (one for one in comparison if one.method == chosen.method and one.labels_per_class is None)
    learned = int(data.learned.sum())
    provenance = {
        "labelled": str(Path(source).resolve()),
        "fingerprint": data.pack.fingerprint,
        "method": chosen.method,
        "model": chosen.source,
        "learned_images": learned,
        "held_out_images": len(held_out),
        "accuracy": measured.accuracy,
        "interval": list(measured.interval),
    }
    classifier = Classifier(chosen.model, chosen.features, data.classes, chosen.probe, provenance)
    skipped = [(Path(source) / entry.path, entry.reason or "") for entry in data.skipped]
    return Transfer(classifier, chosen.method, comparison, confusion, learned, len(held_out), notes, skipped)


def _prepared(out: Path) -> Path:
    """Make the folder; one that holds something else than an earlier classifier is left alone."""
    if out.is_dir() and any(out.iterdir()) and not (out / COMPARISON_NAME).exists():
        raise OutputError(f"{out} is not empty and holds no earlier classifier. Choose another --out.")
    make_folder(out)
    return out


def _write(folder: Path, made: Transfer) -> Transfer:
    # First, so that a folder left half-written is known as ours.
    write_bytes(folder / COMPARISON_NAME, _comparison_table(made.comparison))
    classes = made.classifier.classes
    write_bytes(folder / CONFUSION_NAME, _confusion_table(made.confusion, classes))
    right, total = int(made.confusion.trace()), int(made.confusion.sum())
    title = f"{made.kept}: {right} of {total} held-out images right, {right / total:.1%}"
    confusion_matrix(made.confusion, classes, folder / PICTURE_NAME, title=title)
    save_classifier(folder / CLASSIFIER_NAME, made.classifier)
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
