"""Learn normal images with a pretrained network, and measure how unlike them other images are.

An image has five scores (see `scores`): of its patches, of its content, of its statistics, and of the places
of its heat map, of both scales and of the coarser one. How they become one depends on the normal images; see
`Combination`. A heat map adds the distances of patches at two scales, each relative to what is usual at its
place (`Places`).

Each normal image is measured against the others (cross-conformal prediction, Vovk 2015), so that none is
lost to calibration, and outliers among them can be found.

Shapes: N normal images, h, w rows and columns of patches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.data.preprocessing import Limits, Preprocessing
from autoencode.data.sources import expanded, is_list
from autoencode.data.survey import value_range_of
from autoencode.errors import ConfigError, ImageError, ModelFileError
from autoencode.models.backbones import BACKBONE
from autoencode.models.model_file import MODEL_NAME, kind_of, read_tensors, write_tensors
from autoencode.outliers.comparison import Fit, HeatScale, Measured, scores_of
from autoencode.outliers.conformal import (
    CONFIDENCE,
    attainable_fpr,
    conformal_p_values,
    conformal_threshold,
    fpr_bound,
)
from autoencode.outliers.detectors import (
    Combination,
    KthNeighbour,
    Mahalanobis,
    PatchBank,
    Places,
    from_arrays,
    to_arrays,
)
from autoencode.outliers.patches import SHORT_SIDES, Picture, Seen, probes, read_in_shape, see, spoiled
from autoencode.outliers.scores import FOLDS
from autoencode.pixels import to_float
from autoencode.training.run import is_run

if TYPE_CHECKING:
    from autoencode.data.pack import Progress

    Array = NDArray[np.float64]

KIND, FORMAT_VERSION = "normal images", 6
FEWEST = 10  # images; with fewer, one in ten normal images would be called an outlier
# Images in the banks, and their patches, of 690 bytes each; the others are measured against them.
MOST_FITTED, _MOST_PATCHES = 500, 400_000
# Weights of patches, content, statistics, places of both scales and of the coarser one: if images vary, and
# if they are alike. Wide defects stand out at the coarser scale.
_WEIGHTS = ((1.0, 1.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 1.0, 1.0))
# Pixels that pass the network at once: eight images of 128 pixels a side take 60 % of the time each, and
# with more pixels than these the gain is lost again.
_TOGETHER = 8 * 128 * 160
BATCH = 16  # images that are read before they are judged
_NAMED = 3  # of the most unusual normal images
_REMAKE = "Make it again: autoencode outliers FOLDER --save FILE"
# The heat of this share of a normal image, in this share of them, is below 1. By a quantile of all patches, a
# few parts in another light would set it, and defects of parts that are called outliers would not show.
_COOL_PATCHES, _COOL_IMAGES = 0.99, 0.95


def _see(pictures: Sequence[Picture]) -> list[tuple[Seen, ...]]:
    """Return what the network sees in pictures at each scale; those of one size pass it together."""
    by_size: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for index, one in enumerate(pictures):
        by_size.setdefault(tuple(pixels.shape for pixels in one.pixels), []).append(index)
    found: dict[int, tuple[Seen, ...]] = {}
    for shapes, members in by_size.items():
        scales = []
        for scale, (rows, columns, _) in enumerate(shapes):
            # The second scale gives only patches, and takes most of the time.
            size, seen = max(1, _TOGETHER // (rows * columns)), list[Seen]()
            for start in range(0, len(members), size):
                pixels = np.stack([pictures[at].pixels[scale] for at in members[start : start + size]])
                seen += see(to_float(pixels), is_fast=scale > 0).each()
            scales.append(seen)
        found |= dict(zip(members, zip(*scales, strict=True), strict=True))
    return [found[index] for index in range(len(pictures))]


@dataclass(frozen=True)
class NormalImages:
    """Normal images, to which others are compared; from `fit_normal` or `load_normal`.

    Attributes:
        fit: what is fitted to them.
        combination: how the five scores of an image become one.
        calibration: (N,) scores of normal images, each measured against others.
        heat_scale: how distances become a heat map.
        paths: the N files, then those with the same pixels; empty, as the next two, if loaded from a file.
        heats: their heat maps (h, w), each measured against others.
        skipped: files that could not be used, with the reason.
        passing: names of the test pictures, such as an all-black one, that would be called normal.
        value_range: the values of images of more than 8 bits that are black and white; empty without any.
        digests: of the pixels of the N images, by which they are known again.
        usual_size: height and width of most of them, in pixels.
    """

    fit: Fit
    combination: Combination
    calibration: Array
    heat_scale: HeatScale
    paths: tuple[Path, ...] = ()
    heats: tuple[NDArray[np.float16], ...] = ()
    skipped: tuple[tuple[Path, str], ...] = ()
    passing: tuple[str, ...] = ()
    value_range: tuple[float, ...] = ()
    digests: tuple[str, ...] = ()
    usual_size: tuple[int, int] = (SHORT_SIDES[-1], SHORT_SIDES[-1])

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {digest: row for row, digest in enumerate(self.digests)}

    def measure(self, picture: Picture) -> tuple[float, NDArray[np.float32]]:
        """Return the score of an image and its heat map (h, w); see `measure_all`."""
        return self.measure_all([picture])[0]

    def measure_all(self, pictures: Sequence[Picture]) -> list[tuple[float, NDArray[np.float32]]]:
        """Return the scores of images and their heat maps (h, w).

        The score is in robust standard deviations above what is usual among the normal images. In
        the heat map, 1 is what the hottest hundredth of one normal image in twenty exceeds, 2 twice that
        distance. A normal image has the score of it measured against others, and its heat map, too, unless
        the normal images are from a file.
        """
        rows = [self._rows.get(_digest(one)) if self.digests else None for one in pictures]
        unknown = [index for index, row in enumerate(rows) if row is None or not self.heats]
        seen = dict(zip(unknown, _see([pictures[index] for index in unknown]), strict=True))
        found = []
        for index, row in enumerate(rows):
            if row is not None and self.heats:
                found.append((float(self.calibration[row]), self.heats[row].astype(np.float32)))
                continue
            measured = self.fit.measure(seen[index])
            standard = self.heat_scale.standard(measured)
            score = self.combination.score(scores_of(measured, standard))
            found.append(
                (float(score if row is None else self.calibration[row]), self.heat_scale.shown(standard.both))
            )
        return found

    @property
    def are_alike(self) -> bool:
        """Whether the normal images are alike, so that their patches decide."""
        return bool(self.combination.alike)

    def p_values(self, scores: Array) -> Array:
        """Return the conformal p-values (M,) of scores (M,) of other images, in (0, 1]."""
        return conformal_p_values(self.calibration, scores)

    @property
    def default_fpr(self) -> float:
        """The false positive rate to keep to unless another is asked for, see `attainable_fpr`."""
        return attainable_fpr(len(self.calibration))

    @property
    def note(self) -> str | None:
        """A sentence that names the normal images that set the threshold; None if they are from a file."""
        if not self.paths:
            return None
        # Of 333 good parts of Kolektor, ten bear marks larger than any defect: no score can tell.
        highest = np.argsort(-self.calibration, kind="stable")[:_NAMED]
        names = [str(self.paths[index]) for index in highest]
        return (
            f"the most unusual normal images set the threshold: {', '.join(names)}. Look at them: without "
            "those that do not belong, more outliers are found."
        )

    def threshold(self, fpr: float) -> float:
        """Return the largest score that is not an outlier at a false positive rate."""
        return conformal_threshold(self.calibration, fpr)

    def fpr_bound(self, fpr: float, confidence: float = CONFIDENCE) -> float:
        """Return the upper bound of the false positive rate of these very images, at this confidence."""
        return fpr_bound(len(self.calibration), fpr, confidence)

    def save(self, path: str | Path) -> str:
        """Write all that judging needs into one file, whole or not at all; return its sha256.

        Raises:
            OutputError: the file cannot be written.
        """
        parts = {**vars(self.fit), "combination": self.combination}
        parts |= {f"places{side}": one for side, one in zip(SHORT_SIDES, self.heat_scale.places, strict=True)}
        arrays = {"calibration": self.calibration, **to_arrays(parts)}
        content = {
            "weights": BACKBONE.weights,
            "short_sides": list(SHORT_SIDES),
            "heat_end": self.heat_scale.end,
            "passing": list(self.passing),
            "value_range": list(self.value_range),
            "digests": list(self.digests),
            "usual_size": list(self.usual_size),
        }
        tensors = {name: torch.from_numpy(np.asarray(array, order="C")) for name, array in arrays.items()}
        return write_tensors(Path(path), KIND, FORMAT_VERSION, tensors, content)


def holds_normal(path: Path) -> bool:
    """Whether a path is a file of normal images, a table, or a folder that is no run and holds no model."""
    if path.is_dir():
        return not is_run(path) and not (path / MODEL_NAME).exists()
    return is_list(path) or kind_of(path) == KIND


def load_normal(path: str | Path) -> NormalImages:
    """Load what `NormalImages.save` wrote.

    Raises:
        ModelFileError: the file is missing, damaged, of another kind or version, or made with another version
            of the pretrained network.
    """
    path = Path(path)
    tensors, content, _ = read_tensors(path, KIND, FORMAT_VERSION, ModelFileError, remake=_REMAKE)
    try:
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        height, width = map(int, content["usual_size"])
        fit = Fit(
            from_arrays(PatchBank, "bank", arrays),
            from_arrays(Mahalanobis, "fine", arrays),
            from_arrays(KthNeighbour, "content", arrays),
            from_arrays(Mahalanobis, "early", arrays),
        )
        places = tuple(from_arrays(Places, f"places{side}", arrays) for side in SHORT_SIDES)
        loaded = NormalImages(
            fit,
            from_arrays(Combination, "combination", arrays),
            arrays["calibration"],
            HeatScale(places, float(content["heat_end"])),
            passing=tuple(map(str, content["passing"])),
            value_range=tuple(map(float, content.get("value_range", ()))),
            digests=tuple(map(str, content["digests"])),
            usual_size=(height, width),
        )
        Preprocessing(value_range=loaded.value_range)  # which rejects what is no range
        made_with = content["weights"], list(content["short_sides"])
        # A forged file may hold anything: it is used once, before it judges.
        score, heat = loaded.measure(probes()["all-black"])
        if not np.isfinite([score, heat.sum(), *loaded.calibration]).all() or loaded.calibration.ndim != 1:
            raise ValueError("its numbers are not finite")
        if loaded.digests and len(loaded.digests) != len(loaded.calibration):
            raise ValueError("its parts do not fit together")
    except (AttributeError, KeyError, TypeError, ValueError, AssertionError, RuntimeError) as err:
        raise ModelFileError(f"{path} does not hold usable normal images: {err}".splitlines()[0]) from err
    if made_with != (BACKBONE.weights, list(SHORT_SIDES)):
        raise ModelFileError(
            f"{path} was made with {made_with[0]}, and {BACKBONE.weights} is installed. {_REMAKE}"
        )
    return loaded


def fit_normal(
    images: str | Path | Iterable[str | Path],
    *,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> NormalImages:
    """Learn what images of a folder have in common, without training anything.

    A few per cent of outliers among them change little: each image is measured against the others.

    Args:
        images: image files, and folders of them; 10 or more. 100 allow a false positive rate of 1 %.
        limits: the largest files and pictures to accept.
        progress: called with (images done, images in all).

    Raises:
        ImageFolderError: a folder is missing or holds no image.
        ConfigError: fewer than 10 images can be used.
        MissingExtraError: the weights of the network are not installed.
    """
    paths, limits = expanded(images), limits or Limits()
    report, total = progress or (lambda done, total: None), len(paths) + min(len(paths), MOST_FITTED)
    reader = _Reader(limits, value_range_of(paths, limits))
    used, seen, measured = list[Path](), list[tuple[Seen, ...]](), list[Measured]()
    fit, room = None, _MOST_PATCHES
    # In a random order of their names, whatever that of the list: the page has another than the folder.
    by_name = np.array(sorted(range(len(paths)), key=lambda index: str(paths[index])))
    order = by_name[np.random.default_rng(0).permutation(len(paths))]
    for start in range(0, len(paths), BATCH):
        read = reader.read([paths[index] for index in order[start : start + BATCH].tolist()])
        for path, one in zip(read, _see(list(read.values())), strict=True):
            if fit or len(seen) == MOST_FITTED or room <= 0:
                fit = fit or Fit.of(seen)
                measured.append(fit.measure(one))
            else:
                seen.append(one)
                room -= sum(scale.patches[0, ..., 0].size for scale in one)
            used.append(path)
        report(min(start + BATCH, len(paths)), total)
    if len(used) < FEWEST:
        bad = reader.skipped
        reasons = f" {len(bad)} cannot be used; {bad[0][0]}: {bad[0][1]}." if bad else ""
        raise ConfigError(f"Give {FEWEST} or more normal images; there are {len(used)}.{reasons}")
    total = len(paths) + len(seen)
    crossed = _cross_fitted(seen, lambda count: report(len(paths) + count, total))
    normal = dataclasses.replace(
        _calibrated(fit or Fit.of(seen), [*crossed, *measured], len(seen), reader.value_range),
        paths=(*used, *reader.copies),
        skipped=(*reader.skipped, *paths.skipped),
        digests=tuple(reader.digests),
        usual_size=reader.sizes.most_common(1)[0][0],
    )
    return dataclasses.replace(normal, passing=_passing(normal, limits))


class _Reader:
    """Reads normal images, and keeps account of copies and of files that cannot be used."""

    def __init__(self, limits: Limits, value_range: tuple[float, ...]) -> None:
        self.limits, self.value_range = limits, value_range
        self.skipped, self.copies = list[tuple[Path, str]](), list[Path]()
        self.digests, self.sizes = dict[str, None](), Counter[tuple[int, int]]()

    def read(self, paths: Iterable[Path]) -> dict[Path, Picture]:
        """Return the pictures that are no copies of earlier ones."""
        found: dict[Path, Picture] = {}
        for path in paths:
            try:
                picture = read_in_shape(path, self.limits, self.value_range)
            except ImageError as err:
                self.skipped.append((path, str(err)))
                continue
            if (digest := _digest(picture)) in self.digests:
                # In the bank, it would be the nearest neighbour of the first, and the threshold fall.
                self.copies.append(path)
                continue
            self.digests[digest] = None
            self.sizes[picture.height, picture.width] += 1
            found[path] = picture
        return found


def _cross_fitted(seen: Sequence[tuple[Seen, ...]], advance: Callable[[int], None]) -> list[Measured]:
    """Measure each image against a fit to images of other folds."""
    found: dict[int, Measured] = {}
    for fold in range(FOLDS):
        held_out = range(fold, len(seen), FOLDS)
        fit = Fit.of([one for index, one in enumerate(seen) if index % FOLDS != fold])
        for index in held_out:
            found[index] = fit.measure(seen[index])
            advance(len(found))
    return [found[index] for index in range(len(seen))]


def _calibrated(
    fit: Fit, measured: Sequence[Measured], count: int, value_range: tuple[float, ...]
) -> NormalImages:
    """Return normal images from the measurements of all of them, the first `count` by cross-fitting."""
    # Each image by the places of others, as it is by patches of others.
    heat = HeatScale.of(measured)
    of_others = [
        HeatScale.of([one for index, one in enumerate(measured) if index >= count or index % FOLDS != fold])
        for fold in range(FOLDS)
    ]
    standard = [
        (of_others[index % FOLDS] if index < count else heat).standard(one)
        for index, one in enumerate(measured)
    ]
    scores = np.stack([scores_of(one, places) for one, places in zip(measured, standard, strict=True)])
    combination = Combination.fit(scores, _WEIGHTS)
    end = float(np.quantile([np.quantile(one.both, _COOL_PATCHES) for one in standard], _COOL_IMAGES))
    heat = HeatScale(heat.places, end)
    heats = tuple(heat.shown(one.both).astype(np.float16) for one in standard)
    return NormalImages(
        fit, combination, combination.score(scores), heat, heats=heats, value_range=value_range
    )


def _digest(picture: Picture) -> str:
    pixels = picture.pixels[-1]
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:32]


def _passing(normal: NormalImages, limits: Limits) -> tuple[str, ...]:
    """Return the names of the test pictures that would be called normal at the default rate."""
    threshold, pictures = normal.threshold(normal.default_fpr), probes()
    with contextlib.suppress(ImageError):
        pictures |= spoiled(read_in_shape(normal.paths[0], limits, normal.value_range))
    return tuple(name for name, one in pictures.items() if normal.measure(one)[0] <= threshold)
