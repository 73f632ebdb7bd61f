"""Normal images without a trained model: what a pretrained network knows of them, and how unlike others are.

An image has four scores (see `scores`): that of its patches at each of two scales, of its content and of its
statistics. How they become one depends on the normal images; see `Combination`. The second scale is too noisy
to count where images vary.

Each normal image is measured against the others (cross-conformal prediction, Vovk 2015), so that none is
lost to calibration, and outliers among them can be found.

Shapes: N normal images, h, w rows and columns of patches.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import zoom

from autoencode.data.preprocessing import Limits, Preprocessing
from autoencode.data.sources import expanded
from autoencode.data.survey import value_range_of
from autoencode.errors import ConfigError, ImageError, ModelFileError
from autoencode.models.backbones import BACKBONE
from autoencode.models.model_file import MODEL_NAME, kind_of, read_tensors, write_tensors
from autoencode.outliers.conformal import conformal_p_values, conformal_threshold, fpr_bound
from autoencode.outliers.detectors import (
    TOP,
    Combination,
    KthNeighbour,
    Mahalanobis,
    PatchBank,
    from_arrays,
    level,
    to_arrays,
)
from autoencode.outliers.patches import SHORT_SIDES, Picture, Seen, read_in_shape, see
from autoencode.outliers.scores import FOLDS
from autoencode.pixels import to_float
from autoencode.training.run import is_run

if TYPE_CHECKING:
    from autoencode.data.pack import Progress

    Array = NDArray[np.float64]

KIND, FORMAT_VERSION = "normal images", 2
FEWEST = 10  # images; with fewer, one in ten normal images would be called an outlier
MOST_FITTED = 1000  # images in the banks; the others are measured against them
# Share of a map that a defect covers, at each scale.
_TOP = (TOP, 0.01)
# Of the scores where images vary: patches, content, statistics, patches at the second scale.
_WEIGHTS = (1.0, 1.0, 1.0, 0.0)
_REMAKE = "Make it again: autoencode outliers FOLDER --save FILE"
_HEAT_QUANTILE = 0.999  # of the distances of normal patches: 1 in a heat map


class Measured(NamedTuple):
    """One image against normal ones: its scores, (4,), and the distances (h, w) of its patches."""

    scores: Array
    maps: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class _Fit:
    """What is fitted to normal images: a bank for each scale, and two detectors at the first."""

    banks: tuple[PatchBank, ...]
    content: KthNeighbour
    early: Mahalanobis

    @classmethod
    def of(cls, seen: Sequence[tuple[Seen, ...]]) -> _Fit:
        banks = tuple(
            PatchBank.fit([one[scale].patches[0] for one in seen]) for scale in range(len(SHORT_SIDES))
        )
        content, early = (
            np.concatenate([getattr(one[0], name) for one in seen]).astype(np.float64)
            for name in ("content", "early")
        )
        return cls(banks, KthNeighbour.fit(content), Mahalanobis.fit(early))

    def measure(self, seen: tuple[Seen, ...]) -> Measured:
        maps = tuple(bank.distances(one.patches[0]) for bank, one in zip(self.banks, seen, strict=True))
        patches, fine = map(level, maps, _TOP)
        content = self.content.score(seen[0].content.astype(np.float64))[0]
        early = self.early.score(seen[0].early.astype(np.float64))[0]
        return Measured(np.array([patches, content, early, fine]), maps)


def _see(picture: Picture) -> tuple[Seen, ...]:
    return tuple(see(to_float(pixels[None])) for pixels in picture.pixels)


@dataclass(frozen=True)
class NormalImages:
    """Normal images, to which others are compared; from `fit_normal` or `load_normal`.

    Attributes:
        combination: how the four scores of an image become one.
        calibration: (N,) scores of normal images, each measured against others.
        heat_scale: for each scale, the distance that one in a thousand patches of normal images exceeds.
        paths: the N files; empty for normal images from a file.
        heats: their heat maps (h, w), each measured against others; empty for normal images from a file.
        skipped: files that could not be used, with the reason; empty for normal images from a file.
        passing: names of the test pictures, such as an all-black one, that would be called normal.
        value_range: the values of images of more than 8 bits that are black and white; empty without any.
    """

    _fit: _Fit
    combination: Combination
    calibration: Array
    heat_scale: tuple[float, ...]
    paths: tuple[Path, ...] = ()
    heats: tuple[NDArray[np.float16], ...] = ()
    skipped: tuple[tuple[Path, str], ...] = ()
    passing: tuple[str, ...] = ()
    value_range: tuple[float, ...] = ()

    def measure(self, picture: Picture) -> tuple[float, NDArray[np.float32]]:
        """Return the score of an image and its heat map (h, w).

        The score is about 0 for half of the normal images and 1 for a robust standard deviation above. In
        the heat map, 1 is what one in a thousand patches of normal images exceeds.
        """
        found = self._fit.measure(_see(picture))
        return float(self.combination.score(found.scores)), self._heat(found.maps)

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

    def fpr_bound(self, fpr: float, confidence: float = 0.95) -> float:
        """Return what the false positive rate of these very images stays below, with this confidence."""
        return fpr_bound(len(self.calibration), fpr, confidence)

    def _heat(self, maps: tuple[NDArray[np.float32], ...]) -> NDArray[np.float32]:
        """Return the mean of the maps of all scales on the finest grid, relative to normal patches."""
        rows, columns = maps[-1].shape
        scaled = []
        for one, scale in zip(maps, self.heat_scale, strict=True):
            factors = rows / one.shape[0], columns / one.shape[1]
            scaled.append(zoom(one / scale, factors, order=1, grid_mode=True, mode="nearest"))
        return np.asarray(np.mean(scaled, axis=0), np.float32)

    def save(self, path: str | Path) -> str:
        """Write all that judging needs into one file, whole or not at all; return its sha256.

        Raises:
            OutputError: the file cannot be written.
        """
        banks = {f"bank{side}": bank for side, bank in zip(SHORT_SIDES, self._fit.banks, strict=True)}
        rest = {"content": self._fit.content, "early": self._fit.early, "combination": self.combination}
        arrays = {"calibration": self.calibration, **to_arrays({**banks, **rest})}
        content = {
            "weights": BACKBONE.weights,
            "short_sides": list(SHORT_SIDES),
            "heat_scale": list(self.heat_scale),
            "passing": list(self.passing),
            "value_range": list(self.value_range),
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
            tuple(from_arrays(PatchBank, f"bank{side}", arrays) for side in SHORT_SIDES),
            from_arrays(KthNeighbour, "content", arrays),
            from_arrays(Mahalanobis, "early", arrays),
        )
        loaded = NormalImages(
            fit,
            from_arrays(Combination, "combination", arrays),
            arrays["calibration"],
            tuple(map(float, content["heat_scale"])),
            passing=tuple(map(str, content["passing"])),
            value_range=tuple(map(float, content.get("value_range", ()))),
        )
        Preprocessing(value_range=loaded.value_range)  # which rejects what is no range
        made_with = content["weights"], list(content["short_sides"])
        # A forged file may hold anything: it is used once, before it judges.
        blank = np.zeros((SHORT_SIDES[0], SHORT_SIDES[0], 3), np.uint8)
        score, heat = loaded.measure(Picture(*blank.shape[:2], (blank,) * len(SHORT_SIDES)))
        if not np.isfinite([score, heat.sum(), *loaded.calibration]).all() or loaded.calibration.ndim != 1:
            raise ValueError("its numbers are not finite")
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
    fit: _Fit | None = None
    value_range = value_range_of(paths, limits)
    for path in (paths[index] for index in order.tolist()):
        try:
            one = _see(read_in_shape(path, limits, value_range))
        except ImageError as err:
            skipped.append((path, str(err)))
            continue
        finally:
            done += 1
            report(done, total)
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
    return _calibrated(fit or _Fit.of(seen), [*crossed, *measured], used, skipped, seen, value_range)


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
    fit: _Fit,
    measured: Sequence[Measured],
    paths: Sequence[Path],
    skipped: Sequence[tuple[Path, str]],
    seen: Sequence[tuple[Seen, ...]],
    value_range: tuple[float, ...],
) -> NormalImages:
    scores = np.stack([one.scores for one in measured])
    combination = Combination.fit(scores, _WEIGHTS)
    heat_scale = tuple(
        float(np.quantile(np.concatenate([one.maps[scale].ravel() for one in measured]), _HEAT_QUANTILE))
        or 1.0
        for scale in range(len(SHORT_SIDES))
    )
    normal = NormalImages(fit, combination, np.zeros(0), heat_scale)
    normal = dataclasses.replace(
        normal,
        calibration=combination.score(scores),
        paths=tuple(paths),
        heats=tuple(normal._heat(one.maps).astype(np.float16) for one in measured),
        skipped=tuple(skipped),
        value_range=value_range,
    )
    return dataclasses.replace(normal, passing=_passing(normal, len(seen)))


def _passing(normal: NormalImages, count: int) -> tuple[str, ...]:
    """Return the names of the test pictures that would be called normal at the default rate."""
    threshold, found = normal.threshold(max(0.01, 1 / (count + 1))), []
    size = (SHORT_SIDES[0], SHORT_SIDES[0], 3)
    noise = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    pictures = {
        "all-black": np.zeros(size, np.uint8),
        "all-white": np.full(size, 255, np.uint8),
        "plain grey": np.full(size, 128, np.uint8),
        "noise": noise,
    }
    for name, pixels in pictures.items():
        scales = tuple(pixels.repeat(side // size[0], 0).repeat(side // size[0], 1) for side in SHORT_SIDES)
        if normal.measure(Picture(*size[:2], scales))[0] <= threshold:
            found.append(name)
    with contextlib.suppress(ImageError, IndexError):
        picture = read_in_shape(normal.paths[0], Limits(), normal.value_range)
        for name, changed in (("over-exposed", _over_exposed), ("out of focus", _out_of_focus)):
            altered = Picture(picture.height, picture.width, tuple(map(changed, picture.pixels)))
            if normal.measure(altered)[0] <= threshold:
                found.append(name)
    return tuple(found)


def _over_exposed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(np.minimum(pixels.astype(np.uint16) * 2 + 40, 255), np.uint8)


def _out_of_focus(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from scipy.ndimage import gaussian_filter

    sigma = min(pixels.shape[:2]) / 32
    return np.asarray(gaussian_filter(pixels.astype(np.float32), (sigma, sigma, 0)).round(), np.uint8)
