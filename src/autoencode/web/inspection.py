"""Images judged by their patches, for the page: a ranking of a pack, and a heat map of each image.

Shapes: N images, h, w rows and columns of a heat map.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from autoencode.data.preprocessing import Limits
from autoencode.errors import ImageError
from autoencode.outliers.normal import NormalImages, fit_normal
from autoencode.outliers.patches import read_in_shape
from autoencode.outliers.review import Ranking

if TYPE_CHECKING:
    from autoencode.data.pack import Pack, StageProgress


class Inspected(NamedTuple):
    """Images compared by their patches: how anomalous each is, and its heat map (h, w) by its position."""

    ranking: Ranking
    heats: dict[int, NDArray[np.float16]]


def inspect_pack(pack: Pack, is_normal: NDArray[np.bool_], report: StageProgress) -> Inspected:
    """Judge the files of a pack by some of them, each of those by the others.

    Args:
        pack: the images; their files are read.
        is_normal: (N,) which of them are normal, 10 or more.
        report: called with (stage, images done, images in all).

    Raises:
        ConfigError: fewer than 10 normal images can be used.
    """
    paths = [pack.folder / entry.path for entry in pack.entries]
    chosen = [path for path, is_one in zip(paths, is_normal, strict=True) if is_one]

    def learning(done: int, total: int) -> None:
        report("learning what is normal", done, total)

    normal = fit_normal(chosen, progress=learning)
    known = dict(zip(normal.paths, zip(normal.calibration.tolist(), normal.heats, strict=True), strict=True))
    scores, heats = np.full(len(paths), np.nan), dict[int, NDArray[np.float16]]()
    for at, path in enumerate(paths):
        report("comparing pictures", at, len(paths))
        # A normal image was measured against the others; in the bank it would be its own neighbour.
        found = known.get(path) or _measured(normal, path)
        if found is not None:
            scores[at], heats[at] = found[0], found[1].astype(np.float16)
    # A file that cannot be read has no score: it comes last.
    filled = np.nan_to_num(scores, nan=float(np.nanmin(scores, initial=0)) - 1)
    ranking = Ranking(
        "patches",
        filled,
        normal.p_values(filled),
        np.argsort(-filled, kind="stable"),
        len(normal.calibration),
        np.zeros(0),
    )
    return Inspected(ranking, heats)


def _measured(normal: NormalImages, path: Path) -> tuple[float, NDArray[Any]] | None:
    try:
        return normal.measure(read_in_shape(path, Limits(), normal.value_range))
    except ImageError:
        return None


def overlay(shown: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Return a heat map (h, w), 1 at the upper end of normal patches, as colours with alpha (h, w, 4)."""
    values = shown.astype(np.float32)
    # Clear up to the upper end of normal patches, so that what is normal stays visible.
    alpha = 0.7 * np.clip((values - 0.8) / 0.8, 0, 1)
    colours = np.asarray(colormaps["inferno"](np.clip(values / 2.5, 0, 1)))
    colours[..., 3] = alpha
    return np.asarray((colours * 255).round(), np.uint8)
