"""Judge images by normal ones: a verdict, a place and a heat map for each.

Shapes: N images judged, h, w rows and columns of a heat map.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import find_objects, label

from autoencode.atomic import TABLES, atomic_file, check_output, csv_bytes, make_folder, write_bytes
from autoencode.data.preprocessing import Limits, check_usable, save_image
from autoencode.data.sources import expanded
from autoencode.errors import ConfigError, ImageError
from autoencode.outliers.calibration import attainable_fpr
from autoencode.outliers.patches import Picture, read_in_shape

if TYPE_CHECKING:
    from autoencode.data.pack import Progress
    from autoencode.outliers.normal import NormalImages

COLUMNS = (
    *("path", "score", "threshold", "ratio", "p_value", "outlier"),
    *("left", "top", "width", "height", "area"),
)
_HEAT_UNIT = 1 / 4096  # of a 16-bit map: 1, the upper end of normal patches, is 4096


class Box(NamedTuple):
    """A rectangle in the upright image, in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Verdict:
    """What was found about one image.

    Attributes:
        path: the file.
        score: larger is more anomalous; see `NormalImages.measure`.
        ratio: how many times as likely as the threshold score this score is exceeded by normal images, as
            the threshold's rate divided by the p-value: above 1 for outliers.
        p_value: conformal, in (0, 1]: how rarely a normal image scores as high.
        outlier: whether the p-value is at most the false positive rate.
        box: around the most anomalous region; None if no place is beyond the upper end of normal patches.
        area: share of the image beyond that, in [0, 1].
        heat: (h, w) float16, where the image differs; 1 is the upper end of normal patches.
    """

    path: Path
    score: float
    ratio: float
    p_value: float
    outlier: bool
    box: Box | None
    area: float
    heat: NDArray[np.float16]


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect_images`.

    Attributes:
        verdicts: most anomalous first.
        skipped: files that could not be used, with the reason.
        fpr: the false positive rate that is kept to on average over calibrations.
        fpr_bound: the rate that this calibration keeps to with 95 % confidence.
        threshold: the highest score that is no outlier.
        calibration_images: number of normal images behind the rate.
        are_alike: whether the normal images are alike, and so judged place by place; see `normal`.
        passing: names of the test pictures that would be called normal.
    """

    verdicts: list[Verdict]
    skipped: list[tuple[Path, str]]
    fpr: float
    fpr_bound: float
    threshold: float
    calibration_images: int
    are_alike: bool
    passing: tuple[str, ...]


def inspect_images(
    normal: NormalImages,
    images: str | Path | Iterable[str | Path] | None = None,
    out: str | Path | None = None,
    *,
    fpr: float | None = None,
    maps: str | Path | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Judge images by normal ones.

    Args:
        normal: from `fit_normal` or `load_normal`.
        images: image files, and folders of them; None judges the normal images themselves, each against the
            others.
        out: a table, .csv or .json. None writes none.
        fpr: the false positive rate, in (0, 1): at most this share of normal images is called an outlier, on
            average. The default is 0.01 or, with few normal images, the smallest rate that they allow.
        maps: a folder that gets two pictures of each image: NAME-overlay.png, the whole image with the heat
            map over it, and NAME-map.png, the map in 16 bits, 4096 at the upper end of normal patches.
        limits: the largest files and pictures to accept.
        progress: called with (images done, images in all).

    Raises:
        ConfigError: the rate needs more normal images, or `out` is no table or one of the images.
        ImageFolderError: a folder is missing or holds no image, or no image could be used.
        OutputError: `out` or `maps` cannot be written.
    """
    rate = attainable_fpr(
        len(normal.calibration), fpr, found="normal images; there are {images:,}", advice="Give more"
    )
    # A normal image is in the bank, where its patches would be their own nearest neighbours.
    own = zip(normal.paths, normal.calibration.tolist(), normal.heats, strict=False)
    known = {path: (score, heat) for path, score, heat in own} if images is None else {}
    if images is None and not known:
        raise ConfigError("Normal images from a file are not there to be judged: give images to judge.")
    paths = expanded(images) if images is not None else list(known)
    out = None if out is None else Path(out)
    if out is not None:
        check_output(out, TABLES, paths)
    threshold, verdicts, skipped = normal.threshold(rate), list[Verdict](), list[tuple[Path, str]]()
    for number, path in enumerate(paths, 1):
        try:
            picture = read_in_shape(path, limits or Limits())
            score, heat = known.get(path) or normal.measure(picture)
        except ImageError as err:
            skipped.append((path, str(err)))
        else:
            p_value = float(normal.p_values(np.array([score]))[0])
            box, area = _region(heat, picture)
            is_outlier, small = p_value <= rate, heat.astype(np.float16)
            verdict = Verdict(path, score, rate / p_value, p_value, is_outlier, box, area, small)
            verdicts.append(verdict)
            if maps is not None:
                _draw(Path(maps), number, verdict, picture)
        if progress:
            progress(number, len(paths))
    check_usable(len(verdicts), paths, skipped)
    verdicts.sort(key=lambda one: -one.score)
    bound = normal.fpr_bound(rate)
    images_behind = len(normal.calibration)
    found = Inspection(
        verdicts, skipped, rate, bound, threshold, images_behind, normal.are_alike, normal.passing
    )
    if out is not None:
        write_bytes(out, _csv(found) if out.suffix.lower() == ".csv" else _json(found))
    return found


def _region(heat: NDArray[np.floating[Any]], picture: Picture) -> tuple[Box | None, float]:
    """Return the box around the region of the most heat, and the share of the image beyond normal."""
    regions, count = label(heat > 1)
    if not count:
        return None, 0.0
    hottest = 1 + int(np.argmax(np.bincount(regions.ravel(), heat.ravel())[1:]))
    rows, columns = find_objects(regions)[hottest - 1]
    down, across = picture.height / heat.shape[0], picture.width / heat.shape[1]
    left, top = round(columns.start * across), round(rows.start * down)
    box = Box(left, top, round(columns.stop * across) - left, round(rows.stop * down) - top)
    return box, float((heat > 1).mean())


def _draw(folder: Path, number: int, verdict: Verdict, picture: Picture) -> None:
    from matplotlib import colormaps  # imported late: it takes a while

    make_folder(folder, verdict.path)
    name = f"{number:05d}-{verdict.path.stem}"  # images of different folders may have one name
    pixels = picture.pixels[-1]
    size = pixels.shape[1::-1]
    heat = np.asarray(Image.fromarray(verdict.heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    # Transparent up to the upper end of normal patches, so that what is normal stays visible.
    strength = np.clip((heat - 0.8) / 0.8, 0, 1)[..., None]
    colours = colormaps["inferno"](np.clip(heat / 2.5, 0, 1))[..., :3] * 255
    overlay = pixels * (1 - 0.6 * strength) + colours * 0.6 * strength
    full = Image.fromarray(overlay.round().astype(np.uint8)).resize((picture.width, picture.height))
    save_image(folder / f"{name}-overlay.png", np.asarray(full))
    levels = np.clip(heat / _HEAT_UNIT, 0, 65535).round().astype(np.uint16)
    deep = Image.fromarray(levels).resize((picture.width, picture.height), Image.Resampling.NEAREST)
    with atomic_file(folder / f"{name}-map.png") as file:
        deep.save(file, "PNG")


def _csv(found: Inspection) -> bytes:
    rows: list[list[object]] = [list(COLUMNS)]
    for one in found.verdicts:
        numbers = [f"{value:.6g}" for value in (one.score, found.threshold, one.ratio, one.p_value)]
        verdict = str(one.outlier).lower()
        rows.append([one.path, *numbers, verdict, *(one.box or ("",) * 4), f"{one.area:.4g}"])
    return csv_bytes(rows)


def _json(found: Inspection) -> bytes:
    images: list[dict[str, Any]] = [
        {
            "path": str(one.path),
            "score": one.score,
            "ratio": one.ratio,
            "p_value": one.p_value,
            "outlier": one.outlier,
            "box": None if one.box is None else one.box._asdict(),
            "area": one.area,
        }
        for one in found.verdicts
    ]
    content = {
        "fpr": found.fpr,
        "fpr_bound": found.fpr_bound,
        "threshold": found.threshold,
        "calibration_images": found.calibration_images,
        "are_alike": found.are_alike,
        "passing": list(found.passing),
        "images": images,
        "skipped": [{"path": str(path), "reason": reason} for path, reason in found.skipped],
    }
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
