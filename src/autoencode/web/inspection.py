"""Measure how anomalous the images under review are, and where; keep the results.

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
from autoencode.web.results import Form, Saved

if TYPE_CHECKING:
    from autoencode.data.pack import Pack, StageProgress

Array = NDArray[np.float64]

CLEAR, SEEN = 0.8, 0.9  # of a heat map: up to here nothing is drawn; up to here less than a tenth of a colour
MOST_HEAT_BYTES = 128 * 1024**2  # about 90,000 heat maps


class Inspected(NamedTuple):
    """How anomalous each image is and, if patches were compared, its heat map (h, w) by its position."""

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
    paths = files_of(pack)
    chosen = [path for path, is_one in zip(paths, is_normal, strict=True) if is_one]

    def learning(done: int, total: int) -> None:
        report("learning what is normal", done, total)

    normal = fit_normal(chosen, progress=learning)
    scores, heats = np.full(len(paths), np.nan), dict[int, NDArray[np.float16]]()
    for at, path in enumerate(paths):
        report("comparing pictures", at, len(paths))
        found = _measured(normal, path)
        if found is not None:
            scores[at], heats[at] = found[0], found[1].astype(np.float16)
    # A file that cannot be read has no score: it comes last.
    filled = np.nan_to_num(scores, nan=float(np.nanmin(scores, initial=0)) - 1)
    ranking = _ranked("patches", filled, normal.p_values(filled), len(normal.calibration), np.zeros(0))
    return Inspected(ranking, _of_first(heats, ranking.order))


def files_of(pack: Pack) -> list[Path]:
    """Return the files of the N images of a pack."""
    return [pack.folder / entry.path for entry in pack.entries]


def _measured(normal: NormalImages, path: Path) -> tuple[float, NDArray[Any]] | None:
    try:
        return normal.measure(read_in_shape(path, Limits(), normal.value_range))
    except ImageError:
        return None


def _ranked(name: str, scores: Array, p_values: Array, calibration_images: int, validation: Array) -> Ranking:
    # Equal scores keep the order of the pack, page after page.
    order = np.argsort(-scores, kind="stable")
    return Ranking(name, scores, p_values, order, calibration_images, validation)


def _of_first(
    heats: dict[int, NDArray[np.float16]], order: NDArray[np.int64]
) -> dict[int, NDArray[np.float16]]:
    """Return the heat maps of the most anomalous images, as many as memory is allowed for."""
    kept, room = dict[int, NDArray[np.float16]](), MOST_HEAT_BYTES
    for position in order.tolist():
        if position in heats and (room := room - heats[position].nbytes) >= 0:
            kept[position] = heats[position]
    return kept


def form_of(count: int) -> Form[Inspected]:
    """Return how what was found about `count` images is saved."""
    return Form(_saved, lambda saved: _loaded(saved, count))


def _saved(found: Inspected) -> Saved:
    ranking, heats = found
    flat = [heat.ravel() for heat in heats.values()]
    arrays: dict[str, NDArray[Any]] = {
        "scores": ranking.scores,
        "p_values": ranking.p_values,
        "validation": ranking.validation_p_values,
        "shown": np.array([(at, *heat.shape) for at, heat in heats.items()], np.int64).reshape(-1, 3),
        "heats": np.concatenate([np.zeros(0, np.float16), *flat]).view(np.uint8),
    }
    return Saved(arrays, {"score": ranking.score, "calibration_images": ranking.calibration_images})


def _loaded(saved: Saved, count: int) -> Inspected:
    scores, p_values, shown = (saved.arrays[name] for name in ("scores", "p_values", "shown"))
    validation, flat = saved.arrays["validation"], saved.arrays["heats"].view(np.float16)
    name, calibration_images = str(saved.content["score"]), int(saved.content["calibration_images"])
    if not scores.shape == p_values.shape == (count,) or validation.ndim != 1:
        raise ValueError("the scores are not those of the images")
    if not all(np.isfinite(one).all() for one in (scores, flat)) or calibration_images < 1:
        raise ValueError("the numbers are out of range")
    if not all(((one > 0) & (one <= 1)).all() for one in (p_values, validation)):
        raise ValueError("the p-values are out of range")
    ends = np.cumsum(shown[:, 1] * shown[:, 2])
    if (shown < 0).any() or (ends[-1] if len(ends) else 0) != len(flat):
        raise ValueError("the heat maps are of another size")
    parts = np.split(flat, ends[:-1]) if len(ends) else []
    heats = {at: part.reshape(shape) for (at, *shape), part in zip(shown.tolist(), parts, strict=True)}
    return Inspected(_ranked(name, scores, p_values, calibration_images, validation), heats)


def has_seen_place(shown: NDArray[np.float16]) -> bool:
    """Return whether a heat map (h, w), as `overlay` draws it, has a place that is seen over a picture."""
    return bool(shown.max(initial=0) > SEEN)


def overlay(shown: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Return a heat map (h, w), 1 at the upper end of normal patches, as colours with alpha (h, w, 4)."""
    values = shown.astype(np.float32)
    # Clear up to the upper end of normal patches, so that what is normal stays visible.
    alpha = 0.7 * np.clip((values - CLEAR) / 0.8, 0, 1)
    colours = np.asarray(colormaps["inferno"](np.clip(values / 2.5, 0, 1)))
    colours[..., 3] = alpha
    return np.asarray((colours * 255).round(), np.uint8)
