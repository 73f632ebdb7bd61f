"""Which images of a folder are unlike those a model was trained on, how sure that is, and where they differ.

Pixels are (B, H, W, 3) in 0..255.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autoencode.atomic import TABLES, check_output, csv_bytes, write_bytes
from autoencode.cluster import Cluster, joined_cluster
from autoencode.data.preprocessing import WRITABLE, Limits, read_chunks, save_image
from autoencode.data.sources import Paths, expanded, read_beside
from autoencode.embedding import ImageEncoder, image_encoder, over_files
from autoencode.errors import ConfigError
from autoencode.figures import contact_sheet
from autoencode.models.model_file import as_model
from autoencode.outliers.calibration import (
    OutlierReference,
    Rate,
    calibration_size,
    conformal_p_values,
    fit_reference,
    promised_rate,
    rate_of,
)
from autoencode.outliers.heatmaps import coloured, heat_maps
from autoencode.outliers.scores import DEFAULT_SCORES, Score, check_score, measurer
from autoencode.pixels import to_float, to_pixels

if TYPE_CHECKING:
    from autoencode.configuration import Embedding
    from autoencode.data.pack import Pack
    from autoencode.models.autoencoder import Autoencoder

Rule = Literal["conformal", "paper"]

COLUMNS = ("path", "score", "p_value", "outlier")
SHEET_IMAGES = 24  # a sheet of more is looked at by nobody
CHUNK = 64  # images in memory at once
PAPER_NOTE = (
    "The paper's threshold is the median KL of data-set images: it calls half of ordinary images outliers."
)
_NONE = np.zeros(0)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about one image.

    Attributes:
        path: the image file.
        score: larger is stranger; the unit depends on the score.
        p_value: how rarely an ordinary image scores as high, in (0, 1].
        outlier: whether the rule calls it one.
    """

    path: Path
    score: float
    p_value: float
    outlier: bool


class Findings(Sequence[Finding]):
    """Findings, strangest first, of which none is an object until it is asked for."""

    def __init__(
        self,
        paths: Paths,
        scores: NDArray[np.float64],
        p_values: NDArray[np.float64],
        outliers: NDArray[np.bool_],
    ) -> None:
        """Take the columns (N,) in any order."""
        order = np.argsort(-scores, kind="stable")
        self._paths = paths.take(order)
        self._scores, self._p_values, self._outliers = scores[order], p_values[order], outliers[order]

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Finding: ...

    @overload
    def __getitem__(self, index: slice) -> list[Finding]: ...

    def __getitem__(self, index: int | slice) -> Finding | list[Finding]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        values = (column[index].item() for column in (self._scores, self._p_values, self._outliers))
        return Finding(self._paths[index], *values)


@dataclass(frozen=True)
class Outliers:
    """What `find_outliers` found.

    Attributes:
        findings: one an image that could be used, strangest first.
        skipped: the others, with the reason.
        score: name of the score.
        embedding: what the score is of.
        rule: how outliers are told.
        fpr: the false-positive rate kept to, a share; None under the paper's rule.
        calibration_images: held-out images behind the p-values.
        measured_rate: how many validation images, all of them ordinary, the rule calls outliers; None where
            the pack has none.
        notes: what the numbers do not hold for.
        sheet: pixels (H, W, 3) of the strangest images beside their reconstructions.
    """

    findings: Sequence[Finding]
    skipped: list[tuple[Path, str]]
    score: Score
    embedding: Embedding
    rule: Rule
    fpr: float | None
    calibration_images: int
    measured_rate: Rate | None
    notes: tuple[str, ...]
    sheet: Pixels


def find_outliers(
    model: Autoencoder | str | Path,
    images: str | Path | Iterable[str | Path],
    ordinary: Pack | OutlierReference,
    out: str | Path | None = None,
    *,
    score: Score | None = None,
    embedding: Embedding = "code",
    fpr: float | None = None,
    rule: Rule = "conformal",
    heatmaps: bool = False,
    cache: str | Path | None = None,
    limits: Limits | None = None,
    ray: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    fitting_progress: Callable[[int, int], None] | None = None,
) -> Outliers:
    """Score images and say which are outliers.

    Args:
        model: from `load_model`, or its path.
        images: image files, and folders of them.
        ordinary: the pack of the model's training; or what `fit_reference` made of it.
        out: a table, .csv or .json; the sheet is written beside it, see `sheet_path`. None writes nothing.
        score: see `anomaly_scores`; the default is "spectrum", "kl" under the paper's rule, and "mahalanobis"
            of pretrained features.
        embedding: "code" for all that the model makes of images; "pretrained" for features of a network
            trained on ImageNet instead.
        fpr: the false-positive rate: at most this share of ordinary images is called an outlier. The default
            is 0.01 or, with few calibration images, the smallest rate that they can promise. The rule "paper"
            has none.
        rule: "conformal" keeps to `fpr`; "paper" calls an outlier what has more KL than the median.
        heatmaps: add to the sheet where each image and its reconstruction differ.
        cache: see `fit_reference`, which is called on a pack.
        limits: the largest files and pictures to accept.
        ray: the address of a Ray cluster to measure on; this machine must be a node of it, and every node see
            the pack and the images. See `joined_cluster`.
        progress: called with (images scored, images in all).
        fitting_progress: called with (images done, images in all) while learning from the pack.

    Raises:
        ModelFileError: the path given leads to no model.
        ConfigError: a score, rule, rate or table that cannot be, too few calibration images for the rate, or
            a pack or reference of another model; or `out` or the sheet is one of the images, or holds
            something of another kind.
        MissingExtraError: pretrained features need the optional part `eval`, a cluster `ray`.
        RunError: no cluster answers at the address, or it could not do the work.
        ImageFolderError: a folder is missing or holds no image, or no image could be used.
        OutputError: `out` cannot be written.
    """
    model = as_model(model)
    chosen = _checked_score(model, score, embedding, rule)
    if rule == "paper" and fpr is not None:
        raise ConfigError("The paper's rule has no rate to keep to: leave the rate out, or use conformal.")
    rate = promised_rate(calibration_size(ordinary), fpr) if rule == "conformal" else None
    out = None if out is None else Path(out)
    paths = expanded(images) if out is None else read_beside(images, sheet_path(out))
    if out is not None:
        check_output(out, TABLES, paths)
        check_output(sheet_path(out), WRITABLE, paths)
    limits = limits or Limits()
    with joined_cluster(ray, "Measuring on a cluster") as cluster:
        reference = (
            ordinary
            if isinstance(ordinary, OutlierReference)
            else fit_reference(
                model, ordinary, cache, embedding=embedding, ray=ray, progress=fitting_progress
            )
        )
        _check_reference(reference, image_encoder(model, embedding))
        scored = _scored(model, embedding, paths, reference, chosen, limits, progress, cluster)
    usable, scores, skipped = scored
    note = model.note_of(reference.pack)
    p_values = conformal_p_values(reference.calibration.get(chosen, _NONE), scores)
    decide = _decision(reference, chosen, rate)
    findings = Findings(usable, scores, p_values, decide(scores))
    found = Outliers(
        findings,
        skipped,
        chosen,
        embedding,
        rule,
        rate,
        reference.calibration_images,
        rate_of(decide(reference.validation.get(chosen, _NONE))),
        () if note is None else (note,),
        _sheet(model, findings, heatmaps, limits),
    )
    if out is not None:
        write_bytes(out, _table(found) if out.suffix.lower() == ".csv" else _json(found))
        save_image(sheet_path(out), found.sheet)
    return found


def sheet_path(table: Path) -> Path:
    """Where the sheet goes that belongs to a table: beside it, as `<name>-worst.png`."""
    return table.with_name(f"{table.stem}-worst.png")


def _checked_score(model: Autoencoder, score: Score | None, embedding: Embedding, rule: Rule) -> Score:
    if rule not in get_args(Rule):
        raise ConfigError(f"Unknown rule {rule!r}. Choose conformal or paper.")
    image_encoder(model, embedding)
    chosen: Score = score or ("kl" if rule == "paper" else DEFAULT_SCORES[embedding])
    if rule == "paper" and chosen != "kl":
        raise ConfigError(f"The paper's rule is about the score kl, not {chosen}. Leave the score out.")
    check_score(chosen, model, embedding)
    return chosen


def _check_reference(reference: OutlierReference, encoder: ImageEncoder) -> None:
    if reference.encoder != encoder.digest:
        raise ConfigError(
            "This reference is of another model or another embedding. Make one with "
            "fit_reference(model, pack)."
        )


def _scored(
    model: Autoencoder,
    embedding: Embedding,
    paths: Sequence[Path],
    reference: OutlierReference,
    score: Score,
    limits: Limits,
    progress: Callable[[int, int], None] | None,
    cluster: Cluster | None,
) -> tuple[Paths, NDArray[np.float64], list[tuple[Path, str]]]:
    measure = measurer(model, embedding)
    usable: list[str] = []
    skipped: list[tuple[Path, str]] = []
    scores: list[NDArray[np.float64]] = []

    def of(images: Tensor) -> NDArray[np.float64]:
        return reference.statistics.scores(measure(images))[score]

    for read, found in over_files(of, paths, CHUNK, model.preprocessing, limits, skipped, cluster):
        usable += map(str, read)
        scores.append(found)
        if progress:
            progress(len(usable) + len(skipped), len(paths))
    return Paths(usable), np.concatenate(scores), skipped


def _decision(
    reference: OutlierReference, score: Score, rate: float | None
) -> Callable[[NDArray[np.float64]], NDArray[np.bool_]]:
    if rate is not None:
        return lambda scores: conformal_p_values(reference.calibration[score], scores) <= rate
    threshold = reference.median_kl_nats
    assert threshold is not None
    return lambda scores: scores > threshold


def _sheet(model: Autoencoder, findings: Sequence[Finding], heatmaps: bool, limits: Limits) -> Pixels:
    by_path = {finding.path: finding for finding in findings[:SHEET_IMAGES]}
    [(usable, pixels)] = read_chunks(list(by_path), SHEET_IMAGES, model.preprocessing, limits, [])
    images = to_float(pixels)
    columns = [("original", pixels), ("reconstruction", to_pixels(model.reconstruct(images)))]
    if heatmaps:
        columns.append(("difference", coloured(heat_maps(model, images))))
    captions = [
        f"{'outlier ' if by_path[p].outlier else ''}p {by_path[p].p_value:.2g}  {p.name}" for p in usable
    ]
    return contact_sheet(columns, captions=captions)


def _table(found: Outliers) -> bytes:
    rows = (
        [row.path, f"{row.score:.6g}", f"{row.p_value:.6g}", str(row.outlier).lower()]
        for row in found.findings
    )
    return csv_bytes([COLUMNS, *rows])


def _json(found: Outliers) -> bytes:
    rate = found.measured_rate
    content = {
        "score": found.score,
        "embedding": found.embedding,
        "rule": found.rule,
        "fpr": found.fpr,
        "calibration_images": found.calibration_images,
        "measured_rate": None
        if rate is None
        else {
            "value": rate.value,
            "low": rate.interval.low,
            "high": rate.interval.high,
            "images": rate.images,
        },
        "notes": list(found.notes),
        "images": [
            {"path": str(row.path), "score": row.score, "p_value": row.p_value, "outlier": row.outlier}
            for row in found.findings
        ],
        "skipped": [{"path": str(path), "reason": reason} for path, reason in found.skipped],
    }
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
