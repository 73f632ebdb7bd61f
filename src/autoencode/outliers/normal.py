"""Normal images without a trained model: what a pretrained network knows of them, and how unlike others are.

An image has four scores (see `scores`): of its patches, of its content, of its statistics, and of the places
of its heat map. How they become one depends on the normal images; see `Combination`. A heat map adds the
distances of patches at two scales, each relative to what is usual at its place (`Places`).

Each normal image is measured against the others (cross-conformal prediction, Vovk 2015), so that none is
lost to calibration, and outliers among them can be found.

Shapes: N normal images, h, w rows and columns of patches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.data.preprocessing import Limits, Preprocessing
from autoencode.data.sources import expanded
from autoencode.data.survey import value_range_of
from autoencode.errors import ConfigError, ImageError, ModelFileError
from autoencode.models.backbones import BACKBONE
from autoencode.models.model_file import MODEL_NAME, kind_of, read_tensors, write_tensors
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
    level,
    resized,
    sampled,
    to_arrays,
)
from autoencode.outliers.patches import SHORT_SIDES, Picture, Seen, probes, read_in_shape, see, spoiled
from autoencode.outliers.scores import FOLDS
from autoencode.pixels import to_float
from autoencode.training.run import is_run

if TYPE_CHECKING:
    from autoencode.data.pack import Progress

    Array = NDArray[np.float64]

KIND, FORMAT_VERSION = "normal images", 3
FEWEST = 10  # images; with fewer, one in ten normal images would be called an outlier
MOST_FITTED = 500  # images in the banks, whose patches are in memory; the others are measured against them
# Weights of patches, content, statistics and places: if images vary, and if they are alike.
_WEIGHTS = ((1.0, 1.0, 1.0, 0.0), (1.0, 0.0, 0.0, 1.0))
_TOPS = (1.0, 0.1, 0.01)  # shares of a map that defects cover: wide ones and small
_REMAKE = "Make it again: autoencode outliers FOLDER --save FILE"
# The heat of this share of a normal image, in this share of them, is below 1. By a quantile of all patches, a
# few parts in another light would set it, and defects of parts that are called outliers would not show.
_COOL_PATCHES, _COOL_IMAGES = 0.99, 0.95


class Measured(NamedTuple):
    """One image against normal ones: scores (3,), and the distances (h, w) of its patches at each scale."""

    scores: Array
    maps: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class _Fit:
    """What is fitted to normal images: patches at each scale, and two detectors at the first.

    At the second scale patches are many, and a Gaussian is as good as a bank there.
    """

    bank: PatchBank
    fine: Mahalanobis
    content: KthNeighbour
    early: Mahalanobis

    @classmethod
    def of(cls, seen: Sequence[tuple[Seen, ...]]) -> _Fit:
        coarse, fine = ([one[scale].patches[0] for one in seen] for scale in range(len(SHORT_SIDES)))
        content, early = (
            np.concatenate([getattr(one[0], name) for one in seen]).astype(np.float64)
            for name in ("content", "early")
        )
        gaussian = Mahalanobis.fit(sampled(fine).astype(np.float64))
        return cls(PatchBank.fit(coarse), gaussian, KthNeighbour.fit(content), Mahalanobis.fit(early))

    def measure(self, seen: tuple[Seen, ...]) -> Measured:
        coarse = self.bank.distances(seen[0].patches[0])
        patches = seen[1].patches[0]
        fine = self.fine.score(patches.reshape(-1, patches.shape[-1])).reshape(patches.shape[:2])
        content = self.content.score(seen[0].content.astype(np.float64))[0]
        early = self.early.score(seen[0].early.astype(np.float64))[0]
        return Measured(np.array([level(coarse), content, early]), (coarse, fine.astype(np.float32)))


@dataclass(frozen=True)
class _Heat:
    """How the distances of patches at two scales become one map.

    Attributes:
        places: of each scale.
        end: what the hottest hundredth of one normal image in twenty exceeds, in standard deviations.
    """

    places: tuple[Places, ...]
    end: float = 0.0

    @classmethod
    def of(cls, measured: Sequence[Measured]) -> _Heat:
        return cls(
            tuple(Places.fit([one.maps[scale] for one in measured]) for scale in range(len(SHORT_SIDES)))
        )

    def standard(self, measured: Measured) -> NDArray[np.float32]:
        """Return the mean of both scales on the finer grid, in standard deviations above what is usual."""
        maps = [places.standard(one) for places, one in zip(self.places, measured.maps, strict=True)]
        return np.asarray(np.mean([resized(one, maps[-1].shape) for one in maps], axis=0), np.float32)

    def shown(self, standard: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return such a map as distances again, relative to the upper end of normal patches."""
        spread = np.mean([places.spread.mean() for places in self.places])
        return np.asarray(np.exp((spread * (standard - self.end)).clip(-9, 9)), np.float32)


def _level(heat: NDArray[np.float32]) -> float:
    """Return the mean of the means of a map, of its highest tenth and of its highest hundredth."""
    highest = np.sort(heat.ravel())[::-1].astype(np.float64)
    return float(np.mean([highest[: max(1, round(top * len(highest)))].mean() for top in _TOPS]))


def _see(picture: Picture) -> tuple[Seen, ...]:
    return tuple(see(to_float(pixels[None])) for pixels in picture.pixels)


@dataclass(frozen=True)
class NormalImages:
    """Normal images, to which others are compared; from `fit_normal` or `load_normal`.

    Attributes:
        combination: how the four scores of an image become one.
        calibration: (N,) scores of normal images, each measured against others.
        paths: the N files, then those with the same pixels as one of them; empty for normal images from a
            file.
        heats: their heat maps (h, w), each measured against others; empty for normal images from a file.
        skipped: files that could not be used, with the reason; empty for normal images from a file.
        passing: names of the test pictures, such as an all-black one, that would be called normal.
        value_range: the values of images of more than 8 bits that are black and white; empty without any.
        digests: of the pixels of the N images, by which they are known again.
    """

    _fit: _Fit
    combination: Combination
    calibration: Array
    _heat: _Heat
    paths: tuple[Path, ...] = ()
    heats: tuple[NDArray[np.float16], ...] = ()
    skipped: tuple[tuple[Path, str], ...] = ()
    passing: tuple[str, ...] = ()
    value_range: tuple[float, ...] = ()
    digests: tuple[str, ...] = ()

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {digest: row for row, digest in enumerate(self.digests)}

    def measure(self, picture: Picture) -> tuple[float, NDArray[np.float32]]:
        """Return the score of an image and its heat map (h, w).

        The score is about 0 for half of the normal images and 1 for a robust standard deviation above. In
        the heat map, 1 is what the hottest hundredth of one normal image in twenty exceeds, 2 twice that
        distance. A normal image has the score of it measured against others, and its heat map, too, unless
        the normal images are from a file.
        """
        row = self._rows.get(_digest(picture)) if self.digests else None
        if row is not None and self.heats:
            return float(self.calibration[row]), self.heats[row].astype(np.float32)
        found = self._fit.measure(_see(picture))
        standard = self._heat.standard(found)
        score = self.combination.score(_scores(found, standard)) if row is None else self.calibration[row]
        return float(score), self._heat.shown(standard)

    @property
    def are_alike(self) -> bool:
        """Whether the normal images are alike, so that their patches decide."""
        return bool(self.combination.alike)

    def p_values(self, scores: Array) -> Array:
        """Return the conformal p-values (M,) of scores (M,) of other images, in (0, 1]."""
        return conformal_p_values(self.calibration, scores)

    def threshold(self, fpr: float) -> float:
        """Return the largest score that is not an outlier at a false positive rate."""
        return conformal_threshold(self.calibration, fpr)

    def fpr_bound(self, fpr: float, confidence: float = CONFIDENCE) -> float:
        """Return what the false positive rate of these very images stays below, with this confidence."""
        return fpr_bound(len(self.calibration), fpr, confidence)

    def save(self, path: str | Path) -> str:
        """Write all that judging needs into one file, whole or not at all; return its sha256.

        Raises:
            OutputError: the file cannot be written.
        """
        parts = {**vars(self._fit), "combination": self.combination}
        parts |= {f"places{side}": one for side, one in zip(SHORT_SIDES, self._heat.places, strict=True)}
        arrays = {"calibration": self.calibration, **to_arrays(parts)}
        content = {
            "weights": BACKBONE.weights,
            "short_sides": list(SHORT_SIDES),
            "heat_end": self._heat.end,
            "passing": list(self.passing),
            "value_range": list(self.value_range),
            "digests": list(self.digests),
        }
        tensors = {name: torch.from_numpy(np.asarray(array, order="C")) for name, array in arrays.items()}
        return write_tensors(Path(path), KIND, FORMAT_VERSION, tensors, content)


def holds_normal(path: Path) -> bool:
    """Whether a path is a file of normal images, or a folder that is neither a run nor holds a model."""
    if path.is_dir():
        return not is_run(path) and not (path / MODEL_NAME).exists()
    return kind_of(path) == KIND


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
        fit = _Fit(
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
            _Heat(places, float(content["heat_end"])),
            passing=tuple(map(str, content["passing"])),
            value_range=tuple(map(float, content.get("value_range", ()))),
            digests=tuple(map(str, content.get("digests", ()))),
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
    paths, limits, skipped = expanded(images), limits or Limits(), list[tuple[Path, str]]()
    # In a random order: names must not decide which are fitted.
    order = np.random.default_rng(0).permutation(len(paths))
    report = progress or (lambda done, total: None)
    total, done = len(paths) + min(len(paths), MOST_FITTED), 0
    used, seen, measured = list[Path](), list[tuple[Seen, ...]](), list[Measured]()
    digests, copies = dict[str, None](), list[Path]()
    fit: _Fit | None = None
    value_range = value_range_of(paths, limits)
    for path in (paths[index] for index in order.tolist()):
        try:
            picture = read_in_shape(path, limits, value_range)
        except ImageError as err:
            skipped.append((path, str(err)))
            continue
        finally:
            done += 1
            report(done, total)
        if (digest := _digest(picture)) in digests:
            # In the bank, it would be the nearest neighbour of the first, and the threshold fall.
            copies.append(path)
            continue
        digests[digest] = None
        one = _see(picture)
        if len(seen) == MOST_FITTED:
            fit = fit or _Fit.of(seen)
            measured.append(fit.measure(one))
        else:
            seen.append(one)
        used.append(path)
    if len(used) < FEWEST:
        reasons = f" {len(skipped)} cannot be used; {skipped[0][0]}: {skipped[0][1]}." if skipped else ""
        raise ConfigError(f"Give {FEWEST} or more normal images; there are {len(used)}.{reasons}")
    crossed = _cross_fitted(seen, lambda count: report(min(done + count, total), total))
    skipped += paths.skipped
    normal = _calibrated(fit or _Fit.of(seen), [*crossed, *measured], len(seen), value_range)
    normal = dataclasses.replace(
        normal, paths=(*used, *copies), skipped=tuple(skipped), digests=tuple(digests)
    )
    return dataclasses.replace(normal, passing=_passing(normal, limits))


def _cross_fitted(seen: Sequence[tuple[Seen, ...]], advance: Callable[[int], None]) -> list[Measured]:
    """Measure each image against a fit to images of other folds."""
    found: dict[int, Measured] = {}
    for fold in range(FOLDS):
        held_out = range(fold, len(seen), FOLDS)
        fit = _Fit.of([one for index, one in enumerate(seen) if index % FOLDS != fold])
        for index in held_out:
            found[index] = fit.measure(seen[index])
            advance(len(found))
    return [found[index] for index in range(len(seen))]


def _calibrated(
    fit: _Fit, measured: Sequence[Measured], count: int, value_range: tuple[float, ...]
) -> NormalImages:
    """Return normal images from the measurements of all of them, the first `count` by cross-fitting."""
    # Each image by the places of others, as it is by patches of others.
    heat = _Heat.of(measured)
    of_others = [
        _Heat.of([one for index, one in enumerate(measured) if index >= count or index % FOLDS != fold])
        for fold in range(FOLDS)
    ]
    standard = [
        (of_others[index % FOLDS] if index < count else heat).standard(one)
        for index, one in enumerate(measured)
    ]
    scores = np.stack([_scores(one, places) for one, places in zip(measured, standard, strict=True)])
    combination = Combination.fit(scores, _WEIGHTS)
    end = float(np.quantile([np.quantile(one, _COOL_PATCHES) for one in standard], _COOL_IMAGES))
    heat = _Heat(heat.places, end)
    heats = tuple(heat.shown(one).astype(np.float16) for one in standard)
    return NormalImages(
        fit, combination, combination.score(scores), heat, heats=heats, value_range=value_range
    )


def _scores(measured: Measured, standard: NDArray[np.float32]) -> Array:
    """Return the scores (4,) of an image, all of them distances, of which `Combination` takes logarithms."""
    return np.append(measured.scores, np.exp(min(_level(standard), 500.0)))  # beyond, exp has no number


def _digest(picture: Picture) -> str:
    pixels = picture.pixels[-1]
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:32]


def _passing(normal: NormalImages, limits: Limits) -> tuple[str, ...]:
    """Return the names of the test pictures that would be called normal at the default rate."""
    threshold = normal.threshold(attainable_fpr(len(normal.calibration)))
    pictures = probes()
    with contextlib.suppress(ImageError):
        pictures |= spoiled(read_in_shape(normal.paths[0], limits, normal.value_range))
    return tuple(name for name, one in pictures.items() if normal.measure(one)[0] <= threshold)
