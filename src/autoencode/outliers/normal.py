"""Normal images without a trained model: what a pretrained network knows of them, and how unlike others are.

Six measures of an image, each the logarithm of a distance: for each of two scales the mean of the heat map of
its patch bank and the mean of the map's highest part; the distance of the pooled last feature map to
its fifth nearest among normal images, which knows other objects; and the Mahalanobis distance of the
statistics of the first feature maps, which knows noise, blur, contrast and colour.

How they become a score depends on the normal images. Where those are alike, as parts are, the first scale
decides, where wide and small defects both show; the others would raise its noise, and count only far beyond
the normal images. Where they vary, as photographs do, the score is the sum of the first scale, the pooled
feature map and the statistics. The images say which: they are alike if half of them have neighbours of nearly
the same pooled features.

Each normal image is measured against the others (cross-conformal prediction, Vovk 2015), so that none is
lost to calibration, and outliers among them can be found.

Shapes: N normal images, h, w rows and columns of patches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import zoom
from scipy.stats import beta

from autoencode.data.preprocessing import Limits
from autoencode.data.sources import expanded
from autoencode.errors import ConfigError, ImageError, ModelFileError
from autoencode.models.backbones import BACKBONE
from autoencode.models.model_file import MODEL_NAME, kind_of, read_tensors, write_tensors
from autoencode.outliers.calibration import conformal_p_values
from autoencode.outliers.patches import SHORT_SIDES, PatchBank, Picture, Seen, read_in_shape, see
from autoencode.outliers.scores import Mahalanobis, neighbour_distance
from autoencode.training.run import is_run

if TYPE_CHECKING:
    from autoencode.data.pack import Progress

    Array = NDArray[np.float64]

KIND, FORMAT_VERSION = "normal images", 1
FEWEST = 10  # images; with fewer, one in ten normal images would be called an outlier
MOST_FITTED = 1000  # images in the banks; the others are measured against them
FOLDS = 5
# Share of a heat map, at each scale, that a defect covers: at the first a tenth was ahead of a hundredth.
_TOP = (0.1, 0.01)
# Median cosine of the pooled features of an image and its fifth neighbour from which images are alike. With
# the nearest neighbour it is .95 and .93 for commutators and tiles, and at most .68 for faces, flowers,
# emoji, dogs and ships.
_ALIKE = 0.8
# Robust standard deviations from the normal images at which a further measure begins to count, at least. At
# 2 they cost up to .01 of AUROC on parts, and at 4 nothing. Of parts photographed in several lights, one in a
# hundred is beyond 6 in its early statistics: those must not set the threshold.
_GATE, _GATE_QUANTILE, _GATE_MARGIN = 4.0, 0.99, 1.25
_REMAKE = "Make it again: autoencode outliers FOLDER --save FILE"
_TINY = 1e-6  # added to distances: that of two equal images has no logarithm
_HEAT_QUANTILE = 0.999  # of the distances of normal patches: 1 in a heat map


class Measured(NamedTuple):
    """One image against normal ones: its measures, (6,), and the distances (h, w) of its patches."""

    measures: Array
    maps: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class _Fit:
    """What is fitted to normal images: a bank for each scale, pooled features (N, 1280), their statistics."""

    banks: tuple[PatchBank, ...]
    pooled: NDArray[np.float16]
    early: Mahalanobis

    @classmethod
    def of(cls, seen: Sequence[tuple[Seen, ...]]) -> _Fit:
        banks = tuple(
            PatchBank.fit([one[scale].patches for one in seen]) for scale in range(len(SHORT_SIDES))
        )
        pooled = np.stack([_direction(one[0].pooled) for one in seen])
        early = Mahalanobis.fit(np.stack([one[0].early for one in seen]).astype(np.float64))
        return cls(banks, pooled.astype(np.float16), early)

    @functools.cached_property
    def _pooled(self) -> Array:
        return self.pooled.astype(np.float64)

    def measure(self, seen: tuple[Seen, ...]) -> Measured:
        maps = tuple(bank.distances(one.patches) for bank, one in zip(self.banks, seen, strict=True))
        found = []
        for distances, share in zip(maps, _TOP, strict=True):
            highest = np.sort(distances.ravel())[::-1]
            found += [highest.mean(), highest[: max(1, round(share * len(highest)))].mean()]
        found.append(neighbour_distance(_direction(seen[0].pooled)[None].astype(np.float64), self._pooled)[0])
        found.append(self.early.score(seen[0].early[None].astype(np.float64))[0])
        return Measured(np.log(np.array(found, np.float64) + _TINY), maps)


def _direction(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / max(float(np.linalg.norm(vector)), _TINY)


def _further(z: Array) -> Array:
    """Return second scale, pooled features and statistics (..., 3) of standardised measures (..., 6)."""
    return np.stack([z[..., 2:4].mean(-1), z[..., 4], z[..., 5]], -1)


@dataclass(frozen=True)
class NormalImages:
    """Normal images, to which others are compared; from `fit_normal` or `load_normal`.

    Attributes:
        centre, spread: (6,) median and robust standard deviation of the measures of normal images.
        gates: (3,) robust standard deviations beyond which the further measures count, of images that are
            alike.
        are_alike: whether the normal images are alike.
        calibration: (N,) scores of normal images, each measured against others.
        heat_scale: for each scale, the distance that one in a thousand patches of normal images exceeds.
        paths: the N files; empty for normal images from a file.
        heats: their heat maps (h, w), each measured against others; empty for normal images from a file.
        skipped: files that could not be used, with the reason; empty for normal images from a file.
        passing: names of the test pictures, such as an all-black one, that would be called normal.
    """

    _fit: _Fit
    centre: Array
    spread: Array
    gates: Array
    are_alike: bool
    calibration: Array
    heat_scale: tuple[float, ...]
    paths: tuple[Path, ...] = ()
    heats: tuple[NDArray[np.float16], ...] = ()
    skipped: tuple[tuple[Path, str], ...] = ()
    passing: tuple[str, ...] = ()

    def measure(self, picture: Picture) -> tuple[float, NDArray[np.float32]]:
        """Return the score of an image and its heat map (h, w).

        The score is about 0 for half of the normal images and 1 for a robust standard deviation above. In
        the heat map, 1 is what one in a thousand patches of normal images exceeds.
        """
        found = self._fit.measure(tuple(map(see, picture.pixels)))
        return float(self.score(found.measures)), self._heat(found.maps)

    def score(self, measures: Array) -> Array:
        """Return the score of measures (..., 6)."""
        z = (measures - self.centre) / self.spread
        local, further = z[..., :2].mean(-1), _further(z)
        further = np.maximum(further - self.gates, 0) if self.are_alike else further[..., 1:]
        combined: Array = local + further.sum(-1)
        return combined

    def p_values(self, scores: Array) -> Array:
        """Return the conformal p-values (M,) of scores (M,) of other images, in (0, 1]."""
        return conformal_p_values(self.calibration, scores)

    def threshold(self, fpr: float) -> float:
        """Return the largest score that is not an outlier at a false positive rate."""
        return float(np.sort(self.calibration)[-self._rank(fpr)])

    def fpr_bound(self, fpr: float, confidence: float = 0.95) -> float:
        """Return what the false positive rate of these very images stays below, with this confidence.

        The rate depends on the calibration images drawn: it follows a beta distribution (Vovk 2012), whose
        mean is at most `fpr`.
        """
        rank = self._rank(fpr)
        return float(beta.ppf(confidence, rank, len(self.calibration) + 1 - rank))

    def _rank(self, fpr: float) -> int:
        """Return how many calibration scores, at least one, are at or above the threshold."""
        # A rate such as 3 / 41 times 41 may come out below 3.
        return max(1, math.floor(fpr * (len(self.calibration) + 1) + 1e-9))

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
        arrays: dict[str, NDArray[Any]] = {"pooled": self._fit.pooled}
        for scale, bank in enumerate(self._fit.banks):
            arrays |= {f"{scale}.{name}": getattr(bank, name) for name in _BANK}
        arrays |= {f"early.{field.name}": getattr(self._fit.early, field.name) for field in _EARLY_FIELDS}
        arrays |= {name: getattr(self, name) for name in ("centre", "spread", "gates", "calibration")}
        content = {
            "weights": BACKBONE.weights,
            "short_sides": list(SHORT_SIDES),
            "heat_scale": list(self.heat_scale),
            "passing": list(self.passing),
            "are_alike": self.are_alike,
        }
        # In fp32: the files of this project hold no other type of half the size.
        wide = {
            name: array.astype(np.promote_types(array.dtype, np.float32)) for name, array in arrays.items()
        }
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in wide.items()}
        return write_tensors(Path(path), KIND, FORMAT_VERSION, tensors, content)


def holds_normal(path: Path) -> bool:
    """Whether a path is a file of normal images, or a folder that is neither a run nor holds a model."""
    if path.is_dir():
        return not is_run(path) and not (path / MODEL_NAME).exists()
    return kind_of(path) == KIND


_BANK = ("mean", "whitening", "patches")
_EARLY_FIELDS = dataclasses.fields(Mahalanobis)


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
        banks = tuple(
            PatchBank(*(arrays[f"{scale}.{name}"] for name in _BANK)) for scale in range(len(SHORT_SIDES))
        )
        early = Mahalanobis(**{field.name: arrays[f"early.{field.name}"] for field in _EARLY_FIELDS})
        fit = _Fit(banks, arrays["pooled"].astype(np.float16), early)
        loaded = NormalImages(
            fit,
            arrays["centre"],
            arrays["spread"],
            arrays["gates"],
            bool(content["are_alike"]),
            arrays["calibration"],
            tuple(map(float, content["heat_scale"])),
            passing=tuple(map(str, content["passing"])),
        )
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
    for path in (paths[index] for index in order.tolist()):
        try:
            one = tuple(map(see, read_in_shape(path, limits).pixels))
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
    return _calibrated(fit or _Fit.of(seen), [*crossed, *measured], used, skipped, seen)


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
) -> NormalImages:
    measures = np.stack([one.measures for one in measured])
    low, centre, high, tail = np.quantile(measures, (0.25, 0.5, 0.75, 0.95), axis=0)
    # Quantiles, as outliers among the images must not widen what counts as normal; the upper tail, too, as it
    # is often longer than that of a Gaussian.
    spread = np.maximum(np.maximum((high - low) / 1.349, (tail - centre) / 1.645), 1e-3)
    heat_scale = tuple(
        float(np.quantile(np.concatenate([one.maps[scale].ravel() for one in measured]), _HEAT_QUANTILE))
        or 1.0
        for scale in range(len(SHORT_SIDES))
    )
    beyond = np.quantile(_further((measures - centre) / spread), _GATE_QUANTILE, axis=0)
    gates = np.maximum(_GATE_MARGIN * beyond, _GATE)
    cosines = 1 - np.exp(2 * measures[:, 4]) / 2  # of vectors of length 1, from their distance
    are_alike = bool(np.median(cosines) >= _ALIKE)
    normal = NormalImages(fit, centre, spread, gates, are_alike, np.zeros(0), heat_scale)
    normal = dataclasses.replace(
        normal,
        calibration=normal.score(measures),
        paths=tuple(paths),
        heats=tuple(normal._heat(one.maps).astype(np.float16) for one in measured),
        skipped=tuple(skipped),
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
        picture = read_in_shape(normal.paths[0], Limits())
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
