"""Find the images of a folder that are unlike those a model was trained on; the types of all verdicts.

Shapes: N images judged, h, w rows and columns of a heat map. Pixels are (B, H, W, 3) in 0..255.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autoencode import notebook
from autoencode.atomic import TABLES, check_output, write_bytes, write_csv
from autoencode.cluster import Cluster, joined_cluster
from autoencode.data.decoding import read_bytes
from autoencode.data.folders import Skipped, by_type
from autoencode.data.listing import Paths
from autoencode.data.mapping import map_files
from autoencode.data.preprocessing import WRITABLE, Limits, read_chunks, save_image
from autoencode.data.sources import expanded, paths_given, read_beside
from autoencode.errors import ImageError
from autoencode.figures import SHEET_IMAGES, contact_sheet
from autoencode.models.model_file import as_model
from autoencode.outliers.calibration import (
    OutlierReference,
    fit_reference,
    fpr_to_keep,
    load_reference,
    scorer,
)
from autoencode.outliers.conformal import fpr_bound
from autoencode.outliers.measurements import coloured, heat_maps
from autoencode.outliers.scores import check_score
from autoencode.pixels import to_float, to_pixels

if TYPE_CHECKING:
    from autoencode.configuration import Rule
    from autoencode.data.pack import Pack, Progress, StageProgress
    from autoencode.models.autoencoder import Autoencoder
    from autoencode.outliers.conformal import FalsePositiveRate
    from autoencode.outliers.ground_truth import Agreement

COLUMNS = (
    *("path", "score", "threshold", "ratio", "p_value", "outlier"),
    *("left", "top", "width", "height", "area"),
    *("overlay", "error"),
)
CHUNK = 64  # images in memory at once
PAPER_NOTE = (
    "The paper's threshold is the median KL of training images: it calls half of normal images outliers."
)

Pixels = NDArray[np.uint8]


class Box(NamedTuple):
    """A rectangle in the upright image, in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one image. Only normal images locate a defect; a model does not.

    Attributes:
        path: the file.
        score: larger is more anomalous; the unit depends on the score.
        ratio: how many times as likely as the threshold score this score is exceeded by normal images, as
            the threshold's rate divided by the p-value: above 1 for outliers. None under the paper's rule.
        p_value: conformal, in (0, 1]: how rarely a normal image scores as high.
        outlier: whether the rule calls the image an outlier.
        box: around the most anomalous region; None if no place is beyond the upper end of normal patches.
        area: share of the image beyond that, in [0, 1].
        heat: (h, w) float16, where the image differs; 1 is the upper end of normal patches.
        size: rows and columns of the upright image in its file, in pixels.
        overlay: name of its picture in the folder of maps; None if none is drawn.
    """

    path: Path
    score: float
    ratio: float | None
    p_value: float
    outlier: bool
    box: Box | None = None
    area: float | None = None
    heat: NDArray[np.float16] | None = None
    size: tuple[int, int] | None = None
    overlay: str | None = None


class Verdicts(Sequence[Verdict]):
    """Verdicts by a model, most anomalous first; kept as arrays, as a million objects would take 430 MB."""

    def __init__(
        self,
        paths: Paths,
        scores: NDArray[np.float64],
        p_values: NDArray[np.float64],
        outliers: NDArray[np.bool_],
        fpr: float | None,
    ) -> None:
        """Take the columns (N,) in any order, and the rate they are judged at; None for the paper's rule."""
        order = np.argsort(-scores, kind="stable")
        self._paths, self._fpr = paths.take(order), fpr
        self._scores, self._p_values, self._outliers = scores[order], p_values[order], outliers[order]

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Verdict: ...

    @overload
    def __getitem__(self, index: slice) -> list[Verdict]: ...

    def __getitem__(self, index: int | slice) -> Verdict | list[Verdict]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        score, p_value, outlier = (
            column[index].item() for column in (self._scores, self._p_values, self._outliers)
        )
        ratio = None if self._fpr is None else self._fpr / p_value
        return Verdict(self._paths[index], score, ratio, p_value, outlier)


@dataclass(frozen=True)
class Outliers:
    """The result of `find_outliers` and of `inspect_images`.

    Attributes:
        images: a verdict on each image that could be used, most anomalous first.
        skipped: the other files, with the reason.
        score: name of the score.
        rule: which images are outliers: "conformal" or "paper".
        fpr: the false positive rate that the conformal rule keeps to on average over calibrations, in (0, 1);
            None under the paper's rule, as is the next.
        fpr_bound: the rate that this calibration keeps to with 99 % confidence.
        threshold: the highest score that is no outlier.
        calibration: scores of the normal images behind the rate.
        validation_fpr: the rate measured on validation images; None without a model, or without any.
        are_alike: whether the normal images are alike, and so judged place by place; see `Combination`.
        passing: names of the test pictures that would be called normal; of normal images alone.
        notes: what to know about the normal images or the model, one sentence each.
        agreement: with the masks; None without masks.
        sheet: pixels (H, W, 3) of the most anomalous images beside their reconstructions; None without a
            model.
    """

    images: Sequence[Verdict]
    skipped: list[tuple[Path, str]]
    score: str
    rule: Rule
    fpr: float | None
    fpr_bound: float | None
    threshold: float
    calibration: NDArray[np.float64]
    validation_fpr: FalsePositiveRate | None = None
    are_alike: bool = False
    passing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    agreement: Agreement | None = None
    sheet: Pixels | None = None

    def _repr_html_(self) -> str:
        title = f"{len(self.flagged):,} outliers of {len(self.images):,} images, by {self.score}"
        rows = ((one.score, one.p_value, "outlier" if one.outlier else "", one.path) for one in self.images)
        return notebook.table(title, ("score", "p-value", "", "path"), rows)

    @property
    def flagged(self) -> list[Verdict]:
        """The outliers, most anomalous first."""
        return [one for one in self.images if one.outlier]

    @property
    def unread(self) -> Skipped:
        """The images that could not be judged, with the reason: `skipped` without masks and other types."""
        return by_type(self.skipped)[1]

    def write(self, table: Path) -> None:
        """Write a table, .csv or .json, with a row for each image, last for those that could not be judged.

        Raises:
            OutputError: it cannot be written.
        """
        if table.suffix.lower() == ".csv":
            write_csv(table, itertools.chain([COLUMNS], map(cells, self._rows())))
        else:
            write_bytes(table, (json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n").encode())

    def _rows(self) -> Iterator[dict[str, Any]]:
        # A part without a row would pass for a good one.
        found: Iterable[Verdict | tuple[Path, str]] = itertools.chain(self.images, self.unread)
        return (row_of(one, self.threshold) for one in found)

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold: everything but heat maps and the sheet."""
        measured = self.validation_fpr
        return {
            "score": self.score,
            "rule": self.rule,
            "fpr": self.fpr,
            "fpr_bound": self.fpr_bound,
            "threshold": self.threshold,
            "calibration_images": len(self.calibration),
            "validation_fpr": measured
            and {"value": measured.value, **measured.interval._asdict(), "images": measured.images},
            "are_alike": self.are_alike,
            "passing": list(self.passing),
            "notes": list(self.notes),
            "agreement": self.agreement and self.agreement.to_json(),
            "images": list(self._rows()),
            "skipped": [{"path": str(path), "reason": reason} for path, reason in self.skipped],
        }


def row_of(found: Verdict | tuple[Path, str], threshold: float) -> dict[str, Any]:
    """Return a row of a table by the names of `COLUMNS`; what is not known is None.

    Args:
        found: the verdict on an image, or an image that could not be judged, with the reason.
        threshold: the highest score that is no outlier.
    """
    if isinstance(found, tuple):
        return dict.fromkeys(COLUMNS) | {"path": str(found[0]), "error": found[1]}
    known = (str(found.path), found.score, threshold, found.ratio, found.p_value, found.outlier)
    return dict(
        zip(COLUMNS, (*known, *(found.box or (None,) * 4), found.area, found.overlay, None), strict=True)
    )


def cells(row: dict[str, Any]) -> list[object]:
    """Return a row as a CSV table has it."""
    return ["" if value is None else _cell(value) for value in row.values()]


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else value


def find_outliers(
    model: Autoencoder | str | Path,
    images: str | Path | Iterable[str | Path],
    reference: Pack | OutlierReference | None = None,
    out: str | Path | None = None,
    *,
    score: str | None = None,
    fpr: float | None = None,
    rule: Rule = "conformal",
    heatmaps: bool = False,
    cache: str | Path | None = None,
    limits: Limits | None = None,
    ray: str | None = None,
    progress: StageProgress | None = None,
) -> Outliers:
    """Score images, and call those outliers whose scores few normal images reach.

    Args:
        model: from `load_model`, or its path.
        images: image files, and folders of them.
        reference: the pack of the model's training, or the result of `fit_reference` on it; by default what
            the model file holds, see `load_reference`.
        out: a table, .csv or .json; the sheet is written beside it, see `sheet_path`. None writes nothing.
        score: a name in `scores.SCORES`; see `default_score`.
        fpr: the false positive rate, in (0, 1): at most this share of normal images is called an outlier. The
            default depends on the number of calibration images, see `attainable_fpr`.
        rule: "conformal" keeps to `fpr`; "paper" calls an image with a KL above the median an outlier.
        heatmaps: add maps of where each image and its reconstruction differ to the sheet.
        cache: see `fit_reference`, which is called on a pack.
        limits: the largest files and pictures to accept.
        ray: see `fit_reference`; every node must see the images, too.
        progress: called with (stage, images done, images in all) of each stage.

    Raises:
        ConfigError: there is no such score, rule, rate or kind of table; there are too few calibration images
            for the rate; the pack or the reference is of another model; or `out` or the sheet is one of the
            images, or holds something of another kind.
        ImageFolderError: a folder is missing or holds no image, or no image could be used.
        OutputError: `out` cannot be written.
        AutoencodeError: an error of `fit_reference`.
    """
    model = as_model(model)
    # Every check comes before the work: a wrong request must not cost the hour that scoring may take.
    score = check_score(score, is_vae=model.is_vae, rule=rule)
    reference = load_reference(model) if reference is None else reference
    fpr = fpr_to_keep(reference, rule, fpr)
    out = None if out is None else Path(out)
    paths = _inputs(images, out)
    limits, report = limits or Limits(), progress or (lambda stage, done, total: None)
    with joined_cluster(ray, "Measuring on a cluster") as cluster:
        if not isinstance(reference, OutlierReference):
            fitting = partial(report, "fitting to normal images")
            reference = fit_reference(model, reference, cache, ray=ray, progress=fitting)
        reference.check_model(model.digest)
        scoring = scorer(reference, score, model)
        usable, scores, skipped = _scored(scoring, model, paths, limits, partial(report, "scoring"), cluster)
    scores = reference.cross_scored(score, scores, (_digest(path, limits) for path in usable))
    outliers = reference.outliers(score, scores, fpr)
    judged = Verdicts(usable, scores, reference.p_values(score, scores), outliers, fpr)
    sheet = _sheet(model, judged, heatmaps, limits)
    found = Outliers(
        judged,
        skipped,
        score,
        rule,
        fpr,
        None if fpr is None else fpr_bound(reference.calibration_images, fpr),
        reference.threshold(score, fpr),
        reference.calibration.get(score, np.zeros(0)),
        reference.validation_fpr(score, fpr),
        notes=tuple(filter(None, [model.note_of(reference.pack)])),
        sheet=sheet,
    )
    if out is not None:
        found.write(out)
        save_image(sheet_path(out), sheet)
    return found


def sheet_path(table: Path) -> Path:
    """Return the path of the sheet that belongs to a table: beside it, `<name>-worst.png`."""
    return table.with_name(f"{table.stem}-worst.png")


def _inputs(images: str | Path | Iterable[str | Path], out: Path | None) -> Paths:
    """Return the files to score, after a check that neither the table nor the sheet overwrites one."""
    if out is None:
        return expanded(images)
    sheet = sheet_path(out)
    # A sheet from an earlier call may lie in a folder of images; it must not be scored as one of them.
    check_output(out, TABLES, paths_given(images) or ())  # a table that was given is an input, too
    paths = read_beside(images, sheet)
    check_output(out, TABLES, paths)
    check_output(sheet, WRITABLE, paths)
    return paths


def _scored(
    scoring: Callable[[Tensor], NDArray[np.float64]],
    model: Autoencoder,
    paths: Sequence[Path],
    limits: Limits,
    report: Progress,
    cluster: Cluster | None,
) -> tuple[Paths, NDArray[np.float64], list[tuple[Path, str]]]:
    """Return the files that could be used and their scores (N,), and the others with the reason."""
    usable: list[str] = []
    skipped = list(paths.skipped) if isinstance(paths, Paths) else []
    # One array for all: small ones kept for each chunk would lie between the large ones that are freed, and
    # memory grew by 0.5 MB with each chunk of 32x32 pixels.
    scores = np.empty(len(paths))
    for read, found in map_files(scoring, paths, CHUNK, model.preprocessing, limits, skipped, cluster):
        scores[len(usable) : len(usable) + len(read)] = found
        usable += map(str, read)
        report(len(usable) + len(skipped), len(paths))
    return Paths(usable), scores[: len(usable)], skipped


def _digest(path: Path, limits: Limits) -> str | None:
    with contextlib.suppress(ImageError, OSError):  # it may have vanished since it was scored
        return hashlib.sha256(read_bytes(path, limits.max_bytes)).hexdigest()
    return None


def _sheet(model: Autoencoder, scored: Sequence[Verdict], heatmaps: bool, limits: Limits) -> Pixels:
    # Read again: kept from the first pass, the pixels of all images would fill the memory. A file may have
    # vanished since, hence the look-up by path.
    by_path = {image.path: image for image in scored[:SHEET_IMAGES]}
    [(usable, pixels)] = read_chunks(list(by_path), SHEET_IMAGES, model.preprocessing, limits, [])
    images = to_float(pixels)
    columns = [("original", pixels), ("reconstruction", to_pixels(model.reconstruct(images, "faithful")))]
    if heatmaps:
        columns.append(("difference", coloured(heat_maps(model, images))))
    captions = [
        f"{'outlier ' if by_path[p].outlier else ''}p {by_path[p].p_value:.2g}  {p.name}" for p in usable
    ]
    return contact_sheet(columns, captions=captions)
