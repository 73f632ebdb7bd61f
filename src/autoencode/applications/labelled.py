"""Labelled images, split into those a classifier may learn from and those it is measured on."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoencode.data.images import Limits, Preprocessing
from autoencode.data.pack import Entry, Pack, is_pack, open_pack, pack_folder
from autoencode.errors import ConfigError, ImageFolderError

LEAST_LEARNED = 2  # images of a class: one to learn from and one to choose settings by


@dataclass(frozen=True)
class Labelled:
    """Images of classes. The class is the first sub-folder.

    The split follows from the content of a file, as that of a pack does (`split_of`): a classifier learns
    from the training split and is measured on the validation and test splits. So where the same files, in
    this folder or any other, were packed to train an autoencoder, its training has seen none of those the
    classifier is measured on: they were in its validation and test splits, whatever else was there and
    whatever they were called. A file that was saved anew, at another size say, is another file to this rule.

    Attributes:
        pack: where the pixels are.
        rows: (N,) their rows in it, each content once.
        labels: (N,) the class of each, in 0..K-1.
        classes: the names of the K classes, sorted.
        learned: (N,) whether a classifier may learn from it; else it is measured on it.
        notes: what was left out and why, a sentence each.
        refused: files that cannot be used.
    """

    pack: Pack
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    learned: NDArray[np.bool_]
    notes: tuple[str, ...]
    refused: tuple[Entry, ...]


@contextmanager
def labelled_images(
    source: Path,
    preprocessing: Preprocessing,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Labelled]:
    """Open a folder with a sub-folder a class, or a pack of one; a folder is decoded into a temporary pack.

    Raises:
        ImageFolderError: no image can be used, there are fewer than two classes, or one has too few images.
        ConfigError: the pack was made with other preprocessing.
    """
    if is_pack(source):
        pack = open_pack(source)
        if pack.preprocessing != preprocessing:
            raise ConfigError(
                f"{source} was packed as {pack.preprocessing}, the model takes {preprocessing}. "
                "Give the folder of images itself."
            )
        yield _labelled(source, pack)
        return
    with tempfile.TemporaryDirectory(prefix="autoencode-") as temporary:
        pack = pack_folder(source, Path(temporary) / "pack", preprocessing, limits=limits, progress=progress)
        yield _labelled(source, pack)


def _labelled(source: Path, pack: Pack) -> Labelled:
    copies: dict[str, list[Entry]] = defaultdict(list)
    for entry in pack.entries:
        copies[entry.sha256 or ""].append(entry)
    kept, contradictory, unlabelled = list[Entry](), 0, 0
    for same in copies.values():
        names = {entry.label for entry in same if entry.label is not None}
        contradictory += len(names) > 1
        unlabelled += not names
        if len(names) == 1:
            kept.append(next(entry for entry in same if entry.label is not None))
    notes = []
    if unlabelled:
        notes.append(f"{_counted(unlabelled)} in no sub-folder, and so without a class, left out.")
    if contradictory:
        notes.append(f"{_counted(contradictory)} left out: exact copies of each are in two classes.")
    classes = sorted({entry.label or "" for entry in kept})
    _check_classes(source, classes)
    labels = np.array([classes.index(entry.label or "") for entry in kept], np.int64)
    learned = np.array([entry.split == "train" for entry in kept])
    _check_counts(source, classes, labels, learned)
    for index, name in enumerate(classes):
        if not (~learned & (labels == index)).any():
            notes.append(f"No image of {name} is held out, so how well it is told apart is not measured.")
    rows = np.array([entry.row for entry in kept], np.int64)
    return Labelled(pack, rows, labels, tuple(classes), learned, tuple(notes), tuple(pack.refused))


def _check_classes(source: Path, classes: list[str]) -> None:
    if not classes:
        raise ImageFolderError(
            f"{source} has no sub-folders with images. Put the images of each class into a sub-folder of "
            "its name."
        )
    if len(classes) == 1:
        raise ImageFolderError(
            f"{source} has one class, {classes[0]}; a classifier tells two or more apart. "
            "Give each a sub-folder."
        )


def _check_counts(
    source: Path, classes: list[str], labels: NDArray[np.int64], learned: NDArray[np.bool_]
) -> None:
    for index, name in enumerate(classes):
        count, usable = int((labels == index).sum()), int(((labels == index) & learned).sum())
        if usable < LEAST_LEARNED:
            raise ImageFolderError(
                f"The class {name} in {source} has {_counted(count)}, {usable} of them to learn from once a "
                f"quarter is held out; at least {LEAST_LEARNED} are needed. Add images of it, 20 if you can, "
                "or take the class out."
            )
    if learned.all():
        raise ImageFolderError(
            f"None of the {_counted(len(learned))} in {source} is held out to measure on. Add some, 20 a "
            "class if you can."
        )


def _counted(images: int) -> str:
    return f"{images} image" if images == 1 else f"{images} images"
