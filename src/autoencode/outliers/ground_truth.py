"""Measure how well scores and heat maps agree with masks of the defects.

Shapes: N images, h, w rows and columns of a map, of which at most 256 a side are compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import label

from autoencode.data import decoding
from autoencode.data.preprocessing import Limits
from autoencode.data.sources import find_images
from autoencode.data.tables import masks_in
from autoencode.errors import ConfigError, ImageError
from autoencode.figures.plots import BLUE, VERMILION, new_figure, tidy, write_png
from autoencode.metrics.statistics import Estimate, auroc, auroc_estimate

if TYPE_CHECKING:
    from autoencode.outliers.find import Verdict

FOLDER = "ground_truth"  # beside the images, as data sets of defects have it
PRO_FPR = 0.3  # up to which the per-region overlap is integrated (Bergmann et al. 2021)
_MASK = "_mask"  # that such data sets add to the name of an image
_NAMED = 3  # of the masks that belong to no image
_SIDE = 256  # of compared maps, in pixels: maps have no more detail, and 1,000 images take 65 MB
_STEPS = 200  # of false positive rates: twice as many change the area by less than 0.001


@dataclass(frozen=True)
class Agreement:
    """How well verdicts and heat maps agree with masks.

    Attributes:
        good, bad: images without and with a defect.
        image_auroc: of the scores; None unless there are both good and bad images.
        pixel_auroc: of the heat maps over the pixels of all images.
        aupro: area under the overlap with each region of defect, up to `PRO_FPR`, divided by it.
        precision, recall, f1: of the verdicts; precision and F1 are None if nothing was flagged.
        false_positives: good images that were called outliers.
        curves: precision at each recall, both (K,), of "images" and of "pixels".
    """

    good: int
    bad: int
    image_auroc: Estimate | None
    pixel_auroc: float | None
    aupro: float | None
    precision: float | None
    recall: float
    f1: float | None
    false_positives: int
    curves: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON can hold them, without the curves."""
        return {name: value for name, value in asdict(self).items() if name != "curves"}

    def in_words(self) -> tuple[str, str]:
        """Return a line about the scores and maps, and one about the verdicts."""

        def shown(value: float | None) -> str:
            return "none" if value is None else f"{value:.3f}"

        images = None if self.image_auroc is None else self.image_auroc.value
        return (
            f"{self.bad} image{'s' * (self.bad != 1)} with a defect, {self.good} without; AUROC of "
            f"images {shown(images)}, of pixels {shown(self.pixel_auroc)}, AUPRO {shown(self.aupro)}",
            f"precision {shown(self.precision)}, recall {shown(self.recall)}, F1 {shown(self.f1)}",
        )


def beside(images: Sequence[Path]) -> Path | None:
    """Return the only table of images, if it names masks, or else `ground_truth` beside the only folder."""
    if len(images) != 1 or not images[0].exists():
        return None
    if masks_in(images[0]):
        return images[0]
    folder = images[0].absolute().parent / FOLDER
    return folder if folder.is_dir() else None


def masks_of(masks: Any, images: Iterable[Path]) -> dict[Path, Path]:  # noqa: ANN401
    """Return the mask of each image that has one.

    Args:
        masks: a table or data frame with columns `path` and `mask`, or a folder. A mask in a folder has the
            name of its image, with or without "_mask" and with any ending. Where images of several folders
            have one name, the folder of the mask has the name of the image's.
        images: the paths of the images.

    Raises:
        ImageFolderError: the folder is missing or holds no image, or the table cannot be read.
        ConfigError: no mask belongs to an image, or a name belongs to several.
    """
    if (named := masks_in(masks)) is not None:
        by_image = {image: named.get(Path(os.path.abspath(image))) for image in images}  # noqa: PTH100
        if found := {image: mask for image, mask in by_image.items() if mask is not None}:
            return found
        table = masks if isinstance(masks, str | Path) else "a data frame"
        raise ConfigError(
            f"No mask in {table} belongs to an image that is judged. Give each image's in a column mask."
        )
    masks = Path(masks)
    by_stem: dict[str, list[Path]] = {}
    for mask in find_images(masks):
        by_stem.setdefault(mask.stem.removesuffix(_MASK), []).append(mask)
    found = {}
    for image in images:
        candidates = by_stem.get(image.stem, [])
        beside = [mask for mask in candidates if mask.parent.name == image.parent.name]
        candidates = beside or [mask for mask in candidates if mask.parent == masks]
        if len(candidates) > 1:
            raise ConfigError(f"{candidates[0]} and {candidates[1]} are both masks of {image}. Remove one.")
        if candidates:
            found[image] = candidates[0]
    if not found:
        raise ConfigError(
            f"No mask in {masks} belongs to an image that is judged. Name it as the image, in a folder of "
            f"the same name or in {masks} itself."
        )
    return found


def left_over(masks: Any, found: dict[Path, Path]) -> str | None:  # noqa: ANN401
    """Return a sentence about masks that belong to no image, such as one that is misspelt; None without any.

    Args:
        masks: as `masks_of` takes them.
        found: what it returned.
    """
    named = masks_in(masks)
    given = find_images(Path(masks)) if named is None else filter(None, named.values())
    if not (others := sorted(set(given) - set(found.values()))):
        return None
    names = ", ".join(map(str, others[:_NAMED]))
    more = f" and {len(others) - _NAMED:,} more" if len(others) > _NAMED else ""
    verb = "masks belong" if len(others) > 1 else "mask belongs"
    return f"{len(others):,} {verb} to no image that is judged: {names}{more}."


def compare(verdicts: Sequence[Verdict], masks: dict[Path, Path], limits: Limits | None = None) -> Agreement:
    """Compare verdicts with masks, which are white, or anything but black, where there is a defect.

    Args:
        verdicts: of images; those without a mask, or with a black one, have no defect.
        masks: from `masks_of`.
        limits: the largest masks to accept.

    Raises:
        ConfigError: a mask cannot be read or has another shape than its image, or no mask shows a defect.
    """
    limits = limits or Limits()
    compared = [_on_one_grid(verdict, masks.get(verdict.path), limits) for verdict in verdicts]
    heats, defects, is_bad = zip(*compared, strict=True)
    bad = np.array(is_bad)
    if not bad.any():
        raise ConfigError("All masks are black: no image has a defect to be found.")
    scores = np.array([verdict.score for verdict in verdicts])
    flagged = np.array([verdict.outlier for verdict in verdicts])
    pixels, truth = (np.concatenate([part.ravel() for part in parts]) for parts in (heats, defects))
    hits, false_positives = int((flagged & bad).sum()), int((flagged & ~bad).sum())
    precision = hits / int(flagged.sum()) if flagged.any() else None
    has_both_pixels = not truth.all()
    curves = {"images": _precision_recall(scores, bad), "pixels": _precision_recall(pixels, truth)}
    return Agreement(
        good=int((~bad).sum()),
        bad=int(bad.sum()),
        image_auroc=None if bad.all() else auroc_estimate(scores[~bad], scores[bad]),
        pixel_auroc=auroc(pixels[~truth], pixels[truth]) if has_both_pixels else None,
        aupro=_region_overlap(heats, defects, pixels[~truth]) if has_both_pixels else None,
        precision=precision,
        recall=hits / int(bad.sum()),
        f1=None if precision is None else 2 * hits / int(flagged.sum() + bad.sum()),
        false_positives=false_positives,
        curves=curves,
    )


def _on_one_grid(
    verdict: Verdict, mask: Path | None, limits: Limits
) -> tuple[NDArray[np.float32], NDArray[np.bool_], bool]:
    """Return the heat and where the mask shows a defect, both (h, w), and whether it shows one at all."""
    assert verdict.heat is not None and verdict.size is not None  # verdicts by normal images have both
    height, width = verdict.size
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resized = Image.fromarray(verdict.heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    heat = np.asarray(resized, np.float32)
    if mask is None:
        return heat, np.zeros(heat.shape, bool), False
    try:
        content = decoding.read_bytes(mask, limits.max_bytes)
        with decoding.reading(limits.max_pixels):
            image = decoding.open_image(content)
            decoding.check_pixels(image, limits.max_pixels)
            columns, rows = image.size
            # One of another size is not decoded, which may take a gigabyte.
            levels = np.asarray(image.convert("L")) if (columns, rows) == (width, height) else None
    except ImageError as err:
        raise ConfigError(f"The mask {mask} cannot be used: {err}. Remove or replace it.") from err
    if levels is None:
        raise ConfigError(
            f"The mask {mask} has {columns}x{rows} pixels, and {verdict.path} has {width}x{height}. "
            "Make them equal."
        )
    # Relative to the brightest: some masks hold 0 and 1 instead of 0 and 255.
    defect = levels > levels.max() / 2
    share = Image.fromarray(defect.astype(np.float32)).resize(size, Image.Resampling.BOX)
    return heat, np.asarray(share) >= 0.5, bool(defect.any())


def _precision_recall(
    scores: NDArray[Any], truth: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision and recall (K,) at thresholds between the scores, from the highest."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order], dtype=np.float64)
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are flagged together
    at = np.flatnonzero(last)
    at = at[np.linspace(0, len(at) - 1, min(len(at), 1000)).astype(int)]
    return hits[at] / (at + 1), hits[at] / max(hits[-1], 1)


def _region_overlap(
    heats: Sequence[NDArray[np.float32]], defects: Sequence[NDArray[np.bool_]], good: NDArray[np.float32]
) -> float | None:
    """Return the area under the mean overlap with each region of defect, up to `PRO_FPR`, divided by it.

    Args:
        heats, defects: (h, w) each, of the N images.
        good: the heat of all pixels without a defect.
    """
    rates = np.linspace(0, PRO_FPR, _STEPS + 1)
    thresholds = np.quantile(good, 1 - rates)
    overlaps = []
    for heat, defect in zip(heats, defects, strict=True):
        regions, count = label(defect, np.ones((3, 3)))
        for region in range(1, count + 1):
            inside = np.sort(heat[regions == region])
            overlaps.append(1 - np.searchsorted(inside, thresholds, side="right") / len(inside))
    return float(np.trapezoid(np.mean(overlaps, axis=0), rates) / PRO_FPR) if overlaps else None


def draw_curves(agreement: Agreement, path: Path) -> None:
    """Draw precision over recall, of images and of pixels, as a PNG.

    Raises:
        OutputError: `path` cannot be written.
    """
    figure = new_figure(6.4, 4.0, f"{agreement.bad} images with a defect, {agreement.good} without")
    axes = figure.add_subplot()
    for (name, (precision, recall)), colour, line in zip(
        agreement.curves.items(), (BLUE, VERMILION), ("-", "--"), strict=True
    ):
        axes.plot(recall, precision, line, color=colour, label=name)
    if agreement.precision is not None:
        axes.plot(agreement.recall, agreement.precision, "o", color=BLUE, label="images at the threshold")
    axes.set_xlabel("recall", fontsize=9)
    axes.set_ylabel("precision", fontsize=9)
    axes.set_ylim(0, 1.02)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    tidy(axes)
    write_png(figure, path)
