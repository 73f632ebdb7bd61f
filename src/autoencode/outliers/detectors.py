"""Detectors: they are fitted to normal images, and score how unlike them other images are.

Shapes: N images to judge, M normal images, F dimensions of a quantity, K scores to combine; h, w rows and
columns of the patches of an image, P patches of a bank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

# The command line reads these modules for its choices and help, which must be there at once: no torch here,
# and numpy (0.07 s) only inside functions.
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Floats = NDArray[np.float32]

NEIGHBOURS = 5
BANK_PATCHES = 5000  # 10,000 gained nothing on parts, and took twice as long
_COMPARED_AT_ONCE = 1024  # patches: their products with a bank take 20 MB
_FITTED_PATCHES = 40_000  # 100 for each feature
_RIDGE = 1e-3  # of the mean variance: directions without any are not blown up
# Share of a map of patches that a defect covers, at least in part: a tenth was ahead of a hundredth.
TOP = 0.1
_PLACES, _FEW = 12, 10  # cells a side; images from which a place is trusted as much as all places together
TINY = 1e-6  # added to distances: that of two equal images has no logarithm
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
class PatchBank(Detector):
    """Patches of normal images, to which others are compared (PatchCore, Roth et al. 2022).

    They are whitened, as features of one depth are strongly correlated and of unequal scale.

    Attributes:
        mean: (F,) float32, subtracted from a patch.
        whitening: (F, F) float32; times its transpose the inverse covariance of normal patches.
        patches: (P, F) float16, whitened.
    """

    mean: Floats
    whitening: Floats
    patches: NDArray[np.floating[Any]]

    @classmethod
    def fit(cls, values: Array | Sequence[NDArray[np.float16]]) -> Self:
        """Fit to the patches of normal images, (M, h, w, F), or one array (h, w, F) for each image."""
        import numpy as np

        sample = sampled(values)
        mean = sample.mean(0, dtype=np.float64).astype(np.float32)
        covariance = np.atleast_2d(np.cov((sample - mean).T, bias=True))
        # Equal patches, of a blank image for instance, have no variance at all.
        ridge = _RIDGE * covariance.trace() / len(covariance) or 1.0
        covariance += ridge * np.eye(len(covariance))
        whitening = np.linalg.cholesky(np.linalg.inv(covariance)).astype(np.float32)
        kept = (sample[:BANK_PATCHES] - mean) @ whitening
        return cls(mean, whitening, kept.astype(np.float16))

    @cached_property
    def _bank(self) -> tuple[Floats, Floats]:
        """The patches, (P, F), and half of their squared lengths, (P,)."""
        import numpy as np

        patches = self.patches.astype(np.float32)
        return patches, np.square(patches).sum(1) / 2

    def distances(self, patches: NDArray[np.floating[Any]]) -> Floats:
        """Return the distance (...) of each patch (..., F) to the nearest of the bank.

        1 is about the distance at which a patch of normal images lies from their mean.
        """
        import numpy as np

        size = patches.shape[-1]
        whitened = (patches.reshape(-1, size).astype(np.float32) - self.mean) @ self.whitening
        bank, halves = self._bank
        # The products of `neighbour_distance`; the largest ab - |b|^2 / 2 is that of the nearest, for which
        # FAISS takes several times as long (docs/performance.md).
        parts = np.array_split(whitened, 1 + len(whitened) // _COMPARED_AT_ONCE)
        largest = np.concatenate([(part @ bank.T - halves).max(1) for part in parts])
        squares = np.square(whitened).sum(1) - 2 * largest
        return np.asarray(np.sqrt(squares.clip(min=0) / size), np.float32).reshape(patches.shape[:-1])

    def score(self, values: NDArray[np.floating[Any]]) -> Array:
        """Return the level of the maps of images, (N,), from their patches (N, h, w, F)."""
        import numpy as np

        return np.array([level(self.distances(patches)) for patches in values])


@dataclass(frozen=True)
class Places:
    """The usual distances of patches at each position of normal images; the edges of a part vary most.

    Places are cells of a square grid over the image, whatever its shape.

    Attributes:
        mean, spread: (S, S) of the logarithms of distances.
    """

    mean: Array
    spread: Array

    @classmethod
    def fit(cls, maps: Sequence[Floats]) -> Self:
        """Fit to maps of distances (h, w) of normal images, by detectors that have not seen them."""
        import numpy as np
        from scipy.ndimage import gaussian_filter

        logs = np.stack([resized(np.log(one + TINY), (_PLACES, _PLACES)) for one in maps]).astype(np.float64)
        # With few images, the mean over all places is the better estimate of that at each.
        trust = len(logs) / (len(logs) + _FEW)
        mean = trust * logs.mean(0) + (1 - trust) * logs.mean()
        variance = trust * logs.var(0) + (1 - trust) * logs.var() + 1e-6
        # Neighbours count, too: images are not placed to the pixel.
        mean, variance = (gaussian_filter(one, 1.0, mode="nearest") for one in (mean, variance))
        return cls(mean, np.sqrt(variance))

    def standard(self, distances: Floats) -> Floats:
        """Return a map (h, w) in standard deviations above what is usual at each position."""
        import numpy as np

        mean, spread = (resized(one, distances.shape) for one in (self.mean, self.spread))
        return np.asarray((np.log(distances + TINY) - mean) / spread, np.float32)


def sampled(values: Array | Sequence[NDArray[np.float16]]) -> Floats:
    """Return patches of images, (h, w, F) each, at random and at most 40,000: (P, F)."""
    import numpy as np

    every = np.concatenate([patches.reshape(-1, patches.shape[-1]) for patches in values])
    order = np.random.default_rng(0).permutation(len(every))
    return every[order[:_FITTED_PATCHES]].astype(np.float32)


def resized(one: NDArray[np.floating[Any]], shape: tuple[int, ...]) -> Floats:
    """Return a map (h, w) in another size, interpolated between the centres of its cells."""
    import numpy as np
    from scipy.ndimage import zoom

    factors = [new / old for new, old in zip(shape, one.shape, strict=True)]
    return np.asarray(zoom(one, factors, order=1, grid_mode=True, mode="nearest"), np.float32)


def level(distances: Floats, top: float = TOP) -> float:
    """Return the geometric mean of the mean of a map and that of its highest part: wide defects and small."""
    import numpy as np

    highest = np.sort(distances.ravel())[::-1].astype(np.float64)
    return float(np.sqrt(highest.mean() * highest[: max(1, round(top * len(highest)))].mean()))


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


# Median cosine of the pooled features of an image and its fifth neighbour from which images are alike. With
# the nearest neighbour it is 0.95 and 0.93 for commutators and tiles, and at most 0.68 for faces, flowers,
# emoji, dogs and ships.
_ALIKE = 0.8
# Robust standard deviations from the normal images at which a further part begins to count, at least. At
# 2 they cost up to 0.01 of AUROC on parts, and at 4 nothing. One in a hundred parts photographed in several
# lights is beyond 6 in its early statistics: those must not set the threshold.
_GATE, _GATE_QUANTILE, _GATE_MARGIN = 4.0, 0.99, 1.25


@dataclass(frozen=True)
class Combination(Detector):
    """Several scores as one, in a way that depends on the normal images.

    Each is the logarithm of a distance, in robust standard deviations from the normal images. Where those are
    alike, as parts are, patches decide, by the score in which they are most anomalous; the others would raise
    their noise, and count only far beyond the normal images. Where they vary, as photographs do, the squares
    of those above the median are added: one that sees what is wrong must not be outvoted by the others. The
    images say which: they are alike if half of them have neighbours of nearly the same pooled features.

    Attributes:
        centre, spread: (K,) median and robust standard deviation of the logarithms.
        gates: (K,) where a score begins to count if images are alike.
        weights: (2, K): of the scores that are added if images vary; above 0 for those whose largest decides
            if images are alike.
        alike: () whether they are, 1 or 0.
    """

    centre: Array
    spread: Array
    gates: Array
    weights: Array
    alike: Array

    @classmethod
    def fit(cls, values: Array, weights: Sequence[Sequence[float]] | None = None) -> Self:
        """Fit to the scores (M, K) of normal images, by detectors that have not seen them.

        The first column is of patches, the second the distances of pooled features of length 1; by default,
        all count if images vary, and the first if they are alike.
        """
        import numpy as np

        logs = np.log(values + TINY)
        low, centre, high, tail = np.quantile(logs, (0.25, 0.5, 0.75, 0.95), axis=0)
        # Quantiles, as outliers among the images must not widen what counts as normal; the upper tail, too,
        # as it is often longer than that of a Gaussian.
        spread = np.maximum(np.maximum((high - low) / 1.349, (tail - centre) / 1.645), 1e-3)
        beyond = np.quantile((logs - centre) / spread, _GATE_QUANTILE, axis=0)
        gates = np.maximum(_GATE_MARGIN * beyond, _GATE)
        cosines = 1 - np.square(values[:, 1]) / 2
        summed = (
            np.stack([np.ones(len(centre)), np.eye(len(centre))[0]]) if weights is None else np.array(weights)
        )
        return cls(centre, spread, gates, summed, np.array(float(np.median(cosines) >= _ALIKE)))

    def score(self, values: Array) -> Array:
        """Return the combination (N,) of scores (N, K): 1 is a standard deviation of one of them."""
        import numpy as np

        z = (np.log(values + TINY) - self.centre) / self.spread
        if not self.alike:
            above = np.sqrt(np.square(z.clip(min=0) * self.weights[0]).sum(-1))
            # Below all medians, the largest: images as ordinary as these have an order, too.
            largest = np.where(self.weights[0] > 0, z, -np.inf).max(-1)
            return np.asarray(np.where(above > 0, above, largest))
        decides = self.weights[1] > 0
        beyond = np.where(decides, 0, np.maximum(z - self.gates, 0))
        return np.asarray(np.where(decides, z, -np.inf).max(-1) + beyond.sum(-1))


AnyDetector = TypeVar("AnyDetector", bound="Detector | Places")


def to_arrays(detectors: Mapping[str, Detector | Places]) -> dict[str, NDArray[Any]]:
    """Return the fields of detectors by "name.field", for a file: in fp32 where that loses nothing.

    Patches, which are fp16, stay so: they are most of a file.
    """
    import numpy as np

    arrays = {
        f"{name}.{field.name}": np.asarray(getattr(detector, field.name))
        for name, detector in detectors.items()
        for field in fields(detector)
    }
    # Features are float32 or less, widened for the detectors.
    narrow = {name: values.astype(np.float32) for name, values in arrays.items() if values.itemsize > 4}
    return {
        name: narrow[name]
        if name in narrow and np.array_equal(narrow[name], values, equal_nan=True)
        else values
        for name, values in arrays.items()
    }


def from_arrays(kind: type[AnyDetector], name: str, arrays: Mapping[str, NDArray[Any]]) -> AnyDetector:
    """Return the detector that `to_arrays` took apart; a KeyError names the field that is missing."""
    return kind(**{field.name: arrays[f"{name}.{field.name}"] for field in fields(kind)})


def neighbour_distance(rows: Array, others: Array, neighbours: int = NEIGHBOURS) -> Array:
    """Euclidean distance (N,) of rows (N, F) to the k-th nearest of others (M, F), the farthest if M < k."""
    import numpy as np

    # |a - b|^2 = |a|^2 + |b|^2 - 2ab: one matrix product, where differences would take N x M x F numbers.
    squares = np.square(rows).sum(1)[:, None] + np.square(others).sum(1) - 2 * (rows @ others.T)
    nth = min(neighbours, len(others)) - 1
    distances: Array = np.sqrt(np.partition(squares, nth, axis=1)[:, nth].clip(min=0))
    return distances
