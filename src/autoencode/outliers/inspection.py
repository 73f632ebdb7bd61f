"""Judge images by normal ones: a verdict, a place and a heat map for each.

Shapes: N images judged, h, w rows and columns of a heat map.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import find_objects, label

from autoencode.atomic import (
    TABLES,
    atomic_file,
    check_output,
    csv_bytes,
    make_folder,
    write_bytes,
)
from autoencode.data.preprocessing import Limits, check_usable, save_image
from autoencode.data.sources import expanded
from autoencode.errors import ConfigError, ImageError
from autoencode.outliers.conformal import attainable_fpr
from autoencode.outliers.ground_truth import Agreement, compare, draw_curves, masks_of
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
        size: rows and columns of the upright image in its file, in pixels.
    """

    path: Path
    score: float
    ratio: float
    p_value: float
    outlier: bool
    box: Box | None
    area: float
    heat: NDArray[np.float16]
    size: tuple[int, int]


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
        agreement: with the masks; None without masks.
    """

    verdicts: list[Verdict]
    skipped: list[tuple[Path, str]]
    fpr: float
    fpr_bound: float
    threshold: float
    calibration_images: int
    are_alike: bool
    passing: tuple[str, ...]
    agreement: Agreement | None = None


def inspect_images(
    normal: NormalImages,
    images: str | Path | Iterable[str | Path] | None = None,
    out: str | Path | None = None,
    *,
    fpr: float | None = None,
    maps: str | Path | None = None,
    only_outliers: bool = False,
    masks: str | Path | None = None,
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
            average. The default depends on their number, see `attainable_fpr`.
        maps: a folder that gets two pictures of each image: NAME-overlay.png, the whole image with the heat
            map over it, and NAME-map.png, the map in 16 bits, 4096 at the upper end of normal patches.
        only_outliers: leave the other images out of `maps`.
        masks: a folder of masks of the defects, to which the heat maps are compared; see
            `ground_truth.masks_of`. Precision and recall are drawn beside the table, see `curves_path`.
        limits: the largest files and pictures to accept.
        progress: called with (images done, images in all).

    Raises:
        ConfigError: the rate needs more normal images, `out` is no table or one of the images, or the masks
            do not belong to the images.
        ImageFolderError: a folder is missing or holds no image, or no image could be used.
        OutputError: `out` or `maps` cannot be written.
    """
    rate = attainable_rate(normal, fpr)
    # A normal image is in the bank, where its patches would be their own nearest neighbours.
    own = zip(normal.paths, normal.calibration.tolist(), normal.heats, strict=False)
    known = {path: (score, heat) for path, score, heat in own} if images is None else {}
    if images is None and not known:
        raise ConfigError("Normal images from a file are not there to be judged: give images to judge.")
    paths = expanded(images) if images is not None else list(known)
    out, limits = None if out is None else Path(out), limits or Limits()
    if out is not None:
        check_output(out, TABLES, paths)
    matched = None if masks is None else masks_of(Path(masks), paths)
    root = Path(os.path.commonpath([path.parent.absolute() for path in paths]))
    verdicts, skipped = list[Verdict](), list[tuple[Path, str]]()
    for number, path in enumerate(paths, 1):
        try:
            verdict, picture = judge(normal, path, rate, limits, known.get(path))
        except ImageError as err:
            skipped.append((path, str(err)))
        else:
            verdicts.append(verdict)
            if maps is not None and (verdict.outlier or not only_outliers):
                draw(Path(maps), picture_name(number, path, root), verdict, picture)
        if progress:
            progress(number, len(paths))
    check_usable(len(verdicts), paths, skipped)
    verdicts.sort(key=lambda one: -one.score)
    found = Inspection(
        verdicts,
        skipped,
        rate,
        normal.fpr_bound(rate),
        normal.threshold(rate),
        len(normal.calibration),
        normal.are_alike,
        normal.passing,
        None if matched is None else compare(verdicts, matched, limits),
    )
    if out is not None:
        write_bytes(out, _csv(found) if out.suffix.lower() == ".csv" else _json(found))
        if found.agreement is not None:
            draw_curves(found.agreement, curves_path(out))
    return found


def curves_path(table: Path) -> Path:
    """Return the path of the figure that belongs to a table: beside it, `<name>-curves.png`."""
    return table.with_name(f"{table.stem}-curves.png")


def attainable_rate(normal: NormalImages, fpr: float | None) -> float:
    """Return the false positive rate to keep to, see `attainable_fpr`."""
    return attainable_fpr(
        len(normal.calibration), fpr, found="normal images; there are {images:,}", advice="Give more"
    )


def judge(
    normal: NormalImages,
    path: Path,
    rate: float,
    limits: Limits,
    known: tuple[float, NDArray[np.float16]] | None = None,
) -> tuple[Verdict, Picture]:
    """Return the verdict on an image and its pixels.

    Args:
        normal: the normal images.
        path: the image.
        rate: the false positive rate.
        limits: the largest files and pictures to accept.
        known: its score and heat map, where they are known.

    Raises:
        ImageError: the file cannot be used.
    """
    picture = read_in_shape(path, limits, normal.value_range)
    score, heat = known or normal.measure(picture)
    p_value = float(normal.p_values(np.array([score]))[0])
    box, area = _region(heat, picture)
    size = picture.height, picture.width
    small = np.minimum(heat, np.finfo(np.float16).max).astype(np.float16)
    return Verdict(path, score, rate / p_value, p_value, p_value <= rate, box, area, small, size), picture


def picture_name(number: int, path: Path, root: Path) -> str:
    """Return the name of the pictures of an image: images of different folders may have one name."""
    absolute = path.absolute()
    parts = (
        absolute.relative_to(root.absolute()).parts[-3:] if absolute.is_relative_to(root.absolute()) else ()
    )
    return f"{number:05d}-{Path('-'.join(parts) or path.name).stem}"


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


def draw(folder: Path, name: str, verdict: Verdict, picture: Picture) -> None:
    """Write NAME-overlay.png and NAME-map.png."""
    from matplotlib import colormaps  # imported late: it takes a while

    make_folder(folder, verdict.path)
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
    return csv_bytes([COLUMNS, *(table_row(one, found.threshold) for one in found.verdicts)])


def table_row(one: Verdict, threshold: float) -> list[object]:
    """Return the cells of `COLUMNS`."""
    numbers = [f"{value:.6g}" for value in (one.score, threshold, one.ratio, one.p_value)]
    return [one.path, *numbers, str(one.outlier).lower(), *(one.box or ("",) * 4), f"{one.area:.4g}"]


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
        "agreement": None if found.agreement is None else found.agreement.to_json(),
        "images": images,
        "skipped": [{"path": str(path), "reason": reason} for path, reason in found.skipped],
    }
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
