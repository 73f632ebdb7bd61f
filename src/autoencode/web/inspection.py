"""Measure how anomalous the images under review are, and where; keep the results.

Shapes: N images, h, w rows and columns of a heat map.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoencode.data.folders import EXTENSIONS
from autoencode.data.preprocessing import Limits
from autoencode.outliers.find import Box
from autoencode.outliers.inspection import judge
from autoencode.outliers.normal import fit_normal
from autoencode.outliers.overlays import coloured, with_box
from autoencode.outliers.review import Ranking
from autoencode.web.results import Form, Saved

if TYPE_CHECKING:
    from autoencode.data.pack import Pack, StageProgress

Array = NDArray[np.float64]

OVERLAY_SIDE = 800  # the longer side of a heat map as a picture, in pixels
MOST_HEAT_BYTES = 128 * 1024**2  # about 90,000 heat maps


class Place(NamedTuple):
    """The rows and columns of an image, in pixels, and a box around its anomalous region, if it has one."""

    size: tuple[int, int]
    box: Box | None


class Inspected(NamedTuple):
    """How anomalous each image is and, if patches were compared, where, by its position.

    The heat maps (h, w) may be those of the most anomalous images alone.
    """

    ranking: Ranking
    heats: dict[int, NDArray[np.float16]]
    places: dict[int, Place]


def inspect_pack(pack: Pack, is_normal: NDArray[np.bool_], report: StageProgress) -> Inspected:
    """Judge the files of a pack by some of them, each of those by the others, as `autoencode outliers` does.

    Args:
        pack: the images; their files are read.
        is_normal: (N,) which of them are normal, 10 or more.
        report: called with (stage, images done, images in all).

    Raises:
        ConfigError: fewer than 10 normal images can be used.
    """
    paths = files_of(pack)
    chosen = [path for path, is_one in zip(paths, is_normal, strict=True) if is_one]
    # Files that could not be packed cannot be learned from, either. But the command is given them with the
    # folder, and which images are compared with which depends on all names.
    labels = {entry.label for entry, is_one in zip(pack.entries, is_normal, strict=True) if is_one}
    chosen += [
        pack.folder / entry.path
        for entry in pack.skipped
        if entry.label in labels and entry.path.lower().endswith(EXTENSIONS)
    ]

    def learning(done: int, total: int) -> None:
        report("learning what is normal", done, total)

    report("reading files", 0, 0)
    normal = fit_normal(chosen, progress=learning)
    scores, heats = np.full(len(paths), np.nan), dict[int, NDArray[np.float16]]()
    places = dict[int, Place]()
    for at, (_, found) in enumerate(judge(normal, paths, normal.default_fpr, Limits())):
        report("comparing pictures", at, len(paths))
        if not isinstance(found, str):
            verdict, _ = found
            assert verdict.heat is not None and verdict.size is not None
            scores[at], heats[at] = verdict.score, verdict.heat
            places[at] = Place(verdict.size, verdict.box)
    # A file that cannot be read has no score: it comes last.
    filled = np.nan_to_num(scores, nan=float(np.nanmin(scores, initial=0)) - 1)
    ranking = _ranked("patches", filled, normal.p_values(filled), len(normal.calibration), np.zeros(0))
    return Inspected(ranking, _of_first(heats, ranking.order), places)


def files_of(pack: Pack) -> list[Path]:
    """Return the files of the N images of a pack."""
    return [pack.folder / entry.path for entry in pack.entries]


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
    ranking, heats, places = found
    flat = [heat.ravel() for heat in heats.values()]
    arrays: dict[str, NDArray[Any]] = {
        "scores": ranking.scores,
        "p_values": ranking.p_values,
        "validation": ranking.validation_p_values,
        "shown": np.array([(at, *heat.shape) for at, heat in heats.items()], np.int64).reshape(-1, 3),
        "places": np.array(
            [(at, *one.size, *(one.box or (-1,) * 4)) for at, one in places.items()], np.int64
        ),
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
    rows = saved.arrays["places"].reshape(-1, 7).tolist()
    places = {
        at: Place((height, width), Box(*box) if box[0] >= 0 else None) for at, height, width, *box in rows
    }
    if not all(0 <= at < count and min(one.size) > 0 for at, one in places.items()) or heats.keys() - places:
        raise ValueError("the places are not those of the images")
    return Inspected(_ranked(name, scores, p_values, calibration_images, validation), heats, places)


def overlay(shown: NDArray[np.float16], place: Place) -> NDArray[np.uint8]:
    """Return a heat map (h, w) and its box as colours with alpha, in the shape of the image."""
    height, width = place.size
    scale = OVERLAY_SIDE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return with_box(coloured(shown, *size), place.box, place.size)
