"""The command that looks for what is strange: outliers. Heavy imports are inside, as in `cli`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoencode.cli import options
from autoencode.cli.options import Embedding, MaxBytes, MaxPixels, Model, Ray
from autoencode.cli.progress import console, counting, fail_if_named, one_line, show_skipped
from autoencode.errors import ConfigError

if TYPE_CHECKING:
    from autoencode.outliers import Outliers


SHOWN = 10


class Score(StrEnum):
    """How strangeness is measured."""

    spectrum = "spectrum"
    path = "path"
    mahalanobis = "mahalanobis"
    knn = "knn"
    reconstruction = "reconstruction"
    kl = "kl"
    elbo = "elbo"


class Rule(StrEnum):
    """How outliers are told."""

    conformal = "conformal"
    paper = "paper"


def outliers(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    out: Annotated[
        Path | None, typer.Option(help="A table, .csv or .json; a sheet of the worst goes beside it.")
    ] = None,
    score: Annotated[
        Score | None,
        typer.Option(
            help="spectrum, path, mahalanobis, knn, reconstruction; of a VAE also kl (the paper's), elbo; of "
            "pretrained features mahalanobis, knn. Default: spectrum; mahalanobis."
        ),
    ] = None,
    embedding: Annotated[
        Embedding,
        typer.Option(help="What the model makes of images, or features of a network trained on ImageNet."),
    ] = Embedding.code,
    fpr: Annotated[
        float | None,
        typer.Option(
            help="False-positive rate: at most this share of ordinary images is flagged. Default: 0.01, or "
            "what the test images of the pack can promise."
        ),
    ] = None,
    rule: Annotated[
        Rule, typer.Option(help="conformal keeps to --fpr; paper flags a KL above the median.")
    ] = Rule.conformal,
    heatmaps: Annotated[
        bool, typer.Option("--heatmaps", help="Add to the sheet where image and reconstruction differ.")
    ] = False,
    pack: Annotated[
        str | None,
        typer.Option(help="The pack the model was trained on, or its URL. Default: that of the run."),
    ] = None,
    max_pixels: MaxPixels = None,
    max_bytes: MaxBytes = None,
    ray: Ray = None,
) -> None:
    """Find images unlike those the model was trained on."""
    if heatmaps and out is None:
        raise ConfigError("--heatmaps adds to the sheet, which is written beside the table: give --out.")
    from autoencode import outliers as application
    from autoencode.atomic import TABLES, check_output
    from autoencode.data.pack import open_pack
    from autoencode.models.model_file import load_model
    from autoencode.outliers.calibration import reference_name

    loaded = load_model(model)
    run = model if model.is_dir() else model.parent
    packed = open_pack(pack or options.pack_of(model, "--pack PACK"))
    if out is not None:
        check_output(out, TABLES, options.settings_files(model, packed))
    with counting("learning what is ordinary") as fitting_progress, counting("scoring") as progress:
        found = application.find_outliers(
            loaded,
            images,
            packed,
            out,
            score=None if score is None else score.value,
            embedding=embedding.value,
            fpr=fpr,
            rule=rule.value,
            heatmaps=heatmaps,
            cache=run / reference_name(embedding.value),
            limits=options.limits(max_pixels, max_bytes),
            ray=ray,
            progress=progress,
            fitting_progress=fitting_progress,
        )
    _print(found)
    if out is not None:
        console.print(f"table: {out}", soft_wrap=True)
        console.print(f"sheet: {application.sheet_path(out)}", soft_wrap=True)
    fail_if_named(found.skipped, images)


def add_to(app: typer.Typer) -> None:
    """Make the command of this module a command of the program."""
    app.command()(outliers)


def _print(found: Outliers) -> None:
    show_skipped(found.skipped)
    for note in found.notes:
        console.print(f"note: {note}", soft_wrap=True)
    flagged = [finding for finding in found.findings if finding.outlier]
    for finding in flagged[:SHOWN]:
        line = f"{finding.score:12.5g}  p {finding.p_value:.3g}  {finding.path}"
        console.print(one_line(line), soft_wrap=True)
    if len(flagged) > SHOWN:
        console.print(f"and {len(flagged) - SHOWN} more", soft_wrap=True)
    console.print(
        f"outliers: {len(flagged)} of {len(found.findings)} images, by {found.score} of {found.embedding}",
        soft_wrap=True,
    )
    console.print(f"rule:     {_rule(found)}", soft_wrap=True)
    if found.measured_rate is not None:
        rate, (low, high), images = found.measured_rate
        console.print(
            f"measured: {rate:.2%} of {images} validation images flagged, "
            f"95 % interval {low:.2%} to {high:.2%}",
            soft_wrap=True,
        )


def _rule(found: Outliers) -> str:
    from autoencode.outliers import PAPER_NOTE
    from autoencode.outliers.calibration import USUAL_RATE, images_needed

    if found.fpr is None:
        return PAPER_NOTE
    images = found.calibration_images
    text = f"at most {found.fpr:.2%} of ordinary images, calibrated on {images} test images"
    if found.fpr == 1 / (images + 1) > USUAL_RATE:
        text += f"; {USUAL_RATE:.0%} needs {images_needed(USUAL_RATE)}"
    return text
