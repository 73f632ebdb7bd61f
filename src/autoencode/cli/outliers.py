"""The command that finds anomalous images: outliers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autoencode.cli import options
from autoencode.cli.options import Images, MaxPixels, Model, Ray, add_command
from autoencode.cli.progress import fail_if_named, one_line, say, show_skipped, stages
from autoencode.configuration import Embedding, Rule
from autoencode.errors import ConfigError
from autoencode.outliers.scores import SCORES, default_score

if TYPE_CHECKING:
    from autoencode.outliers.find import Outliers

    ScoreName = str
else:
    ScoreName = Literal[tuple(SCORES)]  # typer makes choices of a Literal; mypy wants it spelled out

SHOWN = 10  # the worst; the table has all
SCORE_HELP = (
    "; ".join(
        f"{score.name}: {score.summary}{' (VAE only)' if score.needs_vae else ''}"
        for score in SCORES.values()
    )
    + f". Default: {default_score('code')}; for pretrained features {default_score('pretrained')}."
)


def outliers(
    model: Model,
    images: Images,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write a table, .csv or .json, and a sheet of the most anomalous images beside it."
        ),
    ] = None,
    score: Annotated[
        ScoreName | None,
        typer.Option(help=SCORE_HELP),
    ] = None,
    embedding: Annotated[
        Embedding,
        typer.Option(
            help="Score by this model, or by features of a network pretrained on ImageNet (extra eval)."
        ),
    ] = "code",
    fpr: Annotated[
        float | None,
        typer.Option(
            help="False positive rate: at most this share of normal images is flagged. Default: 0.01, or the "
            "smallest that the test images of the pack allow."
        ),
    ] = None,
    rule: Annotated[
        Rule, typer.Option(help="conformal keeps to --fpr; paper flags a KL above the median.")
    ] = "conformal",
    heatmaps: Annotated[
        bool, typer.Option("--heatmaps", help="Add maps of the reconstruction error to the sheet.")
    ] = False,
    pack: Annotated[
        str | None,
        typer.Option(help="The pack the model was trained on: a folder or a URL. Default: the run's."),
    ] = None,
    max_pixels: MaxPixels = None,
    ray: Ray = None,
) -> None:
    """Find images unlike those the model was trained on."""
    if heatmaps and out is None:
        raise ConfigError("--heatmaps adds to the sheet, which is written beside the table: give --out.")
    from autoencode.atomic import TABLES, check_output
    from autoencode.data.pack import open_pack
    from autoencode.models.model_file import load_model
    from autoencode.outliers.calibration import reference_name
    from autoencode.outliers.find import find_outliers, sheet_path

    loaded = load_model(model)
    run = model if model.is_dir() else model.parent
    packed = open_pack(pack or options.pack_of(model, "--pack PACK"))
    if out is not None:  # before the work, which may take minutes
        check_output(out, TABLES, options.settings_files(model, packed))
    with stages() as progress:
        found = find_outliers(
            loaded,
            images,
            packed,
            out,
            score=score,
            embedding=embedding,
            fpr=fpr,
            rule=rule,
            heatmaps=heatmaps,
            # Kept beside the model: the reference is the same for all images, and may take longer than they.
            cache=run / reference_name(embedding),
            limits=options.limits(max_pixels),
            ray=ray,
            progress=progress,
        )
    _print(found)
    if out is not None:
        say(f"table: {out}")
        say(f"sheet: {sheet_path(out)}")
    # Last: the images that can be used are judged before the command fails for the others.
    fail_if_named(found.skipped, images)


def add_to(program: typer.Typer) -> None:
    """Add these commands to the program."""
    add_command(
        program,
        outliers,
        "autoencode outliers runs/photos new-photos --out outliers.csv",
        "autoencode outliers runs/photos new-photos --embedding pretrained --fpr 0.05",
    )


def _print(found: Outliers) -> None:
    show_skipped(found.skipped)
    for note in found.notes:
        say(f"note: {note}")
    flagged = [image for image in found.images if image.outlier]
    for image in flagged[:SHOWN]:
        # The p-value too, as the scores have no unit that could be compared.
        line = f"{image.score:12.5g}  p {image.p_value:.3g}  {image.path}"
        say(one_line(line))
    if len(flagged) > SHOWN:
        say(f"and {len(flagged) - SHOWN} more")
    say(f"outliers: {len(flagged)} of {len(found.images)} images, by {found.score} of {found.embedding}")
    say(f"rule:     {_rule(found)}")
    # Measured on images that calibrated nothing, so that one need not believe the rule.
    if found.validation_fpr is not None:
        rate, (low, high), images = found.validation_fpr
        say(
            f"measured: {rate:.2%} of {images} validation images flagged, "
            f"95 % interval {low:.2%} to {high:.2%}"
        )


def _rule(found: Outliers) -> str:
    from autoencode.outliers.calibration import DEFAULT_FPR, images_needed
    from autoencode.outliers.find import PAPER_NOTE

    if found.fpr is None:
        return PAPER_NOTE
    images = found.reference.calibration_images
    text = f"at most {found.fpr:.2%} of normal images, calibrated on {images} test images"
    # Somebody who expects the default has to see that the pack is too small for it, and by how much.
    if found.fpr == 1 / (images + 1) > DEFAULT_FPR:
        text += f"; {DEFAULT_FPR:.0%} needs {images_needed(DEFAULT_FPR)}"
    return text
