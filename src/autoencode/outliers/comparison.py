"""Compare an image with normal ones: distances of its patches at two scales, and the heat map of both.

Shapes: h, w rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoencode.outliers.detectors import (
    KthNeighbour,
    Mahalanobis,
    PatchBank,
    Places,
    level,
    resized,
    sampled,
)
from autoencode.outliers.patches import SHORT_SIDES, Seen

if TYPE_CHECKING:
    Array = NDArray[np.float64]

TOPS = (1.0, 0.1, 0.01)  # shares of a map that defects cover: wide ones and small
FEW_PATCHES = 8  # that a small defect covers, at most, however many the map of a large image has


class Measured(NamedTuple):
    """One image against normal ones: scores (3,), and the distances (h, w) of its patches at each scale."""

    scores: Array
    maps: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class Fit:
    """The fit to normal images: patches at each scale, and two detectors at the first.

    At the second scale patches are many, and a Gaussian is as good as a bank there.
    """

    bank: PatchBank
    fine: Mahalanobis
    content: KthNeighbour
    early: Mahalanobis

    @classmethod
    def of(cls, seen: Sequence[tuple[Seen, ...]]) -> Fit:
        """Fit to what the network sees in normal images, at each scale."""
        coarse, fine = ([one[scale].patches[0] for one in seen] for scale in range(len(SHORT_SIDES)))
        content, early = (
            np.concatenate([getattr(one[0], name) for one in seen]).astype(np.float64)
            for name in ("content", "early")
        )
        gaussian = Mahalanobis.fit(sampled(fine).astype(np.float64))
        return cls(PatchBank.fit(coarse), gaussian, KthNeighbour.fit(content), Mahalanobis.fit(early))

    def measure(self, seen: tuple[Seen, ...]) -> Measured:
        """Measure one image against them."""
        coarse = self.bank.distances(seen[0].patches[0])
        patches = seen[1].patches[0]
        fine = self.fine.score(patches.reshape(-1, patches.shape[-1])).reshape(patches.shape[:2])
        content = self.content.score(seen[0].content.astype(np.float64))[0]
        early = self.early.score(seen[0].early.astype(np.float64))[0]
        return Measured(np.array([level(coarse), content, early]), (coarse, fine.astype(np.float32)))


class Standard(NamedTuple):
    """Maps of one image: the mean of both scales on the finer grid, and that of the coarser scale alone."""

    both: NDArray[np.float32]
    coarse: NDArray[np.float32]


@dataclass(frozen=True)
class HeatScale:
    """How the distances of patches at two scales become one map.

    Attributes:
        places: of each scale.
        end: what the hottest hundredth of one normal image in twenty exceeds, in standard deviations.
    """

    places: tuple[Places, ...]
    end: float = 0.0

    @classmethod
    def of(cls, measured: Sequence[Measured]) -> HeatScale:
        """Fit to normal images, each measured against others."""
        return cls(
            tuple(Places.fit([one.maps[scale] for one in measured]) for scale in range(len(SHORT_SIDES)))
        )

    def standard(self, measured: Measured) -> Standard:
        """Return maps in standard deviations above what is usual at each position."""
        maps = [places.standard(one) for places, one in zip(self.places, measured.maps, strict=True)]
        both = np.mean([resized(one, maps[-1].shape) for one in maps], axis=0)
        return Standard(np.asarray(both, np.float32), maps[0])

    def shown(self, standard: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a map of both scales as distances again, relative to the upper end of normal patches."""
        spread = np.mean([places.spread.mean() for places in self.places])
        return np.asarray(np.exp((spread * (standard - self.end)).clip(-9, 9)), np.float32)


def _level(heat: NDArray[np.float32]) -> float:
    """Return the mean of the means of a map, of its highest tenth and of its highest hundredth."""
    highest = np.sort(heat.ravel())[::-1].astype(np.float64)
    return float(np.mean([highest[:count].mean() for count in covered(len(highest))]))


def covered(patches: int) -> list[int]:
    """Return how many of a map's patches a defect of each size in `TOPS` covers, the widest first."""
    counts = [max(1, round(top * patches)) for top in TOPS]
    return [*counts[:-1], min(counts[-1], FEW_PATCHES)]


def scores_of(measured: Measured, standard: Standard) -> Array:
    """Return the five distances (5,) of an image; `Combination` takes their logarithms."""
    # Beyond 500, exp has no number.
    return np.append(measured.scores, [np.exp(min(_level(one), 500.0)) for one in standard])
